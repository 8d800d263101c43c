"""What only a distribution's kernel can show: fq as the shaper, on one queue and on many, judged by the peer.

boot.sh runs this in a virtual machine, whose processor may be emulated: one flow at a time, a tolerance of
five percent. Where the running kernel has fq it needs no machine and runs with the other tests.
"""

import fcntl
import json
import os
import platform
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from demo.lab import Lab
from demo.packets import Packets, rate
from demo.processes import Daemon, Sink
from harness.wire import Wire, eventually, port_of
from qos2 import TrafficType

pytestmark = [pytest.mark.datapath, pytest.mark.usefixtures("fq")]

PORT = 7300
TOLERANCE = 0.05
SETTLE_S, SECONDS = 1.0, 4.0
S = 1_000_000_000
QUEUES = 4
_UDP_SEGMENT = 103
_TUNSETIFF, _IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI = 0x400454CA, 0x2, 0x100, 0x1000


@dataclass(frozen=True)
class Load:
    """How a sender writes: `block` bytes at once, which UDP leaves to segmentation offload if there are more."""

    name: str
    kind: socket.SocketKind
    block: int

    def __str__(self) -> str:
        return self.name


UDP = Load("udp", socket.SOCK_DGRAM, 1472)
UDP_GSO = Load("udp-gso", socket.SOCK_DGRAM, 8 * 1472)
TCP = Load("tcp", socket.SOCK_STREAM, 65536)


@pytest.fixture(scope="module")
def sink(lab: Lab) -> Iterator[Sink]:
    with Sink(lab.peer, tcp=[PORT], udp=[PORT]) as receiving:
        yield receiving


def qdiscs(lab: Lab) -> list[dict[str, object]]:
    """All of the application's device, without their counters."""
    found: list[dict[str, object]] = json.loads(lab.app.run("tc", "-j", "qdisc", "show", "dev", lab.app.device))
    return found


def kinds(lab: Lab) -> list[tuple[object, object]]:
    return [(qdisc["kind"], qdisc["handle"]) for qdisc in qdiscs(lab)]


def connected(wire: Wire, load: Load) -> socket.socket:
    sock = wire.sender(socket.AF_INET, load.kind)
    if load.kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        # Closed by reset: what is still queued must not leave into the next test.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif load.block > 1472:
        sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, 1472)
    sock.connect((wire.lab.peer.ipv4[0], PORT))
    return sock


def recorded(wire: Wire, sock: socket.socket, load: Load) -> Packets:
    """What the peer gets of a flood on `sock` for SETTLE_S + SECONDS."""
    flood = wire.flood(sock, load.block)
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


@pytest.mark.parametrize(("load", "mbit"), [(UDP, 10), (UDP_GSO, 10), (UDP_GSO, 50), (TCP, 10), (TCP, 50)], ids=str)
def test_a_flow_keeps_its_contract_through_fq(wire: Wire, sink: Sink, load: Load, mbit: int) -> None:
    sock = connected(wire, load)
    flow = wire.handle().add_socket(sock, TrafficType.VOICE)
    flow.set_rate(mbit * 1_000_000)
    assert ("fq", "5152:") in kinds(wire.lab)
    packets = recorded(wire, sock, load)
    stats = flow.stats()
    assert steady_rate(packets) == pytest.approx(mbit * 1_000_000, rel=TOLERANCE)
    assert packets.dscps() == {56: len(packets)}
    assert stats.delayed_packets > 0
    assert sum(stats.dropped_packets.values()) == 0


def test_a_stopped_daemon_leaves_the_qdiscs_as_they_were() -> None:
    with Lab("qos2-stock") as lab:
        before = qdiscs(lab)
        with Daemon(lab.app) as daemon:
            with Wire(lab, daemon) as wire, Sink(lab.peer, tcp=[PORT], udp=[PORT]):
                sock = connected(wire, UDP)
                wire.handle().add_socket(sock, TrafficType.VOICE).set_rate(1_000_000)
                sock.send(b"x")
                assert ("fq", "5152:") in kinds(lab)
            assert daemon.stop() == 0
            assert qdiscs(lab) == before


def give_queues(lab: Lab) -> None:
    """The application's device anew, with QUEUES transmit queues (a veth gets them only when it is made)."""
    lab.app.run("ip", "link", "delete", "dev", lab.app.device)
    count = str(QUEUES)
    lab.app.run(
        *("ip", "link", "add", lab.app.device, "numtxqueues", count, "numrxqueues", count),
        *("type", "veth", "peer", "name", "to-app", "netns", lab.router.name),
    )
    for namespace, device, address in (
        (lab.app, lab.app.device, "192.0.2.2/24"),
        (lab.router, "to-app", "192.0.2.1/24"),
    ):
        namespace.run("ip", "address", "add", address, "dev", device)
        namespace.run("ip", "link", "set", device, "up")
    lab.app.run("ip", "route", "add", "default", "via", "192.0.2.1")


