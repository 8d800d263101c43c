"""What only a distribution's kernel can show: fq as the shaper, on one queue and on many, judged by the peer.

boot.sh runs this in a virtual machine, whose processor may be emulated: so one flow at a time. Where the running
kernel has fq it needs no machine and runs with the other tests.
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
from demo.packets import Packets
from demo.processes import Daemon, Sink
from harness.contract import LARGEST_SKB_BYTES, MTU_BYTES, SETTLE_S, TOLERANCE, check_contract
from harness.wire import UNPROBED, Wire, eventually, port_of
from qos2 import TrafficType

pytestmark = [pytest.mark.datapath, pytest.mark.usefixtures("fq")]

PORT = 7300
SECONDS = 5.0
QUEUES = 4
TAP = "tap0"
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

    @property
    def largest(self) -> int:
        """Of its skbs, in bytes."""
        if self.kind == socket.SOCK_STREAM:
            return LARGEST_SKB_BYTES
        return self.block // 1472 * MTU_BYTES


UDP = Load("udp", socket.SOCK_DGRAM, 1472)
UDP_GSO = Load("udp-gso", socket.SOCK_DGRAM, 8 * 1472)
TCP = Load("tcp", socket.SOCK_STREAM, 65536)


@pytest.fixture(scope="module")
def sink(lab: Lab) -> Iterator[Sink]:
    with Sink(lab.peer, tcp=[PORT], udp=[PORT]) as receiving:
        yield receiving


@pytest.fixture(scope="module")
def far_lab(fq: None) -> Iterator[Lab]:
    """A lab whose application gets other devices."""
    with Lab("qos2-test-far") as made:
        yield made


@pytest.fixture(scope="module")
def far(far_lab: Lab) -> Iterator[Daemon]:
    """A daemon in the router: it attaches the application's devices with the first flow, lets go with the last."""
    with Daemon(far_lab.router, **UNPROBED) as started:
        yield started
        assert "Traceback" not in started.log, started.log


@pytest.fixture
def far_wire(far_lab: Lab, far: Daemon) -> Iterator[Wire]:
    with Wire(far_lab, far) as made:
        yield made


def qdiscs(lab: Lab, device: str = "") -> list[dict[str, object]]:
    """All of one of the application's devices, without their counters."""
    shown = lab.app.run("tc", "-j", "qdisc", "show", "dev", device or lab.app.device)
    found: list[dict[str, object]] = json.loads(shown)
    return found


def kinds(lab: Lab, device: str = "") -> list[tuple[object, object]]:
    return [(qdisc["kind"], qdisc["handle"]) for qdisc in qdiscs(lab, device)]


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
    """What the peer gets of a flood on `sock` for SECONDS."""
    flood = wire.flood(sock, load.block)
    recording = wire.record()
    flood.begin()
    time.sleep(SECONDS)
    packets = recording.stop().select(sport=port_of(sock), dport=PORT)
    flood.stop()
    return packets


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
    check_contract(packets, mbit * 1_000_000, seconds=SECONDS, largest=load.largest)
    assert packets.dscps() == {56: len(packets)}
    assert stats.delayed_packets > 0
    assert sum(stats.dropped_packets.values()) == 0


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
def test_an_administrators_mq_with_fq_under_every_queue_is_used_as_it_is(
    far_lab: Lab, far_wire: Wire, load: Load
) -> None:
    lab, qos = far_lab, far_wire.handle()
    give_queues(lab)
    tc = ("tc", "qdisc", "replace", "dev", lab.app.device)
    lab.app.run(*tc, "root", "handle", "7:", "mq")
    for queue in range(1, QUEUES + 1):
        lab.app.run(*tc, "parent", f"7:{queue:x}", "fq")
    before = qdiscs(lab)
    with Sink(lab.peer, tcp=[PORT], udp=[PORT]):
        sock = connected(far_wire, load)
        qos.add_socket(sock, TrafficType.VOICE).set_rate(10_000_000)
        device = next(each for each in qos.status().datapath["devices"] if each["name"] == lab.app.device)
        assert (device["shaper"], device["why"].partition(";")[0]) == ("fq", "the device has fq")
        packets = recorded(far_wire, sock, load)
        assert [each for each in qdiscs(lab) if each["kind"] != "clsact"] == before
    qos.close()
    assert eventually(lambda: qdiscs(lab) == before)
    check_contract(packets, 10_000_000, seconds=SECONDS, largest=load.largest)


