"""Pacing by departure times and fq: one flow to a hundred at once, the first second, a pause, and what is never lost.

The judge is the peer's capture. Figures (the worst rate of a run, its fullest 100 ms, the gaps between departures) go
into the terminal's summary and the junit file. An emulated processor delivers late, by milliseconds: so a rate may be
wrong by 5 percent, where 1 percent is the aim; what was measured is in docs/benchmarks.md. Where the processors had no
time for a run, and only then, it is no fault that less arrived; that more did always is.

One thread sends on all sockets of a run: a hundred processes would take an emulated processor a minute to start.
"""

import fcntl
import json
import select
import socket
import struct
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
import pytest
from numpy.typing import NDArray

from demo.lab import Lab
from demo.packets import TCP, UDP, Packets, most_bytes
from demo.processes import Daemon, Sink
from harness.wire import Wire, eventually, port_of
from qos2 import TrafficType
from qos2.core.bucket import bucket_depth_bytes
from qos2.datapath.abi import HORIZON_NS

pytestmark = pytest.mark.datapath

V4, V6 = "198.51.100.2", "2001:db8:2::2"
PORT = 7310
MBIT = 1_000_000
S = 1_000_000_000
TOLERANCE = 0.05
#: TCP's start is over after the first, the rate is that of the second.
SETTLE_S, SECONDS = 1.0, 3.0
MTU = 1500
#: What a socket's buffer charges for a packet of MTU bytes (its data's page fragments and struct sk_buff).
TRUESIZE = 2304
#: So much of its contract a sender has in its socket's buffer: it is never the sender that is late.
BUFFERED_S = 0.5
NAP_S = 0.01
#: With more of a run overslept by the sending thread, the machine was busy elsewhere: beside another emulated machine
#: and a busy host it was 10 to 50 percent, with TCP at a tenth to a half of its contract.
OVERSLEPT = 0.05
#: TCP hands over so much of its contract at once, and no more than 64 KB. By default it is 64 KB where the round trip
#: is as short as here, however low the contract: of 1 Mbit/s half a second. And a packet at a time, an emulated
#: processor is not always in time to hand over the next.
BURST_S = 0.04
WRITES = 256  #: at once on one socket
#: One tick of the slowest common kernel, in seconds: so late an arrival may be stamped without a gap that shows it.
JITTER_S = 0.004
#: A minute, after what the sockets' buffers still held.
PAUSE_S = 60.0 + BUFFERED_S
_SO_SNDBUFFORCE, _UDP_SEGMENT = 32, 103

Figure = Callable[[str, object], None]


@dataclass(frozen=True)
class Kind:
    """Of a flow; `congestion`: TCP's algorithm, empty for UDP."""

    host: str
    congestion: str

    def __str__(self) -> str:
        return f"{self.congestion or 'udp'}-{'ipv6' if self.host == V6 else 'ipv4'}"

    @property
    def payload(self) -> int:
        """Of UDP in a packet of MTU bytes."""
        return MTU - (48 if self.host == V6 else 28)

    def segments(self, bandwidth: int) -> int:
        """Packets of the largest skb of such a flow. UDP sends one at a time, but not where that takes too long."""
        if self.congestion:
            return max(1, min(43, round(bandwidth / 8 / MTU * BURST_S)))
        return 1 if bandwidth <= 10 * MBIT else bucket_depth_bytes(bandwidth) // MTU

    def block(self, bandwidth: int) -> bytes:
        """What is written at once."""
        return bytes(1 << 14 if self.congestion else self.payload * self.segments(bandwidth))

    def of(self, packets: Packets, sock: socket.socket) -> Packets:
        """Those that this socket sent."""
        return packets.select(
            family=6 if self.host == V6 else 4, protocol=TCP if self.congestion else UDP, sport=port_of(sock)
        )


KINDS = [Kind(host, congestion) for congestion in ("", "cubic", "bbr") for host in (V4, V6)]


class Pump:
    """A thread that writes on every socket what it takes, each NAP_S; a context manager."""

    def __init__(self, blocks: Mapping[socket.socket, bytes]) -> None:
        self._blocks = {sock.fileno(): (sock, block) for sock, block in blocks.items()}
        self._ending = threading.Event()
        self.overslept_s = 0.0
        self._thread = threading.Thread(target=self._run, name="pump")
        for sock in blocks:
            sock.setblocking(False)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        with select.epoll() as ready:
            for descriptor in self._blocks:
                ready.register(descriptor, select.EPOLLOUT)
            while True:
                asleep_s = time.monotonic()
                if self._ending.wait(NAP_S):
                    return
                if (late_s := time.monotonic() - asleep_s - NAP_S) > NAP_S:
                    self.overslept_s += late_s
                for descriptor, _ in ready.poll(0):
                    sock, block = self._blocks[descriptor]
                    with suppress(BlockingIOError):
                        for _ in range(WRITES):
                            sock.send(block)


