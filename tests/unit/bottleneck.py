"""A simulated way to a reflector, in virtual time: one bottleneck, what others send, and two imperfect clocks.

    sender -- 1 Gbit/s -> [ FIFO at C | token bucket | policer ] -> reflector -> back, without any queue

Packets of others pass the same bottleneck in the order of arrival. Between two plans only the last LEAD_S
are simulated: no queue here remembers more. All sizes and rates are at IP level.
"""

import itertools
import random
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from qos2.core.pathmodel import PathModel
from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePacket, ProbePlan
from qos2.core.probing import Demand, Probing

#: What the sender's own link and the bottleneck's outgoing one carry.
LINE_RATE = 1e9
LEAD_S = 0.25
#: How long the reflector takes for an answer.
TURN_S = 20e-6
CROSS_BYTES = 1400


class Kind(StrEnum):
    SHAPER = "shaper"  #: a link of this rate, or a shaper without burst
    TOKENS = "tokens"  #: a token bucket with a queue, as tbf
    POLICER = "policer"  #: a token bucket without a queue


class Load(StrEnum):
    CBR = "cbr"
    POISSON = "poisson"
    ON_OFF = "on_off"  #: CBR at up to 95 % of the capacity for 20 ms on average, then silence


@dataclass(frozen=True, slots=True)
class Noise:
    """Errors of time stamps: Gaussian, and now and then a stall after which all that waited is stamped at once."""

    sigma_s: float = 20e-6
    stall_probability: float = 0.01  #: per packet
    stall_s: tuple[float, float] = (0.2e-3, 2e-3)
    pacing_s: float = 60e-6  #: how late a timer wakes the sender, at most


QUIET = Noise(0.0, 0.0, (0.0, 0.0), 0.0)


