"""Rules in the kernel, judged by what the peer captures: whom they match, once and for each packet.

The datapath is told of rules as the service tells it (harness.policed); no daemon runs.
"""

import socket
from ipaddress import ip_network
from pathlib import Path

import pytest

from demo.packets import TCP, UDP, Packets
from harness.policed import Stage
from harness.wire import port_of, read_to_end
from qos2.core.rule import Act, Match, PortRange, Rule, Traffic
from qos2.datapath import abi
from qos2.datapath.instructions import has_netns_cookie
from qos2.datapath.programs import cgroup_mount
from qos2.errors import LimitExceeded, MissingKernelFeature
from qos2.model import ANY_DESTINATION, Dscp, FlowPolicy, Transport
from qos2.sockets import socket_facts

pytestmark = pytest.mark.datapath

V4, V4_SECOND, V6 = "198.51.100.2", "198.51.100.3", "2001:db8:2::2"
MARK = Act(dscp=Dscp(34))
OTHER = Act(dscp=Dscp(10))


def dscps(packets: Packets, port: int, protocol: int = UDP) -> list[int]:
    found = packets.select(protocol=protocol, dport=port)
    assert found.checksum_ok.all()
    return [int(dscp) for dscp in found.dscp]


def family_of(host: str) -> int:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def connected(stage: Stage, host: str, port: int) -> socket.socket:
    sock = stage.socket(family_of(host), socket.SOCK_DGRAM)
    sock.connect((host, port))
    return sock


def sent(stage: Stage, host: str, rules: tuple[Rule, ...], *, source_port: int = 0) -> list[int]:
    """The DSCPs of three datagrams of a new connected socket under these rules."""
    recording, receiver = stage.record(), stage.receiver()
    stage.policed.install(*rules)
    sock = stage.socket(family_of(host), socket.SOCK_DGRAM)
    sock.bind(("", source_port))
    sock.connect((host, receiver.port))
    for _ in range(3):
        sock.send(b"policy")
    receiver.expect(3)
    return dscps(recording.stop(), receiver.port)


@pytest.mark.parametrize("host", [V4, V6])
@pytest.mark.parametrize(
    ("match", "matches"),
    [
        (Match(), True),
        (Match(protocols=(Transport.UDP,)), True),
        (Match(protocols=(Transport.TCP,)), False),
        (Match(users=(0,)), True),
        (Match(users=(1234,)), False),
        (Match(remote=(ip_network("198.51.100.0/24"), ip_network("2001:db8:2::/64"))), True),
        (Match(remote=(ip_network("198.51.100.3/32"), ip_network("2001:db8:2::3/128"))), False),
        (Match(local=(ip_network("192.0.2.0/25"), ip_network("2001:db8:1::2/128"))), True),
        (Match(local=(ip_network("192.0.2.128/25"), ip_network("2001:db8:1::3/128"))), False),
        (Match(local_ports=(PortRange(40000, 40010),)), True),
        (Match(local_ports=(PortRange(39000, 39999), PortRange(40011, 41000))), False),
        (Match(remote_ports=(PortRange(1, 65535),)), True),
        (Match(remote_ports=(PortRange(1, 1023),)), False),
        (Match(devices=("eth0",)), True),
        (Match(devices=("eth7",)), False),
        (Match(dscps=(Dscp(0),)), True),
        (Match(dscps=(Dscp(46),)), False),
        (Match(traffic=Traffic.ANY), True),
        (Match(traffic=Traffic.FORWARDED), False),
        (Match(units=("gone.service",)), False),
        (
            Match(protocols=(Transport.UDP,), users=(0,), local_ports=(PortRange(40000, 40010),), devices=("eth0",)),
            True,
        ),
        (
            Match(protocols=(Transport.UDP,), users=(1,), local_ports=(PortRange(40000, 40010),), devices=("eth0",)),
            False,
        ),
    ],
    ids=str,
)
def test_a_socket_meets_a_rule_whose_conditions_all_hold(stage: Stage, host: str, match: Match, matches: bool) -> None:
    assert sent(stage, host, (Rule("one", match, MARK),), source_port=40005) == [34 if matches else 0] * 3
    assert stage.policed.packets("one") >= (3 if matches else 0)


