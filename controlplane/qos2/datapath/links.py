"""Network namespaces and the devices in them: what there is, what lies below what, what comes and goes.

Reads only; tc.py changes qdiscs and filters, hook.py attaches programs. A namespace is entered by a
thread that ends right after, so that no failure can leave the daemon's own thread in the wrong one.
pyroute2 decodes the kernel's descriptions of links.
"""

import ctypes
import errno
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self, TypeVar

from qos2.datapath.netlink import Conversation, Message, Request, attributes, messages
from qos2.datapath.rtnl import ifinfmsg
from qos2.errors import DatapathError, DeviceGone, MissingKernelFeature

Result = TypeVar("Result")

# linux/rtnetlink.h, linux/if_link.h, linux/if_arp.h, linux/sockios.h, asm-generic/socket.h
RTM_NEWLINK = 16
RTM_DELLINK = 17
RTM_GETLINK = 18
RTMGRP_LINK = 1
IFLA_IFNAME = 3
IFF_UP = 0x1
ARPHRD_ETHER = 1
ARPHRD_LOOPBACK = 772
CLONE_NEWNET = 0x40000000
SIOCGSKNS = 0x894C
SO_NETNS_COOKIE = 71

_IFINFO = struct.Struct("=BxHiII")

#: IFLA_LINK of these names the other end of a pair, which is beside the device and not below it.
PAIRED_KINDS = frozenset({"veth", "netkit", "vxcan"})
#: What these send leaves by another device, still with its socket: charged there.
STACKED_KINDS = (
    frozenset({"bond", "team", "bridge", "vrf", "ifb"})
    | frozenset({"ipip", "sit", "ip6tnl", "gre", "gretap", "ip6gre", "ip6gretap", "erspan", "ip6erspan"})
    | frozenset({"vxlan", "geneve", "vti", "vti6", "xfrm", "bareudp", "amt"})
)


#: So that a storm of events cannot keep the event loop: what is left makes the descriptor readable again.
DATAGRAMS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Device:
    """A network device. `lower` is the index of the device that it sends through, in the same namespace."""

    name: str
    index: int
    kind: str  #: "veth", "vlan", "bond" ...; "" for hardware and loopback
    mtu: int  #: bytes at IP level
    up: bool  #: set up by the administrator; says nothing of the carrier
    ethernet: bool  #: its packets begin with a 14-byte header (loopback's too)
    loopback: bool
    lower: int | None
    master: int | None  #: index of the bond, bridge ... that it is a port of
    master_kind: str
    tx_queues: int


def bottom(devices: Iterable[Device]) -> list[Device]:
    """The devices with nothing stacked below, loopback left out: each packet leaves by exactly one of them.

    tun and WireGuard are among them: what they send is a new packet, without the application's socket.
    """
    present = list(devices)
    indexes = {device.index for device in present}
    return [
        device
        for device in present
        if not device.loopback and device.kind not in STACKED_KINDS and device.lower not in indexes
    ]


class Change(StrEnum):
    """What happened to a device. RESYNC: events were lost, read the devices again."""

    ADDED = "added"
    REMOVED = "removed"
    CHANGED = "changed"
    RESYNC = "resync"


@dataclass(frozen=True, slots=True)
class LinkEvent:
    """A change of the device `index`; `index` is 0 and `name` empty for RESYNC."""

    change: Change
    index: int
    name: str


