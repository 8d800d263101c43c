"""bpf/match.h, by way of ruleentries.py, against the policy's own model: the same rule for any connection.

The model is core/policy.py, which compares names and prefixes; the C compares words under masks.
"""

import ctypes
from ipaddress import ip_address, ip_network
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.core.policy import Connection, Policy
from qos2.core.ports import InstalledRule
from qos2.core.rule import Act, Bucket, Match, PortRange, Rule, Traffic
from qos2.datapath import abi, ruleentries
from qos2.datapath.executables import number_of
from qos2.datapath.identities import Cgroup, Resolved
from qos2.errors import LimitExceeded
from qos2.model import Bandwidth, Dscp, FlowId, Transport
from unit.native import native, untimed

#: Few of each, so that rules and connections meet.
CGROUPS = ("/a.slice", "/a.slice/b.slice", "/a.slice/b.slice/c", "/d.slice", "/d.slice/c")
PATHS = ("/usr/bin/one", "/usr/bin/two")
DEVICES = ("eth0", "eth1")
NAMESPACES = ("host", "blue")
FOUR = tuple(ip_address(each) for each in ("192.0.2.1", "192.0.2.130", "198.51.100.1", "255.255.255.255"))
SIX = tuple(ip_address(each) for each in ("2001:db8::1", "2001:db8:0:0:8000::1", "::1", "2001:db9::1"))
PREFIXES = tuple(
    ip_network(each)
    for each in (
        *("0.0.0.0/0", "192.0.2.0/24", "192.0.2.128/25", "192.0.2.1/32", "198.51.100.0/31"),
        *("::/0", "2001:db8::/32", "2001:db8::/65", "2001:db8::1/128", "::/1"),
    )
)
RANGES = tuple(PortRange(*each) for each in ((1, 65535), (80, 80), (443, 5004), (5004, 5004), (65535, 65535)))
PORTS = (0, 1, 79, 80, 81, 443, 5004, 5005, 65535)


def some(values: tuple[object, ...]) -> st.SearchStrategy[tuple[object, ...]]:
    """No condition more often than not."""
    return st.one_of(st.just(()), st.lists(st.sampled_from(values), max_size=2, unique=True).map(tuple))


MATCHES = st.builds(
    Match,
    cgroups=some(CGROUPS),
    users=some((0, 1000, 65534)),
    executables=some(PATHS),
    protocols=some(tuple(Transport)),
    local=some(PREFIXES),
    remote=some(PREFIXES),
    local_ports=some(RANGES),
    remote_ports=some(RANGES),
    devices=some(DEVICES),
    namespaces=some(NAMESPACES),
    dscps=some((Dscp(0), Dscp(46), Dscp(63))),
    traffic=st.sampled_from(Traffic),
)
RULES = st.lists(
    st.tuples(MATCHES, st.integers(0, 255).filter(lambda number: number < 3 or number > 253)), min_size=1, max_size=12
)


@st.composite
def connections(draw: st.DrawFn) -> Connection:
    forwarded = draw(st.booleans())
    addresses = draw(st.sampled_from((FOUR, SIX)))
    protocol = draw(st.sampled_from((*Transport, None)))
    return Connection(
        cgroup="" if forwarded else draw(st.sampled_from((*CGROUPS, "/e"))),
        uid=None if forwarded else draw(st.sampled_from((0, 1000, 65534))),
        executable="" if forwarded else draw(st.sampled_from((*PATHS, "/usr/bin/other"))),
        protocol=protocol,
        local=draw(st.sampled_from(addresses)),
        remote=draw(st.sampled_from(addresses)),
        local_port=0 if protocol is None else draw(st.sampled_from(PORTS)),
        remote_port=0 if protocol is None else draw(st.sampled_from(PORTS)),
        device=draw(st.sampled_from(DEVICES)),
        namespace=draw(st.sampled_from(NAMESPACES)),
        dscp=Dscp(draw(st.sampled_from((0, 1, 46, 63)))),
        forwarded=forwarded,
    )


def cgroup_of(path: str) -> Cgroup:
    return Cgroup(1000 + sum(map(ord, path)), path.count("/"))


def cookie_of(namespace: str) -> int:
    return 1 + NAMESPACES.index(namespace)


def resolved(match: Match) -> Resolved:
    """The numbers of a host where everything that is named is there."""
    namespaces = match.namespaces or NAMESPACES
    return Resolved(
        tuple(map(cgroup_of, match.cgroups)) if match.cgroups else None,
        tuple(map(cookie_of, match.namespaces)) if match.namespaces else None,
        tuple((cookie_of(name), 2 + DEVICES.index(device)) for device, name in product(match.devices, namespaces))
        if match.devices
        else None,
        tuple(map(number_of, match.executables)) if match.executables else None,
    )


