"""What is true of a path, by the queue of its bottleneck and by nothing that a sender sees of it.

Congested is a path from the first queued packet of a queue that comes to delay everybody by more than 30 ms (half of
the path's own round trip, where that is more), loses more than 1 % of a second's packets or marks more than 5 % of
them, until the last moment above half of that, where moments less than 0.7 s apart are one time. What was over
the limit for less than half a second in all is undecided: somebody may have noticed.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from qos2.model import Cause
from unit.signaltraces import WITHIN_S, Truth, TruthKind

DELAY_S, RTT_SHARE, LOSS, CE = 0.03, 0.5, 0.01, 0.05
QUEUED_S = 0.001
SHARES_S, JOINED_S, NOTICED_S = 1.0, 0.7, 0.5
#: The bound counts from the first queued packet where the queue grows as quickly as this; see `truth`.
QUICK_S = 0.3


class Sample(NamedTuple):
    """A look at the bottleneck, ten times a second: its queueing delay, and packets since the look before."""

    at_s: float
    delay_s: float
    passed: int
    dropped: int
    marked: int = 0


def truth(samples: Sequence[Sample], base_rtt_s: float) -> tuple[Truth, ...]:
    """What the samples mean for a flow on a path with this round trip of its own."""
    delay_s = max(DELAY_S, RTT_SHARE * base_rtt_s)
    over = [_causes(samples[: at + 1], delay_s, LOSS, CE) for at in range(len(samples))]
    half_over = [bool(_causes(samples[: at + 1], delay_s / 2, LOSS / 2, CE / 2)) for at in range(len(samples))]
    found: list[Truth] = []
    at = 0
    while at < len(samples):
        if not over[at]:
            at += 1
            continue
        last = at
        for later in range(at, len(samples)):
            if samples[later].at_s - samples[last].at_s >= JOINED_S:
                break
            if half_over[later]:
                last = later
        first = at
        earliest_s = found[-1].end_s if found else 0.0
        while first and samples[first - 1].delay_s > QUEUED_S and samples[first - 1].at_s > earliest_s:
            first -= 1
        found.append(_interval(samples, over, first, at, last))
        at = last + 1
    return tuple(found)


def seen_by_probes(found: Sequence[Truth]) -> tuple[Truth, ...]:
    """The same, as it is said of a flow that hears of nothing itself."""
    return tuple(each if each.cause is None else replace(each, cause=Cause.PROBE) for each in found)


def _interval(samples: Sequence[Sample], over: Sequence[Sequence[Cause]], first: int, at: int, last: int) -> Truth:
    begin_s, end_s = round(samples[first].at_s, 1), round(samples[last].at_s, 1)
    times = [moment for moment in range(at, last + 1) if over[moment]]
    if sum(samples[moment].at_s - samples[moment - 1].at_s for moment in times if moment) < NOTICED_S:
        return Truth(TruthKind.UNDECIDED, begin_s, end_s, reason="over the limit for less than half a second")
    seen = Counter(cause for moment in times for cause in over[moment])
    # A queue that is full loses too.
    cause = Cause.QUEUE_DELAY if 2 * seen[Cause.QUEUE_DELAY] >= len(times) else seen.most_common(1)[0][0]
    slow_s = samples[at].at_s - samples[first].at_s
    if slow_s <= QUICK_S:
        return Truth(TruthKind.CONGESTED, begin_s, end_s, cause)
    within_s = round(slow_s + WITHIN_S - QUICK_S, 1)
    reason = f"the queue took {slow_s:.1f} s to its limit"
    return Truth(TruthKind.CONGESTED, begin_s, end_s, cause, within_s, reason=reason)


def _causes(samples: Sequence[Sample], delay_s: float, loss: float, ce: float) -> list[Cause]:
    """By what the path is over these limits at the last sample."""
    last = samples[-1]
    recent = [each for each in samples[-11:] if last.at_s - each.at_s < SHARES_S]
    passed, dropped = sum(each.passed for each in recent), sum(each.dropped for each in recent)
    found = [Cause.QUEUE_DELAY] if last.delay_s > delay_s else []
    if dropped > loss * (passed + dropped):
        found.append(Cause.LOSS)
    if sum(each.marked for each in recent) > ce * passed:
        found.append(Cause.CE)
    return found