class LinkWatch:
    """Link events of one namespace. Register fileno() with the event loop, then call read_events()."""

    def __init__(self, listener: socket.socket, known: Callable[[], dict[int, str]]) -> None:
        self._listener = listener
        self._read_known = known
        self._known = known()

    def fileno(self) -> int:
        return self._listener.fileno()

    def read_events(self) -> list[LinkEvent]:
        """What has happened since the last call, at most one event per device (two if its index was reused).

        Memory is bounded by the number of devices, not of events: a device that came and went, or changed
        a thousand times, in between costs no more than one that changed once. When the kernel's own buffer
        overflowed, there is a RESYNC first, and the changes that were lost are not told one by one.
        """
        lost = False
        latest: dict[int, str | None] = {}
        replaced: set[int] = set()
        for _ in range(DATAGRAMS_AT_ONCE):
            try:
                datagram = self._listener.recv(1 << 16)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise DatapathError(f"reading link events: {error.strerror}") from error
                lost = True
                continue
            for message in messages(memoryview(datagram)):
                self._note(message, latest, replaced)
        if lost:
            self._known = self._read_known()
            return [LinkEvent(Change.RESYNC, 0, "")]
        return self._tell(latest, replaced)

    def close(self) -> None:
        self._listener.close()

    def _note(self, message: Message, latest: dict[int, str | None], replaced: set[int]) -> None:
        if message.kind not in (RTM_NEWLINK, RTM_DELLINK):
            return
        family, _type, index, _flags, _change = _IFINFO.unpack_from(message.body)
        # A bridge speaks of its ports in its own family: a "removed" there is a port that left the bridge.
        if family != socket.AF_UNSPEC:
            latest.setdefault(index, self._known.get(index))
            return
        if message.kind == RTM_DELLINK:
            latest[index] = None
            if index in self._known:
                replaced.add(index)
            return
        for kind, payload in attributes(message.body[_IFINFO.size :]):
            if kind == IFLA_IFNAME:
                latest[index] = bytes(payload).rstrip(b"\0").decode(errors="replace")

    def _tell(self, latest: dict[int, str | None], replaced: set[int]) -> list[LinkEvent]:
        events = []
        for index, name in latest.items():
            before = self._known.get(index)
            if index in replaced and before is not None:
                events.append(LinkEvent(Change.REMOVED, index, before))
                del self._known[index]
                before = None
            if name is not None:
                events.append(LinkEvent(Change.CHANGED if before is not None else Change.ADDED, index, name))
                self._known[index] = name
        return events


class Namespace:
    """One network namespace, kept alive for as long as this object is open: close it when its last flow ends.

    Holds its own descriptor of the namespace and one netlink socket in it. Not for several threads at once.
    """

    def __init__(self, fd: int | None = None) -> None:
        """The namespace of `fd` (any descriptor of a namespace; not kept), or else the current one.

        Raises DatapathError where it cannot be entered.
        """
        self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC) if fd is None else os.dup(fd)
        self._inside = fd is None
        try:
            self._conversation = self.run(Conversation)
        except BaseException:
            os.close(self._fd)
            raise
        try:
            raw = self._conversation.socket.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError:
            raw = bytes(8)  # before Linux 5.14 no namespace has a name: the daemon serves its own
        #: Names this namespace until the next boot; never reused. The same number as a socket's SO_NETNS_COOKIE.
        self.cookie: int = int.from_bytes(raw, "little" if struct.pack("=H", 1)[0] else "big")

    @classmethod
    def of_socket(cls, fd: int) -> Self:
        """The namespace in which the socket `fd` was made. Raises DatapathError where the kernel refuses."""
        try:
            namespace = fcntl.ioctl(fd, SIOCGSKNS)
        except OSError as error:
            raise DatapathError(f"network namespace of a socket: {error.strerror}") from error
        try:
            return cls(namespace)
        finally:
            os.close(namespace)

    @classmethod
    def fresh(cls) -> Self:
        """A new, empty namespace, which ends when it is closed. Raises MissingKernelFeature without the right."""

        def make() -> int:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.unshare(CLONE_NEWNET):
                number = ctypes.get_errno()
                raise MissingKernelFeature(
                    f"a new network namespace: {os.strerror(number)}", "the daemon needs CAP_SYS_ADMIN"
                )
            return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

        fd = _on_a_thread(make)
        try:
            return cls(fd)
        finally:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def fileno(self) -> int:
        """The descriptor of the namespace, as setns(2) and nsenter take it."""
        return self._fd

    @property
    def conversation(self) -> Conversation:
        """The netlink socket in this namespace."""
        return self._conversation

    def run(self, work: Callable[[], Result]) -> Result:
        """Do `work` inside the namespace and return what it returns, or raise what it raises."""
        if self._inside:
            return work()

        def inside() -> Result:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(self._fd, CLONE_NEWNET):
                number = ctypes.get_errno()
                raise DatapathError(
                    f"entering a network namespace: {os.strerror(number)}", "the daemon needs CAP_SYS_ADMIN"
                )
            return work()

        return _on_a_thread(inside)

    def devices(self) -> list[Device]:
        """All devices, by index."""
        request = Request(RTM_GETLINK, 0, _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0), "reading the network devices")
        return [_device(message) for message in self._conversation.dump(request) if message.kind == RTM_NEWLINK]

    def device(self, index: int) -> Device:
        """The device with this index. Raises DeviceGone."""
        for device in self.devices():
            if device.index == index:
                return device
        raise DeviceGone(f"network device {index} does not exist")

    def bottom_devices(self) -> list[Device]:
        """The devices to attach to, up or not: see bottom()."""
        return bottom(self.devices())

    def watch(self) -> LinkWatch:
        """Begin to follow devices that come, go and change; the caller closes it.

        Watch first, then read devices(): so none that comes in between is missed.
        """
        listener = self.run(_link_listener)
        try:
            return LinkWatch(listener, lambda: {device.index: device.name for device in self.devices()})
        except BaseException:
            listener.close()
            raise

    def close(self) -> None:
        """Let go of the namespace. Hooks and qdiscs in it stay."""
        if self._fd >= 0:
            self._conversation.close()
            os.close(self._fd)
            self._fd = -1


