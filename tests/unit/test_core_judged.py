"""Which flows are judged, what Conditions and Paths are told of them, and what their owners may say and ask."""

import pytest

from qos2.core.rules import Deniable, Rules
from qos2.core.views import Explained
from qos2.errors import DeniedByPolicy, InvalidRequest, NoSuchFlow, NotSupported
from qos2.model import (
    Bandwidth,
    Cause,
    Dscp,
    Explanation,
    FlowFundamentals,
    FlowState,
    Judgement,
    Method,
    PathReport,
    RemoteHost,
)
from unit.core_stage import ALICE_TOO, BOB, HERE, OTHER_PEER, PEER, ROOT, Stage, tcp, udp

assert PEER.address is not None
REMOTE = RemoteHost(PEER.address, HERE)
HOST = "192.0.2.7"
REPORT = PathReport(rtt_s=0.02, loss=0.01, delivered_bytes=125_000)
BUSY = Judgement(FlowState.CONGESTED, Cause.LOSS, 990.0, {"loss": 0.2})
EXPLANATION = Explanation(Method.TCP, (BUSY, Judgement(since_s=900.0)), {"loss": 0.1})


class TestWhoIsJudged:
    def test_a_flow_of_one_socket_until_it_ends(self) -> None:
        stage = Stage()
        facts = tcp(1, peer=PEER)
        flow = stage.add(facts)
        assert stage.conditions.judged == {flow: (facts, None)}
        stage.remove(flow, facts)
        assert stage.conditions.judged == {}

    def test_an_adaptive_flow_with_its_host(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        assert stage.conditions.judged == {flow: (udp(1), REMOTE)}
        stage.service.close_handle(stage.handle)
        assert stage.conditions.judged == {}

    def test_no_flow_of_several_sockets(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.add(udp(1), OTHER_PEER, flow=flow)
        assert stage.conditions.judged == {flow: (udp(1), None)}
        stage.add(udp(2), PEER, flow=flow)
        assert stage.conditions.judged == {}
        stage.remove(flow, udp(2))
        assert stage.conditions.judged == {}
        stage.remove(flow)

    def test_no_listener_whose_connections_share_the_flow_and_no_program(self) -> None:
        stage = Stage()
        stage.add(tcp(1, listening=True))
        stage.service.add_program(stage.handle, 4)
        assert stage.conditions.judged == {}

    def test_a_flow_whose_path_cannot_be_measured_too(self) -> None:
        stage = Stage()
        stage.paths.set_off_link(HOST)
        flow = stage.add(tcp(1, peer=PEER), adaptive=True)
        assert stage.conditions.judged == {flow: (tcp(1, peer=PEER), REMOTE)}
        assert stage.paths.held == {}
        stage.remove(flow)


class TestWhatIsHeld:
    def test_paths_know_the_mark_and_the_contract_of_each_adaptive_flow(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        assert stage.paths.held == {flow: (REMOTE, None, Bandwidth(0))}
        stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        assert stage.paths.held == {flow: (REMOTE, Dscp(56), Bandwidth(2_000_000))}
        stage.service.set_traffic_type(stage.handle, flow, 1)
        assert stage.paths.held == {flow: (REMOTE, Dscp(8), Bandwidth(2_000_000))}
        stage.service.set_rate(stage.handle, flow, 0, 1, 0)
        assert stage.paths.held[flow][2] == 0
        stage.remove(flow)
        assert (stage.paths.held, stage.paths.begun) == ({}, set())

    def test_a_path_that_becomes_known_later_is_told_of_the_contract(self) -> None:
        stage = Stage()
        stage.paths.set_off_link(HOST)
        flow = stage.add(udp(1), PEER, adaptive=True)
        stage.service.set_rate(stage.handle, flow, 1_000_000, 1, 0)
        stage.paths.set_off_link(HOST, False)
        stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        assert stage.paths.held == {flow: (REMOTE, Dscp(56), Bandwidth(2_000_000))}


class TestReports:
    def test_what_an_application_says_reaches_its_flow(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.service.report(stage.handle, flow, REPORT)
        assert stage.conditions.reports == [(flow, REPORT)]

    @pytest.mark.parametrize(
        "report",
        [
            PathReport(),
            PathReport(rtt_s=0.0),
            PathReport(rtt_s=-1.0),
            PathReport(rtt_s=float("nan")),
            PathReport(rtt_s=3600.0),
            PathReport(loss=-0.1),
            PathReport(loss=1.1),
            PathReport(loss=float("nan")),
            PathReport(delivered_bytes=-1),
            PathReport(delivered_bytes=1 << 63),
        ],
    )
    def test_nonsense_is_refused(self, report: PathReport) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        with pytest.raises(InvalidRequest):
            stage.service.report(stage.handle, flow, report)
        assert stage.conditions.reports == []

    def test_a_flow_that_is_not_judged_has_no_use_for_it(self) -> None:
        stage = Stage()
        flow = stage.service.add_program(stage.handle, 4)
        with pytest.raises(NotSupported):
            stage.service.report(stage.handle, flow, REPORT)

    def test_only_the_owner_reports(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        for other in (ALICE_TOO, BOB, ROOT):
            with pytest.raises(NoSuchFlow):
                stage.service.report(stage.service.open_handle(other), flow, REPORT)

    def test_the_administrator_may_deny_it(self) -> None:
        stage = Stage(rules=Rules(deny=frozenset({Deniable.ESTIMATES})))
        flow = stage.add(udp(1), PEER)
        with pytest.raises(DeniedByPolicy):
            stage.service.report(stage.handle, flow, REPORT)


class TestExplanations:
    @pytest.fixture
    def stage(self) -> Stage:
        return Stage()

    def test_of_an_adaptive_flow_with_its_path(self, stage: Stage) -> None:
        flow = stage.add(udp(1), PEER, adaptive=True)
        estimate = FlowFundamentals(Bandwidth(10), Bandwidth(5), 7)
        stage.conditions.explanations[flow] = EXPLANATION
        stage.paths.set_estimate(HOST, estimate)
        details = stage.service.details(stage.handle, flow)
        assert stage.service.explain(stage.handle, flow) == Explained(1000.0, EXPLANATION, estimate, details)
        assert (details.judgement, details.judged_for_s) == (BUSY, 10.0)

    def test_of_a_flow_without_a_path_of_its_own(self, stage: Stage) -> None:
        flow = stage.add(tcp(1, peer=PEER))
        stage.conditions.explanations[flow] = EXPLANATION
        told = stage.service.explain(stage.handle, flow)
        assert (told.explanation, told.estimate) == (EXPLANATION, None)

    def test_of_a_flow_that_nothing_is_said_of(self, stage: Stage) -> None:
        flow = stage.service.add_program(stage.handle, 4)
        stage.now_s += 3
        told = stage.service.explain(stage.handle, flow)
        assert (told.explanation, told.estimate) == (None, None)
        assert (told.view.judgement, told.view.judged_for_s) == (Judgement(since_s=1000.0), 3.0)

    def test_of_an_unmeasurable_path(self, stage: Stage) -> None:
        stage.paths.set_off_link(HOST)
        flow = stage.add(udp(1), PEER, adaptive=True)
        assert stage.service.explain(stage.handle, flow).estimate is None

    def test_without_its_path_where_estimates_are_denied(self) -> None:
        stage = Stage(rules=Rules(deny=frozenset({Deniable.ESTIMATES})))
        flow = stage.add(udp(1), PEER, adaptive=True)
        stage.conditions.explanations[flow] = EXPLANATION
        stage.paths.set_estimate(HOST, FlowFundamentals(Bandwidth(10), Bandwidth(5), 7))
        told = stage.service.explain(stage.handle, flow)
        assert (told.explanation, told.estimate) == (EXPLANATION, None)

    def test_whoever_may_see_a_flow_may_ask(self, stage: Stage) -> None:
        flow = stage.add(udp(1), PEER)
        for other in (ALICE_TOO, ROOT):
            assert stage.service.explain(stage.service.open_handle(other), flow).view.flow == flow
        with pytest.raises(NoSuchFlow):
            stage.service.explain(stage.service.open_handle(BOB), flow)
