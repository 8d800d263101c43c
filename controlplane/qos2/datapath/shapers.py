"""What a device holds packets back with: fq, htb, or nothing (police).

The choice is pure: choose(). A DeviceShaper then places its qdisc only while some flow needs it, and
puts the kernel's default back afterwards; an administrator's qdisc is never replaced. The programs that
work with a shaper are the loader's, their attachment is hook.py's.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Set
from typing import ClassVar

from qos2.datapath.links import Device, Namespace
from qos2.datapath.netlink import NetlinkRefused
from qos2.datapath.tc import TC_H_ROOT, Qdisc, TrafficControl, fq_options, htb_options
from qos2.errors import DeviceGone, InvalidRequest
from qos2.model import Shaper

#: Major number of our qdiscs: how a later daemon knows them again.
MAJOR = 0x5152
HANDLE = MAJOR << 16
#: Minor numbers that no flow can have: a class's queue has its minor as major number, which must not
#: be our root's nor clsact's.
RESERVED_MINORS = frozenset({0, MAJOR, 0xFFFF})

LINK_HEADER_BYTES = 14
TYPICAL_MTU_BYTES = 1500
#: A class is changed only if its rate is wrong by more than this.
CORRECTION_THRESHOLD = 0.002
#: Nothing is dropped in the host: a sender meets its socket buffer before it meets these.
CLASS_LIMIT_PACKETS = 10_000
DIRECT_LIMIT_PACKETS = 100_000
#: Said explicitly, so that the kernel does not warn of one derived from the rate.
QUANTUM_BYTES = 65_536
#: Rate of a class whose flow has ended but not all of whose packets have left.
DRAIN_BYTES_PER_S = 50_000_000_000

FQ_LIMIT_PACKETS = 1_000_000
FQ_FLOW_LIMIT_PACKETS = 10_000
FQ_HORIZON_US = 10_000_000


def choose(root: Qdisc, available: Set[str]) -> tuple[Shaper, str]:
    """The shaper for a device with this root qdisc on a kernel that has these kinds, and why.

    An fq that is there is used as it is; else fq and htb take the place of a default of the kernel, and only of that.
    """
    if root.handle == HANDLE:
        shaper = Shaper.HTB if root.kind == "htb" else Shaper.FQ
        return shaper, f"{root.kind} of an earlier QoS2 daemon"
    if root.has_fq and not (root.is_replaceable and "fq" in available):
        return Shaper.FQ, "the device has fq; its flow_limit bounds what a UDP sender with a large buffer may queue"
    if not root.is_replaceable:
        leaves = {leaf.kind for leaf in root.leaves}
        there = f"{root.kind} ({', '.join(sorted(leaves))})" if leaves else root.kind
        return Shaper.POLICE, f"qdisc {there} is the administrator's and is left alone"
    if "fq" in available:
        return Shaper.FQ, f"fq in place of the default {root.kind}"
    if "htb" in available:
        return Shaper.HTB, f"the kernel has no fq: htb in place of the default {root.kind}"
    return Shaper.POLICE, "the kernel has neither fq nor htb"


@functools.cache
def available_kinds() -> frozenset[str]:
    """Which of fq and htb this kernel has, asked of the loopback device, which is left as it is.

    Raises DatapathError where the kernel refuses to say.
    """
    with Namespace() as namespace:
        (loopback,) = (device for device in namespace.devices() if device.loopback)
        tc = TrafficControl(namespace.conversation, loopback.index)
        return frozenset(kind for kind in ("fq", "htb") if tc.knows_qdisc(kind, HANDLE))


class DeviceShaper(ABC):
    """Holds the delayed flows of one device. A flow is named by its minor number, unique on the device.

    A device that has gone is no error, its qdiscs went with it; in_place() is false then. Methods raise
    NetlinkRefused where the kernel refuses.
    """

    kind: ClassVar[Shaper]

    def __init__(self, device: Device, tc: TrafficControl, why: str) -> None:
        self.device = device
        self.why = why
        self._tc = tc

    @property
    @abstractmethod
    def flows(self) -> int:
        """How many flows are held here."""

    @abstractmethod
    def set_flow(self, minor: int, bandwidth_bits_per_s: int, depth_bytes: int) -> None:
        """Hold a flow to this rate and depth (both at IP level) from now on; places the qdisc if need be.

        A change keeps what is queued and the bucket's level. Raises InvalidRequest for a reserved minor.
        """

    @abstractmethod
    def remove_flow(self, minor: int) -> None:
        """Hold the flow back no longer. What is queued leaves at the device's speed."""

    @abstractmethod
    def correct(self, minor: int, ip_bytes: int, packets: int) -> None:
        """Tell what the flow has sent since the last call, for shapers that count link headers too."""

    @abstractmethod
    def flow_drops(self) -> dict[int, int]:
        """Packets (skbs) that the qdisc has dropped, by the flow's minor; empty where it does not count them so."""

    @abstractmethod
    def in_place(self) -> bool:
        """False if the device has another qdisc now than this shaper works with: see shaper_for()."""

    @abstractmethod
    def idle(self) -> None:
        """To be called about once a second: puts the default qdisc back when no flow needs ours.

        Flows that a restarted daemon takes over must be set before the first call.
        """

    @abstractmethod
    def close(self) -> None:
        """Put the default qdisc back now. What is queued is lost."""


