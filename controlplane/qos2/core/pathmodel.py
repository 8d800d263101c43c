"""Everything known about the way to one host: bottleneck, what flows of this machine can have, round trip time.

    what TCP flows were carried at, reports  ->  core/carried.py: measured while the network was the limit
    outcomes of probes                       ->  core/trainmodel.py: capacity and what is spare
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
from statistics import median

from qos2.core import trains
from qos2.core.carried import Carried
from qos2.core.pathlimits import ModelLimits, Rate
from qos2.core.probes import ProbeKind, ProbeOutcome
from qos2.core.trainmodel import TrainModel
from qos2.model import MAX_BANDWIDTH, Bandwidth, FlowFundamentals, Method, Quality, Statement

_LIMITS = ModelLimits()


class PathModel:
    """One host. All times are seconds of one clock, which the caller passes in; rates are bits/s at IP level."""

    def __init__(self, limits: ModelLimits = _LIMITS) -> None:
        self._limits = limits
        self._rtts: deque[Rate] = deque(maxlen=limits.rtt_samples)
        # Kept apart: both would be needed for a sum, and they tell of different moments.
        self._carried = {Method.TCP: Carried(limits), Method.REPORT: Carried(limits)}
        self._trains = TrainModel(limits)
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
        self._rtts.append(Rate(now_s, rtt_us, method))

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

    def _bound(self, now_s: float, rates: list[Rate | None]) -> Statement | None:
        """The greatest of what is fresh, else the latest that is not forgotten yet."""
        known = [each for each in rates if each is not None and now_s - each.at_s <= self._limits.forgotten_s]
        if not known:
            return None
        fresh = [each for each in known if now_s - each.at_s <= self._limits.stale_s]
        if fresh:
            return self._statement(now_s, max(fresh, key=lambda each: each.value), False)
        return self._statement(now_s, max(known, key=lambda each: each.at_s), False)

    def _statement(self, now_s: float, rate: Rate, measured: bool) -> Statement:
        age_s = max(0.0, now_s - rate.at_s)
        quality = Quality.MEASURED if measured and age_s <= self._limits.stale_s else Quality.LOWER_BOUND
        return Statement(min(round(rate.value), MAX_BANDWIDTH), quality, rate.method, age_s)