def test_the_first_rule_that_matches_acts_alone(stage: Stage) -> None:
    rules = (
        Rule("tcp", Match(protocols=(Transport.TCP,)), OTHER),
        Rule("first", Match(), MARK),
        Rule("second", Match(), OTHER),
    )
    assert sent(stage, V4, rules) == [34] * 3


@pytest.mark.parametrize("act", [Act(exempt=True), Act(deny=True)], ids=["exempt", "deny"])
def test_what_is_exempt_or_denied_passes_untouched(stage: Stage, act: Act) -> None:
    assert sent(stage, V4, (Rule("no", Match(users=(0,)), act), Rule("all", Match(), MARK))) == [0] * 3


def test_the_last_of_4096_entries_is_met(stage: Stage) -> None:
    ports = tuple(PortRange(each, each) for each in range(1, 65))
    rules = tuple(Rule(f"never {number}", Match(local_ports=ports, remote_ports=ports[:63]), OTHER) for number in (1,))
    rest = tuple(PortRange(each, each) for each in range(1, 64))
    assert 64 * 63 + len(rest) + 1 == abi.RULES
    rules = (*rules, Rule("rest", Match(local_ports=rest), OTHER), Rule("last", Match(), MARK))
    assert sent(stage, V4, rules) == [34] * 3


def test_one_entry_too_many_is_refused_and_the_rules_before_stay(stage: Stage) -> None:
    ports = tuple(PortRange(each, each) for each in range(1, 65))
    recording, receiver = stage.record(), stage.receiver()
    stage.policed.install(Rule("before", Match(), MARK))
    many = Rule("many", Match(local_ports=ports, remote_ports=ports), OTHER)
    with pytest.raises(LimitExceeded, match="4,097"):
        stage.policed.install(many, Rule("one more", Match(), OTHER))
    connected(stage, V4, receiver.port).send(b"policy")
    receiver.expect(1)
    assert dscps(recording.stop(), receiver.port) == [34]


def test_a_cgroup_means_everything_below_it_and_nothing_else(stage: Stage) -> None:
    if cgroup_mount() is None:
        pytest.skip("cgroup2 is not mounted here")
    inner, beside = stage.cgroup("qos2-test-a", "b", "c"), stage.cgroup("qos2-test-d")
    outer = stage.cgroup("qos2-test-a")
    stage.policed.install(
        Rule("inner", Match(cgroups=("/qos2-test-a/b/c",)), OTHER),
        Rule("outer", Match(cgroups=("/qos2-test-a",)), MARK),
    )
    recording, receiver = stage.record(), stage.receiver()
    for folder in (inner, inner.parent, outer, beside, None):
        stage.send_as(V4, receiver.port, 2, cgroup=folder)
    receiver.expect(10)
    assert dscps(recording.stop(), receiver.port) == [10, 10, 34, 34, 34, 34, 0, 0, 0, 0]


def test_a_cgroup_that_is_made_later_is_followed(stage: Stage) -> None:
    if cgroup_mount() is None:
        pytest.skip("cgroup2 is not mounted here")
    stage.policed.install(Rule("later", Match(cgroups=("/qos2-test-later",)), MARK))
    recording, receiver = stage.record(), stage.receiver()
    folder = stage.cgroup("qos2-test-later")
    stage.policed.datapath.follow_identities()
    stage.send_as(V4, receiver.port, 2, cgroup=folder)
    receiver.expect(2)
    assert dscps(recording.stop(), receiver.port) == [34, 34]


def test_a_cgroup_that_no_rule_names_has_nothing_decided_anew(stage: Stage) -> None:
    if cgroup_mount() is None:
        pytest.skip("cgroup2 is not mounted here")
    stage.cgroup("qos2-test-named")
    stage.policed.install(Rule("named", Match(cgroups=("/qos2-test-named/inner",)), MARK))
    receiver = stage.receiver()
    socks = [connected(stage, V4, receiver.port) for _ in range(20)]
    decided = []
    for _ in range(2):
        for sock in socks:
            sock.send(b"policy")
        decided.append(stage.policed.counter(abi.Counter.POLICY_DECISIONS))
        stage.cgroup("qos2-test-named", "other")
        stage.policed.datapath.follow_identities()
    receiver.expect(40)
    assert decided[1] < decided[0] + len(socks)  # the kernel's own packets may come in between