class _Uniform(DeviceShaper):
    """What shapers have in common to which flows are only so many: the program knows their rates."""

    def __init__(self, device: Device, tc: TrafficControl, why: str) -> None:
        super().__init__(device, tc, why)
        self._minors: set[int] = set()

    @property
    def flows(self) -> int:
        return len(self._minors)

    def set_flow(self, minor: int, bandwidth_bits_per_s: int, depth_bytes: int) -> None:
        _check(minor)
        self._minors.add(minor)

    def remove_flow(self, minor: int) -> None:
        self._minors.discard(minor)

    def correct(self, minor: int, ip_bytes: int, packets: int) -> None:
        """The program counts at IP level already."""

    def flow_drops(self) -> dict[int, int]:
        return {}


class Police(_Uniform):
    """Nothing to hold packets back with: the program drops what comes too early."""

    kind = Shaper.POLICE

    def in_place(self) -> bool:
        """False also if there is something to hold them back with now: an administrator took his qdisc away."""
        return choose(self._tc.root_qdisc(), available_kinds())[0] is Shaper.POLICE

    def idle(self) -> None:
        """Nothing was placed."""

    def close(self) -> None:
        """Nothing was placed."""


class Fq(_Uniform):
    """fq keeps each packet until its departure time, which the program sets."""

    kind = Shaper.FQ

    def __init__(self, device: Device, tc: TrafficControl, why: str) -> None:
        super().__init__(device, tc, why)
        root = tc.root_qdisc()
        self._installed = root.handle == HANDLE
        self._complete = self._installed and root.has_fq

    def set_flow(self, minor: int, bandwidth_bits_per_s: int, depth_bytes: int) -> None:
        super().set_flow(minor, bandwidth_bits_per_s, depth_bytes)
        if not self._complete:
            try:
                self._install()
            except DeviceGone:
                return

    def in_place(self) -> bool:
        root = self._tc.root_qdisc()
        if self._installed and root.handle != HANDLE:
            return False
        # A transmit queue that came later (ethtool -L) has the kernel's default, which keeps nothing or little back.
        bare = self._installed and any(leaf.is_default for leaf in root.leaves)
        return not self._minors or (root.has_fq and not bare)

    def idle(self) -> None:
        if self._minors or not self._installed:
            return
        root = self._tc.root_qdisc()
        if not root.queued_packets and not any(leaf.queued_packets for leaf in root.leaves):
            self.close()

    def close(self) -> None:
        self._minors.clear()
        if self._installed:
            _put_default_back(self._tc)
            self._installed = self._complete = False

    def _install(self) -> None:
        root = self._tc.root_qdisc()
        options = fq_options(
            limit_packets=FQ_LIMIT_PACKETS, flow_limit_packets=FQ_FLOW_LIMIT_PACKETS, horizon_us=FQ_HORIZON_US
        )
        if root.handle != HANDLE:
            if not root.is_replaceable:
                return
            if root.kind == "mq":
                # Queues of a default mq cannot be addressed (its handle is 0): place one that has a handle.
                self._tc.replace_qdisc("mq", parent=TC_H_ROOT, handle=HANDLE)
            else:
                self._tc.replace_qdisc("fq", parent=TC_H_ROOT, handle=HANDLE, options=options)
            self._installed = True
            root = self._tc.root_qdisc()
        for leaf in root.leaves:
            if leaf.kind != "fq" or leaf.is_default:
                self._tc.replace_qdisc("fq", parent=leaf.parent, options=options)
        self._complete = True


class _HtbFlow:
    """A flow's contract, and the rate that its class has."""

    __slots__ = ("bandwidth_bits_per_s", "burst_ns", "bytes_per_s")

    def __init__(self, bandwidth_bits_per_s: int, burst_ns: int, bytes_per_s: int) -> None:
        self.bandwidth_bits_per_s = bandwidth_bits_per_s
        self.burst_ns = burst_ns
        self.bytes_per_s = bytes_per_s


