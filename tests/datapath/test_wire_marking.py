"""Marks, judged by what the peer captures and nothing else.

Every test sends through real sockets of the application's namespace and compares the whole list of DSCPs
that arrived with what was asked for at that moment, packet by packet.
"""

import ipaddress
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import qos2
from demo.lab import Lab
from demo.packets import TCP, UDP, Packets
from demo.processes import Daemon
from harness.wire import PATIENCE_S, UNPROBED, Receiver, Wire, eventually, port_of, read, read_to_end
from qos2 import Shaping, TrafficType

pytestmark = pytest.mark.datapath

VOICE, AUDIO_VIDEO, BACKGROUND = TrafficType.VOICE, TrafficType.AUDIO_VIDEO, TrafficType.BACKGROUND
V4, V4_SECOND, V6, V6_SECOND = "198.51.100.2", "198.51.100.3", "2001:db8:2::2", "2001:db8:2::3"


@dataclass(frozen=True)
class Path:
    """A kind of socket and an address of the peer, as that socket writes it."""

    family: socket.AddressFamily
    host: str

    def __str__(self) -> str:
        return f"{'v4' if self.family == socket.AF_INET else 'v6'}-socket-to-{self.host}"

    @property
    def option(self) -> tuple[int, int]:
        """The socket option that sets the DS field of what is sent."""
        mapped = ipaddress.ip_address(self.host).version == 6 and "ffff" in self.host
        if self.family == socket.AF_INET or mapped:
            return socket.IPPROTO_IP, socket.IP_TOS
        return socket.IPPROTO_IPV6, socket.IPV6_TCLASS


IPV4 = Path(socket.AF_INET, V4)
IPV6 = Path(socket.AF_INET6, V6)
MAPPED = Path(socket.AF_INET6, f"::ffff:{V4}")
PATHS = pytest.mark.parametrize("path", [IPV4, IPV6, MAPPED], ids=str)
BOTH_FAMILIES = pytest.mark.parametrize("path", [IPV4, IPV6], ids=str)


@pytest.fixture(scope="module", params=[True, False], ids=["preset", "no-preset"])
def stage(request: pytest.FixtureRequest, lab: Lab, daemon: Daemon) -> Iterator[tuple[Lab, Daemon]]:
    """Marks must be the same whether the socket was preset, or the datapath writes every packet."""
    if request.param:
        yield lab, daemon
        return
    with Lab("qos2-test") as own, Daemon(own.app, preset_tos=False, **UNPROBED) as other:
        yield own, other
        assert "Traceback" not in other.log, other.log


@pytest.fixture
def wire(stage: tuple[Lab, Daemon]) -> Iterator[Wire]:
    with Wire(*stage) as wire:
        yield wire


def dscps(packets: Packets) -> list[int]:
    return [int(dscp) for dscp in packets.dscp]


def connected(wire: Wire, path: Path, receiver: Receiver) -> socket.socket:
    sock = wire.sender(path.family, socket.SOCK_DGRAM)
    sock.connect((path.host, receiver.port))
    return sock


@PATHS
def test_a_connected_udp_socket_is_marked_from_the_add_to_the_close_of_its_flow(wire: Wire, path: Path) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, path, receiver)
    sock.send(b"before")
    flow = qos.add_socket(sock, VOICE)
    for _ in range(5):
        sock.send(b"during")
    flow.close()
    for _ in range(3):
        sock.send(b"after")
    receiver.expect(9)
    packets = recording.stop().select(protocol=UDP, dport=receiver.port)
    assert dscps(packets) == [0] + [56] * 5 + [0] * 3
    assert packets.checksum_ok.all()


