"""What the attached devices carry now: speed, load, and what waits in or was dropped by their queues.

Two dumps per network namespace (RTM_GETSTATS and RTM_GETQDISC, rtnetlink(7)), however many devices it has;
a device's speed is asked for by ethtool when it is met, when a link of its namespace has changed, and once
a minute. Bytes are those of the link layer, as the device counts them. Reads only, and decides nothing.
"""

import ctypes
import errno
import fcntl
import logging
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from qos2.datapath.links import Device
from qos2.datapath.netlink import Conversation, Request, attributes
from qos2.datapath.tc import RTM_GETQDISC, TC_H_ROOT, TCA_KIND, TCA_STATS2, TCA_STATS_QUEUE
from qos2.errors import DatapathError

_LOG = logging.getLogger(__name__)

#: Least time between two samples: they are asked for once a second, and timers are a little early at times.
SAMPLE_SECONDS = 0.9
#: A sample takes at most this share of one core: the next one is put off where there are very many queues.
CPU_SHARE = 0.01
#: How soon a speed that changed without an event of its link is noticed.
SPEED_SECONDS = 60.0
#: What these kinds state is a constant of their driver: nothing limits them to it.
FICTIONAL_SPEED_KINDS = frozenset({"veth", "tun"})

#: Names of what can fail, for the datapath's counters.
LOAD_FAILED = "device_load_failed"
SPEED_FAILED = "device_speed_failed"

# linux/rtnetlink.h, linux/if_link.h, linux/sockios.h, linux/ethtool.h
RTM_NEWSTATS, RTM_GETSTATS = 92, 94
IFLA_STATS_LINK_64 = 1
SIOCETHTOOL = 0x8946
ETHTOOL_GSET = 1

_IF_STATS = struct.Struct("=BxxxII")
_TX_BYTES = struct.Struct("=24xQ")  # struct rtnl_link_stats64
_TCMSG = struct.Struct("=BxxxiIII")
_QUEUE = struct.Struct("=III")  # struct gnet_stats_queue: qlen, backlog, drops
_IFREQ = struct.Struct("@16sP16x")
_ETHTOOL_CMD_BYTES = 44
_SPEED_LOW, _SPEED_HIGH = 12, 28  # of struct ethtool_cmd, Mbit/s

#: Without a link: SPEED_UNKNOWN, which older drivers put into the lower half alone, or nothing.
_NO_LINK_MBPS = frozenset({0, 0xFFFF, 0xFFFFFFFF})
#: A device that has gone, or has no ethtool: no speed, and no failure.
_NO_SPEED = frozenset({errno.ENODEV, errno.EOPNOTSUPP})


class Queue(NamedTuple):
    """The root qdisc of a device, the sum of its leaves where it is mq. `drops` begins anew with another qdisc."""

    handle: int
    kind: bytes
    backlog_bytes: int
    backlog_packets: int
    drops: int  #: packets (skbs)


@dataclass(frozen=True, slots=True)
class DeviceLoad:
    """One device at the last sample; None where not known. Rates in bits/s of the link layer."""

    speed_bps: int | None = None
    load_bps: int | None = None  #: sent between the last two samples
    backlog_bytes: int | None = None
    backlog_packets: int | None = None
    qdisc_drops: int | None = None


UNKNOWN = DeviceLoad()


class Reading(NamedTuple):
    """One namespace at one moment, by index: bytes sent, and root qdiscs (a device that is down has none)."""

    at_s: float
    sent_bytes: Mapping[int, int]
    queues: Mapping[int, Queue]


class Sampled(NamedTuple):
    """A namespace to sample: its netlink socket, and the devices that count, by index."""

    conversation: Conversation
    devices: Mapping[int, Device]


@dataclass(slots=True)
class _Track:
    """What was seen of one device so far."""

    name: str
    load: DeviceLoad = UNKNOWN
    at_s: float = 0.0
    sent_bytes: int | None = None
    queue: Queue | None = None
    speed_bps: int | None = None
    speed_due_s: float = float("-inf")


