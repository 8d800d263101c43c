"""The service: one method per request, each one whole or not at all.

Synchronous and pure: no I/O but the datapath port, no clock but the one given. The order within a
method is always the same: handle, values, flow id, rights, capability; the first check that fails is
the answer, and what passes them all is carried out by changes.py.

The server calls it with facts from the kernel, never with what a client claims about itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from qos2.core.accounts import Accounts
from qos2.core.arguments import client_address, code_point, contract, known
from qos2.core.changes import Changes
from qos2.core.destinations import bound_destination
from qos2.core.endings import Endings
from qos2.core.flows import Flow, FlowTable, Handle, Share
from qos2.core.ports import Clock, Datapath
from qos2.core.priorities import Treatment
from qos2.core.slots import SlotPool
from qos2.core.views import FlowView, ServiceStatus, view_of
from qos2.errors import (
    InvalidHandle,
    InvalidRequest,
    LimitExceeded,
    NoSuchFlow,
    NotPermitted,
    NotSupported,
)
from qos2.model import (
    Condition,
    Destination,
    FlowId,
    FlowRate,
    FlowStats,
    PacketPriority,
    Peer,
    SocketFacts,
    TrafficType,
    slot_of,
)

_LATER = "this version marks, limits and counts; it does not measure paths"


@dataclass(frozen=True, slots=True)
class Limits:
    """What one user may take. Handles and flows are counted per uid, members per flow."""

    flows_per_uid: int = 16_384
    flows_per_privileged_uid: int = 65_536
    handles_per_uid: int = 1_024
    members_per_flow: int = 4_096
    orphan_grace_s: float = 10.0  #: so long a restarted daemon leaves the flows of a killed one in force


class Service:
    """Flows of all processes over one datapath. Not thread-safe: one event loop calls it.

    Every method that takes a handle raises InvalidHandle for one that is not open; every method that
    takes a flow raises NoSuchFlow for one that is unknown, has ended, or may not be touched by the caller.
    """

    def __init__(self, datapath: Datapath, clock: Clock, limits: Limits, version: str) -> None:
        self._datapath = datapath
        self._clock = clock
        self._limits = limits
        self._version = version
        self._started_s = clock()
        occupied = datapath.occupied_slots()
        self._max_flows = datapath.max_flows
        self._table = FlowTable(self._max_flows)
        pool = SlotPool(self._max_flows, occupied.keys(), datapath.generation)
        self._accounts = Accounts()
        self._endings = Endings(datapath, pool, self._accounts, self._table.type_of_slot)
        self._changes = Changes(datapath, self._table, pool, self._accounts, self._endings)
        self._taken_over = tuple(occupied.values())
        self._handles: dict[int, Handle] = {}
        self._shares: dict[int, Share] = {}
        self._last_handle = 0

    # Handles

    def open_handle(self, peer: Peer, version: tuple[int, int] = (1, 0)) -> int:
        """QOSCreateHandle. Raises InvalidRequest for another version than 1.0, LimitExceeded per user."""
        if tuple(version) != (1, 0):
            raise InvalidRequest(f"QoS version {'.'.join(map(str, version))}", "there is only 1.0")
        share = self._shares.get(peer.uid)
        if share is None:
            share = self._shares[peer.uid] = Share(peer.uid)
        if share.handles >= self._limits.handles_per_uid:
            raise LimitExceeded(
                f"user {peer.uid} has {share.handles} handles", "one serves a process; else raise handles_per_uid"
            )
        share.handles += 1
        self._last_handle += 1
        self._handles[self._last_handle] = Handle(self._last_handle, peer, share)
        return self._last_handle

    def close_handle(self, handle: int) -> None:
        """QOSCloseHandle: ends all its flows, those that the datapath refuses to end with a later tick."""
        owner = self._handle(handle)
        for flow in tuple(owner.flows.values()):
            self._changes.end_anyhow(flow)
        del self._handles[handle]
        owner.share.handles -= 1
        if owner.share.handles == 0:
            del self._shares[owner.share.uid]

    # Members

    def add_socket(
        self,
        handle: int,
        fd: int,
        facts: SocketFacts,
        *,
        traffic_type: int,
        flow: int,
        destination: Destination | None,
        adaptive: bool,
    ) -> FlowId:
        """QOSAddSocketToFlow: `flow` 0 begins a flow, else `traffic_type` is ignored. Returns the flow's id.

        The same socket with the same destination moves here from another flow, even of another process: who
        holds a socket decides about it, and the last one wins. Does not keep `fd`.

        Raises InvalidRequest (see destinations.py; an adaptive flow has one member), LimitExceeded, DatapathError.
        """
        owner = self._handle(handle)
        if flow == 0:
            kind = known(TrafficType, traffic_type, "traffic type")
            member = bound_destination(facts, destination, adaptive=adaptive)
            self._check_share(owner)
            treatment = Treatment.begin(kind, adaptive=adaptive)
            return self._changes.begin_with_socket(owner, treatment, self._clock(), fd, facts, member)
        if adaptive:
            raise InvalidRequest("an adaptive flow has one socket", "add to an existing flow as non-adaptive")
        member = bound_destination(facts, destination, adaptive=False)
        found = self._owned(owner, flow)
        if found.treatment.adaptive:
            raise InvalidRequest(f"flow {flow} is adaptive: it has one socket", "begin a non-adaptive flow")
        if member not in found.members.get(facts.cookie, ()):
            if found.member_count >= self._limits.members_per_flow:
                raise LimitExceeded(f"flow {flow} has {found.member_count} members", "raise members_per_flow")
            self._changes.join(found, fd, facts, member)
        return found.id

    def add_program(self, handle: int, traffic_type: int) -> FlowId:
        """All sockets that the calling process and its children make from now on, in one new flow."""
        owner = self._handle(handle)
        kind = known(TrafficType, traffic_type, "traffic type")
        self._check_share(owner)
        return self._changes.begin_with_program(owner, Treatment.begin(kind, adaptive=False), self._clock())

    def remove_socket(self, handle: int, flow: int, fd: int | None, facts: SocketFacts | None) -> None:
        """QOSRemoveSocketFromFlow: the socket leaves with all its destinations, and the last one ends the flow.

        Without a socket the whole flow ends. Raises NoSuchFlow also for a socket that is not in it.
        """
        found = self._owned(self._handle(handle), flow)
        if fd is None or facts is None:
            self._changes.end(found)
            return
        if facts.cookie not in found.members:
            raise NoSuchFlow(f"the socket is not in flow {flow}", "it left, moved to another flow, or never joined")
        self._changes.remove(found, fd, facts)

    # What a flow does

    def set_traffic_type(self, handle: int, flow: int, traffic_type: int) -> None:
        """QOSSetFlow(QOSSetTrafficType): all members at once; a DSCP override ends, a contract stays."""
        owner = self._handle(handle)
        kind = known(TrafficType, traffic_type, "traffic type")
        found = self._owned(owner, flow)
        self._changes.treat(found, found.treatment.with_traffic_type(kind))

    def set_rate(self, handle: int, flow: int, bandwidth: int, shaping: int, reason: int) -> None:
        """QOSSetFlow(QOSSetOutgoingRate): bits/s at IP level, 0 takes contract and marks away."""
        owner = self._handle(handle)
        rate = contract(bandwidth, shaping, reason)
        found = self._owned(owner, flow)
        self._changes.treat(found, found.treatment.with_rate(rate))

    def set_dscp(self, handle: int, flow: int, dscp: int) -> None:
        """QOSSetFlow(QOSSetOutgoingDSCPValue). Raises NotPermitted, and NotSupported for an adaptive flow."""
        owner = self._handle(handle)
        value = code_point(dscp)
        found = self._owned(owner, flow)
        if not owner.peer.privileged:
            raise NotPermitted("a DSCP of one's own choice needs root or the group qos2", "choose a traffic type")
        if found.treatment.adaptive:
            raise NotSupported("override needs a non-adaptive flow", "choose a traffic type")
        self._changes.treat(found, found.treatment.with_override(value))

    # Questions

    def priority(self, handle: int, flow: int) -> PacketPriority:
        """QOSQueryFlow(QOSQueryPacketPriority): what is in force, also of foreign flows that one may see."""
        return self._visible(self._handle(handle), flow).treatment.priority

    def rate(self, handle: int, flow: int) -> FlowRate | None:
        """QOSQueryFlow(QOSQueryOutgoingRate): the contract in force, or None."""
        return self._visible(self._handle(handle), flow).treatment.rate

    def stats(self, handle: int, flow: int) -> FlowStats:
        """Counters since the flow began."""
        return self._datapath.stats(self._visible(self._handle(handle), flow).id)

    def enumerate(self, handle: int) -> list[FlowId]:
        """QOSEnumerateFlows: the ids of all flows, in no order. Raises NotPermitted."""
        if not self._handle(handle).peer.privileged:
            raise NotPermitted("listing everybody's flows needs root or the group qos2", "list your own: qos2 flows")
        return [flow.id for flow in self._table.flows.values()]

    def details(self, handle: int, flow: int) -> FlowView:
        """Everything about one flow: any for privileged peers, of the same user for others."""
        return self._view(self._visible(self._handle(handle), flow))

    def list_flows(self, handle: int, after: int, count: int) -> list[FlowView]:
        """At most `count` of the flows that the caller may see, in the order of slots, behind that of `after`."""
        owner = self._handle(handle)
        slot = slot_of(FlowId(after))
        if owner.peer.privileged:
            return [self._view(flow) for flow in islice(self._table.behind(slot), count)]
        slots = sorted(each for each in owner.share.slots if each > slot)
        return [self._view(self._table.flows[each]) for each in slots[:count]]

    def status(self, handle: int) -> ServiceStatus:
        """The daemon and the datapath, for everybody."""
        self._handle(handle)
        return ServiceStatus(
            server=self._version,
            uptime_s=self._clock() - self._started_s,
            handles=self.handles,
            flows=self.flows,
            max_flows=self._max_flows,
            orphans=self.orphans,
            datapath=self._datapath.status(),
        )

    # Paths: checked like the rest, then refused

    def fundamentals(self, handle: int, flow: int, fresh: bool = False) -> None:
        """QOSQueryFlow(QOSQueryFlowFundamentals): NotSupported."""
        self._visible(self._handle(handle), flow)
        raise NotSupported("estimates of the path are not supported yet", _LATER)

    def notify(self, handle: int, flow: int, condition: int, bandwidth: int = 0) -> None:
        """QOSNotifyFlow: NotSupported."""
        owner = self._handle(handle)
        awaited = known(Condition, condition, "condition")
        if awaited is Condition.AVAILABLE and bandwidth <= 0:
            raise InvalidRequest(f"waiting for {bandwidth} bits/s", "say the total that is wanted, in bits/s")
        self._owned(owner, flow)
        raise NotSupported("notifications are not supported yet", _LATER)

    def cancel(self, handle: int, request: int) -> None:
        """QOSCancel: NotSupported, since no request can be pending."""
        self._handle(handle)
        raise NotSupported("cancelling is not supported yet", "no request waits in this version")

    def start_tracking(self, handle: int, address: str) -> None:
        """QOSStartTrackingClient: NotSupported. Raises InvalidRequest for what is no literal address."""
        self._handle(handle)
        client_address(address)
        raise NotSupported("tracking clients is not supported yet", _LATER)

    def stop_tracking(self, handle: int, address: str) -> None:
        """QOSStopTrackingClient: NotSupported. Raises InvalidRequest for what is no literal address."""
        self._handle(handle)
        client_address(address)
        raise NotSupported("tracking clients is not supported yet", _LATER)

    # For the daemon: tick and metrics

    def end_orphans(self) -> None:
        """Once a tick: end the flows of a killed predecessor after their grace, and what was refused before."""
        self._endings.settle()
        if self._taken_over and self._clock() - self._started_s >= self._limits.orphan_grace_s:
            for flow in self._taken_over:
                self._endings.end_anyhow(flow)
            self._taken_over = ()

    def totals(self, live: Sequence[FlowStats]) -> dict[TrafficType, FlowStats]:
        """Everything ever sent per type; `live[type]` sums the datapath's counters over `type_of_slot`."""
        return self._accounts.totals(live)

    @property
    def type_of_slot(self) -> bytearray:
        """Per slot the traffic type of its flow, 255 without one. The same object all the time."""
        return self._table.type_of_slot

    @property
    def accounts(self) -> Accounts:
        """Flows now, begun and ended, by type."""
        return self._accounts

    @property
    def handles(self) -> int:
        return len(self._handles)

    @property
    def flows(self) -> int:
        """Flows that have an owner."""
        return len(self._table.flows)

    @property
    def max_flows(self) -> int:
        return self._max_flows

    @property
    def orphans(self) -> int:
        """Flows that the datapath serves for nobody: taken over, or ended here and refused there."""
        return len(self._taken_over) + self._endings.unended

    @property
    def refusals(self) -> int:
        """How often the datapath refused a clean-up, so that no caller was told; each is tried again."""
        return self._endings.refusals

    @property
    def version(self) -> str:
        return self._version

    # Checks

    def _handle(self, number: int) -> Handle:
        handle = self._handles.get(number)
        if handle is None:
            raise InvalidHandle(f"no handle {number}", "open one first")
        return handle

    def _owned(self, handle: Handle, flow: int) -> Flow:
        found = self._table.find(flow)
        if found is None or not handle.owns(found):
            raise NoSuchFlow(f"no flow {flow}", "it has ended, or belongs to another process")
        return found

    def _visible(self, handle: Handle, flow: int) -> Flow:
        found = self._table.find(flow)
        if found is None or not (handle.owns(found) or handle.sees(found)):
            raise NoSuchFlow(f"no flow {flow}", "it has ended, or belongs to another user")
        return found

    def _view(self, flow: Flow) -> FlowView:
        shapers, stats = self._datapath.shapers(flow.id), self._datapath.stats(flow.id)
        return view_of(flow, self._table, self._clock(), shapers, stats)

    def _check_share(self, owner: Handle) -> None:
        limits, share = self._limits, owner.share
        most = limits.flows_per_privileged_uid if owner.peer.privileged else limits.flows_per_uid
        if len(share.slots) >= most:
            raise LimitExceeded(f"user {share.uid} has {most} flows", "end flows, or raise flows_per_uid")