@PATHS
def test_an_unconnected_udp_socket_is_marked_towards_its_destination_only(wire: Wire, path: Path) -> None:
    recording, wanted, other, qos = wire.record(), wire.receiver(), wire.receiver(), wire.handle()
    sock = wire.sender(path.family, socket.SOCK_DGRAM)
    flow = qos.add_socket(sock, AUDIO_VIDEO, dest=(path.host, wanted.port))
    for _ in range(3):
        sock.sendto(b"wanted", (path.host, wanted.port))
        sock.sendto(b"other", (path.host, other.port))
    flow.close()
    sock.sendto(b"after", (path.host, wanted.port))
    wanted.expect(4)
    other.expect(3)
    packets = recording.stop()
    assert dscps(packets.select(dport=wanted.port)) == [40, 40, 40, 0]
    assert dscps(packets.select(dport=other.port)) == [0, 0, 0]


@pytest.mark.parametrize(
    ("traffic_type", "dscp"), zip(TrafficType, [0, 8, 40, 40, 56, 56], strict=True), ids=lambda value: str(value)
)
def test_each_traffic_type_has_its_dscp_on_the_wire(wire: Wire, traffic_type: TrafficType, dscp: int) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, IPV4, receiver)
    qos.add_socket(sock, traffic_type)
    sock.send(b"marked")
    receiver.expect(1)
    assert dscps(recording.stop().select(dport=receiver.port)) == [dscp]


def test_one_unconnected_socket_to_many_destinations_has_a_flow_for_each(wire: Wire) -> None:
    recording, first, second, qos = wire.record(), wire.receiver(), wire.receiver(), wire.handle()
    sock = wire.sender(socket.AF_INET6, socket.SOCK_DGRAM)
    flows = {
        (f"::ffff:{V4}", first.port): (VOICE, 56),
        (f"::ffff:{V4_SECOND}", first.port): (AUDIO_VIDEO, 40),
        (V6, first.port): (BACKGROUND, 8),
        (V6_SECOND, second.port): (VOICE, 56),
    }
    for destination, (traffic_type, _) in flows.items():
        qos.add_socket(sock, traffic_type, dest=destination)
    unregistered = [(V6_SECOND, first.port), (f"::ffff:{V4}", second.port)]
    for _ in range(2):
        for destination in [*flows, *unregistered]:
            sock.sendto(b"data", destination)
    first.expect(8)
    second.expect(4)
    packets = recording.stop()
    for (host, port), (_, dscp) in flows.items():
        assert dscps(packets.select(destination=host, dport=port)) == [dscp] * 2
    for host, port in unregistered:
        assert dscps(packets.select(destination=host, dport=port)) == [0, 0]


@pytest.mark.parametrize(
    ("destination", "marked"),
    [
        (("0.0.0.0", 0), [True, True, True, True]),
        (("::", 0), [True, True, True, True]),
        ((V4, 0), [True, False, False, False]),
        ((V6, 0), [False, False, True, False]),
    ],
    ids=str,
)
def test_a_wildcard_destination_stands_for_all_that_it_covers(
    wire: Wire, destination: tuple[str, int], marked: list[bool]
) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = wire.sender(socket.AF_INET6, socket.SOCK_DGRAM)
    qos.add_socket(sock, VOICE, dest=destination)
    hosts = [f"::ffff:{V4}", f"::ffff:{V4_SECOND}", V6, V6_SECOND]
    for host in hosts:
        sock.sendto(b"data", (host, receiver.port))
    receiver.expect(4)
    assert dscps(recording.stop().select(dport=receiver.port)) == [56 if mark else 0 for mark in marked]


def test_many_sockets_of_one_flow_are_all_marked_and_each_leaves_alone(wire: Wire) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sockets = [connected(wire, path, receiver) for path in (IPV4, IPV6, MAPPED) for _ in range(4)]
    flow = qos.add_socket(sockets[0], BACKGROUND)
    for sock in sockets[1:]:
        flow.add_socket(sock)
    for sock in sockets:
        sock.send(b"in")
    flow.remove_socket(sockets[5])
    for sock in sockets:
        sock.send(b"one out")
    receiver.expect(24)
    packets = recording.stop().select(dport=receiver.port)
    for index, sock in enumerate(sockets):
        family = 6 if 4 <= index < 8 else 4
        seen = packets.select(sport=port_of(sock), family=family)
        assert dscps(seen) == ([8, 0] if index == 5 else [8, 8])