class DeviceLoads:
    """Samples of all attached devices. A namespace or device that fails leaves the others as they are."""

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock = clock
        self._cpu_clock = cpu_clock
        self._due_s = float("-inf")
        self._tracks: dict[tuple[int, int], _Track] = {}
        #: Failures by name since the beginning.
        self.failures = {LOAD_FAILED: 0, SPEED_FAILED: 0}
        #: Bytes sent and packets dropped by devices of a name, while they were attached; these never go back.
        self.sent_bytes: dict[str, int] = {}
        self.dropped_packets: dict[str, int] = {}

    def of(self, cookie: int, index: int) -> DeviceLoad:
        """The device `index` of a namespace at the last sample."""
        track = self._tracks.get((cookie, index))
        return UNKNOWN if track is None else track.load

    def renew_speeds(self, cookie: int) -> None:
        """A link of this namespace has changed: the next sample asks for its speeds."""
        for (namespace, _index), track in self._tracks.items():
            if namespace == cookie:
                track.speed_due_s = float("-inf")

    def sample(self, places: Mapping[int, Sampled]) -> None:
        """Look at these namespaces, by cookie, unless that was done just now. Raises nothing: failures are counted."""
        if self._clock() < self._due_s:
            return
        begun = self._cpu_clock()
        self._forget({(cookie, index) for cookie, place in places.items() for index in place.devices})
        for cookie, place in places.items():
            try:
                reading = Reading(self._clock(), read_sent_bytes(place.conversation), read_queues(place.conversation))
            except (DatapathError, OSError) as error:
                self.failures[LOAD_FAILED] += 1
                _LOG.debug("devices of namespace %d are not sampled: %s", cookie, error)
                reading = Reading(self._clock(), {}, {})
            self.note(cookie, place.devices, reading)
            self._ask_speeds(cookie, place)
        spent = self._cpu_clock() - begun
        self._due_s = self._clock() + max(SAMPLE_SECONDS, spent / CPU_SHARE)

    def note(self, cookie: int, devices: Mapping[int, Device], reading: Reading) -> None:
        """Take up what was read of one namespace. What was not read of a device is unknown until the next time."""
        for index, device in devices.items():
            track = self._tracks.get((cookie, index))
            if track is None or track.name != device.name:
                track = self._tracks[cookie, index] = _Track(device.name)
            load_bps = self._count_sent(track, reading.at_s, reading.sent_bytes.get(index))
            queue = reading.queues.get(index)
            if queue is not None:
                self._count_drops(track, queue)
            track.load = DeviceLoad(
                speed_bps=track.speed_bps,
                load_bps=load_bps,
                backlog_bytes=None if queue is None else queue.backlog_bytes,
                backlog_packets=None if queue is None else queue.backlog_packets,
                qdisc_drops=None if queue is None else queue.drops,
            )

    def _count_sent(self, track: _Track, at_s: float, sent_bytes: int | None) -> int | None:
        """The load since the device was read before, None where that cannot be said."""
        if sent_bytes is None:
            return None
        before, interval_s = track.sent_bytes, at_s - track.at_s
        track.sent_bytes, track.at_s = sent_bytes, at_s
        total = self.sent_bytes.setdefault(track.name, 0)
        if before is None:
            return None
        if sent_bytes < before:  # another device under this index, or its driver was reset
            self.sent_bytes[track.name] = total + sent_bytes
            return None
        self.sent_bytes[track.name] = total + sent_bytes - before
        return round((sent_bytes - before) * 8 / interval_s) if interval_s > 0 else None

    def _count_drops(self, track: _Track, queue: Queue) -> None:
        before, track.queue = track.queue, queue
        total = self.dropped_packets.setdefault(track.name, 0)
        if before is not None:
            same = before[:2] == queue[:2] and before.drops <= queue.drops
            self.dropped_packets[track.name] = total + queue.drops - (before.drops if same else 0)

    def _ask_speeds(self, cookie: int, place: Sampled) -> None:
        now_s = self._clock()
        for index, device in place.devices.items():
            track = self._tracks[cookie, index]
            if now_s < track.speed_due_s or device.kind in FICTIONAL_SPEED_KINDS:
                continue
            track.speed_due_s = now_s + SPEED_SECONDS
            try:
                track.speed_bps = read_speed_bps(place.conversation.socket, device.name)
            except OSError as error:
                self.failures[SPEED_FAILED] += 1
                _LOG.debug("speed of device %s: %s", device.name, error)
                track.speed_bps = None
            track.load = replace(track.load, speed_bps=track.speed_bps)

    def _forget(self, attached: set[tuple[int, int]]) -> None:
        """Devices that are attached no longer."""
        for key in self._tracks.keys() - attached:
            del self._tracks[key]
        names = {track.name for track in self._tracks.values()}
        for totals in (self.sent_bytes, self.dropped_packets):
            for name in totals.keys() - names:
                del totals[name]


def read_sent_bytes(conversation: Conversation) -> dict[int, int]:
    """Bytes that each device of the namespace has sent, by index. Raises DatapathError, OSError."""
    body = _IF_STATS.pack(socket.AF_UNSPEC, 0, 1 << (IFLA_STATS_LINK_64 - 1))
    found = {}
    for message in conversation.dump(Request(RTM_GETSTATS, 0, body, "reading the devices' counters")):
        _family, index, _mask = _IF_STATS.unpack_from(message.body)
        for kind, payload in attributes(message.body[_IF_STATS.size :]):
            if kind == IFLA_STATS_LINK_64:
                (found[index],) = _TX_BYTES.unpack_from(payload)
    return found


def read_queues(conversation: Conversation) -> dict[int, Queue]:
    """The root qdisc of each device of the namespace, by index. Raises DatapathError, OSError."""
    found = {}
    body = _TCMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    for message in conversation.dump(Request(RTM_GETQDISC, 0, body, "reading the qdiscs")):
        _family, index, handle, parent, _info = _TCMSG.unpack_from(message.body)
        if parent != TC_H_ROOT:  # a leaf: of thousands of flows at times
            continue
        fields = dict(attributes(message.body[_TCMSG.size :]))
        stats = dict(attributes(fields[TCA_STATS2])).get(TCA_STATS_QUEUE) if TCA_STATS2 in fields else None
        if stats is not None:
            packets, octets, drops = _QUEUE.unpack_from(stats)
            found[index] = Queue(handle, bytes(fields[TCA_KIND]).rstrip(b"\0"), octets, packets, drops)
    return found


def read_speed_bps(sock: socket.socket, name: str) -> int | None:
    """What the device states by ethtool (linux/ethtool.h) in the namespace of `sock`; None: nothing. Raises OSError."""
    command = ctypes.create_string_buffer(struct.pack("=I", ETHTOOL_GSET), _ETHTOOL_CMD_BYTES)
    try:
        fcntl.ioctl(sock, SIOCETHTOOL, _IFREQ.pack(name.encode(), ctypes.addressof(command)))
    except OSError as error:
        if error.errno in _NO_SPEED:
            return None
        raise
    low, high = (struct.unpack_from("=H", command, at)[0] for at in (_SPEED_LOW, _SPEED_HIGH))
    speed_mbps: int = high << 16 | low
    return None if speed_mbps in _NO_LINK_MBPS else speed_mbps * 1_000_000
