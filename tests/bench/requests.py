"""Group `requests`: how many add + remove pairs per second the daemon serves, and how long one call takes.

The daemon has one CPU, its clients share the others: a voice server that adds and removes a socket per datagram.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.figures import Result, Table, Target, percentile, spread
from bench.session import Session
from demo.lab import Lab, LabError, Namespace, command, end
from demo.processes import Daemon, environment

_CROWD = 8
_TARGETS = {1: 10_000, _CROWD: 15_000}
_CALL_US = 1_000
_TESTS = Path(__file__).resolve().parents[1]
_LIBRARY = _TESTS.parent / "clients" / "c"
_PYTHON, _C = "Python", "C"


class Client:
    """The process of client.py or of pairs.c; a context manager."""

    def __init__(self, namespace: Namespace, daemon: Daemon, argv: tuple[str, ...], cpus: set[int]) -> None:
        variables = environment()
        variables |= {"PYTHONPATH": f"{_TESTS}:{variables['PYTHONPATH']}", "QOS2_SOCKET": daemon.socket}
        self._process = namespace.popen(*argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables)
        os.sched_setaffinity(self._process.pid, cpus)
        if self._line() != "ready\n":
            end(self._process)
            raise LabError(f"a client did not start: {' '.join(argv)}")

    def begin(self, seconds: float, pairs_per_second: float) -> None:
        """Start a round; 0 pairs per second: as many as it can."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds} {pairs_per_second}\n".encode())
        self._process.stdin.flush()

    def finish(self) -> list[float]:
        """The latencies of the round's calls in microseconds, two for each pair."""
        line = self._line()
        if not line:
            raise LabError("a client failed")
        found: list[float] = json.loads(line)
        return found

    def close(self) -> None:
        end(self._process)

    def _line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().decode()


def measure(session: Session) -> Result:
    """Both languages, one client and many, with all they can and with half of what is promised."""
    with Lab("qos2-bench") as lab, Daemon(lab.app) as daemon, _programs() as programs:
        daemon_cpus, client_cpus = _split(os.sched_getaffinity(0))
        assert daemon.process is not None
        os.sched_setaffinity(daemon.process.pid, daemon_cpus)
        crowds = {}
        with ExitStack() as stack:
            for language, argv in programs.items():
                crowds[language] = [Client(lab.app, daemon, argv, client_cpus) for _ in range(_CROWD)]
                for client in crowds[language]:
                    stack.callback(client.close)
            full, half = _rounds(session, crowds)
    loads = list(full)
    return Result(
        "requests",
        "Add and remove",
        "The real daemon on one CPU, its clients on the others; each client is a process with a handle and a socket. "
        "A pair is QOSAddSocketToFlow and QOSRemoveSocketFromFlow, by the Python package and by libqwave, each a "
        "request with a reply. Loads are measured in turn.",
        (
            Table(
                "As many pairs as they can",
                ("clients", "pairs per second in all", "p50, us per call", "p99, us per call"),
                tuple(_row(load, full[load]) for load in loads),
            ),
            Table(
                "At half of what is promised",
                ("clients", "pairs per second in all", "p50, us per call", "p99, us per call"),
                tuple(_row(load, half[load]) for load in loads),
            ),
        ),
        tuple(target for load in loads for target in _targets(load, full[load], half[load])),
    )


class _Rounds:
    """The latencies of every call, by round."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.rounds: list[list[float]] = []

    @property
    def pairs_per_second(self) -> list[float]:
        return [len(each) / 2 / self.seconds for each in self.rounds]

    def percentile_us(self, percent: float) -> float:
        return percentile((latency for each in self.rounds for latency in each), percent)


_Load = tuple[str, int]


def _rounds(session: Session, crowds: dict[str, list[Client]]) -> tuple[dict[_Load, _Rounds], dict[_Load, _Rounds]]:
    rounds, seconds = session.choose(5, 9), session.choose_s(0.7, 2.0)
    loads = [(language, count) for count in _TARGETS for language in crowds]
    full, half = ({load: _Rounds(seconds) for load in loads} for _ in range(2))
    for number in range(rounds):
        for language, count in loads:
            session.tell(f"round {number + 1} of {rounds}, {count} x {language}")
            for measured, rate in ((full, 0.0), (half, _TARGETS[count] / 2 / count)):
                clients = crowds[language][:count]
                for client in clients:
                    client.begin(seconds, rate)
                latencies = [latency for client in clients for latency in client.finish()]
                measured[language, count].rounds.append(latencies)
    return full, half


def _row(load: _Load, measured: _Rounds) -> tuple[str, ...]:
    language, count = load
    p50, p99 = (f"{measured.percentile_us(percent):,.0f}" for percent in (50, 99))
    return f"{count} in {language}", spread(measured.pairs_per_second).text(0), p50, p99


def _targets(load: _Load, full: _Rounds, half: _Rounds) -> Iterator[Target]:
    language, count = load
    who = f"{count} client{'s' * (count > 1)} in {language}"
    key = f"{language.lower()}-{count}"
    rate = spread(full.pairs_per_second).median
    yield Target(f"requests-{key}", f"{who}: pairs per second", _TARGETS[count], rate, at_least=True, decimals=0)
    yield Target(
        f"requests-p99-{key}",
        f"{who}, at half of that: p99 of one call",
        _CALL_US,
        half.percentile_us(99),
        "us",
        decimals=0,
    )


def _split(cpus: set[int]) -> tuple[set[int], set[int]]:
    """One CPU for the daemon, the others for its clients (the same one where there is no other)."""
    last = max(cpus)
    return {last}, cpus - {last} or {last}


@contextmanager
def _programs() -> Iterator[dict[str, tuple[str, ...]]]:
    """The command line of a client in each language. Raises LabError where the C one cannot be built."""
    command("make", "--silent", "-C", str(_LIBRARY))
    with tempfile.TemporaryDirectory(prefix="qos2-bench-") as folder:
        pairs, build = str(Path(folder, "pairs")), _LIBRARY / "build"
        command(
            *(
                "gcc",
                "-O2",
                "-Wall",
                "-Werror",
                f"-I{_LIBRARY / 'include'}",
                "-o",
                pairs,
                str(_TESTS / "bench" / "pairs.c"),
            ),
            *(f"-L{build}", "-lqwave", f"-Wl,-rpath,{build}"),
        )
        yield {_PYTHON: (sys.executable, "-m", "bench.client"), _C: (pairs,)}