def test_a_socket_added_to_a_second_flow_moves_there(wire: Wire) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, IPV4, receiver)
    qos.add_socket(sock, VOICE)
    sock.send(b"first flow")
    second = qos.add_socket(sock, BACKGROUND)
    sock.send(b"second flow")
    second.close()
    sock.send(b"no flow")
    receiver.expect(3)
    assert dscps(recording.stop().select(dport=receiver.port)) == [56, 8, 0]


@PATHS
def test_tcp_added_before_connect_is_marked_from_the_syn_to_the_fin(wire: Wire, path: Path) -> None:
    recording, listener, qos = wire.record(), wire.listener(), wire.handle()
    sock = wire.sender(path.family, socket.SOCK_STREAM)
    destination = (path.host, port_of(listener))
    qos.add_socket(sock, AUDIO_VIDEO, dest=destination)
    sock.connect(destination)
    accepted = wire.accept(listener)
    sock.sendall(bytes(300_000))
    sock.shutdown(socket.SHUT_WR)
    assert read_to_end(accepted) == 300_000
    accepted.close()
    assert read_to_end(sock) == 0
    packets = recording.stop().select(protocol=TCP, sport=port_of(sock))
    flags = [
        packets.frame(index)[14 + (20 if packets.family[index] == 4 else 40) + 13] for index in range(len(packets))
    ]
    assert flags[0] & 0x3F == 0x02, "the first packet is the SYN"
    assert sum(flag & 0x01 for flag in flags) == 1, "the FIN is among them"
    assert packets.dscps() == {40: len(packets)}
    assert packets.ip_bytes.sum() > 300_000
    assert packets.checksum_ok.all()


@PATHS
def test_tcp_added_while_connected_is_marked_until_it_is_removed(wire: Wire, path: Path) -> None:
    listener, qos = wire.listener(), wire.handle()
    sock = wire.sender(path.family, socket.SOCK_STREAM)
    sock.connect((path.host, port_of(listener)))
    accepted = wire.accept(listener)
    flow = qos.add_socket(sock, VOICE)
    during = wire.record()
    sock.sendall(bytes(100_000))
    read(accepted, 100_000)
    seen = during.stop().select(protocol=TCP, sport=port_of(sock))
    flow.remove_socket(sock)
    after = wire.record()
    sock.sendall(bytes(100_000))
    read(accepted, 100_000)
    left = after.stop().select(protocol=TCP, sport=port_of(sock))
    assert seen.dscps() == {56: len(seen)}
    assert left.dscps() == {0: len(left)}
    assert seen.ip_bytes.sum() > 100_000 < left.ip_bytes.sum()


@BOTH_FAMILIES
def test_accepted_sockets_inherit_the_flow_of_the_listening_one(wire: Wire, path: Path) -> None:
    recording, qos = wire.record(), wire.handle()
    listener = wire.listener("app")
    flow = qos.add_socket(listener, AUDIO_VIDEO)
    host = wire.lab.app.ipv4[0] if path is IPV4 else wire.lab.app.ipv6[0]
    clients = [wire.lab.peer.socket(path.family, socket.SOCK_STREAM) for _ in range(2)]
    for client in clients:
        client.settimeout(PATIENCE_S)
        client.connect((host, port_of(listener)))
        server = wire.accept(listener)
        server.sendall(bytes(50_000))
        read(client, 50_000)
    flow.close()
    for client in clients:
        client.close()
    packets = recording.stop().select(protocol=TCP, sport=port_of(listener))
    for client_packets in (packets.where(packets.dport == port) for port in set(packets.dport.tolist())):
        data = client_packets.where(client_packets.ip_bytes > 100)
        assert data.dscps() == {40: len(data)}
        assert data.ip_bytes.sum() > 50_000