def test_a_user_is_the_owner_of_the_socket(stage: Stage) -> None:
    stage.policed.install(Rule("user", Match(users=(1234, 1235)), MARK))
    recording, receiver = stage.record(), stage.receiver()
    for uid in (1234, 0, 1236, 1235):
        stage.send_as(V6, receiver.port, 1, uid=uid)
    receiver.expect(4)
    assert dscps(recording.stop(), receiver.port) == [34, 0, 0, 34]


def test_sockets_of_an_executable_are_met_those_made_before_and_after(stage: Stage) -> None:
    if cgroup_mount() is None:
        pytest.skip("cgroup2 is not mounted here")
    receiver = stage.receiver()
    shell = stage.popen_shell(
        f"exec 3>/dev/udp/{V4}/{receiver.port}; echo; read; printf x >&3; printf y >/dev/udp/{V4}/{receiver.port}"
    )
    assert shell.stdout is not None
    assert shell.stdin is not None
    shell.stdout.readline()
    bash = str(Path(f"/proc/{shell.pid}/exe").readlink())
    stage.policed.install(Rule("shell", Match(executables=(bash,)), MARK))
    if stage.policed.datapath.identities.problems:
        pytest.skip(f"executables cannot be followed here: {stage.policed.datapath.identities.problems}")
    recording = stage.record()
    shell.stdin.write(b"\n")
    shell.stdin.close()
    receiver.expect(2)
    connected(stage, V4, receiver.port).send(b"another")
    receiver.expect(1)
    assert dscps(recording.stop(), receiver.port) == [34, 34, 0]


def test_only_what_is_unmarked_is_marked(stage: Stage) -> None:
    stage.policed.install(Rule("unmarked", Match(dscps=(Dscp(0),)), MARK))
    recording, receiver = stage.record(), stage.receiver()
    sock = connected(stage, V4, receiver.port)
    for tos in (0, 46 << 2, 0, 8 << 2, 0):
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
        sock.send(b"policy")
    receiver.expect(5)
    assert dscps(recording.stop(), receiver.port) == [34, 46, 34, 8, 34]


def test_an_unconnected_socket_is_decided_for_each_destination(stage: Stage) -> None:
    recording, receiver, other = stage.record(), stage.receiver(), stage.receiver()
    stage.policed.install(
        Rule("host", Match(remote=(ip_network(f"{V4_SECOND}/32"),)), OTHER),
        Rule("port", Match(remote_ports=(PortRange(receiver.port, receiver.port),)), MARK),
    )
    sock = stage.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(3):
        sock.sendto(b"policy", (V4, receiver.port))
        sock.sendto(b"policy", (V4_SECOND, receiver.port))
        sock.sendto(b"policy", (V4, other.port))
    receiver.expect(6)
    other.expect(3)
    packets = recording.stop()
    assert dscps(packets, receiver.port) == [34, 10] * 3
    assert dscps(packets, other.port) == [0] * 3


def test_fragments_go_the_way_of_their_first_one(stage: Stage) -> None:
    recording, receiver, other = stage.record(), stage.receiver(), stage.receiver()
    stage.policed.install(Rule("port", Match(remote_ports=(PortRange(receiver.port, receiver.port),)), MARK))
    sock = stage.socket(socket.AF_INET, socket.SOCK_DGRAM)
    for _ in range(2):
        sock.sendto(bytes(4000), (V4, receiver.port))
        sock.sendto(bytes(4000), (V4, other.port))
    receiver.expect(2)
    other.expect(2)
    packets = recording.stop()
    assert [int(dscp) for dscp in packets.select(protocol=UDP).dscp] == [34, 34, 34, 0, 0, 0] * 2


