"""Whether flows meet congestion: the port Conditions over the detector, the datapath's counters and the paths.

Ten times a second all judged flows are looked at together (`step`); what applications say and what probes see is
handed to the detector as it comes. Whether a flow could have more is a question to its path.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from qos2.core.congestion import Detector
from qos2.core.signals import Signals, Slots
from qos2.errors import NotSupported
from qos2.model import (
    Bandwidth,
    Cause,
    Condition,
    DeviceStatus,
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
#: The device by which packets to a host leave, where it is known.
WayOut = Callable[[RemoteHost], DeviceStatus | None]

_UNCONGESTED = (FlowState.UNCONGESTED, FlowState.RATE_LIMITED)
#: From this share on a report's loss says that the network was full.
_FULL_LOSS = 0.01


class _Counted(NamedTuple):
    """What the datapath had counted of a flow when its application reported."""

    at_s: float
    packets: int
    dropped: int  #: packets, by its own contract
    bytes: int


_BEGINNING = _Counted(0.0, 0, 0, 0)


@dataclass(slots=True, eq=False)
class _Judged:
    """A flow of one socket."""

    flow: FlowId
    facts: SocketFacts
    host: RemoteHost | None
    congested_s: float = float("-inf")  #: when congestion was last stated
    reports: tuple[_Counted, _Counted] = (_BEGINNING, _BEGINNING)  #: the last but one, and the last

    @property
    def destination(self) -> RemoteHost | None:
        """The host that it sends to, also of a flow without a path of its own."""
        if self.host is not None or self.facts.peer is None or self.facts.peer.address is None:
            return self.host
        return RemoteHost(self.facts.peer.address, self.facts.netns_cookie)


class JudgedFlows:
    """Implements core.ports.Conditions.

    The detector hears of a flow that begins at the next step, or when there is something to tell of it: many live
    shorter.
    """

    def __init__(
        self,
        detector: Detector,
        read: ReadSignals,
        paths: MeasuredPaths,
        clock: Callable[[], float],
        way_out: WayOut = lambda _host: None,
    ) -> None:
        self._way_out = way_out
        self._detector = detector
        self._read = read
        self._paths = paths
        self._clock = clock
        self._flows: dict[int, _Judged] = {}  # by slot
        self._begun: set[int] = set()  # slots that the detector does not know yet
        self._slots: Slots = np.empty(0, np.intp)
        self._moved = False  # whether the detector knows others than `_slots`
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
            self._moved = True

    def report(self, flow: FlowId, report: PathReport) -> None:
        judged = self._find(flow)
        if judged is None:
            raise NotSupported(f"flow {flow} is not judged", "it has several sockets, or one that listens")
        signals = self.signals([flow])[0]
        now = _Counted(self._clock(), *(int(signals[name]) for name in ("packets", "dropped_packets", "bytes")))
        earlier, last = judged.reports
        judged.reports = last, now
        sent, dropped = now.packets - last.packets, now.dropped - last.dropped
        # To the application what its own contract dropped is lost too; that says nothing of the network.
        lost = 0 if report.loss is None else min(sent, max(0, round((sent + dropped) * report.loss) - dropped))
        self.offer(
            flow,
            method=Method.REPORT,
            rtt_us=None if report.rtt_s is None else round(report.rtt_s * 1e6),
            sent=0 if report.loss is None else sent,
            lost=lost,
        )
        way = None if judged.host is None else self._paths.way(judged.host)
        if way is None or judged.host is None:
            return
        if report.delivered_bytes is not None:
            # Others rely on this number too: no more can have arrived than was sent since the last report but one,
            # some of which was under way at the last.
            report = replace(report, delivered_bytes=min(report.delivered_bytes, now.bytes - earlier.bytes))
        interval_s = 0.0 if last is _BEGINNING else now.at_s - last.at_s
        full = (sent > 0 and lost >= _FULL_LOSS * sent) or self._state(flow) is FlowState.CONGESTED
        way.reported(now.at_s, flow, interval_s, report, limited=full)
        self._paths.changed(judged.host)

    def explain(self, flow: FlowId) -> Explanation | None:
        judged = self._find(flow)
        if judged is None or not self._known(flow):
            return None
        host = judged.destination
        device = None if host is None else self._way_out(host)
        return replace(self._detector.explain(slot_of(flow)), device=device)

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
        judged = self._find(flow)
        since_s = float("-inf") if judged is None else judged.congested_s
        # Asked in any case: what is to be told when the congestion ends has to be measured during it.
        carries = self._paths.carries(self._watched[flow], held, wanted, since_s)
        return carries and state is not FlowState.CONGESTED

    def changed(self) -> Collection[FlowId]:
        changed, self._changed = self._changed, {}
        for host in self._paths.news():
            changed |= dict.fromkeys(self._watchers.get(host, ()))
        return changed

    # For whoever observes: ten times a second

    def step(self, now_s: float) -> None:
        """Judge all flows by what the datapath has counted and what was offered since the last step."""
        if self._begun or self._moved:
            for slot in self._begun:
                self._detector.begin(slot, now_s)
            self._begun.clear()
            self._moved = False
            self._slots = np.fromiter(sorted(self._flows), np.intp, len(self._flows))
        if len(self._slots):
            for slot in self._detector.step(now_s, self._slots, self._read(self._slots)):
                judged = self._flows[int(slot)]
                self._changed[judged.flow] = None
                if self._detector.state(int(slot)) is FlowState.CONGESTED:
                    judged.congested_s = now_s

    def offer(
        self, flow: FlowId, *, method: Method, rtt_us: int | None, round_trips: int = 1, sent: int, lost: int
    ) -> None:
        """Evidence about a judged flow that is not in its counters."""
        if self._known(flow):
            self._detector.offer(
                slot_of(flow), method=method, rtt_us=rtt_us, round_trips=round_trips, sent=sent, lost=lost
            )

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
        """Whether it is judged; if so, the detector knows it from now on."""
        slot = slot_of(flow)
        if self._find(flow) is None:
            return False
        if slot in self._begun:
            self._detector.begin(slot, self._clock())
            self._begun.discard(slot)
            self._moved = True
        return True

    def _state(self, flow: FlowId) -> FlowState:
        return self._detector.state(slot_of(flow)) if self._known(flow) else FlowState.UNKNOWN
