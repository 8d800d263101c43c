"""The duty of ten times a second: its order, what goes on where a part fails, and what users see of all of it."""

import logging
from collections import Counter

import pytest

from qos2.core.probing import CREDIT_BYTES
from qos2.model import (
    Cause,
    FlowId,
    FlowState,
    Method,
    Quality,
    RemoteHost,
    SocketFacts,
    Statement,
    slot_of,
)
from qos2.paths.observatory import LOOKS_PER_STEP
from unit.bottleneck import Bottleneck, Load
from unit.paths_stage import (
    ELSEWHERE,
    HERE,
    HOST,
    MBIT,
    OTHER_HOST,
    VIDEO,
    VOICE,
    A,
    B,
    PathsStage,
    TcpTraffic,
    numbers,
    qualities,
    rate,
    tcp,
    udp,
)


def judge(stage: PathsStage, flow: FlowId, facts: SocketFacts, *, host: RemoteHost = HOST) -> None:
    """An adaptive flow of one socket."""
    stage.use(flow, host=host)
    stage.conditions.begin(flow, facts, host)


class TestStep:
    def test_what_was_seen_is_heard_and_judged_before_anything_is_planned_on_it(self) -> None:
        stage = PathsStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        judge(stage, A, tcp(slot_of(A)))
        TcpTraffic(stage, A, 5)
        stage.run(0.1)
        assert stage.log == ["take", "signals", "open 192.0.2.7", "tcp", "signals", "send single"]
        stage.log.clear()
        stage.run(0.1)
        assert stage.log[:4] == ["take", "signals", "tcp", "signals"]
        assert "send burst" in stage.log[4:]  # as what was taken tells of a reflector

    def test_it_tells_the_time_of_the_signals(self) -> None:
        stage = PathsStage()
        stage.now_s = 1234.5
        assert stage.observatory.step() == 1234.5

    def test_more_hosts_than_one_step_can_look_at_are_taken_in_turn(self) -> None:
        stage = PathsStage()
        hosts = [RemoteHost(HOST.address, number) for number in range(2 * LOOKS_PER_STEP + 10)]
        for host in hosts:
            stage.paths.begin(host)
        for step in range(1, 3):
            stage.run(0.1)
            assert [host for host, _dscp, _plan in stage.prober.sent] == hosts[: step * LOOKS_PER_STEP]
        stage.run(0.1)
        assert [host for host, _dscp, _plan in stage.prober.sent] == hosts

    def test_when_there_are_fewer_none_is_passed_over(self) -> None:
        stage = PathsStage()
        hosts = [RemoteHost(HOST.address, number) for number in range(5 * LOOKS_PER_STEP)]
        for host in hosts:
            stage.paths.begin(host)
        stage.run(0.4)
        for host in hosts[LOOKS_PER_STEP + 1 :]:
            stage.paths.end(host)
        for host in hosts[: LOOKS_PER_STEP + 1]:
            stage.paths.end(host)
            stage.paths.begin(host)  # none has been asked for a reflector yet
        stage.prober.sent.clear()
        stage.run(0.2)
        assert {host for host, _dscp, _plan in stage.prober.sent} == set(hosts[: LOOKS_PER_STEP + 1])

    def test_probes_of_a_host_that_nobody_uses_any_more_are_counted_and_forgotten(self) -> None:
        stage = PathsStage()
        stage.use()
        stage.run(0.1)  # 500 ms without an answer
        stage.now_s += 0.5
        stage.paths.end(HOST)
        stage.run(0.1)
        assert stage.observatory.counters == Counter(outdated=1)
        assert stage.paths.hosts == 0

    def test_in_the_end_nothing_is_probed_or_asked(self) -> None:
        stage = PathsStage()
        judge(stage, A, tcp(slot_of(A)))
        stage.run(0.2)
        assert (stage.prober.open_hosts, stage.diagnosis.held) == ({HOST}, {HERE})
        stage.observatory.close()
        assert (stage.prober.open_hosts, stage.diagnosis.held) == (set(), set())