def test_a_network_namespace_is_told_apart_or_refused_by_name(stage: Stage) -> None:
    rules = (
        Rule("other", Match(namespaces=(stage.lab.peer.name,)), OTHER),
        Rule("own", Match(namespaces=("host",)), MARK),  # that of the datapath
    )
    if has_netns_cookie():
        assert sent(stage, V4, rules) == [34] * 3
    else:
        with pytest.raises(MissingKernelFeature, match="rule other"):
            stage.policed.install(*rules)


def test_each_socket_is_decided_once(stage: Stage) -> None:
    stage.policed.install(Rule("all", Match(), MARK))
    receiver = stage.receiver()
    sock = connected(stage, V4, receiver.port)
    sock.send(b"first")
    before = stage.policed.counter(abi.Counter.POLICY_DECISIONS)
    for _ in range(100):
        sock.send(b"policy")
    receiver.expect(101)
    assert stage.policed.counter(abi.Counter.POLICY_DECISIONS) == before
    assert stage.policed.packets("all") == 101


def test_sockets_that_are_there_already_meet_each_new_ruleset(stage: Stage) -> None:
    recording, receiver = stage.record(), stage.receiver()
    sock = connected(stage, V4, receiver.port)
    sock.send(b"none")
    first = stage.policed.install(Rule("one", Match(), MARK))
    sock.send(b"one")
    second = stage.policed.install(Rule("two", Match(), OTHER))
    sock.send(b"two")
    stage.policed.install(Rule("tcp", Match(protocols=(Transport.TCP,)), OTHER))
    sock.send(b"tcp")
    stage.policed.install()
    sock.send(b"none")
    receiver.expect(5)
    assert second == first + 1
    assert dscps(recording.stop(), receiver.port) == [0, 34, 10, 0, 0]


def test_a_connection_of_tcp_is_met_from_its_syn_to_its_fin_on_both_sides(stage: Stage) -> None:
    recording = stage.record()
    stage.policed.install(Rule("tcp", Match(protocols=(Transport.TCP,)), MARK))
    listener = stage.socket(socket.AF_INET, socket.SOCK_STREAM, "peer")
    listener.bind(("", 0))
    listener.listen()
    sock = stage.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.connect((V4, port_of(listener)))
    accepted = listener.accept()[0]
    sock.sendall(bytes(100_000))
    sock.close()
    with accepted:
        assert read_to_end(accepted) == 100_000
    found = dscps(recording.stop(), port_of(listener), TCP)
    assert set(found) == {34}
    assert len(found) > 3


def test_an_accepted_connection_is_met_from_its_syn_ack(stage: Stage) -> None:
    recording = stage.record()
    listener = stage.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.bind(("", 0))
    listener.listen()
    port = port_of(listener)
    stage.policed.install(Rule("server", Match(local_ports=(PortRange(port, port),), users=(0,)), MARK))
    sock = stage.socket(socket.AF_INET, socket.SOCK_STREAM, "peer")
    sock.connect(("192.0.2.2", port))
    accepted = listener.accept()[0]
    with accepted:
        accepted.sendall(bytes(50_000))
    assert read_to_end(sock) == 50_000
    found = recording.stop().select(protocol=TCP, sport=port)
    assert {int(dscp) for dscp in found.dscp} == {34}


def test_a_registered_socket_is_not_touched_by_rules(stage: Stage) -> None:
    recording, receiver = stage.record(), stage.receiver()
    stage.policed.install(Rule("all", Match(), MARK))
    sock = connected(stage, V4, receiver.port)
    flow = stage.policed.new_flow()
    stage.policed.begin(FlowPolicy(flow, Dscp(46)))
    facts = socket_facts(sock.fileno())
    stage.policed.datapath.bind(sock.fileno(), facts, {ANY_DESTINATION: flow})
    sock.send(b"registered")
    stage.policed.datapath.bind(sock.fileno(), facts, {})
    stage.policed.datapath.end(flow)
    sock.send(b"no longer")
    receiver.expect(2)
    assert dscps(recording.stop(), receiver.port) == [46, 34]