class Htb(DeviceShaper):
    """One HTB class per flow, which the program chooses by skb->priority; other packets go out unshaped.

    A contract counts bytes at IP level, HTB counts the link header of every segment too: the class's
    rate is the contract's times the flow's own share of headers, which correct() follows.
    """

    kind = Shaper.HTB

    def __init__(self, device: Device, tc: TrafficControl, why: str) -> None:
        super().__init__(device, tc, why)
        self._flows: dict[int, _HtbFlow] = {}
        self._header_bytes = LINK_HEADER_BYTES if device.ethernet else 0
        self._installed = tc.root_qdisc().handle == HANDLE
        # Classes in the kernel. Those that no flow has (any more) are removed when they are empty.
        self._classes = set(tc.class_counters()) if self._installed else set()

    @property
    def flows(self) -> int:
        return len(self._flows)

    def set_flow(self, minor: int, bandwidth_bits_per_s: int, depth_bytes: int) -> None:
        _check(minor)
        known = self._flows.get(minor)
        packet = min(self.device.mtu, TYPICAL_MTU_BYTES)
        if known is None:
            factor = (packet + self._header_bytes) / packet
        else:
            # A flow whose rate changes keeps sending the packets it sent before.
            factor = known.bytes_per_s * 8 / known.bandwidth_bits_per_s
        flow = _HtbFlow(
            bandwidth_bits_per_s,
            # HTB lets one more packet go while any token is left.
            burst_ns=-(-(depth_bytes - packet) * 8_000_000_000 // bandwidth_bits_per_s),
            bytes_per_s=_bytes_per_s(bandwidth_bits_per_s, factor),
        )
        self._flows[minor] = flow
        self._place(minor, flow)

    def remove_flow(self, minor: int) -> None:
        flow = self._flows.pop(minor, None)
        if flow is not None and minor in self._classes:
            flow.bytes_per_s = DRAIN_BYTES_PER_S
            self._place(minor, flow)

    def correct(self, minor: int, ip_bytes: int, packets: int) -> None:
        flow = self._flows.get(minor)
        if flow is None or minor not in self._classes or ip_bytes == 0:
            return
        rate = _bytes_per_s(flow.bandwidth_bits_per_s, (ip_bytes + self._header_bytes * packets) / ip_bytes)
        if abs(rate - flow.bytes_per_s) > CORRECTION_THRESHOLD * flow.bytes_per_s:
            flow.bytes_per_s = rate
            self._place(minor, flow)

    def flow_drops(self) -> dict[int, int]:
        if not self._installed:
            return {}
        counters = self._tc.class_counters()
        return {minor: counters[minor].drops for minor in self._flows if minor in counters}

    def in_place(self) -> bool:
        if not self._installed:
            return not self._flows
        return self._tc.root_qdisc().handle == HANDLE

    def idle(self) -> None:
        ended = self._classes - self._flows.keys()
        if not self._installed or (self._flows and not ended):
            return
        root = self._tc.root_qdisc()
        if root.handle != HANDLE:
            self._forget()
            return
        counters = self._tc.class_counters()
        for minor in ended:
            if minor in counters and counters[minor].backlog_packets == 0:
                self._tc.delete_class(HANDLE | minor)
                self._classes.discard(minor)
        # What comes into the queue between the look and the removal is lost, as at any change of a qdisc.
        if not self._classes and root.queued_packets == 0:
            self.close()

    def close(self) -> None:
        self._flows.clear()
        self._forget()
        _put_default_back(self._tc)

    def _place(self, minor: int, flow: _HtbFlow) -> None:
        try:
            if not self._installed:
                if not self._tc.root_qdisc().is_replaceable:
                    return
                options = htb_options(direct_limit_packets=DIRECT_LIMIT_PACKETS)
                self._tc.replace_qdisc("htb", parent=TC_H_ROOT, handle=HANDLE, options=options)
                self._installed = True
            self._tc.set_htb_class(
                HANDLE | minor,
                bytes_per_s=flow.bytes_per_s,
                burst_ns=flow.burst_ns,
                quantum_bytes=QUANTUM_BYTES,
                leaf_limit_packets=None if minor in self._classes else CLASS_LIMIT_PACKETS,
            )
            self._classes.add(minor)
        except DeviceGone:
            self._forget()
        except NetlinkRefused:
            if self._tc.root_qdisc().handle == HANDLE:
                raise
            self._forget()

    def _forget(self) -> None:
        """Our qdisc is no longer there: in_place() tells the daemon if a flow needed it."""
        self._installed = False
        self._classes.clear()


SHAPERS: dict[Shaper, type[DeviceShaper]] = {Shaper.FQ: Fq, Shaper.HTB: Htb, Shaper.POLICE: Police}


def shaper_for(namespace: Namespace, device: Device, available: Set[str] | None = None) -> DeviceShaper:
    """The shaper that suits the device as it is now; nothing is placed yet.

    `available` limits the kinds (default: those the kernel has). Raises DatapathError.
    """
    tc = TrafficControl(namespace.conversation, device.index)
    kind, why = choose(tc.root_qdisc(), available_kinds() if available is None else available)
    return SHAPERS[kind](device, tc, why)


def _check(minor: int) -> None:
    if not 0 < minor < 0xFFFF or minor in RESERVED_MINORS:
        raise InvalidRequest(f"{minor:#x} is no minor number for a flow")


def _bytes_per_s(bandwidth_bits_per_s: int, factor: float) -> int:
    return max(round(bandwidth_bits_per_s * factor / 8), 1)


def remove_qdisc(namespace: Namespace, index: int) -> None:
    """Put the default back where an earlier daemon left its qdisc. Fine where the device has gone."""
    _put_default_back(TrafficControl(namespace.conversation, index))


def _put_default_back(tc: TrafficControl) -> None:
    try:
        if tc.root_qdisc().handle == HANDLE:
            tc.delete_qdisc(parent=TC_H_ROOT, handle=HANDLE)
    except DeviceGone:
        return
