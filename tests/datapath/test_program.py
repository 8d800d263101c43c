"""The datapath's programs on generated packets, judged by the whole packet that comes out.

The expectation is built by scapy from the same fields, checksums included, so that nothing of ours
judges itself. Sockets, devices and rates on the wire are the matter of the test_wire_* files.
"""

import contextlib
import ctypes
import itertools
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from scapy.all import (
    AH,
    ARP,
    ICMP,
    IP,
    SCTP,
    TCP,
    UDP,
    Dot1AD,
    Dot1Q,
    Ether,
    ICMPv6EchoRequest,
    IPOption,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    Raw,
    raw,
)

from harness.program import Program, SkBuff, run
from qos2.datapath import abi, binding
from qos2.datapath.flowmaps import TICK_NS, JiffyClock, contract
from qos2.model import Action, Destination, FlowId

pytestmark = pytest.mark.datapath

PASS, DROP = -1, 2  # TC_ACT_UNSPEC, TC_ACT_SHOT
FLOW = FlowId(3 << 20 | 5)
SLOT = 5
V4, V6 = "198.51.100.7", "2001:db8::7"
SECOND = 1_000_000_000


@pytest.fixture(scope="module")
def program(bpf_fs: Path) -> Iterator[Program]:
    loaded = Program(bpf_fs / "program", 1024)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def bare(bpf_fs: Path) -> Iterator[Program]:
    """The programs of devices without a link header."""
    loaded = Program(bpf_fs / "bare", 1024, link="none")
    yield loaded
    loaded.close()


@pytest.fixture(autouse=True)
def _bound(program: Program) -> None:
    """Each test begins with a socket whose every packet belongs to FLOW."""
    program.bind(abi.SocketFlow(flow_id=FLOW))
    program.put(SLOT)


@dataclass(frozen=True)
class Shape:
    """One packet in all that the datapath could trip over."""

    name: str
    family: int
    tags: tuple[Any, ...]
    network: Any
    payload: Any

    def packet(self, dsfield: int, *, link: bool = True) -> bytes:
        network = self.network.copy()
        if self.family == 4:
            network.tos = dsfield
        else:
            network.tc = dsfield
        packet = network / self.payload
        for tag in reversed(self.tags):
            packet = tag / packet
        if not link:
            return bytes(raw(network / self.payload))
        return bytes(raw(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet))


_TAGS = {"plain": (), "vlan": (Dot1Q(vlan=5),), "qinq": (Dot1AD(vlan=9), Dot1Q(vlan=5))}
_BODY = b"quality of service" * 4


def _transports(family: int) -> dict[str, Any]:
    return {
        "udp": UDP(sport=4000, dport=5004) / Raw(_BODY),
        "tcp": TCP(sport=4000, dport=443, flags="PA", seq=7) / Raw(_BODY),
        "syn": TCP(sport=4000, dport=443, flags="S", options=[("MSS", 1460), ("SAckOK", b"")]),
        "sctp": SCTP(sport=4000, dport=9) / Raw(_BODY),
        "icmp": (ICMP() if family == 4 else ICMPv6EchoRequest()) / Raw(_BODY),
    }


def _v4() -> Iterator[Shape]:
    options = {
        "none": [],
        "router-alert": [IPOption(b"\x94\x04\x00\x00")],
        "record-route": [IPOption(b"\x07\x27\x04" + b"\0" * 36), IPOption(b"\0")],
        "nops": [IPOption(b"\x01")] * 8,
    }
    fragments: dict[str, dict[str, Any]] = {
        "whole": {},
        "first": {"flags": "MF", "id": 77},
        "later": {"frag": 185, "id": 77},
        "df": {"flags": "DF"},
    }
    for (tag, tags), (option, chosen), (part, fields), (kind, payload) in itertools.product(
        _TAGS.items(), options.items(), fragments.items(), _transports(4).items()
    ):
        network = IP(src="192.0.2.1", dst=V4, options=chosen, ttl=63, **fields)
        yield Shape(f"v4-{tag}-{option}-{part}-{kind}", 4, tags, network, payload)


