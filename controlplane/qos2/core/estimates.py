"""What flows can ask about their paths: estimates, notifications, admission, tracking, explanations.

The second half of the service, which has checked handle, values, flow and rights when it calls: here
follow capability and data. What Paths and Conditions say is taken as it is; who is told of which flow,
the waiting, its limits and its ends are decided here. Every flow of one socket is judged; estimates,
admission and notifications are for adaptive flows alone.
"""

from qos2.core.flows import Flow, FlowTable, Handle
from qos2.core.notifications import Notifications, Wait
from qos2.core.ports import Clock, Conditions, Paths
from qos2.core.rules import Limits
from qos2.core.tracking import Tracking
from qos2.errors import InvalidRequest, NoData, NotAdaptive, NotSupported, Retry
from qos2.model import (
    Bandwidth,
    Condition,
    Explanation,
    FlowFundamentals,
    FlowId,
    Judgement,
    PathReport,
    RemoteHost,
    SocketFacts,
)

#: A report of more is a mistake of units.
MAX_RTT_S = 3600.0


class Estimates:
    """Paths, conditions, and who waits for them."""

    __slots__ = ("_clock", "_conditions", "_paths", "_table", "tracking", "waits")

    def __init__(self, paths: Paths, conditions: Conditions, table: FlowTable, clock: Clock, limits: Limits) -> None:
        self._paths = paths
        self._conditions = conditions
        self._table = table
        self._clock = clock
        self.waits = Notifications(limits.pending_per_handle)
        self.tracking = Tracking(paths, limits.tracked_per_uid)

    # Adaptive flows

    def supports(self, host: RemoteHost) -> bool:
        """Whether a flow to this host can have estimates. Raises HostUnreachable without a route."""
        return self._paths.supports(host)

    def begin(self, flow: Flow, facts: SocketFacts, host: RemoteHost | None, *, supported: bool = False) -> None:
        """A new flow of one socket; an adaptive one has this one path."""
        flow.host = host
        if not facts.listening:  # what it accepts would be in the flow too
            self._conditions.begin(flow.id, facts, host)
        if host is not None and supported:
            self._join(flow, host)

    def grown(self, flow: Flow) -> None:
        """A socket has joined a flow: of several, no signal can be told apart."""
        if len(flow.members) > 1:
            self._conditions.end(flow.id)

    def treated(self, flow: Flow) -> None:
        """Marks or contract of a flow are others now."""
        if flow.host is not None:
            if self.tracking.has(flow.id, flow.host):
                self._paths.hold(flow.id, flow.host, flow.policy.dscp, flow.policy.bandwidth)
            self.judge(flow)

    def end(self, flow: Flow) -> None:
        """A flow has ended: whoever waits for it waits no longer."""
        for wait in (*self.waits.for_conditions(flow.id), *self.waits.for_measurements(flow.id)):
            self._cancel(wait, f"flow {flow.id} has ended")
        self._conditions.end(flow.id)
        if flow.host is not None and self.tracking.has(flow.id, flow.host):
            self._paths.let_go(flow.id, flow.host)
            self.tracking.leave(flow.id, flow.host)

    def close(self, handle: Handle) -> None:
        """A handle has closed, and its flows have ended: its other waits end, what it tracks lingers."""
        for wait in self.waits.of_handle(handle.number):
            self._cancel(wait, "the handle was closed")
        self.tracking.close(handle, self._clock())

    def admit(self, flow: Flow, wanted: Bandwidth) -> None:
        """Whether the flow may have this contract.

        What it holds already, and less, it may have always; so may a flow to whose path nothing is known.
        Raises NetworkBusy, Retry or HostUnreachable; the contract so far stays in force.
        """
        held = flow.policy.bandwidth
        if flow.host is not None and wanted > held and self._joined(flow, flow.host):
            self._paths.admit(flow.host, held, wanted)

    # Questions

    def report(self, flow: Flow, report: PathReport) -> None:
        """What the flow's application says of its traffic. Raises InvalidRequest, NotSupported."""
        if report.rtt_s is None and report.loss is None and report.delivered_bytes is None:
            raise InvalidRequest("an empty report", "say at least one of rtt, loss and delivered")
        if report.rtt_s is not None and not 0 < report.rtt_s < MAX_RTT_S:
            raise InvalidRequest(f"a round trip time of {report.rtt_s} s", f"more than 0 and less than {MAX_RTT_S} s")
        if report.loss is not None and not 0 <= report.loss <= 1:
            raise InvalidRequest(f"a loss of {report.loss}", "a share of what was sent, 0 to 1")
        if report.delivered_bytes is not None and not 0 <= report.delivered_bytes < 1 << 63:
            raise InvalidRequest(f"{report.delivered_bytes} bytes delivered", "those since the last report")
        self._conditions.report(flow.id, report)

    def judgement(self, flow: Flow) -> Judgement:
        """What is said of a flow; of one that is not judged, nothing."""
        explanation = self._conditions.explain(flow.id)
        return Judgement(since_s=flow.begun_s) if explanation is None else explanation.judgement

    def explain(self, flow: Flow, *, path: bool) -> tuple[Explanation | None, FlowFundamentals | None]:
        """What is said of a flow and why, None where it is not judged; and what is known of an adaptive one's path.

        `path`: whether the caller may know that.
        """
        estimate = None
        if path and flow.host is not None and self.tracking.has(flow.id, flow.host):
            estimate = self._paths.estimate(flow.host)
        return self._conditions.explain(flow.id), estimate

    def fundamentals(self, handle: Handle, flow: Flow, fresh: bool, request: int) -> FlowFundamentals | None:
        """What is known of the flow's path; None: the request waits for a new measurement.

        `fresh` is passed over for a flow of another process. Raises NotAdaptive, NotSupported,
        HostUnreachable, NoData, and for a fresh one LimitExceeded and Retry.
        """
        host = self._measurable(flow)
        if fresh and handle.owns(flow):
            self.waits.check_share(handle.number)
            self._paths.refresh(host)
            self.waits.add(Wait(handle.number, request, flow.id, None))
            return None
        estimate = self._paths.estimate(host)
        if estimate is None:
            raise NoData(f"nothing is known yet of the way to {host}", "ask again in a second")
        return estimate

    def notify(self, handle: Handle, flow: Flow, condition: Condition, wanted: Bandwidth, request: int) -> bool:
        """Whether the condition holds now; else the request waits for it.

        Raises NotAdaptive, NotSupported, HostUnreachable, InvalidRequest where the flow has as much as
        `wanted`, AlreadyExists, LimitExceeded.
        """
        host = self._measurable(flow)
        held = flow.policy.bandwidth
        if condition is Condition.AVAILABLE and wanted <= held:
            raise InvalidRequest(
                f"waiting for {wanted} bits/s, and the flow holds {held}", "say the total that is wanted, in bits/s"
            )
        self.waits.check_free(flow.id, condition)
        self.waits.check_share(handle.number)
        if not self.waits.for_conditions(flow.id):
            self._conditions.watch(flow.id, host)
        wait = Wait(handle.number, request, flow.id, condition, wanted)
        if not self._holds(flow, wait):
            self.waits.add(wait)
            return False
        self._unwatch_if_alone(flow.id)
        return True

    def cancel(self, handle: Handle, request: int) -> None:
        """Raises InvalidRequest where this request of this handle does not wait."""
        self._cancel(self.waits.find(handle.number, request), "the request was cancelled")

    def start_tracking(self, handle: Handle, host: RemoteHost) -> None:
        """Raises HostUnreachable, NotSupported, LimitExceeded."""
        if not self._paths.supports(host):
            raise _off_link(host)
        self.tracking.start(handle, host)

    # News

    def judge(self, flow: Flow, signal_s: float | None = None) -> None:
        """Whether waits for this flow's conditions are over by now."""
        for wait in self.waits.for_conditions(flow.id):
            if self._holds(flow, wait):
                self.waits.complete(wait, signal_s=signal_s)
                self._unwatch_if_alone(flow.id)

    def follow(self, signal_s: float | None = None) -> None:
        """What paths and conditions have to tell since the last call, by signals of that time."""
        for each in self._conditions.changed():
            flow = self._table.find(each)
            if flow is not None:
                self.judge(flow, signal_s)
        for host, new in self._paths.measured().items():
            self._measured(host, new, signal_s)

    # Parts

    def _measured(self, host: RemoteHost, new: bool, signal_s: float | None) -> None:
        """A measurement of this host has ended: whoever waited for it hears what is known now, if that is `new`."""
        estimate = self._paths.estimate(host) if new and self.tracking.flows(host) else None
        for flow in self.tracking.flows(host):
            for wait in self.waits.for_measurements(flow):
                if estimate is None:
                    self.waits.complete(wait, error=Retry(f"{host} could not be measured", "try again"))
                else:
                    self.waits.complete(wait, estimate, signal_s=signal_s)

    def _joined(self, flow: Flow, host: RemoteHost) -> bool:
        """Whether the path can be learnt about, now that routes may have changed since the flow began."""
        if not self._paths.supports(host):
            return False
        self._join(flow, host)
        return True

    def _join(self, flow: Flow, host: RemoteHost) -> None:
        if self.tracking.join(flow.id, host):
            self._paths.hold(flow.id, host, flow.policy.dscp, flow.policy.bandwidth)

    def _measurable(self, flow: Flow) -> RemoteHost:
        if flow.host is None:
            raise NotAdaptive(f"flow {flow.id} is not adaptive", "add its socket without QOS_NON_ADAPTIVE_FLOW")
        if not self._joined(flow, flow.host):
            raise _off_link(flow.host)
        return flow.host

    def _holds(self, flow: Flow, wait: Wait) -> bool:
        assert wait.condition is not None
        if wait.condition is not Condition.AVAILABLE:
            return self._conditions.holds(flow.id, wait.condition, held=Bandwidth(0), wanted=Bandwidth(0))
        held = flow.policy.bandwidth
        # Since it waits, its owner may have raised the contract himself: then there is nothing to wait for.
        return wait.wanted <= held or self._conditions.holds(flow.id, wait.condition, held=held, wanted=wait.wanted)

    def _cancel(self, wait: Wait, why: str) -> None:
        self.waits.cancel(wait, why)
        if wait.condition is not None:
            self._unwatch_if_alone(wait.flow)

    def _unwatch_if_alone(self, flow: FlowId) -> None:
        """After a wait for a condition of this flow is over."""
        if not self.waits.for_conditions(flow):
            self._conditions.unwatch(flow)


def _off_link(host: RemoteHost) -> NotSupported:
    return NotSupported(
        f"nothing can be learnt about the way to {host}", "it is no single host, or beyond the link (`off_link`)"
    )
