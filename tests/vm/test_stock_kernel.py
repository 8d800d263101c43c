"""What only a distribution's kernel can show: fq as the shaper, on one queue and on many, judged by the peer.

boot.sh runs this in a virtual machine, whose processor may be emulated: one flow at a time, a tolerance of
five percent. Where the running kernel has fq it needs no machine and runs with the other tests.
"""

import json
import platform
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from demo.lab import Lab
from demo.packets import Packets, rate
from demo.processes import Daemon, Sink
from harness.wire import Wire, port_of
from qos2 import TrafficType
from qos2.datapath.shapers import available_kinds

pytestmark = pytest.mark.datapath

PORT = 7300
TOLERANCE = 0.05
SETTLE_S, SECONDS = 1.0, 4.0
S = 1_000_000_000
BLOCKS = {socket.SOCK_DGRAM: 1472, socket.SOCK_STREAM: 65536}
QUEUES = 4


@pytest.fixture(scope="module", autouse=True)
def _fq() -> None:
    if "fq" not in available_kinds():
        pytest.skip("this kernel has no fq")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("qos2-stock") as made:
        yield made


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab.app) as started:
        yield started


@pytest.fixture(scope="module")
def sink(lab: Lab) -> Iterator[Sink]:
    with Sink(lab.peer, tcp=[PORT], udp=[PORT]) as receiving:
        yield receiving


@pytest.fixture
def wire(lab: Lab, daemon: Daemon) -> Iterator[Wire]:
    with Wire(lab, daemon) as made:
        yield made


def qdiscs(lab: Lab) -> list[dict[str, object]]:
    """All of the application's device, without their counters."""
    found: list[dict[str, object]] = json.loads(lab.app.run("tc", "-j", "qdisc", "show", "dev", lab.app.device))
    return found


def kinds(lab: Lab) -> list[tuple[object, object]]:
    return [(qdisc["kind"], qdisc["handle"]) for qdisc in qdiscs(lab)]


def connected(wire: Wire, kind: socket.SocketKind) -> socket.socket:
    sock = wire.sender(socket.AF_INET, kind)
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        # Closed by reset: what is still queued must not leave into the next test.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.connect((wire.lab.peer.ipv4[0], PORT))
    return sock


def recorded(wire: Wire, sock: socket.socket, block: int) -> Packets:
    """What the peer gets of a flood on `sock` for SETTLE_S + SECONDS."""
    flood = wire.flood(sock, block)
    recording = wire.record()
    flood.begin()
    time.sleep(SETTLE_S + SECONDS)
    packets = recording.stop().select(sport=port_of(sock), dport=PORT)
    flood.stop()
    return packets


def steady_rate(packets: Packets) -> float:
    """Bits/s at IP level over what follows SETTLE_S; to the last packet, whenever a busy machine sent it."""
    begin, end = int(packets.time_ns[0]) + round(SETTLE_S * S), int(packets.time_ns[-1])
    return rate(packets.time_ns, packets.ip_bytes, begin, end)


def test_the_daemon_chooses_fq_and_the_newest_hook_that_the_kernel_has(lab: Lab, wire: Wire) -> None:
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    (device,) = wire.handle().status().datapath["devices"]
    assert (device["name"], device["shaper"]) == (lab.app.device, "fq")
    assert device["hook"] == ("tcx" if version >= (6, 6) else "clsact")
    assert ("clsact" in [kind for kind, _ in kinds(lab)]) == (version < (6, 6))


@pytest.mark.parametrize("mbit", [10, 50])
@pytest.mark.parametrize("kind", BLOCKS, ids=["udp", "tcp"])
def test_a_flow_keeps_its_contract_through_fq(wire: Wire, sink: Sink, kind: socket.SocketKind, mbit: int) -> None:
    sock = connected(wire, kind)
    flow = wire.handle().add_socket(sock, TrafficType.VOICE)
    flow.set_rate(mbit * 1_000_000)
    assert ("fq", "5152:") in kinds(wire.lab)
    packets = recorded(wire, sock, BLOCKS[kind])
    stats = flow.stats()
    assert steady_rate(packets) == pytest.approx(mbit * 1_000_000, rel=TOLERANCE)
    assert packets.dscps() == {56: len(packets)}
    assert stats.delayed_packets > 0
    assert sum(stats.dropped_packets.values()) == 0


def test_fq_drops_nothing_of_a_sender_with_a_large_buffer(wire: Wire, sink: Sink) -> None:
    """A datagram that fq drops after the bucket was charged is rate lost: by default it queues 100 a flow."""
    sock = connected(wire, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 32, 1 << 21)  # SO_SNDBUFFORCE
    wire.handle().add_socket(sock, TrafficType.VOICE).set_rate(10_000_000)
    assert steady_rate(recorded(wire, sock, 1472)) == pytest.approx(10_000_000, rel=TOLERANCE)


def test_a_stopped_daemon_leaves_the_qdiscs_as_they_were() -> None:
    with Lab("qos2-stock") as lab:
        before = qdiscs(lab)
        with Daemon(lab.app) as daemon:
            with Wire(lab, daemon) as wire, Sink(lab.peer, tcp=[PORT], udp=[PORT]):
                sock = connected(wire, socket.SOCK_DGRAM)
                wire.handle().add_socket(sock, TrafficType.VOICE).set_rate(1_000_000)
                sock.send(b"x")
                assert ("fq", "5152:") in kinds(lab)
            assert daemon.stop() == 0
            assert qdiscs(lab) == before


@pytest.mark.parametrize("kind", BLOCKS, ids=["udp", "tcp"])
def test_flows_on_the_queues_of_an_administrators_mq_with_fq_keep_their_contracts(kind: socket.SocketKind) -> None:
    with Lab("qos2-stock") as lab:
        tc = ("tc", "qdisc", "replace", "dev", lab.app.device)
        lab.app.run("ethtool", "-L", lab.app.device, "tx", str(QUEUES), "rx", str(QUEUES))
        lab.app.run(*tc, "root", "handle", "7:", "mq")
        for queue in range(1, QUEUES + 1):
            lab.app.run(*tc, "parent", f"7:{queue:x}", "fq")
        before = qdiscs(lab)
        with Daemon(lab.app) as daemon, Wire(lab, daemon) as wire, Sink(lab.peer, tcp=[PORT], udp=[PORT]):
            qos = wire.handle()
            sock = connected(wire, kind)
            qos.add_socket(sock, TrafficType.VOICE).set_rate(10_000_000)
            (device,) = qos.status().datapath["devices"]
            assert (device["shaper"], device["why"]) == ("fq", "the device has fq")
            packets = recorded(wire, sock, BLOCKS[kind])
            assert steady_rate(packets) == pytest.approx(10_000_000, rel=TOLERANCE)
            assert [each for each in qdiscs(lab) if each["kind"] != "clsact"] == before
        assert qdiscs(lab) == before
