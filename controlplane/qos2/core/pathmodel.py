"""Everything known about the way to one host: bottleneck, what flows of this machine can have, round trip time.

    what TCP flows were carried at, reports  ->  Window: measured while the network was the limit
    outcomes of probes                       ->  Trains: capacity and what is spare (core/trains.py)
    both                                     ->  FlowFundamentals, each number with quality, method and age

*Obtainable* is what the flows to the host could have in total, *available* what of it is promised to none. TCP is
believed first while it is fresh, for it is the traffic itself; trains otherwise. What was seen while something else
than the network was the limit, and what is older than `stale_s`, is a lower bound.

Known to fail: a token bucket or policer that lets a whole train pass (28 kB) looks like its line rate, until TCP
flows show less as obtainable; one of more than about 8 kB hides part of what others send from trains. Behind a
policer a train tells by the few packets that pass: there the capacity is 15 % off, what is available 20 % and more
under load. What others send in bursts of tens of ms is seen in samples of a few ms. Other flows that are TCP too
give way to ours, so what TCP measures is the fair share.
"""

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from qos2.core import trains
from qos2.core.probes import ProbeKind, ProbeOutcome
from qos2.model import MAX_BANDWIDTH, Bandwidth, FlowFundamentals, Method, Quality, Statement


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """How much is remembered, and for how long."""

    #: Limited data below this is a burst of acknowledgements, not a rate.
    window_s: float = 1.0
    #: How far back the limited data of one window may reach: TCP is not limited in every single interval.
    window_reach_s: float = 2.0
    #: TCP's rate swings with its window; the maximum over about three swings at 100 ms is the bottleneck's (BBR: 10 s).
    peak_s: float = 10.0
    #: Cross traffic of longer ago says nothing about now.
    stale_s: float = 30.0
    #: Lower bounds are forgotten too: routes change.
    forgotten_s: float = 300.0
    #: Bursts of which the median is the capacity: three wrong ones are borne.
    bursts: int = 7
    #: Two bursts that agree this closely, and differ from those before by `step_share`, mean a new capacity.
    agree_share: float = 0.15
    step_share: float = 0.2
    #: A train that was not held back, and what was carried beside it, were this much above the capacity: it has grown.
    grown_share: float = 0.08
    #: Trains sample cross traffic for some ms each, so several are averaged; weights fall by 1/e in this time.
    spare_decay_s: float = 3.0
    spare_samples: int = 16
    #: Trains that found nothing held back below this share of the capacity leave open how much more there is.
    floor_share: float = 0.85
    #: Sent at this multiple of what arrived, a train was faster than a policer.
    policed_ratio: float = 2.0
    #: What passes a policer is counted in packets, a few per train: more of them are averaged.
    policed_decay_s: float = 10.0
    rtt_samples: int = 9
    rtt_span_s: float = 2.0


class _Rate(NamedTuple):
    """Bits/s as they were known at a moment."""

    at_s: float
    value: float
    method: Method


