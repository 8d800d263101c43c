"""Of group `paths`: how soon an application is told that its path is congested, and that it is no more.

An episode is a step of cross traffic that makes it too much, and its end. Latencies begin with what the router's
queue did, not with what the script ordered. A missed episode is one of infinite latency: it is in every figure.
"""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass

import qos2
from bench.backlog import Backlog, Look, first_empty, first_queued
from bench.figures import Table, Target, percentile
from bench.session import Session
from harness.congested import CongestedLab
from qos2.model import Condition, TrafficType

MBITS = (5, 20, 50, 100)
KINDS = ("TCP", "UDP")
#: Shares of the bottleneck: of the application, and of the cross traffic that makes it too much.
_APPLICATION, _CROSS = 0.4, 0.9
_STEPS = 100
#: Later than this is never.
_PATIENCE_S = 5.0
_LASTS_S = 0.7  #: between being told of congestion and the end of the cross traffic
_REST_S = 0.5  #: between being told of its end and the next episode
_SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Episode:
    """Seconds from the first queued packet, and from the empty queue, to the application's callback; inf: never."""

    begin_s: float
    end_s: float
    transitions: int  #: changes of the flow's state until the next episode
    false_alarm: bool = False  #: told before anything was queued; then `begin_s` is inf

    @property
    def missed(self) -> bool:
        """Whether the application was not told of its begin, or not of its end."""
        return not self.false_alarm and math.inf in (self.begin_s, self.end_s)


Cells = Mapping[tuple[str, int], Sequence[Episode]]


def steps_per_cell(total: int, cells: int) -> list[int]:
    """`total` steps shared out, the first cells one more where that does not come out even."""
    return [total // cells + (number < total % cells) for number in range(cells)]


def judged(looks: Sequence[Look], begin: tuple[float, float], end: tuple[float, float], transitions: int) -> Episode:
    """An episode from when the cross traffic was ordered to begin and to end, and when the application was told of it.

    Whoever is told nothing of the begin is told nothing of the end either, whatever state he was in before.
    """
    queued_s, empty_s = first_queued(looks, begin[0]), first_empty(looks, end[0])
    false_alarm = begin[1] < (math.inf if queued_s is None else queued_s)
    begin_s = math.inf if false_alarm or queued_s is None else begin[1] - queued_s
    # A queue that was never empty has no end to tell of: who tells of one is as wrong as who tells of none.
    end_s = math.inf if empty_s is None or begin[1] == math.inf else end[1] - empty_s
    return Episode(begin_s, end_s, transitions, false_alarm)


def measure(lab: CongestedLab, session: Session) -> dict[tuple[str, int], list[Episode]]:
    """All cells. The lab has a reflector, which UDP needs for a condition."""
    cells = [(kind, mbit) for mbit in MBITS for kind in KINDS]
    steps = [1] * len(cells) if session.quick else steps_per_cell(_STEPS, len(cells))
    with closing(Backlog(lab.lab.router)) as backlog:
        return {
            cell: list(_episodes(lab, backlog, session, *cell, count)) for cell, count in zip(cells, steps, strict=True)
        }


def _episodes(
    lab: CongestedLab, backlog: Backlog, session: Session, kind: str, mbit: int, count: int
) -> Iterator[Episode]:
    capacity = lab.bottleneck(mbit * 1e6)
    with lab.handle() as qos, ExitStack() as stack:
        sock = lab.tcp() if kind == "TCP" else lab.udp()
        flow = stack.enter_context(qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=True))
        stack.enter_context(lab.sending(sock, _APPLICATION * capacity)).begin()
        flow.notify(Condition.UNCONGESTED, timeout=2 * _PATIENCE_S)
        time.sleep(_SETTLE_S)
        for number in range(count):
            session.tell(f"{kind}, {mbit} Mbit/s, step {number + 1} of {count}")
            yield _episode(lab, backlog, qos, flow, _CROSS * capacity)


