"""The machine of test_core_machine.py with adaptive flows too: their waits, what they are told, and who uses a host.

The model says for each step which waiting requests it completes and how; the service must have completed
just those. After each step as many requests wait, as many flows are watched and as many hosts in use.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import MultipleResults, initialize, invariant, multiple, precondition, rule

from qos2.core.tracking import LINGER_S
from qos2.errors import (
    AlreadyExists,
    Cancelled,
    InvalidRequest,
    NoData,
    NoSuchFlow,
    NotAdaptive,
    NotSupported,
    QosError,
    Retry,
)
from qos2.model import Condition, Destination, FlowFundamentals, FlowId, RemoteHost, SocketFacts, TrafficType
from unit.core_stage import ALICE, BOB, ELSEWHERE, FD, HERE, OTHER_PEER, PEER, udp
from unit.test_core_machine import ServiceMachine, kinds, refusable, refusals

KNOWN = FlowFundamentals(rtt_us=5)
ADAPTIVE_SOCKETS = [udp(1), udp(2, netns=ELSEWHERE), udp(4)]
HOSTS = [RemoteHost(each.address, HERE) for each in (PEER, OTHER_PEER) if each.address is not None]

adaptive_sockets = st.sampled_from(ADAPTIVE_SOCKETS)
peers = st.sampled_from([PEER, OTHER_PEER])
hosts = st.sampled_from(HOSTS)
numbers = st.integers(0, 99)
bandwidths = st.sampled_from([0, 8_000, 5_000_000, 6_000_000])

likely = st.sampled_from([True, True, True, False])

#: Flow, condition (None: a measurement), bandwidth.
Wait = tuple[FlowId, Condition | None, int]
Request = tuple[int, int]


class PathsMachine(ServiceMachine):
    """`waits` is the model of pending requests; `expected` is what the step at hand completes."""

    KEPT_HANDLES = 4  #: so that most of them live long enough to wait for something

    handles = ServiceMachine.handles

    def __init__(self) -> None:
        super().__init__()
        self.paths, self.conditions = self.stage.paths, self.stage.conditions
        self.host: dict[FlowId, RemoteHost] = {}
        self.joined: set[FlowId] = set()
        self.held: dict[FlowId, int] = {}
        self.state: dict[FlowId, tuple[bool | None, int]] = {}
        self.waits: dict[Request, Wait] = {}
        self.expected: dict[Request, type[QosError] | FlowFundamentals | None] = {}
        self.off_link: set[str] = set()
        self.tracked: dict[tuple[int, int, RemoteHost], set[int]] = {}
        self.lingering: dict[tuple[int, int, RemoteHost], float] = {}
        self.last_request = 0

    # The model

    def over(self, request: Request, outcome: type[QosError] | FlowFundamentals | None) -> None:
        del self.waits[request]
        self.expected[request] = outcome

    def gone(self, flow: FlowId) -> None:
        super().gone(flow)
        for request in [each for each, wait in self.waits.items() if wait[0] == flow]:
            self.over(request, Cancelled)
        for table in (self.host, self.held, self.state):
            table.pop(flow, None)
        self.joined.discard(flow)

    def closed(self, handle: int) -> None:
        for request in [each for each in self.waits if each[0] == handle]:
            self.over(request, Cancelled)
        for key, through in self.tracked.items():
            if handle in through:
                through.remove(handle)
                if not through:
                    self.lingering[key] = self.stage.now_s + LINGER_S

    def rating(self, flow: FlowId, bandwidth: int) -> None:
        if flow in self.adaptive and bandwidth > self.held[flow]:
            self.measurable(flow)

    def rated(self, flow: FlowId, bandwidth: int) -> None:
        if flow in self.adaptive:
            self.held[flow] = bandwidth
            self.judge(flow)

    def ticked(self) -> None:
        for key in [each for each, until_s in self.lingering.items() if until_s <= self.stage.now_s]:
            del self.lingering[key], self.tracked[key]

    def judge(self, flow: FlowId) -> None:
        for request, (each, condition, wanted) in list(self.waits.items()):
            if each == flow and condition is not None and self.holds(flow, condition, wanted):
                self.over(request, None)

    def holds(self, flow: FlowId, condition: Condition, wanted: int) -> bool:
        congested, free = self.state.get(flow, (None, 0))
        if condition is Condition.AVAILABLE:
            held = self.held[flow]
            return wanted <= held or (congested is False and wanted <= held + free)
        return congested is (condition is Condition.CONGESTED)

    def owns(self, handle: int, flow: FlowId) -> bool:
        asking, owner = self.peers[handle], self.peers[self.owners[flow]]
        return (asking.pid, asking.uid) == (owner.pid, owner.uid)

    def sees(self, handle: int, flow: FlowId) -> bool:
        return self.peers[handle].privileged or self.peers[handle].uid == self.peers[self.owners[flow]].uid

    def asking(self, handle: int, number: int, sensible: bool) -> tuple[int, FlowId]:
        """Some handle and some flow, or, if it is to be sensible, an adaptive one and the handle of its owner."""
        if not sensible or not self.adaptive:
            return handle, self.pick(number)
        flow = sorted(self.adaptive)[number % len(self.adaptive)]
        return self.owners[flow], flow

    def measurable(self, flow: FlowId) -> type[QosError] | None:
        if flow not in self.adaptive:
            return NotAdaptive
        if str(self.host[flow]) in self.off_link:
            return NotSupported
        self.joined.add(flow)
        return None

    @contextmanager
    def refused_if(self, error: type[QosError] | None) -> Iterator[None]:
        """The step must be refused with just this."""
        if error is None:
            yield
            return
        with pytest.raises(error) as refused:
            yield
        assert type(refused.value) is error

    # The steps

    @initialize(target=handles)
    def begin_with_two_flows(self) -> MultipleResults[int]:
        self.peers = {self.service.open_handle(peer): peer for peer in (ALICE, ALICE, BOB)}
        handles = list(self.peers)
        for handle, facts, where in zip(handles, ADAPTIVE_SOCKETS, (PEER, OTHER_PEER), strict=False):
            self.begin_adaptive(handle, facts, where, TrafficType.VOICE, "")
        return multiple(*handles)

    @rule(handle=handles, facts=adaptive_sockets, where=peers, kind=kinds, no=refusals)
    def begin_adaptive(self, handle: int, facts: SocketFacts, where: Destination, kind: TrafficType, no: str) -> None:
        with refusable(self.fake, no):
            flow = self.service.add_socket(
                handle, FD, facts, traffic_type=kind, flow=0, destination=where, adaptive=True
            )
            self.new(handle, flow, kind)
            self.members[facts.cookie, where] = flow
            self.adaptive.add(flow)
            assert where.address is not None
            self.host[flow] = RemoteHost(where.address, facts.netns_cookie)
            self.held[flow] = 0
            if str(where.address) not in self.off_link:
                self.joined.add(flow)

    @precondition(lambda self: self.owners)
    @rule(asked=st.tuples(handles, numbers, likely), condition=st.sampled_from(Condition), wanted=bandwidths)
    def notify(self, asked: tuple[int, int, bool], condition: Condition, wanted: int) -> None:
        handle, flow = self.asking(*asked)
        error: type[QosError] | None = NoSuchFlow
        if self.owns(handle, flow):
            error = self.measurable(flow)
            if error is None and condition is Condition.AVAILABLE and wanted <= self.held[flow]:
                error = InvalidRequest
            if error is None and any(wait[:2] == (flow, condition) for wait in self.waits.values()):
                error = AlreadyExists
        self.last_request += 1
        with self.refused_if(error):
            held = self.service.notify(handle, flow, condition, wanted, request=self.last_request)
            assert held is self.holds(flow, condition, wanted)
            if not held:
                self.waits[handle, self.last_request] = (flow, condition, wanted)

    @precondition(lambda self: self.owners)
    @rule(asked=st.tuples(handles, numbers, likely))
    def ask_fresh(self, asked: tuple[int, int, bool]) -> None:
        handle, flow = self.asking(*asked)
        error: type[QosError] | None = NoSuchFlow
        if self.owns(handle, flow):
            error = self.measurable(flow)
        elif self.sees(handle, flow):
            error = self.measurable(flow)
            if error is None and self.host[flow].address not in self.paths._estimates:
                error = NoData
        self.last_request += 1
        with self.refused_if(error):
            found = self.service.fundamentals(handle, flow, True, request=self.last_request)
            if self.owns(handle, flow):
                assert found is None
                self.waits[handle, self.last_request] = (flow, None, 0)
            else:
                assert found == KNOWN

    @precondition(lambda self: self.waits)
    @rule(number=numbers)
    def cancel(self, number: int) -> None:
        handle, request = sorted(self.waits)[number % len(self.waits)]
        self.service.cancel(handle, request)
        self.over((handle, request), Cancelled)

    @rule(handle=handles, request=numbers)
    def cancel_anything(self, handle: int, request: int) -> None:
        waits = (handle, request) in self.waits
        with self.refused_if(None if waits else InvalidRequest):
            self.service.cancel(handle, request)
            self.over((handle, request), Cancelled)

    @precondition(lambda self: self.adaptive)
    @rule(number=numbers, congested=st.sampled_from([None, True, False]), free=bandwidths)
    def change_condition(self, number: int, congested: bool | None, free: int) -> None:
        flow = sorted(self.adaptive)[number % len(self.adaptive)]
        self.state[flow] = congested, free
        self.conditions.set(flow, congested=congested, free=free)
        self.service.follow()
        self.judge(flow)

    @rule(host=hosts, known=st.booleans())
    def measure(self, host: RemoteHost, known: bool) -> None:
        self.paths.set_estimate(host.address, KNOWN if known else None)
        self.paths.finish_refresh(host.address)
        self.service.follow()
        for request, (flow, condition, _) in list(self.waits.items()):
            if condition is None and self.host[flow].address == host.address:
                self.over(request, KNOWN if known else Retry)

    @rule(host=hosts, off_link=st.booleans())
    def change_route(self, host: RemoteHost, off_link: bool) -> None:
        self.paths.set_off_link(host.address, off_link)
        (self.off_link.add if off_link else self.off_link.discard)(str(host))

    @rule(handle=handles, host=hosts)
    def start_tracking(self, handle: int, host: RemoteHost) -> None:
        peer = self.peers[handle]
        with self.refused_if(NotSupported if str(host) in self.off_link else None):
            self.service.start_tracking(handle, str(host))
            self.tracked.setdefault((peer.pid, peer.uid, host), set()).add(handle)
            self.lingering.pop((peer.pid, peer.uid, host), None)

    @rule(handle=handles, host=hosts)
    def stop_tracking(self, handle: int, host: RemoteHost) -> None:
        key = (self.peers[handle].pid, self.peers[handle].uid, host)
        through = self.tracked.get(key)
        with self.refused_if(NoSuchFlow if through is None else None):
            self.service.stop_tracking(handle, str(host))
            assert through is not None
            if handle in through or not through:
                through.discard(handle)
            else:  # one of another handle, whichever
                left = self.service._estimates.tracking._processes.get(key[:2], {}).get(host)
                assert (0 if left is None else len(left.handles)) == len(through) - 1
                through &= set() if left is None else left.handles
            if not through:
                del self.tracked[key]
                self.lingering.pop(key, None)

    @rule(seconds=st.sampled_from([20.0, 59.0]))
    def wait_long(self, seconds: float) -> None:
        self.tick(seconds)

    # What must hold after each

    @invariant()
    def just_what_was_to_complete_has_completed(self) -> None:
        completed = self.service.take_completed()
        found = {
            (each.handle, each.request): each.result if each.error is None else type(each.error) for each in completed
        }
        assert len(found) == len(completed)
        assert found == self.expected
        self.expected.clear()

    @invariant()
    def who_waits_is_watched_and_nobody_else(self) -> None:
        assert self.service.pending == len(self.waits)
        waited_for = {flow for flow, condition, _ in self.waits.values() if condition is not None}
        assert self.conditions.watched == {flow: self.host[flow] for flow in waited_for}

    @invariant()
    def hosts_are_in_use_from_the_first_user_to_the_last(self) -> None:
        tracked = {host for (_, _, host), through in self.tracked.items() if through}
        assert self.paths.begun == tracked | {self.host[flow] for flow in self.joined}

    @invariant()
    def paths_know_what_every_flow_holds(self) -> None:
        held = {flow: (host, bandwidth) for flow, (host, _, bandwidth) in self.paths.held.items()}
        assert held == {flow: (self.host[flow], self.held[flow]) for flow in self.joined}

    @invariant()
    def adaptive_flows_are_judged_until_they_end(self) -> None:
        judged = {flow: host for flow, (_, host) in self.conditions.judged.items() if host is not None}
        assert judged == self.host
        assert self.conditions.judged.keys() <= self.owners.keys()

    def teardown(self) -> None:
        super().teardown()
        # The last handle of that teardown is open, and nothing that was before it.
        self.stage.now_s += LINGER_S
        self.service.tick()
        assert (self.service.pending, self.conditions.watched, self.paths.begun) == (0, {}, set())
        waiting = set(self.waits)
        assert {(each.handle, each.request) for each in self.service.take_completed()} == waiting


TestPathsMachine = PathsMachine.TestCase
TestPathsMachine.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
