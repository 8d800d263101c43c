"""Requests that wait, over the real server: each gets its one reply, late, and nobody else waits for it.

The server, the service and the sockets are real; datapath, paths and conditions are in memory. Every test
also checks that no descriptor is left open (see staged).
"""

import json
import socket
from collections import Counter
from typing import Any

import pytest

from qos2.core.rules import Deniable, Limits, Rules
from qos2.errors import NetworkBusy, Retry
from qos2.model import Bandwidth, FlowFundamentals, Method, Quality, Statement
from qos2.server import QUEUED_REPLIES
from unit.server_stage import PEER, RawClient, Stage, add, refusal, staged, udp, udp6_only

HOST = PEER[0]
KNOWN = FlowFundamentals(
    Bandwidth(10_000_000),
    rtt_us=900,
    statements={
        "bottleneck": Statement(10_000_000, Quality.MEASURED, Method.TRAIN, 0.5),
        "available": Statement(4_000_000, Quality.LOWER_BOUND, Method.TCP, 61.0),
        "rtt": Statement(900, Quality.MEASURED, Method.PROBE, 0.0),
    },
)
TOLD = {
    "result": "fundamentals",
    "bottleneck": 10_000_000,
    "available": None,
    "rtt_us": 900,
    "statements": {
        "bottleneck": {"value": 10_000_000, "quality": "measured", "method": "train", "age_s": 0.5},
        "available": {"value": 4_000_000, "quality": "lower_bound", "method": "tcp", "age_s": 61.0},
        "rtt": {"value": 900, "quality": "measured", "method": "probe", "age_s": 0.0},
    },
}


def adaptive(client: RawClient, sock: socket.socket) -> int:
    flow = add(client, sock, adaptive=True)["flow"]
    assert isinstance(flow, int)
    return flow


def post(client: RawClient, number: int, op: str, **fields: Any) -> None:
    """A request to which no reply is awaited yet."""
    client.send(json.dumps({"id": number, "op": op} | fields).encode())


def coded(reply: dict[str, Any]) -> tuple[int, str]:
    """Number, and result or code of the error."""
    return reply["id"], reply.get("code", reply["result"])


def observed(stage: Stage) -> Counter[tuple[str, str]]:
    stage.settle()
    return Counter(entry[:2] for entry in stage.observed)


# One reply each


def test_a_condition_that_holds_is_answered_at_once(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        stage.set_condition(flow, congested=True)
        assert client.ask(op="notify", flow=flow, condition=0) == {"result": "done"}


def test_a_wait_is_answered_when_its_condition_comes_and_the_connection_goes_on_meanwhile(
    stage: Stage, client: RawClient
) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=0)
        assert client.ask(op="status")["result"] == "status"
        stage.set_condition(flow, congested=False)
        assert client.ask(op="rate", flow=flow)["bandwidth"] == 0
        assert observed(stage)["notify", "ok"] == 0
        stage.set_condition(flow, congested=True)
        assert client.receive() == {"result": "done", "id": 70}
        stage.set_condition(flow, congested=False)
        stage.set_condition(flow, congested=True)
        assert client.ask(op="status")["result"] == "status"
        assert observed(stage)["notify", "ok"] == 1
        assert stage.call(lambda: stage.service.pending) == 0


