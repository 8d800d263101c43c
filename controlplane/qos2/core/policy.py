"""The administrator's policy: which rule a connection meets, and why the others do not.

One rule at most acts on a connection: the first that matches, in the order of precedence, then of the most
specific, as Windows orders its QoS policies. The datapath decides in the same order; this is its model.
"""

from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network, IPv6Address

from qos2.core.cgrouppath import (
    ROOT_SLICE,
    is_below,
    is_in_unit,
    is_manager,
    parts_of,
    slice_holds,
    unit_depth,
    units_of,
)
from qos2.core.rule import Match, PortRange, Prefix, Rule, Traffic
from qos2.model import Dscp, Transport

Address = IPv4Address | IPv6Address

#: So many alternatives are told in a reason, the rest is counted.
_TOLD = 4
_NOT_KNOWN = "not known"
_NO_SOCKET = "forwarded packets have no socket here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """What is known of a connection. None, "" and port 0 are not known, and fail every condition about them."""

    unit: str = ""  #: the innermost systemd unit; not needed where the cgroup is known
    cgroup: str = ""  #: path below the mount of cgroup2, "/" is its root
    uid: int | None = None
    executable: str = ""
    protocol: Transport | None = None
    local: Address | None = None
    local_port: int = 0
    remote: Address | None = None
    remote_port: int = 0
    device: str = ""
    namespace: str = ""  #: a name of ip-netns(8), "host" for the daemon's own
    dscp: Dscp | None = None  #: as the program set it
    forwarded: bool = False


class Verdict(StrEnum):
    """What becomes of one rule."""

    MATCHES = "matches"
    FAILS = "fails"
    SHADOWED = "shadowed"  #: it would match, but an earlier rule does


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a rule acts on a connection or does not. `condition`: the key of `match` that fails, "" for none."""

    rule: Rule
    verdict: Verdict
    condition: str
    text: str


class Policy:
    """All rules. `rules` are in the order of decision."""

    def __init__(self, rules: Iterable[Rule] = ()) -> None:
        """Raises ValueError for two rules of one name."""
        #: In the order of decision.
        self.rules: tuple[Rule, ...] = tuple(sorted(rules, key=_place))
        names = {rule.name for rule in self.rules}
        if len(names) < len(self.rules):
            raise ValueError("two rules have the same name")

    def find(self, connection: Connection) -> Rule | None:
        """The rule that acts on a connection."""
        return next((rule for rule in self.rules if _failure(rule.match, connection) is None), None)

    def explain(self, connection: Connection) -> tuple[Reason, ...]:
        """What becomes of each rule, in the order of decision."""
        reasons = []
        met: Rule | None = None
        for rule in self.rules:
            failure = _failure(rule.match, connection)
            if failure is not None:
                condition, why = failure
                reasons.append(Reason(rule, Verdict.FAILS, condition, f"{condition}: {why}"))
            elif met is not None:
                reasons.append(Reason(rule, Verdict.SHADOWED, "", f"shadowed by {met.name}"))
            else:
                met = rule
                reasons.append(Reason(rule, Verdict.MATCHES, "", "matches"))
        return tuple(reasons)


def specificity(rule: Rule) -> tuple[int, ...]:
    """Sorts rules: what is smaller decides first. Equal for rules between which only their places decide."""
    match = rule.match
    five_tuple = (match.local, match.remote, match.local_ports, match.remote_ports, match.protocols)
    order = (
        rule.precedence,
        bool(match.users),
        bool(match.executables),
        min(map(unit_depth, match.units), default=-1),
        min((len(parts_of(path)) for path in match.cgroups), default=-1),
        sum(map(bool, five_tuple)),
        *map(bool, five_tuple),
        *_shortest(match.local),
        *_shortest(match.remote),
        -_count(match.local_ports),
        -_count(match.remote_ports),
        bool(match.devices),
        bool(match.namespaces),
        bool(match.dscps),
        match.traffic is not Traffic.ANY,
    )
    return tuple(-int(each) for each in order)


def _place(rule: Rule) -> tuple[tuple[int, ...], str, int]:
    return specificity(rule), rule.file, rule.line


def _shortest(prefixes: tuple[Prefix, ...]) -> tuple[int, int, int]:
    """How long the shortest prefix is as a share of its family's addresses, in 128ths; then those of both families.

    So a rule about one family and one about both are compared by what they have in common, as a rule.
    """
    four = min((prefix.prefixlen for prefix in prefixes if isinstance(prefix, IPv4Network)), default=0)
    six = min((prefix.prefixlen for prefix in prefixes if not isinstance(prefix, IPv4Network)), default=0)
    shares = [4 * prefix.prefixlen if isinstance(prefix, IPv4Network) else prefix.prefixlen for prefix in prefixes]
    return min(shares, default=0), four, six