class Crowd:
    """Flows of one contract each, and their senders."""

    def __init__(self, wire: Wire, kinds: Sequence[Kind], bandwidth: int) -> None:
        self._wire = wire
        self._bandwidth = bandwidth
        self._kinds: dict[socket.socket, Kind] = {}
        receiver = wire.receiver()  # which nobody reads: what its buffer has no room for, the capture has seen
        qos = wire.handle()
        segments = str(KINDS[-1].segments(bandwidth))
        wire.lab.app.run("ip", "link", "set", "dev", wire.lab.app.device, "gso_max_segs", segments)
        for kind in kinds:
            sock = wire.sender(
                socket.AF_INET6 if kind.host == V6 else socket.AF_INET,
                socket.SOCK_STREAM if kind.congestion else socket.SOCK_DGRAM,
            )
            if kind.congestion:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, kind.congestion.encode())
                # Closed by reset: what is still queued must not leave into the next test.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif kind.segments(bandwidth) > 1:
                sock.setsockopt(socket.IPPROTO_UDP, _UDP_SEGMENT, kind.payload)
            # The kernel doubles it.
            buffered = round(bandwidth / 8 / MTU * BUFFERED_S) * TRUESIZE // 2
            sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, buffered)
            sock.connect((kind.host, PORT if kind.congestion else receiver.port))
            qos.add_socket(sock, TrafficType.VOICE).set_rate(bandwidth)
            self._kinds[sock] = kind

    def send(self, seconds: float) -> "Arrivals":
        """All of them, as much as their sockets take."""
        recording = self._wire.record()
        with Pump({sock: kind.block(self._bandwidth) for sock, kind in self._kinds.items()}) as pump:
            time.sleep(seconds)
            packets = recording.stop()
        flows = {(kind, number): kind.of(packets, sock) for number, (sock, kind) in enumerate(self._kinds.items())}
        return Arrivals(self._bandwidth, flows, pump.overslept_s / seconds)


