"""A flow whose packets come to another shaper keeps its contract: its device is replaced, renamed, moved away and back.

One UDP and one TCP sender send all the time, with or without a device. After each change the peer is asked what
arrives of them. The daemon is in the router's namespace, so that every device of the application is watched.
"""

import os
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import pytest

import qos2
from demo.lab import Lab, Namespace, command
from demo.processes import Daemon, Sink
from harness.contract import LARGEST_SKB_BYTES, MTU_BYTES, check_contract
from harness.wire import UNPROBED, Wire, eventually, port_of
from qos2 import TrafficType
from qos2.datapath.shapers import available_kinds

pytestmark = pytest.mark.datapath

PORT = 7400
MBIT = 1_000_000
#: Of each of the two flows, in bits/s.
BANDWIDTH = 10 * MBIT
SECONDS = 4.0
VOICE = 56
QUEUES = 4
#: A connection whose device was away waits twice as long after every attempt: until then nothing can be measured.
RESUMED_S = 30.0
_SO_SNDBUFFORCE = 32


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("qos2-test") as made:
        yield made


@pytest.fixture(scope="module")
def sink(lab: Lab) -> Iterator[Sink]:
    with Sink(lab.peer, tcp=[PORT], udp=[PORT]) as receiving:
        yield receiving


@pytest.fixture(scope="module")
def daemon(lab: Lab) -> Iterator[Daemon]:
    with Daemon(lab.router, orphan_grace_s=5, **UNPROBED) as started:
        yield started
        assert "Traceback" not in started.log, started.log


@pytest.fixture
def wire(lab: Lab, daemon: Daemon, sink: Sink) -> Iterator[Wire]:
    with Wire(lab, daemon) as made:
        yield made


def ip(namespace: Namespace, *lines: str) -> None:
    """Several changes by one ip(8), with next to nothing between them."""
    with tempfile.NamedTemporaryFile("w") as batch:
        batch.writelines(f"{line}\n" for line in lines)
        batch.flush()
        namespace.run("ip", "-batch", batch.name)


def addressed(device: str = "eth0") -> tuple[str, ...]:
    """What the application's device loses when it moves."""
    return (
        f"address add 192.0.2.2/24 dev {device}",
        f"link set {device} up",
        f"route add default via 192.0.2.1 dev {device}",
    )


def replace_device(lab: Lab, *, index: int | None = None, queues: int = 1) -> None:
    """The application's device is removed, and another one takes its place."""
    number = f"index {index}" if index else ""
    kind = f"numtxqueues {queues} numrxqueues {queues} type veth peer name to-app netns {lab.router.name}"
    ip(lab.app, "link delete eth0", f"link add eth0 {number} {kind}", *addressed())
    ip(lab.router, "address add 192.0.2.1/24 dev to-app", "link set to-app up")


def devices_of(namespace: Namespace) -> list[tuple[int, str]]:
    """Index and name of each."""
    with namespace.entered():
        return socket.if_nameindex()


def index_of(lab: Lab) -> int:
    """Of the application's device."""
    return next(index for index, name in devices_of(lab.app) if name == "eth0")


