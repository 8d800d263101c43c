"""Rulesets that change while packets pass, contracts of rules, buckets of each socket and host, forwarded packets.

Judged by what the peer captures, as in test_wire_policy.py.
"""

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path

import numpy as np
import pytest

from demo.lab import Lab, Namespace, end
from demo.packets import TCP, UDP, Packets
from harness.guest import needs_speed
from harness.policed import EXCESS, Policed, Stage, policy_of
from harness.wire import port_of, read_to_end
from qos2.core.bucket import bucket_depth_bytes
from qos2.core.ports import InstalledRule
from qos2.core.rule import Act, Bucket, Match, PortRange, Rule, Traffic
from qos2.datapath import abi
from qos2.datapath.flowmaps import contract
from qos2.errors import DatapathError
from qos2.model import Bandwidth, Dscp, FlowId, Shaping, Transport

pytestmark = pytest.mark.datapath

V4, V4_SECOND, V6 = "198.51.100.2", "198.51.100.3", "2001:db8:2::2"
MARK, OTHER = Act(dscp=Dscp(34)), Act(dscp=Dscp(10))
#: Sends at once what is over its rate, with EXCESS: nothing is lost or late, each packet tells what became of it.
LIMITED = Act(dscp=Dscp(34), rate=Bandwidth(8_000_000), shaping=Shaping.USE_NON_CONFORMANT_MARKINGS)

#: So many datagrams of 1,000 bytes a full bucket of that rate lets pass at once.
FULL = contract(LIMITED.rate)[1] * LIMITED.rate // 8_000_000_000 // 1028

#: FD PACKETS_PER_SECOND: numbered datagrams until its input ends; then says how many.
_NUMBERED = """
import os, select, socket, struct, sys, time
sock = socket.socket(fileno=int(sys.argv[1]))
rate = int(sys.argv[2])
number, begin = 0, time.monotonic()
while not select.select([0], [], [], 0.0005)[0]:
    due = int((time.monotonic() - begin) * rate)
    while number < due:
        sock.send(struct.pack("!Q", number))
        number += 1
os.write(1, b"%d" % number)
"""


@pytest.fixture
def router(forwarding: Policed) -> Iterator[Stage]:
    with Stage(forwarding) as stage:
        yield stage


@contextlib.contextmanager
def numbered(app: Namespace, sock: socket.socket, rate: int) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(
        [sys.executable, "-c", _NUMBERED, str(sock.fileno()), str(rate)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[sock.fileno()],
    )
    try:
        yield process
    finally:
        end(process)


def finish(process: "subprocess.Popen[bytes]") -> int:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    sent = int(process.stdout.read())
    process.wait()
    return sent


def numbers_of(packets: Packets) -> list[int]:
    return [struct.unpack("!Q", packets.frame(index)[-8:])[0] for index in range(len(packets))]


def dscps(packets: Packets, port: int, protocol: int = UDP) -> list[int]:
    return [int(dscp) for dscp in packets.select(protocol=protocol, dport=port).dscp]


def connected(stage: Stage, host: str, port: int) -> socket.socket:
    sock = stage.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, port))
    return sock


@needs_speed
def test_no_packet_is_unmarked_or_over_its_contract_while_rulesets_change(stage: Stage) -> None:
    """50,000 packets/s, 40 rulesets in 2 s: the same rule among others, whose number and place change."""
    limited = Rule("limited", Match(protocols=(Transport.UDP,)), LIMITED)
    others = [Rule(f"other {each}", Match(remote_ports=(PortRange(each, each),)), OTHER) for each in range(1, 300)]
    stage.policed.install(limited)
    recording, receiver = stage.record(), stage.receiver()
    sock = connected(stage, V4, receiver.port)
    with numbered(stage.lab.app, sock, 50_000) as process:
        for turn in range(40):
            time.sleep(0.05)
            stage.policed.install(*others[: turn * 7], limited)
        sent = finish(process)
    packets = recording.stop().select(protocol=UDP, dport=receiver.port)
    assert numbers_of(packets) == list(range(sent))
    assert sent > 20_000  # a busy machine sends less than it was asked for
    assert set(packets.dscps()) == {34, EXCESS}
    within = packets.where(packets.dscp == 34)
    seconds = (packets.time_ns[-1] - packets.time_ns[0]) / 1e9
    stalled_s = np.diff(within.time_ns).max() / 1e9  # what a stall of the machine held back is stamped late
    most = LIMITED.rate / 8 * (seconds + max(0.004, stalled_s)) + bucket_depth_bytes(LIMITED.rate)
    assert within.ip_bytes.sum() <= most
    assert stage.policed.packets("limited") == sent