def facts_of(connection: Connection) -> abi.Facts:
    """As the datapath gathers them."""
    assert connection.local is not None
    assert connection.remote is not None
    facts = abi.Facts(
        netns_cookie=cookie_of(connection.namespace),
        uid=0xFFFFFFFF if connection.uid is None else connection.uid,
        ifindex=2 + DEVICES.index(connection.device),
        executable=number_of(connection.executable) if connection.executable in PATHS else 0,
        protocol={Transport.TCP: 6, Transport.UDP: 17, None: 1}[connection.protocol],
        family=connection.local.version,
        dscp=connection.dscp or 0,
        traffic=abi.Traffic.FORWARDED if connection.forwarded else abi.Traffic.LOCAL,
    )
    facts.of.local_port, facts.of.remote_port = connection.local_port, connection.remote_port
    for field, address in ((facts.of.local_be, connection.local), (facts.of.remote_be, connection.remote)):
        ctypes.memmove(field, address.packed, len(address.packed))
    parts = connection.cgroup.split("/")
    for level in range(1, len(parts)):
        above = cgroup_of("/".join(parts[: level + 1]))
        facts.cgroup_ids[above.level] = above.id
    return facts


def entries_of(rule: Rule, flow: int, pool: int = 0) -> list[abi.Rule]:
    installed = InstalledRule(rule, FlowId(flow))
    return ruleentries.entries(installed, resolved(rule.match), pool, with_namespaces=True)


def array(entries: list[abi.Rule]) -> ctypes.Array[abi.Rule]:
    return (abi.Rule * len(entries))(*entries)


@untimed
@given(RULES, st.lists(connections(), min_size=1, max_size=4))
def test_the_kernel_finds_the_rule_that_the_policy_finds(drawn: list[tuple[Match, int]], met: list[Connection]) -> None:
    policy = Policy(Rule(f"rule {number}", match, precedence=each) for number, (match, each) in enumerate(drawn))
    flows = {rule.name: number for number, rule in enumerate(policy.rules, 1)}
    entries = [entry for rule in policy.rules for entry in entries_of(rule, flows[rule.name])]
    rules = array([*entries, ruleentries.behind_the_last()])
    for connection in met:
        found = policy.find(connection)
        act = native().first(rules, facts_of(connection))
        if found is None:
            assert act == (0, 0, abi.Bucket.NONE)
        else:
            assert act == (flows[found.name], 0, abi.Bucket.SHARED), found


@untimed
@given(connections(), st.data())
def test_a_connection_is_the_same_one_until_one_of_its_fields_differs(
    connection: Connection, data: st.DataObject
) -> None:
    one, other = facts_of(connection).of, facts_of(connection).of
    other.cookie = 77  # not compared
    assert native().same(one, other)
    place = data.draw(st.integers(ctypes.sizeof(ctypes.c_uint64), ctypes.sizeof(abi.Connection) - 1))
    octets = (ctypes.c_uint8 * ctypes.sizeof(other)).from_buffer(other)
    octets[place] ^= 1 << data.draw(st.integers(0, 7))
    assert not native().same(one, other)


def test_a_rule_takes_its_pool_and_bucket_along() -> None:
    rule = Rule("each", Match(), Act(rate=Bandwidth(10**6), bucket=Bucket.HOST))
    rules = array(entries_of(rule, 0xFFF00001, 255))
    assert native().first(rules, facts_of(PLAIN)) == (0xFFF00001, 255, abi.Bucket.HOST)


PLAIN = Connection(
    cgroup="/e",
    uid=0,
    executable="/x",
    protocol=Transport.UDP,
    local=FOUR[0],
    remote=FOUR[1],
    device="eth0",
    namespace="host",
    dscp=Dscp(0),
)


def test_alternatives_are_combined_and_families_kept_apart() -> None:
    match = Match(local=PREFIXES[1:7], remote=PREFIXES[1:7], remote_ports=RANGES[:3], protocols=tuple(Transport))
    assert len(entries_of(Rule("combined", match), 1)) == (4 * 4 + 2 * 2) * 3 * 2


def test_a_rule_that_names_what_is_not_there_has_no_entries() -> None:
    installed = InstalledRule(Rule("gone", Match(units=("gone.service",))), FlowId(1))
    assert ruleentries.entries(installed, Resolved(cgroups=()), 0, with_namespaces=True) == []


def test_a_rule_of_too_many_combinations_is_refused_by_name() -> None:
    ports = tuple(PortRange(each, each) for each in range(1, 66))
    with pytest.raises(LimitExceeded, match="rule many"):
        entries_of(Rule("many", Match(local_ports=ports, remote_ports=ports)), 1)


@pytest.mark.parametrize(
    ("match", "act", "expected"),
    [
        (Match(), Act(), 0),
        (Match(cgroups=("/a.slice",), users=(0,), local_ports=RANGES[:1], protocols=(Transport.TCP,)), Act(), 0),
        (Match(traffic=Traffic.ANY), Act(), abi.RulesetFlag.FORWARDED),
        (Match(remote=PREFIXES[:1]), Act(), abi.RulesetFlag.PEERS),
        (Match(), Act(rate=Bandwidth(10**6), bucket=Bucket.HOST), abi.RulesetFlag.PEERS),
        (Match(), Act(rate=Bandwidth(10**6), bucket=Bucket.SOCKET), 0),
        (Match(devices=("eth0",), dscps=(Dscp(0),)), Act(), abi.RulesetFlag.DEVICE | abi.RulesetFlag.DSCP),
        (Match(executables=PATHS), Act(), abi.RulesetFlag.EXECUTABLES),
    ],
)
def test_flags_say_what_rules_look_at(match: Match, act: Act, expected: int) -> None:
    assert ruleentries.flags([InstalledRule(Rule("one", match, act), FlowId(1))]) == expected
