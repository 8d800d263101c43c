"""Group `rate`: how exactly a rate contract is kept, and how smoothly TCP leaves under one.

Everything real: daemon, its shaper, sockets, three namespaces. The rate is what the peer's device counted, at IP
level, behind a hop without segmentation offload.
"""

import ctypes
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np

import qos2
from bench.figures import Result, Table, Target
from bench.pair import sent
from bench.session import Session, senders
from demo.capture import Recording
from demo.lab import Lab, LabError, Namespace
from demo.packets import TCP, most_bytes
from demo.processes import Daemon
from qos2.core.bucket import bucket_depth_bytes

RATES = (64_000, 1_000_000, 10_000_000, 100_000_000, 1_000_000_000)
_SMOOTH_RATES = RATES[1:4]
_SLOW = RATES[0]
_WINDOW_S = 0.1
_SETTLE_S = 0.5
_ETHERNET_BYTES = 14
_PORT = 5004
_BULK_BYTES = 1 << 16
_DRAIN_S = 60.0
_SEND_TIMEOUT = struct.pack("ll", 0, 200_000)
_ETH_P_ALL = 3
_TSO_RTT_LOG = "ipv4/tcp_tso_rtt_log"


@dataclass(frozen=True, slots=True)
class Step:
    """The counters of a device right after something arrived; `before` is what they were until then."""

    time_s: float
    before: int  #: bytes at IP level


def rate_of(steps: list[Step], begin_s: float, end_s: float) -> float:
    """Bits per second between the first and the last arrival within begin .. end.

    A shaper that lets a packet go on debt makes the next one wait for it: what arrived with the first
    step counts, what arrived with the last does not. Raises ValueError for fewer than two arrivals.
    """
    inside = [step for step in steps if begin_s <= step.time_s <= end_s]
    if len(inside) < 2:
        raise ValueError(f"{len(inside)} arrivals have no rate")
    first, last = inside[0], inside[-1]
    return (last.before - first.before) * 8 / (last.time_s - first.time_s)


class Counters:
    """What a namespace's device has received, at IP level."""

    def __init__(self, namespace: Namespace) -> None:
        self._name = namespace.device
        with namespace.entered():
            # Opened in there, it speaks of that namespace for ever.
            self._fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY)

    def read(self) -> int:
        for line in os.pread(self._fd, 1 << 14, 0).decode().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == self._name:
                octets, packets = map(int, numbers.split()[:2])
                return octets - _ETHERNET_BYTES * packets
        raise OSError(f"no device {self._name}")

    def watch(self, seconds: float, pause_s: float) -> list[Step]:
        """Every change that is seen, looking each `pause_s`."""
        steps, last = [], self.read()
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end:
            octets = self.read()
            if octets != last:
                steps.append(Step(now, last))
                last = octets
            time.sleep(pause_s)
        return steps

    def close(self) -> None:
        os.close(self._fd)


