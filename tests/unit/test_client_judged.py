"""Reports, explanations and statements as applications have them, by both clients, over the real server and service.

Datapath, paths and conditions are in memory. Every test also checks that no descriptor is left open (see staged).
"""

import os
from decimal import Decimal
from fractions import Fraction
from functools import partial
from typing import Any

import numpy as np
import pytest

import qos2
import qos2.aio
from qos2.model import (
    Cause,
    DeviceStatus,
    Explanation,
    FlowState,
    Judgement,
    Method,
    PathReport,
    Quality,
    Shaper,
    Statement,
)
from qos2.wire import protocol
from unit.aio_stage import run
from unit.scripted_daemon import ScriptedDaemon, in_thread
from unit.server_stage import PEER, Stage, udp, unprivileged

pytest_plugins = ("unit.channel_fixtures",)

VOICE = qos2.TrafficType.VOICE
KNOWN = qos2.FlowFundamentals(
    qos2.Bandwidth(10_000_000),
    rtt_us=900,
    statements={
        "bottleneck": Statement(10_000_000, Quality.MEASURED, Method.TRAIN, 0.5),
        "available": Statement(4_000_000, Quality.LOWER_BOUND, Method.TCP, 61.0),
        "rtt": Statement(900, Quality.MEASURED, Method.PROBE, 0.0),
    },
)
BUSY = Judgement(FlowState.CONGESTED, Cause.LOSS, 90.0, {"loss": 0.25})
DEVICE = DeviceStatus("eth0", 2, 7, "tcx", Shaper.FQ, "fq is there", 1, speed_bps=10**9, backlog_bytes=3000)
EXPLANATION = Explanation(Method.TCP, (BUSY, Judgement(since_s=60.0)), {"loss": 0.125}, DEVICE)


def told(**fields: Any) -> protocol.Explanation:
    """The explanation of EXPLANATION ten seconds after it began to hold."""
    changes = [
        protocol.StateChange(state=FlowState.CONGESTED, cause=Cause.LOSS, ago_s=10.0, evidence={"loss": 0.25}),
        protocol.StateChange(state=FlowState.UNKNOWN, ago_s=40.0),
    ]
    return protocol.Explanation(changes=changes, source=Method.TCP, signals={"loss": 0.125}, device=DEVICE, **fields)


def unnumbered(explanation: protocol.Explanation) -> protocol.Explanation:
    """Without the number of its request, which is the channel's."""
    explanation.id = 0
    return explanation


def reports(stage: Stage) -> list[PathReport]:
    return [report for _, report in stage.call(lambda: stage.conditions.reports)]


def reported(stage: Stage, asynchronous: bool, said: list[dict[str, Any]]) -> list[qos2.QosError | None]:
    """What each of these reports of one flow came to, by one of the clients."""
    outcomes: list[qos2.QosError | None] = []

    async def main() -> None:
        async with qos2.aio.Handle(stage.path) as qos:
            flow = await qos.add_socket(sock, VOICE)
            for each in said:
                try:
                    await flow.report(**each)
                    outcomes.append(None)
                except qos2.QosError as error:
                    outcomes.append(error)

    with udp(PEER) as sock:
        if asynchronous:
            run(main)
            return outcomes
        with qos2.Handle(stage.path) as qos, qos.add_socket(sock, VOICE) as flow:
            for each in said:
                try:
                    flow.report(**each)
                    outcomes.append(None)
                except qos2.QosError as error:
                    outcomes.append(error)
    return outcomes


both_faces = pytest.mark.parametrize("asynchronous", [False, True], ids=["threads", "asyncio"])


@both_faces
def test_reports_arrive_in_the_units_of_the_model(stage: Stage, asynchronous: bool) -> None:
    said: list[dict[str, Any]] = [
        {"rtt": 0.0205, "loss": 0.25, "delivered": 125_000},
        {"rtt": 1},
        {"rtt": Fraction(1, 500)},
        {"rtt": np.float32(0.5), "loss": np.float64(0.5), "delivered": np.uint64(7)},
        {"loss": 0},
        {"loss": 1},
        {"delivered": 0},
        {"delivered": 2**63 - 1},
    ]
    assert reported(stage, asynchronous, said) == [None] * len(said)
    assert reports(stage) == [
        PathReport(0.0205, 0.25, 125_000),
        PathReport(rtt_s=1.0),
        PathReport(rtt_s=0.002),
        PathReport(0.5, 0.5, 7),
        PathReport(loss=0.0),
        PathReport(loss=1.0),
        PathReport(delivered_bytes=0),
        PathReport(delivered_bytes=2**63 - 1),
    ]


