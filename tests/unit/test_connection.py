"""The client's end of a connection without a connection: numbers and replies, and calls without it:
what comes of a reply, and what is to be asked for when nobody wants it."""

import json
from typing import Any

import pytest

from qos2.errors import InvalidRequest, LimitExceeded, ProtocolError
from qos2.wire import calls, protocol
from qos2.wire.calls import Call
from qos2.wire.connection import Connection


def sent(call: Call[Any] | None) -> dict[str, Any] | None:
    """What a call would put on the wire, but for version and number."""
    if call is None:
        return None
    message: dict[str, Any] = json.loads(protocol.encode(call.request))
    return {field: value for field, value in message.items() if field not in {"v", "id"}}


def test_calls_are_numbered_from_one() -> None:
    connection = Connection()
    numbers = [json.loads(connection.send(call))["id"] for call in (calls.open_handle(), calls.rate(7))]
    assert numbers == [1, 2]


@pytest.mark.parametrize("flow", ["seven" * 4000, object()])
def test_what_cannot_be_a_message_is_not_numbered(flow: Any) -> None:
    connection = Connection()
    call = calls.rate(flow)
    with pytest.raises(InvalidRequest):
        connection.send(call)
    assert call.request.id == 0


def test_what_the_kernel_did_not_take_has_no_number() -> None:
    connection = Connection()
    call = calls.notify(7, 0, 0)
    connection.send(call)
    connection.withdraw(call)
    assert call.request.id == 0
    assert [json.loads(connection.send(call))["id"], call.request.id] == [2, 2]


def test_a_reply_is_one_to_a_number_that_was_given() -> None:
    connection = Connection()
    connection.send(calls.rate(7))
    reply = connection.receive(b'{"result":"done","id":1}')
    assert (type(reply), reply.id) == (protocol.Done, 1)
    for wrong in (b'{"result":"done","id":2}', b'{"result":"done","id":0}', b'{"result":"done","id":-1}', b"", b"[]"):
        with pytest.raises(ProtocolError):
            connection.receive(wrong)


def test_a_failure_without_a_number_is_about_the_connection() -> None:
    reply = Connection().receive(b'{"result":"error","id":0,"code":"limit_exceeded","win32":1450,"message":"full"}')
    assert isinstance(reply, protocol.Failure)
    assert (reply.id, reply.code) == (0, "limit_exceeded")


@pytest.mark.parametrize(
    ("call", "waits"),
    [
        (calls.notify(7, 0, 0), True),
        (calls.fundamentals(7, True), True),
        (calls.fundamentals(7, False), False),
        (calls.rate(7), False),
        (calls.add_socket(4, 0, None, False), False),
        (calls.close_handle(), False),
    ],
)
def test_what_waits_at_the_daemon_is_cancelled_there_when_it_is_given_up(call: Call[Any], waits: bool) -> None:
    connection = Connection()
    connection.send(calls.open_handle())
    connection.send(call)
    assert call.waits is waits
    assert sent(call.farewell()) == ({"op": "cancel", "request": 2} if waits else None)


ADDED = protocol.Added(id=1, flow=77)
REFUSED = protocol.Failure(id=1, code="limit_exceeded", win32=1450, message="full")


@pytest.mark.parametrize(
    ("call", "reply", "undoing"),
    [
        (calls.add_socket(4, 0, None, False), ADDED, {"op": "remove_socket", "flow": 77}),
        (calls.add_program(4), ADDED, {"op": "remove_socket", "flow": 77}),
        (calls.add_socket(4, 0, None, False), REFUSED, None),
        (calls.add_socket(0, 77, None, False), ADDED, None),
        (calls.rate(7), protocol.Rate(id=1, bandwidth=0, shaping=0, reason=0), None),
        (calls.notify(7, 0, 0), protocol.Done(id=1), None),
    ],
)
def test_a_flow_that_nobody_knows_of_is_ended(
    call: Call[Any], reply: calls.Reply, undoing: dict[str, Any] | None
) -> None:
    call.reply = reply
    assert sent(call.farewell()) == undoing


def test_a_call_has_the_value_of_its_reply() -> None:
    call = calls.add_program(4)
    call.reply = ADDED
    assert [call.outcome(), call.outcome()] == [77, 77]
    call.reply = REFUSED
    with pytest.raises(LimitExceeded, match="full"):
        call.outcome()
    for wrong in (protocol.Done(id=1), None):
        call.reply = wrong
        with pytest.raises(ProtocolError, match="a reply of kind"):
            call.outcome()
    impossible = calls.rate(7)
    impossible.reply = protocol.Rate(id=1, bandwidth=8000, shaping=99, reason=0)
    with pytest.raises(ProtocolError, match="cannot be"):
        impossible.outcome()


def ran(steps: calls.Steps[Any], *replies: calls.Reply) -> tuple[list[dict[str, Any] | None], Any]:
    """What calls in turn ask for, given these replies, and what comes of it."""
    asked = []
    answers = iter(replies)
    try:
        call = next(steps)
        while True:
            asked.append(sent(call))
            call.reply = next(answers)
            call = steps.send(call.outcome())
    except StopIteration as end:
        return asked, end.value


def test_lists_of_several_pages_are_asked_for_page_by_page() -> None:
    asked, found = ran(calls.all_flow_ids(), protocol.FlowIds(flows=[3, 1], more=True), protocol.FlowIds(flows=[2]))
    assert found == [3, 1, 2]
    assert asked == [{"op": "enumerate", "after": 0}, {"op": "enumerate", "after": 2}]


def test_a_status_of_several_pages_is_one_report() -> None:
    def page(device: str, more: bool) -> protocol.StatusReport:
        return protocol.StatusReport(
            server="1",
            uptime_s=2.5,
            handles=3,
            flows=4,
            max_flows=5,
            orphans=6,
            datapath={"devices": [device]},
            more=more,
        )

    asked, report = ran(calls.whole_status(), page("eth0", True), page("eth1", False))
    assert asked == [{"op": "status", "after": 0}, {"op": "status", "after": 1}]
    assert (report.datapath, report.more, report.max_flows) == ({"devices": ["eth0", "eth1"]}, False, 5)
