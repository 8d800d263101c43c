"""The domain's types: what a flow is, in the words that C, JSON, Prometheus and the docs use too.

Pure values: nothing here reads a clock, a socket or a file. Numbers of the enumerations are those of
Microsoft's qos2.h. Bandwidth is always bits per second at IP level, headers included; a DSCP is the
6-bit value 0..63 (RFC 2474), never the byte it sits in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import NamedTuple, NewType

FlowId = NewType("FlowId", int)
Dscp = NewType("Dscp", int)
Bandwidth = NewType("Bandwidth", int)

SLOT_BITS = 20
SLOT_MASK = (1 << SLOT_BITS) - 1
GENERATIONS = 1 << (32 - SLOT_BITS)

#: Limits of a rate contract. The special value of qos2.h asks for a small default.
MIN_BANDWIDTH = Bandwidth(8_000)
MAX_BANDWIDTH = Bandwidth(400_000_000_000)
DEFAULT_MINIMUM_BANDWIDTH = Bandwidth(0xFFFFFFFF)


def flow_id(slot: int, generation: int) -> FlowId:
    """The id of a flow in `slot` (1 .. 2**20-1) in its `generation` (taken modulo 2**12)."""
    return FlowId((generation % GENERATIONS) << SLOT_BITS | slot)


def slot_of(flow: FlowId) -> int:
    """The map index of a flow."""
    return flow & SLOT_MASK


class TrafficType(IntEnum):
    """QOS_TRAFFIC_TYPE."""

    BEST_EFFORT = 0
    BACKGROUND = 1
    EXCELLENT_EFFORT = 2
    AUDIO_VIDEO = 3
    VOICE = 4
    CONTROL = 5

    @property
    def label(self) -> str:
        """Its word on command lines, in JSON output and in metrics, as `audio_video`."""
        return self.name.lower()


class Shaping(IntEnum):
    """QOS_SHAPING."""

    SHAPE_ONLY = 0
    SHAPE_AND_MARK = 1
    USE_NON_CONFORMANT_MARKINGS = 2

    @property
    def label(self) -> str:
        return self.name.lower()


class RateReason(IntEnum):
    """QOS_FLOWRATE_REASON: informational only."""

    NOT_APPLICABLE = 0
    CONTENT_CHANGE = 1
    CONGESTION = 2
    HIGHER_CONTENT_ENCODING = 3
    USER_CAUSED = 4


class Condition(IntEnum):
    """QOS_NOTIFY_FLOW: what an application can wait for."""

    CONGESTED = 0
    UNCONGESTED = 1
    AVAILABLE = 2


class FlowState(StrEnum):
    """What is said of a flow's way through the network. RATE_LIMITED: free, and held back by its own contract."""

    UNKNOWN = "unknown"
    UNCONGESTED = "uncongested"
    RATE_LIMITED = "rate_limited"
    CONGESTED = "congested"


class Cause(StrEnum):
    """What a state other than UNCONGESTED rests on. PROBE: what probes of the path saw, not the flow itself."""

    QUEUE_DELAY = "queue_delay"
    LOSS = "loss"
    CE = "ce"
    PROBE = "probe"
    CONTRACT = "contract"  #: of RATE_LIMITED


class Reach(StrEnum):
    """How a host is reached: without a gateway, by one, or not as one host at all (a group, a broadcast address)."""

    ON_LINK = "on_link"
    ROUTED = "routed"
    NO_HOST = "no_host"


class Quality(StrEnum):
    """How good a number about a path is. LOWER_BOUND: it may be more, nothing tested that, or that was long ago."""

    MEASURED = "measured"
    LOWER_BOUND = "lower_bound"


class Method(StrEnum):
    """How a number about a path came about."""

    TCP = "tcp"  #: what TCP flows to the host were seen to do
    REPORT = "report"  #: what the application said
    PROBE = "probe"  #: single probes to a reflector
    TRAIN = "train"  #: trains of probes to a reflector


class Action(IntEnum):
    """What a rate contract does with a packet that comes too early (enum qos_action)."""

    NONE = 0
    DELAY = 1
    REMARK = 2


class Transport(StrEnum):
    """Protocols whose sockets can join a flow."""

    TCP = "tcp"
    UDP = "udp"


