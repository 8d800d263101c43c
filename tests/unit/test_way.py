"""The way to one host: what is sent there, what single probes tell flows, and what reports add up to."""

from qos2.core.probes import ProbeKind, ProbePlan
from qos2.core.probing import CREDIT_BYTES, SINGLE_BYTES
from qos2.model import Dscp, FlowId, Method, PathReport, Quality, Statement
from qos2.paths.carriage import Carried
from qos2.paths.way import Sighting
from unit.paths_stage import (
    HELLO,
    HOST,
    MBIT,
    NOTHING,
    VIDEO,
    VOICE,
    A,
    B,
    C,
    PathsStage,
    numbers,
    outcome,
    qualities,
    rate,
)

MEASURED, LOWER_BOUND = Quality.MEASURED, Quality.LOWER_BOUND


class TestWhatIsProbed:
    def reflected(self, stage: PathsStage) -> None:
        stage.way().plan(stage.now_s, train=True)
        stage.way().outcome(outcome(HELLO, stage.now_s, answered=2))

    def test_a_train_once_a_reflector_answers_and_single_probes_while_one_is_under_way(self) -> None:
        stage = PathsStage()
        stage.use()
        self.reflected(stage)
        planned = stage.way().plan(stage.now_s, train=False)
        assert planned == (Dscp(0), ProbePlan(ProbeKind.SINGLE, 1, SINGLE_BYTES))
        planned = stage.way().plan(stage.now_s + 0.1, train=True)
        assert planned is not None
        assert planned[1].kind is ProbeKind.BURST

    def test_marked_as_the_flows_are_in_turn(self) -> None:
        stage = PathsStage()
        stage.paths.begin(HOST)
        for flow, dscp in ((A, VOICE), (B, VIDEO), (C, VOICE)):
            stage.paths.hold(flow, HOST, dscp, NOTHING)
        self.reflected(stage)
        marks = []
        for _ in range(4):
            stage.now_s += 1.0
            planned = stage.way().plan(stage.now_s, train=False)
            assert planned is not None
            marks.append(planned[0])
        assert marks == [VIDEO, VOICE, VIDEO, VOICE]

    def test_what_was_not_sent_costs_nothing_of_the_budget(self) -> None:
        stage = PathsStage()
        stage.use()
        self.reflected(stage)
        sent = 2 * SINGLE_BYTES
        for _ in range(1000):  # without capacity 125 bytes are earned meanwhile
            stage.now_s += 0.0001
            planned = stage.way().plan(stage.now_s, train=True)
            assert planned is not None
            stage.way().unsent(planned[1])
        trains = 0
        while (planned := stage.way().plan(stage.now_s, train=True)) is not None and planned[1].bytes > SINGLE_BYTES:
            sent += planned[1].bytes
            trains += 1
        assert trains > 10
        assert CREDIT_BYTES - 20 * 1400 < sent <= CREDIT_BYTES + 125

    def test_lost_probes_are_told_of_with_the_next_that_comes_back_to_flows_of_the_same_mark(self) -> None:
        stage = PathsStage()
        stage.use()
        single = ProbePlan(ProbeKind.SINGLE, 1, SINGLE_BYTES)
        way = stage.way()
        assert way.outcome(outcome(HELLO, 1000.0, answered=2)) == Sighting(20_000, 2, 2, 0)
        assert way.outcome(outcome(single, 1000.1, dscp=VOICE)) is None
        assert way.outcome(outcome(single, 1000.2, dscp=VOICE)) is None
        assert way.outcome(outcome(single, 1000.3, answered=1)) == Sighting(20_000, 1, 1, 0)
        assert way.outcome(outcome(single, 1000.4, answered=1, dscp=VOICE)) == Sighting(20_000, 1, 3, 2)
        assert way.outcome(outcome(single, 1000.5, answered=1, dscp=VOICE)) == Sighting(20_000, 1, 1, 0)

    def test_of_a_train_only_the_first_round_trip_tells_what_a_flow_meets(self) -> None:
        stage = PathsStage()
        stage.use()
        burst = ProbePlan(ProbeKind.BURST, 8, 1400)
        assert stage.way().outcome(outcome(burst, 1000.0, answered=5)) == Sighting(20_000, 1, 0, 0)
        assert stage.way().outcome(outcome(burst, 1000.1)) is None