class Bottleneck:
    """A path of `capacity` bits/s of which others send `load` (share of the capacity)."""

    def __init__(
        self,
        capacity: float,
        *,
        kind: Kind = Kind.SHAPER,
        load: float = 0.0,
        pattern: Load = Load.POISSON,
        burst_bytes: int = 3000,
        buffer_s: float = 0.1,
        delay_s: float = 0.005,
        noise: Noise = QUIET,
        reflector: bool = True,
        mtu: int = 1500,
        seed: int = 1,
    ) -> None:
        self.capacity = capacity
        self.load = load
        self.reflector = reflector
        self.sent_bytes = 0
        self._kind = kind
        self._pattern = pattern
        self._burst_bits = burst_bytes * 8
        self._buffer_s = buffer_s
        self._delay_s = delay_s
        self._noise = noise
        self._mtu = mtu
        self._random = random.Random(seed)
        self._offset_ns = self._random.randrange(-(10**15), 10**15)  # between the two clocks
        self._now_s = 0.0
        self._waiting: deque[tuple[float, float]] = deque()  # when each leaves, its bits
        self._backlog_bits = 0.0
        self._free_s = 0.0  # when the last packet has left
        self._empty_s = -1e9  # when the bucket was, or will have been, empty
        self.dropped = 0

    def execute(self, plan: ProbePlan, start_s: float) -> ProbeOutcome:
        """What comes of this plan, begun at this moment; later than what was executed before."""
        self.sent_bytes += plan.bytes
        sending = self._sending_times(plan, start_s)
        if not self.reflector or plan.ip_bytes > self._mtu:
            return ProbeOutcome(plan, 0, start_s, start_s + 0.5, (None,) * plan.count)
        arrivals = self._at_line_rate(sending, plan.ip_bytes)
        others = self._others(start_s)
        other = next(others, None)
        left: list[float | None] = []
        for arrival in arrivals:
            while other is not None and other <= arrival:
                self._pass(other, CROSS_BYTES * 8)
                other = next(others, None)
            left.append(self._pass(arrival, plan.ip_bytes * 8))
        self._now_s = arrivals[-1]
        return self._outcome(plan, start_s, sending, left)

    # Parts

    def _sending_times(self, plan: ProbePlan, start_s: float) -> list[float]:
        """One system call per packet, or per two where timers would be too coarse; a burst is one."""
        if not plan.rate:
            return [start_s] * plan.count
        gap_s = plan.ip_bytes * 8 / plan.rate
        group = 2 if gap_s < 300e-6 else 1
        times: list[float] = []
        for number in range(plan.count):
            if number % group == 0:
                due = start_s + number * gap_s + self._random.uniform(0, self._noise.pacing_s)
                if self._random.random() < self._noise.stall_probability:
                    due += self._random.uniform(*self._noise.stall_s)
            times.append(max(due, times[-1]) if times else due)
        return times

    @staticmethod
    def _at_line_rate(sending: list[float], ip_bytes: int) -> list[float]:
        free = sending[0]
        arrivals = []
        for time in sending:
            free = max(free, time) + ip_bytes * 8 / LINE_RATE
            arrivals.append(free)
        return arrivals

    def _others(self, start_s: float) -> Iterator[float]:
        """When the others' packets arrive, from LEAD_S before the plan on."""
        rate = self.load * self.capacity
        if rate <= 0:
            return
        time = max(self._now_s, start_s - LEAD_S)
        gap_s = CROSS_BYTES * 8 / rate
        if self._pattern is Load.CBR:
            time += self._random.uniform(0, gap_s)
            for number in itertools.count():
                yield time + number * gap_s
        elif self._pattern is Load.POISSON:
            while True:
                time += self._random.expovariate(1 / gap_s)
                yield time
        else:
            on_rate = min(2 * self.load, 0.95) * self.capacity
            on_s, on_gap_s = 0.02, CROSS_BYTES * 8 / on_rate
            off_s = on_s * (on_rate / rate - 1)
            sending = self._random.random() < rate / on_rate
            while True:
                length = self._random.expovariate(1 / (on_s if sending else off_s))
                if sending:
                    for number in range(max(1, round(length / on_gap_s))):
                        yield time + number * on_gap_s
                time += length
                sending = not sending

    def _pass(self, now_s: float, bits: float) -> float | None:
        """When a packet that arrives now has left the bottleneck; None: dropped."""
        self._empty_s = max(self._empty_s, now_s - self._burst_bits / self.capacity)
        if self._kind is Kind.POLICER:
            if (now_s - self._empty_s) * self.capacity < bits:
                self.dropped += 1
                return None
            self._empty_s += bits / self.capacity
            return now_s
        while self._waiting and self._waiting[0][0] <= now_s:
            self._backlog_bits -= self._waiting.popleft()[1]
        if self._backlog_bits + bits > self._buffer_s * self.capacity:
            self.dropped += 1
            return None
        if self._kind is Kind.SHAPER:
            self._free_s = max(self._free_s, now_s) + bits / self.capacity
        else:
            begins = max(now_s, self._free_s, self._empty_s + bits / self.capacity)
            self._empty_s = max(self._empty_s, begins - self._burst_bits / self.capacity) + bits / self.capacity
            self._free_s = begins + bits / LINE_RATE
        self._waiting.append((self._free_s, bits))
        self._backlog_bits += bits
        return self._free_s

    def _stamps(self, times: list[float | None]) -> list[float | None]:
        stalled_until = 0.0
        stamps: list[float | None] = []
        for time in times:
            if time is None:
                stamps.append(None)
                continue
            if self._random.random() < self._noise.stall_probability:
                stalled_until = max(stalled_until, time + self._random.uniform(*self._noise.stall_s))
            stamps.append(max(time, stalled_until) + abs(self._random.gauss(0, self._noise.sigma_s)))
        return stamps

    def _outcome(self, plan: ProbePlan, start_s: float, sending: list[float], left: list[float | None]) -> ProbeOutcome:
        reached = self._stamps([None if time is None else time + self._delay_s for time in left])
        returned = [None if time is None else time + TURN_S for time in reached]
        received = self._stamps([None if time is None else time + self._delay_s for time in returned])
        packets: list[ProbePacket | None] = []
        ended_s = sending[-1] + 2 * self._delay_s
        for sent, there, back, here in zip(sending, reached, returned, received, strict=True):
            if there is None or back is None or here is None:
                packets.append(None)
                ended_s = max(ended_s, sent + 4 * self._delay_s + 0.1)
                continue
            ended_s = max(ended_s, here)
            packets.append(
                ProbePacket(
                    round(sent * 1e9),
                    round(there * 1e9) + self._offset_ns,
                    round(back * 1e9) + self._offset_ns,
                    round(here * 1e9),
                )
            )
        return ProbeOutcome(plan, 0, start_s, ended_s, tuple(packets))


class Session:
    """What the daemon does with one host: asks for plans ten times a second, and tells what came back."""

    def __init__(self, way: Bottleneck, *, share: float = 0.01) -> None:
        self.way = way
        self.model = PathModel()
        self.probing = Probing(share)
        self.now_s = 100.0
        self.sent: list[tuple[float, ProbePlan]] = []
        self._under_way: list[ProbeOutcome] = []

    def run(self, seconds: float, *, demand: Demand = Demand.BANDWIDTH, carried: float = 0.0) -> Iterator[float]:
        """Steps of 100 ms; yields the time after each."""
        end_s = self.now_s + seconds
        while self.now_s < end_s - 1e-9:
            for done in [each for each in self._under_way if each.ended_s <= self.now_s]:
                self.model.outcome(done, carried)
                self.probing.heard(done, self.model.capacity, carried)
                self._under_way.remove(done)
            for train in (False,) if self._busy() else (False, True):
                plan = self.probing.next(self.now_s, demand=demand, train=train)
                if plan is not None:
                    self.sent.append((self.now_s, plan))
                    self._under_way.append(self._execute(plan))
            self.now_s += 0.1
            yield self.now_s

    def _busy(self) -> bool:
        return any(each.plan.kind is not ProbeKind.SINGLE for each in self._under_way)

    def _execute(self, plan: ProbePlan) -> ProbeOutcome:
        """Of two spaced single probes only the first is played: what begins in this step goes before the second."""
        if plan.kind is ProbeKind.SINGLE and plan.rate:
            self.way.sent_bytes += plan.bytes - plan.ip_bytes
            plan = ProbePlan(ProbeKind.SINGLE, 1, plan.ip_bytes)
        return self.way.execute(plan, self.now_s)
