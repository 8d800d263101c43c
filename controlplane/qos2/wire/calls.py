"""The calls of a client: for each, the request that it sends and the value that its result becomes.

No I/O and no connection here: client.py runs a call and waits, aio.py awaits the same objects, so that
neither knows what is in a message. Arguments are taken as they come where the
daemon judges them; only what cannot be put on the wire is refused here.
"""

from collections.abc import Callable, Generator
from math import isfinite
from operator import index
from typing import Any, Generic, TypeAlias, TypeVar

import msgspec

from qos2.errors import InvalidRequest, ProtocolError
from qos2.model import (
    Bandwidth,
    Destination,
    Dscp,
    FlowFundamentals,
    FlowId,
    FlowRate,
    FlowStats,
    PacketPriority,
    RateReason,
    Shaping,
)
from qos2.wire import protocol

T = TypeVar("T")
R = TypeVar("R", bound=protocol.Result)

#: What the daemon answers.
Reply: TypeAlias = protocol.AnyResult | protocol.Failure

#: Where a socket sends: (literal address, port), an IPv6 socket address of four, or a model.Destination.
Endpoint: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | Destination


class Call(Generic[T]):
    """One request, its reply once that is there, and how to read it.

    `waits` is true where the daemon may take any time to answer. `undo` makes of a result the call that takes
    it back, for the case that nobody is there any more to have it.
    """

    __slots__ = ("_kind", "_read", "_undo", "reply", "request", "waits")

    def __init__(
        self,
        request: protocol.Request,
        kind: type[R],
        read: Callable[[R], T],
        waits: bool = False,
        undo: "Callable[[R], Call[None]] | None" = None,
    ) -> None:
        self.request = request
        self.reply: Reply | None = None
        self.waits = waits
        self._kind: type[protocol.Result] = kind
        self._read: Callable[[Any], T] = read
        self._undo: Callable[[Any], Call[None]] | None = undo

    def outcome(self) -> T:
        """The value of the reply; raises the error that it carries, ProtocolError where it answers something else."""
        reply = self.reply
        if not isinstance(reply, self._kind):
            if isinstance(reply, protocol.Failure):
                raise protocol.error_of(reply)
            raise ProtocolError(
                f"a reply of kind {type(reply).__name__} to {type(self.request).__name__}",
                "client and daemon of different versions?",
            )
        try:
            return self._read(reply)
        except ValueError as error:
            raise ProtocolError(
                f"a reply that cannot be: {error}", "client and daemon of different versions?"
            ) from error

    @property
    def begins(self) -> bool:
        """Whether its result is something that is to be taken back if nobody has it."""
        return self._undo is not None

    def farewell(self) -> "Call[None] | None":
        """What is to be asked for once nobody wants the value of this call, which was sent, any more.

        Before its reply is there: the end of the wait, if it waits. Then: that what it began is taken back.
        """
        if self.reply is None:
            return cancel(self.request.id) if self.waits else None
        return self._undo(self.reply) if self._undo is not None and isinstance(self.reply, self._kind) else None


#: Several calls in turn: a generator of calls that is sent the outcome of each, and returns its own.
Steps: TypeAlias = Generator[Call[Any], Any, T]


def endpoint(dest: Endpoint | None) -> tuple[str | None, int]:
    """Address and port as they travel; raises InvalidRequest for anything that is no pair of text and number."""
    if dest is None:
        return None, 0
    if isinstance(dest, Destination):
        # The zero address is the wildcard on the wire too, in either family.
        return "0.0.0.0" if dest.address is None else str(dest.address), dest.port
    try:
        address, port = dest[0], dest[1]
    except (TypeError, IndexError, KeyError):
        address, port = None, None
    if not isinstance(address, str) or not isinstance(port, int):
        raise InvalidRequest(f"not a destination: {dest!r}", "(literal address, port), as ('192.0.2.7', 5004)")
    return address, port


def _nothing(result: protocol.Done) -> None:
    del result


def _itself(result: R) -> R:
    return result


def _added(result: protocol.Added) -> FlowId:
    return FlowId(result.flow)


def _ended(result: protocol.Added) -> Call[None]:
    return remove_socket(result.flow)


