"""Rules in the programs under BPF_PROG_TEST_RUN: what would need a driver on the wire, and every place."""

import ctypes
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.all import IP, TCP, UDP, Dot1Q, Ether, IPv6, Raw, raw

from harness.program import Program, SkBuff, run
from qos2.datapath import abi
from qos2.datapath.ruleentries import behind_the_last
from qos2.datapath.ruleset import Ruleset
from qos2.model import FlowId

pytestmark = pytest.mark.datapath

PASS = -1
FLOW = FlowId(3 << 20 | 5)
SLOT = 5
#: Drop eligible, VLAN 5; its priority is in the three bits above.
TAG = 1 << 12 | 5
#: Gives the packet a tag outside of its data, as a VLAN device does; returns the tag that is there afterwards.
_TAGGED = """
int test_tagged(struct __sk_buff *skb)
{
	bpf_skb_vlan_push(skb, PACKET_BE16(ETH_P_8021Q), 3 << 13 | 0x1005);
	if (qos_egress(skb, SHAPER_FQ) != TC_ACT_UNSPEC || !skb->vlan_present)
		return -2;
	return skb->vlan_tci;
}
"""


@pytest.fixture(scope="module")
def given(bpf_fs: Path) -> Iterator[Program]:
    """Every packet is of a registered socket."""
    with closing(Program(bpf_fs / "priority", 64, extra=_TAGGED)) as program:
        program.bind(abi.SocketFlow(flow_id=FLOW))
        yield program


@pytest.fixture(scope="module")
def program(bpf_fs: Path) -> Iterator[Program]:
    """Packets of sockets that nobody registered."""
    with closing(Program(bpf_fs / "rules", 64, given=False)) as program:
        program.put(SLOT, flow_id=FLOW, dscp=34, flags=abi.PolicyFlag.MARK)
        yield program


@pytest.fixture(scope="module")
def ruleset(program: Program) -> Iterator[Ruleset]:
    with closing(Ruleset(program.pins)) as ruleset:
        yield ruleset


def packet(dsfield: int = 0, **ports: int) -> bytes:
    network = IP(src="192.0.2.1", dst="198.51.100.7", tos=dsfield)
    udp = UDP(**({"sport": 4000, "dport": 5004} | ports))
    return bytes(raw(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / network / udp / Raw(b"policy")))


def rule(**fields: int) -> abi.Rule:
    """One for every packet, but for these fields."""
    made = behind_the_last()
    made.flow_id, made.bucket = FLOW, abi.Bucket.SHARED
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("priority", range(8))
def test_the_priority_of_a_tag_is_written_and_the_rest_of_it_kept(given: Program, priority: int) -> None:
    given.put(SLOT, flow_id=FLOW, dscp=46, flags=abi.PolicyFlag.MARK | abi.PolicyFlag.PRIORITY, priority=priority)
    came = run(given.load("test_tagged"), packet())
    assert came.verdict == priority << 13 | TAG
    assert came.packet == packet(46 << 2)


def test_without_a_priority_a_tag_stays_as_it_is(given: Program) -> None:
    given.put(SLOT, flow_id=FLOW, dscp=46, flags=abi.PolicyFlag.MARK, priority=7)
    assert run(given.load("test_tagged"), packet()).verdict == 3 << 13 | TAG


@pytest.mark.parametrize(("shaper", "expected"), [("qos_fq", 6), ("qos_police", 6), ("qos_htb", 9)])
def test_the_queue_learns_the_priority_unless_it_is_htb(given: Program, shaper: str, expected: int) -> None:
    given.put(SLOT, flow_id=FLOW, flags=abi.PolicyFlag.PRIORITY, priority=6)
    came = run(given.fd[shaper], packet(), skb=SkBuff(priority=9))
    assert (came.verdict, came.priority, came.packet) == (PASS, expected, packet())


def test_a_tag_in_the_data_is_left_alone(given: Program) -> None:
    given.put(SLOT, flow_id=FLOW, dscp=46, flags=abi.PolicyFlag.MARK | abi.PolicyFlag.PRIORITY, priority=6)

    def tagged(dsfield: int) -> bytes:
        network = IP(src="192.0.2.1", dst="198.51.100.7", tos=dsfield)
        return bytes(raw(Ether() / Dot1Q(vlan=5, prio=3) / network / UDP() / Raw(b"policy")))

    assert run(given.fd["qos_fq"], tagged(0)).packet == tagged(46 << 2)


@pytest.mark.parametrize("shaper", ["qos_fq", "qos_htb", "qos_police"])
def test_each_shaper_comes_back_to_its_own_program(program: Program, ruleset: Ruleset, shaper: str) -> None:
    ruleset.install([rule()], abi.RulesetFlag(0))
    before = program.counter(abi.Counter.POLICY_DECISIONS)
    came = run(program.fd[shaper], packet(), repeat=50)
    assert (came.verdict, came.packet) == (PASS, packet(34 << 2))
    assert program.counter(abi.Counter.POLICY_DECISIONS) == before + 1