class Senders:
    """Two applications that send as much as they can as long as they are open, whether there is a way or not."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.udp = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        self.tcp = wire.sender(socket.AF_INET, socket.SOCK_STREAM)
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        # Closed by reset: what is still queued must not leave into the next test.
        self.tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # So much waits on this host that a pause of the sender is none of the flow: 0.4 s of the contract.
        self.udp.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 400_000)
        for sock in (self.udp, self.tcp):
            sock.connect((wire.lab.peer.ipv4[0], PORT))
            sock.settimeout(0.2)
        self.qos = wire.handle()
        self.flows = [self.qos.add_socket(sock, TrafficType.VOICE) for sock in (self.udp, self.tcp)]
        for flow in self.flows:
            flow.set_rate(BANDWIDTH)
        self._end = threading.Event()
        self._threads = [
            threading.Thread(target=self._send, args=(self.udp, bytes(1472))),
            threading.Thread(target=self._send, args=(self.tcp, bytes(65536))),
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()

    def _send(self, sock: socket.socket, block: bytes) -> None:
        while not self._end.is_set():
            try:
                sock.send(block)
            except TimeoutError:
                continue
            except OSError:  # no device, no route: the application tries again
                self._end.wait(0.01)

    def resumed(self) -> None:
        """Wait until the connection sends again."""
        begin, before = time.monotonic(), self.flows[1].stats().packets
        while self.flows[1].stats().packets < before + 20:
            assert time.monotonic() < begin + RESUMED_S, "the connection does not resume"
            time.sleep(0.05)

    def check(self) -> None:
        """What arrives at the peer from now on is what the contracts say."""
        self.resumed()
        recording = self._wire.record()
        time.sleep(SECONDS)
        packets = recording.stop()
        for sock in (self.udp, self.tcp):
            arrived = packets.select(sport=port_of(sock), dport=PORT)
            assert arrived.dscps() == {VOICE: len(arrived)}
        for protocol, largest in ((socket.IPPROTO_UDP, MTU_BYTES), (socket.IPPROTO_TCP, LARGEST_SKB_BYTES)):
            # A later fragment has no port: told by its protocol.
            arrived = packets.select(protocol=protocol, destination=self._wire.lab.peer.ipv4[0])
            check_contract(arrived, BANDWIDTH, seconds=SECONDS, largest=largest)


def shapers(qos: qos2.Handle) -> dict[str, str]:
    """Of every device in the application's namespace and the daemon's own."""
    return {device["name"]: device["shaper"] for device in qos.status().datapath["devices"]}


def best() -> str:
    return "fq" if "fq" in available_kinds() else "htb"


@pytest.mark.parametrize("queues", [1, QUEUES])
def test_a_device_that_was_replaced(wire: Wire, queues: int) -> None:
    with Senders(wire) as senders:
        before = index_of(wire.lab)
        replace_device(wire.lab, queues=queues)
        assert index_of(wire.lab) != before
        senders.check()


def test_a_device_that_was_replaced_by_one_of_the_same_name_and_index(wire: Wire) -> None:
    """The daemon looks when all is over: stopped meanwhile, as a busy one would be late."""
    with Senders(wire) as senders:
        before = index_of(wire.lab)
        assert wire.daemon.process is not None
        wire.daemon.process.send_signal(signal.SIGSTOP)
        try:
            replace_device(wire.lab, index=before)
        finally:
            wire.daemon.process.send_signal(signal.SIGCONT)
        assert index_of(wire.lab) == before
        senders.check()


def test_a_device_that_was_renamed(wire: Wire) -> None:
    with Senders(wire) as senders:
        ip(wire.lab.app, "link set eth0 down", "link set eth0 name wan0", *addressed("wan0")[1:])
        try:
            assert eventually(lambda: shapers(senders.qos).get("wan0") == best())
            senders.check()
        finally:
            ip(wire.lab.app, "link set wan0 down", "link set wan0 name eth0", *addressed()[1:])
        assert eventually(lambda: shapers(senders.qos).get("eth0") == best())


def test_a_device_whose_mtu_was_changed(wire: Wire) -> None:
    """Datagrams leave in fragments then, and the segments of the connection are smaller."""
    with Senders(wire) as senders:
        ip(wire.lab.app, "link set eth0 mtu 1000")
        try:
            senders.check()
        finally:
            ip(wire.lab.app, "link set eth0 mtu 1500")


def test_a_device_that_was_down_for_a_while(wire: Wire) -> None:
    with Senders(wire) as senders:
        ip(wire.lab.app, "link set eth0 down")
        time.sleep(0.5)
        ip(wire.lab.app, *addressed()[1:])
        senders.check()


def test_a_route_that_changed_to_another_device(wire: Wire) -> None:
    lab = wire.lab
    with Senders(wire) as senders:
        ip(lab.app, f"link add other0 type veth peer name to-other netns {lab.router.name}")
        try:
            ip(lab.router, "address add 203.0.113.1/24 dev to-other", "link set to-other up")
            ip(lab.app, "address add 203.0.113.2/24 dev other0", "link set other0 up")
            ip(lab.app, "route replace default via 203.0.113.1 dev other0")
            senders.check()
        finally:
            ip(lab.app, "route replace default via 192.0.2.1 dev eth0", "link delete other0")
        senders.check()


def test_an_administrators_qdisc_that_came_and_went(wire: Wire) -> None:
    """While it is there, the device can only police; afterwards packets are held back as before."""
    app, root = wire.lab.app, ("dev", "eth0", "root")
    with Senders(wire) as senders:
        app.run("tc", "qdisc", "replace", *root, "handle", "7:", "pfifo", "limit", "1000")
        try:
            assert eventually(lambda: shapers(senders.qos)["eth0"] == "police")
        finally:
            app.run("tc", "qdisc", "delete", *root)
        assert eventually(lambda: shapers(senders.qos)["eth0"] == best())
        senders.check()


@contextmanager
def another_namespace() -> Iterator[Namespace]:
    namespace = Namespace(f"qos2-test-{os.getpid()}-moved", "eth0", ["192.0.2.2"])
    command("ip", "netns", "add", namespace.name)
    try:
        yield namespace
    finally:
        command("ip", "netns", "del", namespace.name)  # what is left in it of a pair goes too


def move(there: Namespace, here: Namespace) -> None:
    """The application's device, into another namespace."""
    ip(here, f"link set eth0 netns {there.name}")
    ip(there, *addressed())