def open_handle() -> Call[protocol.Opened]:
    return Call(protocol.OpenHandle(), protocol.Opened, _itself)


def close_handle() -> Call[None]:
    """The last one of a connection."""
    return Call(protocol.CloseHandle(), protocol.Done, _nothing)


def add_socket(traffic_type: int, flow: int, dest: Endpoint | None, adaptive: bool) -> Call[FlowId]:
    """Travels with the socket. `flow` 0 begins a flow, and `traffic_type` counts then only."""
    address, port = endpoint(dest)
    request = protocol.AddSocket(traffic_type=traffic_type, flow=flow, address=address, port=port, adaptive=adaptive)
    return Call(request, protocol.Added, _added, undo=_ended if flow == 0 else None)


def add_program(traffic_type: int) -> Call[FlowId]:
    return Call(protocol.AddProgram(traffic_type=traffic_type), protocol.Added, _added, undo=_ended)


def remove_socket(flow: int) -> Call[None]:
    """With a socket: it leaves the flow. Without: the flow ends."""
    return Call(protocol.RemoveSocket(flow=flow), protocol.Done, _nothing)


def set_traffic_type(flow: int, traffic_type: int) -> Call[None]:
    return Call(protocol.SetTrafficType(flow=flow, traffic_type=traffic_type), protocol.Done, _nothing)


def set_rate(flow: int, bandwidth: int, shaping: int, reason: int) -> Call[None]:
    """Bandwidth in bits/s at IP level; 0 takes the contract and the marking away."""
    request = protocol.SetRate(flow=flow, bandwidth=bandwidth, shaping=shaping, reason=reason)
    return Call(request, protocol.Done, _nothing)


def set_dscp(flow: int, dscp: int) -> Call[None]:
    return Call(protocol.SetDscp(flow=flow, dscp=dscp), protocol.Done, _nothing)


def priority(flow: int) -> Call[PacketPriority]:
    def read(result: protocol.Priority) -> PacketPriority:
        return PacketPriority(
            Dscp(result.conformant_dscp),
            Dscp(result.non_conformant_dscp),
            result.conformant_l2,
            result.non_conformant_l2,
        )

    return Call(protocol.QueryPriority(flow=flow), protocol.Priority, read)


def rate(flow: int) -> Call[FlowRate | None]:
    def read(result: protocol.Rate) -> FlowRate | None:
        if result.bandwidth == 0:
            return None
        return FlowRate(Bandwidth(result.bandwidth), Shaping(result.shaping), RateReason(result.reason))

    return Call(protocol.QueryRate(flow=flow), protocol.Rate, read)


def flow_stats(counters: dict[str, Any]) -> FlowStats:
    """The counters of a message as the type they came from; ProtocolError where they are none."""
    try:
        return msgspec.convert(counters, FlowStats)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"not the counters of a flow: {error}") from error


def stats(flow: int) -> Call[FlowStats]:
    return Call(protocol.QueryStats(flow=flow), protocol.Stats, lambda result: flow_stats(result.stats))


def fundamentals(flow: int, fresh: bool) -> Call[FlowFundamentals]:
    def read(result: protocol.Fundamentals) -> FlowFundamentals:
        bottleneck, available = result.bottleneck, result.available
        return FlowFundamentals(
            None if bottleneck is None else Bandwidth(bottleneck),
            None if available is None else Bandwidth(available),
            result.rtt_us,
            result.statements,
        )

    return Call(protocol.QueryFundamentals(flow=flow, fresh=fresh), protocol.Fundamentals, read, waits=bool(fresh))


def notify(flow: int, condition: int, bandwidth: int) -> Call[None]:
    request = protocol.Notify(flow=flow, condition=condition, bandwidth=bandwidth)
    return Call(request, protocol.Done, _nothing, waits=True)