def _v6() -> Iterator[Shape]:
    chains: dict[str, list[Any]] = {
        "none": [],
        "hop": [IPv6ExtHdrHopByHop()],
        "dst": [IPv6ExtHdrDestOpt()],
        "routing": [IPv6ExtHdrRouting(addresses=["2001:db8::9"], segleft=0)],
        "first-fragment": [IPv6ExtHdrFragment(m=1, id=5)],
        "later-fragment": [IPv6ExtHdrFragment(offset=181, id=5)],
        "ah": [AH(spi=1, seq=2, icv=b"\0" * 12, payloadlen=4)],
        "long": [IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrRouting(), IPv6ExtHdrDestOpt()],
    }
    for (tag, tags), (chain, headers), (kind, payload) in itertools.product(
        _TAGS.items(), chains.items(), _transports(6).items()
    ):
        network: Any = IPv6(src="2001:db8::1", dst=V6, fl=0xBEEF5, hlim=63)
        rest: Any = payload
        for header in reversed(headers):
            rest = header.copy() / rest
        yield Shape(f"v6-{tag}-{chain}-{kind}", 6, tags, network, rest)


SHAPES = [*_v4(), *_v6()]


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_marks_every_shape_and_changes_nothing_else(program: Program, shape: Shape) -> None:
    for ecn, (before, wanted) in enumerate([(0, 46), (46, 8), (63, 0), (10, 63)]):
        program.put(SLOT, flow_id=FLOW, dscp=wanted, flags=abi.PolicyFlag.MARK)
        came = run(program.fd["qos_htb"], shape.packet(before << 2 | ecn))
        assert (came.verdict, came.packet) == (PASS, shape.packet(wanted << 2 | ecn))


@pytest.mark.parametrize("shape", [s for s in SHAPES if not s.tags], ids=lambda shape: shape.name)
def test_marks_packets_of_devices_without_a_link_header(bare: Program, shape: Shape) -> None:
    bare.bind(abi.SocketFlow(flow_id=FLOW))
    bare.put(SLOT, flow_id=FLOW, dscp=34, flags=abi.PolicyFlag.MARK)
    came = run(bare.fd["qos_htb"], shape.packet(1, link=False))
    assert (came.verdict, came.packet) == (PASS, shape.packet(34 << 2 | 1, link=False))


def test_the_corpus_has_more_than_300_shapes() -> None:
    assert len({shape.packet(0) for shape in SHAPES}) > 300


_WHOLE_UDP = next(shape for shape in SHAPES if shape.name == "v4-plain-none-whole-udp")
_TAGGED_UDP = next(shape for shape in SHAPES if shape.name == "v4-vlan-none-whole-udp")
_FOREIGN = {
    "arp": bytes(raw(Ether() / ARP(pdst=V4))),
    "lldp": bytes(raw(Ether(type=0x88CC) / Raw(b"\x02\x07" + b"\0" * 40))),
    "mpls": bytes(raw(Ether(type=0x8847) / Raw(b"\0\0\x11\x40E\0" + b"\0" * 40))),
    "three-tags": bytes(raw(Ether() / Dot1AD() / Dot1Q() / Dot1Q() / IP(dst=V4) / UDP())),
    "version-5": bytes(raw(Ether(type=0x0800) / Raw(b"\x55" + b"\0" * 40))),
    "zeros": bytes(60),
}


@pytest.mark.parametrize("packet", _FOREIGN.values(), ids=_FOREIGN.keys())
def test_what_is_no_ip_passes_untouched_and_is_counted(program: Program, packet: bytes) -> None:
    program.put(SLOT, flow_id=FLOW, dscp=46, flags=abi.PolicyFlag.MARK)
    before = program.counter(abi.Counter.NOT_IP)
    came = run(program.fd["qos_htb"], packet)
    assert (came.verdict, came.packet) == (PASS, packet)
    assert program.counter(abi.Counter.NOT_IP) == before + 1


@pytest.mark.parametrize("length", range(15, 38))
def test_truncated_packets_pass_untouched_and_are_counted(program: Program, length: int) -> None:
    program.put(SLOT, flow_id=FLOW, dscp=46, flags=abi.PolicyFlag.MARK)
    # Under a VLAN tag: the kernel itself refuses to test-run a bare IPv4 packet that is cut.
    packet = _TAGGED_UDP.packet(0)[:length]
    before = program.counter(abi.Counter.TRUNCATED)
    came = run(program.fd["qos_htb"], packet)
    assert (came.verdict, came.packet) == (PASS, packet)
    assert program.counter(abi.Counter.TRUNCATED) == before + 1


def test_a_flow_that_has_ended_leaves_packets_untouched(program: Program) -> None:
    program.put(SLOT, flow_id=FLOW + (1 << 20), dscp=46, flags=abi.PolicyFlag.MARK)
    before = program.counter(abi.Counter.STALE_FLOW)
    assert run(program.fd["qos_htb"], _WHOLE_UDP.packet(0)).packet == _WHOLE_UDP.packet(0)
    assert program.counter(abi.Counter.STALE_FLOW) == before + 1
    assert int(program.hot.view["packets"][SLOT]) == 0