class Tap:
    """A device of its own wire: what leaves each of its transmit queues is read here. Its default root is mq."""

    def __init__(self, lab: Lab, stack: ExitStack) -> None:
        self.queues: list[int] = []
        self._lab = lab
        self._stack = stack
        self._request = struct.pack("16sH22x", TAP.encode(), _IFF_TAP | _IFF_MULTI_QUEUE | _IFF_NO_PI)
        for _ in range(QUEUES):
            self.add_queue()
        lab.app.run("ip", "address", "add", "203.0.113.1/24", "dev", TAP)
        lab.app.run("ip", "link", "set", TAP, "up")
        lab.app.run(*("ip", "neighbor", "replace", "203.0.113.2", "lladdr", "02:00:00:00:00:02", "dev", TAP))

    def add_queue(self) -> None:
        with self._lab.app.entered():
            self.queues.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK))
            self._stack.callback(os.close, self.queues[-1])
            fcntl.ioctl(self.queues[-1], _TUNSETIFF, self._request)


@pytest.fixture
def tap(far_lab: Lab) -> Iterator[Tap]:
    """Gone with its last queue."""
    with ExitStack() as stack:
        yield Tap(far_lab, stack)


def test_fq_under_every_queue_of_a_default_mq_holds_each_flow_to_its_contract(
    far_lab: Lab, tap: Tap, far_wire: Wire
) -> None:
    bandwidth, flows, seconds = 2_000_000, 6, 4
    before = qdiscs(far_lab, TAP)
    assert Counter(kind for kind, _ in kinds(far_lab, TAP))["mq"] == 1
    qos = far_wire.handle()
    sockets = {}
    for _ in range(flows):
        sock = far_wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(False)
        sock.connect(("203.0.113.2", PORT))
        qos.add_socket(sock, TrafficType.VOICE).set_rate(bandwidth)
        sockets[port_of(sock)] = sock
    placed = kinds(far_lab, TAP)
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
    qos.close()
    assert eventually(lambda: qdiscs(far_lab, TAP) == before)


def limited(wire: Wire) -> None:
    """A flow over the tap that has to be held back."""
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("203.0.113.2", PORT))
    wire.handle().add_socket(sock, TrafficType.VOICE).set_rate(1_000_000)


def test_a_queue_that_a_device_gets_later_is_given_its_fq_while_flows_need_it(
    far_lab: Lab, tap: Tap, far_wire: Wire
) -> None:
    limited(far_wire)
    tap.add_queue()
    assert eventually(lambda: Counter(kind for kind, _ in kinds(far_lab, TAP))["fq"] == QUEUES + 1)
    assert ("mq", "5152:") in kinds(far_lab, TAP)


@pytest.fixture
def fq_by_default() -> Iterator[None]:
    """For devices that are made meanwhile."""
    setting = Path("/proc/sys/net/core/default_qdisc")
    before = setting.read_text()
    setting.write_text("fq")
    yield
    setting.write_text(before)


def test_an_fq_that_is_the_kernels_default_is_replaced_by_one_with_room(
    fq_by_default: None, far_lab: Lab, tap: Tap, far_wire: Wire
) -> None:
    """Its 100 packets per flow are full with one UDP sender's large buffer, and what it drops was charged."""
    assert Counter(kind for kind, _ in kinds(far_lab, TAP))["fq"] == QUEUES
    limited(far_wire)
    shown = json.loads(far_lab.app.run("tc", "-j", "-d", "qdisc", "show", "dev", TAP))
    limits = [each["options"]["flow_limit"] for each in shown if each["kind"] == "fq"]
    assert limits == [10_000] * QUEUES