class Shaper(StrEnum):
    """How a device holds packets back: departure times, a class per flow, or not at all."""

    FQ = "fq"
    HTB = "htb"
    POLICE = "police"


@dataclass(frozen=True, slots=True)
class FlowRate:
    """QOS_FLOWRATE_OUTGOING: a rate contract."""

    bandwidth: Bandwidth
    shaping: Shaping = Shaping.SHAPE_AND_MARK
    reason: RateReason = RateReason.NOT_APPLICABLE


@dataclass(frozen=True, slots=True)
class PacketPriority:
    """QOS_PACKET_PRIORITY: the markings really in force. L2 values are 802.1p priorities 0..7."""

    conformant_dscp: Dscp
    non_conformant_dscp: Dscp
    conformant_l2: int = 0
    non_conformant_l2: int = 0


@dataclass(frozen=True, slots=True)
class Statement:
    """One number about a path: bits/s or microseconds, how it came about, and seconds since it was last confirmed."""

    value: int
    quality: Quality
    method: Method
    age_s: float


@dataclass(frozen=True, slots=True)
class FlowFundamentals:
    """QOS_FLOW_FUNDAMENTALS: None where not known. Bandwidths in bits/s, rtt in microseconds.

    `statements` says of "bottleneck", "available" and "rtt" how each is known; it also has lower bounds, which the
    three numbers leave out. Available is what nobody uses and no adaptive flow to the host is promised.
    """

    bottleneck: Bandwidth | None = None
    available: Bandwidth | None = None
    rtt_us: int | None = None
    statements: Mapping[str, Statement] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is said of a flow, since when (seconds of the daemon's clock), and the numbers that it rests on."""

    state: FlowState = FlowState.UNKNOWN
    cause: Cause | None = None
    since_s: float = 0.0
    evidence: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device that the datapath is attached to, and what it carried when it was last looked at, once a second.

    None where not known. Rates and bytes are those of the link layer, drops those of the present root qdisc.
    """

    name: str
    index: int
    netns_cookie: int
    hook: str  #: "tcx" or "clsact"
    shaper: Shaper
    why: str  #: why this shaper
    shaped_flows: int = 0
    speed_bps: int | None = None  #: stated by its driver
    load_bps: int | None = None  #: sent between the last two looks
    backlog_bytes: int | None = None  #: waiting in its root qdisc
    backlog_packets: int | None = None
    qdisc_drops: int | None = None  #: packets

    @property
    def wait_us(self) -> float | None:
        """How long what waits in its root qdisc takes to leave, at the present load."""
        if not self.load_bps or self.backlog_bytes is None:
            return None
        return self.backlog_bytes * 8e6 / self.load_bps


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a flow is in its state. `changes`: the last judgements, newest first, the present one among them."""

    source: Method | None  #: where its signals come from; None: it has none
    changes: tuple[Judgement, ...]
    signals: Mapping[str, float]  #: the latest numbers, by the names used as evidence
    device: DeviceStatus | None = None  #: of this host, by which its packets leave

    @property
    def judgement(self) -> Judgement:
        """The present one."""
        return self.changes[0]


@dataclass(frozen=True, slots=True)
class PathReport:
    """What an application says of its own traffic since its last report. None: it does not know.

    Its round trip time in seconds, the share 0..1 that was lost, and the bytes (IP level) that have arrived.
    """

    rtt_s: float | None = None
    loss: float | None = None
    delivered_bytes: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Destination:
    """Where a socket of a flow sends. None and port 0 are wildcards; IPv4-mapped addresses are IPv4."""

    address: IPv4Address | IPv6Address | None = None
    port: int = 0
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # An address is slow to hash, and a destination is looked up several times per request.
        object.__setattr__(self, "_hash", hash((self.address, self.port)))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Destination):
            return NotImplemented
        return self.port == other.port and self.address == other.address

    @classmethod
    def parse(cls, address: str, port: int) -> "Destination":
        """From text; the zero address is a wildcard, an IPv4-mapped address becomes IPv4.

        Raises ValueError for text that is no address and for a port outside 0..65535.
        """
        if not 0 <= port <= 0xFFFF:
            raise ValueError(f"port {port} is not within 0..65535")
        ip = ip_address(address.partition("%")[0])
        if isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        return cls(None if ip.is_unspecified else ip, port)

    @property
    def is_any(self) -> bool:
        return self.address is None and self.port == 0

    def __str__(self) -> str:
        host = "*" if self.address is None else str(self.address)
        if isinstance(self.address, IPv6Address):
            host = f"[{host}]"
        return f"{host}:{self.port or '*'}"