def namespaces_of_host() -> Iterator[int]:
    """A descriptor of every network namespace that has a process or a name (ip-netns(8)); closed with the next."""
    seen: set[int] = set()
    for path in (*Path("/proc").glob("[0-9]*/ns/net"), *Path("/run/netns").glob("*")):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # it has ended, or is not ours to look into
        try:
            inode = os.fstat(descriptor).st_ino
            if inode not in seen:
                seen.add(inode)
                yield descriptor
        finally:
            os.close(descriptor)


def _on_a_thread(work: Callable[[], Result]) -> Result:
    """Run `work` on a thread of its own, whose namespace ends with it."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def target() -> None:
        try:
            results.append(work())
        except BaseException as error:  # carried over to the caller's thread, below
            errors.append(error)

    thread = threading.Thread(target=target, name="qos2-netns")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _link_listener() -> socket.socket:
    flags = socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    listener = socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE)
    try:
        listener.bind((0, RTMGRP_LINK))
    except OSError:
        listener.close()
        raise
    return listener


def _device(message: Message) -> Device:
    link = ifinfmsg(bytes(message.whole))
    link.decode()
    info = link.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else None) or ""
    index = int(link["index"])
    lower = link.get_attr("IFLA_LINK")
    elsewhere = link.get_attr("IFLA_LINK_NETNSID") is not None
    if not lower or lower == index or elsewhere or kind in PAIRED_KINDS:
        lower = None
    loopback = link["ifi_type"] == ARPHRD_LOOPBACK
    return Device(
        name=link.get_attr("IFLA_IFNAME"),
        index=index,
        kind=kind,
        mtu=link.get_attr("IFLA_MTU") or 0,
        up=bool(link["flags"] & IFF_UP),
        ethernet=loopback or link["ifi_type"] == ARPHRD_ETHER,
        loopback=loopback,
        lower=lower,
        master=link.get_attr("IFLA_MASTER"),
        master_kind=(info.get_attr("IFLA_INFO_SLAVE_KIND") if info else None) or "",
        tx_queues=link.get_attr("IFLA_NUM_TX_QUEUES") or 1,
    )
