"""Records a trace of signals in the lab: `python -m harness.record_trace KIND FILE` (root; tests/ in PYTHONPATH).

    PYTHONPATH=controlplane:deploy:tests python -m harness.record_trace tcp_onset_20 \
        tests/unit/traces/recorded_tcp_onset_20.csv

What is recorded is what the daemon's own detector was given. The truth beside it comes from the queue of the
bottleneck, looked at ten times a second, by the rule of unit/queuetruth.py. Takes half a minute; do nothing else
meanwhile.
"""

import argparse
import contextlib
import json
import platform
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import qos2
from demo.processes import environment
from harness.congested import PEER, CongestedLab, wait_until
from qos2.core.signals import SIGNALS
from qos2.model import Condition, Method, TrafficType
from unit.queuetruth import Sample, seen_by_probes, truth
from unit.signaltraces import GAUGES, Offer, Trace, Window, written

MBIT = 1e6
SAMPLE_S = 0.1
SETTLE_S, CROSS_S, PAUSE_S, ROUNDS = 4.0, 5.0, 6.0, 2
THINK_S = 0.038
_TESTS = Path(__file__).resolve().parents[1]


class Kind(NamedTuple):
    """`run` has a flow do what it is about, on a link of `rate` bits/s with a queue of `queue_ms`."""

    about: str
    rate: float
    queue_ms: float
    connect: Callable[[CongestedLab, ExitStack], socket.socket]
    run: Callable[["Recording"], None]


class Recording(NamedTuple):
    """What a kind has to play with; `capacity` in bits/s at IP level."""

    lab: CongestedLab
    flow: qos2.Flow
    sock: socket.socket
    capacity: float


def tcp(lab: CongestedLab, _stack: ExitStack) -> socket.socket:
    """A connection to somebody who reads."""
    return lab.tcp()


def udp(lab: CongestedLab, _stack: ExitStack) -> socket.socket:
    """A socket whose path is probed."""
    lab.reflector()
    return lab.udp()


def answered(lab: CongestedLab, stack: ExitStack) -> socket.socket:
    """A connection to somebody who answers everything after THINK_S."""
    with contextlib.closing(lab.lab.peer.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
        listener.bind((PEER, 0))
        listener.listen()
        sock = stack.enter_context(lab.lab.app.socket(socket.AF_INET, socket.SOCK_STREAM))
        sock.connect(listener.getsockname())
        server = stack.enter_context(listener.accept()[0])

    def run() -> None:
        while server.recv(4096):
            time.sleep(THINK_S)
            server.send(bytes(500))

    thread = threading.Thread(target=run)
    thread.start()
    stack.callback(thread.join)
    stack.callback(sock.shutdown, socket.SHUT_RDWR)  # before it is waited for
    return sock


def ask(on: Recording) -> None:
    """A question as soon as the last one was answered and 50 ms are over."""
    for _ in range(ROUNDS * 100):
        on.sock.send(bytes(200))
        on.sock.recv(4096)
        time.sleep(0.05)


def onset(on: Recording) -> None:
    """Two fifths of the link, and twice somebody else who wants nine tenths."""
    with on.lab.sending(on.sock, 0.4 * on.capacity) as flood:
        flood.begin()
        time.sleep(SETTLE_S)
        for _ in range(ROUNDS):
            with on.lab.cross(0.9 * on.capacity) as cross:
                cross.begin()
                time.sleep(CROSS_S)
            time.sleep(PAUSE_S)


def paced(share: float, block: int) -> Callable[[Recording], None]:
    """Blocks of so many bytes, a share of the link in all."""

    def run(on: Recording) -> None:
        with on.lab.sending(on.sock, share * on.capacity, block) as flood:
            flood.begin()
            time.sleep(20)

    return run


def held(rate: float) -> Callable[[Recording], None]:
    """All that it can, under a contract."""

    def run(on: Recording) -> None:
        on.flow.set_rate(round(rate))
        with on.lab.sending(on.sock) as flood:
            flood.begin()
            time.sleep(20)

    return run


def bulk(on: Recording) -> None:
    """All that it can, by cubic; then a little."""
    on.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    with on.lab.sending(on.sock, 0.2 * on.capacity) as flood:
        flood.begin()
        time.sleep(3)
    with on.lab.sending(on.sock) as flood:
        flood.begin()
        time.sleep(10)
    time.sleep(1)
    with on.lab.sending(on.sock, 0.2 * on.capacity) as flood:
        flood.begin()
        time.sleep(6)


KINDS = {
    "tcp_onset_5": Kind("TCP at 2 of 5 Mbit/s, twice with cross traffic", 5 * MBIT, 100, tcp, onset),
    "tcp_onset_20": Kind("TCP at 8 of 20 Mbit/s, twice with cross traffic", 20 * MBIT, 100, tcp, onset),
    "tcp_onset_50": Kind("TCP at 20 of 50 Mbit/s, twice with cross traffic", 50 * MBIT, 100, tcp, onset),
    "tcp_alone": Kind("TCP in blocks of 30,000 bytes, a third of 20 Mbit/s", 20 * MBIT, 100, tcp, paced(0.3, 30_000)),
    "tcp_thin": Kind("TCP with one message of 200 bytes each 90 ms", 20 * MBIT, 100, tcp, paced(0.001, 200)),
    "tcp_contract": Kind("TCP that wants all, by a contract of 2 of 20 Mbit/s", 20 * MBIT, 100, tcp, held(2 * MBIT)),
    "tcp_contract_high": Kind(
        "TCP that wants all, by a contract of 15 of 20 Mbit/s", 20 * MBIT, 100, tcp, held(15 * MBIT)
    ),
    "tcp_bursts": Kind("TCP in bursts of 60,000 bytes, a tenth of 20 Mbit/s", 20 * MBIT, 100, tcp, paced(0.1, 60_000)),
    "tcp_bulk": Kind("TCP (cubic) that fills 20 Mbit/s with a deep queue", 20 * MBIT, 200, tcp, bulk),
    "tcp_questions": Kind("TCP with questions that are answered after 38 ms", 20 * MBIT, 100, answered, ask),
    "udp_probed_20": Kind("UDP at 8 of 20 Mbit/s, probed, twice with cross traffic", 20 * MBIT, 100, udp, onset),
}


def main() -> int:
    """Record what was asked for."""
    parser = argparse.ArgumentParser(prog="record_trace", description="Records a trace of signals in the lab.")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("file", type=Path)
    given = parser.parse_args()
    given.file.write_text(written(recorded(given.kind)))
    return 0


def recorded(name: str) -> Trace:
    """A kind, as it went."""
    kind = KINDS[name]
    with CongestedLab() as lab, tempfile.TemporaryDirectory() as folder:
        journal = Path(folder, "journal")
        replace_daemon(lab, journal)
        capacity = lab.bottleneck(kind.rate, kind.queue_ms)
        with ExitStack() as stack:
            sock = kind.connect(lab, stack)
            qos = stack.enter_context(lab.handle())  # closed first, which ends whoever waits below
            samples = stack.enter_context(sampled(lab, kind.rate))
            probed = sock.type == socket.SOCK_DGRAM
            flow = qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=probed)
            watch = threading.Thread(target=follow, args=[flow]) if probed else None
            if watch is not None:
                watch.start()
            kind.run(Recording(lab, flow, sock, capacity))
        if watch is not None:
            watch.join()
        begin_s, windows = read_journal(journal)
    now = datetime.now(UTC)
    link = f"tbf {kind.rate / MBIT:g} Mbit/s, queue {kind.queue_ms:g} ms"
    origin = f"recorded {now:%Y-%m-%d}, Linux {platform.release()}, {link}"
    found = truth([each._replace(at_s=each.at_s - begin_s) for each in samples if each.at_s > begin_s], 0.0)
    if probed:
        found = seen_by_probes(found)
    return Trace(name, kind.about, origin, windows[-1].at_ms / 1000, found, tuple(windows))


