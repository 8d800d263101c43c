"""The last samples of one flow, for sparklines."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

#: So many samples are kept: half a minute at the default interval.
LENGTH = 60


def _empty() -> deque[float | None]:
    return deque(maxlen=LENGTH)


@dataclass(slots=True)
class Trace:
    """Equally long, oldest first, None where nothing was known: bits/s, microseconds, a share 0..1."""

    rate: deque[float | None] = field(default_factory=_empty)
    rtt_us: deque[float | None] = field(default_factory=_empty)
    queue_delay_us: deque[float | None] = field(default_factory=_empty)
    loss: deque[float | None] = field(default_factory=_empty)

    def add(self, rate: float | None) -> None:
        """One more sample, whose signals are not known yet."""
        self.rate.append(rate)
        for signal in (self.rtt_us, self.queue_delay_us, self.loss):
            signal.append(None)

    def learn(self, signals: Mapping[str, float]) -> None:
        """The signals of the latest sample, by the names used as evidence; those that are not known are missing."""
        self.rtt_us[-1] = signals.get("rtt_us")
        self.queue_delay_us[-1] = signals.get("queue_delay_us")
        self.loss[-1] = signals.get("loss")
