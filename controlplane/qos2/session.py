"""What one connection asks, and what the service answers: each request to its call, each value to its result.

No I/O but on passed descriptors, and no policy: the rules are the service's. Long answers are cut into
pages here, so that every reply fits MAX_MESSAGE_BYTES.
"""

from array import array
from collections.abc import Callable
from typing import Any

import msgspec

from qos2.core.notifications import Completion
from qos2.core.ruleviews import Loaded
from qos2.core.service import Service
from qos2.core.views import FlowView
from qos2.errors import InvalidHandle, InvalidRequest, NotPermitted, NotSupported, ProtocolError
from qos2.model import Destination, FlowFundamentals, PathReport, Peer
from qos2.policyreplies import decision_page, described, fitting, rules_page
from qos2.sockets import Passed, parse_destination, process
from qos2.wire import protocol

#: Instead of the number of a handle: close_handle was asked for.
_CLOSED = -1
#: Room for the fields around the entries of a page.
_FRAME_BYTES = 512
_PAGE_BYTES = protocol.MAX_MESSAGE_BYTES - _FRAME_BYTES
#: Flows asked of the service for one page; a short entry has about 900 bytes.
_PAGE_FLOWS = 20
#: Ids in one page: ten digits and a comma each.
_PAGE_IDS = _PAGE_BYTES // 11
#: So many shapers of one flow are told one by one.
_TOLD_SHAPERS = 64
#: Room for what the datapath has to complain about.
_PROBLEM_BYTES = 4096
_PROBLEM_CHARACTERS = 400
#: Rules asked of the service for one page; a short entry has about 300 bytes.
_PAGE_RULES = 50


def no_policy() -> Loaded:
    """Reloads the policy of a daemon that has none."""
    raise NotSupported("this daemon reads no policy", "it was started without one")