def _episode(lab: CongestedLab, backlog: Backlog, qos: qos2.Handle, flow: qos2.Flow, cross_rate: float) -> Episode:
    with ExitStack() as stack:
        cross = stack.enter_context(lab.cross(cross_rate))
        told = flow.begin_notify(Condition.CONGESTED)
        looks = stack.enter_context(backlog.watched())
        began_s = time.monotonic()
        cross.begin()
        begin_told_s = _told(told)
        time.sleep(_LASTS_S)
        told = flow.begin_notify(Condition.UNCONGESTED)
        ended_s = time.monotonic()
        cross.stop()
        end_told_s = _told(told)
        time.sleep(_REST_S)
    if end_told_s == math.inf:
        _told(flow.begin_notify(Condition.UNCONGESTED))  # one that was missed shall not be the false alarm of the next
    elapsed_s = time.monotonic() - began_s
    transitions = sum(change.ago_s < elapsed_s for change in qos.explain(flow.id).changes)
    return judged(looks, (began_s, begin_told_s), (ended_s, end_told_s), transitions)


def _told(operation: qos2.Operation[None]) -> float:
    """When the application heard of it; inf: it did not."""
    try:
        operation.result(timeout=_PATIENCE_S)
    except qos2.TimedOut:
        with suppress(qos2.InvalidRequest):  # it has ended meanwhile: too late all the same
            operation.cancel()
        return math.inf
    return time.monotonic()


def table(cells: Cells) -> Table:
    """One row per cell, and one for all."""
    every = [each for episodes in cells.values() for each in episodes]
    rows = [_row(f"{kind}, {mbit} Mbit/s", episodes) for (kind, mbit), episodes in cells.items()]
    return Table(
        "Congestion: from the queue to the application",
        (
            *("flow, bottleneck", "steps", "missed", "false alarms", "begin: median, s", "p99, s"),
            *("end: median, s", "longest, s", "most transitions"),
        ),
        (*rows, _row("all", every)),
        (
            "Begin: from the first packet that is seen to wait at the router after the step (looked at every 2 ms) "
            "until the application's callback. End: from when the queue is first seen empty after the cross traffic "
            f"has ended. Missed: not told within {_PATIENCE_S:g} s, of the begin or of the end; its latency counts as "
            "infinite. False alarm: told while nothing was queued. Transitions: changes of the flow's state until the "
            "next step.",
            f"The application sends {_APPLICATION:.0%} of the bottleneck, the cross traffic {_CROSS:.0%}; the queue "
            "holds 100 ms. A TCP application catches up on what it could not send, so that its queue may last longer "
            "than the cross traffic.",
        ),
    )


def _row(name: str, episodes: Sequence[Episode]) -> tuple[str, ...]:
    begins, ends = [each.begin_s for each in episodes], [each.end_s for each in episodes]
    return (
        name,
        str(len(episodes)),
        str(sum(each.missed for each in episodes)),
        str(sum(each.false_alarm for each in episodes)),
        *(f"{percentile(begins, percent):.2f}" for percent in (50, 99)),
        *(f"{percentile(ends, percent):.2f}" for percent in (50, 100)),
        str(max(each.transitions for each in episodes)),
    )


def targets(cells: Cells) -> tuple[Target, ...]:
    """Over the steps of all cells."""
    every = [each for episodes in cells.values() for each in episodes]
    begins, ends = [each.begin_s for each in every], [each.end_s for each in every]
    steps = f"{len(every)} steps"
    return (
        Target(
            "onset-median",
            f"congestion, {steps}: first queued packet to callback, median",
            0.6,
            percentile(begins, 50),
            "s",
        ),
        Target("onset-p99", f"congestion, {steps}: the same, p99", 1, percentile(begins, 99), "s"),
        Target("onset-end", f"congestion, {steps}: empty queue to callback, longest", 3, percentile(ends, 100), "s"),
        Target(
            *("onset-transitions", "congestion: most transitions of one episode", 2),
            max(each.transitions for each in every),
            decimals=0,
        ),
        Target(
            *("onset-missed", "congestion: missed episodes and false alarms", 0),
            sum(each.missed or each.false_alarm for each in every),
            decimals=0,
        ),
    )
