"""Of group `paths`: how far what applications are told of a path is from what it is, and how soon they are told.

Samples are taken from the first answer on. Beside them stand simpler estimators: the kernel's own delivery rate at the
same moments, and packet pairs, which are sent right after, since they would be cross traffic to the daemon's trains.
An answer that is not there, or a lower bound, is no error: such are counted apart.
"""

import math
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace

import qos2
from bench.baselines import BASELINES, DeliveryRate, PacketPairs
from bench.figures import Table, Target, percentile
from bench.grid import Cell, Others, Shaper, Ways, cells
from bench.session import Session
from demo.lab import LabError
from harness.congested import CongestedLab
from qos2.core.probing import CREDIT_BYTES
from qos2.model import TrafficType

KINDS = ("TCP", "UDP")
#: No answer later than this counts.
_PATIENCE_S = 5.0
_POLL_S = 0.02
_SAMPLE_S = 0.35
_SAMPLES = 10
#: Of the whole grid.
ROUNDS = 2
#: Bottlenecks at which bytes of probes are counted, and how long the credit of the first answers may last there.
BUDGETS = {5: 30.0, 50: 5.0}


@dataclass(frozen=True, slots=True)
class Sample:
    """Bits/s as told at one moment; None: it was not told, or not as measured. `baselines`: as BASELINES has them."""

    bottleneck: float | None
    available: float | None
    baselines: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class Truth:
    """Bits/s at IP level; `available` by what of others really arrived meanwhile."""

    bottleneck: float
    available: float


@dataclass(frozen=True, slots=True)
class Estimated:
    """One measurement. `first_s`: until both bandwidths were told; inf: they were not."""

    kind: str
    cell: Cell
    first_s: float
    samples: tuple[Sample, ...]
    truth: Truth

    @property
    def bottleneck(self) -> list[float]:
        """Errors of what was told, in percent."""
        return _errors((sample.bottleneck for sample in self.samples), self.truth.bottleneck)

    @property
    def available(self) -> list[float]:
        """Errors of what was told, in percent."""
        return _errors((sample.available for sample in self.samples), self.truth.available)

    def baseline(self, number: int) -> list[float]:
        """The same for a baseline: packet pairs tell of the bottleneck, the kernel of what a flow gets."""
        truth = self.truth.bottleneck if self.kind == "UDP" else self.truth.available
        return _errors((sample.baselines[number] for sample in self.samples), truth)

    @property
    def untold(self) -> int:
        """Samples in which either bandwidth was not told."""
        return sum(None in (sample.bottleneck, sample.available) for sample in self.samples)