@pytest.mark.parametrize("place", [0, 1, 15, 16, 17, 2000, abi.RULES - 1])
def test_every_place_in_the_ruleset_is_reached(program: Program, ruleset: Ruleset, place: int) -> None:
    never = rule(remote_port_first=1, remote_port_last=1)
    ruleset.install([*[never] * place, rule()], abi.RulesetFlag.PEERS)
    assert run(program.fd["qos_fq"], packet()).packet == packet(34 << 2)
    ruleset.install([never] * (place + 1), abi.RulesetFlag.PEERS)
    none = program.counter(abi.Counter.POLICY_NONE)
    assert run(program.fd["qos_fq"], packet()).packet == packet()
    assert program.counter(abi.Counter.POLICY_NONE) == none + 1


def test_an_empty_ruleset_decides_nothing(program: Program, ruleset: Ruleset) -> None:
    ruleset.install([], abi.RulesetFlag(0))
    before = program.counters.read()
    assert run(program.fd["qos_fq"], packet()).packet == packet()
    assert program.counters.read() == before


def test_a_flow_that_has_ended_is_decided_anew_and_passes_untouched(program: Program, ruleset: Ruleset) -> None:
    ruleset.install([rule(flow_id=FLOW + (1 << 20))], abi.RulesetFlag(0))
    stale = program.counter(abi.Counter.STALE_FLOW)
    assert run(program.fd["qos_fq"], packet()).packet == packet()
    assert program.counter(abi.Counter.STALE_FLOW) == stale + 1


@pytest.mark.parametrize(
    ("fields", "matches"),
    [
        ({"protocol": 17, "protocol_mask": 255}, True),
        ({"protocol": 6, "protocol_mask": 255}, False),
        ({"local_port_first": 4000, "local_port_last": 4000}, True),
        ({"local_port_first": 4001, "local_port_last": 65535}, False),
        ({"remote_port_first": 5000, "remote_port_last": 5004}, True),
        ({"remote_port_first": 1, "remote_port_last": 5003}, False),
        ({"family": 4, "family_mask": 255, "traffic": abi.Traffic.LOCAL, "traffic_mask": 255}, True),
        ({"family": 6, "family_mask": 255}, False),
        ({"traffic": abi.Traffic.FORWARDED, "traffic_mask": 255}, False),
        ({"dscp": 12, "dscp_mask": 255}, True),
        ({"dscp": 13, "dscp_mask": 255}, False),
    ],
)
def test_facts_are_read_from_the_packet(
    program: Program, ruleset: Ruleset, fields: dict[str, int], matches: bool
) -> None:
    ruleset.install([rule(**fields)], abi.RulesetFlag.PEERS | abi.RulesetFlag.DSCP)
    assert run(program.fd["qos_fq"], packet(12 << 2)).packet == packet((34 if matches else 12) << 2)


@pytest.mark.parametrize(
    ("prefix", "bits", "matches"),
    [("2001:db8::", 32, True), ("2001:db8:0:0:8000::", 65, True), ("2001:db8::", 65, False), ("::", 0, True)],
)
def test_addresses_of_ipv6_are_compared_to_the_bit(
    program: Program, ruleset: Ruleset, prefix: str, bits: int, matches: bool
) -> None:
    made = rule(family=6, family_mask=255)
    mask = ((1 << 128) - 1 ^ ((1 << 128 - bits) - 1)).to_bytes(16, "big")
    ctypes.memmove(made.remote_be, ip_address(prefix).packed, 16)
    ctypes.memmove(made.remote_mask_be, mask, 16)
    ruleset.install([made], abi.RulesetFlag.PEERS)
    network = IPv6(src="2001:db8::1", dst="2001:db8:0:0:8000::9")

    def sent(traffic_class: int) -> bytes:
        network.tc = traffic_class
        return bytes(raw(Ether() / network / TCP(sport=4000, dport=443) / Raw(b"policy")))

    assert run(program.fd["qos_fq"], sent(0)).packet == sent(34 << 2 if matches else 0)


def test_generations_go_on_and_never_become_0(program: Program, ruleset: Ruleset) -> None:
    first = ruleset.install([rule()], abi.RulesetFlag(0))
    assert ruleset.renew() == first + 1
    assert ruleset.install([rule()], abi.RulesetFlag(0)) == first + 2
    with closing(Ruleset(program.pins)) as another:
        assert another.generation == first + 2
        assert another.pools_in_use() == set()
        another.install([rule(bucket=abi.Bucket.HOST, pool=9), rule(pool=8)], abi.RulesetFlag(0))
        assert another.pools_in_use() == {9}
