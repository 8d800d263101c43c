"""One rule of the administrator's policy: which traffic it is about, and what is done with it.

Pure values, as policyfile.py makes them from a file; core/policy.py orders them. A condition with
several alternatives holds if any of them does, a match holds if all its conditions do.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from typing import NamedTuple

from qos2.model import Bandwidth, Dscp, Shaping, TrafficType, Transport

Prefix = IPv4Network | IPv6Network

#: QoS policies of Windows have 0..255 too, and the same default.
DEFAULT_PRECEDENCE = 127
MAX_PRECEDENCE = 255
NO_RATE = Bandwidth(0)


class Bucket(StrEnum):
    """Who shares the contract of a rule."""

    SHARED = "shared"  #: all that the rule matches
    SOCKET = "socket"  #: one contract for each socket
    HOST = "host"  #: one for each remote host


class Traffic(StrEnum):
    """Where packets come from."""

    LOCAL = "local"  #: sockets of this host
    FORWARDED = "forwarded"  #: elsewhere: routed or bridged
    ANY = "any"


class PortRange(NamedTuple):
    """Ports from `first` to `last`, both included."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Match:
    """The conditions of a rule; an empty tuple is no condition."""

    units: tuple[str, ...] = ()  #: names of systemd units, slices too, with everything below
    cgroups: tuple[str, ...] = ()  #: paths below the mount of cgroup2, as "/user.slice", with everything below
    users: tuple[int, ...] = ()  #: uids that own the socket
    executables: tuple[str, ...] = ()  #: absolute paths
    protocols: tuple[Transport, ...] = ()
    local: tuple[Prefix, ...] = ()
    remote: tuple[Prefix, ...] = ()
    local_ports: tuple[PortRange, ...] = ()
    remote_ports: tuple[PortRange, ...] = ()
    devices: tuple[str, ...] = ()  #: by which the packet leaves
    namespaces: tuple[str, ...] = ()  #: names of ip-netns(8), or "host" for that of the daemon
    dscps: tuple[Dscp, ...] = ()  #: as the program set it
    traffic: Traffic = Traffic.LOCAL


@dataclass(frozen=True, slots=True)
class Act:
    """What is done with traffic that a rule matches. `deny` and `exempt` stand alone."""

    traffic_type: TrafficType | None = None
    dscp: Dscp | None = None  #: neither this nor a traffic type: the DSCP stays as it is
    rate: Bandwidth = NO_RATE  #: bits/s at IP level
    shaping: Shaping = Shaping.SHAPE_AND_MARK
    bucket: Bucket = Bucket.SHARED
    priority: int | None = None  #: 802.1p, 0..7
    ceiling: bool = False  #: the rate is the most that an application may ask for
    deny: bool = False  #: requests of applications are refused, packets pass untouched
    exempt: bool = False  #: nothing of a later rule applies


@dataclass(frozen=True, slots=True)
class Rule:
    """A name, unique in the policy, and where the rule stands. Rules are equal wherever they stand."""

    name: str
    match: Match = Match()
    act: Act = Act()
    precedence: int = DEFAULT_PRECEDENCE  #: 0..255, higher first
    file: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)  #: of its [[rule]], 0: not from a file