def _errors(told_bps: Iterable[float | None], truth: float) -> list[float]:
    return [abs(each / truth - 1) * 100 for each in told_bps if each is not None]


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes of probes at IP level that came in the first seconds, and in those after; `capacity` in bits/s."""

    mbit: int
    capacity: float
    first_s: float
    first_bytes: int
    then_s: float
    then_bytes: int

    @property
    def first_percent(self) -> float:
        """Of the capacity."""
        return self._percent(self.first_bytes, self.first_s)

    @property
    def then_percent(self) -> float:
        """Of the capacity."""
        return self._percent(self.then_bytes, self.then_s)

    @property
    def earned_percent(self) -> float:
        """Of the capacity in all the time, without what every way has to begin with."""
        return self._percent(self.first_bytes + self.then_bytes - CREDIT_BYTES, self.first_s + self.then_s)

    def _percent(self, octets: int, seconds: float) -> float:
        return octets * 8 / seconds / self.capacity * 100


class Estimates:
    """All measurements of a session in its lab."""

    def __init__(self, lab: CongestedLab, ways: Ways, session: Session) -> None:
        self._lab = lab
        self._ways = ways
        self._session = session
        self.no_policer = self._refusal(Shaper.POLICER)  #: why there is none; empty: there is one

    def _refusal(self, shaper: Shaper) -> str:
        try:
            self._ways.limit(shaper, 5)
        except LabError as error:
            return str(error).partition("Error: ")[2].partition("\n")[0] or str(error)
        return ""

    def grid(self) -> list[Estimated]:
        """Every cell in every round, UDP and TCP in turn."""
        chosen = cells(self._session.quick, not self.no_policer)
        rounds = self._session.choose(1, ROUNDS)
        found = []
        for number in range(rounds):
            for at, cell in enumerate(chosen):
                capacity = self._ways.limit(cell.shaper, cell.mbit)
                with self._ways.loaded(cell.load * capacity) as others:
                    for kind in KINDS:
                        self._session.tell(
                            f"round {number + 1} of {rounds}, cell {at + 1} of {len(chosen)}: {kind}, {cell.name}"
                        )
                        found.append((self._tcp if kind == "TCP" else self._udp)(cell, capacity, others))
        return found

    def budgets(self) -> list[Budget]:
        """Probes alone, to a path of which somebody always wants to know."""
        choose_s = self._session.choose_s
        return [self._budget(mbit, choose_s(3.0, first_s), choose_s(3.0, 25.0)) for mbit, first_s in BUDGETS.items()]

    def _udp(self, cell: Cell, capacity: float, others: Others) -> Estimated:
        address = self._ways.peer(cell.hops, reflecting=True)
        with ExitStack() as stack:
            sock = stack.enter_context(self._lab.lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.connect((address, 5004))
            found = _sampled("UDP", cell, capacity, others, self._flow(stack, sock))
        with self._lab.lab.app.entered(), closing(PacketPairs(address)) as pairs:
            samples = [replace(sample, baselines=pairs.sample()) for sample in found.samples]
        return replace(found, samples=tuple(samples))

    def _tcp(self, cell: Cell, capacity: float, others: Others) -> Estimated:
        address = self._ways.peer(cell.hops, reflecting=False)
        with ExitStack() as stack:
            with closing(self._lab.lab.peer.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
                listener.bind((address, 0))
                listener.listen()
                sock = stack.enter_context(self._lab.lab.app.socket(socket.AF_INET, socket.SOCK_STREAM))
                sock.connect(listener.getsockname())
                far = stack.enter_context(listener.accept()[0])
            drain = threading.Thread(target=_drain, args=(far,))
            drain.start()
            stack.callback(drain.join)
            stack.callback(sock.shutdown, socket.SHUT_RDWR)
            flow = self._flow(stack, sock)
            stack.enter_context(self._lab.sending(sock, block=1 << 16)).begin()
            return _sampled("TCP", cell, capacity, others, flow, DeliveryRate(sock).sample)

    def _flow(self, stack: ExitStack, sock: socket.socket) -> qos2.Flow:
        qos = stack.enter_context(self._lab.handle())
        return stack.enter_context(qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=True))

    def _budget(self, mbit: int, first_s: float, then_s: float) -> Budget:
        self._session.tell(f"probes alone, {mbit} Mbit/s")
        capacity = self._ways.limit(Shaper.TBF, mbit)
        with ExitStack() as stack:
            sock = stack.enter_context(self._lab.lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.connect((self._ways.peer(2, reflecting=True), 5004))
            marks = [(time.monotonic(), self._ways.arrived.read())]
            flow = self._flow(stack, sock)
            for seconds in (first_s, then_s):
                ask_for(flow, seconds)
                marks.append((time.monotonic(), self._ways.arrived.read()))
        (begin_s, begin), (between_s, between), (end_s, end) = marks
        return Budget(mbit, capacity, between_s - begin_s, between - begin, end_s - between_s, end - between)


def _sampled(
    kind: str,
    cell: Cell,
    capacity: float,
    others: Others,
    flow: qos2.Flow,
    baselines: Callable[[], tuple[float | None, ...]] = tuple,
) -> Estimated:
    """What is told of a flow that was just added, or has just begun to send; `baselines` are taken with each sample."""
    begin_s, begin_bytes = time.monotonic(), others.bytes()
    first_s = math.inf
    while first_s == math.inf and time.monotonic() - begin_s < _PATIENCE_S:
        if told(flow)[1] is None:
            time.sleep(_POLL_S)
        else:
            first_s = time.monotonic() - begin_s
    samples = []
    for _ in range(_SAMPLES):
        next_s = time.monotonic() + _SAMPLE_S
        samples.append(Sample(*told(flow), baselines()))
        time.sleep(max(0.0, next_s - time.monotonic()))
    load = (others.bytes() - begin_bytes) * 8 / (time.monotonic() - begin_s)
    return Estimated(kind, cell, first_s, tuple(samples), Truth(capacity, capacity - load))


def told(flow: qos2.Flow) -> tuple[float | None, float | None]:
    """Bottleneck and available, as an application is told them now."""
    try:
        found = flow.fundamentals()
    except qos2.NoData:
        return None, None
    return found.bottleneck, found.available


def ask_for(flow: qos2.Flow, seconds: float) -> None:
    """Want to know bandwidths all the time."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        told(flow)
        time.sleep(_SAMPLE_S)


def _drain(far: socket.socket) -> None:
    while far.recv(1 << 18):
        pass


# What is made of them