class Stage:
    """The lab with the daemon, and one flow at a time in it."""

    def __init__(self, stack: ExitStack, library: ctypes.CDLL) -> None:
        self.lab = stack.enter_context(Lab("qos2-bench"))
        self._library = library
        self._qos = stack.enter_context(qos2.Handle(stack.enter_context(Daemon(self.lab.app)).socket))
        self._sink = stack.enter_context(self.lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._sink.bind(("", _PORT))
        self._listener = stack.enter_context(self.lab.peer.socket(socket.AF_INET, socket.SOCK_STREAM))
        self._listener.bind(("", _PORT))
        self._listener.listen()
        self.counters = Counters(self.lab.peer)
        stack.callback(self.counters.close)

    @property
    def shaper(self) -> str:
        """What holds packets back here."""
        return ", ".join(sorted({str(device["shaper"]) for device in self._qos.status().datapath["devices"]}))

    def _drain(self) -> None:
        """Wait until nothing is left of the flow before: its last skb may have gone on a debt of seconds."""
        deadline = time.monotonic() + _DRAIN_S
        app = self.lab.app
        while any(each["qlen"] for each in json.loads(app.run("tc", "-j", "-s", "qdisc", "show", "dev", app.device))):
            if time.monotonic() > deadline:
                raise LabError("the queue of the flow before does not drain")
            time.sleep(0.05)

    @contextmanager
    def sending(self, kind: int, rate: int, block: int, seconds: float) -> Iterator[None]:
        """A socket with a contract sends blocks for the time of the block, at least for `seconds`."""
        target = (self.lab.peer.ipv4[0], _PORT)
        self._drain()
        with ExitStack() as stack:
            sock = stack.enter_context(self.lab.app.socket(socket.AF_INET, kind))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
            if kind == socket.SOCK_DGRAM:
                # A tenth of a second of packets (and what they weigh in memory), so that the end does not drag on.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(8_192, min(rate // 80 * 4, 1 << 17)))
            flow = stack.enter_context(self._qos.add_socket(sock, qos2.TrafficType.AUDIO_VIDEO, dest=target))
            flow.set_rate(rate, shaping=qos2.Shaping.SHAPE_AND_MARK)
            sock.connect(target)
            jobs: list[Callable[[], object]] = [lambda: sent(self._library.write_flood(sock.fileno(), block, seconds))]
            if kind == socket.SOCK_STREAM:
                far = stack.enter_context(self._listener.accept()[0])
                jobs.append(lambda: self._library.stream_drain(far.fileno()))
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            threads = [threading.Thread(target=job, daemon=True) for job in jobs]
            for thread in threads:
                thread.start()
            try:
                yield
            finally:
                threads[0].join()
                sock.close()  # by a reset: what waits is of no use
                for thread in threads[1:]:
                    thread.join()


def measure(session: Session) -> Result:
    """Rate errors of UDP and TCP, then the bursts of TCP with either setting of tcp_tso_rtt_log."""
    with ExitStack() as stack:
        library = stack.enter_context(senders())
        session.tell("starting the daemon")
        stage = Stage(stack, library)
        errors, targets = _errors(stage, session)
        smooth = _smoothness(stage, session)
        shaper = stage.shaper
    return Result(
        "rate",
        "Rate contracts",
        "An application, a router and a peer in three network namespaces; the real daemon on the application's device, "
        f"shaper: {shaper}. Rates are those of the peer's device counters at IP level (received bytes less 14 per "
        "packet), behind a router that hands over single packets; the first half second is left out, and the time "
        "runs from arrival to arrival.",
        (errors, smooth),
        targets,
    )


def _errors(stage: Stage, session: Session) -> tuple[Table, tuple[Target, ...]]:
    rows, worst = [], {"UDP": 0.0, "TCP": 0.0}
    for rate in RATES:
        cells = []
        for name, kind in (("UDP", socket.SOCK_DGRAM), ("TCP", socket.SOCK_STREAM)):
            session.tell(f"{name}, {rate / 1e6:g} Mbit/s")
            seconds = session.choose_s(2.0, 5.0)
            if rate == _SLOW:
                seconds = session.choose_s(5.0, 20.0)
            # With the default, one skb of TCP would be eight seconds of the slowest contract.
            with _tso_rtt_log(stage.lab.app, 0 if rate == _SLOW else None):
                measured = _rate(stage, kind, rate, seconds)
            error = (measured / rate - 1) * 100
            worst[name] = max(worst[name], abs(error))
            cells += [f"{measured / 1e6:,.5g}", f"{error:+.3f} %"]
        rows.append((f"{rate / 1e6:g} Mbit/s", *cells))
    table = Table(
        "Rate error",
        ("contract", "UDP, Mbit/s", "error", "TCP, Mbit/s", "error"),
        tuple(rows),
        (
            f"{session.choose_s(2.0, 5.0):g} s each, {session.choose_s(5.0, 20.0):g} s at 64 kbit/s, where UDP sends "
            "100 bytes of payload (else 1,400) and tcp_tso_rtt_log is 0.",
        ),
    )
    return table, tuple(
        Target(f"rate-{name.lower()}", f"{name}: largest rate error, 64 kbit/s to 1 Gbit/s", 0.5, error, "%")
        for name, error in worst.items()
    )


def _rate(stage: Stage, kind: int, rate: int, seconds: float) -> float:
    block = _BULK_BYTES if kind == socket.SOCK_STREAM else 100 if rate == _SLOW else 1_400
    pause_s = 0.0005 if rate < 100_000_000 else 0.002
    length = _SETTLE_S + seconds
    with stage.sending(kind, rate, block, length):
        begin = time.monotonic()
        steps = stage.counters.watch(length, pause_s)
    return rate_of(steps, begin + _SETTLE_S, begin + length)


@contextmanager
def _tso_rtt_log(namespace: Namespace, value: int | None) -> Iterator[None]:
    """The setting of the namespace for the block; None leaves it."""
    before = _read_tso_rtt_log(namespace)
    if value is not None:
        namespace.sysctl(_TSO_RTT_LOG, value)
    try:
        yield
    finally:
        namespace.sysctl(_TSO_RTT_LOG, before)


def _read_tso_rtt_log(namespace: Namespace) -> int:
    with namespace.entered(), open(f"/proc/sys/net/{_TSO_RTT_LOG}") as setting:
        return int(setting.read())


class _Departures:
    """The sizes of the skbs that leave a device, seen by a packet socket behind its qdisc."""

    def __init__(self, namespace: Namespace) -> None:
        self.octets: list[int] = []  #: at IP level
        self._stop = threading.Event()
        self._socket = namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        self._socket.bind((namespace.device, _ETH_P_ALL))
        self._socket.settimeout(0.1)
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        frame = bytearray(1)
        while not self._stop.is_set():
            try:
                octets, _, _, (_, _, direction, *_) = self._socket.recvmsg_into([frame], 0, socket.MSG_TRUNC)
            except TimeoutError:
                continue
            if direction == socket.PACKET_OUTGOING:
                self.octets.append(octets - _ETHERNET_BYTES)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()


def _smoothness(stage: Stage, session: Session) -> Table:
    rows = []
    for rate in _SMOOTH_RATES:
        for setting in (None, 0):
            with _tso_rtt_log(stage.lab.app, setting):
                shown = f"{_read_tso_rtt_log(stage.lab.app)}{' (as it is)' if setting is None else ''}"
                session.tell(f"TCP bursts, {rate / 1e6:g} Mbit/s, tcp_tso_rtt_log {shown}")
                burst = _burst(stage, rate, session.choose_s(2.0, 6.0))
            rows.append(
                (
                    f"{rate / 1e6:g} Mbit/s",
                    shown,
                    *(f"{octets:,}" for octets in (burst.granted, burst.excess, burst.largest_skb, burst.mean_skb)),
                )
            )
    return Table(
        "TCP bursts",
        ("contract", "tcp_tso_rtt_log", "granted, bytes", "excess, bytes", "largest skb, bytes", "mean"),
        tuple(rows),
        (
            "Granted in 100 ms: the contract and the depth of its bucket. Excess: what the fullest 100 ms of a capture "
            "at the peer held more, at IP level; a negative number is what was left. One skb may go on debt.",
            "At such tiny round trips TCP as it is hands over up to 64 KB at once, however slow the contract; 0 sizes "
            "its packets by the rate alone.",
        ),
    )


@dataclass(frozen=True, slots=True)
class Burst:
    """All in bytes at IP level; `excess` and `granted` within the window."""

    excess: int
    granted: int
    largest_skb: int
    mean_skb: int


def _burst(stage: Stage, rate: int, seconds: float) -> Burst:
    with ExitStack() as stack:
        recording = Recording.start(stage.lab.peer, stage.lab.router)
        stack.callback(recording.cancel)
        stack.enter_context(stage.sending(socket.SOCK_STREAM, rate, _BULK_BYTES, _SETTLE_S + seconds))
        departures = _Departures(stage.lab.app)
        stack.callback(departures.close)
        time.sleep(_SETTLE_S)
        departures.octets.clear()
        time.sleep(seconds)
        sizes = tuple(departures.octets)
        # Before the flow ends, and with it the contract of what still waits.
        packets = recording.stop().select(protocol=TCP, dport=_PORT)
    begin = packets.time_ns[0] + round(_SETTLE_S * 1e9)
    kept = packets.select(begin_ns=int(begin))
    window_ns = round(_WINDOW_S * 1e9)
    granted = round(rate * _WINDOW_S / 8) + bucket_depth_bytes(rate)
    most = most_bytes(np.asarray(kept.time_ns), np.asarray(kept.ip_bytes), window_ns)
    return Burst(most - granted, granted, max(sizes), sum(sizes) // len(sizes))
