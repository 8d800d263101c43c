"""The flows of rules: what a reload keeps and ends, pools, and that it is whole or not at all, whatever is refused."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qos2.core.policy import Policy
from qos2.core.policyflows import IDLE_S, OLD_FLOWS_S
from qos2.core.pools import READY, Pool
from qos2.core.rule import Bucket, Rule
from qos2.core.ruleviews import RuleView
from qos2.datapath.fake import FakeDatapath
from qos2.errors import DatapathError, LimitExceeded
from qos2.model import Action, Bandwidth, Dscp, FlowId, FlowPolicy, FlowStats, TrafficType, slot_of
from unit.core_stage import PEER, ROOT, Stage, udp
from unit.policy_stage import AF31, CALLS, DENIED, EXEMPT, LIMITED, MBIT, installed, policy, port, rule

EACH = rule("each", match=port(443), rate=Bandwidth(MBIT), bucket=Bucket.SOCKET)
SLOTS = 256


def views(stage: Stage) -> dict[str, RuleView]:
    root = stage.service.open_handle(ROOT)
    try:
        return {view.rule.name: view for view in stage.service.policy_rules(root, 0, 1024)}
    finally:
        stage.service.close_handle(root)


def own(stage: Stage, name: str) -> FlowId:
    flow = installed(stage.fake)[name]
    assert flow is not None
    return flow


def step(stage: Stage, seconds: float) -> None:
    """So much later, with what the daemon does regularly."""
    stage.now_s += seconds
    stage.service.follow()
    stage.service.tick()


class TestReload:
    def test_each_rule_that_does_something_has_a_flow_in_the_order_of_decision(self) -> None:
        stage = Stage()
        generation = stage.service.load_policy(policy(LIMITED, DENIED, replace(AF31, precedence=200), EXEMPT))
        assert generation == stage.service.policy_generation == 1
        flows = installed(stage.fake)
        assert list(flows) == ["af31", "limited", "denied", "exempt"]
        assert (flows["denied"], flows["exempt"]) == (None, None)
        af31, limited = own(stage, "af31"), own(stage, "limited")
        assert stage.fake.policies == {
            af31: FlowPolicy(af31, Dscp(26)),
            limited: FlowPolicy(limited, None, action=Action.DELAY, bandwidth=Bandwidth(2 * MBIT)),
        }
        assert stage.service.flows == 0

    def test_what_a_rule_does_that_stays_goes_on_with_its_counters(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(CALLS, LIMITED))
        calls, limited = own(stage, "calls"), own(stage, "limited")
        stage.fake.set_stats(calls, FlowStats(packets=7, bytes=700))
        other_limit = rule("limited", match=LIMITED.match, rate=Bandwidth(MBIT))
        moved = replace(CALLS, precedence=9, match=port(7))
        assert stage.service.load_policy(policy(other_limit, moved)) == 2
        assert own(stage, "calls") == calls
        assert own(stage, "limited") != limited
        assert views(stage)["calls"].stats == FlowStats(packets=7, bytes=700)
        assert stage.fake.ruleset[1].rule.match == port(7)

    def test_an_old_flow_ends_a_second_after_the_swap_and_is_accounted_for(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(CALLS))
        calls = own(stage, "calls")
        stage.fake.set_stats(calls, FlowStats(packets=7, bytes=700))
        stage.service.load_policy(policy())
        step(stage, OLD_FLOWS_S - 0.01)
        assert (calls in stage.fake.policies, stage.service.accounts.ended[TrafficType.VOICE]) == (True, 0)
        step(stage, 0.01)
        assert (stage.fake.policies, stage.service.accounts.ended[TrafficType.VOICE]) == ({}, 1)
        assert stage.service.totals([FlowStats()] * 6)[TrafficType.VOICE] == FlowStats(packets=7, bytes=700)

    def test_a_rules_flow_is_counted_under_the_traffic_type_that_its_mark_is_usual_for(self) -> None:
        stage = Stage()
        marks = {0: 0, 8: 1, 18: 2, 26: 2, 34: 3, 40: 3, 46: 4, 44: 4, 48: 5, 56: 5}
        stage.service.load_policy(policy(*(rule(f"to-{dscp}", dscp=Dscp(dscp)) for dscp in marks)))
        kinds = {dscp: stage.service.type_of_slot[slot_of(own(stage, f"to-{dscp}"))] for dscp in marks}
        assert kinds == marks

    def test_a_policy_that_does_not_fit_leaves_everything_as_it_was(self) -> None:
        stage = Stage(FakeDatapath(3))
        stage.service.load_policy(policy(CALLS))
        with pytest.raises(LimitExceeded):
            stage.service.load_policy(policy(CALLS, AF31, LIMITED, rule("one-more", dscp=Dscp(8))))
        assert list(installed(stage.fake)) == ["calls"]
        assert stage.service.load_policy(policy(CALLS, AF31, LIMITED)) == 2

    def test_flows_of_applications_are_counted_by_their_rule(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(CALLS))
        first, second = stage.add(udp(1), PEER), stage.add(udp(2), PEER)
        assert views(stage)["calls"].applications == 2
        stage.remove(first)
        assert views(stage)["calls"].applications == 1
        stage.service.load_policy(policy(replace(CALLS, name="voices")))
        assert {name: view.applications for name, view in views(stage).items()} == {"voices": 1}
        stage.remove(second)
        assert views(stage)["voices"].applications == 0


class TestPools:
    def test_sockets_draw_flows_that_are_ready_each_with_the_rules_contract(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(EACH))
        each = own(stage, "each")
        first, second = stage.fake.draw(each), stage.fake.draw(each)
        assert len({each, first, second}) == 3
        contract = FlowPolicy(first, None, action=Action.DELAY, bandwidth=Bandwidth(MBIT))
        assert stage.fake.policies[first] == contract
        stage.fake.set_stats(each, FlowStats(packets=1))
        stage.fake.set_stats(first, FlowStats(packets=2))
        stage.service.follow()
        view = views(stage)["each"]
        assert (view.used, view.ready, view.stats) == (2, READY, FlowStats(packets=3))
        # Each is a flow for the metrics, from when it is drawn.
        assert stage.service.accounts.live[TrafficType.BEST_EFFORT] == 3

    def test_a_pool_is_filled_up_before_it_is_empty_and_grows_with_the_demand(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(EACH))
        each = own(stage, "each")
        ready = []
        for _ in range(3):
            for _ in range(READY - 1):
                assert stage.fake.draw(each) != each
            stage.service.follow()
            ready.append(len(stage.fake.pools[each]))
        assert ready == [2 * READY, 4 * READY, 4 * READY]

    def test_a_flow_that_is_idle_for_a_minute_ends_and_what_it_sent_is_kept(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(EACH))
        each = own(stage, "each")
        busy, idle, never = (stage.fake.draw(each) for _ in range(3))
        stage.service.follow()
        stage.fake.set_stats(idle, FlowStats(packets=5, bytes=500, last_ns=int((stage.now_s + 10) * 1e9)))
        stage.now_s += IDLE_S - 1
        stage.fake.set_stats(busy, FlowStats(packets=9, last_ns=int(stage.now_s * 1e9)))
        step(stage, 1)
        assert [each in stage.fake.policies for each in (busy, idle, never)] == [True, True, False]
        step(stage, 10)
        assert [each in stage.fake.policies for each in (busy, idle, never)] == [True, False, False]
        view = views(stage)["each"]
        assert (view.used, view.stats) == (1, FlowStats(packets=14, bytes=500))

    def test_a_pool_goes_on_over_a_reload_and_ends_with_its_rule(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(EACH))
        each = own(stage, "each")
        drawn = stage.fake.draw(each)
        stage.service.load_policy(policy(CALLS, EACH))
        assert own(stage, "each") == each
        stage.fake.draw(each)
        stage.service.follow()
        assert views(stage)["each"].used == 2
        stage.service.load_policy(policy(CALLS))
        step(stage, OLD_FLOWS_S)
        assert set(stage.fake.policies) == {own(stage, "calls")}
        assert drawn not in stage.fake.policies
        step(stage, IDLE_S)

    def test_without_slots_the_rules_own_flow_serves(self) -> None:
        stage = Stage(FakeDatapath(8))
        stage.service.load_policy(policy(EACH))
        each = own(stage, "each")
        assert len(stage.fake.pools[each]) == 2  # a quarter of the table
        for number in range(5):
            stage.add(udp(number + 1), PEER)
        stage.fake.draw(each)
        stage.fake.draw(each)
        stage.service.follow()
        assert stage.fake.draw(each) == each

    def test_a_refused_refill_is_tried_again_and_loses_no_slot(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(EACH))
        each = own(stage, "each")
        stage.fake.draw(each)
        for refused in ("put", "refill"):
            stage.fake.refuse(refused)
            stage.service.follow()
            assert len(stage.fake.pools[each]) == READY - 1
        stage.service.follow()
        assert (len(stage.fake.pools[each]), stage.service.refusals) == (READY, 2)
        assert len(stage.fake.policies) == READY + 2

    def test_one_bucket_for_each_is_none_without_a_rate(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(rule("marks", dscp=Dscp(8), bucket=Bucket.HOST)))
        assert (len(stage.fake.policies), stage.fake.pools) == (1, {})


def test_a_pool_hands_out_no_more_than_it_has() -> None:
    pool = Pool(2)
    pool.put_in([FlowId(1), FlowId(2)])
    assert pool.follow(1, 5.0) == [1]
    assert pool.follow(9, 6.0) == [2]
    assert (pool.used, pool.missing) == ({1: 5.0, 2: 6.0}, 8)


# Whatever is refused, at whatever step

RULES = [CALLS, AF31, LIMITED, EACH, DENIED, rule("all", rate=Bandwidth(MBIT), ceiling=True, precedence=1)]


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Some of the rules, with acts that change from time to time."""
    chosen: list[Rule] = []
    for each in draw(st.lists(st.sampled_from(RULES), unique=True, max_size=4)):
        changed = draw(st.booleans()) and not each.act.deny
        chosen.append(replace(each, act=replace(each.act, priority=5)) if changed else each)
    return Policy(chosen)