class TestFailures:
    def test_paths_are_measured_while_counters_cannot_be_read(self, caplog: pytest.LogCaptureFixture) -> None:
        stage = PathsStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        judge(stage, A, udp(slot_of(A)))
        stage.readable = False
        with caplog.at_level(logging.ERROR):
            stage.run(2.0)
        assert stage.observatory.counters == Counter(judge=20, look=20)
        told = "failed; nothing more is said until it has worked again"
        assert [each.getMessage() for each in caplog.records] == [f"judge {told}", f"look {told}"]
        estimate = stage.paths.estimate(HOST)
        assert estimate is not None
        assert estimate.bottleneck == pytest.approx(20 * MBIT, rel=0.01)

        stage.readable = True
        stage.run(1.0)
        assert stage.state(A) == (FlowState.UNCONGESTED, None)
        assert stage.observatory.counters == Counter(judge=20, look=20)
        stage.readable = False
        with caplog.at_level(logging.ERROR):
            stage.run(0.2)
        assert len(caplog.records) == 4

    def test_flows_are_judged_and_told_of_while_probes_cannot_be_heard(self) -> None:
        stage = PathsStage()
        judge(stage, A, tcp(slot_of(A)))
        TcpTraffic(stage, A, 20)
        stage.prober.broken = True
        stage.run(1.5)
        assert stage.observatory.counters == Counter(hear=15)
        assert stage.state(A) == (FlowState.UNCONGESTED, None)
        assert numbers(stage.paths.estimate(HOST)) == (20_040_000, 20_040_000, 12_000)

    def test_a_namespace_that_has_ended_does_not_hide_tcp_of_others(self) -> None:
        stage = PathsStage()
        gone = RemoteHost(HOST.address, ELSEWHERE)
        judge(stage, A, tcp(slot_of(A), host=gone), host=gone)
        judge(stage, B, tcp(slot_of(B)))
        TcpTraffic(stage, A, 20)
        TcpTraffic(stage, B, 20)
        stage.diagnosis.gone.add(ELSEWHERE)
        stage.run(1.5)
        assert stage.observatory.counters == Counter(tcp=15)
        assert numbers(stage.paths.estimate(HOST)) == (20_040_000, 20_040_000, 12_000)
        assert stage.paths.estimate(gone) is None

    def test_a_plan_that_the_prober_does_not_take_is_counted_and_costs_nothing(self) -> None:
        def spent(refused_s: float) -> int:
            stage = PathsStage()
            stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
            stage.use()
            stage.run(0.2)
            stage.prober.refusing = True
            stage.run(refused_s)
            assert stage.prober.refused >= refused_s * 10
            assert stage.observatory.counters["unsent"] == stage.prober.refused
            stage.prober.refusing = False
            stage.paths.estimate(HOST)  # somebody wants to know
            stage.run(5.0)
            return sum(plan.bytes for _host, _dscp, plan in stage.prober.sent)

        # Of the credit a refused train would take 8,400 bytes or more each time.
        assert spent(2.0) == pytest.approx(spent(0.0), abs=0.1 * CREDIT_BYTES)


class TestUsers:
    def test_gathering_begins_with_the_first_and_ends_with_the_last(self) -> None:
        stage = PathsStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        stage.run(0.5)
        assert stage.prober.sent == []
        judge(stage, A, tcp(slot_of(A)))
        judge(stage, B, tcp(slot_of(B), host=OTHER_HOST), host=OTHER_HOST)
        stage.run(2.0)
        assert stage.prober.open_hosts == {HOST, OTHER_HOST}
        assert {host for host, _dscp, _plan in stage.prober.sent} == {HOST, OTHER_HOST}

        stage.conditions.end(A)
        stage.paths.let_go(A, HOST)
        stage.paths.end(HOST)
        stage.prober.sent.clear()
        stage.run(0.1)
        assert (stage.prober.open_hosts, stage.diagnosis.held) == ({OTHER_HOST}, {HERE})
        assert "forget" not in stage.log
        stage.conditions.end(B)
        stage.paths.let_go(B, OTHER_HOST)
        stage.paths.end(OTHER_HOST)
        stage.run(0.1)
        assert (stage.prober.open_hosts, stage.diagnosis.held) == (set(), set())
        stage.run(5.0)
        assert {host for host, _dscp, _plan in stage.prober.sent} <= {OTHER_HOST}
        assert len(stage.prober.sent) <= 1

    def test_what_is_known_is_kept_sixty_seconds_for_the_next(self) -> None:
        stage = PathsStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        stage.use()
        stage.run(3.0)
        before = numbers(stage.paths.estimate(HOST))
        assert before is not None
        assert before[0] == pytest.approx(20 * MBIT, rel=0.01)
        stage.paths.end(HOST)
        stage.run(20.0)
        stage.paths.begin(HOST)
        assert numbers(stage.paths.estimate(HOST)) == before
        stage.paths.end(HOST)
        stage.run(60.1)
        stage.paths.begin(HOST)
        assert stage.paths.estimate(HOST) is None