def report(flow: int, rtt: float | None, loss: float | None, delivered: int | None) -> Call[None]:
    """Seconds, a share, bytes at IP level. Raises InvalidRequest for what is no number that could be told."""
    try:
        rtt_us = None if rtt is None else round(rtt * 1e6)
        share = None if loss is None else float(loss * 1.0)  # a product: float() alone takes text too
        # JSON has no NaN: unchecked it would arrive as null, and pass for "not known".
        delivered_bytes = None if delivered is None else index(delivered)
    except (TypeError, ValueError, OverflowError) as error:
        hint = "rtt in seconds, loss as a share of 0 to 1, delivered in whole bytes"
        raise InvalidRequest(f"not a report: {error}", hint) from error
    if share is not None and not isfinite(share):
        raise InvalidRequest(f"a loss of {share}", "a share of what was sent, 0 to 1")
    request = protocol.Report(flow=flow, rtt_us=rtt_us, loss=share, delivered_bytes=delivered_bytes)
    return Call(request, protocol.Done, _nothing)


def explain(flow: int) -> Call[protocol.Explanation]:
    def read(result: protocol.Explanation) -> protocol.Explanation:
        if not result.changes:
            raise ProtocolError(
                f"no state in the explanation of flow {flow}", "client and daemon of different versions?"
            )
        return result

    return Call(protocol.Explain(flow=flow), protocol.Explanation, read)


def cancel(request: int) -> Call[None]:
    return Call(protocol.Cancel(request=request), protocol.Done, _nothing)


def start_tracking(address: str) -> Call[None]:
    return Call(protocol.StartTracking(address=address), protocol.Done, _nothing)


def stop_tracking(address: str) -> Call[None]:
    return Call(protocol.StopTracking(address=address), protocol.Done, _nothing)


def flow_details(flow: int) -> Call[protocol.FlowDetails]:
    def read(result: protocol.Flows) -> protocol.FlowDetails:
        if len(result.flows) != 1:
            raise ProtocolError(f"{len(result.flows)} flows in reply to one id")
        return result.flows[0]

    return Call(protocol.ListFlows(flow=flow), protocol.Flows, read)


def all_flow_ids() -> Steps[list[FlowId]]:
    """The ids of all flows of the machine, page by page."""
    found: list[FlowId] = []
    while True:
        page = yield Call(protocol.Enumerate(after=len(found)), protocol.FlowIds, _itself)
        found.extend(map(FlowId, page.flows))
        if not page.more:
            return found


def all_flows() -> Steps[list[protocol.FlowDetails]]:
    """Details of all flows that the caller may see, page by page, in the order of slots."""
    found: list[protocol.FlowDetails] = []
    after = 0
    while True:
        page = yield Call(protocol.ListFlows(after=after), protocol.Flows, _itself)
        found.extend(page.flows)
        if not page.more:
            return found
        after = found[-1].flow


def whole_status() -> Steps[protocol.StatusReport]:
    """The status with all its devices in one report."""
    page: protocol.StatusReport = yield _status(0)
    report = page
    devices = list(report.datapath["devices"])
    while page.more:
        page = yield _status(len(devices))
        devices += page.datapath["devices"]
    report.datapath["devices"] = devices
    report.more = False
    return report


def _status(after: int) -> Call[protocol.StatusReport]:
    return Call(protocol.Status(after=after), protocol.StatusReport, _itself)


def reload() -> Call[protocol.Reloaded]:
    """Privileged."""
    return Call(protocol.Reload(), protocol.Reloaded, _itself)


def policy() -> Steps[list[protocol.RuleDetails]]:
    """All rules of the administrator's policy, page by page, in order of decision."""
    found: list[protocol.RuleDetails] = []
    while True:
        page = yield Call(protocol.PolicyList(after=len(found)), protocol.PolicyRules, _itself)
        found.extend(page.rules)
        if not page.more:
            return found


def policy_decision(
    request: protocol.PolicyTest | protocol.PolicyExplain,
) -> Steps[protocol.PolicyDecision]:
    """What the policy says of a connection, with all reasons in one."""
    whole: protocol.PolicyDecision = yield Call(request, protocol.PolicyDecision, _itself)
    page = whole
    while page.more:
        # Each page is a request of its own, with a number of its own.
        further = msgspec.structs.replace(request, id=0, after=len(whole.reasons))
        page = yield Call(further, protocol.PolicyDecision, _itself)
        whole.reasons.extend(page.reasons)
    whole.more = False
    return whole