@pytest.mark.parametrize("load", [UDP_GSO, TCP], ids=str)
def test_an_administrators_mq_with_fq_under_every_queue_is_used_as_it_is(load: Load) -> None:
    with Lab("qos2-stock") as lab:
        give_queues(lab)
        tc = ("tc", "qdisc", "replace", "dev", lab.app.device)
        lab.app.run(*tc, "root", "handle", "7:", "mq")
        for queue in range(1, QUEUES + 1):
            lab.app.run(*tc, "parent", f"7:{queue:x}", "fq")
        before = qdiscs(lab)
        with Daemon(lab.app) as daemon, Wire(lab, daemon) as wire, Sink(lab.peer, tcp=[PORT], udp=[PORT]):
            qos = wire.handle()
            sock = connected(wire, load)
            qos.add_socket(sock, TrafficType.VOICE).set_rate(10_000_000)
            (device,) = qos.status().datapath["devices"]
            assert (device["shaper"], device["why"].partition(";")[0]) == ("fq", "the device has fq")
            packets = recorded(wire, sock, load)
            assert [each for each in qdiscs(lab) if each["kind"] != "clsact"] == before
        assert qdiscs(lab) == before
    assert steady_rate(packets) == pytest.approx(10_000_000, rel=TOLERANCE)


class Tap:
    """A device of its own wire: what leaves each of its transmit queues is read here. Its default root is mq."""

    def __init__(self, lab: Lab, name: str, stack: ExitStack) -> None:
        self.queues: list[int] = []
        self._lab = lab
        self._stack = stack
        self._request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_MULTI_QUEUE | _IFF_NO_PI)
        for _ in range(QUEUES):
            self.add_queue()
        lab.app.run("ip", "address", "add", "203.0.113.1/24", "dev", name)
        lab.app.run("ip", "link", "set", name, "up")
        lab.app.run(*("ip", "neighbor", "replace", "203.0.113.2", "lladdr", "02:00:00:00:00:02", "dev", name))

    def add_queue(self) -> None:
        with self._lab.app.entered():
            self.queues.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
            self._stack.callback(os.close, self.queues[-1])
            fcntl.ioctl(self.queues[-1], _TUNSETIFF, self._request)


def test_fq_under_every_queue_of_a_default_mq_holds_each_flow_to_its_contract() -> None:
    bandwidth, flows, seconds = 2_000_000, 6, 4
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("qos2-stock"))
        lab.app.device = "tap0"
        tap = Tap(lab, lab.app.device, stack)
        before = qdiscs(lab)
        assert Counter(kind for kind, _ in kinds(lab))["mq"] == 1
        daemon = stack.enter_context(Daemon(lab.app))
        wire = stack.enter_context(Wire(lab, daemon))
        qos = wire.handle()
        sockets = {}
        for _ in range(flows):
            sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setblocking(False)
            sock.connect(("203.0.113.2", PORT))
            qos.add_socket(sock, TrafficType.VOICE).set_rate(bandwidth)
            sockets[port_of(sock)] = sock
        placed = kinds(lab)
        assert ("mq", "5152:") in placed
        assert Counter(kind for kind, _ in placed)["fq"] == QUEUES
        octets: Counter[int] = Counter()
        used = set()
        begin = time.monotonic() + SETTLE_S
        while (now := time.monotonic()) < begin + seconds:
            readable, writable, _ = select.select(tap.queues, list(sockets.values()), [], 0.1)
            for queue in readable:
                frame = os.read(queue, 2048)
                if frame[12:14] == b"\x08\x00" and now >= begin:
                    used.add(queue)
                    octets[int.from_bytes(frame[34:36], "big")] += len(frame) - 14
            for sock in writable:
                try:
                    sock.send(bytes(1472))
                except BlockingIOError:
                    continue  # room, but not for a whole datagram
        assert len(used) > 1
        assert {port: octets[port] * 8 / seconds for port in sockets} == pytest.approx(
            dict.fromkeys(sockets, bandwidth), rel=TOLERANCE
        )
        assert daemon.stop() == 0
        assert qdiscs(lab) == before


def test_a_queue_that_a_device_gets_later_is_given_its_fq_while_flows_need_it() -> None:
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("qos2-stock"))
        lab.app.device = "tap0"
        tap = Tap(lab, lab.app.device, stack)
        daemon = stack.enter_context(Daemon(lab.app))
        wire = stack.enter_context(Wire(lab, daemon))
        sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect(("203.0.113.2", PORT))
        wire.handle().add_socket(sock, TrafficType.VOICE).set_rate(1_000_000)
        tap.add_queue()
        assert eventually(lambda: Counter(kind for kind, _ in kinds(lab))["fq"] == QUEUES + 1)
        assert ("mq", "5152:") in kinds(lab)


def test_an_fq_that_is_the_kernels_default_is_replaced_by_one_with_room() -> None:
    """Its 100 packets per flow are full with one UDP sender's large buffer, and what it drops was charged."""
    setting = Path("/proc/sys/net/core/default_qdisc")
    before = setting.read_text()
    setting.write_text("fq")
    try:
        with ExitStack() as stack:
            lab = stack.enter_context(Lab("qos2-stock"))
            lab.app.device = "tap0"
            Tap(lab, lab.app.device, stack)
            assert Counter(kind for kind, _ in kinds(lab))["fq"] == QUEUES
            daemon = stack.enter_context(Daemon(lab.app))
            wire = stack.enter_context(Wire(lab, daemon))
            sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
            sock.connect(("203.0.113.2", PORT))
            wire.handle().add_socket(sock, TrafficType.VOICE).set_rate(1_000_000)
            shown = json.loads(lab.app.run("tc", "-j", "-d", "qdisc", "show", "dev", lab.app.device))
            limits = [each["options"]["flow_limit"] for each in shown if each["kind"] == "fq"]
            assert limits == [10_000] * QUEUES
    finally:
        setting.write_text(before)
