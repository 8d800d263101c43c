"""Random operations on the service, over a datapath that refuses at random, against a plain model.

The model says which member belongs to which flow by the shortest rules that could be written. After
each step table and datapath must agree with it, and every slot must be free or accounted for.

Flows are not adaptive here; test_core_machine_paths.py goes on with those.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from qos2.core.service import Limits
from qos2.datapath.fake import FakeDatapath
from qos2.errors import DatapathError, LimitExceeded, NoSuchFlow
from qos2.model import ANY_DESTINATION, Destination, Dscp, FlowId, FlowStats, Peer, SocketFacts, TrafficType, flow_id
from unit.core_stage import ALICE, BOB, ELSEWHERE, FD, OTHER_PEER, PEER, ROOT, Stage, tcp, udp

SLOTS = 6
SOCKETS = [udp(1), udp(2, netns=ELSEWHERE), tcp(3, peer=PEER)]
REFUSABLE = ["put", "end", "bind", "unbind", "stats", "adopt_program", "release_program"]

sockets = st.sampled_from(SOCKETS)
destinations = st.sampled_from([PEER, OTHER_PEER, ANY_DESTINATION])
kinds = st.sampled_from(TrafficType)
refusals = st.sampled_from(["", "", "", "put", "bind", "end", "unbind", "stats"])


@contextmanager
def refusable(fake: FakeDatapath, refused: str) -> Iterator[None]:
    """A step in which the datapath may refuse; it must then leave everything as the model has it."""
    if refused:
        fake.refuse(refused)
    with suppress(DatapathError, LimitExceeded):
        yield


class ServiceMachine(RuleBasedStateMachine):
    """`members` and `owners` are the model; `ended` remembers every id that must never live again."""

    KEPT_HANDLES = 0  #: below that number none is closed

    handles = Bundle("handles")

    def __init__(self) -> None:
        super().__init__()
        self.orphan = flow_id(2, 9)
        self.fake = FakeDatapath(SLOTS, occupied={2: self.orphan})
        self.stage = Stage(self.fake, Limits(orphan_grace_s=5.0))
        self.service = self.stage.service
        self.service.close_handle(self.stage.handle)
        self.peers: dict[int, Peer] = {}
        self.owners: dict[FlowId, int] = {}
        self.kinds: dict[FlowId, TrafficType] = {}
        self.programs: set[FlowId] = set()
        self.adaptive: set[FlowId] = set()
        self.members: dict[tuple[int, Destination], FlowId] = {}
        self.ids: set[FlowId] = {self.orphan}
        self.sent: dict[FlowId, int] = {}
        self.totals = dict.fromkeys(TrafficType, 0)

    def new(self, handle: int, flow: FlowId, kind: TrafficType) -> None:
        assert flow > 0
        assert flow not in self.ids, "an id came back"
        self.ids.add(flow)
        self.owners[flow] = handle
        self.kinds[flow] = kind
        self.sent[flow] = 0

    def gone(self, flow: FlowId) -> None:
        del self.owners[flow], self.kinds[flow]
        self.programs.discard(flow)
        self.adaptive.discard(flow)
        self.members = {member: each for member, each in self.members.items() if each != flow}

    def pick(self, number: int) -> FlowId:
        return sorted(self.owners)[number % len(self.owners)]

    def handle_of(self, flow: FlowId) -> int:
        return self.owners[flow]

    @rule(target=handles, peer=st.sampled_from([ALICE, BOB, ROOT]))
    def open_handle(self, peer: Peer) -> int:
        handle = self.service.open_handle(peer)
        self.peers[handle] = peer
        return handle

    def closed(self, handle: int) -> None:
        """For the machine that goes on with this one."""

    @precondition(lambda self: len(self.peers) >= self.KEPT_HANDLES)
    @rule(handle=consumes(handles))
    def close_handle(self, handle: int) -> None:
        self.service.close_handle(handle)
        self.closed(handle)
        del self.peers[handle]
        for flow in [each for each, owner in self.owners.items() if owner == handle]:
            self.gone(flow)

    def ticked(self) -> None:
        """Likewise."""

    def rating(self, flow: FlowId, bandwidth: int) -> None:
        """Likewise, whatever comes of it."""

    def rated(self, flow: FlowId, bandwidth: int) -> None:
        """Likewise."""

    @rule(operation=st.sampled_from(REFUSABLE), times=st.integers(1, 3))
    def refuse(self, operation: str, times: int) -> None:
        self.fake.refuse(operation, times)

    @rule(handle=handles, facts=sockets, where=destinations, kind=kinds, no=refusals)
    def begin(self, handle: int, facts: SocketFacts, where: Destination, kind: TrafficType, no: str) -> None:
        given = None if facts.peer else where
        with refusable(self.fake, no):
            flow = self.service.add_socket(
                handle, FD, facts, traffic_type=kind, flow=0, destination=given, adaptive=False
            )
            self.new(handle, flow, kind)
            self.members[facts.cookie, ANY_DESTINATION if facts.peer else where] = flow

    @precondition(lambda self: self.owners)
    @rule(number=st.integers(0, 99), facts=sockets, where=destinations, no=refusals)
    def join(self, number: int, facts: SocketFacts, where: Destination, no: str) -> None:
        flow = self.pick(number)
        if flow in self.adaptive:
            return
        given = None if facts.peer else where
        with refusable(self.fake, no):
            self.service.add_socket(
                self.handle_of(flow), FD, facts, traffic_type=0, flow=flow, destination=given, adaptive=False
            )
            self.members[facts.cookie, ANY_DESTINATION if facts.peer else where] = flow

    @rule(handle=handles, kind=kinds, no=refusals)
    def begin_program(self, handle: int, kind: TrafficType, no: str) -> None:
        with refusable(self.fake, no):
            flow = self.service.add_program(handle, kind)
            self.new(handle, flow, kind)
            self.programs.add(flow)

    @precondition(lambda self: self.owners)
    @rule(number=st.integers(0, 99), no=refusals)
    def end(self, number: int, no: str) -> None:
        flow = self.pick(number)
        with refusable(self.fake, no):
            self.service.remove_socket(self.handle_of(flow), flow, None, None)
            self.gone(flow)

    @precondition(lambda self: self.owners)
    @rule(number=st.integers(0, 99), facts=sockets, no=refusals)
    def leave(self, number: int, facts: SocketFacts, no: str) -> None:
        flow = self.pick(number)
        inside = [member for member, each in self.members.items() if each == flow]
        with refusable(self.fake, no):
            try:
                self.service.remove_socket(self.handle_of(flow), flow, FD, facts)
            except NoSuchFlow:
                assert all(cookie != facts.cookie for cookie, _ in inside)
                return
            assert any(cookie == facts.cookie for cookie, _ in inside)
            if flow not in self.programs and all(cookie == facts.cookie for cookie, _ in inside):
                self.gone(flow)
            else:
                for member in inside:
                    if member[0] == facts.cookie:
                        del self.members[member]

    @precondition(lambda self: self.owners)
    @rule(number=st.integers(0, 99), kind=kinds, no=refusals)
    def set_traffic_type(self, number: int, kind: TrafficType, no: str) -> None:
        flow = self.pick(number)
        with refusable(self.fake, no):
            self.service.set_traffic_type(self.handle_of(flow), flow, kind)
            self.kinds[flow] = kind

    @precondition(lambda self: self.owners)
    @rule(
        number=st.integers(0, 99),
        bandwidth=st.sampled_from([0, 8_000, 5_000_000]),
        shaping=st.integers(0, 2),
        no=refusals,
    )
    def set_rate(self, number: int, bandwidth: int, shaping: int, no: str) -> None:
        flow = self.pick(number)
        self.rating(flow, bandwidth)
        with refusable(self.fake, no):
            self.service.set_rate(self.handle_of(flow), flow, bandwidth, shaping, 0)
            assert self.fake.policies[flow].bandwidth == bandwidth
            self.rated(flow, bandwidth)

    @precondition(lambda self: any(self.peers[handle].privileged for handle in self.owners.values()))
    @rule(number=st.integers(0, 99), dscp=st.integers(0, 63), no=refusals)
    def set_dscp(self, number: int, dscp: int, no: str) -> None:
        mine = sorted(flow for flow, handle in self.owners.items() if self.peers[handle].privileged)
        flow = mine[number % len(mine)]
        if flow in self.adaptive:
            return
        with refusable(self.fake, no):
            self.service.set_dscp(self.handle_of(flow), flow, dscp)
            assert self.fake.policies[flow].dscp == Dscp(dscp)

    @precondition(lambda self: self.owners)
    @rule(number=st.integers(0, 99), packets=st.integers(1, 50))
    def send(self, number: int, packets: int) -> None:
        flow = self.pick(number)
        self.sent[flow] += packets
        self.totals[self.kinds[flow]] += packets
        self.fake.set_stats(flow, FlowStats(packets=self.sent[flow]))

    @rule(seconds=st.sampled_from([0.1, 3.0]))
    def tick(self, seconds: float) -> None:
        self.stage.now_s += seconds
        self.service.tick()
        self.ticked()

    @invariant()
    def bindings_equal_the_table(self) -> None:
        expected: dict[int, dict[Destination, FlowId]] = {}
        for (cookie, where), flow in self.members.items():
            expected.setdefault(cookie, {})[where] = flow
        living = {
            cookie: {where: flow for where, flow in flows.items() if flow in self.owners}
            for cookie, flows in self.fake.bindings.items()
        }
        assert {cookie: flows for cookie, flows in living.items() if flows} == expected
        # The table itself, since a wrong entry would reach the datapath only with the socket's next change.
        assert {cookie: each.flows for cookie, each in self.service._table.sockets.items()} == expected
        members = {
            (cookie, where): flow.id
            for flow in self.service._table.flows.values()
            for cookie, destinations in flow.members.items()
            for where in destinations
        }
        assert members == self.members

    @invariant()
    def every_flow_of_the_datapath_has_an_owner_or_is_owed(self) -> None:
        occupied = set(self.fake.occupied_slots().values())
        assert self.owners.keys() <= self.fake.policies.keys()
        assert self.service.flows == len(self.owners)
        assert len(occupied - self.owners.keys()) == self.service.orphans

    @invariant()
    def types_of_slots_are_those_of_the_flows_that_count(self) -> None:
        table = {flow & 0xFFFFF: kind for flow, kind in self.kinds.items()}
        for slot, kind in enumerate(self.service.type_of_slot):
            if slot in table:
                assert kind == table[slot]
            elif kind != 255:
                assert slot in self.fake.occupied_slots()
        assert sum(self.service.accounts.live.values()) == sum(kind != 255 for kind in self.service.type_of_slot)

    @invariant()
    def totals_are_what_was_sent(self) -> None:
        live = [0] * len(TrafficType)
        for slot, flow in self.fake.occupied_slots().items():
            kind = self.service.type_of_slot[slot]
            if kind != 255:
                live[kind] += self.fake.counters[flow].packets
        totals = self.service.totals([FlowStats(packets=packets) for packets in live])
        assert {kind: stats.packets for kind, stats in totals.items()} == self.totals

    def teardown(self) -> None:
        """With a datapath that agrees to everything, nothing at all is left, and every slot can be had."""
        self.fake.accept()
        for handle in self.peers:
            self.service.close_handle(handle)
        self.stage.now_s += 60
        self.service.tick()
        self.service.tick()
        assert (self.fake.policies, self.fake.occupied_slots(), self.fake.programs) == ({}, {}, {})
        left = {where for flows in self.fake.bindings.values() for where in flows}
        assert left <= {ANY_DESTINATION}
        assert (self.service.flows, self.service.handles, self.service.orphans) == (0, 0, 0)
        handle = self.service.open_handle(ALICE)
        again = {self.service.add_program(handle, 0) & 0xFFFFF for _ in range(SLOTS)}
        assert again == set(range(1, SLOTS + 1))


TestServiceMachine = ServiceMachine.TestCase
TestServiceMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
