"""Whether flows meet congestion, by counters and reports: who is judged, what is said and told, and what it costs."""

import pytest

from qos2.core.congestion import Detector
from qos2.core.thresholds import Thresholds
from qos2.errors import NotSupported
from qos2.model import (
    Cause,
    Condition,
    Explanation,
    FlowId,
    FlowState,
    Judgement,
    Method,
    PathReport,
    flow_id,
)
from qos2.paths.conditions import JudgedFlows
from unit.paths_stage import (
    HOST,
    OTHER_HOST,
    SLOTS,
    A,
    B,
    C,
    PathsStage,
    rate,
    tcp,
    udp,
)

UNKNOWN, UNCONGESTED, RATE_LIMITED, CONGESTED = FlowState


def judging(*flows: FlowId) -> PathsStage:
    """TCP flows to one host, which use it."""
    stage = PathsStage()
    stage.use(*flows)
    for flow in flows:
        stage.conditions.begin(flow, tcp(flow), HOST)
    stage.paths.news()
    return stage


def calm(stage: PathsStage, flow: FlowId = A) -> None:
    stage.acknowledge(flow, 100, rtt_us=11_000)


def queued(stage: PathsStage, flow: FlowId = A) -> None:
    stage.acknowledge(flow, 100, rtt_us=60_000)


class TestStates:
    def test_unknown_then_uncongested_then_congested_then_uncongested_and_each_is_told_once(self) -> None:
        stage = judging(A, B)
        stage.conditions.watch(A, HOST)
        begun_s = stage.now_s + 0.1

        assert stage.judge(1) == []
        assert stage.state() == (UNKNOWN, None)
        assert stage.holding() == set()
        assert stage.judge(3, lambda: calm(stage)) == [A]
        assert stage.state() == (UNCONGESTED, None)
        assert stage.holding() == {Condition.UNCONGESTED}
        assert stage.judge(20, lambda: calm(stage)) == []

        free_s, busy_s = stage.judgement().since_s, stage.now_s
        assert stage.judge(2, lambda: queued(stage)) == []
        assert stage.judge(1, lambda: queued(stage)) == [A]
        assert stage.state() == (CONGESTED, Cause.QUEUE_DELAY)
        assert stage.judgement().since_s == stage.now_s == pytest.approx(busy_s + 0.3)
        assert stage.holding() == {Condition.CONGESTED}
        assert stage.judge(20, lambda: queued(stage)) == []

        assert stage.judge(9, lambda: calm(stage)) == []
        assert stage.judge(1, lambda: calm(stage)) == [A]
        assert stage.holding() == {Condition.UNCONGESTED}
        explanation = stage.conditions.explain(A)
        assert explanation is not None
        assert explanation.source is Method.TCP
        assert [(each.state, each.cause, each.since_s) for each in explanation.changes] == [
            (UNCONGESTED, None, stage.now_s),
            (CONGESTED, Cause.QUEUE_DELAY, pytest.approx(busy_s + 0.3)),
            (UNCONGESTED, None, free_s),
            (UNKNOWN, None, begun_s),
        ]
        assert stage.state(B) == (UNKNOWN, None)

    def test_what_its_own_contract_holds_back_is_rate_limited_which_is_uncongested(self) -> None:
        stage = judging(A)
        stage.conditions.watch(A, HOST)

        def held() -> None:
            stage.acknowledge(A, 100, rtt_us=61_000)
            stage.counted[1]["delayed_packets"] += 100
            stage.counted[1]["delay_ns"] += 100 * 50_000_000

        stage.judge(30, held)
        assert stage.state() == (RATE_LIMITED, Cause.CONTRACT)
        assert stage.holding() == {Condition.UNCONGESTED}

    def test_a_flow_that_is_silent_for_long_is_unknown_again(self) -> None:
        stage = judging(A)
        stage.judge(4, lambda: calm(stage))
        assert stage.state() == (UNCONGESTED, None)
        assert stage.judge(99) == []
        assert stage.judge(2) == [A]
        assert stage.state() == (UNKNOWN, None)

    def test_how_many_flows_are_in_each_state(self) -> None:
        stage = judging(A, B, C)
        assert stage.conditions.census() == {(UNKNOWN, None): 3}
        stage.judge(4, lambda: calm(stage))
        stage.judge(1, lambda: calm(stage, B))
        stage.judge(3, lambda: queued(stage, B))
        late = flow_id(4, 1)
        stage.conditions.begin(late, udp(9), None)
        assert stage.conditions.census() == {
            (UNCONGESTED, None): 1,
            (CONGESTED, Cause.QUEUE_DELAY): 1,
            (UNKNOWN, None): 2,
        }
        stage.conditions.end(late)
        stage.conditions.end(B)
        assert stage.conditions.census() == {(UNCONGESTED, None): 1, (UNKNOWN, None): 1}


