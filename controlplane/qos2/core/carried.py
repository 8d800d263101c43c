"""What the rates tell at which flows were carried: of the path, while the network was their limit; else a bound.

Windows of a second smooth what acknowledgements do in bursts.
"""

from collections import deque

from qos2.core.pathlimits import ModelLimits, Rate
from qos2.model import Method


class _Peak:
    """The greatest of the last `span_s`."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._falling: deque[Rate] = deque()

    def add(self, rate: Rate) -> None:
        while self._falling and self._falling[-1].value <= rate.value:
            self._falling.pop()
        self._falling.append(rate)
        while self._falling[0].at_s < rate.at_s - self._span_s:
            self._falling.popleft()

    def best(self, now_s: float) -> Rate | None:
        return next((rate for rate in self._falling if rate.at_s >= now_s - self._span_s), None)


class _Window:
    """Mean rate over the last `window_s` of the intervals that it is given."""

    def __init__(self, limits: ModelLimits) -> None:
        self._limits = limits
        self._intervals: deque[tuple[float, float, float]] = deque()  # end, length, rate

    def add(self, now_s: float, interval_s: float, rate: float) -> float | None:
        """None: too little data so far."""
        self._intervals.append((now_s, interval_s, rate))
        while self._intervals[0][0] <= now_s - self._limits.window_reach_s:
            self._intervals.popleft()
        seconds = bits = 0.0
        for _end, length, each in reversed(self._intervals):
            seconds += length
            bits += length * each
            # Sums of tenths miss the whole by rounding.
            if seconds > self._limits.window_s - 1e-6:
                return bits / seconds
        return None


class Carried:
    """What one method tells of rates that flows were carried at."""

    def __init__(self, limits: ModelLimits) -> None:
        self._limited = _Window(limits)
        self._any = _Window(limits)
        self._peak = _Peak(limits.peak_s)
        self._most = _Peak(limits.stale_s)
        self.measured: Rate | None = None  #: the last window that the network limited
        self.now: Rate | None = None  #: the last one, whatever limited it
        self._strongest: Rate | None = None
        self._greatest: Rate | None = None

    def add(self, now_s: float, interval_s: float, rate: float, limited: bool, method: Method) -> None:
        mean = self._any.add(now_s, interval_s, rate)
        if mean is not None:
            self.now = Rate(now_s, mean, method)
            if mean > 0:  # silence proves nothing
                self._most.add(self.now)
                self._greatest = self._most.best(now_s)
        if limited and (mean := self._limited.add(now_s, interval_s, rate)) is not None:
            self.measured = Rate(now_s, mean, method)
            self._peak.add(self.measured)
            self._strongest = self._peak.best(now_s)

    def bottleneck(self, now_s: float) -> Rate | None:
        """The peak of the last limited stretch, known since that was last confirmed by limited data."""
        if self.measured is None or self._strongest is None:
            return None
        best = self._peak.best(now_s) or self._strongest
        return best._replace(at_s=self.measured.at_s)

    def most(self, now_s: float) -> Rate | None:
        """The most that was carried lately, else before the last silence."""
        return self._most.best(now_s) or self._greatest
