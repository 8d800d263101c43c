"""Traffic control of one device: its qdiscs, HTB classes with their counters, and BPF filters.

Says what is there and does what it is told; what to place where is decided in shapers.py and hook.py.
Requests are packed here, exactly as linux/pkt_sched.h lays them out: pyroute2 knows no fq, and cuts
HTB's burst through floating point. pyroute2 reads the kernel's answers, except the class counters,
which are read in bulk.
"""

import errno
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from qos2.datapath.netlink import (
    NLA_F_NESTED,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Conversation,
    Message,
    NetlinkRefused,
    Request,
    attribute,
    attributes,
)
from qos2.datapath.rtnl import tcmsg

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h, linux/gen_stats.h
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC = 36, 37, 38
RTM_NEWTCLASS, RTM_DELTCLASS, RTM_GETTCLASS = 40, 41, 42
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
TC_H_ROOT = 0xFFFFFFFF
TC_H_CLSACT = 0xFFFFFFF1
CLSACT_HANDLE = 0xFFFF0000
CLSACT_INGRESS = 0xFFFFFFF2
CLSACT_EGRESS = 0xFFFFFFF3
TCA_KIND, TCA_OPTIONS, TCA_STATS2, TCA_INGRESS_BLOCK = 1, 2, 7, 13
TCA_STATS_BASIC, TCA_STATS_QUEUE = 1, 3
TCA_HTB_PARMS, TCA_HTB_INIT, TCA_HTB_DIRECT_QLEN, TCA_HTB_RATE64, TCA_HTB_CEIL64 = 1, 2, 5, 6, 7
TCA_FQ_PLIMIT, TCA_FQ_FLOW_PLIMIT, TCA_FQ_HORIZON = 1, 2, 14
TCA_BPF_FD, TCA_BPF_NAME, TCA_BPF_FLAGS = 6, 7, 8
TCA_BPF_FLAG_ACT_DIRECT = 1
TC_LINKLAYER_ETHERNET = 1
ETH_P_ALL = 0x0003

#: The kernel counts HTB's bursts in units of this since 2.6.31 (PSCHED_SHIFT).
TICK_NS = 64

#: Roots that a kernel or its distribution has as default. Another net.core.default_qdisc is an administrator's choice.
DEFAULT_KINDS = frozenset({"noop", "noqueue", "pfifo_fast", "fq_codel", "fq", "mq"})

_TCMSG = struct.Struct("=BxxxiIII")
_RATESPEC = struct.Struct("=BBHhHI")
_HTB_LIMITS = struct.Struct("=IIIII")
_HTB_GLOBAL = struct.Struct("=IIIII")
_U32 = struct.Struct("=I")
_U64 = struct.Struct("=Q")
_STATS_BASIC = struct.Struct("=QI")
_STATS_QUEUE = struct.Struct("=IIIII")


@dataclass(frozen=True, slots=True)
class Qdisc:
    """A queueing discipline. Handles are major << 16 | minor, as in the kernel."""

    kind: str
    handle: int
    parent: int
    is_default: bool  #: the kernel placed it by itself
    leaves: tuple["Qdisc", ...] = ()  #: of an mq root: one per transmit queue
    queued_packets: int = 0
    direct_packets: int = 0  #: of htb: packets that belonged to no class

    @property
    def has_fq(self) -> bool:
        """Whether every packet through this root meets an fq."""
        return self.kind == "fq" or (bool(self.leaves) and all(leaf.kind == "fq" for leaf in self.leaves))

    @property
    def is_replaceable(self) -> bool:
        """Whether this root and its leaves are what a kernel places where nobody has chosen."""
        return all(qdisc.is_default and qdisc.kind in DEFAULT_KINDS for qdisc in (self, *self.leaves))


class ClassCounters(NamedTuple):
    """Counters of an HTB class. Bytes with the link header of every segment, drops and overlimits in skbs."""

    bytes: int
    packets: int
    drops: int
    overlimits: int
    backlog_bytes: int
    backlog_packets: int


class Filter(NamedTuple):
    """A classifier: `name` is that of a BPF filter, else empty. Handle 0 is the head of its priority."""

    kind: str
    priority: int
    handle: int
    name: str


