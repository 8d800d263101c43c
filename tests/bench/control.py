"""Group `control`: what the daemon costs: requests per second, their latency, its memory, its start."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import qos2
from bench.figures import Result, Table, Target, percentile, spread
from bench.session import Session
from demo.lab import Lab, LabError, Namespace, end
from demo.processes import Daemon, environment

_CLIENTS = 4
_FLOWS = 10_000
_TESTS = Path(__file__).resolve().parents[1]


class Client:
    """The process of client.py; a context manager."""

    def __init__(self, namespace: Namespace, path: str) -> None:
        variables = environment()
        self._process = namespace.popen(
            *(sys.executable, "-m", "bench.client", path),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=variables | {"PYTHONPATH": f"{_TESTS}:{variables['PYTHONPATH']}"},
        )
        if self._line() != "ready\n":
            end(self._process)
            raise LabError("a client did not start")

    def begin(self, seconds: float) -> None:
        """Start a round."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n".encode())
        self._process.stdin.flush()

    def finish(self) -> list[float]:
        """The latencies of the round's pairs in microseconds."""
        found: list[float] = json.loads(self._line())
        return found

    def close(self) -> None:
        end(self._process)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()


def measure(session: Session) -> Result:
    """Start, requests, memory."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("qos2-bench"))
        first, again = _starts(lab, session)
        with Daemon(lab.app) as daemon:
            requests, pairs = _requests(lab, daemon, session)
        with Daemon(lab.app) as daemon:
            empty_mib = resident_mib(daemon)
            full_mib = _full(lab, daemon, session)
    resources = Table(
        "Start and memory",
        ("", "measured"),
        (
            ("start, compiling, s", spread(first).text(2)),
            ("start after kill -9, programs and maps in place, s", spread(again).text(2)),
            ("resident memory without flows, MiB", f"{empty_mib:.1f}"),
            (f"resident memory with {_FLOWS:,} flows, MiB", f"{full_mib:.1f}"),
        ),
    )
    return Result(
        "control",
        "The daemon",
        "The real daemon on a device in a network namespace. A pair is `add_socket` and `close` of its flow by the "
        "Python client library, each a request with a reply; clients are processes of their own on the same CPUs. "
        "Start: from exec until a client can connect. Memory: VmRSS, without flows right after the start.",
        (requests, resources),
        (
            Target(
                "control-pairs", f"add + remove per second, {_CLIENTS} clients", 5_000, pairs, at_least=True, decimals=0
            ),
            Target("control-memory", f"memory with {_FLOWS:,} flows", 64, full_mib, "MiB", decimals=1),
            Target("control-start", "start, compiling", 2, spread(first).median, "s"),
            Target("control-restart", "start, programs in place", 2, spread(again).median, "s"),
        ),
    )


def resident_mib(daemon: Daemon) -> float:
    """VmRSS of the daemon's process in MiB."""
    assert daemon.process is not None
    for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LabError("the daemon is gone")


def _starts(lab: Lab, session: Session) -> tuple[list[float], list[float]]:
    """Seconds of first starts, and of starts after kill -9, in turn."""
    first, again = [], []
    rounds = session.choose(3, 7)
    for number in range(rounds):
        session.tell(f"start {number + 1} of {rounds}")
        begin = time.monotonic()
        with Daemon(lab.app) as daemon:
            first.append(time.monotonic() - begin)
            daemon.kill()
            begin = time.monotonic()
            daemon.start()
            again.append(time.monotonic() - begin)
    return first, again


def _full(lab: Lab, daemon: Daemon, session: Session) -> float:
    """Resident memory while there are many flows, one socket each."""
    session.tell(f"{_FLOWS:,} flows")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = len(os.listdir("/proc/self/fd")) + _FLOWS + 64
    if need > hard:
        raise LabError(f"{_FLOWS} sockets need a limit of open files of {need}, not {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))
    with ExitStack() as stack:
        qos = stack.enter_context(qos2.Handle(daemon.socket))
        stack.enter_context(lab.app.entered())
        for _ in range(_FLOWS):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.connect(("127.0.0.1", 9))
            qos.add_socket(sock, qos2.TrafficType.VOICE)
        return resident_mib(daemon)


def _requests(lab: Lab, daemon: Daemon, session: Session) -> tuple[Table, float]:
    rates: dict[int, list[float]] = {1: [], _CLIENTS: []}
    latencies: dict[int, list[float]] = {1: [], _CLIENTS: []}
    rounds, seconds = session.choose(5, 15), session.choose_s(0.7, 2.0)
    with ExitStack() as stack:
        clients = []
        for _ in range(_CLIENTS):
            client = Client(lab.app, daemon.socket)
            stack.callback(client.close)
            clients.append(client)
        for number in range(rounds):
            session.tell(f"add and remove, round {number + 1} of {rounds}")
            for count in rates:
                for client in clients[:count]:
                    client.begin(seconds)
                pairs = [client.finish() for client in clients[:count]]
                rates[count].append(sum(map(len, pairs)) / seconds)
                latencies[count] += [latency for each in pairs for latency in each]
    rows = []
    for count, samples in rates.items():
        name = f"{count} client{'s' * (count > 1)}"
        p50, p99 = (f"{percentile(latencies[count], percent):,.0f}" for percent in (50, 99))
        rows.append((name, spread(samples).text(0), p50, p99))
    table = Table("Add and remove", ("", "pairs per second", "p50, us per pair", "p99, us per pair"), tuple(rows))
    return table, spread(rates[_CLIENTS]).median