class RefusingDatapath(FakeDatapath):
    """Lets so many changes pass and refuses the next one, whatever it is, as often as there are `passing` numbers."""

    def __init__(self) -> None:
        super().__init__(SLOTS)
        self.passing: list[int] = []

    def _change(self, operation: str) -> None:
        super()._change(operation)
        if self.passing:
            self.passing[0] -= 1
            if self.passing[0] < 0:
                del self.passing[0]
                raise DatapathError(f"{operation} refused", "the test asked for it")


def state(stage: Stage) -> object:
    """All that a reload may change."""
    fake = stage.fake
    flows = stage.service.list_flows(stage.handle, 0, 100)
    return (
        fake.ruleset,
        dict(fake.policies),
        {flow: tuple(pool) for flow, pool in fake.pools.items()},
        [replace(view, stats=FlowStats(), age_s=0.0, judged_for_s=0.0) for view in flows],
        bytes(stage.service.type_of_slot),
        stage.service.accounts.live,
        [view.rule for view in views(stage).values()],
    )


@settings(max_examples=150, deadline=None)
@given(before=policies(), after=policies(), passing=st.lists(st.integers(0, 12) | st.integers(0, 80), max_size=3))
def test_a_refusal_at_any_step_leaves_the_policy_before_and_every_slot(
    before: Policy, after: Policy, passing: list[int]
) -> None:
    fake = RefusingDatapath()
    stage = Stage(fake)
    for number in range(3):
        stage.add(udp(number + 1), PEER)
    stage.service.load_policy(before)
    then = state(stage)
    fake.passing = passing
    try:
        stage.service.load_policy(after)
    except DatapathError:
        fake.passing = []
        stage.service.tick()  # what was refused on the way back
        assert state(stage) == then
        stage.service.load_policy(after)
    fake.passing = []
    assert [each.rule for each in fake.ruleset] == list(after.rules)
    # At the end nothing is left, and every slot can be had again.
    stage.service.load_policy(policy())
    stage.service.close_handle(stage.handle)
    step(stage, OLD_FLOWS_S)
    step(stage, 1)
    assert (fake.policies, stage.service.orphans) == ({}, 0)
    assert {*stage.service.type_of_slot} == {255}
    assert sum(stage.service.accounts.live.values()) == 0
    taken = stage.service.open_handle(ROOT)
    for number in range(SLOTS):
        stage.add(udp(number + 1), PEER, handle=taken)
    with pytest.raises(LimitExceeded):
        stage.add(udp(SLOTS + 1), PEER, handle=taken)
