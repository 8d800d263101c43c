"""Notifications as the server counts them: once each, with the time from the signals to the reply, and nothing else.

The server, the service and the sockets are real; conditions are in memory, and dated by the test. Every test also
checks that no descriptor is left open (see staged).
"""

import json
import socket
import time
from typing import Any

from qos2.core.rules import Limits
from qos2.model import Bandwidth, Condition, FlowFundamentals, FlowId
from unit.server_stage import PEER, RawClient, Stage, add, refusal, staged, udp

#: So long before the reply the signals were read, as far as the test says; by then the test is over at any speed.
AGO_S = 1000.0
SLACK_S = 120.0


def waiting(client: RawClient, sock: socket.socket, *conditions: Condition, **fields: Any) -> int:
    """A new adaptive flow, and a pending wait for each condition, by the requests of these numbers."""
    flow = add(client, sock, adaptive=True)["flow"]
    for condition in conditions:
        request = {"id": 100 + condition, "op": "notify", "flow": flow, "condition": condition} | fields
        client.send(json.dumps(request).encode())
    assert client.ask(op="status")["result"] == "status"
    assert isinstance(flow, int)
    return flow


def counted(stage: Stage) -> list[Condition]:
    """The conditions of all notifications so far; the seconds of each are checked."""
    stage.settle()
    for _, seconds in stage.notified:
        assert AGO_S <= seconds < AGO_S + SLACK_S
    return [condition for condition, _ in stage.notified]


def ago() -> float:
    return time.monotonic() - AGO_S


def test_each_condition_is_counted_once_when_its_waiter_is_told(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = waiting(client, sock, Condition.CONGESTED, Condition.UNCONGESTED)
        stage.set_condition(flow, congested=None, signal_s=ago())
        assert counted(stage) == []
        stage.set_condition(flow, congested=True, signal_s=ago())
        assert client.receive() == {"id": 100, "result": "done"}
        assert counted(stage) == [Condition.CONGESTED]
        stage.set_condition(flow, congested=False, signal_s=ago())
        assert client.receive() == {"id": 101, "result": "done"}
        # Nobody waits any more.
        stage.set_condition(flow, congested=True, signal_s=ago())
        assert counted(stage) == [Condition.CONGESTED, Condition.UNCONGESTED]


def test_who_waits_for_room_is_counted_too(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = waiting(client, sock, Condition.AVAILABLE, bandwidth=64_000)
        stage.set_condition(flow, congested=False, free=63_999, signal_s=ago())
        assert counted(stage) == []
        stage.set_condition(flow, congested=False, free=64_000, signal_s=ago())
        assert client.receive() == {"id": 102, "result": "done"}
        assert counted(stage) == [Condition.AVAILABLE]


def test_several_at_once_are_counted_one_by_one(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock, stage.connection() as second, udp(("192.0.2.8", 5004)) as other:
        flows = [waiting(client, sock, Condition.CONGESTED), waiting(second, other, Condition.CONGESTED)]

        def congested() -> None:
            for flow in flows:
                stage.conditions.set(FlowId(flow), congested=True)
            stage.service.follow(ago())
            stage.server.deliver()

        stage.call(congested)
        assert [each.receive() for each in (client, second)] == [{"id": 100, "result": "done"}] * 2
        assert counted(stage) == [Condition.CONGESTED] * 2


def test_what_is_answered_at_once_is_no_notification(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = waiting(client, sock)
        stage.set_condition(flow, congested=True, signal_s=ago())
        assert client.ask(op="notify", flow=flow, condition=0) == {"result": "done"}
        assert counted(stage) == []


def test_what_no_signal_has_ended_is_no_notification(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = waiting(client, sock, Condition.AVAILABLE, bandwidth=64_000)
        client.send(json.dumps({"id": 7, "op": "set_rate", "flow": flow, "bandwidth": 64_000}).encode())
        assert [client.receive()["id"] for _ in range(2)] == [102, 7]
        assert counted(stage) == []


def test_a_measurement_is_no_notification(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = waiting(client, sock)
        client.send(json.dumps({"id": 7, "op": "fundamentals", "flow": flow, "fresh": True}).encode())
        client.ask(op="status")
        stage.measure(PEER[0], FlowFundamentals(Bandwidth(8_000)), signal_s=ago())
        assert client.receive()["bottleneck"] == 8_000
        assert counted(stage) == []


def test_what_is_cancelled_or_refused_is_no_notification(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = waiting(client, sock, Condition.CONGESTED, Condition.UNCONGESTED)
        assert refusal(client.ask(op="notify", flow=flow, condition=0)) == ("already_exists", 183)
        client.send(b'{"op":"cancel","id":7,"request":100}')
        assert [client.receive().get("code") for _ in range(2)] == ["cancelled", None]
        client.send(b'{"op":"remove_socket","id":8,"flow":%d}' % flow)
        assert [client.receive().get("code") for _ in range(2)] == ["cancelled", None]
        stage.call(lambda: stage.service.follow(ago()))
        assert counted(stage) == []


def test_who_has_gone_was_not_notified(stage: Stage) -> None:
    with stage.connection() as client, udp(PEER) as sock, udp(("192.0.2.8", 5004)) as other:
        flows = [waiting(client, sock, Condition.CONGESTED), waiting(client, other, Condition.UNCONGESTED)]

        def gone_before_it_is_told() -> None:
            for flow, congested in zip(flows, (True, False), strict=True):
                stage.conditions.set(FlowId(flow), congested=congested)
            stage.service.follow(ago())
            client.socket.close()
            stage.server.deliver()

        stage.call(gone_before_it_is_told)
        assert counted(stage) == []
        # Both waits were over, and are not kept for anybody.
        assert stage.call(lambda: (stage.service.pending, stage.server.connections)) == (0, 0)


def test_the_end_of_a_connection_notifies_nobody() -> None:
    with staged(limits=Limits(pending_per_handle=2)) as stage:
        with stage.connection() as client, udp(PEER) as sock:
            flow = waiting(client, sock, Condition.CONGESTED, Condition.UNCONGESTED)
            assert refusal(client.ask(op="notify", flow=flow, condition=2, bandwidth=8_000)) == ("limit_exceeded", 1450)
        stage.settle()
        assert counted(stage) == []
        assert [entry[:2] for entry in stage.observed].count(("notify", "cancelled")) == 2
