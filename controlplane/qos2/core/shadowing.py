"""Rules that get in each other's way: one that can never act, and two between which only their places decide.

For whoever writes a policy; nothing is decided here. Only single earlier rules are considered: that several of them
together leave nothing for a later one is not found. A thousand rules are compared as soon as they are loaded, so only
those are compared that one condition does not keep apart anyway.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations, groupby
from typing import Any, NamedTuple, TypeVar

from qos2.core.cgrouppath import ROOT_SLICE, is_below, is_manager, own_name, parts_of, slice_holds
from qos2.core.policy import Policy, specificity
from qos2.core.rule import Match, PortRange, Prefix, Rule, Traffic

_Wanted = TypeVar("_Wanted")


class Shadow(NamedTuple):
    """`rule` can never act: all that it matches meets `by` before it."""

    rule: Rule
    by: Rule


class Tie(NamedTuple):
    """Equal in precedence and specificity, and some connection may meet both: `first` acts, as it stands first."""

    first: Rule
    second: Rule


def shadows(policy: Policy) -> Iterator[Shadow]:
    """Each rule that can never act, with the first rule that sees to that."""
    rules = policy.rules
    conditions = [_present(rule.match) for rule in rules]
    candidates = _candidates(rules, conditions)
    for number, rule in enumerate(rules):
        for other in sorted(candidates[number]):
            if covers(rules[other].match, rule.match):
                yield Shadow(rule, rules[other])
                break


def ties(policy: Policy) -> Iterator[Tie]:
    """Rules that nothing but their places orders, where they may meet and do different things. Shadows are no ties."""
    for _, group in groupby(policy.rules, specificity):
        rules = list(group)  # all with the same conditions
        anchor = min(_present(rules[0].match), default=None)
        pairs = combinations(range(len(rules)), 2) if anchor is None else _meeting(anchor, dict(enumerate(rules)))
        for one, other in sorted(pairs):
            first, second = rules[one], rules[other]
            apart = first.act == second.act or not overlap(first.match, second.match)
            if not apart and not covers(first.match, second.match):
                yield Tie(first, second)


def covers(outer: Match, inner: Match) -> bool:
    """Whether all that meets `inner` meets `outer`. False where that cannot be told."""
    return (
        outer.traffic in (inner.traffic, Traffic.ANY)
        and _all_within(outer.units, inner.units, _unit_holds)
        and _all_within(outer.cgroups, inner.cgroups, lambda folder, path: is_below(path, folder))
        and _subset(outer.users, inner.users)
        and _subset(outer.executables, inner.executables)
        and _subset(outer.protocols, inner.protocols)
        and _all_within(outer.local, inner.local, _prefix_holds)
        and _all_within(outer.remote, inner.remote, _prefix_holds)
        and _all_within(_merged(outer.local_ports), inner.local_ports, _range_holds)
        and _all_within(_merged(outer.remote_ports), inner.remote_ports, _range_holds)
        and _subset(outer.devices, inner.devices)
        and _subset(outer.namespaces, inner.namespaces)
        and _subset(outer.dscps, inner.dscps)
    )


def overlap(one: Match, other: Match) -> bool:
    """Whether something may meet both. True where that cannot be told, as of two units."""
    return (
        (one.traffic is other.traffic or Traffic.ANY in (one.traffic, other.traffic))
        and _share(one.users, other.users)
        and _share(one.executables, other.executables)
        and _share(one.protocols, other.protocols)
        and _meet(one.units, other.units, _units_meet)
        and _meet(one.cgroups, other.cgroups, lambda a, b: is_below(a, b) or is_below(b, a))
        and _meet(one.local, other.local, lambda a, b: _prefix_holds(a, b) or _prefix_holds(b, a))
        and _meet(one.remote, other.remote, lambda a, b: _prefix_holds(a, b) or _prefix_holds(b, a))
        and _meet(one.local_ports, other.local_ports, lambda a, b: a.first <= b.last and b.first <= a.last)
        and _meet(one.remote_ports, other.remote_ports, lambda a, b: a.first <= b.last and b.first <= a.last)
        and _share(one.devices, other.devices)
        and _share(one.namespaces, other.namespaces)
        and _share(one.dscps, other.dscps)
    )


#: What a condition allows, as spans of numbers: what may meet has spans that touch, and nearly nothing else has.
_Spans = Iterable[tuple[float, float]]
_ANYTHING = (float("-inf"), float("inf"))


def _prefix_spans(prefixes: tuple[Prefix, ...]) -> _Spans:
    for prefix in prefixes:
        base = 1 << 130 if prefix.version == 4 else 0  # beyond all of IPv6
        yield base + int(prefix.network_address), base + int(prefix.broadcast_address)


def _token_spans(values: Iterable[Hashable]) -> _Spans:
    return ((number, number) for number in map(hash, values))


def _unit_spans(units: tuple[str, ...]) -> _Spans:
    for unit in units:
        yield _ANYTHING if is_manager(unit) else (hash(own_name(unit)), hash(own_name(unit)))


def _cgroup_spans(paths: tuple[str, ...]) -> _Spans:
    return (_ANYTHING if path == "/" else (hash(parts_of(path)[0]),) * 2 for path in paths)


#: Those first that tell most rules apart.
_CONDITIONS: tuple[tuple[Callable[[Match], Any], Callable[[Any], _Spans]], ...] = (
    (lambda match: match.remote, _prefix_spans),
    (lambda match: match.local, _prefix_spans),
    (lambda match: match.users, _token_spans),
    (lambda match: match.executables, _token_spans),
    (lambda match: match.units, _unit_spans),
    (lambda match: match.cgroups, _cgroup_spans),
    (lambda match: match.remote_ports, iter),
    (lambda match: match.local_ports, iter),
    (lambda match: match.devices, _token_spans),
    (lambda match: match.namespaces, _token_spans),
    (lambda match: match.dscps, _token_spans),
    (lambda match: match.protocols, _token_spans),
)


def _present(match: Match) -> frozenset[int]:
    """The conditions that a match has, as places in _CONDITIONS."""
    return frozenset(number for number, (values, _) in enumerate(_CONDITIONS) if values(match))


def _candidates(rules: Sequence[Rule], conditions: Sequence[frozenset[int]]) -> list[set[int]]:
    """For each rule the earlier ones that may cover it: they have no condition that it has not, and may meet it."""
    found: list[set[int]] = [set() for _ in rules]
    anchors = [min(each, default=None) for each in conditions]
    for anchor in set(anchors):
        if anchor is None:
            pairs: Iterable[tuple[int, int]] = (
                (first, second) for first in range(len(rules)) if anchors[first] is None
                for second in range(first + 1, len(rules))
            )  # fmt: skip
        else:
            pairs = _meeting(anchor, {n: rule for n, rule in enumerate(rules) if anchor in conditions[n]})
        for first, second in pairs:
            if anchors[first] == anchor and conditions[first] <= conditions[second]:
                found[second].add(first)
    return found


def _meeting(condition: int, rules: Mapping[int, Rule]) -> set[tuple[int, int]]:
    """The numbers of rules of which one condition has spans that touch, the lower number first."""
    values, spans = _CONDITIONS[condition]
    found: set[tuple[int, int]] = set()
    open_spans: list[tuple[float, int]] = []
    for low, high, number in sorted(
        (low, high, number) for number, rule in rules.items() for low, high in spans(values(rule.match))
    ):
        open_spans = [each for each in open_spans if each[0] >= low]
        found.update((min(number, other), max(number, other)) for _, other in open_spans if other != number)
        open_spans.append((high, number))
    return found


def _subset(outer: tuple[_Wanted, ...], inner: tuple[_Wanted, ...]) -> bool:
    return not outer or (bool(inner) and set(inner) <= set(outer))


def _all_within(
    outer: tuple[_Wanted, ...], inner: tuple[_Wanted, ...], holds: Callable[[_Wanted, _Wanted], bool]
) -> bool:
    return not outer or (bool(inner) and all(any(holds(each, one) for each in outer) for one in inner))


def _share(one: tuple[_Wanted, ...], other: tuple[_Wanted, ...]) -> bool:
    return not one or not other or bool(set(one) & set(other))


def _meet(one: tuple[_Wanted, ...], other: tuple[_Wanted, ...], both: Callable[[_Wanted, _Wanted], bool]) -> bool:
    return not one or not other or any(both(a, b) for a in one for b in other)


def _unit_holds(outer: str, inner: str) -> bool:
    return outer in (inner, ROOT_SLICE) or slice_holds(outer, inner) or inner.endswith(f"/{outer}")


def _units_meet(one: str, other: str) -> bool:
    """Of two different services at most one has a socket; a slice may hold anything."""
    services = not one.endswith(".slice") and not other.endswith(".slice") and "user@" not in one + other
    return one == other or not services


def _prefix_holds(outer: Prefix, inner: Prefix) -> bool:
    if outer.version != inner.version or outer.prefixlen > inner.prefixlen:
        return False
    return inner.network_address in outer


def _range_holds(outer: PortRange, inner: PortRange) -> bool:
    return outer.first <= inner.first and inner.last <= outer.last


def _merged(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The same ports in as few ranges as possible."""
    found: list[PortRange] = []
    for each in sorted(ranges):
        if found and each.first <= found[-1].last + 1:
            found[-1] = PortRange(found[-1].first, max(found[-1].last, each.last))
        else:
            found.append(each)
    return tuple(found)
