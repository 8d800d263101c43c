"""Flows of which only their application tells: what its reports make of them, and of their path."""

import pytest

from qos2.model import (
    Cause,
    Condition,
    FlowId,
    FlowState,
    Method,
    PathReport,
    Quality,
)
from unit.paths_stage import (
    HOST,
    MBIT,
    A,
    B,
    PathsStage,
    numbers,
    qualities,
    udp,
)

UNKNOWN, UNCONGESTED, RATE_LIMITED, CONGESTED = FlowState


class TestReports:
    """UDP: nothing but what its application says."""

    def reporting(self, *flows: FlowId) -> PathsStage:
        stage = PathsStage()
        stage.use(*(flows or (A,)))
        for flow in flows or (A,):
            stage.conditions.begin(flow, udp(flow), HOST)
            stage.conditions.watch(flow, HOST)
        stage.paths.news()
        return stage

    def test_losses_make_a_flow_congested_and_their_end_frees_it(self) -> None:
        stage = self.reporting()

        def report(loss: float) -> None:
            stage.send(A, 100)
            stage.conditions.report(A, PathReport(rtt_s=0.02, loss=loss))

        stage.judge(3, lambda: report(0.0))
        assert stage.state() == (UNCONGESTED, None)
        stage.judge(3, lambda: report(0.2))
        assert stage.state() == (CONGESTED, Cause.LOSS)
        assert stage.holding() == {Condition.CONGESTED}
        explanation = stage.conditions.explain(A)
        assert explanation is not None
        assert explanation.source is Method.REPORT
        assert explanation.judgement.evidence["loss"] == pytest.approx(60 / 600)
        stage.judge(40, lambda: report(0.0))
        assert stage.state() == (UNCONGESTED, None)

    def test_so_do_round_trips_that_have_grown(self) -> None:
        stage = self.reporting()
        for rtt_s in (0.02,) * 5 + (0.09,) * 5:
            stage.conditions.report(A, PathReport(rtt_s=rtt_s))
            stage.judge(1)
        assert stage.state() == (CONGESTED, Cause.QUEUE_DELAY)

    def test_a_share_lost_is_one_of_what_was_sent_since_the_last_report(self) -> None:
        stage = self.reporting()
        stage.send(A, 1000)
        stage.conditions.report(A, PathReport(loss=0.0))
        stage.judge(1)
        stage.send(A, 50)
        stage.conditions.report(A, PathReport(loss=0.1))
        stage.judge(1)
        explanation = stage.conditions.explain(A)
        assert explanation is not None
        assert explanation.signals["loss"] == pytest.approx(5 / 1050)

    def test_one_before_the_first_step_counts(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.conditions.begin(A, udp(1), HOST)
        stage.send(A, 100)
        stage.conditions.report(A, PathReport(rtt_s=0.02, loss=0.3))
        stage.judge(1)
        explanation = stage.conditions.explain(A)
        assert explanation is not None
        assert explanation.source is Method.REPORT
        assert (explanation.signals["loss"], explanation.signals["rtt_us"]) == (0.3, 20_000.0)

    def test_what_the_own_contract_drops_is_no_loss_of_the_network(self) -> None:
        stage = self.reporting()

        def report() -> None:
            stage.now_s += 0.9
            stage.send(A, 800)
            stage.counted[1]["dropped_packets"] += 200
            stage.conditions.report(A, PathReport(rtt_s=0.02, loss=0.2, delivered_bytes=MBIT))

        stage.judge(6, report)
        assert stage.state() == (RATE_LIMITED, Cause.CONTRACT)
        assert stage.holding() == {Condition.UNCONGESTED}
        assert numbers(stage.paths.estimate(HOST)) == (None, None, 20_000)
        assert qualities(stage.paths.estimate(HOST))["bottleneck"] == (8 * MBIT, Quality.LOWER_BOUND)

    def test_what_arrived_while_the_network_was_full_is_what_it_carries(self) -> None:
        stage = self.reporting()
        for _ in range(3):
            stage.now_s += 1.0
            stage.send(A, 1100)  # of 1,250 bytes: 11 Mbit/s
            stage.conditions.report(A, PathReport(loss=0.1, delivered_bytes=1_250_000))
        assert numbers(stage.paths.estimate(HOST)) == (10 * MBIT, 10 * MBIT, None)
        assert list(stage.conditions.changed()) == [A]

    def test_of_the_first_one_nobody_knows_for_how_long_it_speaks(self) -> None:
        stage = self.reporting()
        stage.send(A, 1100)
        stage.conditions.report(A, PathReport(rtt_s=0.02, loss=0.1, delivered_bytes=1_250_000))
        estimate = stage.paths.estimate(HOST)
        assert estimate is not None
        assert estimate.statements.keys() == {"rtt"}
        stage.now_s += 1.0
        stage.send(A, 1100)
        stage.conditions.report(A, PathReport(rtt_s=0.02, loss=0.1, delivered_bytes=1_250_000))
        assert numbers(stage.paths.estimate(HOST)) == (10 * MBIT, 10 * MBIT, 20_000)

    def test_the_flows_to_a_host_share_what_arrived(self) -> None:
        stage = self.reporting(A, B)
        for _ in range(4):
            for flow, packets in ((A, 550), (B, 220)):
                stage.now_s += 0.5
                stage.send(flow, packets)
                arrived = round(packets / 1.1) * 1250
                stage.conditions.report(flow, PathReport(loss=0.1, delivered_bytes=arrived))
        assert numbers(stage.paths.estimate(HOST)) == (7 * MBIT, 7 * MBIT, None)

    def test_no_more_can_have_arrived_than_was_sent(self) -> None:
        """Of what one application says others are told too."""
        stage = self.reporting()
        for _ in range(4):
            stage.now_s += 1.0
            stage.send(A, 100)
            stage.conditions.report(A, PathReport(loss=0.1, delivered_bytes=10**12))
        # What was under way at the last report may have arrived since.
        assert numbers(stage.paths.estimate(HOST)) == (2 * MBIT, 2 * MBIT, None)

    def test_of_a_flow_without_a_host_only_itself_is_judged(self) -> None:
        stage = PathsStage()
        stage.conditions.begin(A, udp(1), None)
        stage.judge(3, lambda: stage.conditions.report(A, PathReport(rtt_s=0.02)))
        assert stage.state() == (UNCONGESTED, None)
        assert stage.paths.news() == set()
