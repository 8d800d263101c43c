"""What to send to the reflector of one host next, within a budget.

    single probes until one answers  ->  a short burst, then longer ones: the capacity
        ->  paced trains: what is spare  ->  both in turn, as somebody wants to know and the budget allows

The budget is a token bucket: `share` of the capacity on average, and CREDIT_BYTES at the beginning. Of these
RESERVE_BYTES are kept for surprises and for who wants a fresh measurement.
"""

from collections import deque
from enum import IntEnum
from statistics import median

from qos2.core import trains
from qos2.core.probes import MAX_TRAIN, ProbeKind, ProbeOutcome, ProbePlan

#: At 5 Mbit/s, 1 % earns 6 kB/s: the first answer (one burst of 6, two of 11, two paced trains of 12 packets of
#: 1,400 bytes: 73 kB) cannot wait for that, and what follows a change soon after it neither. At 100 Mbit/s: 1.2 s.
CREDIT_BYTES = 150_000
#: Twice two bursts and a paced train, as short as can be: a new capacity is believed by two bursts, and may go again.
RESERVE_BYTES = 75_000
#: While the reserve is not full, this share of what is earned goes on into ordinary trains.
ORDINARY_SHARE = 0.8
#: What is earned follows the least capacity that was known after so many trains.
EARNING_TRAINS = 8
#: Earned per second where no capacity is known: 1 % of 1 Mbit/s, so that waiting for a path does not stop for ever.
UNKNOWN_BYTES_PER_S = 1_250.0
#: IP level sizes. A single probe is the smallest test packet of RFC 8762 over IPv6, and fits IPv4 as well.
SINGLE_BYTES = 92
#: Below 1,500 and the usual tunnels; then the least of IPv6; then what every IPv4 path carries.
TRAIN_BYTES = (1400, 1280, 576)
#: No smaller packets in trains: the headers of links, which nobody sees here, would be too much of them.
MIN_TRAIN_BYTES = 300
#: Unless this is earned, which makes up for longer ones; at such rates a bucket may hide the capacity from short ones.
QUICK_BYTES_PER_S = 50_000.0
#: How long the queue of the bottleneck may get by a train: what a voice call does not notice.
QUEUE_S = 0.025
#: No longer than what so many seconds earn: at low rates rather a short train often than a long one now and then.
EARNED_S = 1.5
#: Fewer packets make no train.
MIN_TRAIN = 8
FIRST_BURST = 6
#: No longer before the first answer: five trains of this come to no more than the credit.
FIRST_TRAIN = 12
#: Bursts before the capacity is called known: the median of three bears one wrong.
FIRST_BURSTS = 3
FIRST_PACED = 2
#: Of so many trains one is a burst.
BURST_TURN = 4
#: Trains are paced halfway between what is spare and this share of the capacity: above what is spare, so that the
#: queue stays busy, and slowly, so that they see more of what others send. Above 1, so that on an idle way too
#: something is held back; if not, the capacity has grown.
PACED_SHARE = 1.3
GROWN_SHARE = 1.08
#: Single probes: while a condition is waited for (the detector's window), and otherwise.
CONDITION_S = 0.1
TRACKING_S = 1.0
#: Where they cost no more than this share of the budget, two at a time for a condition, the second so much later: what
#: both have met is no chance, and a window is enough to know it.
PAIR_SHARE = 1 / 3
PAIR_S = 0.04
#: A burst and a paced train so often while nobody asks: well within the model's 30 s.
TRACKING_TRAINS_S = 12.0
#: So many packets at once ask whether there is a reflector: one alone may be lost to address resolution.
HELLOS = 2
BACK_OFF_S = (1.0, 60.0)
#: Plans of which nothing came back, one after another, before the reflector counts as gone.
SILENT_PLANS = 10
#: Trains of which nothing came back while single probes did, before smaller packets are tried.
LOST_TRAINS = 2
#: When a reflector has answered for so long, nothing more is to be expected soon, whatever came of its trains.
PATIENCE_S = 5.0
#: Where bursts are policed: rates to begin with, and multiples of the capacity that tell it from what others send.
SEARCH_RATE = 30_000_000
SEARCH_FACTOR = 3
POLICED_FACTORS = (2.5, 1.4, 2.9, 1.7, 2.2)
#: A train that shows spare bandwidth this much (share of the capacity) away from what was believed is a surprise.
SURPRISE_SHARE = 0.25
#: No user-space sender paces faster.
MAX_PACED_RATE = 2_000_000_000


class Demand(IntEnum):
    """How eagerly somebody waits; each includes those below."""

    NONE = 0  #: the host is merely tracked
    CONDITION = 1  #: for the condition of a flow that tells nothing itself
    BANDWIDTH = 2  #: for bandwidths: fundamentals, admission, availability
    FRESH = 3  #: for a new measurement


