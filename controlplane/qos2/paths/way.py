"""The way to one host: what is known of it, who uses it, what is to be probed next."""

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
ASKED_S = 10.0
#: A fresh measurement that has not come by then has failed.
FRESH_S = 3.0


@dataclass(slots=True, eq=False)
class Holder:
    """An adaptive flow on this way: its DSCP (0: whatever the application sets) and its contract (0: none)."""

    dscp: Dscp
    bandwidth: Bandwidth
    carriage: Carriage | None = None  #: once the flow was looked at


class Sighting(NamedTuple):
    """What single probes saw: a round trip, and how many were sent and lost since the last that came back."""

    rtt_us: int
    sent: int
    lost: int


class Way:
    """In use from `open` to `leave`; what is known outlives that. Times by the daemon's clock, in seconds."""

    def __init__(self, probing: Probing | None) -> None:
        self.model = PathModel()
        self.probing = probing
        self.holders: dict[FlowId, Holder] = {}
        self.left_s: float | None = None  #: since when nobody uses it
        self.watchers = 0
        self.carried = 0.0  #: bits/s of all holders at the last look
        self._looked_s: float | None = None
        self._asked_s = float("-inf")
        self._fresh_s: float | None = None  #: since when somebody waits for a new measurement
        self._turn = 0
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

    def refresh(self, now_s: float) -> None:
        """Somebody waits for a new measurement."""
        self.ask(now_s)
        if self.probing is not None:
            self.probing.fresh()
        self._fresh_s = now_s

    def refreshed(self, now_s: float) -> bool | None:
        """Whether what `refresh` asked for is there, told once; None while it may still come, or nobody waits."""
        if self._fresh_s is None:
            return None
        new = self.model.measured_s > self._fresh_s
        if not new and self.hopeful and now_s - self._fresh_s < FRESH_S:
            return None
        self._fresh_s = None
        return new

    def reported(self, now_s: float, interval_s: float, report: PathReport, *, limited: bool) -> None:
        """What an application says of the last `interval_s` of its flow; `limited`: the network was full meanwhile."""
        if report.rtt_s is not None:
            self.model.rtt(now_s, round(report.rtt_s * 1e6), Method.REPORT)
        if report.delivered_bytes is not None and interval_s > 0:
            rate = report.delivered_bytes * 8 / interval_s
            self.model.carried(now_s, interval_s, rate, limited=limited, method=Method.REPORT)

    def look(self, now_s: float, carried: Mapping[FlowId, Carried | None]) -> None:
        """What each holder was carried at since the last look."""
        before, self._looked_s = self._looked_s, now_s
        known = [each for each in carried.values() if each is not None]
        self.carried = sum(each.sent if each.rate is None else each.rate for each in known)
        if before is not None and any(each.rate is not None for each in known):
            limited = any(each.limited for each in known)
            self.model.carried(now_s, now_s - before, self.carried, limited=limited, method=Method.TCP)

    def interval_s(self, now_s: float) -> float:
        """Since the last look; 0 before the first."""
        return 0.0 if self._looked_s is None else now_s - self._looked_s

    def outcome(self, outcome: ProbeOutcome) -> Sighting | None:
        """A plan has been carried out. What a flow with its mark would have met; None: nobody knows.

        Probes that are lost are told of with the next one that is not: until then nobody knows whether the path
        is full or the reflector gone.
        """
        assert self.probing is not None
        self.model.outcome(outcome, self.carried)
        self.probing.heard(outcome, self.model.capacity)
        rtt_us = trains.rtt_us(outcome)
        if outcome.plan.kind is not ProbeKind.SINGLE:
            # The first of a train has met what a single one would have; what a train loses, its own queue did.
            return None if rtt_us is None else Sighting(rtt_us, 0, 0)
        lost = self._unheard.pop(outcome.dscp, 0) + outcome.plan.count - outcome.answered
        if rtt_us is None:
            self._unheard[outcome.dscp] = lost
            return None
        return Sighting(rtt_us, lost + outcome.answered, lost)

    def plan(self, now_s: float, *, train: bool) -> tuple[Dscp, ProbePlan] | None:
        """What to send now, which may be a `train`, and how to mark it: as each of the flows in turn."""
        if self.probing is None:
            return None
        plan = self.probing.next(now_s, demand=self._demand(now_s), train=train)
        if plan is None:
            return None
        marks = sorted({holder.dscp for holder in self.holders.values()}) or [Dscp(0)]
        self._turn += 1
        return marks[self._turn % len(marks)], plan

    def _demand(self, now_s: float) -> Demand:
        if self._fresh_s is not None:
            return Demand.FRESH
        if now_s - self._asked_s < ASKED_S or self.watchers:
            return Demand.BANDWIDTH
        return Demand.NONE