class TestBeginningsAndEnds:
    def test_a_flow_is_judged_from_its_beginning_to_its_end(self) -> None:
        stage = PathsStage()
        assert stage.conditions.explain(A) is None
        stage.conditions.begin(A, tcp(7), None)
        begun_s = stage.now_s
        explanation = stage.conditions.explain(A)
        assert explanation is not None
        assert (explanation.source, explanation.changes) == (None, (Judgement(since_s=begun_s),))
        assert stage.conditions.facts(A) == tcp(7)
        stage.judge(4, lambda: calm(stage))
        assert stage.state() == (UNCONGESTED, None)
        stage.conditions.end(A)
        assert stage.conditions.explain(A) is None
        assert stage.conditions.facts(A) is None
        assert stage.judge(3, lambda: queued(stage)) == []

    def test_the_next_flow_in_its_slot_begins_anew_at_once(self) -> None:
        stage = judging(A)
        stage.judge(4, lambda: calm(stage))
        stage.judge(3, lambda: queued(stage))
        heir = flow_id(1, 2)
        stage.conditions.end(A)
        stage.counted[1] = 0
        stage.conditions.begin(heir, tcp(8), HOST)
        stage.conditions.end(A)  # no flow any more: not the one that is there now
        assert stage.conditions.explain(A) is None
        assert stage.state(heir) == (UNKNOWN, None)
        assert stage.judge(2, lambda: calm(stage)) == []
        assert stage.judge(2, lambda: calm(stage)) == [heir]
        explanation = stage.conditions.explain(heir)
        assert explanation is not None
        assert [each.state for each in explanation.changes] == [UNCONGESTED, UNKNOWN]

    def test_the_end_of_a_flow_that_never_began_changes_nothing(self) -> None:
        stage = judging(A)
        stage.conditions.end(B)
        assert stage.judge(4, lambda: calm(stage)) == [A]

    def test_a_flow_of_several_sockets_is_not_judged(self) -> None:
        """Nor reported on: whose packets the numbers are about cannot be told."""
        stage = judging(A)
        stage.judge(4, lambda: calm(stage))
        stage.conditions.end(A)  # a second socket has joined
        with pytest.raises(NotSupported) as refusal:
            stage.conditions.report(A, PathReport(loss=0.5))
        assert refusal.value.hint == "it has several sockets, or one that listens"
        stage.conditions.offer(A, method=Method.PROBE, rtt_us=90_000, sent=10, lost=5)
        assert stage.judge(5, lambda: queued(stage)) == []

    def test_counters_are_those_of_the_flows_asked_about_in_their_order(self) -> None:
        stage = judging(A, B, C)
        stage.send(B, 3)
        stage.send(C, 2)
        assert stage.conditions.signals([C, B])["packets"].tolist() == [2, 3]
        assert stage.conditions.signals([])["packets"].tolist() == []

    def test_one_that_lives_between_two_steps_costs_the_detector_nothing(self) -> None:
        class Counting(Detector):
            calls = 0

            def begin(self, slot: int, now_s: float) -> None:
                self.calls += 1
                super().begin(slot, now_s)

            def end(self, slot: int) -> None:
                self.calls += 1
                super().end(slot)

        stage = PathsStage()
        detector = Counting(Thresholds(), SLOTS)
        conditions = JudgedFlows(detector, lambda slots: stage.counted[slots], stage.paths, stage.clock)
        for generation in range(1, 1000):
            flow = flow_id(generation % SLOTS or 1, generation)
            conditions.begin(flow, udp(generation), None)
            conditions.end(flow)
        conditions.step(stage.now_s)
        assert detector.calls == 0
        assert conditions.census() == {}