NAN, INFINITY = float("nan"), float("inf")
NUMBERS = "rtt in seconds, loss as a share of 0 to 1, delivered in whole bytes"
RTT, LOSS, DELIVERED = (
    "more than 0 and less than 3600.0 s",
    "a share of what was sent, 0 to 1",
    "those since the last report",
)
DOCUMENT = "see docs/protocol.md"


@both_faces
@pytest.mark.parametrize(
    ("said", "words", "hint"),
    [
        ({}, "an empty report", "say at least one of rtt, loss and delivered"),
        ({"rtt": -0.02}, "a round trip time of -0.02 s", RTT),
        ({"rtt": 0.0}, "a round trip time of 0.0 s", RTT),
        ({"rtt": 1e-9}, "a round trip time of 0.0 s", RTT),
        ({"rtt": 3600}, "a round trip time of 3600.0 s", RTT),
        ({"rtt": 20_000}, "a round trip time of 20000.0 s", RTT),
        ({"rtt": 1e300}, "Expected `int` <= 9223372036854775807 - at `$.rtt_us`", DOCUMENT),
        ({"rtt": NAN}, "not a report: cannot convert float NaN to integer", NUMBERS),
        ({"rtt": INFINITY}, "not a report: cannot convert float infinity to integer", NUMBERS),
        ({"rtt": "0.02"}, "not a report: can't multiply sequence by non-int", NUMBERS),
        ({"loss": 1.01}, "a loss of 1.01", LOSS),
        ({"loss": -0.01}, "a loss of -0.01", LOSS),
        ({"loss": 25}, "a loss of 25.0", LOSS),
        ({"loss": NAN}, "a loss of nan", LOSS),
        ({"loss": -INFINITY}, "a loss of -inf", LOSS),
        ({"loss": 10**400}, "not a report: int too large", NUMBERS),
        ({"loss": "0.5"}, "not a report: can't multiply sequence by non-int", NUMBERS),
        ({"loss": Decimal("0.5")}, "not a report: unsupported operand", NUMBERS),
        ({"delivered": -1}, "-1 bytes delivered", DELIVERED),
        ({"delivered": 2**63}, "Expected `int` <= 9223372036854775807 - at `$.delivered_bytes`", DOCUMENT),
        ({"delivered": 1.5}, "not a report: 'float' object cannot be interpreted as an integer", NUMBERS),
        ({"rtt": 0.02, "delivered": NAN}, "not a report: 'float' object cannot be interpreted", NUMBERS),
        ({"delivered": "5"}, "not a report: 'str' object cannot be interpreted as an integer", NUMBERS),
    ],
)
def test_a_report_that_cannot_be_is_refused_in_words_and_the_next_one_is_taken(
    stage: Stage, asynchronous: bool, said: dict[str, Any], words: str, hint: str
) -> None:
    refused, taken = reported(stage, asynchronous, [said, {"loss": 0.5}])
    assert isinstance(refused, qos2.InvalidRequest)
    assert words in refused.message
    assert refused.hint == hint
    assert taken is None
    assert reports(stage) == [PathReport(loss=0.5)]


def test_only_the_owner_of_a_living_flow_of_one_socket_reports(stage: Stage) -> None:
    with qos2.Handle(stage.path) as qos, udp(PEER) as sock, udp(PEER) as other:
        flow = qos.add_socket(sock, VOICE)
        with unprivileged(), qos2.Handle(stage.path) as stranger:
            foreign = qos2.Flow(stranger, flow.id)
            if os.geteuid() != os.getuid():  # else they are one user
                with pytest.raises(qos2.NoSuchFlow) as refusal:
                    foreign.report(rtt=0.02)
                assert refusal.value.hint == "it has ended, or belongs to another process"
        flow.add_socket(other)
        with pytest.raises(qos2.NotSupported) as several:
            flow.report(rtt=0.02)
        assert several.value.win32 == 50
        flow.close()
        with pytest.raises(qos2.NoSuchFlow):
            flow.report(rtt=0.02)
    with pytest.raises(qos2.InvalidHandle):
        flow.report(rtt=0.02)
    assert reports(stage) == []


# Explanations


def test_an_explanation_has_the_state_what_it_rests_on_and_what_was_before(stage: Stage) -> None:
    async def main() -> None:
        async with qos2.aio.Handle(stage.path) as other:
            assert unnumbered(await other.explain(flow.id)) == told(estimates=KNOWN)

    with qos2.Handle(stage.path) as qos, udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE, adaptive=True)
        stage.clock_s = 100.0
        stage.set_explanation(flow.id, EXPLANATION)
        stage.set_estimate(PEER[0], KNOWN)
        explanation = qos.explain(flow.id)
        assert unnumbered(explanation) == told(estimates=KNOWN)
        present = (explanation.state, explanation.cause, explanation.for_s, explanation.evidence)
        assert present == (FlowState.CONGESTED, Cause.LOSS, 10.0, {"loss": 0.25})
        details = qos.flow_details(flow.id)
        assert (details.state, details.cause, details.state_s, details.evidence) == present
        run(main)


