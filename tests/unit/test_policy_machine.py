"""Random reloads among random requests, over a datapath that refuses at random.

After each step what the datapath was told is what the policy in force makes of what was asked for, judged anew from
nothing; every slot is a flow's, a rule's, or about to be free.
"""

from contextlib import suppress

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from qos2.core.policy import Policy
from qos2.core.policyflows import IDLE_S, OLD_FLOWS_S
from qos2.core.priorities import granted
from qos2.core.rule import Bucket, Match, Rule
from qos2.core.rulings import connection_of
from qos2.datapath.fake import FakeDatapath
from qos2.errors import DatapathError, DeniedByPolicy, LimitExceeded
from qos2.model import Bandwidth, Dscp, FlowId, FlowStats, TrafficType
from unit.core_stage import ALICE, BOB, Stage, at, udp
from unit.policy_stage import MBIT, port
from unit.policy_stage import rule as made

SLOTS = 40
PORTS = (80, 443, 5004)
RULES = [
    made("web", match=port(80), dscp=Dscp(10)),
    made("calls", match=port(5004), traffic_type=TrafficType.VOICE, priority=5),
    made("bulk", 200, match=port(443), rate=Bandwidth(2 * MBIT), bucket=Bucket.SOCKET),
    made("capped", 50, rate=Bandwidth(MBIT), ceiling=True),
    made("bob", 90, match=Match(users=(BOB.uid,)), deny=True),
    made("alice", 10, match=Match(users=(ALICE.uid,)), traffic_type=TrafficType.BACKGROUND),
    made("left-alone", 250, match=port(80), exempt=True),
]
#: The same names with other acts.
CHANGED = [made("web", match=port(80), dscp=Dscp(12)), made("capped", 50, rate=Bandwidth(3 * MBIT), ceiling=True)]
OPERATIONS = ["put", "end", "bind", "stats", "install", "refill"]


class PolicyMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeDatapath(SLOTS)
        self.stage = Stage(self.fake)
        self.service = self.stage.service
        self.handles = [self.stage.handle, self.service.open_handle(BOB)]
        self.cookie = 0
        self.policy = Policy()

    @property
    def flows(self) -> list[FlowId]:
        return sorted(flow.id for flow in self.service._table.flows.values())

    @rule(chosen=st.lists(st.sampled_from(RULES + CHANGED), unique_by=lambda each: each.name), no=st.lists(
        st.sampled_from(OPERATIONS), max_size=2), times=st.integers(1, 2)
    )  # fmt: skip
    def load(self, chosen: list[Rule], no: list[str], times: int) -> None:
        for operation in no:
            self.fake.refuse(operation, times)
        with suppress(DatapathError, LimitExceeded):
            self.service.load_policy(Policy(chosen))
            self.policy = Policy(chosen)
        self.fake.accept()
        self.service.tick()  # what was refused on the way back is told by now

    @rule(handle=st.sampled_from([0, 1]), number=st.sampled_from(PORTS), kind=st.sampled_from(TrafficType))
    def add(self, handle: int, number: int, kind: TrafficType) -> None:
        self.cookie += 1
        with suppress(DeniedByPolicy, LimitExceeded):
            self.stage.add(udp(self.cookie), at("192.0.2.7", number), traffic_type=kind, handle=self.handles[handle])

    @precondition(lambda self: self.flows)
    @rule(number=st.integers(0, 99), bandwidth=st.sampled_from([0, MBIT // 2, 5 * MBIT]), shaping=st.integers(0, 2))
    def set_rate(self, number: int, bandwidth: int, shaping: int) -> None:
        flow = self.flows[number % len(self.flows)]
        with suppress(DeniedByPolicy):
            self.service.set_rate(self.owner(flow), flow, bandwidth, shaping, 0)

    @precondition(lambda self: self.flows)
    @rule(number=st.integers(0, 99), kind=st.sampled_from(TrafficType))
    def set_traffic_type(self, number: int, kind: TrafficType) -> None:
        flow = self.flows[number % len(self.flows)]
        with suppress(DeniedByPolicy):
            self.service.set_traffic_type(self.owner(flow), flow, kind)

    @precondition(lambda self: self.flows)
    @rule(number=st.integers(0, 99))
    def end(self, number: int) -> None:
        flow = self.flows[number % len(self.flows)]
        self.service.remove_socket(self.owner(flow), flow, None, None)

    @precondition(lambda self: self.fake.pools)
    @rule(number=st.integers(0, 99))
    def draw(self, number: int) -> None:
        own = sorted(self.fake.pools)[number % len(self.fake.pools)]
        self.fake.draw(own)
        self.service.follow()

    @rule(seconds=st.sampled_from([0.1, OLD_FLOWS_S, IDLE_S]))
    def wait(self, seconds: float) -> None:
        self.stage.now_s += seconds
        self.service.follow()
        self.service.tick()

    def owner(self, flow: FlowId) -> int:
        found = self.service._table.find(flow)
        assert found is not None
        return found.owner.number

    @invariant()
    def the_ruleset_is_the_policy(self) -> None:
        assert tuple(each.rule for each in self.fake.ruleset) == self.policy.rules == self.service.policy.rules

    @invariant()
    def each_flow_is_treated_as_the_policy_says(self) -> None:
        for flow in self.service._table.flows.values():
            met = self.policy.find(connection_of(flow.owner.peer, flow.facts, flow.destination, ""))
            treatment = granted(flow.treatment, met)
            assert flow.rule == met
            assert self.fake.policies[flow.id] == treatment.policy(flow.id, flow.policy.netns_cookies)
            assert self.service.type_of_slot[flow.id & 0xFFFFF] == treatment.traffic_type

    @invariant()
    def every_slot_is_accounted_for(self) -> None:
        service = self.service
        ruled = [flow for each in service._rulebook.flows.rules for flow in each.flows()]
        leaving = [flow for _due_s, flow in service._rulebook.flows._leaving]
        occupied = sorted(self.fake.occupied_slots().values())
        assert len(occupied) == len(self.flows) + len(ruled) + len(leaving) + service.orphans
        assert set(occupied) >= {*self.flows, *ruled, *leaving}
        assert sum(service.accounts.live.values()) == sum(kind != 255 for kind in service.type_of_slot)
        names = [flow.rule.name for flow in service._table.flows.values() if flow.rule is not None]
        assert dict(service._table.ruled) == {name: names.count(name) for name in names}

    def teardown(self) -> None:
        """With an empty policy and no application nothing is left."""
        self.fake.accept()
        self.service.load_policy(Policy())
        for handle in self.handles:
            self.service.close_handle(handle)
        self.stage.now_s += IDLE_S
        self.service.follow()
        self.service.tick()
        assert (self.fake.policies, self.service.orphans) == ({}, 0)
        assert self.service.totals([FlowStats()] * 6) == dict.fromkeys(TrafficType, FlowStats())


TestPolicyMachine = PolicyMachine.TestCase
TestPolicyMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