def test_each_change_takes_effect_from_one_packet_to_the_next(stage: Stage) -> None:
    """Two rulesets with one rule each, in turn: every packet has the one mark or the other."""
    one, other = Rule("one", Match(), MARK), Rule("other", Match(users=(0,)), OTHER)
    stage.policed.install(one)
    recording, receiver = stage.record(), stage.receiver()
    stage.policed.install(other)  # so that both flows are there
    stage.policed.install(one)
    sock = connected(stage, V4, receiver.port)
    with numbered(stage.lab.app, sock, 20_000) as process:
        for turn in range(30):
            time.sleep(0.02)
            stage.policed.install(other if turn % 2 else one)
        sent = finish(process)
    packets = recording.stop().select(protocol=UDP, dport=receiver.port)
    assert numbers_of(packets) == list(range(sent))
    assert set(packets.dscps()) == {34, 10}


def test_1000_rules_are_in_force_within_200_ms(stage: Stage) -> None:
    rules = [Rule(f"rule {each}", Match(remote_ports=(PortRange(each, each),)), MARK) for each in range(1, 1001)]
    stage.policed.install(*rules)  # their flows begin
    installed = [InstalledRule(rule, stage.policed.flows[rule.name]) for rule in rules]
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        stage.policed.datapath.install(installed)
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 0.2  # 0.065 s measured, most of it waiting for packets that are under way


def test_a_shared_contract_holds_back_all_that_the_rule_matches(stage: Stage) -> None:
    """Two sockets together: what is over the rate of both is marked as excess."""
    stage.policed.install(Rule("shared", Match(), LIMITED))
    recording, receiver = stage.record(), stage.receiver()
    socks = [connected(stage, V4, receiver.port) for _ in range(2)]
    packet = bytes(1000)
    begin = time.monotonic()
    for _ in range(2 * FULL):
        for sock in socks:
            sock.send(packet)
    seconds = time.monotonic() - begin
    found = recording.stop().select(protocol=UDP, dport=receiver.port).dscps()
    assert sum(found.values()) == 4 * FULL
    assert FULL <= found[34] <= FULL + 1 + (seconds + 0.004) * LIMITED.rate / 8 / 1028


def limited_by(bucket: Bucket, match: Match = Match()) -> Rule:  # noqa: B008  # a frozen value
    return Rule(str(bucket), match, Act(LIMITED.traffic_type, LIMITED.dscp, LIMITED.rate, LIMITED.shaping, bucket))


def flood(sock: socket.socket, host: str, port: int) -> None:
    """Twice what a bucket holds, at once."""
    for _ in range(2 * FULL):
        sock.sendto(bytes(1000), (host, port))


