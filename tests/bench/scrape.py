"""Group `scrape`: what a scrape takes while all slots have flows, and that nobody is told later because of it.

The scraper is a process of its own (`python -m bench.scrape URL`): it takes lines `SECONDS PER_SECOND` and answers each
with a line of JSON, the latencies of its scrapes in milliseconds.
"""

import json
import re
import resource
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import qos2
from bench.figures import Result, Table, Target, over, percentile, spread
from bench.session import Session
from demo.lab import Lab, LabError, Namespace, end
from demo.processes import Daemon, Sink, environment
from qos2.model import Condition, TrafficType

_FLOWS = 65_536
#: Flows of one socket, each to another port: so many sockets nobody may open.
_DESTINATIONS = 4
_ADAPTIVE = 32
_PER_SECOND = 20
_SCRAPE_MS = 20.0
_SERIES = 400
_TOP = 50
_ADDRESS = "127.0.0.1:9472"
_TESTS = Path(__file__).resolve().parents[1]
#: Between two reports of an application; each is about 20 datagrams.
_REPORT_S = 0.1
_DATAGRAMS = 20
_LOSS = 0.3


@dataclass(frozen=True, slots=True)
class Heard:
    """What the daemon itself counts of its notifications and of its event loop, in a phase."""

    notifications: int
    mean_ms: float
    lag_mean_ms: float
    late_turns: float  #: share of the turns of the event loop that were more than 25 ms late
    cpu: float  #: share of one CPU that the daemon used


class Applications:
    """Adaptive flows that report loss until they are told of congestion, and none until they are told of its end."""

    def __init__(self, qos: qos2.Handle, lab: Lab, stack: ExitStack) -> None:
        self._flows = []
        for _ in range(_ADAPTIVE):
            sock = stack.enter_context(lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.connect((lab.peer.ipv4[0], 5004))
            self._flows.append((sock, qos.add_socket(sock, TrafficType.VOICE, adaptive=True)))

    def run(self, seconds: float) -> None:
        """Go on for so long; a wait that is not over then is cancelled."""
        until_s = time.monotonic() + seconds
        condition = Condition.CONGESTED
        while time.monotonic() < until_s:
            waits = [flow.begin_notify(condition) for _, flow in self._flows]
            loss = _LOSS if condition is Condition.CONGESTED else 0.0
            while time.monotonic() < until_s and not all(wait.done for wait in waits):
                for sock, flow in self._flows:
                    for _ in range(_DATAGRAMS):
                        sock.send(bytes(100))
                    flow.report(loss=loss)
                time.sleep(_REPORT_S)
            for wait in waits:
                with suppress(qos2.InvalidRequest):  # answered in this moment
                    wait.cancel()
            condition = Condition.UNCONGESTED if condition is Condition.CONGESTED else Condition.CONGESTED


class Scraper:
    """The process; a context manager by `scraping`."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process

    def begin(self, seconds: float, per_second: float) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds} {per_second}\n".encode())
        self._process.stdin.flush()

    def finish(self) -> list[float]:
        """Milliseconds of each. Raises LabError where it failed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise LabError("the scraper failed")
        found: list[float] = json.loads(line)
        return found


def measure(session: Session) -> Result:
    """Phases without scrapes and with many, in turn; then single flows, which are rendered when they are asked for."""
    rounds, seconds = session.choose(2, 3), session.choose_s(4.0, 5.0)
    alone: list[Heard] = []
    scraped: list[Heard] = []
    scrapes: list[float] = []
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("qos2-bench"))
        session.tell("starting the daemon")
        daemon = stack.enter_context(
            Daemon(lab.app, metrics=_ADDRESS, metrics_flows_top=_TOP, max_flows=_FLOWS + _ADAPTIVE, probing=False)
        )
        stack.enter_context(Sink(lab.peer, [], [5004]))
        qos = stack.enter_context(qos2.Handle(daemon.socket))
        applications = Applications(qos, lab, stack)
        _crowd(qos, lab, session, stack)
        scraper = stack.enter_context(scraping(lab.app, "/metrics"))
        for number in range(rounds):
            session.tell(f"round {number + 1} of {rounds}")
            alone.append(_phase(lab.app, applications, seconds)[0])
            heard, latencies = _phase(lab.app, applications, seconds, scraper)
            scraped.append(heard)
            scrapes += latencies
        session.tell("single flows")
        single = stack.enter_context(scraping(lab.app, f"/metrics/flows?top={_TOP}"))
        single.begin(3.0, 4)
        singles = single.finish()
        size, series = _page(lab.app)
    later_ms = spread(over([each.mean_ms for each in scraped], [each.mean_ms for each in alone])).median
    return Result(
        "scrape",
        "Scrapes",
        f"The real daemon with {_FLOWS:,} flows; {_ADAPTIVE} adaptive flows more report loss, are told of congestion, "
        "report none, are told of its end, and so on. Phases without and with scrapes take turns: a scraper in a "
        f"process of its own asks {_PER_SECOND} times a second, 300 times as often as Prometheus would. Notifications "
        "and lag are as the daemon counts them itself.",
        (
            Table(
                "Scrapes",
                ("", "p50, ms", "p99, ms", "scrapes"),
                (_row("/metrics", scrapes), _row(f"/metrics/flows?top={_TOP}", singles)),
                (f"/metrics has {size:,} bytes, {series} series.",),
            ),
            Table(
                "Notifications",
                ("", "notifications", "mean, ms", "lag, mean, ms", "turns more than 25 ms late", "CPU of the daemon"),
                (_told("without scrapes", alone), _told(f"with {_PER_SECOND} scrapes a second", scraped)),
            ),
        ),
        (
            Target("scrape-p99", f"p99 of a scrape with {_FLOWS:,} flows", _SCRAPE_MS, percentile(scrapes, 99), "ms"),
            Target("scrape-series", "series", _SERIES, series, decimals=0),
            Target("scrape-notification", "notification, later by scrapes: median of rounds", 1.0, later_ms, "ms"),
        ),
    )


