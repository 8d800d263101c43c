"""The synchronous channel: threads that share a connection, and how long they wait.

Against a scripted daemon, so that each order of events is the one that is meant.
"""

import select
import socket
import threading
import time
from functools import partial
from typing import Any

import pytest

import qos2
from qos2.wire import calls
from qos2.wire.connection import MAX_AHEAD
from unit.scripted_daemon import (
    PATIENCE_S,
    ScriptedDaemon,
    answer_rate,
    closing,
    expected,
    in_thread,
    rate_of,
    scripted,
    signals,
)
from unit.server_stage import Stage, udp

pytest_plugins = ("unit.channel_fixtures",)
pytestmark = pytest.mark.usefixtures("asleep")

CONGESTED = qos2.Condition.CONGESTED

VOICE = qos2.TrafficType.VOICE


# Replies find their calls


def test_replies_may_come_in_any_order(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    asked, requests = {}, {}
    for flow in range(1, 6):
        asked[flow] = rate_of(qos, flow)
        requests[flow] = daemon.receive("rate")
    for flow in (4, 1, 5, 2, 3):
        answer_rate(daemon, requests[flow])
        assert asked[flow].result(PATIENCE_S) == expected(flow)


def test_the_thread_that_leads_hands_over_when_its_own_reply_is_there(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    leader = rate_of(qos, 1)
    first = daemon.receive("rate")
    followers = {flow: rate_of(qos, flow) for flow in (2, 3)}
    others = {request["flow"]: request for request in (daemon.receive("rate"), daemon.receive("rate"))}
    answer_rate(daemon, first)
    assert leader.result(PATIENCE_S) == expected(1)
    for flow in (3, 2):
        answer_rate(daemon, others[flow])
        assert followers[flow].result(PATIENCE_S) == expected(flow)


def test_a_wait_without_end_does_not_hinder_other_calls(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    waiting = in_thread(lambda: qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED))
    notify = daemon.receive("notify")
    for flow in range(2, 20):
        asked = rate_of(qos, flow)
        answer_rate(daemon, daemon.receive("rate"))
        assert asked.result(PATIENCE_S) == expected(flow)
    assert not waiting.done()
    daemon.answer(notify)
    assert waiting.result(PATIENCE_S) is None


def test_many_threads_with_replies_in_turn_and_out_of_turn(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    def ask(number: int) -> list[qos2.FlowRate | None]:
        return [qos2.Flow(qos, qos2.FlowId(number * 100 + turn)).rate() for turn in range(1, 51)]

    asked = {number: in_thread(partial(ask, number)) for number in range(1, 9)}
    held: list[dict[str, Any]] = []
    for _ in range(8 * 50):
        held.append(daemon.receive("rate"))
        # As long as others may still ask, one in two waits for the next.
        if len(held) > 1 or held[0]["id"] % 2 or not readable(daemon):
            for request in reversed(held):
                answer_rate(daemon, request)
            held.clear()
    for number, future in asked.items():
        assert future.result(PATIENCE_S) == [expected(number * 100 + turn) for turn in range(1, 51)]


def readable(daemon: ScriptedDaemon) -> bool:
    assert daemon.connection is not None
    return bool(select.select([daemon.connection], [], [], 0)[0])


# Time


def test_a_daemon_that_does_not_answer_is_lost_for_all_threads(daemon: ScriptedDaemon) -> None:
    qos = daemon.open(timeout=0.2)
    began_s = time.monotonic()
    asked = [rate_of(qos, flow) for flow in (1, 2, 3)]
    waiting = in_thread(lambda: qos2.Flow(qos, qos2.FlowId(4)).notify(CONGESTED))
    begun = qos.begin(calls.rate(5))
    for each in asked:
        with pytest.raises(qos2.ServiceLost, match="does not answer"):
            each.result(PATIENCE_S)
    with pytest.raises(qos2.ServiceLost, match="does not answer"):
        waiting.result(PATIENCE_S)
    with pytest.raises(qos2.ServiceLost, match="does not answer"):
        begun.result(PATIENCE_S)
    assert 0.2 <= time.monotonic() - began_s < 5
    assert qos.closed
    with pytest.raises(qos2.ServiceLost, match="does not answer"):
        qos.status()
    qos.close()


def test_a_call_that_was_begun_is_overdue_without_a_thread_that_waits(daemon: ScriptedDaemon) -> None:
    qos = daemon.open(timeout=0.2)
    begun = qos.begin(calls.rate(1))
    done = threading.Event()
    begun.add_done_callback(lambda operation: done.set())
    assert done.wait(PATIENCE_S)
    with pytest.raises(qos2.ServiceLost, match="does not answer"):
        begun.result(0)
    qos.close()


def test_waiting_for_a_condition_takes_as_long_as_it_takes(daemon: ScriptedDaemon) -> None:
    qos = daemon.open(timeout=0.1)
    flow = qos2.Flow(qos, qos2.FlowId(1))
    waiting = in_thread(lambda: flow.notify(CONGESTED))
    fresh = in_thread(lambda: flow.fundamentals(fresh=True))
    requests = {request["op"]: request for request in (daemon.receive_any(), daemon.receive_any())}
    time.sleep(0.5)
    assert not waiting.done()
    assert not fresh.done()
    daemon.answer(requests["notify"])
    daemon.answer(requests["fundamentals"], "fundamentals", rtt_us=7)
    assert waiting.result(PATIENCE_S) is None
    assert fresh.result(PATIENCE_S) == qos2.FlowFundamentals(rtt_us=7)
    closing(daemon, qos)


def test_a_wait_of_limited_time_is_cancelled_at_the_daemon(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    flow = qos2.Flow(qos, qos2.FlowId(1))
    for _ in range(2):
        began_s = time.monotonic()
        with pytest.raises(qos2.TimedOut) as over:
            flow.notify(CONGESTED, timeout=0.1)
        assert over.value.win32 == 1460
        assert 0.1 <= time.monotonic() - began_s < 5
        notify = daemon.receive("notify")
        cancel = daemon.receive("cancel")
        assert cancel["request"] == notify["id"]
        # The late answers are nobody's.
        daemon.refuse(notify, qos2.Cancelled)
        daemon.answer(cancel)
    asked = rate_of(qos, 2)
    answer_rate(daemon, daemon.receive("rate"))
    assert asked.result(PATIENCE_S) == expected(2)


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused_and_nothing_is_sent(
    daemon: ScriptedDaemon, qos: qos2.Handle, timeout: float
) -> None:
    with pytest.raises(qos2.InvalidRequest, match="a timeout of"):
        qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED, timeout=timeout)
    assert daemon.is_silent()


def test_signals_do_not_prolong_the_time(daemon: ScriptedDaemon) -> None:
    qos = daemon.open(timeout=0.3)
    began_s = time.monotonic()
    with signals(lambda: None, 0.02, 0.02), pytest.raises(qos2.ServiceLost, match="does not answer"):
        qos.status()
    assert 0.3 <= time.monotonic() - began_s < 3
    qos.close()


# No room to send


def fill(daemon: ScriptedDaemon, qos: qos2.Handle) -> list[qos2.Operation[None]]:
    """Operations until the kernel takes no more for a daemon that does not read."""
    assert daemon.connection is not None
    operations: list[qos2.Operation[None]] = []
    filled = threading.Event()

    def begin() -> None:
        while not filled.is_set():
            operations.append(qos.begin(calls.notify(len(operations) + 1, CONGESTED, 0)))

    filling = in_thread(begin)
    count = -1
    while count < len(operations):
        count = len(operations)
        time.sleep(0.2)
    filled.set()
    for number in range(1, len(operations) + 2):
        request = daemon.receive("notify")
        assert request["flow"] == number
        daemon.answer(request)
    filling.result(PATIENCE_S)
    return operations


def test_what_the_kernel_has_no_room_for_is_sent_later(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    operations = fill(daemon, qos)
    assert len(operations) > 100
    assert [operation.result(PATIENCE_S) for operation in operations] == [None] * len(operations)


def test_no_more_is_sent_ahead_than_the_daemon_keeps_answers_for(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    count = 3 * MAX_AHEAD
    beginning = in_thread(lambda: [qos.begin(calls.rate(flow)) for flow in range(1, count + 1)])
    requests = [daemon.receive("rate") for _ in range(MAX_AHEAD)]
    assert daemon.is_silent()
    # What waits at the daemon does not count.
    waiting = in_thread(lambda: qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED))
    daemon.answer(daemon.receive("notify"))
    waiting.result(PATIENCE_S)
    for number in range(count):
        answer_rate(daemon, requests[number])
        if len(requests) < count:
            requests.append(daemon.receive("rate"))
    operations = beginning.result(PATIENCE_S)
    assert [each.result(PATIENCE_S) for each in operations] == [expected(flow) for flow in range(1, count + 1)]


def test_a_daemon_that_does_not_read_is_lost_in_time(daemon: ScriptedDaemon) -> None:
    qos = daemon.open(timeout=0.5)

    def begin() -> None:
        while True:
            qos.begin(calls.notify(1, CONGESTED, 0))

    began_s = time.monotonic()
    with pytest.raises(qos2.ServiceLost, match="does not answer"):
        begin()
    assert 0.5 <= time.monotonic() - began_s < 30
    qos.close()


# Connecting


def test_a_full_backlog_is_waited_for_in_time() -> None:
    with scripted(backlog=0) as daemon, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        other.connect(daemon.path)
        began_s = time.monotonic()
        with pytest.raises(qos2.ServiceUnavailable, match="does not answer"):
            qos2.Handle(daemon.path, timeout=0.2)
        assert 0.2 <= time.monotonic() - began_s < 5
        opening = in_thread(lambda: qos2.Handle(daemon.path))
        time.sleep(0.1)
        daemon.accept()
        daemon.hang_up()
        daemon.welcome()
        closing(daemon, opening.result(PATIENCE_S))


def test_a_daemon_that_accepts_and_is_silent_is_not_available(daemon: ScriptedDaemon) -> None:
    with pytest.raises(qos2.ServiceUnavailable, match="does not answer") as refusal:
        qos2.Handle(daemon.path, timeout=0.1)
    assert refusal.value.win32 == 1068


# Against the real server


def test_a_storm_of_threads(stage: Stage) -> None:
    with qos2.Handle(stage.path) as qos, udp(("192.0.2.9", 9)) as adaptive:
        waited = qos.add_socket(adaptive, VOICE, adaptive=True)

        def work(port: int) -> None:
            with udp(("192.0.2.7", port)) as sock:
                for turn in range(60):
                    with qos.add_socket(sock, VOICE) as flow:
                        assert qos.flow_details(flow.id).members == [f"udp 192.0.2.7:{port}"]
                    if port == 1:
                        with pytest.raises(qos2.TimedOut):
                            waited.notify(CONGESTED, timeout=0.001)
                    elif port == 2 and turn % 10 == 0:
                        waiting = waited.begin_notify(qos2.Condition.UNCONGESTED)
                        waiting.cancel()
                        with pytest.raises(qos2.Cancelled):
                            waiting.result(PATIENCE_S)

        for future in [in_thread(partial(work, port)) for port in range(1, 9)]:
            future.result(PATIENCE_S)
        assert [each.flow for each in qos.flows()] == [waited.id]
    assert stage.call(lambda: stage.service.flows) == 0
    assert not any(thread.name == "qos2-receiver" for thread in threading.enumerate())
