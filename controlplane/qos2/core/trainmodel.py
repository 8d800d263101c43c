"""What trains have told of the way to one host: its capacity, and what flows could have of it."""

import math
from collections import deque
from statistics import median

from qos2.core import trains
from qos2.core.pathlimits import ModelLimits, Rate
from qos2.core.probes import ProbeKind, ProbeOutcome
from qos2.model import Method


class TrainModel:
    """Capacity and obtainable rate by bursts and paced trains."""

    def __init__(self, limits: ModelLimits) -> None:
        self._limits = limits
        self._bursts: deque[tuple[float, int, trains.Burst]] = deque(maxlen=limits.bursts)  # when, packets
        self._dropped: deque[tuple[float, trains.Paced]] = deque(maxlen=limits.spare_samples)
        self._paced: deque[tuple[float, trains.Paced, float]] = deque(maxlen=limits.spare_samples)  # ..., carried
        self._grown = False  # the last paced train passed as no way of this capacity lets one pass

    @property
    def head(self) -> int:
        """Packets that a token bucket lets pass at once."""
        return round(median(burst.head for _at, _count, burst in self._bursts)) if self._bursts else 0

    def add(self, outcome: ProbeOutcome, carried: float) -> None:
        if outcome.plan.kind is ProbeKind.BURST:
            self._burst(outcome)
        elif outcome.plan.kind is ProbeKind.PACED:
            capacity = self.capacity()
            paced = trains.paced(outcome, None if capacity is None else capacity.value, self.head)
            if paced is not None:
                most = math.inf if capacity is None else (1 + self._limits.grown_share) * capacity.value
                self._grown = not paced.held and paced.rate + carried > most
                self._paced.append((outcome.ended_s, paced, carried))
                if paced.lossy:
                    self._dropped.append((outcome.ended_s, paced))
                while self._paced[0][0] < outcome.ended_s - self._limits.stale_s:
                    self._paced.popleft()
                self._forget_before_step()

    def _burst(self, outcome: ProbeOutcome) -> None:
        limits = self._limits
        if trains.policed(outcome):
            # A bucket that let a longer burst pass is no bucket: then it was a full queue that lost these. Bursts
            # no longer than what passed now may have passed for the bucket.
            if all(count <= outcome.answered for _at, count, _burst in self._bursts):
                self._bursts.clear()
            return
        burst = trains.burst(outcome)
        if burst is None:
            return
        # What a bucket let pass as a whole was its line rate: a longer one shows.
        shown = [each for each in self._bursts if each[1] > burst.head + 2 or each[2].capacity < 2 * burst.capacity]
        if len(shown) < len(self._bursts):
            self._bursts = deque(shown, maxlen=limits.bursts)
            self._paced.clear()
        before = [earlier.capacity for _at, _count, earlier in self._bursts]
        self._bursts.append((outcome.ended_s, outcome.plan.count, burst))
        grown, self._grown = self._grown, False
        if len(before) < 2:
            return
        last, usual = before[-1], median(before[:-1])
        agree = abs(burst.capacity - last) <= limits.agree_share * last
        if grown and burst.capacity > (1 + limits.step_share) * median(before):
            self._keep_bursts(1)
        elif agree and all(abs(each - usual) > limits.step_share * usual for each in (last, burst.capacity)):
            self._keep_bursts(2)

    def _keep_bursts(self, newest: int) -> None:
        """The capacity is another one now, and what paced trains said was relative to the old one."""
        while len(self._bursts) > newest:
            self._bursts.popleft()
        self._paced.clear()

    def capacity(self) -> Rate | None:
        if self._bursts:
            # Packets of others that came between those of a burst make it seem slower, nothing makes it faster.
            values = sorted(burst.capacity for _at, _count, burst in self._bursts)
            return Rate(self._bursts[-1][0], values[len(values) // 2], Method.TRAIN)
        return self._policed_capacity()

    def _policed_capacity(self) -> Rate | None:
        """Where bursts are policed: rate / arrived = (rate + others) / capacity, fitted over trains of several rates.

        Nothing is said before one train was sent at twice what arrived: others send no more than the capacity for
        long, so that one was faster than the capacity, and most of what passed was its own.
        """
        held = self._dropped
        fast = sorted(each.arrived for _at, each in held if each.ratio >= self._limits.policed_ratio)
        if not fast:
            return None
        least = fast[len(fast) // 2]
        rates = [each.rate for _at, each in held]
        mean_rate, mean_ratio = sum(rates) / len(held), sum(each.ratio for _at, each in held) / len(held)
        along = sum((rate - mean_rate) ** 2 for rate in rates)
        across = sum((each.rate - mean_rate) * (each.ratio - mean_ratio) for _at, each in held)
        # A fit over few trains may go astray: no more than if others sent half of what the train did.
        fitted = along / across if len(held) >= 4 and across > 0 else least
        return Rate(held[-1][0], min(max(fitted, least), 1.5 * least), Method.TRAIN)

    def obtainable(self) -> tuple[Rate, bool] | None:
        """What flows could have, and whether that was measured; False: at least this, nothing was held back."""
        capacity = self.capacity()
        if capacity is None or not self._paced:
            return None
        newest_s, _newest, carried = self._paced[-1]
        samples = self._samples(capacity.value)
        known = any(self._tells(each, meanwhile, capacity.value) for _at, each, meanwhile in self._paced)
        value = min(max(_mean(samples), carried), max(capacity.value, carried))
        return Rate(newest_s, value, Method.TRAIN), known

    def _samples(self, capacity: float) -> list[tuple[float, float]]:
        """Obtainable rates with their weights: longer trains have seen more of the others, later ones count more.

        A train that was not held back, and was slower than the way may be, says "at least": it counts where it says
        more than the others do, and where there are none. So do those that a busy host sent too slowly.
        """
        newest_s = self._paced[-1][0]
        decay_s = self._limits.spare_decay_s if self._bursts else self._limits.policed_decay_s
        samples = [
            (each.spare(capacity) + carried, each.span_s * math.exp((at - newest_s) / decay_s))
            for at, each, carried in self._paced
        ]
        telling = [self._tells(each, carried, capacity) for _at, each, carried in self._paced]
        if not any(telling):
            return samples
        least = _mean([sample for sample, tells in zip(samples, telling, strict=True) if tells])
        return [sample for sample, tells in zip(samples, telling, strict=True) if tells or sample[0] > least]

    def _tells(self, paced: trains.Paced, carried: float, capacity: float) -> bool:
        """Whether it tells how much is obtainable, and not only that this much is."""
        return paced.held or paced.rate + carried >= self._limits.floor_share * capacity

    def _forget_before_step(self) -> None:
        """Where the last two differ from those before to the same side: others have begun, or ended."""
        capacity = self.capacity()
        if capacity is None or not self._bursts or len(self._paced) < 3:
            return
        samples = self._samples(capacity.value)
        if len(samples) < 3:
            return
        steps = [each - _mean(samples[:-2]) for each, _weight in samples[-2:]]
        limit = self._limits.step_share * capacity.value
        if abs(sum(steps)) > 2 * limit and min(map(abs, steps)) > limit / 2 and steps[0] * steps[1] > 0:
            while len(self._paced) > 2:
                self._paced.popleft()


def _mean(samples: list[tuple[float, float]]) -> float:
    """Of values with their weights."""
    return sum(value * weight for value, weight in samples) / sum(weight for _value, weight in samples)
