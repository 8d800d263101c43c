"""The devices that the datapath watches: attached, shaped, followed as they come and go.

The daemon's own namespace is attached at start; another one when the first socket of it joins a flow,
until its last flow has ended. A delayed flow is set on every device of the namespaces it sends in.
"""

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TypeVar

from qos2.core.bucket import bucket_depth_bytes
from qos2.datapath import hook
from qos2.datapath.deviceload import DeviceLoads, Sampled
from qos2.datapath.links import Change, Device, LinkWatch, Namespace, namespaces_of_host
from qos2.datapath.maps import open_pin
from qos2.datapath.routes import device_index, reach
from qos2.datapath.shapers import DeviceShaper, remove_qdisc, shaper_for
from qos2.errors import DatapathError, DeviceGone, QosError
from qos2.model import DeviceStatus, Reach, RemoteHost, Shaper

Result = TypeVar("Result")

_LOG = logging.getLogger(__name__)
#: The kernel drops what is sent while a root qdisc is swapped (a few ms): ours stays this long after its last flow.
HOLD_SECONDS = 60.0

_TSO_RTT_LOG = Path("/proc/sys/net/ipv4/tcp_tso_rtt_log")


@dataclass
class _Attachment:
    device: Device
    hook: hook.Hook
    shaper: DeviceShaper
    unused_since_s: float | None = None


@dataclass
class _Place:
    """One network namespace with its attachments by device index."""

    namespace: Namespace
    watch: LinkWatch
    own: bool
    attached: dict[int, _Attachment] = field(default_factory=dict)
    incomplete: bool = False  #: some device could not be attached: it is tried again
    tso_rtt_log_before: str | None = None