class Session:
    """One connection's view of the service. Its handle is opened by the first request, and closed by the last."""

    __slots__ = ("_handle", "_listed", "_load_policy", "_service", "peer")

    def __init__(self, service: Service, peer: Peer, load_policy: Callable[[], Loaded] = no_policy) -> None:
        self._service = service
        self._load_policy = load_policy
        self._handle = 0
        self._listed: array[int] | None = None
        self.peer = peer

    @property
    def handle(self) -> int:
        """The number of the open handle; 0 before there is one, below 0 afterwards."""
        return self._handle

    def answer(self, request: protocol.AnyRequest, passed: Passed | None) -> protocol.Result | None:
        """The result of one request; None for one that waits: the service will have its Completion.

        Raises what the service raises, InvalidHandle after close_handle, and ProtocolError for requests out of order.
        """
        if passed is not None and type(request) not in _WITH_SOCKET:
            raise ProtocolError(
                "a descriptor with a request that takes none",
                "pass it with add_socket, remove_socket or policy_explain",
            )
        if self._handle <= 0:
            if self._handle == _CLOSED:
                raise InvalidHandle("the handle is closed", "one connection is one handle: make another one")
            if not isinstance(request, protocol.OpenHandle):
                raise ProtocolError("no handle is open", "the first request of a connection is open_handle")
        return _ANSWERS[type(request)](self, request, passed)

    def end(self) -> None:
        """The connection has ended, and with it the handle and its flows."""
        if self._handle > 0:
            handle, self._handle = self._handle, _CLOSED
            self._service.close_handle(handle)

    def _open_handle(self, request: protocol.OpenHandle, _: Passed | None) -> protocol.Result:
        if self._handle:
            raise ProtocolError("the handle is open already", "one connection is one handle")
        self._handle = self._service.open_handle(self.peer, request.version)
        return protocol.Opened(id=request.id, server=self._service.version, privileged=self.peer.privileged)

    def _close_handle(self, request: protocol.CloseHandle, _: Passed | None) -> protocol.Result:
        self.end()
        return protocol.Done(id=request.id)

    def _add_socket(self, request: protocol.AddSocket, passed: Passed | None) -> protocol.Result:
        if passed is None:
            raise InvalidRequest("add_socket without a socket", "pass its descriptor by SCM_RIGHTS with the request")
        flow = self._service.add_socket(
            self._handle,
            passed.fd,
            passed.facts(),
            traffic_type=request.traffic_type,
            flow=request.flow,
            destination=_destination(request),
            adaptive=request.adaptive,
            written=request.address,
        )
        return protocol.Added(id=request.id, flow=flow)

    def _remove_socket(self, request: protocol.RemoveSocket, passed: Passed | None) -> protocol.Result:
        if passed is None:
            self._service.remove_socket(self._handle, request.flow, None, None)
        else:
            self._service.remove_socket(self._handle, request.flow, passed.fd, passed.facts())
        return protocol.Done(id=request.id)

    def _set_traffic_type(self, request: protocol.SetTrafficType, _: Passed | None) -> protocol.Result:
        self._service.set_traffic_type(self._handle, request.flow, request.traffic_type)
        return protocol.Done(id=request.id)

    def _set_rate(self, request: protocol.SetRate, _: Passed | None) -> protocol.Result:
        self._service.set_rate(self._handle, request.flow, request.bandwidth, request.shaping, request.reason)
        return protocol.Done(id=request.id)

    def _set_dscp(self, request: protocol.SetDscp, _: Passed | None) -> protocol.Result:
        self._service.set_dscp(self._handle, request.flow, request.dscp)
        return protocol.Done(id=request.id)

    def _priority(self, request: protocol.QueryPriority, _: Passed | None) -> protocol.Result:
        found = self._service.priority(self._handle, request.flow)
        return protocol.Priority(
            id=request.id,
            conformant_dscp=found.conformant_dscp,
            non_conformant_dscp=found.non_conformant_dscp,
            conformant_l2=found.conformant_l2,
            non_conformant_l2=found.non_conformant_l2,
        )

    def _rate(self, request: protocol.QueryRate, _: Passed | None) -> protocol.Result:
        rate = self._service.rate(self._handle, request.flow)
        if rate is None:
            return protocol.Rate(id=request.id, bandwidth=0, shaping=0, reason=0)
        return protocol.Rate(id=request.id, bandwidth=rate.bandwidth, shaping=rate.shaping, reason=rate.reason)

    def _stats(self, request: protocol.QueryStats, _: Passed | None) -> protocol.Result:
        return protocol.Stats(id=request.id, stats=_mapping(self._service.stats(self._handle, request.flow)))

    def _enumerate(self, request: protocol.Enumerate, _: Passed | None) -> protocol.Result:
        # One list for all its pages: flows that begin and end meanwhile neither hide nor double another.
        listed = self._listed if request.after else array("I", self._service.enumerate(self._handle))
        if listed is None or not 0 <= request.after <= len(listed):
            raise InvalidRequest(f"no list to go on in after {request.after} ids", "begin with after 0")
        end = request.after + _PAGE_IDS
        more = end < len(listed)
        self._listed = listed if more else None
        return protocol.FlowIds(id=request.id, flows=listed[request.after : end].tolist(), more=more)

    def _add_program(self, request: protocol.AddProgram, _: Passed | None) -> protocol.Result:
        return protocol.Added(id=request.id, flow=self._service.add_program(self._handle, request.traffic_type))

    def _list_flows(self, request: protocol.ListFlows, _: Passed | None) -> protocol.Result:
        if request.flow:
            found = self._service.details(self._handle, request.flow)
            return protocol.Flows(id=request.id, flows=[_details(found)])
        if not 0 <= request.after < 2**32:
            raise InvalidRequest(f"{request.after} is no flow id", "begin with after 0")
        views = self._service.list_flows(self._handle, request.after, _PAGE_FLOWS)
        page = fitting(map(_details, views), _PAGE_BYTES)
        return protocol.Flows(id=request.id, flows=page, more=len(views) == _PAGE_FLOWS or len(page) < len(views))

    def _status(self, request: protocol.Status, _: Passed | None) -> protocol.Result:
        status = self._service.status(self._handle)
        datapath = _mapping(status.datapath)
        devices = datapath["devices"]
        if not 0 <= request.after <= len(devices):
            raise InvalidRequest(f"there are no {request.after} devices", "begin with after 0")
        datapath["problems"] = _told(datapath["problems"])
        datapath["devices"] = []
        report = protocol.StatusReport(
            id=request.id,
            server=status.server,
            uptime_s=status.uptime_s,
            handles=status.handles,
            flows=status.flows,
            max_flows=status.max_flows,
            orphans=status.orphans,
            datapath=datapath,
        )
        rest = devices[request.after :]
        datapath["devices"] = fitting(
            rest, protocol.MAX_MESSAGE_BYTES - len(protocol.encode(report)) - len(',"more":true')
        )
        report.more = len(datapath["devices"]) < len(rest)
        return report

    def _fundamentals(self, request: protocol.QueryFundamentals, _: Passed | None) -> protocol.Result | None:
        found = self._service.fundamentals(self._handle, request.flow, request.fresh, request=request.id)
        return None if found is None else _fundamentals(request.id, found)

    def _notify(self, request: protocol.Notify, _: Passed | None) -> protocol.Result | None:
        holds = self._service.notify(
            self._handle, request.flow, request.condition, request.bandwidth, request=request.id
        )
        return protocol.Done(id=request.id) if holds else None

    def _report(self, request: protocol.Report, _: Passed | None) -> protocol.Result:
        rtt_s = None if request.rtt_us is None else request.rtt_us / 1e6
        report = PathReport(rtt_s, request.loss, request.delivered_bytes)
        self._service.report(self._handle, request.flow, report)
        return protocol.Done(id=request.id)

    def _explain(self, request: protocol.Explain, _: Passed | None) -> protocol.Result:
        told = self._service.explain(self._handle, request.flow)
        why, view = told.explanation, told.view
        changes = (view.judgement,) if why is None else why.changes
        return protocol.Explanation(
            id=request.id,
            changes=[
                protocol.StateChange(
                    state=each.state,
                    cause=each.cause,
                    ago_s=max(0.0, told.now_s - each.since_s),
                    evidence=dict(each.evidence),
                )
                for each in changes
            ],
            source=None if why is None else why.source,
            signals={} if why is None else dict(why.signals),
            estimates=told.estimate,
            device=None if why is None else why.device,
        )

    def _cancel(self, request: protocol.Cancel, _: Passed | None) -> protocol.Result:
        self._service.cancel(self._handle, request.request)
        return protocol.Done(id=request.id)

    def _start_tracking(self, request: protocol.StartTracking, _: Passed | None) -> protocol.Result:
        self._service.start_tracking(self._handle, request.address)
        return protocol.Done(id=request.id)

    def _stop_tracking(self, request: protocol.StopTracking, _: Passed | None) -> protocol.Result:
        self._service.stop_tracking(self._handle, request.address)
        return protocol.Done(id=request.id)

    def _reload(self, request: protocol.Reload, _: Passed | None) -> protocol.Result:
        self._service.check_reload(self._handle)
        loaded = self._load_policy()
        return protocol.Reloaded(
            id=request.id, generation=loaded.generation, rules=loaded.rules, warnings=_told(list(loaded.warnings))
        )

    def _policy_list(self, request: protocol.PolicyList, _: Passed | None) -> protocol.Result:
        if not 0 <= request.after <= len(self._service.policy.rules):
            raise InvalidRequest(f"there are no {request.after} rules", "begin with after 0")
        views = self._service.policy_rules(self._handle, request.after, _PAGE_RULES)
        more = request.after + len(views) < len(self._service.policy.rules)
        return rules_page(request.id, self._service.policy_generation, views, more=more, room=_PAGE_BYTES)

    def _policy_test(self, request: protocol.PolicyTest, _: Passed | None) -> protocol.Result:
        decision = self._service.policy_test(self._handle, described(request))
        return decision_page(request.id, self._service.policy_generation, decision, request.after, _PAGE_BYTES)

    def _policy_explain(self, request: protocol.PolicyExplain, passed: Passed | None) -> protocol.Result:
        if (passed is None) == (request.flow == 0):
            raise InvalidRequest("neither or both of a flow and a socket", "say the flow, or pass the socket")
        if passed is None:
            decision = self._service.policy_of_flow(self._handle, request.flow)
        else:
            decision = self._service.policy_of_socket(self._handle, passed.facts(), self._opener(request.pid))
        return decision_page(request.id, self._service.policy_generation, decision, request.after, _PAGE_BYTES)

    def _opener(self, pid: int) -> Peer:
        """Who has opened a socket, as the caller says."""
        if pid in (0, self.peer.pid):
            return self.peer
        opener = process(pid)
        if opener is None:
            raise InvalidRequest(f"no process {pid}", "the one that has opened the socket, or 0 for the caller")
        if not self.peer.privileged and opener.uid != self.peer.uid:
            raise NotPermitted("asking about another user's process needs root or the group qos2", "ask about your own")
        return opener