@pytest.fixture
def moved(wire: Wire) -> Iterator[Namespace]:
    """Another namespace; the application has its device again afterwards."""
    with another_namespace() as namespace:
        yield namespace
        if any(name == "eth0" for _, name in devices_of(namespace)):
            move(wire.lab.app, namespace)


def test_a_device_that_moved_to_another_namespace_and_back(wire: Wire, moved: Namespace) -> None:
    lab = wire.lab
    with Senders(wire) as senders:
        move(moved, lab.app)
        with moved.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((lab.peer.ipv4[0], PORT))
            senders.qos.add_socket(sock, TrafficType.VOICE).set_rate(BANDWIDTH)
            flood = wire.flood(sock, 1472)
            recording = wire.record()
            flood.begin()
            time.sleep(SECONDS)
            arrived = recording.stop().select(sport=port_of(sock), dport=PORT)
            flood.stop()
        check_contract(arrived, BANDWIDTH, seconds=SECONDS)
        assert arrived.dscps() == {VOICE: len(arrived)}
        move(lab.app, moved)
        senders.check()


def test_a_device_that_was_away_for_so_short_that_nobody_saw_it(wire: Wire, moved: Namespace) -> None:
    """Its qdiscs are lost all the same, and it has its index again."""
    with Senders(wire) as senders:
        before = index_of(wire.lab)
        assert wire.daemon.process is not None
        wire.daemon.process.send_signal(signal.SIGSTOP)
        try:
            move(moved, wire.lab.app)
            move(wire.lab.app, moved)
        finally:
            wire.daemon.process.send_signal(signal.SIGCONT)
        assert index_of(wire.lab) == before
        senders.check()


def test_a_device_that_moved_while_no_daemon_ran_is_met_once(wire: Wire, moved: Namespace) -> None:
    """What is attached by tcx moves with a device, and the kernel refuses the same program a second time there."""
    lab = wire.lab
    with Senders(wire):
        wire.daemon.kill()
        move(moved, lab.app)
        wire.daemon.start()
    with wire.handle() as qos, moved.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((lab.peer.ipv4[0], PORT))
        flow = qos.add_socket(sock, TrafficType.VOICE)
        assert [each for each in shapers(qos).items() if each[0] == "eth0"] == [("eth0", best())]
        recording = wire.record()
        for _ in range(23):
            sock.send(bytes(100))
        assert recording.stop().select(sport=port_of(sock)).dscps() == {VOICE: 23}
        assert flow.stats().packets == 23


def test_a_device_that_the_daemon_was_told_to_watch_is_followed_when_it_is_renamed() -> None:
    with (
        Lab("qos2-test") as lab,
        Sink(lab.peer, tcp=[PORT], udp=[PORT]),
        Daemon(lab.app, **UNPROBED) as daemon,
        Wire(lab, daemon) as own,
        Senders(own) as senders,
    ):
        ip(lab.app, "link set eth0 down", "link set eth0 name wan0", *addressed("wan0")[1:])
        assert eventually(lambda: shapers(senders.qos) == {"wan0": best()})
        senders.check()