class Devices:
    """Every namespace and device in use. Methods raise DatapathError."""

    def __init__(
        self,
        programs: Callable[[str], Path],
        links: Path,
        *,
        names: tuple[str, ...] = (),
        hook_kind: hook.HookKind | None = None,
        tcp_tso_rtt_log: int | None = None,
    ) -> None:
        """`programs` gives the pin folder for a link layer, `links` is that of our links.

        `names` limits the own namespace to these devices; one that is renamed stays attached.
        """
        self._folder_of = programs
        self._programs: dict[str, dict[str, int]] = {}
        self._links = links
        self._names = names
        self._hook_kind = hook_kind
        self._tso_rtt_log = tcp_tso_rtt_log
        self._places: dict[int, _Place] = {}
        self._shaped: dict[int, tuple[int, frozenset[int]]] = {}  # minor -> bits/s, namespaces (empty: all)
        self.problems: dict[str, str] = {}
        self.loads = DeviceLoads()

    def program(self, name: str, link: str = "ethernet") -> int:
        """The descriptor of a pinned program. Raises DatapathError where it cannot be compiled."""
        if link not in self._programs:
            self._programs[link] = {path.name: open_pin(path) for path in self._folder_of(link).iterdir()}
        return self._programs[link][name]

    def programs(self) -> Iterator[tuple[str, int]]:
        """Name and descriptor of each program that was opened, of all link layers."""
        for programs in self._programs.values():
            yield from programs.items()

    def open_own(self) -> int:
        """Attaches the daemon's own namespace; its cookie. Raises DeviceGone for a name that is not there."""
        namespace = Namespace()
        present = {device.name for device in namespace.devices()}
        missing = [name for name in self._names if name not in present]
        if missing:
            namespace.close()
            raise DeviceGone(f"there is no device {missing[0]}", f"devices here: {', '.join(sorted(present))}")
        self._open(namespace, own=True)
        return namespace.cookie

    def take_over(self) -> None:
        """Finds the other namespaces in which a daemon that was killed left its links, and attaches them again."""
        wanted = {int(pin.name.partition("-")[0]) for pin in self._links.iterdir()} - self._places.keys()
        for descriptor in namespaces_of_host() if wanted else ():
            namespace = Namespace(descriptor)
            if namespace.cookie in wanted and namespace.cookie not in self._places:
                self._open(namespace, own=False)
            else:
                namespace.close()

    def namespaces(self) -> Set[int]:
        """Cookies of all namespaces in use."""
        return self._places.keys()

    def open_of_socket(self, fd: int, cookie: int) -> None:
        """Attaches the namespace of a socket unless it is known."""
        if cookie and cookie not in self._places:
            self._open(Namespace.of_socket(fd), own=False)

    def open_of_process(self, pid: int) -> int:
        """Attaches the namespace of a process unless it is known; its cookie. Raises OSError where it is gone."""
        return self.open_of_file(Path(f"/proc/{pid}/ns/net"))

    def open_of_file(self, path: Path) -> int:
        """Attaches the namespace that a file stands for, unless it is known; its cookie. Raises OSError."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # Entering a namespace takes a right that is not needed for those that are known.
            for cookie, place in self._places.items():
                if os.path.sameopenfile(descriptor, place.namespace.fileno()):
                    return cookie
            namespace = Namespace(descriptor)
        finally:
            os.close(descriptor)
        self._open(namespace, own=False)
        return namespace.cookie

    def reach(self, cookie: int, address: IPv4Address | IPv6Address) -> Reach:
        """How this namespace reaches an address (routes.reach); NO_HOST where the namespace is not in use.

        Raises HostUnreachable.
        """
        place = self._places.get(cookie)
        return Reach.NO_HOST if place is None else reach(place.namespace.conversation, address)

    def enter(self, cookie: int, work: Callable[[], Result]) -> Result:
        """Do `work` inside a namespace in use and return what it returns. Raises DeviceGone for any other."""
        place = self._places.get(cookie)
        if place is None:
            raise DeviceGone(f"network namespace {cookie} is not in use", "its last flow has ended")
        return place.namespace.run(work)

    def watches(self) -> Iterator[tuple[int, LinkWatch]]:
        """(namespace cookie, watch) of every namespace."""
        for cookie, place in self._places.items():
            yield cookie, place.watch

    def follow(self, cookie: int) -> None:
        """Reads what a watch has to tell and attaches or lets go of devices accordingly."""
        place = self._places.get(cookie)
        events = [] if place is None else place.watch.read_events()
        if place is None or not events:
            return
        self.loads.renew_speeds(cookie)
        for event in events:
            # Also where another one has its index by now: what was attached went with it.
            if event.change is Change.REMOVED and event.index in place.attached:
                self._detach(place, place.attached[event.index])
        self._refresh(place)

    def shape(self, minor: int, bandwidth: int, namespaces: frozenset[int]) -> None:
        """Holds a flow to `bandwidth` bits/s on the devices of these namespaces (empty: of all)."""
        self._shaped[minor] = (bandwidth, namespaces)
        for cookie, place in self._places.items():
            for attachment in place.attached.values():
                if not namespaces or cookie in namespaces:
                    attachment.shaper.set_flow(minor, bandwidth, bucket_depth_bytes(bandwidth))

    def release(self, minor: int) -> None:
        """Holds a flow back no longer."""
        if self._shaped.pop(minor, None) is not None:
            for attachment in self._attachments():
                attachment.shaper.remove_flow(minor)

    def correct(self, minor: int, ip_bytes: int, packets: int) -> None:
        """Tells the shapers what a flow has sent since the last call."""
        for attachment in self._attachments():
            attachment.shaper.correct(minor, ip_bytes, packets)

    def drops(self) -> dict[int, int]:
        """Packets that the devices' queues dropped, by minor."""
        sums: dict[int, int] = {}
        for attachment in self._attachments():
            for minor, packets in attachment.shaper.flow_drops().items():
                sums[minor] = sums.get(minor, 0) + packets
        return sums

    def shapers(self, namespaces: frozenset[int]) -> Mapping[str, str]:
        """Device name -> shaper in these namespaces (empty: all)."""
        return {
            attachment.device.name: attachment.shaper.kind.value
            for cookie, place in self._places.items()
            if not namespaces or cookie in namespaces
            for attachment in place.attached.values()
        }

    def idle(self, used: Set[int], now_s: float) -> None:
        """Once a second: qdiscs that no flow has needed for a while go, and namespaces that are not in `used`.

        Where somebody has put another qdisc under our flows, the device gets the shaper that suits it now; where
        somebody removed our program, it is attached again. A device that fails is a problem, not the end.
        """
        for cookie, place in self._places.items():
            if place.incomplete:
                self._refresh(place)
            for attachment in place.attached.values():
                try:
                    self._keep(cookie, place, attachment, now_s)
                    self.problems.pop(attachment.hook.pin_path.name, None)
                except DeviceGone:
                    pass  # the watch will tell
                except QosError as error:
                    problem = f"device {attachment.device.name} is not kept as it should be: {error}"
                    self._tell(attachment.hook.pin_path, problem)
        for cookie, place in list(self._places.items()):
            if not place.own and cookie not in used:
                self._close(cookie, place)

    def sample(self) -> None:
        """Once a second: what the attached devices carry, for status()."""
        self.loads.sample(
            {
                cookie: Sampled(
                    place.namespace.conversation,
                    {index: attachment.device for index, attachment in place.attached.items()},
                )
                for cookie, place in self._places.items()
            }
        )

    def status(self) -> tuple[DeviceStatus, ...]:
        """Every attached device, with its load at the last sample."""
        return tuple(
            self._status(cookie, attachment)
            for cookie, place in self._places.items()
            for attachment in place.attached.values()
        )

    def way_out(self, host: RemoteHost) -> DeviceStatus | None:
        """The device by which packets to a host leave now; None where that is not known, or not attached."""
        place = self._places.get(host.netns_cookie)
        if place is None:
            return None
        try:
            index = device_index(place.namespace.conversation, host.address)
        except QosError as error:  # what asks is to tell the rest all the same
            _LOG.debug("device to %s: %s", host, error)
            return None
        attachment = None if index is None else place.attached.get(index)
        return None if attachment is None else self._status(host.netns_cookie, attachment)

    def close(self) -> None:
        """Detaches from every device and puts its qdisc back."""
        for cookie, place in list(self._places.items()):
            self._close(cookie, place)
        for programs in self._programs.values():
            for descriptor in programs.values():
                os.close(descriptor)
        self._programs.clear()

    def _status(self, cookie: int, attachment: _Attachment) -> DeviceStatus:
        load = self.loads.of(cookie, attachment.device.index)
        return DeviceStatus(
            name=attachment.device.name,
            index=attachment.device.index,
            netns_cookie=cookie,
            hook=attachment.hook.kind,
            shaper=attachment.shaper.kind,
            why=attachment.shaper.why,
            shaped_flows=attachment.shaper.flows,
            speed_bps=load.speed_bps,
            load_bps=load.load_bps,
            backlog_bytes=load.backlog_bytes,
            backlog_packets=load.backlog_packets,
            qdisc_drops=load.qdisc_drops,
        )

    def _attachments(self) -> Iterator[_Attachment]:
        for place in self._places.values():
            yield from place.attached.values()

    def _open(self, namespace: Namespace, *, own: bool) -> None:
        place = _Place(namespace, namespace.watch(), own)
        self._places[namespace.cookie] = place
        if self._tso_rtt_log is not None:
            self._set_tso_rtt_log(place, self._tso_rtt_log)
        self._refresh(place)
        self._let_go_of_leftovers(place)

    def _close(self, cookie: int, place: _Place) -> None:
        del self._places[cookie]
        for attachment in list(place.attached.values()):
            self._detach(place, attachment)
        if place.tso_rtt_log_before is not None:
            self._set_tso_rtt_log(place, int(place.tso_rtt_log_before))
        place.watch.close()
        place.namespace.close()

    def _wanted(self, place: _Place) -> dict[int, Device]:
        devices = place.namespace.devices() if place.own and self._names else place.namespace.bottom_devices()
        return {
            device.index: device
            for device in devices
            if not (place.own and self._names) or device.name in self._names or device.index in place.attached
        }

    def _refresh(self, place: _Place) -> None:
        """Makes the attached devices those that are wanted now. A device that fails is a problem, not the end."""
        wanted = self._wanted(place)
        place.incomplete = False
        for index, attachment in list(place.attached.items()):
            if index not in wanted:
                self._detach(place, attachment)
            elif wanted[index] != attachment.device:
                attachment.device = wanted[index]
                attachment.shaper.device = wanted[index]
        for index, device in wanted.items():
            if index in place.attached:
                continue
            pin = self._pin(place, index)
            try:
                self._attach(place, device, pin)
                self.problems.pop(pin.name, None)
            except QosError as error:
                place.incomplete = True
                self._tell(pin, f"device {device.name} is not attached: {error}")

    def _let_go_of_leftovers(self, place: _Place) -> None:
        """What a daemon that was killed had attached to devices which have left since, or are no longer to be watched.

        A device in another namespace would meet the program a second time there, and be charged twice.
        """
        for pin in list(self._links.glob(f"{place.namespace.cookie}-*")):
            index = int(pin.name.rpartition("-")[2])
            if index in place.attached:
                continue
            try:
                left = hook.adopt(place.namespace, index, pin)
                if left is not None:
                    hook.detach(left)
                remove_qdisc(place.namespace, index)
            except DatapathError as error:
                self._tell(pin, f"device {index} is left as an earlier daemon had it: {error}")

    def _attach(self, place: _Place, device: Device, pin: Path) -> None:
        shaper = shaper_for(place.namespace, device)
        attached = hook.attach(place.namespace, device.index, self._program_for(shaper, device), pin, self._hook_kind)
        place.attached[device.index] = _Attachment(device, attached, shaper)
        self._set_flows(place.namespace.cookie, shaper)
        _LOG.info("device %s: %s, %s (%s)", device.name, attached.kind, shaper.kind.value, shaper.why)

    def _keep(self, cookie: int, place: _Place, attachment: _Attachment, now_s: float) -> None:
        if not hook.in_place(attachment.hook):
            device, program = attachment.device, self._program_for(attachment.shaper, attachment.device)
            pin = attachment.hook.pin_path
            attachment.hook = hook.attach(place.namespace, device.index, program, pin, self._hook_kind)
            _LOG.warning("device %s: its program was removed; attached again", device.name)
        if not attachment.shaper.in_place():
            self._reshape(cookie, place, attachment)
        elif attachment.shaper.flows:
            attachment.unused_since_s = None
            attachment.shaper.idle()  # classes of flows that have ended
        elif attachment.unused_since_s is None:
            attachment.unused_since_s = now_s
        elif now_s - attachment.unused_since_s >= HOLD_SECONDS:
            attachment.shaper.idle()

    def _pin(self, place: _Place, index: int) -> Path:
        return self._links / f"{place.namespace.cookie}-{index}"

    def _tell(self, pin: Path, problem: str) -> None:
        """`pin` stands for the device; the chronicle tells it once."""
        self.problems[pin.name] = problem

    def _reshape(self, cookie: int, place: _Place, attachment: _Attachment) -> None:
        shaper = shaper_for(place.namespace, attachment.device)
        self._set_flows(cookie, shaper)
        hook.replace(attachment.hook, self._program_for(shaper, attachment.device))
        attachment.shaper = shaper
        _LOG.warning("device %s: its qdisc was replaced; now %s (%s)", attachment.device.name, shaper.kind, shaper.why)

    def _program_for(self, shaper: DeviceShaper, device: Device) -> int:
        return self.program(f"qos_{shaper.kind.value}", "ethernet" if device.ethernet else "none")

    def _set_flows(self, cookie: int, shaper: DeviceShaper) -> None:
        for minor, (bandwidth, namespaces) in self._shaped.items():
            if not namespaces or cookie in namespaces:
                shaper.set_flow(minor, bandwidth, bucket_depth_bytes(bandwidth))

    def _detach(self, place: _Place, attachment: _Attachment) -> None:
        del place.attached[attachment.device.index]
        self.problems.pop(attachment.hook.pin_path.name, None)
        try:
            hook.detach(attachment.hook)
            attachment.shaper.close()
        except DeviceGone:
            pass  # filters and qdiscs went with it
        except DatapathError as error:
            _LOG.warning("device %s is left attached: %s", attachment.device.name, error)
        _LOG.info("device %s: detached", attachment.device.name)

    def _set_tso_rtt_log(self, place: _Place, value: int) -> None:
        def write() -> str:
            before = _TSO_RTT_LOG.read_text().strip()
            _TSO_RTT_LOG.write_text(str(value))
            return before

        try:
            before = place.namespace.run(write)
        except OSError as error:
            self.problems["tcp_tso_rtt_log"] = f"tcp_tso_rtt_log cannot be set: {error.strerror}"
            return
        if place.tso_rtt_log_before is None:
            place.tso_rtt_log_before = before


def degraded(devices: tuple[DeviceStatus, ...]) -> list[str]:
    """What a person must be told of devices that cannot hold packets back."""
    return [
        f"device {device.name} can only police ({device.why}): packets over a rate are dropped, TCP suffers"
        for device in devices
        if device.shaper is Shaper.POLICE
    ]