_WITH_SOCKET = {protocol.AddSocket, protocol.RemoveSocket, protocol.PolicyExplain}
_ANSWERS: dict[type[Any], Callable[[Session, Any, Passed | None], protocol.Result | None]] = {
    protocol.OpenHandle: Session._open_handle,
    protocol.CloseHandle: Session._close_handle,
    protocol.AddSocket: Session._add_socket,
    protocol.RemoveSocket: Session._remove_socket,
    protocol.SetTrafficType: Session._set_traffic_type,
    protocol.SetRate: Session._set_rate,
    protocol.SetDscp: Session._set_dscp,
    protocol.QueryPriority: Session._priority,
    protocol.QueryRate: Session._rate,
    protocol.QueryFundamentals: Session._fundamentals,
    protocol.QueryStats: Session._stats,
    protocol.Notify: Session._notify,
    protocol.Report: Session._report,
    protocol.Explain: Session._explain,
    protocol.Cancel: Session._cancel,
    protocol.StartTracking: Session._start_tracking,
    protocol.StopTracking: Session._stop_tracking,
    protocol.Enumerate: Session._enumerate,
    protocol.AddProgram: Session._add_program,
    protocol.ListFlows: Session._list_flows,
    protocol.Status: Session._status,
    protocol.Reload: Session._reload,
    protocol.PolicyList: Session._policy_list,
    protocol.PolicyTest: Session._policy_test,
    protocol.PolicyExplain: Session._policy_explain,
}