class TestMeasurements:
    @pytest.mark.parametrize("load", [0.0, 0.5])
    def test_a_reflector_tells_bottleneck_and_then_available_within_two_seconds(self, load: float) -> None:
        stage = PathsStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT, load=load, pattern=Load.CBR)
        judge(stage, A, udp(slot_of(A)))
        stage.paths.hold(A, HOST, VOICE, rate(1))
        known: list[set[str]] = []
        for _ in range(20):
            stage.run(0.1)
            estimate = stage.paths.estimate(HOST)
            names = set() if estimate is None else estimate.statements.keys() - {"rtt"}
            if not known or names != known[-1]:
                known.append(set(names))
        assert known == [set(), {"bottleneck"}, {"bottleneck", "available"}]
        stage.run(3.0)
        estimate = stage.paths.estimate(HOST)
        assert estimate is not None
        assert estimate.bottleneck == pytest.approx(20 * MBIT, rel=0.05)
        assert estimate.available == pytest.approx((1 - load) * 20 * MBIT - MBIT, abs=2 * MBIT)
        assert {dscp for _host, dscp, _plan in stage.prober.sent[1:]} == {VOICE}

    def test_of_tcp_that_goes_silent_the_round_trip_grows_old(self) -> None:
        stage = PathsStage(probe_share=0.0)
        judge(stage, A, tcp(slot_of(A)))
        traffic = TcpTraffic(stage, A, 20)
        stage.run(2.0)
        last_s = stage.now_s
        traffic.mbit, traffic.busy = 0, False
        stage.run(5.0)
        estimate = stage.paths.estimate(HOST)
        assert estimate is not None
        assert estimate.statements["rtt"] == Statement(12_000, Quality.MEASURED, Method.TCP, stage.now_s - last_s)

    def test_what_is_acknowledged_at_once_when_a_hole_is_filled_is_no_wider_bottleneck(self) -> None:
        stage = PathsStage(probe_share=0.0)
        judge(stage, A, tcp(slot_of(A)))
        traffic = TcpTraffic(stage, A, 20)
        stage.run(2.0)
        for _ in range(3):
            traffic.hole = True
            stage.run(1.5)
            traffic.hole = False
            stage.run(0.5)
            assert numbers(stage.paths.estimate(HOST)) == (20_040_000, 20_040_000, 12_000)

    def test_what_a_flow_was_carried_at_ends_with_it_while_others_use_the_host(self) -> None:
        stage = PathsStage()
        judge(stage, A, tcp(slot_of(A)))
        TcpTraffic(stage, A, 20)
        stage.run(1.0)
        assert stage.way().carried == pytest.approx(20_040_000)
        stage.paths.let_go(A, HOST)
        stage.conditions.end(A)
        stage.run(0.1)
        assert stage.way().carried == 0.0

    def test_a_contract_that_drops_is_no_bottleneck(self) -> None:
        stage = PathsStage(probe_share=0.0)
        judge(stage, A, tcp(slot_of(A)))
        TcpTraffic(stage, A, 20)

        def drop() -> None:
            stage.counted[slot_of(A)]["dropped_packets"] += 1

        stage.traffic.append(drop)
        stage.run(2.0)
        assert qualities(stage.paths.estimate(HOST))["bottleneck"] == (20_040_000, Quality.LOWER_BOUND)

    def test_probes_tell_of_udp_with_the_same_mark_and_of_nothing_else(self) -> None:
        stage = PathsStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        judge(stage, A, udp(slot_of(A)))
        judge(stage, B, tcp(slot_of(B)))
        stage.conditions.watch(A, HOST)
        stage.run(3.0)
        assert stage.state(A) == (FlowState.UNCONGESTED, None)
        assert stage.state(B) == (FlowState.UNKNOWN, None)
        stage.prober.ways[HOST].load = 1.3
        stage.run(2.0)
        assert stage.state(A) == (FlowState.CONGESTED, Cause.PROBE)
        stage.prober.ways[HOST].load = 0.0
        stage.run(4.0)
        assert stage.state(A) == (FlowState.UNCONGESTED, None)
        assert stage.state(B) == (FlowState.UNKNOWN, None)

    def test_each_flow_is_judged_by_probes_that_are_marked_as_it_is(self) -> None:
        stage = PathsStage()
        voice, video = Bottleneck(20 * MBIT), Bottleneck(20 * MBIT)
        stage.prober.ways[HOST] = video
        stage.prober.ways_by_mark[HOST, VOICE] = voice  # has a queue of its own
        for flow, dscp in ((A, VOICE), (B, VIDEO)):
            judge(stage, flow, udp(slot_of(flow)))
            stage.paths.hold(flow, HOST, dscp, rate(0))
            stage.conditions.watch(flow, HOST)
        stage.run(3.0)
        video.load = 1.3
        stage.run(3.0)
        assert stage.state(A) == (FlowState.UNCONGESTED, None)
        assert stage.state(B) == (FlowState.CONGESTED, Cause.PROBE)
