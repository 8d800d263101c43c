"""Messages about paths and congestion: whole values on the wire, and clients and daemons of before."""

import json
from typing import Any

import msgspec
import pytest

from qos2.errors import ProtocolError
from qos2.model import Cause, FlowFundamentals, FlowState, Method, Quality, Statement
from qos2.wire import calls, protocol

STATED = protocol.Fundamentals(
    id=3,
    bottleneck=10_000_000,
    rtt_us=900,
    statements={
        "bottleneck": Statement(10_000_000, Quality.MEASURED, Method.TRAIN, 0.5),
        "available": Statement(4_000_000, Quality.LOWER_BOUND, Method.TCP, 61.25),
        "rtt": Statement(900, Quality.MEASURED, Method.PROBE, 0.0),
    },
)
EXPLAINED = protocol.Explanation(
    id=4,
    changes=[
        protocol.StateChange(state=FlowState.CONGESTED, cause=Cause.CE, ago_s=0.25, evidence={"ce": 0.5}),
        protocol.StateChange(state=FlowState.UNKNOWN, ago_s=9.0),
    ],
    source=Method.PROBE,
    signals={"ce": 0.125},
    estimates=FlowFundamentals(rtt_us=900, statements={"rtt": Statement(900, Quality.MEASURED, Method.REPORT, 2.0)}),
)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (
            STATED,
            {
                "result": "fundamentals",
                "id": 3,
                "bottleneck": 10_000_000,
                "available": None,
                "rtt_us": 900,
                "statements": {
                    "bottleneck": {"value": 10_000_000, "quality": "measured", "method": "train", "age_s": 0.5},
                    "available": {"value": 4_000_000, "quality": "lower_bound", "method": "tcp", "age_s": 61.25},
                    "rtt": {"value": 900, "quality": "measured", "method": "probe", "age_s": 0.0},
                },
            },
        ),
        (
            EXPLAINED,
            {
                "result": "explanation",
                "id": 4,
                "changes": [
                    {"state": "congested", "cause": "ce", "ago_s": 0.25, "evidence": {"ce": 0.5}},
                    {"state": "unknown", "cause": None, "ago_s": 9.0, "evidence": {}},
                ],
                "source": "probe",
                "signals": {"ce": 0.125},
                "estimates": {
                    "bottleneck": None,
                    "available": None,
                    "rtt_us": 900,
                    "statements": {"rtt": {"value": 900, "quality": "measured", "method": "report", "age_s": 2.0}},
                },
                "device": None,
            },
        ),
    ],
)
def test_statements_and_explanations_travel_whole(message: protocol.Result, told: dict[str, Any]) -> None:
    data = protocol.encode(message)
    assert json.loads(data) == told
    assert protocol.decode_reply(data) == message


class FundamentalsOfBefore(msgspec.Struct, kw_only=True, tag_field="result", tag="fundamentals"):
    """The result as clients of version 0.1.0 know it."""

    id: int = 0
    bottleneck: int | None = None
    available: int | None = None
    rtt_us: int | None = None


def test_a_client_of_before_passes_over_statements_and_a_daemon_of_before_makes_none() -> None:
    before = FundamentalsOfBefore(id=3, bottleneck=10_000_000, rtt_us=900)
    assert msgspec.json.decode(protocol.encode(STATED), type=FundamentalsOfBefore) == before
    after = protocol.Fundamentals(id=3, bottleneck=10_000_000, rtt_us=900)
    assert protocol.decode_reply(msgspec.json.encode(before)) == after


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (b'{"result":"fundamentals","statements":{"rtt":{"value":1,"quality":"sure"}}}', "$.statements[...].quality"),
        (b'{"result":"fundamentals","statements":[]}', "$.statements"),
        (b'{"result":"explanation"}', "`changes`"),
        (b'{"result":"explanation","changes":[{"state":"busy","ago_s":0}]}', "$.changes[0].state"),
        (b'{"result":"explanation","changes":[{"state":"unknown"}]}', "`ago_s`"),
        (b'{"result":"explanation","changes":[],"signals":{"loss":null}}', "$.signals[...]"),
    ],
)
def test_a_statement_or_state_that_cannot_be_is_refused_with_where(data: bytes, where: str) -> None:
    with pytest.raises(ProtocolError) as refusal:
        protocol.decode_reply(data)
    assert where in refusal.value.message


@pytest.mark.parametrize(
    ("said", "request_"),
    [
        ((0.0205, 0.25, 7), protocol.Report(flow=5, rtt_us=20_500, loss=0.25, delivered_bytes=7)),
        ((None, None, None), protocol.Report(flow=5)),
        ((1e-7, 0, 0), protocol.Report(flow=5, rtt_us=0, loss=0.0, delivered_bytes=0)),
    ],
)
def test_a_report_travels_in_microseconds(said: tuple[Any, Any, Any], request_: protocol.Report) -> None:
    assert calls.report(5, *said).request == request_