def follow(flow: qos2.Flow) -> None:
    """Somebody wants to know of congestion and its end, again and again: who watches is probed for."""
    wanted = Condition.CONGESTED
    with contextlib.suppress(qos2.QosError):  # the session is over
        while True:
            flow.notify(wanted, timeout=None)
            wanted = Condition.UNCONGESTED if wanted is Condition.CONGESTED else Condition.CONGESTED


def replace_daemon(lab: CongestedLab, journal: Path) -> None:
    """Instead of the lab's daemon one that takes notes."""
    daemon = lab.daemon
    daemon.stop()
    config = str(daemon.directory / "qos2d.toml")
    daemon.process = lab.lab.app.popen(
        *(sys.executable, "-m", "harness.recorded_daemon", str(journal), "--config", config),
        *("--socket", daemon.socket, "--device", lab.lab.app.device),
        env=environment() | {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{_TESTS}"},
    )

    def answers() -> bool:
        try:
            qos2.Handle(daemon.socket).close()
        except qos2.ServiceUnavailable:
            return False
        return True

    wait_until(answers, 60)


@contextmanager
def sampled(lab: CongestedLab, rate: float) -> Iterator[list[Sample]]:
    """Looks at the bottleneck for the block; there is one more each SAMPLE_S."""
    samples: list[Sample] = []
    over = threading.Event()

    def look() -> dict[str, Any]:
        router = lab.lab.router
        (found,) = json.loads(router.run("tc", "-s", "-j", "qdisc", "show", "dev", router.device, "root"))
        return dict(found)

    def run() -> None:
        before = look()
        while not over.wait(SAMPLE_S):
            at_s, now = time.monotonic(), look()
            delay_s = now["backlog"] * 8 / rate
            passed, dropped = (now[name] - before[name] for name in ("packets", "drops"))
            samples.append(Sample(at_s, delay_s, passed, dropped))
            before = now

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield samples
    finally:
        over.set()
        thread.join()


def read_journal(journal: Path) -> tuple[float, list[Window]]:
    """When the flow was first looked at (a window before that is 0 of the trace), and its windows."""
    before = dict.fromkeys(SIGNALS.names or (), 0)
    windows: list[Window] = []
    begin_s = None
    for line in journal.read_text().splitlines():
        now_s, _slot, found, offers = json.loads(line)
        begin_s = now_s - SAMPLE_S if begin_s is None else begin_s
        now = dict(zip(before, found, strict=True))
        news = {name: now[name] if name in GAUGES else now[name] - before[name] for name in now}
        before = now
        offered = tuple(Offer(Method(method), *numbers) for method, *numbers in offers)
        windows.append(Window(round((now_s - begin_s) * 1000), news, offered))
    if begin_s is None:
        raise ValueError("the detector never looked at the flow")
    return begin_s, windows


if __name__ == "__main__":
    sys.exit(main())
