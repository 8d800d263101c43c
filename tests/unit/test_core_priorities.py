"""Marks and contracts of a flow, from what its owner asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.core.priorities import TYPE_DSCP, Treatment
from qos2.model import Action, Bandwidth, Dscp, FlowId, FlowPolicy, FlowRate, PacketPriority, Shaping, TrafficType

FLOW = FlowId(0x100001)
HERE = frozenset({1})
TWO_MBIT = Bandwidth(2_000_000)
SHAPE_AND_MARK = FlowRate(TWO_MBIT, Shaping.SHAPE_AND_MARK)


def voice(*, adaptive: bool = False) -> Treatment:
    return Treatment.begin(TrafficType.VOICE, adaptive=adaptive)


@pytest.mark.parametrize(
    ("kind", "dscp"),
    [
        (TrafficType.BEST_EFFORT, 0),
        (TrafficType.BACKGROUND, 8),
        (TrafficType.EXCELLENT_EFFORT, 40),
        (TrafficType.AUDIO_VIDEO, 40),
        (TrafficType.VOICE, 56),
        (TrafficType.CONTROL, 56),
    ],
)
def test_a_non_adaptive_flow_marks_with_the_dscp_of_its_type_at_once(kind: TrafficType, dscp: int) -> None:
    treatment = Treatment.begin(kind, adaptive=False)
    assert treatment.policy(FLOW, HERE) == FlowPolicy(FLOW, Dscp(dscp), Dscp(0), Action.NONE, Bandwidth(0), HERE)
    assert treatment.priority == PacketPriority(Dscp(dscp), Dscp(0), 0, 0)


def test_every_type_has_a_dscp() -> None:
    assert len(TYPE_DSCP) == len(TrafficType)


def test_an_adaptive_flow_touches_nothing_before_it_has_a_rate() -> None:
    treatment = voice(adaptive=True)
    assert treatment.policy(FLOW, HERE) == FlowPolicy(FLOW, None, netns_cookies=HERE)
    assert treatment.priority == PacketPriority(Dscp(0), Dscp(0))


def test_an_adaptive_flow_with_a_rate_marks() -> None:
    assert voice(adaptive=True).with_rate(SHAPE_AND_MARK).dscp == 56


@pytest.mark.parametrize(
    ("shaping", "dscp", "action"),
    [
        (Shaping.SHAPE_ONLY, 0, Action.DELAY),
        (Shaping.SHAPE_AND_MARK, 56, Action.DELAY),
        (Shaping.USE_NON_CONFORMANT_MARKINGS, 56, Action.REMARK),
    ],
)
def test_shaping_decides_about_marks_and_what_happens_above_the_rate(
    shaping: Shaping, dscp: int, action: Action
) -> None:
    policy = voice().with_rate(FlowRate(TWO_MBIT, shaping)).policy(FLOW, HERE)
    assert policy == FlowPolicy(FLOW, Dscp(dscp), Dscp(0), action, TWO_MBIT, HERE)


def test_rate_0_takes_contract_and_marks_away() -> None:
    treatment = voice().with_rate(SHAPE_AND_MARK).with_rate(None)
    assert treatment.policy(FLOW, HERE) == FlowPolicy(FLOW, None, netns_cookies=HERE)
    assert treatment.priority == PacketPriority(Dscp(0), Dscp(0))


def test_rate_0_takes_the_mark_of_an_override_away_too() -> None:
    treatment = voice().with_override(Dscp(46)).with_rate(None)
    assert treatment.policy(FLOW, HERE) == FlowPolicy(FLOW, None, netns_cookies=HERE)
    assert treatment.priority == PacketPriority(Dscp(0), Dscp(0))


def test_after_rate_0_an_override_is_back_with_the_next_rate_or_override_and_gone_with_a_type() -> None:
    silent = voice().with_override(Dscp(46)).with_rate(None)
    assert silent.with_rate(SHAPE_AND_MARK).dscp == 46
    assert silent.with_override(Dscp(34)).dscp == 34
    assert silent.with_traffic_type(TrafficType.BACKGROUND).dscp == 8
    assert voice().with_rate(None).with_override(Dscp(0)).dscp == 0


@pytest.mark.parametrize(("rate", "bandwidth"), [(None, 0), (SHAPE_AND_MARK, 2_000_000)])
def test_the_bandwidth_is_that_of_the_contract(rate: FlowRate | None, bandwidth: int) -> None:
    assert voice().with_rate(rate).bandwidth == bandwidth


def test_a_rate_after_rate_0_marks_again() -> None:
    assert voice().with_rate(None).with_rate(SHAPE_AND_MARK).dscp == 56


def test_a_type_after_rate_0_marks_again() -> None:
    assert voice().with_rate(None).with_traffic_type(TrafficType.BACKGROUND).dscp == 8


def test_a_type_does_not_make_an_adaptive_flow_without_rate_mark() -> None:
    assert voice(adaptive=True).with_traffic_type(TrafficType.CONTROL).dscp is None
    assert voice(adaptive=True).with_rate(None).with_traffic_type(TrafficType.CONTROL).dscp is None


def test_an_override_wins_over_shape_only() -> None:
    shaped = voice().with_rate(FlowRate(TWO_MBIT, Shaping.SHAPE_ONLY))
    assert shaped.with_override(Dscp(46)).dscp == 46
    assert voice().with_override(Dscp(46)).with_rate(FlowRate(TWO_MBIT, Shaping.SHAPE_ONLY)).dscp == 46


def test_a_type_clears_an_override_and_keeps_the_contract() -> None:
    treatment = voice().with_rate(SHAPE_AND_MARK).with_override(Dscp(46)).with_traffic_type(TrafficType.BACKGROUND)
    assert treatment.policy(FLOW, HERE) == FlowPolicy(FLOW, Dscp(8), Dscp(0), Action.DELAY, TWO_MBIT, HERE)


steps = st.one_of(
    st.tuples(st.just("with_traffic_type"), st.sampled_from(TrafficType)),
    st.tuples(st.just("with_override"), st.integers(0, 63).map(Dscp)),
    st.tuples(st.just("with_rate"), st.none() | st.sampled_from(Shaping).map(lambda how: FlowRate(TWO_MBIT, how))),
)


@given(adaptive=st.booleans(), taken=st.lists(steps, max_size=8))
def test_whatever_the_steps_policy_and_priority_agree(adaptive: bool, taken: list[tuple[str, object]]) -> None:
    treatment = voice(adaptive=adaptive)
    for name, argument in taken:
        treatment = getattr(treatment, name)(argument)
    policy = treatment.policy(FLOW, HERE)
    assert treatment.priority == PacketPriority(Dscp(policy.dscp or 0), policy.non_conformant_dscp)
    assert (policy.bandwidth == 0) == (policy.action is Action.NONE) == (treatment.rate is None)
    # A step back and forth changes nothing else: the policy is a function of the treatment alone.
    assert treatment.policy(FLOW, frozenset()) == policy._replace(netns_cookies=frozenset())
