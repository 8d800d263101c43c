"""Rules that can never act, and rules between which only their places decide."""

from ipaddress import IPv4Network, IPv6Network
from itertools import combinations

import pytest
from hypothesis import given

from qos2.core.policy import Connection, Policy, specificity
from qos2.core.rule import Act, Match, PortRange, Rule, Traffic
from qos2.core.shadowing import Shadow, Tie, covers, overlap, shadows, ties
from qos2.model import Dscp, Transport
from unit.policy_samples import connections, matches, rules, wide_matches

EF, CS1 = Act(dscp=Dscp(46)), Act(dscp=Dscp(8))


def meets(match: Match, connection: Connection) -> bool:
    return Policy([Rule("one", match)]).find(connection) is not None


@given(matches | wide_matches, wide_matches, connections)
def test_what_is_covered_meets_what_covers_it(inner: Match, outer: Match, connection: Connection) -> None:
    if covers(outer, inner) and meets(inner, connection):
        assert meets(outer, connection)


@given(matches | wide_matches, wide_matches, connections)
def test_what_meets_both_is_an_overlap(one: Match, other: Match, connection: Connection) -> None:
    assert overlap(one, other) == overlap(other, one)
    if meets(one, connection) and meets(other, connection):
        assert overlap(one, other)


@given(matches)
def test_a_match_covers_itself(match: Match) -> None:
    assert covers(match, match)
    assert covers(Match(traffic=Traffic.ANY), match)


@given(rules, connections)
def test_a_shadowed_rule_is_never_found(given: list[Rule], connection: Connection) -> None:
    policy = Policy(given)
    shadowed = {shadow.rule.name for shadow in shadows(policy)}
    found = policy.find(connection)
    assert found is None or found.name not in shadowed


@given(rules)
def test_no_pair_is_left_out(given: list[Rule]) -> None:
    """Against the definition, which compares each with each."""
    ordered = Policy(given).rules
    by = [[each for each in ordered[:number] if covers(each.match, rule.match)] for number, rule in enumerate(ordered)]
    expected = [Shadow(rule, earlier[0]) for rule, earlier in zip(ordered, by, strict=True) if earlier]
    assert list(shadows(Policy(given))) == expected
    assert list(ties(Policy(given))) == [
        Tie(first, second)
        for first, second in combinations(ordered, 2)
        if specificity(first) == specificity(second)
        and first.act != second.act
        and overlap(first.match, second.match)
        and not covers(first.match, second.match)
    ]


@pytest.mark.parametrize(
    ("outer", "inner"),
    [
        (Match(), Match(users=(1,))),
        (Match(units=("system.slice",)), Match(units=("system-a.slice",))),
        (Match(units=("-.slice",)), Match(units=("a.service",))),
        (Match(units=("a.service",)), Match(units=("user@1000.service/a.service",))),
        (Match(cgroups=("/a", "/b")), Match(cgroups=("/a/x", "/b"))),
        (Match(remote=(IPv4Network("10.0.0.0/8"), IPv6Network("::/0"))), Match(remote=(IPv6Network("2001:db8::/32"),))),
        (Match(local=(IPv4Network("10.0.0.0/8"),)), Match(local=(IPv4Network("10.0.0.0/16"),))),
        (Match(local_ports=(PortRange(1, 100), PortRange(101, 200))), Match(local_ports=(PortRange(50, 150),))),
        (Match(traffic=Traffic.ANY), Match(traffic=Traffic.FORWARDED)),
    ],
)
def test_wider_covers_narrower_and_not_the_other_way(outer: Match, inner: Match) -> None:
    assert covers(outer, inner)
    assert not covers(inner, outer)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Match(users=(1,)), Match(users=(2,))),
        (Match(units=("a.service",)), Match(units=("b.service",))),
        (Match(cgroups=("/a",)), Match(cgroups=("/ab",))),
        (Match(protocols=(Transport.TCP,)), Match(protocols=(Transport.UDP,))),
        (Match(remote=(IPv4Network("10.0.0.0/8"),)), Match(remote=(IPv4Network("11.0.0.0/8"), IPv6Network("::/0")))),
        (Match(local_ports=(PortRange(1, 9),)), Match(local_ports=(PortRange(10, 20),))),
        (Match(), Match(traffic=Traffic.FORWARDED)),
        (Match(dscps=(Dscp(0),)), Match(dscps=(Dscp(1),))),
    ],
)
def test_what_nothing_can_meet_together_does_not_overlap(one: Match, other: Match) -> None:
    assert not overlap(one, other)


def test_shadowed_rules_are_named_with_the_first_that_shadows_them() -> None:
    all_first = Rule("all", Match(), EF, precedence=200)
    web = Rule("web", Match(remote_ports=(PortRange(443, 443),)), CS1)
    more = Rule("more", Match(), CS1, precedence=1)
    forwarded = Rule("forwarded", Match(traffic=Traffic.FORWARDED), CS1)
    policy = Policy([more, web, all_first, forwarded])
    assert list(shadows(policy)) == [Shadow(web, all_first), Shadow(more, all_first)]


def test_ties_are_those_that_may_meet_and_act_differently() -> None:
    west = Rule("west", Match(remote=(IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16"))), EF, line=1)
    east = Rule("east", Match(remote=(IPv4Network("10.2.0.0/16"), IPv4Network("10.3.0.0/16"))), CS1, line=2)
    far = Rule("far", Match(remote=(IPv4Network("10.9.0.0/16"),)), CS1, line=3)
    same = Rule("same", Match(remote=(IPv4Network("10.1.0.0/16"), IPv4Network("10.4.0.0/16"))), EF, line=4)
    policy = Policy([west, east, far, same])
    assert list(ties(policy)) == [Tie(west, east)]


def test_a_rule_said_twice_is_a_shadow_and_no_tie() -> None:
    first, second = Rule("first", Match(users=(1,)), EF, line=1), Rule("second", Match(users=(1,)), CS1, line=2)
    policy = Policy([first, second])
    assert (list(shadows(policy)), list(ties(policy))) == ([Shadow(second, first)], [])
