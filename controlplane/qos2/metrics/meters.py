"""What is counted as it happens: requests, notifications, and how late the event loop is."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from qos2.errors import InternalError
from qos2.model import Condition

#: Upper bounds of the buckets of requests, seconds: usual, slow, felt by who asks, stuck (or waited).
LATENCY_BOUNDS = (50e-6, 250e-6, 5e-3, 1.0)
#: Of notifications: a tenth of a second is the time between two looks at the signals.
NOTIFICATION_BOUNDS = (1e-3, 5e-3, 25e-3, 0.1, 1.0)
#: Of the event loop: below a millisecond nobody feels it; the second bound is what a look at many flows takes.
LAG_BOUNDS = (1e-3, 5e-3, 25e-3, 0.1, 1.0)
#: The operation of a request that is none of the known ones, and the code of an error outside the known ones.
INVALID = "invalid"
#: Operations that may wait for something: a condition of a flow, a new measurement of its path.
WAITING = frozenset({"notify", "fundamentals"})


class Latency:
    """A histogram of seconds."""

    __slots__ = ("bounds", "counts", "seconds")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  #: by bucket; the last is that of what exceeds all bounds
        self.seconds = 0.0

    def observe(self, seconds: float) -> None:
        """It belongs into the first bucket whose bound it does not exceed."""
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.seconds += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them: bound and count."""
        return list(zip((*map(_bound, self.bounds), "+Inf"), accumulate(self.counts), strict=True))


def _bound(seconds: float) -> str:
    return f"{seconds:f}".rstrip("0").removesuffix(".") + (".0" if seconds.is_integer() else "")


class RequestMeter:
    """Counts requests by operation, errors by code, and the time to the reply.

    `operations` and `results` are all values that there may be; anything else is counted as `invalid`, so that no
    client can make series. Operation and code are counted apart: together they would be several hundred.
    """

    def __init__(self, operations: Iterable[str], results: Iterable[str]) -> None:
        self._operations = frozenset(operations)
        self._results = frozenset(results)
        self.requests: dict[tuple[str, str], int] = {}  #: by operation and "ok" or "error"
        #: By code. A bug is told of before the first one: Prometheus sees no rise in a series that begins with 1.
        self.errors: dict[str, int] = {InternalError.code: 0}
        self.latency = {kind: Latency(LATENCY_BOUNDS) for kind in ("answered", "waiting")}

    def observe(self, op: str, result: str, seconds: float) -> None:
        """Count one request that was answered after `seconds`, with the result "ok" or the code of an error."""
        if op not in self._operations:
            op = INVALID
        self.latency["waiting" if op in WAITING else "answered"].observe(seconds)
        if result == "ok":
            self.requests[op, result] = self.requests.get((op, result), 0) + 1
            return
        code = result if result in self._results else INVALID
        self.requests[op, "error"] = self.requests.get((op, "error"), 0) + 1
        self.errors[code] = self.errors.get(code, 0) + 1


class NotificationMeter:
    """How long it took from reading the signals that fulfilled a condition to the reply that tells so."""

    def __init__(self) -> None:
        self.latency = {condition: Latency(NOTIFICATION_BOUNDS) for condition in Condition}

    def observe(self, condition: Condition, seconds: float) -> None:
        """Count one notification."""
        self.latency[condition].observe(seconds)


class LagMeter:
    """How much later than it was due the event loop came to a periodic duty: what anybody has to wait for it."""

    def __init__(self) -> None:
        self.latency = Latency(LAG_BOUNDS)

    def observe(self, seconds: float) -> None:
        """Count one turn."""
        self.latency.observe(max(0.0, seconds))
