"""The service: one method per request, each one whole or not at all.

Synchronous and pure: no I/O but the datapath port, no clock but the one given. The order within a
method is always the same: handle, values, flow id, rights, capability; the first check that fails is
the answer. What passes them all is carried out by changes.py, or answered by estimates.py.

The server calls it with facts from the kernel, never with what a client claims about itself.
"""

from collections.abc import Sequence

from qos2.core.arguments import client_address, code_point, contract, known
from qos2.core.destinations import bound_destination, check_as_written, remote_host
from qos2.core.flows import Flow, Handle
from qos2.core.notifications import Completion
from qos2.core.policy import Policy
from qos2.core.priorities import Treatment, granted
from qos2.core.questions import Questions
from qos2.core.rules import Deniable
from qos2.core.rules import Limits as Limits  # a part of what this module offers
from qos2.core.rulings import check
from qos2.errors import InvalidRequest, LimitExceeded, NoSuchFlow, NotPermitted, NotSupported
from qos2.model import (
    Bandwidth,
    Condition,
    Destination,
    FlowFundamentals,
    FlowId,
    FlowStats,
    PathReport,
    Peer,
    RemoteHost,
    SocketFacts,
    TrafficType,
    slot_of,
)


class Service(Questions):
    """Flows of all processes over one datapath. Not thread-safe: one event loop calls it.

    Every method that takes a handle raises InvalidHandle for one that is not open; every method that
    takes a flow raises NoSuchFlow for one that is unknown, has ended, or may not be touched by the caller;
    every method that changes or measures something raises DeniedByPolicy where `rules` deny it, or a rule of the
    policy in force that the flow's first socket meets, or the socket that is to join it.

    Requests that wait are told by the number that their client gave them; InvalidRequest for one that waits
    already. What has become of them is in `completed` until `take_completed`; any method may put something there.
    """

    # Handles

    def open_handle(self, peer: Peer, version: tuple[int, int] = (1, 0)) -> int:
        """QOSCreateHandle. Raises InvalidRequest for another version than 1.0, LimitExceeded per user."""
        if tuple(version) != (1, 0):
            raise InvalidRequest(f"QoS version {'.'.join(map(str, version))}", "there is only 1.0")
        return self._handles.open(peer)

    def close_handle(self, handle: int) -> None:
        """QOSCloseHandle: ends all its flows, those that the datapath refuses to end with a later tick.

        What is pending on it, or on its flows, is cancelled.
        """
        owner = self._handles.find(handle)
        for flow in tuple(owner.flows.values()):
            self._changes.end_anyhow(flow)
            self._estimates.end(flow)
        self._estimates.close(owner)
        self._handles.close(owner)

    # The administrator's policy

    def check_reload(self, handle: int) -> None:
        """Raises NotPermitted for who may not have the policy read anew."""
        if not self._handles.find(handle).peer.privileged:
            raise NotPermitted("reloading the policy needs root or the group qos2", "or: systemctl reload qos2d")

    def load_policy(self, policy: Policy) -> int:
        """Put a policy into force, for flows that there are too; returns its generation.

        Raises LimitExceeded, DatapathError: the policy so far stays in force, as a whole.
        """
        for flow in self._rulebook.load(policy):
            self._estimates.treated(flow)
        return self._rulebook.generation

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
        written: str | None = None,
    ) -> FlowId:
        """QOSAddSocketToFlow: `flow` 0 begins a flow, else `traffic_type` is ignored. Returns the flow's id.

        `written` is the address of `destination` as the client wrote it, for `strict`. The same socket with
        the same destination moves here from another flow, even of another process: who holds a socket decides
        about it, and the last one wins. Does not keep `fd`.

        Raises InvalidRequest (see destinations.py; an adaptive flow has one member), HostUnreachable for an
        adaptive flow without a route, LimitExceeded, DatapathError.
        """
        owner = self._handles.find(handle)
        if written is not None and self._rules.strict:
            check_as_written(facts, written)
        if flow == 0:
            kind = known(TrafficType, traffic_type, "traffic type")
            member = bound_destination(facts, destination, adaptive=adaptive)
            if self._rules.deny:
                self._rules.check(Deniable.FLOWS)
            rule = self._rulebook.find(owner.peer, facts, member)
            check(rule)
            treatment = Treatment.begin(kind, adaptive=adaptive)
            host = remote_host(facts, destination) if adaptive else None
            supported = host is not None and self._estimates.supports(host)
            self._handles.check_share(owner)
            begun = self._changes.begin_with_socket(owner, treatment, rule, self._clock(), fd, facts, member)
            self._estimates.begin(self._table.flows[slot_of(begun)], facts, host, supported=supported)
            return begun
        if adaptive:
            raise InvalidRequest("an adaptive flow has one socket", "add to an existing flow as non-adaptive")
        member = bound_destination(facts, destination, adaptive=False)
        found = self._owned(owner, flow)
        if found.treatment.adaptive:
            raise InvalidRequest(f"flow {flow} is adaptive: it has one socket", "begin a non-adaptive flow")
        if self._rules.deny:
            self._rules.check(Deniable.FLOWS)
        check(found.rule)
        check(self._rulebook.find(owner.peer, facts, member))
        if member not in found.members.get(facts.cookie, ()):
            if found.member_count >= self.limits.members_per_flow:
                raise LimitExceeded(f"flow {flow} has {found.member_count} members", "raise members_per_flow")
            self._changes.join(found, fd, facts, member)
            self._estimates.grown(found)
        return found.id

    def add_program(self, handle: int, traffic_type: int) -> FlowId:
        """All sockets that the calling process and its children make from now on, in one new flow."""
        owner = self._handles.find(handle)
        kind = known(TrafficType, traffic_type, "traffic type")
        self._rules.check(Deniable.FLOWS)
        rule = self._rulebook.find(owner.peer, None, None)
        check(rule)
        self._handles.check_share(owner)
        return self._changes.begin_with_program(owner, Treatment.begin(kind, adaptive=False), rule, self._clock())

    def remove_socket(self, handle: int, flow: int, fd: int | None, facts: SocketFacts | None) -> None:
        """QOSRemoveSocketFromFlow: the socket leaves with all its destinations, and the last one ends the flow.

        Without a socket the whole flow ends. Raises NoSuchFlow also for a socket that is not in it.
        """
        found = self._owned(self._handles.find(handle), flow)
        if fd is None or facts is None:
            self._changes.end(found)
        elif facts.cookie in found.members:
            self._changes.remove(found, fd, facts)
        else:
            raise NoSuchFlow(f"the socket is not in flow {flow}", "it left, moved to another flow, or never joined")
        if self._table.find(flow) is None:
            self._estimates.end(found)

    # What a flow does

    def set_traffic_type(self, handle: int, flow: int, traffic_type: int) -> None:
        """QOSSetFlow(QOSSetTrafficType): all members at once; a DSCP override ends, a contract stays."""
        owner = self._handles.find(handle)
        kind = known(TrafficType, traffic_type, "traffic type")
        found = self._owned(owner, flow)
        self._rules.check(Deniable.TRAFFIC_TYPE)
        check(found.rule)
        self._changes.treat(found, found.treatment.with_traffic_type(kind))
        self._estimates.treated(found)

    def set_rate(self, handle: int, flow: int, bandwidth: int, shaping: int, reason: int) -> None:
        """QOSSetFlow(QOSSetOutgoingRate): bits/s at IP level, 0 takes contract and marks away.

        An adaptive flow that wants more than it holds is admitted first, where its path is known: raises
        NetworkBusy, Retry or HostUnreachable, and the contract so far stays in force. What a rule grants of it is what
        is admitted, and what `rate` tells.
        """
        owner = self._handles.find(handle)
        rate = contract(bandwidth, shaping, reason)
        found = self._owned(owner, flow)
        self._rules.check(Deniable.RATE)
        check(found.rule)
        treatment = found.treatment.with_rate(rate)
        if found.host is not None and rate is not None:
            self._estimates.admit(found, granted(treatment, found.rule).bandwidth)
        self._changes.treat(found, treatment)
        self._estimates.treated(found)

    def set_dscp(self, handle: int, flow: int, dscp: int) -> None:
        """QOSSetFlow(QOSSetOutgoingDSCPValue). Raises NotPermitted, and NotSupported for an adaptive flow."""
        owner = self._handles.find(handle)
        value = code_point(dscp)
        found = self._owned(owner, flow)
        if not owner.peer.privileged:
            raise NotPermitted("a DSCP of one's own choice needs root or the group qos2", "choose a traffic type")
        self._rules.check(Deniable.DSCP)
        check(found.rule)
        if found.treatment.adaptive:
            raise NotSupported("override needs a non-adaptive flow", "choose a traffic type")
        self._changes.treat(found, found.treatment.with_override(value))

    # Paths

    def fundamentals(self, handle: int, flow: int, fresh: bool = False, *, request: int = 0) -> FlowFundamentals | None:
        """QOSQueryFlow(QOSQueryFlowFundamentals). None: the request waits for a new measurement.

        Raises NotAdaptive, NotSupported, HostUnreachable, NoData, Retry, LimitExceeded.
        """
        owner = self._handles.find(handle)
        self._estimates.waits.check_number(handle, request)
        found = self._visible(owner, flow)
        self._rules.check(Deniable.ESTIMATES)
        return self._estimates.fundamentals(owner, found, fresh, request)

    def notify(self, handle: int, flow: int, condition: int, bandwidth: int = 0, *, request: int = 0) -> bool:
        """QOSNotifyFlow: whether the condition holds now; else the request waits until it does.

        `bandwidth` counts for AVAILABLE alone: the total in bits/s that the flow wants to have, InvalidRequest
        where it has. Raises NotAdaptive, NotSupported, HostUnreachable, AlreadyExists, LimitExceeded.
        """
        owner = self._handles.find(handle)
        awaited = known(Condition, condition, "condition")
        self._estimates.waits.check_number(handle, request)
        found = self._owned(owner, flow)
        self._rules.check(Deniable.ESTIMATES)
        return self._estimates.notify(owner, found, awaited, Bandwidth(bandwidth), request)

    def report(self, handle: int, flow: int, report: PathReport) -> None:
        """What the application knows of its own traffic (an extension). Raises InvalidRequest, NotSupported."""
        found = self._owned(self._handles.find(handle), flow)
        self._rules.check(Deniable.ESTIMATES)
        self._estimates.report(found, report)

    def cancel(self, handle: int, request: int) -> None:
        """QOSCancel: the request completes with Cancelled. Raises InvalidRequest where it does not wait."""
        self._estimates.cancel(self._handles.find(handle), request)

    def start_tracking(self, handle: int, address: str) -> None:
        """QOSStartTrackingClient: a host as it is reached from where the caller connected.

        Raises InvalidRequest for what is no literal address, HostUnreachable, NotSupported, LimitExceeded.
        """
        owner, host = self._client(handle, address)
        self._estimates.start_tracking(owner, host)

    def stop_tracking(self, handle: int, address: str) -> None:
        """QOSStopTrackingClient, by any handle of the process, also for LINGER_S after that of the start has closed.

        Raises InvalidRequest for what is no literal address, NoSuchFlow for what the process does not track.
        """
        owner, host = self._client(handle, address)
        self._estimates.tracking.stop(owner, host)

    # For the daemon: news, tick and metrics

    def follow(self, signal_s: float | None = None) -> None:
        """About ten times a second: whoever waited for what paths and conditions made of the signals of `signal_s`."""
        self._rulebook.follow()
        self._estimates.follow(signal_s)

    def take_completed(self) -> list[Completion]:
        """What requests that waited have come to since the last call, in this order. Handles may have closed."""
        taken = self.completed.copy()
        self.completed.clear()
        return taken

    def tick(self) -> None:
        """Once a second: end a killed predecessor's flows after their grace, what was refused, what lingered."""
        self._endings.settle(self._clock())
        self._rulebook.tick()
        self._estimates.tracking.expire(self._clock())

    def totals(self, live: Sequence[FlowStats]) -> dict[TrafficType, FlowStats]:
        """Everything ever sent per type; `live[type]` sums the datapath's counters over `type_of_slot`."""
        return self.accounts.totals(live)

    # Checks

    def _owned(self, handle: Handle, flow: int) -> Flow:
        found = self._table.find(flow)
        if found is None or not handle.owns(found):
            raise NoSuchFlow(f"no flow {flow}", "it has ended, or belongs to another process")
        return found

    def _client(self, handle: int, address: str) -> tuple[Handle, RemoteHost]:
        owner = self._handles.find(handle)
        client = client_address(address)
        self._rules.check(Deniable.ESTIMATES)
        return owner, RemoteHost(client, owner.peer.netns_cookie)