@BOTH_FAMILIES
def test_syn_acks_of_a_listening_socket_have_the_dscp_that_was_preset(lab: Lab, daemon: Daemon, path: Path) -> None:
    # No socket is there yet for the datapath to know: the kernel takes the listening socket's own DSCP.
    with Wire(lab, daemon) as wire:
        recording, listener = wire.record(), wire.listener("app")
        wire.handle().add_socket(listener, AUDIO_VIDEO)
        with lab.peer.socket(path.family, socket.SOCK_STREAM) as client:
            client.settimeout(PATIENCE_S)
            client.connect((lab.app.ipv4[0] if path is IPV4 else lab.app.ipv6[0], port_of(listener)))
        wire.accept(listener).close()
        packets = recording.stop().select(protocol=TCP, sport=port_of(listener))
        assert packets.dscps() == {40: len(packets)}
        assert len(packets) >= 2


@BOTH_FAMILIES
@pytest.mark.parametrize("ecn", [0, 1, 2, 3])
def test_ecn_is_kept_and_the_checksum_right(wire: Wire, path: Path, ecn: int) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, path, receiver)
    sock.setsockopt(*path.option, ecn)
    flow = qos.add_socket(sock, VOICE)
    sock.send(b"voice")
    flow.set_traffic_type(BACKGROUND)
    sock.send(b"background")
    flow.close()
    sock.send(b"after")
    receiver.expect(3)
    packets = recording.stop().select(dport=receiver.port)
    assert dscps(packets) == [56, 8, 0]
    assert packets.ecn.tolist() == [ecn] * 3
    assert packets.checksum_ok.all()


@BOTH_FAMILIES
def test_a_dscp_of_the_application_is_replaced_and_comes_back(wire: Wire, path: Path) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, path, receiver)
    sock.setsockopt(*path.option, 46 << 2)
    sock.send(b"its own")
    flow = qos.add_socket(sock, BACKGROUND)
    sock.send(b"the flow's")
    sock.setsockopt(*path.option, 26 << 2)
    sock.send(b"the flow's, whatever the application sets meanwhile")
    flow.close()
    sock.send(b"its own")
    receiver.expect(4)
    assert dscps(recording.stop().select(dport=receiver.port)) == [46, 8, 8, 26]


@BOTH_FAMILIES
@pytest.mark.parametrize("connect", [True, False], ids=["connected", "unconnected"])
def test_every_fragment_of_a_large_datagram_is_marked(wire: Wire, path: Path, connect: bool) -> None:
    recording, receiver, other, qos = wire.record(), wire.receiver(), wire.receiver(), wire.handle()
    sock = wire.sender(path.family, socket.SOCK_DGRAM)
    target = (path.host, receiver.port)
    if connect:
        sock.connect(target)
        qos.add_socket(sock, VOICE)
    else:
        qos.add_socket(sock, VOICE, dest=target)
    for _ in range(3):
        if connect:
            sock.send(bytes(4000))
        else:
            sock.sendto(bytes(4000), target)
            sock.sendto(bytes(2000), (path.host, other.port))
    receiver.expect(3)
    if not connect:
        other.expect(3)
    packets = recording.stop().select(protocol=UDP, family=4 if path is IPV4 else 6)
    assert packets.fragment.all()
    large = [56, 56, 56]
    assert dscps(packets) == (large * 3 if connect else [*large, 0, 0] * 3)
    assert packets.checksum_ok.all()


def test_an_explicit_dscp_overrides_the_type_until_the_type_is_set_again(wire: Wire) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, IPV4, receiver)
    flow = qos.add_socket(sock, VOICE)
    for dscp in (46, 0, 63):
        flow.set_dscp(dscp)
        sock.send(b"overridden")
    flow.set_traffic_type(AUDIO_VIDEO)
    sock.send(b"by type")
    receiver.expect(4)
    assert dscps(recording.stop().select(dport=receiver.port)) == [46, 0, 63, 40]