def tables(found: Sequence[Estimated], budgets: Sequence[Budget], no_policer: str) -> tuple[Table, ...]:
    """All cells of TCP, all of UDP, and the bytes of probes."""
    skipped = (f"No row with a policer: this kernel has no act_police ({no_policer})",) if no_policer else ()
    return (
        _table(
            *("Estimates by TCP flows alone", "TCP", found),
            (
                "No reflector answers here; the flow sends all that it can. The peak rate of a flow that shares the "
                "way all the time with others who do not yield is what it gets, not what the way carries. The delivery "
                "rate is the kernel's (TCP_INFO), at IP level, against what was available.",
                *skipped,
            ),
        ),
        _table(
            *("Estimates by probes of a reflector, for UDP flows", "UDP", found),
            (
                "The flow sends nothing. After it as many times four packets of 1,400 bytes are sent back to back. The "
                "first two are a plain packet pair, which meets a bucket that lets both pass at line rate; for the "
                "other two it is empty. Either is against the bottleneck.",
                *skipped,
            ),
        ),
        Table(
            "Bytes of probes",
            ("way", "at first, s", "bytes", "% of the capacity", "then, % of the capacity"),
            tuple(
                (
                    f"{each.mbit} Mbit/s",
                    f"{each.first_s:.0f}",
                    f"{each.first_bytes:,}",
                    *(f"{share:.2f}" for share in (each.first_percent, each.then_percent)),
                )
                for each in budgets
            ),
            (
                "Counted at the peer, while somebody asks for bandwidths all the time and nobody else sends. The first "
                f"answers have a credit, {CREDIT_BYTES:,} bytes on every way, which may last longer than them.",
            ),
        ),
    )


def _table(title: str, kind: str, found: Sequence[Estimated], notes: tuple[str, ...]) -> Table:
    mine = [each for each in found if each.kind == kind]
    by_cell = {cell.name: [each for each in mine if each.cell == cell] for cell in (each.cell for each in mine)}
    quantities = ("bottleneck", "available", *BASELINES[kind])
    figures = (column for name in quantities for column in (f"{name}: median, %", "p95, %"))
    return Table(
        title,
        ("way", *figures, "slowest first answer, s", "not told"),
        tuple(_row(name, each) for name, each in {**by_cell, "all": mine}.items()),
        (
            "Relative errors of what was told as measured. Not told: samples after the first answer in which one of "
            "the two was a lower bound or missing. Truth: the bottleneck's configured rate less link headers, and that "
            "less what of others arrived meanwhile.",
            *notes,
        ),
    )


def _row(name: str, found: Sequence[Estimated]) -> tuple[str, ...]:
    baselines = (pooled(each.baseline(number) for each in found) for number in range(len(BASELINES[found[0].kind])))
    errors = (pooled(each.bottleneck for each in found), pooled(each.available for each in found), *baselines)
    figures = (_figure(each, percent) for each in errors for percent in (50, 95))
    untold, samples = sum(each.untold for each in found), sum(len(each.samples) for each in found)
    return name, *figures, f"{max(each.first_s for each in found):.2f}", f"{untold} of {samples}"


def _figure(errors: Sequence[float], percent: float) -> str:
    return f"{percentile(errors, percent):,.1f}" if errors else "-"


def pooled(errors: Iterable[Sequence[float]]) -> list[float]:
    """The errors of several measurements, as if of one."""
    return [error for each in errors for error in each]


def targets(found: Sequence[Estimated], budgets: Sequence[Budget]) -> tuple[Target, ...]:
    """Over all cells of a kind; the bottleneck by TCP apart for each load."""
    tcp, udp = ([each for each in found if each.kind == kind] for kind in KINDS)
    judged = [
        _target(
            f"tcp-bottleneck-{load:.0%}".rstrip("%"),
            f"TCP, {load:.0%} load: error of the bottleneck",
            (each.bottleneck for each in tcp if each.cell.load == load),
            {95: 5},
        )
        for load in dict.fromkeys(each.cell.load for each in tcp)
    ]
    judged += [
        _target("tcp-available", "TCP: error of what is available", (each.available for each in tcp), {50: 10, 95: 25}),
        _target("udp-bottleneck", "UDP: error of the bottleneck", (each.bottleneck for each in udp), {95: 15}),
        _target("udp-available", "UDP: error of what is available", (each.available for each in udp), {50: 15, 95: 35}),
    ]
    slowest = {kind: max(each.first_s for each in found if each.kind == kind) for kind in KINDS}
    share = max(each.earned_percent for each in budgets)
    return (
        *(target for targets_of_one in judged for target in targets_of_one),
        *(
            Target(f"paths-{kind.lower()}-first", f"{kind}: first answer, slowest", 2, seconds, "s")
            for kind, seconds in slowest.items()
        ),
        Target("paths-probes", f"probes beyond the first {CREDIT_BYTES:,} bytes: share of the capacity", 1, share, "%"),
    )


def _target(key: str, claim: str, errors: Iterable[Sequence[float]], limits: Mapping[int, float]) -> tuple[Target, ...]:
    """One for each of the percentiles, with its limit."""
    every = pooled(errors)
    return tuple(
        Target(
            f"paths-{key}-{percent}",
            f"{claim}, {'median' if percent == 50 else f'p{percent}'}",
            limit,
            percentile(every, percent) if every else math.inf,
            "%",
        )
        for percent, limit in limits.items()
    )
