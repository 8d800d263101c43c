"""What applications say of their flows, and what is said of flows, as messages: over the real server and service.

Datapath, paths and conditions are in memory. Every test also checks that no descriptor is left open (see staged).
"""

import json
import os
from typing import Any

import pytest

from qos2.core.history import HISTORY
from qos2.model import (
    Bandwidth,
    Cause,
    DeviceStatus,
    Explanation,
    FlowFundamentals,
    FlowState,
    Judgement,
    Method,
    PathReport,
    Quality,
    Shaper,
    Statement,
)
from qos2.wire import protocol
from unit.server_stage import PEER, VOICE, RawClient, Stage, add, refusal, udp, unprivileged

UNSAID: dict[str, Any] = {
    "result": "explanation",
    "changes": [{"state": "unknown", "cause": None, "ago_s": 0.0, "evidence": {}}],
    "source": None,
    "signals": {},
    "estimates": None,
    "device": None,
}


@pytest.mark.parametrize(
    ("fields", "report"),
    [
        ({"rtt_us": 20_500, "loss": 0.25, "delivered_bytes": 125_000}, PathReport(0.0205, 0.25, 125_000)),
        ({"rtt_us": 1}, PathReport(rtt_s=1e-6)),
        ({"rtt_us": 3_599_999_999}, PathReport(rtt_s=3599.999999)),
        ({"loss": 0}, PathReport(loss=0.0)),
        ({"loss": 1, "rtt_us": None}, PathReport(loss=1.0)),
        ({"delivered_bytes": 0}, PathReport(delivered_bytes=0)),
        ({"delivered_bytes": 2**63 - 1}, PathReport(delivered_bytes=2**63 - 1)),
    ],
)
def test_a_report_reaches_whoever_judges_the_flow(
    stage: Stage, client: RawClient, fields: dict[str, Any], report: PathReport
) -> None:
    with udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        assert client.ask(op="report", flow=flow, **fields) == {"result": "done"}
        assert stage.call(lambda: stage.conditions.reports) == [(flow, report)]


RTT_HINT = "more than 0 and less than 3600.0 s"
LOSS_HINT = "a share of what was sent, 0 to 1"


@pytest.mark.parametrize(
    ("fields", "message", "hint"),
    [
        ({}, "an empty report", "say at least one of rtt, loss and delivered"),
        ({"rtt_us": 0}, "a round trip time of 0.0 s", RTT_HINT),
        ({"rtt_us": -20_000, "loss": 0}, "a round trip time of -0.02 s", RTT_HINT),
        ({"rtt_us": 3_600_000_000}, "a round trip time of 3600.0 s", RTT_HINT),
        ({"loss": 1.01, "delivered_bytes": 5}, "a loss of 1.01", LOSS_HINT),
        ({"loss": -1}, "a loss of -1.0", LOSS_HINT),
        ({"delivered_bytes": -1}, "-1 bytes delivered", "those since the last report"),
    ],
)
def test_a_report_that_cannot_be_is_refused_in_words(
    stage: Stage, client: RawClient, fields: dict[str, Any], message: str, hint: str
) -> None:
    with udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        assert client.ask(op="report", flow=flow, **fields) == {
            "result": "error",
            "code": "invalid_request",
            "win32": 87,
            "message": message,
            "hint": hint,
        }
        assert stage.call(lambda: stage.conditions.reports) == []


@pytest.mark.parametrize("told", [b"NaN", b"Infinity", b"1e999", b'"0.5"', b"true", b"[0.5]"])
@pytest.mark.parametrize("field", [b"rtt_us", b"loss", b"delivered_bytes"])
def test_what_is_no_number_is_no_report(stage: Stage, client: RawClient, field: bytes, told: bytes) -> None:
    with udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        client.send(b'{"op":"report","id":7,"flow":%d,"%b":%b}' % (flow, field, told))
        assert refusal(client.receive()) == ("protocol_error", 87)
        assert stage.call(lambda: stage.conditions.reports) == []


def test_a_flow_that_nobody_judges_takes_no_reports_and_is_explained_as_unknown(
    stage: Stage, client: RawClient
) -> None:
    flow = client.ask(op="add_program", traffic_type=VOICE)["flow"]
    assert refusal(client.ask(op="report", flow=flow, loss=0)) == ("not_supported", 50)
    stage.clock_s = 7.5
    changes: list[dict[str, Any]] = [{"state": "unknown", "cause": None, "ago_s": 7.5, "evidence": {}}]
    assert client.ask(op="explain", flow=flow) == UNSAID | {"changes": changes}