@BOTH_FAMILIES
def test_a_change_of_type_takes_effect_with_the_next_packet(wire: Wire, path: Path) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, path, receiver)
    flow = qos.add_socket(sock, TrafficType.BEST_EFFORT)
    for traffic_type in TrafficType:
        flow.set_traffic_type(traffic_type)
        sock.send(b"data")
    receiver.expect(len(TrafficType))
    assert dscps(recording.stop().select(dport=receiver.port)) == [0, 8, 40, 40, 56, 56]


def test_shape_only_leaves_dscp_0_and_rate_0_takes_the_marking_away(wire: Wire) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, IPV4, receiver)
    flow = qos.add_socket(sock, VOICE)
    flow.set_rate(10_000_000, shaping=Shaping.SHAPE_ONLY)
    sock.send(b"shaped only")
    flow.set_rate(10_000_000, shaping=Shaping.SHAPE_AND_MARK)
    sock.send(b"shaped and marked")
    flow.set_rate(0)
    sock.send(b"nothing")
    receiver.expect(3)
    assert dscps(recording.stop().select(dport=receiver.port)) == [0, 56, 0]


def test_an_adaptive_flow_is_marked_from_its_first_rate_on(wire: Wire) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, IPV4, receiver)
    flow = qos.add_socket(sock, VOICE, adaptive=True)
    sock.send(b"nothing yet")
    flow.set_rate(10_000_000)
    sock.send(b"marked")
    receiver.expect(2)
    assert dscps(recording.stop().select(dport=receiver.port)) == [0, 56]


def test_closing_the_handle_ends_the_marks_of_all_its_flows(wire: Wire) -> None:
    recording, receiver = wire.record(), wire.receiver()
    sockets = [connected(wire, path, receiver) for path in (IPV4, IPV6)]
    with qos2.Handle(wire.daemon.socket) as qos:
        for sock in sockets:
            qos.add_socket(sock, VOICE)
            sock.send(b"during")
    watch = wire.handle()
    assert eventually(lambda: watch.enumerate() == [])
    for sock in sockets:
        sock.send(b"after")
    receiver.expect(4)
    assert dscps(recording.stop().select(dport=receiver.port)) == [56, 56, 0, 0]


@BOTH_FAMILIES
def test_the_marks_end_when_the_client_is_killed_though_its_socket_lives_on_elsewhere(wire: Wire, path: Path) -> None:
    recording, receiver, watch = wire.record(), wire.receiver(), wire.handle()
    sock = connected(wire, path, receiver)
    client = wire.client(sock)
    sock.send(b"while the client lives")
    client.kill()
    assert eventually(lambda: watch.enumerate() == [])
    sock.send(b"after its death")
    receiver.expect(2)
    assert dscps(recording.stop().select(dport=receiver.port)) == [56, 0]


def test_sockets_that_nobody_registered_keep_what_the_application_set(wire: Wire) -> None:
    recording, receiver, listener, qos = wire.record(), wire.receiver(), wire.listener(), wire.handle()
    marked = connected(wire, IPV4, receiver)
    qos.add_socket(marked, VOICE)
    sock = connected(wire, IPV4, receiver)
    for dsfield in range(0, 256, 5):
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dsfield)
        sock.send(b"untouched")
    stream = wire.sender(socket.AF_INET6, socket.SOCK_STREAM)
    stream.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 18 << 2)
    stream.connect((V6, port_of(listener)))
    accepted = wire.accept(listener)
    stream.sendall(bytes(100_000))
    read(accepted, 100_000)
    receiver.expect(52)
    packets = recording.stop()
    datagrams = packets.select(sport=port_of(sock), dport=receiver.port)
    assert [d << 2 | e for d, e in zip(datagrams.dscp.tolist(), datagrams.ecn.tolist(), strict=True)] == list(
        range(0, 256, 5)
    )
    segments = packets.select(protocol=TCP, sport=port_of(stream))
    assert segments.dscps() == {18: len(segments)}