class TrafficControl:
    """The qdiscs, classes and filters of the device `index`. Methods raise DeviceGone or NetlinkRefused."""

    def __init__(self, conversation: Conversation, index: int) -> None:
        self._conversation = conversation
        self.index = index

    def root_qdisc(self) -> Qdisc:
        """The root with its leaves if it is mq; kind "noop" while the device is down and has none."""
        # Of an htb the leaves are as many as its flows: only those of an mq are decoded.
        found = [(_TCMSG.unpack_from(message.body)[3], message) for message in self._dumped(self._qdiscs_request())]
        for parent, message in found:
            if parent == TC_H_ROOT:
                root = _qdisc(message)
                if root.kind != "mq":
                    return root
                below = (each for parent, each in found if parent != TC_H_ROOT and parent & 0xFFFF0000 == root.handle)
                return _with_leaves(root, tuple(map(_qdisc, below)))
        return Qdisc("noop", 0, TC_H_ROOT, is_default=True)

    def qdiscs(self) -> list[Qdisc]:
        """All of the device's qdiscs, clsact too."""
        return [_qdisc(message) for message in self._dumped(self._qdiscs_request())]

    def replace_qdisc(self, kind: str, *, parent: int, handle: int = 0, options: bytes = b"") -> None:
        """Place a qdisc at `parent` instead of what is there. What is queued in the old one is lost."""
        self._conversation.ask(self._qdisc_request(kind, NLM_F_CREATE | NLM_F_REPLACE, parent, handle, options))

    def knows_qdisc(self, kind: str, handle: int) -> bool:
        """Whether the kernel has this kind, which loads its module. For kinds without filter blocks: nothing is placed.

        One with a block is asked for: the kernel looks for the kind first, and then refuses that. `handle` is unused.
        """
        attrs = attribute(TCA_KIND, kind.encode() + b"\0") + attribute(TCA_INGRESS_BLOCK, _U32.pack(1))
        flags = NLM_F_CREATE | NLM_F_REPLACE
        request = self._request(RTM_NEWQDISC, f"looking for qdisc {kind}", handle, TC_H_ROOT, flags=flags, attrs=attrs)
        try:
            self._conversation.ask(request)
        except NetlinkRefused as error:
            if error.number == errno.ENOENT:
                return False
            if error.number != errno.EOPNOTSUPP:
                raise
        return True

    def add_clsact(self) -> None:
        """Add the qdisc that carries filters. Raises NetlinkRefused with EEXIST where one is there."""
        flags = NLM_F_CREATE | NLM_F_EXCL
        self._conversation.ask(self._qdisc_request("clsact", flags, TC_H_CLSACT, CLSACT_HANDLE, b""))

    def delete_qdisc(self, *, parent: int, handle: int = 0) -> None:
        """Remove a qdisc; in the place of a root the kernel puts its default."""
        self._conversation.ask(self._request(RTM_DELQDISC, "removing a qdisc", handle, parent))

    def set_htb_class(
        self, classid: int, *, bytes_per_s: int, burst_ns: int, quantum_bytes: int, leaf_limit_packets: int | None
    ) -> None:
        """Add the class or change it: rate = ceil, burst = cburst as time at that rate.

        A change keeps the queue and the bucket's level. `leaf_limit_packets` gives a new class its queue, of
        handle minor:0, a pfifo; None leaves the queue as it is.
        """
        requests = [
            self._request(
                RTM_NEWTCLASS,
                f"setting HTB class {classid >> 16:x}:{classid & 0xFFFF:x}",
                classid,
                classid & 0xFFFF0000,
                flags=NLM_F_CREATE,
                attrs=attribute(TCA_KIND, b"htb\0")
                + attribute(TCA_OPTIONS | NLA_F_NESTED, htb_class_options(bytes_per_s, burst_ns, quantum_bytes)),
            )
        ]
        if leaf_limit_packets is not None:
            # An explicit handle: the kernel finds a free one by search, and only among 32767.
            handle = (classid & 0xFFFF) << 16
            flags = NLM_F_CREATE | NLM_F_REPLACE
            limit = _U32.pack(leaf_limit_packets)
            requests.append(self._qdisc_request("pfifo", flags, classid, handle, limit, nested=False))
        self._conversation.ask(*requests)

    def delete_class(self, classid: int) -> None:
        """Remove an HTB class; what is queued in it is lost."""
        doing = f"removing HTB class {classid >> 16:x}:{classid & 0xFFFF:x}"
        self._conversation.ask(self._request(RTM_DELTCLASS, doing, classid, 0))

    def class_counters(self) -> dict[int, ClassCounters]:
        """Counters of every HTB class by its minor number, from one dump."""
        request = self._request(RTM_GETTCLASS, "reading the class counters", 0, 0)
        found = {}
        for message in self._dumped(request):
            _family, _index, handle, _parent, _info = _TCMSG.unpack_from(message.body)
            fields = dict(attributes(message.body[_TCMSG.size :]))
            if bytes(fields[TCA_KIND]) == b"htb\0":
                found[handle & 0xFFFF] = _counters(fields[TCA_STATS2])
        return found

    def filters(self, parent: int) -> list[Filter]:
        """The filters at CLSACT_INGRESS or CLSACT_EGRESS."""
        request = self._request(RTM_GETTFILTER, "reading the filters", 0, parent)
        return [_filter(message) for message in self._dumped(request)]

    def filter(self, *, parent: int, priority: int, handle: int) -> Filter | None:
        """The filter for packets of every protocol with this priority and handle, None where there is none."""
        info = priority << 16 | _big_endian16(ETH_P_ALL)
        request = self._request(RTM_GETTFILTER, "reading a filter", handle, parent, info=info)
        try:
            return _filter(self._conversation.get(request))
        except NetlinkRefused as error:
            # No such handle or priority; no such qdisc (or one of another protocol).
            if error.number in (errno.ENOENT, errno.EINVAL):
                return None
            raise

    def set_bpf_filter(
        self, program_fd: int, *, parent: int, priority: int, handle: int, name: str, replace: bool
    ) -> None:
        """Add a direct-action BPF filter, or put a program into the place of an existing one, atomically.

        Without `replace` raises NetlinkRefused with EEXIST where priority and handle are taken.
        """
        options = (
            attribute(TCA_BPF_FD, _U32.pack(program_fd))
            + attribute(TCA_BPF_NAME, name.encode() + b"\0")
            + attribute(TCA_BPF_FLAGS, _U32.pack(TCA_BPF_FLAG_ACT_DIRECT))
        )
        self._conversation.ask(
            self._request(
                RTM_NEWTFILTER,
                "setting the egress filter",
                handle,
                parent,
                flags=NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL),
                info=priority << 16 | _big_endian16(ETH_P_ALL),
                attrs=attribute(TCA_KIND, b"bpf\0") + attribute(TCA_OPTIONS | NLA_F_NESTED, options),
            )
        )

    def delete_filter(self, *, parent: int, priority: int, handle: int) -> None:
        """Remove one BPF filter."""
        self._conversation.ask(
            self._request(
                RTM_DELTFILTER,
                "removing the egress filter",
                handle,
                parent,
                info=priority << 16 | _big_endian16(ETH_P_ALL),
                attrs=attribute(TCA_KIND, b"bpf\0"),
            )
        )

    def _qdiscs_request(self) -> Request:
        return self._request(RTM_GETQDISC, "reading the qdiscs", 0, 0)

    def _qdisc_request(
        self, kind: str, flags: int, parent: int, handle: int, options: bytes, *, nested: bool = True
    ) -> Request:
        attrs = attribute(TCA_KIND, kind.encode() + b"\0")
        if options:
            attrs += attribute(TCA_OPTIONS | (NLA_F_NESTED if nested else 0), options)
        return self._request(RTM_NEWQDISC, f"placing qdisc {kind}", handle, parent, flags=flags, attrs=attrs)

    def _request(
        self, kind: int, doing: str, handle: int, parent: int, *, flags: int = 0, info: int = 0, attrs: bytes = b""
    ) -> Request:
        body = _TCMSG.pack(0, self.index, handle, parent, info) + attrs
        return Request(kind, flags, body, f"{doing} of device {self.index}")

    def _dumped(self, request: Request) -> Iterable[Message]:
        """The kernel dumps the qdiscs of every device: take this one's."""
        for message in self._conversation.dump(request):
            if _TCMSG.unpack_from(message.body)[1] == self.index:
                yield message