def test_a_fresh_query_is_answered_with_the_new_measurement(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        assert refusal(client.ask(op="fundamentals", flow=flow)) == ("no_data", 232)
        post(client, 70, "fundamentals", flow=flow, fresh=True)
        post(client, 71, "fundamentals", flow=flow, fresh=True)
        client.ask(op="status")
        stage.measure(HOST, KNOWN)
        assert [client.receive(), client.receive()] == [TOLD | {"id": 70}, TOLD | {"id": 71}]
        assert client.ask(op="fundamentals", flow=flow) == TOLD
        post(client, 72, "fundamentals", flow=flow, fresh=True)
        client.ask(op="status")
        stage.measure(HOST, None)
        assert coded(client.receive()) == (72, "retry")
        assert observed(stage)["fundamentals", "ok"] == 3


def test_what_is_not_known_is_null(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        stage.set_estimate(HOST, FlowFundamentals(rtt_us=7))
        assert client.ask(op="fundamentals", flow=flow) == {
            "result": "fundamentals",
            "bottleneck": None,
            "available": None,
            "rtt_us": 7,
            "statements": {},
        }


def test_a_cancelled_request_is_answered_before_the_cancelling_one(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=1)
        post(client, 71, "cancel", request=70)
        post(client, 72, "cancel", request=70)
        assert [coded(client.receive()) for _ in range(3)] == [
            (70, "cancelled"),
            (71, "done"),
            (72, "invalid_request"),
        ]
        counts = observed(stage)
        assert (counts["notify", "cancelled"], counts["cancel", "ok"]) == (1, 1)


def test_the_time_that_is_observed_is_the_time_waited(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=0)
        client.ask(op="status")
        stage.set_condition(flow, congested=True)
        client.receive()
        stage.settle()
    seconds = {op: each for op, _, each in stage.observed}
    assert seconds["notify"] > seconds["status"]


def test_a_contract_that_ends_a_wait_is_answered_behind_it(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=2, bandwidth=64_000)
        post(client, 71, "set_rate", flow=flow, bandwidth=64_000)
        assert [coded(client.receive()) for _ in range(2)] == [(70, "done"), (71, "done")]


def test_the_end_of_a_flow_cancels_the_waits_of_all_connections_of_the_process(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock, stage.connection() as second:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=0)
        post(second, 70, "notify", flow=flow, condition=1)
        assert second.ask(op="status")["result"] == "status"
        post(client, 71, "remove_socket", flow=flow)
        assert [coded(client.receive()) for _ in range(2)] == [(70, "cancelled"), (71, "done")]
        assert coded(second.receive()) == (70, "cancelled")


def test_admission_is_told(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        stage.set_admission(HOST, NetworkBusy("full"))
        assert refusal(client.ask(op="set_rate", flow=flow, bandwidth=64_000)) == ("network_busy", 54)
        stage.set_admission(HOST, Retry("unknown"))
        assert refusal(client.ask(op="set_rate", flow=flow, bandwidth=64_000)) == ("retry", 1237)
        stage.set_admission(HOST, None)
        assert client.ask(op="set_rate", flow=flow, bandwidth=64_000) == {"result": "done"}


def test_a_flow_that_cannot_be_measured_says_why(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock, udp(("192.0.2.8", 5004)) as other:
        plain, lost = add(client, sock)["flow"], adaptive(client, other)
        far = adaptive(client, sock)
        stage.set_off_link(HOST)
        stage.set_unreachable("192.0.2.8")
        for flow, code in ((plain, "not_adaptive"), (far, "not_supported"), (lost, "host_unreachable")):
            assert refusal(client.ask(op="notify", flow=flow, condition=0))[0] == code
            assert refusal(client.ask(op="fundamentals", flow=flow, fresh=True))[0] == code
        assert refusal(add(client, other, adaptive=True)) == ("host_unreachable", 1232)


# Tracking


def test_a_client_is_tracked_from_start_to_stop_and_lingers_after_its_handle(stage: Stage, client: RawClient) -> None:
    assert refusal(client.ask(op="stop_tracking", address=HOST)) == ("no_such_flow", 1168)
    assert client.ask(op="start_tracking", address=HOST) == {"result": "done"}
    assert stage.call(lambda: [str(each) for each in stage.paths.begun]) == [HOST]
    with stage.connection() as second:
        assert second.ask(op="stop_tracking", address=HOST) == {"result": "done"}
        assert second.ask(op="start_tracking", address=HOST) == {"result": "done"}
    stage.settle()
    assert stage.call(lambda: [str(each) for each in stage.paths.begun]) == []
    stage.clock_s = 59.0
    stage.tick()
    assert client.ask(op="stop_tracking", address=HOST) == {"result": "done"}
    assert refusal(client.ask(op="stop_tracking", address=HOST)) == ("no_such_flow", 1168)


def test_a_host_that_cannot_be_tracked_is_refused(stage: Stage, client: RawClient) -> None:
    stage.set_off_link(HOST)
    stage.set_unreachable("192.0.2.8")
    assert refusal(client.ask(op="start_tracking", address=HOST)) == ("not_supported", 50)
    assert refusal(client.ask(op="start_tracking", address="192.0.2.8")) == ("host_unreachable", 1232)
    assert refusal(client.ask(op="start_tracking", address="::")) == ("invalid_request", 87)


# Closing


def test_closing_a_handle_ends_its_flows_and_answers_what_waits_before_it_is_done(
    stage: Stage, client: RawClient
) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=0)
        post(client, 71, "fundamentals", flow=flow, fresh=True)
        post(client, 72, "close_handle")
        assert [coded(client.receive()) for _ in range(3)] == [(70, "cancelled"), (71, "cancelled"), (72, "done")]
        assert stage.call(lambda: (stage.service.flows, stage.service.handles)) == (0, 0)
        assert stage.datapath.policies == {}
        assert stage.call(lambda: stage.server.connections) == 1


@pytest.mark.parametrize("op", ["status", "close_handle", "open_handle"])
def test_a_closed_handle_can_do_nothing_more(stage: Stage, op: str) -> None:
    with stage.connection() as client:
        assert client.ask(op="close_handle") == {"result": "done"}
        assert refusal(client.ask(op=op)) == ("invalid_handle", 6)
    stage.settle()
    assert stage.call(lambda: stage.server.connections) == 0


def test_a_handle_is_closed_only_after_it_was_opened(stage: Stage) -> None:
    with stage.connection(opened=False) as client:
        assert refusal(client.ask(op="close_handle")) == ("protocol_error", 87)


def test_the_end_of_a_connection_ends_its_waits_and_tells_others(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock, udp(("192.0.2.8", 5004)) as other:
        mine = adaptive(client, sock)
        with stage.connection() as second:
            flow = adaptive(second, other)
            post(second, 70, "notify", flow=flow, condition=0)
            post(second, 71, "notify", flow=mine, condition=0)
            post(client, 70, "notify", flow=flow, condition=1)
            client.ask(op="status")
            second.ask(op="status")
        assert coded(client.receive()) == (70, "cancelled")
        assert observed(stage)["notify", "cancelled"] == 3
        assert stage.call(lambda: (stage.service.pending, dict(stage.conditions.watched))) == (0, {})
        assert client.ask(op="status")["handles"] == 1
        assert stage.call(lambda: len(stage.server._by_handle)) == 1


def test_the_end_of_the_server_ends_all_waits() -> None:
    with staged() as stage, stage.connection() as client, stage.connection() as second, udp(PEER) as sock:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=0)
        post(second, 70, "notify", flow=flow, condition=1)
        client.ask(op="status")
        second.ask(op="status")
        stage.call(stage.server.close)
        assert observed(stage)["notify", "cancelled"] == 2
        assert stage.service.pending == 0
        assert (stage.paths.begun, stage.conditions.watched, stage.server._by_handle) == (set(), {}, {})


# Limits, and clients that behave badly


def test_waiting_requests_are_limited_per_handle() -> None:
    with staged(limits=Limits(pending_per_handle=1)) as stage, stage.connection() as client, udp(PEER) as sock:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=0)
        assert refusal(client.ask(op="notify", flow=flow, condition=1)) == ("limit_exceeded", 1450)
        assert refusal(client.ask(op="fundamentals", flow=flow, fresh=True)) == ("limit_exceeded", 1450)


def test_a_number_that_waits_is_refused_and_the_wait_goes_on(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = adaptive(client, sock)
        post(client, 70, "notify", flow=flow, condition=0)
        post(client, 70, "notify", flow=flow, condition=1)
        assert coded(client.receive()) == (70, "invalid_request")
        stage.set_condition(flow, congested=True)
        assert coded(client.receive()) == (70, "done")


def test_as_many_late_replies_as_may_wait_all_arrive_however_late_they_are_read(stage: Stage) -> None:
    count = Limits().pending_per_handle
    with stage.connection() as client, udp(PEER) as sock:
        flow = adaptive(client, sock)
        for number in range(100, 100 + count):
            post(client, number, "fundamentals", flow=flow, fresh=True)
        client.ask(op="status")
        stage.measure(HOST, KNOWN)
        kept = stage.call(lambda: sum(len(each.late) for each in stage.server._clients))
        assert kept > 4 * QUEUED_REPLIES
        # Ordinary ones have their own room behind them.
        for number in range(QUEUED_REPLIES):
            post(client, number, "stats", flow=flow)
        stage.settle()
        assert [coded(client.receive()) for _ in range(count)] == [(100 + n, "fundamentals") for n in range(count)]
        assert [coded(client.receive()) for _ in range(QUEUED_REPLIES)] == [(n, "stats") for n in range(QUEUED_REPLIES)]
        assert stage.call(lambda: dict(stage.server.refused)) == {}


def test_a_client_that_waits_again_and_again_and_never_reads_loses_its_connection(
    stage: Stage, client: RawClient
) -> None:
    with stage.connection() as silent, udp(PEER) as sock:
        flow = adaptive(silent, sock)
        for number in range(3 * Limits().pending_per_handle):
            try:
                post(silent, number, "notify", flow=flow, condition=number % 2)
            except ConnectionError:
                break
            stage.set_condition(flow, congested=number % 2 == 0)
        assert stage.call(lambda: dict(stage.server.refused)) == {"not_reading": 1}
    assert client.ask(op="status")["flows"] == 0


# What the administrator says


def test_denied_calls_say_so() -> None:
    rules = Rules(deny=frozenset({Deniable.ESTIMATES, Deniable.RATE}))
    with staged(rules=rules) as stage, stage.connection() as client, udp(PEER) as sock:
        flow = adaptive(client, sock)
        assert refusal(client.ask(op="notify", flow=flow, condition=0)) == ("denied_by_policy", 1260)
        assert refusal(client.ask(op="report", flow=flow, loss=0)) == ("denied_by_policy", 1260)
        assert refusal(client.ask(op="set_rate", flow=flow, bandwidth=64_000)) == ("denied_by_policy", 1260)
        assert client.ask(op="set_traffic_type", flow=flow, traffic_type=1) == {"result": "done"}


def test_strict_judges_the_address_as_it_was_written() -> None:
    with (
        staged(rules=Rules(strict=True)) as stage,
        stage.connection() as client,
        udp() as ipv4,
        udp(family=socket.AF_INET6) as dual,
        udp6_only() as ipv6,
    ):
        for sock, address, taken in (
            (ipv4, HOST, True),
            (ipv4, f"::ffff:{HOST}", False),
            (ipv4, "0.0.0.0", True),
            (dual, HOST, False),
            (dual, f"::ffff:{HOST}", False),
            (dual, "2001:db8::7", True),
            (ipv6, "2001:db8::7", True),
            (ipv6, "0.0.0.0", False),
        ):
            reply = add(client, sock, address=address, port=5004)
            assert (reply["result"] == "added") is taken, (sock, address)