def _count(ranges: tuple[PortRange, ...]) -> int:
    return sum(each.last - each.first + 1 for each in ranges)


def _failure(match: Match, connection: Connection) -> tuple[str, str] | None:
    """The key of the first condition that does not hold, and why; None where all do."""
    for condition, check in _CONDITIONS.items():
        why = check(match, connection)
        if why is not None:
            return condition, why
    return None


def _none_of(fact: object, wanted: Iterable[object]) -> str:
    told = [str(each) for each in wanted]
    if len(told) == 1:
        return f"{fact} is not {told[0]}"
    more = len(told) - _TOLD
    return f"{fact} is none of {', '.join(told[:_TOLD])}" + (f" and {more} more" if more > 0 else "")


def _one_of(wanted: tuple[Hashable, ...], fact: Hashable) -> str | None:
    if not wanted or fact in wanted:
        return None
    return _NOT_KNOWN if fact is None or fact == "" else _none_of(fact, wanted)


def _owned(check: Callable[[Match, Connection], str | None], wanted: str) -> Callable[[Match, Connection], str | None]:
    """A condition about who owns the socket: a forwarded packet meets none."""

    def owned(match: Match, connection: Connection) -> str | None:
        if connection.forwarded and getattr(match, wanted):
            return _NO_SOCKET
        return check(match, connection)

    return owned


def _traffic(match: Match, connection: Connection) -> str | None:
    fact = Traffic.FORWARDED if connection.forwarded else Traffic.LOCAL
    return None if match.traffic in (fact, Traffic.ANY) else f"{fact} is not {match.traffic}"


def _unit(match: Match, connection: Connection) -> str | None:
    if not match.units:
        return None
    if not connection.cgroup:
        return _unit_alone(match, connection.unit)
    if any(is_in_unit(connection.cgroup, unit) for unit in match.units):
        return None
    return _none_of((units_of(connection.cgroup) or (connection.cgroup,))[-1], match.units)


def _unit_alone(match: Match, unit: str) -> str | None:
    """As above, of a connection whose cgroup is not known: a unit does not tell which slice it is in."""
    if unit in match.units or ROOT_SLICE in match.units or any(slice_holds(each, unit) for each in match.units):
        return None
    if not unit or any(is_manager(each) or "/" in each for each in match.units):
        return _NOT_KNOWN
    return _none_of(unit, match.units)


def _cgroup(match: Match, connection: Connection) -> str | None:
    if not match.cgroups:
        return None
    if not connection.cgroup:
        return _NOT_KNOWN
    if any(is_below(connection.cgroup, folder) for folder in match.cgroups):
        return None
    return _none_of(connection.cgroup, match.cgroups).replace(" is not ", " is not below ", 1)


def _within(prefixes: tuple[Prefix, ...], address: Address | None) -> str | None:
    if not prefixes:
        return None
    if address is None:
        return _NOT_KNOWN
    return None if any(address in prefix for prefix in prefixes) else _none_of(address, prefixes)


def _port(ranges: tuple[PortRange, ...], port: int) -> str | None:
    if not ranges:
        return None
    if not port:
        return _NOT_KNOWN
    return None if any(each.first <= port <= each.last for each in ranges) else _none_of(port, ranges)


#: By its key in the file: what says of a condition why it does not hold, or None. In the order in which they are told.
_CONDITIONS: dict[str, Callable[[Match, Connection], str | None]] = {
    "traffic": _traffic,
    "unit": _owned(_unit, "units"),
    "cgroup": _owned(_cgroup, "cgroups"),
    "user": _owned(lambda match, connection: _one_of(match.users, connection.uid), "users"),
    "executable": _owned(lambda match, connection: _one_of(match.executables, connection.executable), "executables"),
    "protocol": lambda match, connection: _one_of(match.protocols, connection.protocol),
    "local": lambda match, connection: _within(match.local, connection.local),
    "remote": lambda match, connection: _within(match.remote, connection.remote),
    "local_port": lambda match, connection: _port(match.local_ports, connection.local_port),
    "remote_port": lambda match, connection: _port(match.remote_ports, connection.remote_port),
    "device": lambda match, connection: _one_of(match.devices, connection.device),
    "namespace": lambda match, connection: _one_of(match.namespaces, connection.namespace),
    "dscp": lambda match, connection: _one_of(match.dscps, connection.dscp),
}
