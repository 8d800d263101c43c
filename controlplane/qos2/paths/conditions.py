"""Whether flows meet congestion: the port Conditions over the detector, the datapath's counters and the paths.

Ten times a second all judged flows are looked at together (`step`); what applications say and what probes see is
handed to the detector as it comes. Whether a flow could have more is a question to its path.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from qos2.core.congestion import Detector
from qos2.core.signals import Signals, Slots
from qos2.errors import NotSupported
from qos2.model import (
    Bandwidth,
    Cause,
    Condition,
    Explanation,
    FlowId,
    FlowState,
    Method,
    PathReport,
    RemoteHost,
    SocketFacts,
    slot_of,
)
from qos2.paths.estimates import MeasuredPaths

#: Counters of the flows in these slots, in their order (SIGNALS).
ReadSignals = Callable[[Slots], Signals]

_UNCONGESTED = (FlowState.UNCONGESTED, FlowState.RATE_LIMITED)
#: From this share on a report's loss says that the network was full.
_FULL_LOSS = 0.01


@dataclass(slots=True, eq=False)
class _Judged:
    """A flow of one socket, and what it had sent, and when, at its application's last report."""

    flow: FlowId
    facts: SocketFacts
    host: RemoteHost | None
    reported_s: float | None = None
    reported_packets: int = 0


class JudgedFlows:
    """Implements core.ports.Conditions. A flow that begins is taken up by the next step: many live shorter."""

    def __init__(self, detector: Detector, read: ReadSignals, paths: MeasuredPaths, clock: Callable[[], float]) -> None:
        self._detector = detector
        self._read = read
        self._paths = paths
        self._clock = clock
        self._flows: dict[int, _Judged] = {}  # by slot
        self._begun: set[int] = set()  # slots that the detector does not know yet
        self._slots: Slots = np.empty(0, np.intp)
        self._ended = False
        self._watched: dict[FlowId, RemoteHost] = {}
        self._watchers: dict[RemoteHost, set[FlowId]] = {}
        self._changed: dict[FlowId, None] = {}

    def begin(self, flow: FlowId, facts: SocketFacts, host: RemoteHost | None) -> None:
        slot = slot_of(flow)
        self._flows[slot] = _Judged(flow, facts, host)
        self._begun.add(slot)

    def end(self, flow: FlowId) -> None:
        slot = slot_of(flow)
        if self._find(flow) is None:
            return
        del self._flows[slot]
        if slot in self._begun:
            self._begun.discard(slot)
        else:
            self._detector.end(slot)
            self._ended = True

    def report(self, flow: FlowId, report: PathReport) -> None:
        judged = self._find(flow)
        if judged is None:
            raise NotSupported(f"flow {flow} is not judged", "it has several sockets, or one that listens")
        now_s, packets = self._clock(), int(self.signals([flow])["packets"][0])
        sent, judged.reported_packets = packets - judged.reported_packets, packets
        before_s, judged.reported_s = judged.reported_s, now_s
        lost = 0 if report.loss is None else round(sent * report.loss)
        self.offer(
            flow,
            method=Method.REPORT,
            rtt_us=None if report.rtt_s is None else round(report.rtt_s * 1e6),
            sent=0 if report.loss is None else sent,
            lost=lost,
        )
        way = None if judged.host is None else self._paths.way(judged.host)
        if way is not None and judged.host is not None:
            full = (report.loss or 0.0) >= _FULL_LOSS or self._state(flow) is FlowState.CONGESTED
            way.reported(now_s, 0.0 if before_s is None else now_s - before_s, report, limited=full)
            self._paths.changed(judged.host)

    def explain(self, flow: FlowId) -> Explanation | None:
        return self._detector.explain(slot_of(flow)) if self._known(flow) else None

    def watch(self, flow: FlowId, host: RemoteHost) -> None:
        self._watched[flow] = host
        watchers = self._watchers.setdefault(host, set())
        watchers.add(flow)
        self._paths.watched(host, len(watchers))

    def unwatch(self, flow: FlowId) -> None:
        host = self._watched.pop(flow)
        watchers = self._watchers[host]
        watchers.discard(flow)
        self._paths.watched(host, len(watchers))
        if not watchers:
            del self._watchers[host]

    def holds(self, flow: FlowId, condition: Condition, *, held: Bandwidth, wanted: Bandwidth) -> bool:
        state = self._state(flow)
        if condition is Condition.CONGESTED:
            return state is FlowState.CONGESTED
        if condition is Condition.UNCONGESTED:
            return state in _UNCONGESTED
        return state is not FlowState.CONGESTED and self._paths.carries(self._watched[flow], held, wanted)

    def changed(self) -> Collection[FlowId]:
        changed, self._changed = self._changed, {}
        for host in self._paths.news():
            changed |= dict.fromkeys(self._watchers.get(host, ()))
        return changed

    # For whoever observes: ten times a second

    def step(self, now_s: float) -> None:
        """Judge all flows by what the datapath has counted and what was offered since the last step."""
        if self._begun or self._ended:
            for slot in self._begun:
                self._detector.begin(slot, now_s)
            self._begun.clear()
            self._ended = False
            self._slots = np.fromiter(sorted(self._flows), np.intp, len(self._flows))
        if len(self._slots):
            for slot in self._detector.step(now_s, self._slots, self._read(self._slots)):
                self._changed[self._flows[int(slot)].flow] = None

    def offer(self, flow: FlowId, *, method: Method, rtt_us: int | None, sent: int, lost: int) -> None:
        """Evidence about a judged flow that is not in its counters."""
        if self._known(flow):
            self._detector.offer(slot_of(flow), method=method, rtt_us=rtt_us, sent=sent, lost=lost)

    def signals(self, flows: Sequence[FlowId]) -> Signals:
        """What the datapath has counted of these flows, in their order (SIGNALS)."""
        return self._read(np.fromiter(map(slot_of, flows), np.intp, len(flows)))

    def facts(self, flow: FlowId) -> SocketFacts | None:
        """Those of the socket of a judged flow."""
        judged = self._find(flow)
        return None if judged is None else judged.facts

    def census(self) -> Mapping[tuple[FlowState, Cause | None], int]:
        """How many judged flows are in each state, by cause."""
        census = dict(self._detector.census())
        unknown = (FlowState.UNKNOWN, None)
        if self._begun:
            census[unknown] = census.get(unknown, 0) + len(self._begun)
        return census

    @property
    def watching(self) -> int:
        """Flows for whose conditions somebody waits."""
        return len(self._watched)

    def _find(self, flow: FlowId) -> _Judged | None:
        judged = self._flows.get(slot_of(flow))
        return judged if judged is not None and judged.flow == flow else None

    def _known(self, flow: FlowId) -> bool:
        """Whether the detector knows it by now."""
        return self._find(flow) is not None and slot_of(flow) not in self._begun

    def _state(self, flow: FlowId) -> FlowState:
        return self._detector.state(slot_of(flow)) if self._known(flow) else FlowState.UNKNOWN