def test_an_unmarking_policy_counts_and_leaves_the_dscp(program: Program) -> None:
    program.put(SLOT, flow_id=FLOW)
    packet = _WHOLE_UDP.packet(0x5A)
    assert run(program.fd["qos_htb"], packet).packet == packet
    assert int(program.hot.view["bytes"][SLOT]) == len(packet) - 14


def test_a_preset_dscp_goes_back_on_packets_of_an_ended_flow(program: Program) -> None:
    program.put(SLOT)
    program.bind(abi.SocketFlow(flow_id=FLOW, flags=abi.SocketFlag.PRESET, preset_dscp=46, original_dscp=10))
    for ecn in range(4):
        assert run(program.fd["qos_htb"], _WHOLE_UDP.packet(46 << 2 | ecn)).packet == _WHOLE_UDP.packet(10 << 2 | ecn)
    assert run(program.fd["qos_htb"], _WHOLE_UDP.packet(12 << 2)).packet == _WHOLE_UDP.packet(12 << 2)


@pytest.mark.parametrize(("segments", "wire_len"), [(0, 114), (3, 3 * 1514), (43, 43 * 1514 - 7)])
def test_counts_bytes_at_ip_level_with_a_header_per_segment(program: Program, segments: int, wire_len: int) -> None:
    program.put(SLOT, flow_id=FLOW)
    packet = _WHOLE_UDP.packet(0)
    skb = SkBuff(wire_len=wire_len, gso_segs=segments, gso_size=1448 if segments else 0)
    run(program.fd["qos_htb"], packet, skb=skb)
    assert int(program.hot.view["packets"][SLOT]) == max(1, segments)
    assert int(program.hot.view["bytes"][SLOT]) == wire_len - 14 * max(1, segments)


def test_the_jiffy_of_the_last_packet_is_its_time_to_two_ticks(program: Program) -> None:
    program.put(SLOT, flow_id=FLOW)
    with contextlib.closing(JiffyClock(program.pins)) as clock:
        for _ in range(3):
            sent_ns = time.monotonic_ns()
            run(program.fd["qos_htb"], _WHOLE_UDP.packet(0))
            came_ns = time.monotonic_ns()
            last_ns = clock.time_ns(int(program.hot.view["last_jiffies"][SLOT]))
            # An emulated processor serves its timer late: the tick's own time came 13 us over one tick there.
            assert sent_ns - 3 * TICK_NS <= last_ns <= came_ns + 2 * TICK_NS
            time.sleep(0.05)


# Rate contracts


def _limit(program: Program, action: Action, bandwidth: int) -> int:
    """A contract on FLOW; how many bytes at IP level its bucket holds."""
    ns_per_byte_20, depth_ns = contract(bandwidth)
    program.put(
        SLOT,
        flow_id=FLOW,
        dscp=46,
        flags=abi.PolicyFlag.MARK,
        action=action,
        ns_per_byte_20=ns_per_byte_20,
        depth_ns=depth_ns,
        htb_minor=77,
    )
    return depth_ns * bandwidth // 8_000_000_000


def test_remarking_sends_the_excess_at_once_with_the_other_dscp(program: Program) -> None:
    depth = _limit(program, Action.REMARK, 80_000)
    packet = _WHOLE_UDP.packet(0)
    conformant = depth // (len(packet) - 14)
    came = [run(program.fd["qos_htb"], packet) for _ in range(conformant + 20)]
    assert all(each.verdict == PASS for each in came)
    assert [each.packet for each in came[:conformant]] == [_WHOLE_UDP.packet(46 << 2)] * conformant
    assert came[-1].packet == _WHOLE_UDP.packet(0)
    remarked = sum(each.packet == _WHOLE_UDP.packet(0) for each in came)
    assert int(program.hot.view["non_conformant_packets"][SLOT]) == remarked
    assert int(program.hot.view["non_conformant_bytes"][SLOT]) == remarked * (len(packet) - 14)


def test_policing_drops_the_excess_and_counts_it_by_reason(program: Program) -> None:
    depth = _limit(program, Action.DELAY, 80_000)
    packet = _WHOLE_UDP.packet(0)
    conformant = depth // (len(packet) - 14)
    verdicts = [run(program.fd["qos_police"], packet).verdict for _ in range(conformant + 20)]
    assert verdicts[:conformant] == [PASS] * conformant
    assert verdicts[-1] == DROP
    dropped = verdicts.count(DROP)
    assert list(program.cold.view["dropped_packets"][SLOT]) == [0, dropped]
    assert list(program.cold.view["dropped_bytes"][SLOT]) == [0, dropped * (len(packet) - 14)]
    assert int(program.hot.view["packets"][SLOT]) == len(verdicts) - dropped