@dataclass(frozen=True)
class Arrivals:
    """What the peer got of a crowd, by flow."""

    bandwidth: int
    flows: Mapping[tuple[Kind, int], Packets]
    overslept: float  #: share of the time

    @property
    def depth(self) -> int:
        """Of each flow's bucket, in bytes."""
        return bucket_depth_bytes(self.bandwidth)

    def ratios(self) -> NDArray[np.float64]:
        """Of each flow, what arrived after SETTLE_S to what the contract asks for."""
        return np.array([_rate(_after(packets, SETTLE_S)) for packets in self.flows.values()]) / self.bandwidth

    def gaps(self) -> NDArray[np.float64]:
        """Between packets of the same flow that leave one at a time, as multiples of what the contract asks for."""
        gaps = []
        for (kind, _), packets in self.flows.items():
            if kind.segments(self.bandwidth) == 1:
                steady = _after(packets, SETTLE_S)
                gaps.append(np.diff(steady.time_ns) / S / (steady.ip_bytes[1:] * 8 / self.bandwidth))
        return np.concatenate(gaps or [np.empty(0)])

    def beyond(self) -> dict[tuple[Kind, int], int]:
        """By how many bytes the fullest 100 ms of a flow exceed the contract and one bucket; of those that do.

        An skb passes as a whole. What came late came at once then; the latest packet shows by how much.
        """
        found = {}
        for (kind, number), packets in self.flows.items():
            late_s = max(JITTER_S, float(np.diff(packets.time_ns).max()) / S - MTU * 8 / self.bandwidth)
            skb = (kind.segments(self.bandwidth) - 1) * MTU
            excess = round(self.excess(packets) - self.depth - skb - self.bandwidth / 8 * late_s)
            if excess > 0:
                found[kind, number] = excess
        return found

    def excess(self, packets: Packets) -> float:
        """By how many bytes the fullest 100 ms exceed the contract."""
        return most_bytes(packets.time_ns, packets.ip_bytes, S // 10) - self.bandwidth / 8 / 10

    def tell(self, figure: Figure) -> None:
        """The figures of this run."""
        ratios, gaps = self.ratios(), self.gaps()
        figure("worst_rate_ratio", round(float(ratios[np.abs(ratios - 1).argmax()]), 4))
        figure("total_rate_ratio", round(float(ratios.mean()), 4))
        excess = max(self.excess(packets) for packets in self.flows.values())
        figure("fullest_100_ms_excess_buckets", round(excess / self.depth, 2))
        if len(gaps):
            spacing_ms = MTU * 8e3 / self.bandwidth
            figure("spacing_ms", round(spacing_ms, 2))
            for percentile in (50, 99):
                figure(f"gap_p{percentile}_ms", round(float(np.percentile(gaps, percentile)) * spacing_ms, 2))
        figure("overslept_percent", round(self.overslept * 100, 1))

    def check(self) -> None:
        """Every rate, every 100 ms, every mark, and that departures are spaced.

        Raises AssertionError. Skips where less arrived than has to, and the machine had no time for more.
        """
        ratios, gaps = self.ratios(), self.gaps()
        assert self.beyond() == {}, f"bytes, where a bucket has {self.depth}"
        assert ratios.max() <= 1 + TOLERANCE
        assert [packets.dscps() for packets in self.flows.values()] == [
            {56: len(packets)} for packets in self.flows.values()
        ]
        # One at a time: of a contract that is kept by bursts most packets come right behind another.
        spaced = not len(gaps) or 0.5 <= np.median(gaps) <= 1.5
        if (ratios.min() < 1 - TOLERANCE or not spaced) and self.overslept > OVERSLEPT:
            pytest.skip(f"this machine was busy elsewhere for {self.overslept:.0%} of the time: nothing is proven")
        assert ratios.min() >= 1 - TOLERANCE
        assert spaced, np.percentile(gaps, [25, 50, 75])


def _after(packets: Packets, seconds: float) -> Packets:
    return packets.select(begin_ns=int(packets.time_ns[0]) + round(seconds * S))


def _rate(packets: Packets) -> float:
    """Bits/s at IP level from a packet to the last one: that is whole spacings of departures."""
    if len(packets) < 2:
        return 0.0
    return float(packets.ip_bytes[1:].sum()) * 8 * S / int(packets.time_ns[-1] - packets.time_ns[0])


def dropped_by_fq(lab: Lab) -> int:
    """Packets that the application's device has dropped behind the program (whose own drops clsact counts)."""
    qdiscs = json.loads(lab.app.run("tc", "-s", "-j", "qdisc", "show", "dev", lab.app.device))
    (fq,) = (each for each in qdiscs if each["kind"] != "clsact")
    assert fq["kind"] == "fq"
    return int(fq["drops"])


def left_the_host(sock: socket.socket) -> bool:
    """Whether nothing that was written on it waits in a queue of this host."""
    (waiting,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return bool(waiting == 0)


@pytest.fixture(scope="module", autouse=True)
def _algorithms(fq: None) -> None:
    """A kernel without bbr cannot be asked for it; the administrator's right to load it is used."""
    with socket.socket() as sock:
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"bbr")
        except FileNotFoundError:
            pytest.skip("this kernel has no bbr")


@pytest.fixture(scope="module")
def sink(lab: Lab) -> Iterator[Sink]:
    with Sink(lab.peer, tcp=[PORT], udp=[]) as receiving:
        yield receiving


@dataclass(frozen=True)
class Rested:
    """A crowd that has sent, and since when it has not."""

    crowd: Crowd
    since_s: float


@pytest.fixture(scope="module", autouse=True)
def rested(lab: Lab, daemon: Daemon, sink: Sink) -> Iterator[Rested]:
    """Begins to rest before the first test of this file, so that the last one need not wait for a minute."""
    with Wire(lab, daemon) as wire, ExitStack() as undo:
        undo.callback(lab.app.run, "ip", "link", "set", "dev", lab.app.device, "gso_max_segs", "65535")
        crowd = Crowd(wire, [KINDS[0], KINDS[2], KINDS[5]], 10 * MBIT)
        crowd.send(1.5)
        yield Rested(crowd, time.monotonic())


@pytest.mark.parametrize("total", [10 * MBIT, 50 * MBIT], ids=lambda total: f"{total // MBIT}-mbit")
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_flow_alone_keeps_its_contract_in_every_tenth_of_a_second(
    wire: Wire, kind: Kind, total: int, figure: Figure
) -> None:
    arrivals = Crowd(wire, [kind], total).send(SETTLE_S + SECONDS)
    arrivals.tell(figure)
    arrivals.check()
    assert dropped_by_fq(wire.lab) == 0


@pytest.mark.parametrize("total", [10 * MBIT, 50 * MBIT], ids=lambda total: f"{total // MBIT}-mbit")
@pytest.mark.parametrize("flows", [12, 100])
def test_flows_of_every_kind_at_once_keep_each_its_own_contract(
    wire: Wire, flows: int, total: int, figure: Figure
) -> None:
    kinds = [KINDS[number % len(KINDS)] for number in range(flows)]
    arrivals = Crowd(wire, kinds, total // flows).send(SETTLE_S + SECONDS)
    arrivals.tell(figure)
    arrivals.check()
    assert dropped_by_fq(wire.lab) == 0


def test_blocking_udp_senders_are_held_back_and_lose_nothing(wire: Wire, figure: Figure) -> None:
    bandwidth, count = 10 * MBIT, 2000
    receiver, qos = wire.receiver(), wire.handle()
    took_s: dict[Kind, float] = {}
    sockets = {}

    def write(kind: Kind, sock: socket.socket) -> None:
        begin_s = time.monotonic()
        for number in range(count):
            sock.send(number.to_bytes(4) + bytes(kind.payload - 4))
        took_s[kind] = time.monotonic() - begin_s

    for kind in (Kind(V4, ""), Kind(V6, "")):
        sock = wire.sender(socket.AF_INET6 if kind.host == V6 else socket.AF_INET, socket.SOCK_DGRAM)
        sock.setblocking(True)
        sock.connect((kind.host, receiver.port))
        sockets[kind] = sock
    flows = {kind: qos.add_socket(sock, TrafficType.VOICE) for kind, sock in sockets.items()}
    for flow in flows.values():
        flow.set_rate(bandwidth)
    threads = [threading.Thread(target=write, args=each, daemon=True) for each in sockets.items()]
    recording = wire.record()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert eventually(lambda: all(left_the_host(sock) for sock in sockets.values()))
    packets = recording.stop()
    assert took_s.keys() == sockets.keys()
    for kind, sock in sockets.items():
        arrived = kind.of(packets, sock)
        first = 14 + MTU - kind.payload
        numbers = [int.from_bytes(arrived.frame(i)[first : first + 4]) for i in range(len(arrived))]
        # In order but where the sender moved to another processor, whose packets overtook those of the former.
        assert sorted(numbers) == list(range(count))
        assert sum(flows[kind].stats().dropped_packets.values()) == 0
        assert _rate(_after(arrived, SETTLE_S)) == pytest.approx(bandwidth, rel=TOLERANCE)
        # It was behind what had left by no more than its buffer, which counts more than MTU bytes for a packet.
        buffered = sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
        figure(f"{kind}_took_s", round(took_s[kind], 2))
        assert took_s[kind] >= (count * MTU - bucket_depth_bytes(bandwidth) - buffered) * 8 / bandwidth
    assert dropped_by_fq(wire.lab) == 0


@pytest.mark.parametrize("mbit", [10, 1])
def test_of_a_large_socket_buffer_everything_arrives_that_was_charged(wire: Wire, mbit: int, figure: Figure) -> None:
    """What would have to wait beyond the horizon is dropped before it is charged; fq itself drops nothing."""
    count = 1500
    receiver = wire.receiver()
    kind = Kind(V4, "")
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 1 << 21)
    sock.connect((kind.host, receiver.port))
    flow = wire.handle().add_socket(sock, TrafficType.VOICE)
    flow.set_rate(mbit * MBIT)
    recording = wire.record()
    begin_s = time.monotonic()
    for _ in range(count):
        sock.send(bytes(kind.payload))
    writing_s = time.monotonic() - begin_s
    assert eventually(lambda: left_the_host(sock))
    arrived, stats = kind.of(recording.stop(), sock), flow.stats()
    dropped = stats.dropped_packets["horizon"]
    figure("dropped_beyond_the_horizon", dropped)
    assert (len(arrived), int(arrived.ip_bytes.sum())) == (stats.packets, stats.bytes)
    assert (count - len(arrived), (count - len(arrived)) * MTU) == (dropped, stats.dropped_bytes["horizon"])
    assert dropped_by_fq(wire.lab) == 0
    if mbit == 1:
        # All that the horizon and the bucket have room for, and what left while the others were written. The first
        # packets may be charged as of the last tick.
        room_s = HORIZON_NS / S + bucket_depth_bytes(MBIT) * 8 / MBIT
        assert room_s - MTU * 8 / MBIT <= len(arrived) * MTU * 8 / MBIT <= room_s + writing_s + JITTER_S
    else:
        assert dropped == 0
    assert _rate(_after(arrived, 0.2)) == pytest.approx(mbit * MBIT, rel=TOLERANCE)


def test_after_an_idle_minute_no_credit_has_grown(rested: Rested, figure: Figure) -> None:
    time.sleep(max(0.0, rested.since_s + PAUSE_S - time.monotonic()))
    arrivals = rested.crowd.send(SETTLE_S + SECONDS)
    arrivals.tell(figure)
    arrivals.check()