def htb_options(*, direct_limit_packets: int) -> bytes:
    """Options of an HTB root whose unclassified packets go out at once, unshaped (default class 0)."""
    version, rate_to_quantum, default_class = 3, 10, 0
    return attribute(TCA_HTB_INIT, _HTB_GLOBAL.pack(version, rate_to_quantum, default_class, 0, 0)) + attribute(
        TCA_HTB_DIRECT_QLEN, _U32.pack(direct_limit_packets)
    )


def htb_class_options(bytes_per_s: int, burst_ns: int, quantum_bytes: int) -> bytes:
    """Options of an HTB class with rate = ceil; rates from 2**32 bytes/s on take the 64-bit attributes."""
    spec = _RATESPEC.pack(0, TC_LINKLAYER_ETHERNET, 0, 0, 0, min(bytes_per_s, 0xFFFFFFFF))
    burst = min(-(-burst_ns // TICK_NS), 0xFFFFFFFF)
    options = attribute(TCA_HTB_PARMS, spec + spec + _HTB_LIMITS.pack(burst, burst, quantum_bytes, 0, 0))
    if bytes_per_s > 0xFFFFFFFF:
        options += attribute(TCA_HTB_RATE64, _U64.pack(bytes_per_s))
        options += attribute(TCA_HTB_CEIL64, _U64.pack(bytes_per_s))
    return options


def fq_options(*, limit_packets: int, flow_limit_packets: int, horizon_us: int) -> bytes:
    """Options of fq; packets beyond the horizon are dropped, as is its default."""
    return (
        attribute(TCA_FQ_PLIMIT, _U32.pack(limit_packets))
        + attribute(TCA_FQ_FLOW_PLIMIT, _U32.pack(flow_limit_packets))
        + attribute(TCA_FQ_HORIZON, _U32.pack(horizon_us))
    )


def _big_endian16(value: int) -> int:
    return int.from_bytes(struct.pack("=H", value), "big")


def _with_leaves(root: Qdisc, leaves: tuple[Qdisc, ...]) -> Qdisc:
    return Qdisc(root.kind, root.handle, root.parent, root.is_default, leaves, root.queued_packets)


def _decoded(message: Message) -> tcmsg:
    decoded = tcmsg(bytes(message.whole))
    decoded.decode()
    return decoded


def _qdisc(message: Message) -> Qdisc:
    decoded = _decoded(message)
    stats = decoded.get_attr("TCA_STATS2")
    queue = stats.get_attr("TCA_STATS_QUEUE") if stats else None
    kind = decoded.get_attr("TCA_KIND")
    direct = 0
    if kind == "htb":
        direct = decoded.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_INIT")["direct_pkts"]
    return Qdisc(
        kind=kind,
        handle=decoded["handle"],
        parent=decoded["parent"],
        # Whatever an administrator places gets a handle, chosen by him or from 8001: on.
        is_default=decoded["handle"] == 0,
        queued_packets=queue["qlen"] if queue else 0,
        direct_packets=direct,
    )


def _filter(message: Message) -> Filter:
    decoded = _decoded(message)
    options = decoded.get_attr("TCA_OPTIONS")
    kind = decoded.get_attr("TCA_KIND")
    name = options.get_attr("TCA_BPF_NAME") if kind == "bpf" and options else None
    return Filter(kind=kind, priority=decoded["info"] >> 16, handle=decoded["handle"], name=name or "")


def _counters(stats: memoryview) -> ClassCounters:
    nested = dict(attributes(stats))
    octets, packets = _STATS_BASIC.unpack_from(nested[TCA_STATS_BASIC])
    queued, backlog, drops, _requeues, overlimits = _STATS_QUEUE.unpack_from(nested[TCA_STATS_QUEUE])
    return ClassCounters(octets, packets, drops, overlimits, backlog, queued)