def test_htb_gets_the_flows_class_and_drops_nothing(program: Program) -> None:
    _limit(program, Action.DELAY, 8_000)
    came = [run(program.fd["qos_htb"], _WHOLE_UDP.packet(0)) for _ in range(200)]
    assert {each.priority for each in came} == {abi.HTB_MAJOR << 16 | 77}
    assert {each.verdict for each in came} == {PASS}
    assert int(program.cold.view["delayed_packets"][SLOT]) > 150


def test_fq_gets_departures_one_cost_apart_until_the_horizon(program: Program) -> None:
    _limit(program, Action.DELAY, 80_000)
    packet = _WHOLE_UDP.packet(0)
    cost_ns = (len(packet) - 14) * 8 * SECOND // 80_000
    came = [run(program.fd["qos_fq"], packet) for _ in range(1200)]
    departures = [each.tstamp for each in came if each.verdict == PASS and each.tstamp]
    steps = {later - earlier for earlier, later in itertools.pairwise(departures)}
    assert max(steps) <= cost_ns + 1
    assert min(steps) >= cost_ns - 1
    assert came[-1].verdict == DROP
    assert int(program.cold.view["dropped_packets"][SLOT][abi.Drop.HORIZON]) == [e.verdict for e in came].count(DROP)


def test_a_large_skb_passes_a_small_bucket_on_debt(program: Program) -> None:
    _limit(program, Action.REMARK, 1_000_000)
    packet = _WHOLE_UDP.packet(0)
    large = SkBuff(wire_len=43 * 1514, gso_segs=43, gso_size=1448)
    assert run(program.fd["qos_htb"], packet, skb=large).packet == _WHOLE_UDP.packet(46 << 2)
    assert run(program.fd["qos_htb"], packet).packet == _WHOLE_UDP.packet(0)


# Destinations


def _bind(program: Program, flows: dict[Destination, FlowId], cookie: int = 0) -> None:
    value, further = binding.plan(flows, None)
    program.bind(value)
    for destination, flow in further.items():
        program.destinations.put(binding.destination_key(cookie, destination), ctypes.c_uint32(flow))


@pytest.mark.parametrize(
    ("destination", "belongs"),
    [
        (Destination.parse(V4, 5004), True),
        (Destination.parse(f"::ffff:{V4}", 5004), True),
        (Destination.parse(V4, 5005), False),
        (Destination.parse("198.51.100.8", 5004), False),
        (Destination.parse(V6, 5004), False),
    ],
)
def test_only_packets_to_the_destination_belong_to_the_flow(
    program: Program, destination: Destination, belongs: bool
) -> None:
    program.put(SLOT, flow_id=FLOW, dscp=46, flags=abi.PolicyFlag.MARK)
    _bind(program, {destination: FLOW})
    expected = _WHOLE_UDP.packet(46 << 2) if belongs else _WHOLE_UDP.packet(0)
    assert run(program.fd["qos_htb"], _WHOLE_UDP.packet(0)).packet == expected


def _next_cookie() -> int:
    """The cookie that the next socket gets on this CPU (sock_gen_cookie() counts per CPU)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little") + 1


@pytest.mark.parametrize(
    "further", [Destination.parse(V4, 5004), Destination.parse(V4, 0), Destination(None, 5004)], ids=str
)
def test_further_destinations_and_wildcards_are_found_in_the_map(program: Program, further: Destination) -> None:
    other = FlowId(1 << 20 | 6)
    program.put(SLOT, flow_id=FLOW, dscp=46, flags=abi.PolicyFlag.MARK)
    program.put(6, flow_id=other, dscp=10, flags=abi.PolicyFlag.MARK)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    try:
        for _ in range(50):  # another process may take the cookie first
            _bind(program, {Destination.parse("203.0.113.1", 1): FLOW, further: other}, _next_cookie())
            came = run(program.fd["qos_htb"], _WHOLE_UDP.packet(0)).packet
            if came == _WHOLE_UDP.packet(10 << 2):
                return
            assert came == _WHOLE_UDP.packet(0)
        pytest.fail(f"no packet was found to belong to {further}")
    finally:
        os.sched_setaffinity(0, cpus)