def _row(path: str, latencies: list[float]) -> tuple[str, ...]:
    return path, f"{percentile(latencies, 50):.2f}", f"{percentile(latencies, 99):.2f}", f"{len(latencies)}"


def _told(when: str, rounds: list[Heard]) -> tuple[str, ...]:
    return (
        when,
        f"{sum(each.notifications for each in rounds)}",
        spread([each.mean_ms for each in rounds]).text(2),
        spread([each.lag_mean_ms for each in rounds]).text(2),
        f"{spread([each.late_turns for each in rounds]).median:.1%}",
        f"{spread([each.cpu for each in rounds]).median:.1%}",
    )


def _phase(
    app: Namespace, applications: Applications, seconds: float, scraper: Scraper | None = None
) -> tuple[Heard, list[float]]:
    before, begin_s = _counters(app), time.monotonic()
    if scraper is not None:
        scraper.begin(seconds, _PER_SECOND)
    applications.run(seconds)
    scrapes = [] if scraper is None else scraper.finish()
    time.sleep(1.2)  # rendered once a second
    after = _counters(app)

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    told = "qos2_notification_seconds"
    lag = "qos2_event_loop_lag_seconds"
    turns = max(1.0, grown(f"{lag}_count"))
    count = grown(f"{told}_count")
    if not count:
        raise LabError("no application was told of congestion")
    heard = Heard(
        notifications=round(count),
        mean_ms=grown(f"{told}_sum") / count * 1e3,
        lag_mean_ms=grown(f"{lag}_sum") / turns * 1e3,
        late_turns=1 - grown(f'{lag}_bucket{{le="0.025"}}') / turns,
        cpu=grown("process_cpu_seconds_total") / (time.monotonic() - begin_s),
    )
    return heard, scrapes


def _crowd(qos: qos2.Handle, lab: Lab, session: Session, stack: ExitStack) -> None:
    """Flows of sockets with several destinations."""
    sockets = _FLOWS // _DESTINATIONS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if sockets + 256 > hard:
        raise LabError(f"{sockets} sockets need a limit of open files of {sockets + 256}, not {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, sockets + 256), hard))
    with lab.app.entered():
        made = [stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) for _ in range(sockets)]
    kinds = tuple(TrafficType)
    for number, sock in enumerate(made):
        if number % 1024 == 0:
            session.tell(f"flow {number * _DESTINATIONS:,} of {_FLOWS:,}")
        for port in range(_DESTINATIONS):
            qos.add_socket(sock, kinds[number % len(kinds)], dest=("192.0.2.1", 5000 + port))


def _get(app: Namespace, path: str) -> str:
    with app.entered(), urllib.request.urlopen(f"http://{_ADDRESS}{path}", timeout=10) as answer:
        body: bytes = answer.read()
        return body.decode()


def _page(app: Namespace) -> tuple[int, int]:
    """Bytes and series of /metrics."""
    text = _get(app, "/metrics")
    return len(text), sum(not line.startswith("#") for line in text.splitlines())


def _counters(app: Namespace) -> dict[str, float]:
    """The samples of the two histograms, by name and bound, over all conditions, and the CPU time."""
    found: dict[str, float] = {}
    samples = r"^(process_cpu_seconds_total|qos2_(?:notification|event_loop_lag)_seconds_\w+)(\{.*\})? (\S+)$"
    for name, labels, value in re.findall(samples, _get(app, "/metrics"), re.MULTILINE):
        bound = re.search(r'le="[^"]*"', labels)
        key = f"{name}{{{bound[0]}}}" if bound else name
        found[key] = found.get(key, 0.0) + float(value)
    return found


@contextmanager
def scraping(app: Namespace, path: str) -> Iterator[Scraper]:
    """A process in the namespace."""
    variables = environment()
    process = app.popen(
        *(sys.executable, "-m", "bench.scrape", f"http://{_ADDRESS}{path}"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=variables | {"PYTHONPATH": f"{_TESTS}:{variables['PYTHONPATH']}"},
    )
    try:
        yield Scraper(process)
    finally:
        end(process)


def _scrape(url: str, seconds: float, per_second: float) -> list[float]:
    """Milliseconds of each scrape, from connecting to the last byte."""
    found: list[float] = []
    begin_s = time.monotonic()
    while (due_s := begin_s + len(found) / per_second) < begin_s + seconds:
        time.sleep(max(0.0, due_s - time.monotonic()))
        before_s = time.perf_counter()
        with urllib.request.urlopen(url, timeout=10) as answer:
            answer.read()
        found.append((time.perf_counter() - before_s) * 1e3)
    return found


def main() -> None:
    """Serve lines until the input ends."""
    for line in sys.stdin:
        seconds, per_second = map(float, line.split())
        print(json.dumps(_scrape(sys.argv[1], seconds, per_second)), flush=True)


if __name__ == "__main__":
    main()
