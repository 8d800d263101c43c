"""The policy: in which order rules decide, which one a connection meets, and what is said of the others."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.core.policy import Address, Connection, Policy, Reason, Verdict, specificity
from qos2.core.rule import Act, Match, PortRange, Prefix, Rule, Traffic
from qos2.model import Dscp, Transport
from unit.policy_samples import connections, matches, rules

#: Where the key in the file is not the field.
_PLURAL = (
    "unit",
    "cgroup",
    "user",
    "executable",
    "protocol",
    "local_port",
    "remote_port",
    "device",
    "namespace",
    "dscp",
)
FIELDS = {key: f"{key}s" for key in _PLURAL} | {key: key for key in ("local", "remote", "traffic")}

V4 = IPv4Network("192.0.2.0/24")
V6 = IPv6Network("2001:db8::/32")

#: From the most to the least specific: each beats all that come after it.
ORDER = (
    Match(users=(1000,), executables=("/usr/bin/rsync",)),
    Match(users=(1000,), remote_ports=(PortRange(443, 443),)),
    Match(users=(1000, 1001)),
    Match(executables=("/usr/bin/rsync",), units=("rsync.service",)),
    Match(executables=("/usr/bin/rsync",)),
    Match(units=("user@1000.service/app-mail.scope",)),
    Match(units=("asterisk.service",), cgroups=("/system.slice",)),
    Match(units=("asterisk.service",), local=(V4,)),
    Match(units=("asterisk.service",)),
    Match(units=("system-asterisk.slice",)),
    Match(units=("system.slice",)),
    Match(units=("-.slice",)),
    Match(cgroups=("/user.slice/user-1000.slice",)),
    Match(cgroups=("/user.slice/user-1000.slice", "/system.slice")),
    Match(cgroups=("/",)),
    Match(remote=(V4,), remote_ports=(PortRange(443, 443),), protocols=(Transport.TCP,)),
    Match(local=(V4,), protocols=(Transport.TCP,)),
    Match(remote=(V4,), remote_ports=(PortRange(443, 443),)),
    Match(local_ports=(PortRange(443, 443),), remote_ports=(PortRange(443, 443),)),
    Match(local=(V4,)),
    Match(remote=(IPv4Network("192.0.2.7/32"),)),
    Match(remote=(V4,), devices=("eth0",)),
    Match(remote=(V4,), namespaces=("blue",)),
    Match(remote=(V4,), dscps=(Dscp(0),)),
    Match(remote=(V4,)),
    Match(remote=(V4,), traffic=Traffic.ANY),
    Match(remote=(IPv4Network("192.0.2.7/32"), IPv4Network("192.0.0.0/16"))),
    Match(remote=(IPv4Network("0.0.0.0/0"), IPv6Network("2001:db8::1/128"))),
    Match(local_ports=(PortRange(443, 443),)),
    Match(local_ports=(PortRange(443, 443), PortRange(445, 445))),
    Match(local_ports=(PortRange(400, 500),)),
    Match(remote_ports=(PortRange(443, 443),)),
    Match(remote_ports=(PortRange(400, 443),)),
    Match(protocols=(Transport.TCP,), devices=("eth0",)),
    Match(protocols=(Transport.TCP,)),
    Match(devices=("eth0",), namespaces=("blue",), dscps=(Dscp(0),)),
    Match(devices=("eth0",)),
    Match(namespaces=("blue",), dscps=(Dscp(0),)),
    Match(namespaces=("blue",)),
    Match(dscps=(Dscp(0),)),
    Match(),
    Match(traffic=Traffic.ANY),
)


def named(policy: Policy) -> list[str]:
    return [rule.name for rule in policy.rules]


def test_a_more_specific_match_decides_first() -> None:
    backwards = [Rule(f"{number:02}", match) for number, match in reversed(list(enumerate(ORDER)))]
    assert named(Policy(backwards)) == [f"{number:02}" for number in range(len(ORDER))]
    assert len({specificity(rule) for rule in backwards}) == len(ORDER)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [
        ("10.20.0.0/16 2001:db8:20::/48", "10.0.0.0/8 2001:db8::/32"),
        ("2001:db8:20::/48", "10.0.0.0/8 2001:db8::/32"),
        ("10.20.0.0/16 2001:db8:20::/48", "2001:db8::/32"),
        ("10.20.0.0/16", "10.0.0.0/8 2001:db8::/32"),
        ("10.20.0.0/16 2001:db8:20::/48", "10.0.0.0/8"),
        ("10.0.0.0/24 2001:db8::/32", "10.0.0.0/8"),
        ("10.0.0.0/8 2001:db8:1:1::/64", "2001:db8::/32"),
        ("10.0.0.0/8 2001:db8:1:1::/64", "10.0.0.0/8 2001:db8::/32"),
        ("10.0.0.0/8 ::/0", "0.0.0.0/0 ::/0"),
    ],
)
def test_the_longer_prefix_decides_first_whichever_families_are_listed(narrow: str, wide: str) -> None:
    rules = [Rule(text, Match(remote=tuple(map(ip_network, text.split())))) for text in (wide, narrow)]
    assert named(Policy(rules)) == [narrow, wide]


def test_precedence_is_before_all_else_then_the_file_then_the_line() -> None:
    given = [
        Rule("special", Match(users=(0,), local=(V4,))),
        Rule("first", Match(), precedence=128),
        Rule("last", Match(users=(0,)), precedence=0),
        Rule("b1", Match(), file="b.toml", line=1),
        Rule("a9", Match(), file="a.toml", line=9),
        Rule("a10", Match(), file="a.toml", line=10),
    ]
    assert named(Policy(given)) == ["first", "special", "a9", "a10", "b1", "last"]


def test_two_rules_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="same name"):
        Policy([Rule("a"), Rule("b"), Rule("a", precedence=3)])


@given(rules.flatmap(lambda given: st.tuples(st.just(given), st.permutations(given))))
def test_the_order_does_not_depend_on_the_order_given(both: tuple[list[Rule], list[Rule]]) -> None:
    given, shuffled = both
    assert named(Policy(shuffled)) == named(Policy(given))


@given(rules)
def test_the_order_is_total_and_stable(given: list[Rule]) -> None:
    ordered = Policy(given).rules
    assert sorted(rule.name for rule in ordered) == sorted(rule.name for rule in given)
    keys = [(-rule.precedence, specificity(rule), rule.line) for rule in ordered]
    assert keys == sorted(keys)
    assert len(set(keys)) == len(keys)
    assert Policy(ordered).rules == ordered
    unplaced = [replace(rule, file="", line=0) for rule in given]
    assert Policy(unplaced).rules == ordered  # what nothing else orders stays as it was given


def holds(match: Match, connection: Connection) -> bool:
    """The definition, said once more and differently: each condition that is there has an alternative that holds."""
    owner = match.units or match.cgroups or match.users or match.executables
    if connection.forwarded and (owner or match.traffic is Traffic.LOCAL):
        return False
    if not connection.forwarded and match.traffic is Traffic.FORWARDED:
        return False
    parts = [part for part in connection.cgroup.split("/") if part]

    def in_unit(unit: str) -> bool:
        if unit == "-.slice":
            return True
        wanted = unit.split("/")
        for part in parts:
            if wanted and part == wanted[0]:
                wanted = wanted[1:]
            if not part.endswith(".slice") and not part.startswith("user@"):
                break
        return not wanted

    def below(folder: str) -> bool:
        return bool(connection.cgroup) and f"{connection.cgroup}/".startswith(folder.rstrip("/") + "/")

    def inside(prefixes: tuple[Prefix, ...], address: Address | None) -> bool:
        return address is not None and any(address in prefix for prefix in prefixes)

    def between(ranges: tuple[PortRange, ...], port: int) -> bool:
        return port > 0 and any(port in range(first, last + 1) for first, last in ranges)

    return all(
        (
            not match.units or any(map(in_unit, match.units)),
            not match.cgroups or any(map(below, match.cgroups)),
            not match.users or connection.uid in match.users,
            not match.executables or connection.executable in match.executables,
            not match.protocols or connection.protocol in match.protocols,
            not match.local or inside(match.local, connection.local),
            not match.remote or inside(match.remote, connection.remote),
            not match.local_ports or between(match.local_ports, connection.local_port),
            not match.remote_ports or between(match.remote_ports, connection.remote_port),
            not match.devices or connection.device in match.devices,
            not match.namespaces or connection.namespace in match.namespaces,
            not match.dscps or connection.dscp in match.dscps,
        )
    )


@given(matches, connections)
def test_a_match_holds_where_all_its_conditions_do(match: Match, connection: Connection) -> None:
    rule = Rule("one", match)
    assert Policy([rule]).find(connection) == (rule if holds(match, connection) else None)


@given(rules, connections)
def test_the_first_match_in_order_is_found(given: list[Rule], connection: Connection) -> None:
    policy = Policy(given)
    matching = [rule for rule in policy.rules if holds(rule.match, connection)]
    assert policy.find(connection) == (matching[0] if matching else None)


@given(rules, connections)
def test_an_explanation_agrees_with_what_is_found(given: list[Rule], connection: Connection) -> None:
    policy = Policy(given)
    reasons = policy.explain(connection)
    found = policy.find(connection)
    assert tuple(reason.rule for reason in reasons) == policy.rules
    assert [reason.rule for reason in reasons if reason.verdict is Verdict.MATCHES] == ([found] if found else [])
    for reason in reasons:
        if reason.verdict is Verdict.FAILS:
            assert not holds(reason.rule.match, connection)
            assert reason.text.startswith(f"{reason.condition}: ")
            assert getattr(reason.rule.match, FIELDS[reason.condition])  # the rule has that condition
        else:
            assert holds(reason.rule.match, connection)
            assert reason.condition == ""
        if reason.verdict is Verdict.SHADOWED:
            assert found is not None
            assert reason.text == f"shadowed by {found.name}"


CALL = Connection(
    unit="asterisk.service", cgroup="/system.slice/asterisk.service", uid=106, executable="/usr/sbin/asterisk",
    protocol=Transport.UDP, local=IPv4Address("192.0.2.1"), local_port=16_500, remote=IPv6Address("2001:db8::7"),
    remote_port=5004, device="eth0", namespace="host", dscp=Dscp(0),
)  # fmt: skip


@pytest.mark.parametrize(
    ("match", "text"),
    [
        (Match(units=("nginx.service",)), "unit: asterisk.service is not nginx.service"),
        (Match(cgroups=("/user.slice",)), "cgroup: /system.slice/asterisk.service is not below /user.slice"),
        (Match(users=(0, 1000)), "user: 106 is none of 0, 1000"),
        (Match(executables=("/usr/bin/rsync",)), "executable: /usr/sbin/asterisk is not /usr/bin/rsync"),
        (Match(protocols=(Transport.TCP,)), "protocol: udp is not tcp"),
        (Match(local=(V6,)), "local: 192.0.2.1 is not 2001:db8::/32"),
        (Match(remote=(V4,)), "remote: 2001:db8::7 is not 192.0.2.0/24"),
        (Match(local_ports=(PortRange(1, 1024),)), "local_port: 16500 is not 1-1024"),
        (
            Match(remote_ports=tuple(PortRange(port, port) for port in range(1, 8))),
            "remote_port: 5004 is none of 1, 2, 3, 4 and 3 more",
        ),
        (
            Match(remote_ports=tuple(PortRange(port, port) for port in range(1, 6))),
            "remote_port: 5004 is none of 1, 2, 3, 4 and 1 more",
        ),
        (
            Match(remote_ports=tuple(PortRange(port, port) for port in range(1, 5))),
            "remote_port: 5004 is none of 1, 2, 3, 4",
        ),
        (Match(devices=("eth1",)), "device: eth0 is not eth1"),
        (Match(namespaces=("blue",)), "namespace: host is not blue"),
        (Match(dscps=(Dscp(46),)), "dscp: 0 is not 46"),
        (Match(traffic=Traffic.FORWARDED), "traffic: local is not forwarded"),
    ],
)
def test_a_reason_says_what_is_and_what_was_wanted(match: Match, text: str) -> None:
    rule = Rule("one", match)
    (reason,) = Policy([rule]).explain(CALL)
    assert reason == Reason(rule, Verdict.FAILS, text.partition(":")[0], text)


@pytest.mark.parametrize(
    "match",
    [
        Match(units=("a.service",)), Match(cgroups=("/a",)), Match(users=(0,)), Match(executables=("/a",)),
        Match(protocols=(Transport.TCP,)), Match(local=(V4,)), Match(remote=(V6,)),
        Match(local_ports=(PortRange(1, 65_535),)), Match(remote_ports=(PortRange(1, 65_535),)),
        Match(devices=("eth0",)), Match(namespaces=("host",)), Match(dscps=(Dscp(0),)),
    ],
)  # fmt: skip
def test_what_is_not_known_fails_by_that_name(match: Match) -> None:
    (reason,) = Policy([Rule("one", match)]).explain(Connection())
    assert (reason.verdict, reason.text) == (Verdict.FAILS, f"{reason.condition}: not known")


@pytest.mark.parametrize(
    "match", [Match(units=("a.service",)), Match(cgroups=("/",)), Match(users=(0,)), Match(executables=("/a",))]
)
def test_a_forwarded_packet_has_no_owner(match: Match) -> None:
    policy = Policy([Rule("one", replace(match, traffic=Traffic.ANY))])
    connection = Connection(unit="a.service", cgroup="/a.service", uid=0, executable="/a", forwarded=True)
    (reason,) = policy.explain(connection)
    assert reason.text == f"{reason.condition}: forwarded packets have no socket here"
    assert policy.find(replace(connection, forwarded=False)) == policy.rules[0]


def test_an_explanation_goes_on_behind_the_rule_that_matches() -> None:
    policy = Policy(
        [
            Rule("all", Match(), Act(dscp=Dscp(8))),
            Rule("web", Match(remote_ports=(PortRange(443, 443),))),
            Rule("calls", Match(units=("asterisk.service",))),
        ]
    )
    assert [(reason.rule.name, reason.text) for reason in policy.explain(CALL)] == [
        ("calls", "matches"),
        ("web", "remote_port: 5004 is not 443"),
        ("all", "shadowed by calls"),
    ]


@pytest.mark.parametrize(
    ("unit", "told", "text"),
    [
        ("asterisk.service", "asterisk.service", "matches"),
        ("asterisk.service", "nginx.service", "unit: asterisk.service is not nginx.service"),
        ("asterisk.service", "system.slice", "unit: not known"),  # the name does not tell its slice
        ("app-mail.scope", "user@1000.service/app-mail.scope", "unit: not known"),
        ("asterisk.service", "-.slice", "matches"),
        ("system-x.slice", "system.slice", "matches"),
        ("", "nginx.service", "unit: not known"),
    ],
)
def test_a_unit_alone_tells_what_it_can(unit: str, told: str, text: str) -> None:
    (reason,) = Policy([Rule("one", Match(units=(told,)))]).explain(Connection(unit=unit))
    assert reason.text == text


def test_rules_are_equal_wherever_they_stand() -> None:
    assert Rule("a", file="a.toml", line=1) == Rule("a", file="b.toml", line=7)
    assert Rule("a") != Rule("a", precedence=1)