def reply_of(completion: Completion) -> protocol.Result | protocol.Failure:
    """What a client is told of a request that waited."""
    if completion.error is not None:
        return protocol.failure(completion.request, completion.error)
    if completion.result is not None:
        return _fundamentals(completion.request, completion.result)
    return protocol.Done(id=completion.request)


def _fundamentals(request: int, found: FlowFundamentals) -> protocol.Fundamentals:
    return protocol.Fundamentals(
        id=request,
        bottleneck=found.bottleneck,
        available=found.available,
        rtt_us=found.rtt_us,
        statements=dict(found.statements),
    )


def _destination(request: protocol.AddSocket) -> Destination | None:
    if request.address is None:
        if request.port:
            raise InvalidRequest(f"port {request.port} without an address", "the zero address stands for every address")
        return None
    try:
        return parse_destination(request.address, request.port)
    except ValueError as error:
        raise InvalidRequest(
            f"not a destination: {error}", "a literal address and a port; names are not resolved"
        ) from error


def _mapping(value: Any) -> dict[str, Any]:
    """A dataclass of the model as the plain values of a message."""
    mapped: dict[str, Any] = msgspec.to_builtins(value)
    return mapped


def _told(problems: list[str]) -> list[str]:
    told = fitting((each[:_PROBLEM_CHARACTERS] for each in problems), _PROBLEM_BYTES)
    return told if len(told) == len(problems) else [*told, f"and {len(problems) - len(told)} more"]


def _details(view: FlowView) -> protocol.FlowDetails:
    shapers = {name: view.shapers[name] for name in list(view.shapers)[:_TOLD_SHAPERS]}
    if len(shapers) < len(view.shapers):
        shapers[f"and {len(view.shapers) - len(shapers)} more"] = ""
    return protocol.FlowDetails(
        flow=view.flow,
        traffic_type=view.traffic_type,
        adaptive=view.adaptive,
        dscp=view.dscp,
        dscp_override=view.dscp_override,
        non_conformant_dscp=view.non_conformant_dscp,
        bandwidth=view.bandwidth,
        shaping=view.shaping,
        pid=view.pid,
        uid=view.uid,
        program=view.program,
        unit=view.unit,
        age_s=view.age_s,
        members=list(view.members),
        whole_program=view.whole_program,
        shapers=shapers,
        stats=_mapping(view.stats),
        state=view.judgement.state,
        cause=view.judgement.cause,
        state_s=view.judged_for_s,
        evidence=dict(view.judgement.evidence),
        rule=view.rule,
        denied=view.denied,
        asked_dscp=view.asked_dscp,
        asked_bandwidth=view.asked_bandwidth,
    )