class _Peak:
    """The greatest of the last `span_s`."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        self._falling: deque[_Rate] = deque()

    def add(self, rate: _Rate) -> None:
        while self._falling and self._falling[-1].value <= rate.value:
            self._falling.pop()
        self._falling.append(rate)
        while self._falling[0].at_s < rate.at_s - self._span_s:
            self._falling.popleft()

    def best(self, now_s: float) -> _Rate | None:
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


class _Carried:
    """What one method tells of rates that flows were carried at."""

    def __init__(self, limits: ModelLimits) -> None:
        self._limited = _Window(limits)
        self._any = _Window(limits)
        self._peak = _Peak(limits.peak_s)
        self._most = _Peak(limits.stale_s)
        self.measured: _Rate | None = None  #: the last window that the network limited
        self.now: _Rate | None = None  #: the last one, whatever limited it
        self._strongest: _Rate | None = None

    def add(self, now_s: float, interval_s: float, rate: float, limited: bool, method: Method) -> None:
        mean = self._any.add(now_s, interval_s, rate)
        if mean is not None:
            self.now = _Rate(now_s, mean, method)
            self._most.add(self.now)
        if limited and (mean := self._limited.add(now_s, interval_s, rate)) is not None:
            self.measured = _Rate(now_s, mean, method)
            self._peak.add(self.measured)
            self._strongest = self._peak.best(now_s)

    def bottleneck(self, now_s: float) -> _Rate | None:
        """The peak of the last limited stretch, known since that was last confirmed by limited data."""
        if self.measured is None or self._strongest is None:
            return None
        best = self._peak.best(now_s) or self._strongest
        return best._replace(at_s=self.measured.at_s)

    def most(self, now_s: float) -> _Rate | None:
        """The most that was carried lately, else the last that was ever known."""
        return self._most.best(now_s) or self.now


class _Trains:
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

    def capacity(self) -> _Rate | None:
        if self._bursts:
            # Packets of others that came between those of a burst make it seem slower, nothing makes it faster.
            values = sorted(burst.capacity for _at, _count, burst in self._bursts)
            return _Rate(self._bursts[-1][0], values[len(values) // 2], Method.TRAIN)
        return self._policed_capacity()

    def _policed_capacity(self) -> _Rate | None:
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
        return _Rate(held[-1][0], min(max(fitted, least), 1.5 * least), Method.TRAIN)

    def obtainable(self) -> tuple[_Rate, bool] | None:
        """What flows could have, and whether that was measured; False: at least this, nothing was held back."""
        capacity = self.capacity()
        if capacity is None or not self._paced:
            return None
        newest_s, _newest, carried = self._paced[-1]
        samples = self._samples(capacity.value)
        floor = self._limits.floor_share * capacity.value
        known = any(each.held or each.rate + meanwhile >= floor for _at, each, meanwhile in self._paced)
        value = min(max(_mean(samples), carried), max(capacity.value, carried))
        return _Rate(newest_s, value, Method.TRAIN), known

    def _samples(self, capacity: float) -> list[tuple[float, float]]:
        """Obtainable rates with their weights: longer trains have seen more of the others, later ones count more."""
        newest_s = self._paced[-1][0]
        decay_s = self._limits.spare_decay_s if self._bursts else self._limits.policed_decay_s
        return [
            (each.spare(capacity) + carried, each.span_s * math.exp((at - newest_s) / decay_s))
            for at, each, carried in self._paced
        ]

    def _forget_before_step(self) -> None:
        """Where the last two differ from those before to the same side: others have begun, or ended."""
        capacity = self.capacity()
        if capacity is None or not self._bursts or len(self._paced) < 3:
            return
        samples = self._samples(capacity.value)
        steps = [each - _mean(samples[:-2]) for each, _weight in samples[-2:]]
        limit = self._limits.step_share * capacity.value
        if abs(sum(steps)) > 2 * limit and min(map(abs, steps)) > limit / 2 and steps[0] * steps[1] > 0:
            while len(self._paced) > 2:
                self._paced.popleft()


def _mean(samples: list[tuple[float, float]]) -> float:
    """Of values with their weights."""
    return sum(value * weight for value, weight in samples) / sum(weight for _value, weight in samples)


class PathModel:
    """One host. All times are seconds of one clock, which the caller passes in; rates are bits/s at IP level."""

    def __init__(self, limits: ModelLimits = ModelLimits()) -> None:
        self._limits = limits
        self._rtts: deque[_Rate] = deque(maxlen=limits.rtt_samples)
        # Kept apart: both would be needed for a sum, and they tell of different moments.
        self._carried = {Method.TCP: _Carried(limits), Method.REPORT: _Carried(limits)}
        self._trains = _Trains(limits)
        self._measured_s = -math.inf

    @property
    def measured_s(self) -> float:
        """When bandwidth was last really measured; -inf before that."""
        return self._measured_s

    @property
    def capacity(self) -> float | None:
        """The bottleneck by trains alone, for their planning."""
        capacity = self._trains.capacity()
        return None if capacity is None else capacity.value

    def rtt(self, now_s: float, rtt_us: int, method: Method) -> None:
        """A round trip took so long."""
        self._rtts.append(_Rate(now_s, rtt_us, method))

    def carried(self, now_s: float, interval_s: float, rate: float, *, limited: bool, method: Method) -> None:
        """What our flows to the host were carried at during the interval that ends now; method TCP or REPORT.

        `limited`: the network was the limit all the time, not the application, the receiver's window, the socket's
        buffer nor a contract of ours. Raises KeyError for other methods.
        """
        carried = self._carried[method]
        before = carried.measured
        carried.add(now_s, interval_s, rate, limited, method)
        if carried.measured is not before:
            self._measured_s = now_s

    def outcome(self, outcome: ProbeOutcome, carried: float) -> None:
        """Probes came back, or did not; `carried`: our flows' rate meanwhile."""
        rtt_us = trains.rtt_us(outcome)
        if rtt_us is not None:
            self.rtt(outcome.ended_s, rtt_us, Method.PROBE)
        self._trains.add(outcome, carried)
        obtainable = self._trains.obtainable()
        if outcome.plan.kind is ProbeKind.PACED and obtainable is not None and obtainable[0].at_s == outcome.ended_s:
            self._measured_s = outcome.ended_s

    def estimate(self, now_s: float, promised: int) -> FlowFundamentals | None:
        """What is known, with `promised` bits/s of contracts taken off; None before the first datum.

        The round trip time is the median of the last nine samples, of those at most two seconds older than the newest.
        """
        statements: dict[str, Statement] = {}
        bottleneck = self._bottleneck(now_s)
        if bottleneck is not None:
            statements["bottleneck"] = bottleneck
            available = self._available(now_s, promised, bottleneck)
            if available is not None:
                statements["available"] = available
        rtt = self._rtt(now_s)
        if rtt is not None:
            statements["rtt"] = rtt
        if not statements:
            return None
        numbers = {name: each.value if each.quality is Quality.MEASURED else None for name, each in statements.items()}
        known = {name: None if value is None else Bandwidth(value) for name, value in numbers.items() if name != "rtt"}
        return FlowFundamentals(known.get("bottleneck"), known.get("available"), numbers.get("rtt"), statements)

    def _rtt(self, now_s: float) -> Statement | None:
        if not self._rtts:
            return None
        newest = self._rtts[-1]
        recent = [each.value for each in self._rtts if newest.at_s - each.at_s <= self._limits.rtt_span_s]
        return self._statement(now_s, newest._replace(value=median(recent)), True)

    def _bottleneck(self, now_s: float) -> Statement | None:
        limits = self._limits
        capacity = self._trains.capacity()
        carried = [each for each in (each.bottleneck(now_s) for each in self._carried.values()) if each is not None]
        if capacity is not None and now_s - capacity.at_s <= limits.stale_s:
            # What is carried now cannot be more than the capacity: then that is out of date.
            rates = [each.now for each in self._carried.values() if each.now is not None]
            over = [each for each in rates if now_s - each.at_s <= limits.window_reach_s]
            best = max((*over, capacity), key=lambda each: each.value)
            clearly = best.value > (1 + limits.agree_share) * capacity.value
            return self._statement(now_s, best if clearly else capacity, True)
        fresh = [each for each in carried if now_s - each.at_s <= limits.stale_s]
        if fresh:
            return self._statement(now_s, max(fresh, key=lambda each: each.value), True)
        most = [each.most(now_s) for each in self._carried.values()]
        return self._bound(now_s, [*carried, *most, capacity])

    def _available(self, now_s: float, promised: int, bottleneck: Statement) -> Statement | None:
        limits = self._limits
        measured = [each.measured for each in self._carried.values() if each.measured is not None]
        by_trains = self._trains.obtainable()
        bounds = [*measured, *(each.most(now_s) for each in self._carried.values())]
        passive = max(measured, key=lambda each: each.at_s, default=None)
        best = passive
        if by_trains is not None:
            rate, known = by_trains
            bounds.append(rate)
            if known and (
                passive is None or (now_s - passive.at_s > limits.window_reach_s and rate.at_s > passive.at_s)
            ):
                best = rate
        statement: Statement | None
        if best is not None and bottleneck.quality is Quality.MEASURED and now_s - best.at_s <= limits.stale_s:
            statement = self._statement(now_s, best, True)
        else:
            statement = self._bound(now_s, bounds)
        if statement is None:
            return None
        free = min(max(0, statement.value - promised), bottleneck.value)
        return Statement(free, statement.quality, statement.method, statement.age_s)

    def _bound(self, now_s: float, rates: list[_Rate | None]) -> Statement | None:
        """The greatest of what is fresh, else the latest that is not forgotten yet."""
        known = [each for each in rates if each is not None and now_s - each.at_s <= self._limits.forgotten_s]
        if not known:
            return None
        fresh = [each for each in known if now_s - each.at_s <= self._limits.stale_s]
        if fresh:
            return self._statement(now_s, max(fresh, key=lambda each: each.value), False)
        return self._statement(now_s, max(known, key=lambda each: each.at_s), False)

    def _statement(self, now_s: float, rate: _Rate, measured: bool) -> Statement:
        age_s = max(0.0, now_s - rate.at_s)
        quality = Quality.MEASURED if measured and age_s <= self._limits.stale_s else Quality.LOWER_BOUND
        return Statement(min(round(rate.value), MAX_BANDWIDTH), quality, rate.method, age_s)
