"""What leaves the wire while the daemon dies, comes back and stops: judged by the peer, packet by packet.

The clients' flows must neither lose their mark nor their limit for a moment, and nothing may go on after the
flows have ended. What a stopped daemon leaves on the host is another test's matter.
"""

import socket
import time
from collections.abc import Iterator

import pytest

import qos2
from demo.lab import Lab
from demo.packets import UDP, Packets, rate
from demo.processes import Daemon
from harness.wire import Wire, eventually, port_of
from qos2 import TrafficType

pytestmark = pytest.mark.datapath

V4 = "198.51.100.2"
S = 1_000_000_000
CONTRACT = 10_000_000
TOLERANCE = 0.02
DATAGRAM = 1472


@pytest.fixture(scope="module")
def mortal() -> Iterator[tuple[Lab, Daemon]]:
    """A daemon that may be killed without a loss to other tests, in a lab of its own."""
    with Lab("qos2-life") as lab, Daemon(lab.app, orphan_grace_s=2) as daemon:
        yield lab, daemon


@pytest.fixture
def own_wire(mortal: tuple[Lab, Daemon]) -> Iterator[Wire]:
    """Sockets, captures and senders of one test; the daemon runs, whatever the test before did to it."""
    lab, daemon = mortal
    with Wire(lab, daemon) as wire:
        yield wire
    if daemon.process is None or daemon.process.poll() is not None:
        daemon.start()


def test_marks_and_rate_go_on_through_kill_and_restart_until_the_orphan_ends(own_wire: Wire) -> None:
    wire, daemon = own_wire, own_wire.daemon
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((V4, wire.receiver().port))
    # The handle is lost with the daemon, and closed with the wire.
    wire.handle().add_socket(sock, TrafficType.VOICE).set_rate(CONTRACT)
    flood = wire.flood(sock, DATAGRAM)
    recording = wire.record()
    began = time.time_ns()
    flood.begin()
    time.sleep(1.0)
    daemon.kill()
    killed = time.time_ns()
    time.sleep(1.5)
    daemon.start()
    started = time.time_ns()
    time.sleep(1.0)
    taken_over = time.time_ns()
    watch = wire.handle()
    # Meanwhile the flood goes on, unlimited from the moment when the orphan ends.
    assert eventually(lambda: watch.status().orphans == 0)
    ended = time.time_ns()
    # What was queued by then is marked, and fq lets it leave in its turn: at most a socket's send buffer.
    queued_s = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) * 8 / CONTRACT
    time.sleep(queued_s + 0.2)
    flood.stop()
    packets = recording.stop().select(protocol=UDP, sport=port_of(sock))

    orphaned = packets.select(end_ns=taken_over)
    assert orphaned.dscps() == {56: len(orphaned)}
    for first, last in ((began, killed), (killed, started), (started, taken_over)):
        seen = rate(orphaned.time_ns, orphaned.ip_bytes, first + S // 5, last)
        assert seen == pytest.approx(CONTRACT, rel=TOLERANCE)
    assert int((orphaned.time_ns[1:] - orphaned.time_ns[:-1]).max()) < S // 20, "no pause at any of these moments"
    afterwards = packets.select(begin_ns=ended + S // 100 + round(queued_s * S))
    assert set(afterwards.dscps()) == {0}, "an ended orphan is not marked any more"


def test_not_one_of_many_packets_is_lost_or_unmarked_when_a_killed_daemon_is_replaced(own_wire: Wire) -> None:
    wire, daemon = own_wire, own_wire.daemon
    receiver = wire.receiver()
    sockets = [wire.sender(family, socket.SOCK_DGRAM) for family in (socket.AF_INET, socket.AF_INET6)]
    qos = wire.handle()
    for sock, host in zip(sockets, (V4, "2001:db8:2::2"), strict=True):
        sock.connect((host, receiver.port))
        qos.add_socket(sock, TrafficType.AUDIO_VIDEO)
    floods = [wire.flood(sock, 200, 2_000 * 200 * 8) for sock in sockets]
    recording = wire.record()
    for flood in floods:
        flood.begin()
    for _ in range(3):
        daemon.kill()
        daemon.start()
    sent = [flood.stop() for flood in floods]
    packets = recording.stop().select(dport=receiver.port)
    assert [len(packets.select(sport=port_of(sock))) for sock in sockets] == sent
    assert packets.dscps() == {40: sum(sent)}


def test_a_socket_of_before_the_kill_can_be_added_again_and_is_marked_by_its_new_flow(own_wire: Wire) -> None:
    wire, daemon = own_wire, own_wire.daemon
    receiver = wire.receiver()
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((V4, receiver.port))
    recording = wire.record()
    wire.handle().add_socket(sock, TrafficType.VOICE)
    sock.send(b"first daemon")
    daemon.kill()
    sock.send(b"no daemon")
    daemon.start()
    sock.send(b"orphaned")
    qos = wire.handle()
    flow = qos.add_socket(sock, TrafficType.BACKGROUND)
    sock.send(b"second daemon")
    assert eventually(lambda: qos.status().orphans == 0)
    sock.send(b"second daemon, the orphan has ended")
    flow.close()
    sock.send(b"no flow")
    receiver.expect(6)
    packets = recording.stop().select(dport=receiver.port)
    assert packets.dscp.tolist() == [56, 56, 56, 8, 8, 0]


def sent_across_a_stop(wire: Wire) -> Packets:
    """One datagram of a marked and limited flow, a clean stop of the daemon, and a hundred full ones more."""
    receiver = wire.receiver()
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((V4, receiver.port))
    qos = wire.handle()
    qos.add_socket(sock, TrafficType.VOICE).set_rate(1_000_000)
    recording = wire.record()
    sock.send(b"while it runs")
    receiver.expect(1)
    assert wire.daemon.stop() == 0
    with pytest.raises(qos2.ServiceLost):
        qos.enumerate()
    for _ in range(100):
        sock.send(bytes(DATAGRAM))
    receiver.expect(100)
    return recording.stop().select(dport=receiver.port)


def test_a_stopped_daemon_leaves_no_limit(own_wire: Wire) -> None:
    packets = sent_across_a_stop(own_wire)
    at_the_contract = 100 * 1500 * 8 * S // 1_000_000
    assert packets.time_ns[-1] - packets.time_ns[1] < at_the_contract // 10


def test_a_stopped_daemon_leaves_no_mark(own_wire: Wire) -> None:
    assert sent_across_a_stop(own_wire).dscp.tolist() == [56] + [0] * 100