def test_a_flow_that_is_not_adaptive_is_explained_without_its_path(stage: Stage) -> None:
    with qos2.Handle(stage.path) as qos, udp(PEER) as sock, qos.add_socket(sock, VOICE) as flow:
        stage.clock_s = 100.0
        stage.set_explanation(flow.id, EXPLANATION)
        stage.set_estimate(PEER[0], KNOWN)
        assert unnumbered(qos.explain(flow.id)) == told()


def test_of_a_program_nothing_is_said(stage: Stage) -> None:
    with qos2.Handle(stage.path) as qos, qos.add_program(VOICE) as flow:
        stage.clock_s = 7.0
        unknown = protocol.StateChange(state=FlowState.UNKNOWN, ago_s=7.0)
        assert unnumbered(qos.explain(flow.id)) == protocol.Explanation(changes=[unknown])
        with pytest.raises(qos2.NotSupported):
            flow.report(loss=0.5)


def test_what_is_not_there_is_not_explained(stage: Stage) -> None:
    async def main(flow: int) -> None:
        async with qos2.aio.Handle(stage.path) as qos:
            with pytest.raises(qos2.NoSuchFlow):
                await qos.explain(flow)

    with qos2.Handle(stage.path) as qos:
        with udp(PEER) as sock, qos.add_socket(sock, VOICE) as flow:
            if os.geteuid() == 0:
                with unprivileged(), qos2.Handle(stage.path) as stranger, pytest.raises(qos2.NoSuchFlow) as refusal:
                    stranger.explain(flow.id)
                assert refusal.value.hint == "it has ended, or belongs to another user"
        for number in (flow.id, 0, -1, 2**40):
            with pytest.raises(qos2.NoSuchFlow):
                qos.explain(number)
            run(partial(main, number))
        with pytest.raises(qos2.InvalidRequest):
            qos.explain("all")  # type: ignore[arg-type]  # what is no number is the test
    with pytest.raises(qos2.InvalidHandle):
        qos.explain(1)


def test_an_explanation_without_a_state_is_none(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    asking = in_thread(lambda: qos.explain(5))
    daemon.answer(daemon.receive("explain"), "explanation", changes=[])
    with pytest.raises(qos2.ProtocolError, match="no state in the explanation of flow 5"):
        asking.result(20)


# Statements


def test_estimates_come_with_how_they_are_known(stage: Stage) -> None:
    async def main() -> None:
        async with qos2.aio.Handle(stage.path) as other:
            assert await qos2.aio.Flow(other, flow.id).fundamentals() == KNOWN

    with qos2.Handle(stage.path) as qos, udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE, adaptive=True)
        stage.set_estimate(PEER[0], KNOWN)
        assert flow.fundamentals() == KNOWN
        run(main)
        fresh = flow.begin_fundamentals(fresh=True)
        qos.status()
        newer = qos2.FlowFundamentals(statements={"rtt": Statement(7, Quality.MEASURED, Method.REPORT, 0.0)})
        stage.measure(PEER[0], newer)
        assert fresh.result(20) == newer


def test_a_daemon_of_before_makes_no_statements(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    asking = in_thread(qos2.Flow(qos, qos2.FlowId(5)).fundamentals)
    daemon.answer(daemon.receive("fundamentals"), "fundamentals", bottleneck=8_000, available=None, rtt_us=900)
    assert asking.result(20) == qos2.FlowFundamentals(qos2.Bandwidth(8_000), rtt_us=900)


@pytest.mark.parametrize(
    "statement",
    [
        {"value": 1, "quality": "guessed", "method": "tcp", "age_s": 0.0},
        {"value": 1, "quality": "measured", "method": "tcp"},
        {"value": 0.5, "quality": "measured", "method": "tcp", "age_s": 0.0},
        None,
    ],
)
def test_a_statement_that_cannot_be_read_is_no_reply(daemon: ScriptedDaemon, qos: qos2.Handle, statement: Any) -> None:
    asking = in_thread(qos2.Flow(qos, qos2.FlowId(5)).fundamentals)
    daemon.answer(daemon.receive("fundamentals"), "fundamentals", statements={"rtt": statement})
    with pytest.raises(qos2.ProtocolError):
        asking.result(20)
