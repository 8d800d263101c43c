"""The way to one host: what is known of it, who uses it, what is to be probed next."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from qos2.core import trains
from qos2.core.pathmodel import PathModel
from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePlan
from qos2.core.probing import Demand, Probing
from qos2.model import Bandwidth, Dscp, FlowFundamentals, FlowId, Method, PathReport
from qos2.paths.carriage import Carriage, Carried

#: For so long after a question about bandwidth somebody is taken to want to know it.
ASKED_S = 3.0
#: Who waits for more is heard of whenever something new is known, which is more often than this.
AWAITED_S = 2.0
#: A fresh measurement that has not come by then has failed.
FRESH_S = 3.0
#: A report holds until the next one should be there, and as long again: applications are not that exact.
REPORTED_INTERVALS = 2


class _Reported(NamedTuple):
    """What an application said of its flow: bits/s that arrived during the `interval_s` that ended then."""

    at_s: float
    interval_s: float
    rate: float


@dataclass(slots=True, eq=False)
class Holder:
    """An adaptive flow on this way: its DSCP (0: whatever the application sets) and its contract (0: none)."""

    dscp: Dscp
    bandwidth: Bandwidth
    carriage: Carriage | None = None  #: once the flow was looked at
    carried: Carried | None = None  #: at the last look
    reported: _Reported | None = None

    def rate(self, now_s: float) -> float:
        """Bits/s that it is carried at: as the kernel knows, else as its application says, else what it sends."""
        if self.carried is not None and self.carried.rate is not None:
            return self.carried.rate
        if self.reported is not None and now_s - self.reported.at_s <= REPORTED_INTERVALS * self.reported.interval_s:
            return self.reported.rate
        return 0.0 if self.carried is None else self.carried.sent


class Sighting(NamedTuple):
    """What single probes saw: the least of so many round trips; how many were sent and lost since the last answer."""

    rtt_us: int
    round_trips: int
    sent: int
    lost: int


class Way:
    """While somebody uses it; the model, which is what is known, outlives that. Times by the daemon's clock (s)."""

    def __init__(self, model: PathModel, probing: Probing | None) -> None:
        self.model = model
        self.probing = probing
        self.holders: dict[FlowId, Holder] = {}
        self.watchers = 0
        self.carried = 0.0  #: bits/s of all holders at the last look
        self._looked_s: float | None = None
        self._asked_s = float("-inf")
        self._awaited_s = float("-inf")
        self._fresh_s: float | None = None  #: since when somebody waits for a new measurement
        self._measured_s = float("-inf")  #: when the last measurement was begun
        self._reported_s = float("-inf")  #: the last report of a rate
        self._turns: Counter[ProbeKind] = Counter()  #: plans of each kind
        self._unheard: dict[int, int] = {}  #: single probes lost since the last that came back, by DSCP

    @property
    def promised(self) -> int:
        """Bits/s of all contracts."""
        return sum(holder.bandwidth for holder in self.holders.values())

    @property
    def settled(self) -> bool:
        """Whether no more than what is known is to be expected soon."""
        return self.probing is None or self.probing.settled

    @property
    def hopeful(self) -> bool:
        """Whether a new measurement can come about."""
        return bool(self.holders) or (self.probing is not None and self.probing.reflector is not False)

    def estimate(self, now_s: float) -> FlowFundamentals | None:
        return self.model.estimate(now_s, self.promised)

    def ask(self, now_s: float) -> None:
        """Somebody wants to know bandwidths."""
        self._asked_s = now_s

    def awaits(self, now_s: float) -> None:
        """Somebody waits for more bandwidth, and still does at this time."""
        self._awaited_s = now_s

    def refresh(self, now_s: float) -> None:
        """Somebody waits for a new measurement. Who asks while others wait shares what comes of it, and its end."""
        self.ask(now_s)
        if self._fresh_s is None:
            self._fresh_s = now_s
            if self.probing is not None:
                self.probing.fresh()

    def refreshed(self, now_s: float) -> bool | None:
        """Whether what `refresh` asked for is there, told once; None while it may still come, or nobody waits."""
        if self._fresh_s is None:
            return None
        new = self._measured_s > self._fresh_s
        if not new and self.hopeful and now_s - self._fresh_s < FRESH_S:
            return None
        self._fresh_s = None
        return new

    def reported(self, now_s: float, flow: FlowId, interval_s: float, report: PathReport, *, limited: bool) -> None:
        """What an application says of the last `interval_s` of its flow, 0: since when is not known.

        `limited`: the network was full meanwhile. What it then carried is the sum over all flows to the host, so with
        each report of one the others count as they are known to be carried.
        """
        if report.rtt_s is not None:
            self.model.rtt(now_s, round(report.rtt_s * 1e6), Method.REPORT)
        holder = self.holders.get(flow)
        if holder is None or report.delivered_bytes is None or interval_s <= 0:
            return
        holder.reported = _Reported(now_s, interval_s, report.delivered_bytes * 8 / interval_s)
        rate = sum(each.rate(now_s) for each in self.holders.values())
        # What was told of by others already is not told of again.
        new_s = min(interval_s, now_s - self._reported_s)
        self._reported_s = now_s
        before_s = self.model.measured_s
        self.model.carried(now_s, new_s, rate, limited=limited, method=Method.REPORT)
        self._note_measured(before_s, now_s)

    def look(self, now_s: float, carried: Mapping[FlowId, Carried | None]) -> None:
        """What holders were carried at since the last look; of those that are missing nothing is known."""
        before, self._looked_s = self._looked_s, now_s
        for flow, holder in self.holders.items():
            holder.carried = carried.get(flow)
        self.carried = sum(holder.rate(now_s) for holder in self.holders.values())
        known = [each for each in carried.values() if each is not None]
        if before is not None and any(each.rate is not None for each in known):
            limited = any(each.limited for each in known)
            before_s = self.model.measured_s
            self.model.carried(now_s, now_s - before, self.carried, limited=limited, method=Method.TCP)
            self._note_measured(before_s, now_s)

    def interval_s(self, now_s: float) -> float:
        """Since the last look; 0 before the first."""
        return 0.0 if self._looked_s is None else now_s - self._looked_s

    def outcome(self, outcome: ProbeOutcome) -> Sighting | None:
        """A plan has been carried out. What a flow with its mark would have met; None: nobody knows.

        Probes that are lost are told of with the next one that is not: until then nobody knows whether the path
        is full or the reflector gone.
        """
        assert self.probing is not None
        before_s = self.model.measured_s
        self.model.outcome(outcome, self.carried)
        self._note_measured(before_s, outcome.begun_s)
        self.probing.heard(outcome, self.model.capacity, self.carried)
        rtt_us = trains.rtt_us(outcome)
        if outcome.plan.kind is not ProbeKind.SINGLE:
            # The first of a train has met what a single one would have; what a train loses, its own queue did.
            return None if rtt_us is None else Sighting(rtt_us, 1, 0, 0)
        lost = self._unheard.pop(outcome.dscp, 0) + outcome.plan.count - outcome.answered
        if rtt_us is None:
            self._unheard[outcome.dscp] = lost
            return None
        return Sighting(rtt_us, outcome.answered, lost + outcome.answered, lost)

    def plan(self, now_s: float, *, train: bool) -> tuple[Dscp, ProbePlan] | None:
        """What to send now, which may be a `train`, and how to mark it: as each of the flows in turn."""
        if self.probing is None:
            return None
        plan = self.probing.next(now_s, demand=self._demand(now_s), train=train)
        if plan is None:
            return None
        marks = sorted({holder.dscp for holder in self.holders.values()}) or [Dscp(0)]
        self._turns[plan.kind] += 1
        return marks[self._turns[plan.kind] % len(marks)], plan

    def unsent(self, plan: ProbePlan) -> None:
        """What `plan` said last could not be sent."""
        if self.probing is not None:
            self.probing.unsent(plan)

    def _note_measured(self, before_s: float, begun_s: float) -> None:
        """If the model has measured anew since then: by what began at this time."""
        if self.model.measured_s != before_s:
            self._measured_s = begun_s

    def _demand(self, now_s: float) -> Demand:
        if self._fresh_s is not None:
            return Demand.FRESH
        if now_s - self._asked_s < ASKED_S or now_s - self._awaited_s < AWAITED_S:
            return Demand.BANDWIDTH
        if self.watchers:
            return Demand.CONDITION
        return Demand.NONE