class TestWaiting:
    def test_somebody_who_waits_makes_the_host_be_measured(self) -> None:
        stage = judging(A, B)
        assert (stage.conditions.watching, stage.way().watchers) == (0, 0)
        stage.conditions.watch(A, HOST)
        stage.conditions.watch(B, HOST)
        assert (stage.conditions.watching, stage.way().watchers) == (2, 2)
        stage.conditions.unwatch(A)
        assert (stage.conditions.watching, stage.way().watchers) == (1, 1)
        stage.conditions.unwatch(B)
        assert (stage.conditions.watching, stage.way().watchers) == (0, 0)

    def test_news_of_a_host_are_news_for_the_flows_that_wait_for_it_alone(self) -> None:
        stage = judging(A, B, C)
        stage.use(C, host=OTHER_HOST)
        stage.conditions.watch(A, HOST)
        stage.conditions.watch(C, OTHER_HOST)
        stage.paths.news()
        stage.paths.changed(HOST)
        assert list(stage.conditions.changed()) == [A]
        assert list(stage.conditions.changed()) == []
        stage.conditions.unwatch(A)
        stage.paths.changed(HOST)
        assert list(stage.conditions.changed()) == []

    def test_a_flow_of_which_two_things_have_changed_is_told_of_once(self) -> None:
        stage = judging(A)
        stage.conditions.watch(A, HOST)
        stage.paths.changed(HOST)
        assert stage.judge(4, lambda: calm(stage)) == [A]

    def test_a_rate_is_available_where_the_path_has_it_to_give_and_the_flow_is_not_congested(self) -> None:
        stage = judging(A, B)
        stage.use(A, contract=rate(5))
        stage.use(B, contract=rate(8))
        stage.conditions.watch(A, HOST)

        def available(mbit: float) -> bool:
            return stage.conditions.holds(A, Condition.AVAILABLE, held=rate(5), wanted=rate(mbit))

        assert available(6) is False  # nothing is known
        stage.carry({A: 12e6, B: 8e6})
        assert (available(12), available(12.1)) == (True, False)
        stage.use(B, contract=rate(1))
        assert (available(19), available(19.1)) == (True, False)

        stage.judge(4, lambda: calm(stage))
        assert available(12) is True
        stage.judge(4, lambda: queued(stage))
        assert stage.state() == (CONGESTED, Cause.QUEUE_DELAY)
        assert available(12) is False

    def test_what_others_give_back_is_news(self) -> None:
        stage = judging(A, B)
        stage.conditions.watch(A, HOST)
        stage.paths.let_go(B, HOST)
        assert list(stage.conditions.changed()) == [A]


def test_explanations_name_the_numbers_of_the_last_windows() -> None:
    stage = judging(A)
    stage.judge(4, lambda: queued(stage))
    explanation = stage.conditions.explain(A)
    assert isinstance(explanation, Explanation)
    assert explanation.signals.keys() == explanation.judgement.evidence.keys()
    assert explanation.signals["rtt_us"] == 60_000.0
    assert explanation.signals["baseline_rtt_us"] == pytest.approx(10_000, rel=0.2)