_HELLO = ProbePlan(ProbeKind.SINGLE, HELLOS, SINGLE_BYTES)


class Probing:
    """The plan for one host. `next` is asked about ten times a second."""

    def __init__(self, share: float = 0.01) -> None:
        """`share` of the measured capacity, 0..1, may be spent on average."""
        self._share = share
        self._tokens = float(CREDIT_BYTES)
        self._last_s: float | None = None
        self._reflector: bool | None = None
        self._back_off_s = BACK_OFF_S[0]
        self._hello_s = 0.0  #: when to ask for a reflector again
        self._silent = 0
        self._lost_trains = 0
        self._size = 0  #: index into TRAIN_BYTES
        self._capacity: float | None = None
        self._earning: deque[float] = deque(maxlen=EARNING_TRAINS)
        self._obtainable: float | None = None  #: what was spare by trains, and what our flows were carried at meanwhile
        self._carried = 0.0
        self._heads: deque[int] = deque(maxlen=5)
        self._policed = False
        self._suspected = False  #: the last burst looked policed
        self._whole = 0  #: packets of the longest burst of which next to nothing was lost
        self._search_rate = float(SEARCH_RATE)
        self._bursts = self._paced = self._trains = 0
        self._wanted: deque[ProbeKind] = deque()  #: trains that need not wait for the budget's reserve
        self._surprised = False
        self._doubted = False
        self._single_s = float("-inf")
        self._train_s = float("-inf")
        self._burst_s = float("-inf")
        self._answered_s: float | None = None  #: since when a reflector answers
        self._heard_s = float("-inf")  #: when the last plan was begun of which something came back

    @property
    def reflector(self) -> bool | None:
        """Whether one answers; None while that is being found out, False also after one has fallen silent."""
        return self._reflector

    @property
    def settled(self) -> bool:
        """Whether bandwidths are known as well as they will be soon."""
        if self._reflector is not True:
            return self._reflector is False
        if self._capacity is not None and self._paced >= FIRST_PACED:
            return True
        return (
            self._answered_s is not None and self._last_s is not None and self._last_s - self._answered_s > PATIENCE_S
        )

    @property
    def refreshing(self) -> bool:
        """Whether what `fresh` asked for is still to be sent or heard."""
        return bool(self._wanted)

    def fresh(self) -> None:
        """Somebody wants a new measurement: a burst and a paced train as soon as the credit allows."""
        self._wanted = deque((ProbeKind.BURST, ProbeKind.PACED))

    def next(self, now_s: float, *, demand: Demand, train: bool = True) -> ProbePlan | None:
        """What to send now; None: nothing. `train`: whether it may be one.

        What is returned is taken to be sent, unless `unsent` is told.
        """
        self._earn(now_s)
        if self._reflector is not True:
            if now_s < self._hello_s:
                return None
            self._hello_s = now_s + self._back_off_s
            return self._spend(_HELLO)
        if self._silent:  # of a train nothing came back: is the reflector still there?
            return self._single(now_s, CONDITION_S)
        plan = self._next_train(now_s, demand) if train else None
        if plan is not None:
            if plan.kind is ProbeKind.BURST:
                self._burst_s = now_s
            self._train_s = now_s
            return self._spend(plan)
        return self._single(now_s, CONDITION_S if demand >= Demand.CONDITION else TRACKING_S)

    def unsent(self, plan: ProbePlan) -> None:
        """What `next` returned last could not be sent: it costs nothing, and is due again after its usual time."""
        self._tokens = min(CREDIT_BYTES, self._tokens + plan.bytes)

    def heard(self, outcome: ProbeOutcome, capacity: float | None, carried: float = 0.0) -> None:
        """What came of a plan; `capacity` in bits/s as it is known with this, None: not.

        `carried` in bits/s is what our own flows sent this way meanwhile: a change of that is no surprise.
        """
        self._carried = carried
        train = outcome.plan.kind is not ProbeKind.SINGLE
        if capacity is None or self._capacity is None or abs(capacity - self._capacity) > SURPRISE_SHARE * capacity:
            self._obtainable = None  # it was of the former capacity
            self._earning.clear()
        self._capacity = capacity
        if train and capacity is not None:
            self._earning.append(capacity)
        if outcome.answered:
            self._heard_s = max(self._heard_s, outcome.begun_s)
            self._answered(train)
        elif self._reflector is not True:
            if outcome.plan == _HELLO:  # others were under way when the reflector fell silent
                self._unwelcome()
        elif train or outcome.begun_s >= self._heard_s:  # what a later one has overtaken was lost in a full queue
            self._unanswered(train)
        if not train:
            return
        self._trains += 1
        if self._wanted and self._wanted[0] is outcome.plan.kind:
            self._wanted.popleft()
        if outcome.plan.kind is ProbeKind.BURST:
            self._heard_burst(outcome)
        else:
            self._heard_paced(outcome)

    # What came back

    def _answered(self, train: bool) -> None:
        if self._reflector is not True:
            self._reflector = True
            self._answered_s = self._last_s
            self._back_off_s = BACK_OFF_S[0]
        self._silent = 0
        if train:
            self._lost_trains = 0

    def _unwelcome(self) -> None:
        """There is no reflector, or none yet: asked again later each time."""
        self._reflector = False
        if self._last_s is not None:
            self._hello_s = self._last_s + self._back_off_s
        self._back_off_s = min(2 * self._back_off_s, BACK_OFF_S[1])

    def _unanswered(self, train: bool) -> None:
        self._silent += 1
        if self._silent >= SILENT_PLANS:
            self._reflector = False
            self._wanted.clear()
        elif train:
            self._lost_trains += 1
            if self._lost_trains >= LOST_TRAINS and self._size < len(TRAIN_BYTES) - 1:
                self._size += 1
                self._lost_trains = 0

    def _heard_burst(self, outcome: ProbeOutcome) -> None:
        policed = trains.policed(outcome)
        # A bucket that let a longer burst pass is no bucket: then it was a full queue that lost these.
        policed = policed and self._whole <= outcome.answered
        # Where bursts have passed whole before, one alone may still have met a full queue.
        self._policed = policed and (self._whole == 0 or self._suspected)
        self._suspected = policed
        burst = None if policed else trains.burst(outcome)
        if burst is not None:
            self._bursts += 1
            self._heads.append(burst.head)
            self._whole = max(self._whole, outcome.plan.count)
            self._check_capacity(burst)

    def _check_capacity(self, burst: trains.Burst) -> None:
        """A burst that says something else wants a second one, and the trains before it tell nothing any more."""
        if self._capacity is None or self._bursts <= FIRST_BURSTS:
            return
        other = abs(burst.capacity - self._capacity) > SURPRISE_SHARE * self._capacity
        if other and not self._doubted:
            self._wanted = deque((ProbeKind.BURST, ProbeKind.PACED))
        self._doubted = other

    def _heard_paced(self, outcome: ProbeOutcome) -> None:
        paced = trains.paced(outcome, self._capacity, self._head)
        if self._capacity is None:
            self._search(outcome, paced)
        if paced is None or self._capacity is None:
            return
        self._paced += 1
        obtainable = min(self._capacity, max(0.0, paced.spare(self._capacity)) + self._carried)
        before = self._obtainable
        if not paced.held:
            self._obtainable = self._capacity  # as far as was seen: the next train tells
        else:
            self._obtainable = obtainable if before is None else (obtainable + before) / 2
        changed = before is not None and abs(obtainable - before) > SURPRISE_SHARE * self._capacity
        surprise = changed or (not paced.held and paced.rate + self._carried > GROWN_SHARE * self._capacity)
        if surprise and not (self._surprised or self._policed or self._wanted):
            # Others have begun or ended, or the capacity is another one: a burst tells.
            self._wanted.extend((ProbeKind.BURST, ProbeKind.PACED))
            self._obtainable = obtainable
        self._surprised = surprise

    def _search(self, outcome: ProbeOutcome, paced: trains.Paced | None) -> None:
        """The next rate towards three times what arrives."""
        if paced is None:
            # Too little comes through of what is far too fast.
            self._search_rate *= SEARCH_FACTOR if outcome.answered == outcome.plan.count else 1 / SEARCH_FACTOR
        else:
            self._search_rate = 3 * paced.arrived if paced.held else SEARCH_FACTOR * paced.rate

    # What to send

    def _single(self, now_s: float, period_s: float) -> ProbePlan | None:
        # A tenth of a second later is a whole turn of the caller, whose clock is not that exact.
        if now_s - self._single_s < period_s - 0.01 or self._tokens < SINGLE_BYTES:
            return None
        self._single_s = now_s
        pair = ProbePlan(ProbeKind.SINGLE, 2, SINGLE_BYTES, round(SINGLE_BYTES * 8 / PAIR_S))
        affordable = pair.bytes / period_s <= PAIR_SHARE * self._earned_per_s
        return self._spend(
            pair if affordable and period_s == CONDITION_S else ProbePlan(ProbeKind.SINGLE, 1, SINGLE_BYTES)
        )

    def _next_train(self, now_s: float, demand: Demand) -> ProbePlan | None:
        kind, reserve = self._next_kind(now_s, demand)
        if kind is None:
            return None
        plan = self._burst_plan() if kind is ProbeKind.BURST else self._paced_plan()
        rested = (now_s - self._train_s) * self._earned_per_s * ORDINARY_SHARE >= plan.bytes
        return plan if self._tokens >= plan.bytes + (0 if rested else reserve) else None

    def _next_kind(self, now_s: float, demand: Demand) -> tuple[ProbeKind | None, int]:
        """The next train, and how much of the credit must be left after it."""
        if self._wanted:
            return self._wanted[0], 0
        if not self.settled:
            return self._first_kind(), 0
        if demand >= Demand.BANDWIDTH:
            return (ProbeKind.PACED if self._trains % BURST_TURN else ProbeKind.BURST), RESERVE_BYTES
        if now_s - self._burst_s >= TRACKING_TRAINS_S:
            return ProbeKind.BURST, RESERVE_BYTES
        return (ProbeKind.PACED if self._train_s == self._burst_s else None), RESERVE_BYTES

    def _first_kind(self) -> ProbeKind:
        if self._policed:
            return ProbeKind.PACED
        return ProbeKind.BURST if self._bursts < FIRST_BURSTS or self._capacity is None else ProbeKind.PACED

    def _burst_plan(self) -> ProbePlan:
        if self._capacity is None:
            return ProbePlan(ProbeKind.BURST, FIRST_BURST if self._trains == 0 else MIN_TRAIN, TRAIN_BYTES[self._size])
        size = self._train_bytes(self._capacity)
        return ProbePlan(ProbeKind.BURST, self._count(size, self._capacity * QUEUE_S / (8 * size)), size)

    def _paced_plan(self) -> ProbePlan:
        capacity = self._capacity
        if capacity is None:
            rate = min(self._search_rate, MAX_PACED_RATE)
            return ProbePlan(ProbeKind.PACED, MAX_TRAIN, TRAIN_BYTES[self._size], round(rate))
        size = self._train_bytes(capacity)
        spare = max(0.0, (capacity if self._obtainable is None else self._obtainable) - self._carried)
        if self._policed:
            rate = capacity * POLICED_FACTORS[self._trains % len(POLICED_FACTORS)]
            return ProbePlan(ProbeKind.PACED, MAX_TRAIN, size, round(min(rate, MAX_PACED_RATE)))
        if self._head >= 2:
            # A bucket must run dry early in the train, by this train: half of what is sent must be too much, or more.
            rate = capacity * (2 if self._head <= MAX_TRAIN // 3 else 4)
        elif self._head == 1:
            rate = capacity * PACED_SHARE
        else:
            rate = (PACED_SHARE * capacity + spare) / 2
        rate = min(rate, MAX_PACED_RATE)
        growth = max(0.1, (rate - spare) / rate)  # of the queue, per byte sent
        count = self._count(size, self._head + capacity * QUEUE_S / (8 * size * growth))
        return ProbePlan(ProbeKind.PACED, count, size, round(rate))

    def _count(self, size: int, fitting: float) -> int:
        """Packets of a train of which `fitting` fit the queue; what a bucket takes first is not of use."""
        earned = 0.0 if self._capacity is None else self._share * self._capacity / 8 * EARNED_S / size
        quick = self._capacity is not None and self._share * self._capacity / 8 >= QUICK_BYTES_PER_S
        if quick:
            longest = MAX_TRAIN
        elif self._wanted:
            longest = MIN_TRAIN + 2 * self._head
        else:
            longest = MAX_TRAIN if self.settled else FIRST_TRAIN + 2 * self._head
        return int(max(MIN_TRAIN, min(longest, MAX_TRAIN, fitting, max(earned, MIN_TRAIN + 2 * self._head))))

    def _train_bytes(self, capacity: float) -> int:
        """Smaller packets where few of the usual ones would fill the queue."""
        fitting = round(capacity * QUEUE_S / (8 * MIN_TRAIN))
        return max(MIN_TRAIN_BYTES, min(TRAIN_BYTES[self._size], fitting))

    @property
    def _head(self) -> int:
        return round(median(self._heads)) if self._heads else 0

    # The budget

    @property
    def _earned_per_s(self) -> float:
        # The least of late: of a token bucket short trains show the line rate.
        return self._share * min(self._earning) / 8 if self._earning else UNKNOWN_BYTES_PER_S

    def _earn(self, now_s: float) -> None:
        if self._last_s is not None:
            self._tokens = min(CREDIT_BYTES, self._tokens + self._earned_per_s * max(0.0, now_s - self._last_s))
        self._last_s = now_s

    def _spend(self, plan: ProbePlan) -> ProbePlan:
        self._tokens -= plan.bytes
        return plan
