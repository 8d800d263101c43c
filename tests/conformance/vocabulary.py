"""The words of the table that are no calls: addresses, sockets, states of the world, and what a call gives.

Everything is a frozen value. Handles, sockets, flows and overlapped operations are named by text ("h", "s",
"f", "o"), so that a row says which one is meant without having one; a driver knows what is behind a name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto


class Pointer(Enum):
    """A pointer argument that points nowhere."""

    NULL = auto()


NULL = Pointer.NULL


class Named(Enum):
    """Handles that no row made."""

    INVENTED = auto()  #: a number that is no handle


INVENTED = Named.INVENTED

#: Ids that no daemon has given: flow ids are slot and generation, and no table has a slot as high as this.
UNKNOWN_FLOW = 0xFFFF_FFFF


@dataclass(frozen=True, slots=True)
class Address:
    """A DestAddr. `host` is a role that each driver gives an address to; `port` 0 is the wildcard, else an index.

    `mapped`: an IPv4 host written as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2).
    """

    host: str
    port: int = 1
    mapped: bool = False

    def __str__(self) -> str:
        return f"{'mapped ' if self.mapped else ''}{self.host}:{self.port or '*'}"


PEER = Address("peer")
PEER_OTHER_PORT = Address("peer", 2)
PEER_ALL_PORTS = Address("peer", 0)
SECOND = Address("second")
PEER6 = Address("peer6")
SECOND6 = Address("second6")
PEER6_ALL_PORTS = Address("peer6", 0)
MAPPED = Address("peer", mapped=True)
ANY = Address("any", 0)
ANY6 = Address("any6", 0)
MALFORMED = Address("malformed")  #: of a family that is neither AF_INET nor AF_INET6, or no address at all
MULTICAST = Address("multicast")


class Kind(Enum):
    """Kinds of sockets."""

    UDP = auto()
    UDP6 = auto()  #: IPv6 and, as Linux makes them, IPv4 too
    UDP6_ONLY = auto()  #: with IPV6_V6ONLY
    TCP = auto()
    TCP6 = auto()


# States of the world, each one a step of a row's `given`


@dataclass(frozen=True, slots=True)
class Privileged:
    """Handles made from here on are those of root (without it: of an ordinary user)."""


@dataclass(frozen=True, slots=True)
class Socket:
    """A new socket, connected if told (TCP: to somebody who listens there)."""

    name: str = "s"
    kind: Kind = Kind.UDP
    to: Address | None = None


@dataclass(frozen=True, slots=True)
class Listening:
    """A new TCP socket that listens."""

    name: str = "s"


@dataclass(frozen=True, slots=True)
class Connect:
    """connect() of a UDP socket."""

    socket: str
    to: Address


@dataclass(frozen=True, slots=True)
class Disconnect:
    """connect() of a UDP socket to no address (AF_UNSPEC), which takes its peer away."""

    socket: str


@dataclass(frozen=True, slots=True)
class CloseSocket:
    """closesocket() without QOSRemoveSocketFromFlow."""

    socket: str


@dataclass(frozen=True, slots=True)
class NoSocket:
    """A name for a descriptor that is open and no socket (`file`), or not open at all."""

    name: str = "s"
    file: bool = False


@dataclass(frozen=True, slots=True)
class Neighbour:
    """Another process, of the same user as the row or of root, with a voice flow of its own."""

    flow: str
    root: bool = False


@dataclass(frozen=True, slots=True)
class DaemonGone:
    """The daemon has ended."""


@dataclass(frozen=True, slots=True)
class DaemonBack:
    """A new daemon has begun where the old one was."""


class Steered:
    """Base of the states that only a daemon over fakes can be brought into."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Refuses(Steered):
    """The kernel refuses the next operation of this name of the port Datapath."""

    operation: str


class Way(Enum):
    """What the routing table says of a host."""

    ON_LINK = auto()
    OFF_LINK = auto()
    NO_ROUTE = auto()


@dataclass(frozen=True, slots=True)
class Reach(Steered):
    """How the daemon reaches a host; without this word every host is off-link."""

    host: Address
    way: Way


@dataclass(frozen=True, slots=True)
class Estimate(Steered):
    """What the daemon knows of the way to a host by now: bits/s, bits/s, microseconds; None: not known."""

    host: Address
    bottleneck: int | None = None
    available: int | None = None
    rtt_us: int | None = None


@dataclass(frozen=True, slots=True)
class Measured(Steered):
    """A new measurement of the way to a host has ended, with what `Estimate` says."""

    host: Address


@dataclass(frozen=True, slots=True)
class CannotMeasure(Steered):
    """A new measurement of the way to a host cannot be made now."""

    host: Address


@dataclass(frozen=True, slots=True)
class Admission(Steered):
    """How every wish for a higher rate is answered from here on: 0 (admitted), 54 or 1237."""

    error: int


@dataclass(frozen=True, slots=True)
class Congestion(Steered):
    """Whether a flow meets congestion from here on (None: unknown), and how many bits/s more it could have then.

    Who waits for that is told.
    """

    flow: str
    congested: bool | None
    free: int = 0


@dataclass(frozen=True, slots=True)
class Passes(Steered):
    """So much time passes for the daemon, in seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class World:
    """How the administrator has set up the daemon, and how much it may hold."""

    strict: bool = False
    deny: tuple[str, ...] = ()
    limits: Mapping[str, int] = field(default_factory=dict)  #: keys of the configuration


PLAIN = World()
STRICT = World(strict=True)
DENIED = World(deny=("dscp", "rate", "traffic_type", "estimates"))
DENIED_FLOWS = World(deny=("flows",))

# What a call gives


@dataclass(frozen=True, slots=True)
class Fundamentals:
    """QOS_FLOW_FUNDAMENTALS: None where the member `...Set` is FALSE."""

    bottleneck: int | None = None
    available: int | None = None
    rtt_us: int | None = None


@dataclass(frozen=True, slots=True)
class Priority:
    """QOS_PACKET_PRIORITY."""

    conformant_dscp: int
    non_conformant_dscp: int = 0
    conformant_l2: int = 0
    non_conformant_l2: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call gave: 0 or a Win32 error, a value, and the bytes that *Size tells.

    A flow id is given by its name in the row. `size` is None for calls without *Size, and on errors other than 122.
    """

    error: int = 0
    value: object = None
    size: int | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """What happens to a packet: its DSCP (None: as the application left it), and how a rate treats it.

    `bandwidth` in bits/s at IP level, 0 without a contract. `delayed`: packets over it wait; else they
    are sent with the non-conformant DSCP.
    """

    dscp: int | None = None
    bandwidth: int = 0
    delayed: bool = False


UNTOUCHED = Mark()


def marked(dscp: int) -> Mark:
    """Marked and not limited."""
    return Mark(dscp)


def shaped(bandwidth: int, dscp: int | None) -> Mark:
    """Held back to a rate, and marked."""
    return Mark(dscp, bandwidth, delayed=True)


def remarked(bandwidth: int, dscp: int) -> Mark:
    """Marked within a rate, best effort over it."""
    return Mark(dscp, bandwidth)