#: The whole socket, wherever it sends.
ANY_DESTINATION = Destination()


@dataclass(frozen=True, slots=True)
class RemoteHost:
    """A host as it is reached from one network namespace: what estimates are gathered and remembered for."""

    address: IPv4Address | IPv6Address
    netns_cookie: int

    def __str__(self) -> str:
        return str(self.address)


class SocketFacts(NamedTuple):
    """What the kernel says of a socket that a client passed."""

    cookie: int
    transport: Transport
    family: int  #: socket.AF_INET or AF_INET6
    v6only: bool
    listening: bool
    peer: Destination | None  #: where it is connected to
    netns_cookie: int  #: of its network namespace
    local: Destination | None = None  #: its own end, once it has a port


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection, as the kernel saw it at connect()."""

    pid: int
    uid: int
    gids: frozenset[int] = frozenset()
    privileged: bool = False  #: root or a member of the group `qos2`
    program: str = ""
    netns_cookie: int = 0  #: of the network namespace in which it made its connection
    # Empty where not known: it has ended, or is outside of our pid namespace.
    unit: str = ""  #: systemd unit, as people call it
    cgroup: str = ""  #: path below the mount of cgroup2
    executable: str = ""  #: absolute path


class FlowPolicy(NamedTuple):
    """What the datapath is told of a flow: struct flow_policy before its arithmetic.

    `dscp` None leaves the DSCP as the application set it. `bandwidth` 0 means no rate. `priority` is that of 802.1p,
    None leaves it alone.
    """

    flow: FlowId
    dscp: Dscp | None
    non_conformant_dscp: Dscp = Dscp(0)
    action: Action = Action.NONE
    bandwidth: Bandwidth = Bandwidth(0)
    netns_cookies: frozenset[int] = frozenset()  #: namespaces in which its sockets send; empty: wherever we are
    priority: int | None = None


@dataclass(frozen=True, slots=True)
class FlowStats:
    """Counters of a flow since it began. Bytes at IP level, packets count GSO segments one by one."""

    packets: int = 0
    bytes: int = 0
    non_conformant_packets: int = 0
    non_conformant_bytes: int = 0
    delayed_packets: int = 0
    delay_ns: int = 0  #: sum over the delayed packets
    dropped_packets: Mapping[str, int] = field(default_factory=dict)  #: by reason
    dropped_bytes: Mapping[str, int] = field(default_factory=dict)
    last_ns: int = 0  #: CLOCK_MONOTONIC of the last packet, to two ticks of the kernel; 0: none yet
    debt_ns: int = 0  #: so long the contract is used up by what was handed over so far
    srtt_us: int = 0  #: TCP, of the socket that sent last; 0: unknown
    min_rtt_us: int = 0
    retransmits: int = 0
    lost: int = 0
    delivered: int = 0
    delivered_ce: int = 0

    @property
    def conformant_packets(self) -> int:
        return self.packets - self.non_conformant_packets

    @property
    def conformant_bytes(self) -> int:
        return self.bytes - self.non_conformant_bytes


@dataclass(frozen=True, slots=True)
class DatapathStatus:
    """What the datapath is made of, for `qos2 status` and the exporter."""

    kernel: str
    devices: tuple[DeviceStatus, ...] = ()
    features: Mapping[str, bool] = field(default_factory=dict)  #: name -> present
    counters: Mapping[str, int] = field(default_factory=dict)  #: enum qos_counter, and failures of the daemon, by name
    events: Mapping[str, int] = field(default_factory=dict)  #: ring buffer events by kind
    map_entries: Mapping[str, tuple[int, int]] = field(default_factory=dict)  #: map -> used, size
    problems: tuple[str, ...] = ()  #: degraded, and why