class TestReports:
    def told(self, stage: PathsStage, mbit: float, *, seconds: float = 1.0, limited: bool = True) -> None:
        """A report of flow A."""
        report = PathReport(delivered_bytes=round(mbit * MBIT * seconds / 8))
        stage.way().reported(stage.now_s, A, seconds, report, limited=limited)

    def test_the_rate_of_a_lone_flow_is_what_the_path_carries(self) -> None:
        stage = PathsStage()
        stage.use(A, contract=rate(2))
        self.told(stage, 8)
        assert numbers(stage.paths.estimate(HOST)) == (8 * MBIT, 6 * MBIT, None)

    def test_the_rates_of_several_flows_are_added(self) -> None:
        stage = PathsStage()
        stage.use(A, B, contract=rate(5))
        for _ in range(4):
            stage.now_s += 0.5
            self.told(stage, 8)
            stage.now_s += 0.5
            report = PathReport(delivered_bytes=4 * MBIT // 8)
            stage.way().reported(stage.now_s, B, 1.0, report, limited=True)
        assert numbers(stage.paths.estimate(HOST)) == (12 * MBIT, 2 * MBIT, None)

    def test_time_that_several_flows_tell_of_counts_once(self) -> None:
        stage = PathsStage()
        stage.use(A, B)

        def half_seconds(mbit: float, *flows: FlowId) -> None:
            for flow in flows:
                stage.now_s += 0.5
                report = PathReport(delivered_bytes=round(mbit * MBIT / 8))
                stage.way().reported(stage.now_s, flow, 1.0, report, limited=True)

        half_seconds(6, A, B, A, B)
        assert numbers(stage.paths.estimate(HOST)) == (12 * MBIT, 12 * MBIT, None)
        half_seconds(4, A)
        # Of the last second half a one at 12, and half a one at 4 + 6 Mbit/s.
        assert numbers(stage.paths.estimate(HOST)) == (12 * MBIT, 11 * MBIT, None)
        half_seconds(4, B)
        assert numbers(stage.paths.estimate(HOST)) == (12 * MBIT, 9 * MBIT, None)

    def test_those_of_flows_that_do_not_report_are_what_they_send(self) -> None:
        stage = PathsStage()
        stage.use(A, B, contract=rate(5))
        stage.way().look(stage.now_s, {A: Carried(9e6, None, False), B: Carried(3e6, None, False)})
        self.told(stage, 8)
        assert numbers(stage.paths.estimate(HOST)) == (11 * MBIT, 1 * MBIT, None)

    def test_a_report_holds_until_the_next_is_overdue_and_then_what_is_sent_counts_again(self) -> None:
        stage = PathsStage()
        stage.use(A)
        self.told(stage, 8)
        for later_s, carried in ((1.0, 8e6), (2.0, 8e6), (2.1, 9e6)):
            stage.way().look(stage.now_s + later_s, {A: Carried(9e6, None, False)})
            assert stage.way().carried == carried

    def test_what_the_kernel_knows_of_tcp_counts_more_than_a_report(self) -> None:
        stage = PathsStage()
        stage.use(A)
        self.told(stage, 80)
        stage.way().look(stage.now_s, {A: Carried(9e6, 7e6, True)})
        assert stage.way().carried == 7e6

    def test_without_a_full_network_they_are_lower_bounds(self) -> None:
        stage = PathsStage()
        stage.use(A, contract=rate(2))
        self.told(stage, 8, limited=False)
        assert numbers(stage.paths.estimate(HOST)) == (None, None, None)
        assert qualities(stage.paths.estimate(HOST)) == {
            "bottleneck": (8 * MBIT, LOWER_BOUND),
            "available": (6 * MBIT, LOWER_BOUND),
        }

    def test_a_first_one_says_no_rate_and_a_flow_that_uses_the_host_no_more_only_its_round_trip(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.way().reported(stage.now_s, A, 0.0, PathReport(0.015, 0.1, 10**9), limited=True)
        assert numbers(stage.paths.estimate(HOST)) == (None, None, 15_000)
        stage.way().reported(stage.now_s, B, 1.0, PathReport(0.015, 0.1, 10**9), limited=True)
        assert numbers(stage.paths.estimate(HOST)) == (None, None, 15_000)
        estimate = stage.paths.estimate(HOST)
        assert estimate is not None
        assert estimate.statements == {"rtt": Statement(15_000, MEASURED, Method.REPORT, 0.0)}

    def test_they_end_a_wait_for_a_fresh_measurement(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.paths.refresh(HOST)
        stage.now_s += 1.0
        self.told(stage, 8)
        assert stage.way().refreshed(stage.now_s) is True