@pytest.mark.parametrize("bucket", [Bucket.SOCKET, Bucket.HOST])
def test_each_socket_or_host_has_a_contract_of_its_own(stage: Stage, bucket: Bucket) -> None:
    rule = limited_by(bucket)
    stage.policed.install(rule, pool=8)
    recording, receiver = stage.record(), stage.receiver()
    first, second = (stage.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    flood(first, V4, receiver.port)
    flood(second if bucket is Bucket.SOCKET else first, V4 if bucket is Bucket.SOCKET else V4_SECOND, receiver.port)
    flow = stage.policed.flows[rule.name]
    assert stage.policed.datapath.drawn()[flow] == 2
    # The same ones again, by another socket or to another host: no further flow is drawn.
    flood(first if bucket is Bucket.SOCKET else second, V4, receiver.port)
    assert stage.policed.datapath.drawn()[flow] == 2
    assert stage.policed.packets(rule.name) == 0  # the shared flow is for an empty pool
    packets = recording.stop().select(protocol=UDP, dport=receiver.port)
    block = len(packets) // 3
    within = [int((packets.dscp[at : at + block] == 34).sum()) for at in (0, block, 2 * block)]
    assert within[0] >= FULL
    assert within[1] >= FULL  # another bucket, which was full
    assert set(packets.dscps()) == {34, EXCESS}


def test_a_socket_keeps_its_bucket_over_a_new_ruleset(stage: Stage) -> None:
    rule = limited_by(Bucket.SOCKET)
    stage.policed.install(rule, pool=8)
    receiver = stage.receiver()
    socks = [connected(stage, V4, receiver.port) for _ in range(3)]
    for _ in range(4):
        for sock in socks:
            sock.send(b"policy")
        stage.policed.install(rule, Rule("further", Match(), MARK))
    assert stage.policed.datapath.drawn()[stage.policed.flows[rule.name]] == 3


def test_an_empty_pool_gives_the_shared_flow_and_is_counted_until_it_is_refilled(stage: Stage) -> None:
    rule = limited_by(Bucket.SOCKET)
    stage.policed.install(rule, pool=1)
    datapath, flow = stage.policed.datapath, stage.policed.flows[rule.name]
    datapath.idle()
    before = stage.policed.counter(abi.Counter.POOL_EMPTY)
    receiver = stage.receiver()
    socks = [connected(stage, V4, receiver.port) for _ in range(3)]
    for sock in socks:
        sock.send(b"policy")
    assert stage.policed.counter(abi.Counter.POOL_EMPTY) == before + 2
    assert stage.policed.packets(rule.name) == 2
    assert datapath.drawn() == {flow: 1}
    datapath.refill(flow, stage.policed.prepare(rule, 4))
    datapath.idle()
    for sock in socks:
        sock.send(b"policy")
    assert datapath.drawn() == {flow: 3}
    assert stage.policed.packets(rule.name) == 2
    receiver.expect(6)


def test_a_pool_takes_1024_flows_and_no_more(stage: Stage) -> None:
    rule = limited_by(Bucket.HOST)
    stage.policed.install(rule)
    flow = stage.policed.flows[rule.name]
    stage.policed.datapath.refill(flow, [FlowId(1)] * abi.POOL_FLOWS)
    with pytest.raises(DatapathError, match="1,024"):
        stage.policed.datapath.refill(flow, [FlowId(1)])


def test_a_drawn_flow_that_has_ended_is_replaced_by_another(stage: Stage) -> None:
    rule = limited_by(Bucket.SOCKET)
    flow, prepared = stage.policed.new_flow(), stage.policed.prepare(rule, 2)
    stage.policed.flows[rule.name] = flow
    stage.policed.datapath.put(policy_of(rule, flow), fresh=True)
    stage.policed.datapath.install([InstalledRule(rule, flow, prepared)])
    recording, receiver = stage.record(), stage.receiver()
    sock = connected(stage, V4, receiver.port)
    sock.send(b"first")
    stage.policed.datapath.end(prepared[0])
    sock.send(b"second")
    receiver.expect(2)
    assert dscps(recording.stop(), receiver.port) == [34, 34]
    assert stage.policed.datapath.drawn()[flow] == 2
    assert stage.policed.datapath.stats(prepared[1]).packets == 1


def kill(pid: int) -> None:
    """End it as a crash would, if it is there."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_rules_outlive_a_killed_daemon_and_the_next_one_installs_its_own(bpf_fs: Path) -> None:
    with Lab("qos2-test") as lab, contextlib.ExitStack() as undo:
        policed = Policed(lab, lab.app, bpf_fs)
        forerunner = policed.forerun(limited_by(Bucket.SOCKET), pool=4)
        undo.callback(kill, forerunner)
        stage = Stage(policed)
        undo.callback(stage.close)
        recording, receiver = stage.record(), stage.receiver()
        sock = connected(stage, V4, receiver.port)
        sock.send(b"before")
        kill(forerunner)
        sock.send(b"in between")
        connected(stage, V4, receiver.port).send(b"decided while nobody is there")
        undo.enter_context(policed)
        sock.send(b"found by the next one")
        policed.install(Rule("next", Match(), OTHER))
        sock.send(b"next")
        receiver.expect(5)
        assert dscps(recording.stop(), receiver.port) == [34, 34, 34, 34, 10]


# Forwarded


@pytest.mark.parametrize("host", [V4, V6])
def test_forwarded_packets_meet_rules_that_say_so_by_their_5_tuple(router: Stage, host: str) -> None:
    recording, wanted, other = router.record(), router.receiver(), router.receiver()
    local = ip_network("192.0.2.0/24") if host == V4 else ip_network("2001:db8:1::/64")
    ports = (PortRange(wanted.port, wanted.port),)
    router.policed.install(
        Rule("local", Match(remote_ports=ports), OTHER),
        Rule("forwarded", Match(local=(local,), remote_ports=ports, traffic=Traffic.FORWARDED), MARK),
    )
    socks = {port: connected(router, host, port) for port in (wanted.port, other.port)}
    for _ in range(3):
        for sock in socks.values():
            sock.send(b"policy")
    wanted.expect(3)
    other.expect(3)
    packets = recording.stop()
    assert dscps(packets, wanted.port) == [34] * 3
    assert dscps(packets, other.port) == [0] * 3


def test_a_forwarded_connection_is_decided_once(router: Stage) -> None:
    receiver = router.receiver()
    router.policed.install(Rule("any", Match(traffic=Traffic.ANY), MARK))
    sock = connected(router, V4, receiver.port)
    sock.send(b"first")
    receiver.expect(1)
    decided = router.policed.counter(abi.Counter.POLICY_DECISIONS)
    for _ in range(1000):
        sock.send(b"policy")
    receiver.expect(1000)
    # Not each of them: but the router's own packets, as those of neighbour discovery, may come in between.
    assert router.policed.counter(abi.Counter.POLICY_DECISIONS) <= decided + 10


def test_forwarded_packets_pass_untouched_where_no_rule_is_about_them(router: Stage) -> None:
    recording, receiver = router.record(), router.receiver()
    router.policed.install(Rule("local", Match(), MARK))
    connected(router, V4, receiver.port).send(b"policy")
    receiver.expect(1)
    assert dscps(recording.stop(), receiver.port) == [0]


def test_a_forwarded_connection_of_tcp_is_marked_and_counted(router: Stage) -> None:
    recording = router.record()
    router.policed.install(Rule("any", Match(protocols=(Transport.TCP,), traffic=Traffic.ANY), MARK))
    listener = router.socket(socket.AF_INET, socket.SOCK_STREAM, "peer")
    listener.bind(("", 0))
    listener.listen()
    sock = router.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.connect((V4, port_of(listener)))
    sock.sendall(bytes(200_000))
    sock.close()
    accepted = listener.accept()[0]
    with accepted:
        assert read_to_end(accepted) == 200_000
    assert set(dscps(recording.stop(), port_of(listener), TCP)) == {34}
    assert router.policed.datapath.stats(router.policed.flows["any"]).bytes > 200_000


def test_forwarded_fragments_and_hosts(router: Stage) -> None:
    recording, receiver = router.record(), router.receiver()
    rule = limited_by(
        Bucket.HOST, Match(remote_ports=(PortRange(receiver.port, receiver.port),), traffic=Traffic.FORWARDED)
    )
    router.policed.install(rule, pool=4)
    sock = router.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.sendto(bytes(4000), (V4, receiver.port))
    sock.sendto(bytes(4000), (V4_SECOND, receiver.port))
    receiver.expect(2)
    assert [int(dscp) for dscp in recording.stop().select(protocol=UDP).dscp] == [34] * 6
    assert router.policed.datapath.drawn() == {router.policed.flows[rule.name]: 2}