def test_an_explanation_has_all_changes_their_evidence_and_the_path(stage: Stage, client: RawClient) -> None:
    known = FlowFundamentals(
        Bandwidth(10_000_000),
        rtt_us=900,
        statements={
            "bottleneck": Statement(10_000_000, Quality.MEASURED, Method.TRAIN, 0.5),
            "available": Statement(4_000_000, Quality.LOWER_BOUND, Method.TCP, 12.25),
        },
    )
    changes = (
        Judgement(FlowState.CONGESTED, Cause.QUEUE_DELAY, 90.0, {"queue_delay_ms": 41.5, "rtt_ms": 60.0}),
        Judgement(FlowState.RATE_LIMITED, Cause.CONTRACT, 80.0, {"delayed_packets": 3.0}),
        Judgement(FlowState.UNCONGESTED, None, 70.0, {}),
        Judgement(since_s=60.0),
    )
    with udp(PEER) as sock:
        flow = add(client, sock, adaptive=True)["flow"]
        stage.clock_s = 100.0
        stage.set_explanation(flow, Explanation(Method.REPORT, changes, {"loss": 0.0625}))
        stage.set_estimate(PEER[0], known)
        told = client.ask(op="explain", flow=flow)
        (listed,) = client.ask(op="list_flows", flow=flow)["flows"]
    assert told == {
        "result": "explanation",
        "changes": [
            {
                "state": "congested",
                "cause": "queue_delay",
                "ago_s": 10.0,
                "evidence": {"queue_delay_ms": 41.5, "rtt_ms": 60.0},
            },
            {"state": "rate_limited", "cause": "contract", "ago_s": 20.0, "evidence": {"delayed_packets": 3.0}},
            {"state": "uncongested", "cause": None, "ago_s": 30.0, "evidence": {}},
            {"state": "unknown", "cause": None, "ago_s": 40.0, "evidence": {}},
        ],
        "source": "report",
        "signals": {"loss": 0.0625},
        "estimates": {
            "bottleneck": 10_000_000,
            "available": None,
            "rtt_us": 900,
            "statements": {
                "bottleneck": {"value": 10_000_000, "quality": "measured", "method": "train", "age_s": 0.5},
                "available": {"value": 4_000_000, "quality": "lower_bound", "method": "tcp", "age_s": 12.25},
            },
        },
        "device": None,
    }
    present = ("congested", "queue_delay", 10.0, {"queue_delay_ms": 41.5, "rtt_ms": 60.0})
    assert tuple(listed[name] for name in ("state", "cause", "state_s", "evidence")) == present


#: Names are at most 15 bytes long, six each where they have to be escaped.
DEVICE = DeviceStatus("\x01" * 15, 2**31 - 1, 2**63, "clsact", Shaper.HTB, "the kernel has no fq " * 4, 2**20)


def test_the_longest_explanation_fits_a_message(stage: Stage, client: RawClient) -> None:
    evidence = {name: -1.2345678901234567e-300 for name in ("loss", "ce", "queue_delay_ms", "rtt_ms", "limit_ms", "x")}
    changes = (Judgement(FlowState.CONGESTED, Cause.QUEUE_DELAY, -1.2345678901234567e300, evidence),) * HISTORY
    with udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        stage.set_explanation(flow, Explanation(Method.REPORT, changes, evidence, DEVICE))
        client.send(b'{"op":"explain","flow":%d}' % flow)
        data = client.socket.recv(65536)
    assert json.loads(data)["result"] == "explanation"
    assert len(data) <= protocol.MAX_MESSAGE_BYTES


def test_flows_of_another_user_are_neither_reported_of_nor_explained(stage: Stage, client: RawClient) -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    with udp(PEER) as sock, unprivileged(), stage.connection() as stranger:
        flow = add(client, sock)["flow"]
        for op in ("report", "explain"):
            reply = stranger.ask(op=op, flow=flow, **({"loss": 0} if op == "report" else {}))
            assert refusal(reply) == ("no_such_flow", 1168)
            assert reply["hint"] == f"it has ended, or belongs to another {'process' if op == 'report' else 'user'}"
        assert stage.call(lambda: stage.conditions.reports) == []
