"""Operations: calls that were begun, their callbacks, their cancelling, and the thread that receives for them."""

import threading
import time
from functools import partial

import pytest

import qos2
from qos2.channel.transport import Channel
from qos2.channel.turns import Turn
from qos2.wire import calls
from unit.scripted_daemon import (
    PATIENCE_S,
    ScriptedDaemon,
    answer_rate,
    closing,
    expected,
    in_thread,
    rate_of,
)
from unit.server_stage import PEER, Stage, open_descriptors, udp

pytest_plugins = ("unit.channel_fixtures",)

CONGESTED = qos2.Condition.CONGESTED
VOICE = qos2.TrafficType.VOICE


def helpers() -> int:
    return sum(thread.name == "qos2-receiver" for thread in threading.enumerate())


def eventually_no_helper() -> bool:
    until_s = time.monotonic() + PATIENCE_S
    while helpers() and time.monotonic() < until_s:
        time.sleep(0.001)
    return helpers() == 0


# Results


def test_an_operation_ends_with_its_answer(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    operation = qos.begin(calls.rate(7))
    assert (operation.done, repr(operation)) == (False, "<Operation QueryRate>")
    with pytest.raises(qos2.TimedOut):
        operation.result(0.05)
    with pytest.raises(qos2.TimedOut):
        operation.result(0)
    answer_rate(daemon, daemon.receive("rate"))
    assert [operation.result(PATIENCE_S), operation.result()] == [expected(7)] * 2
    assert (operation.done, repr(operation)) == (True, "<Operation QueryRate done>")


def test_an_operation_ends_with_an_error_that_is_new_each_time(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    operation = qos2.Flow(qos, qos2.FlowId(7)).begin_notify(CONGESTED)
    daemon.refuse(daemon.receive("notify"), qos2.AlreadyExists)
    raised = []
    for _ in range(2):
        with pytest.raises(qos2.AlreadyExists) as refusal:
            operation.result(PATIENCE_S)
        raised.append(refusal.value)
    assert raised[0] is not raised[1]


def test_any_number_of_threads_may_wait(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    operation = qos.begin(calls.rate(7))
    results = [in_thread(operation.result) for _ in range(5)]
    request = daemon.receive("rate")
    time.sleep(0.05)
    answer_rate(daemon, request)
    assert [result.result(PATIENCE_S) for result in results] == [expected(7)] * 5


@pytest.mark.parametrize("timeout", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(daemon: ScriptedDaemon, qos: qos2.Handle, timeout: float) -> None:
    operation = qos.begin(calls.rate(7))
    with pytest.raises(qos2.InvalidRequest, match="a timeout of"):
        operation.result(timeout)


def test_what_cannot_be_sent_is_not_begun(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    with pytest.raises(qos2.InvalidRequest, match="cannot be sent"):
        qos.begin(calls.start_tracking(object()))  # type: ignore[arg-type]  # no text is the test
    with pytest.raises(qos2.InvalidRequest, match="the request cannot be sent: Bad file descriptor"):
        qos.begin(calls.remove_socket(1), 2**30)
    assert daemon.is_silent()
    assert helpers() == 0


def test_where_no_thread_can_be_had_the_call_is_taken_back(
    daemon: ScriptedDaemon, qos: qos2.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(qos2.LimitExceeded, match="no thread"):
            qos.begin(calls.notify(7, CONGESTED, 0))
    notify, cancel = daemon.receive("notify"), daemon.receive("cancel")
    assert cancel["request"] == notify["id"]


# Callbacks


def test_callbacks_come_before_those_who_wait(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    order: list[str] = []
    going = threading.Event()
    operation = qos.begin(calls.rate(7))

    def first(done: qos2.Operation[qos2.FlowRate | None]) -> None:
        assert done is operation
        assert done.result(0) == expected(7)
        going.wait(PATIENCE_S)
        order.append("first")

    def wait() -> None:
        operation.result()
        order.append("result")

    operation.add_done_callback(first)
    operation.add_done_callback(lambda done: order.append("second"))
    waiting = in_thread(wait)
    request = daemon.receive("rate")
    time.sleep(0.1)
    answer_rate(daemon, request)
    time.sleep(0.1)
    assert order == []
    going.set()
    waiting.result(PATIENCE_S)
    assert order == ["first", "second", "result"]
    operation.add_done_callback(lambda done: order.append("at once"))
    assert order[3:] == ["at once"]


def test_a_callback_that_takes_its_time_holds_nobody_else_up(
    daemon: ScriptedDaemon, qos: qos2.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qos2.channel.transport.RECHECK_S", 3600.0)
    going = threading.Event()
    operation = qos2.Flow(qos, qos2.FlowId(7)).begin_notify(CONGESTED)
    operation.add_done_callback(lambda done: going.wait(PATIENCE_S))
    notify = daemon.receive("notify")
    other = rate_of(qos, 8)
    rate = daemon.receive("rate")
    time.sleep(0.05)
    waiting = in_thread(operation.result)  # the last to come, whose turn it is not any more
    time.sleep(0.05)
    daemon.answer(notify)
    time.sleep(0.05)
    answer_rate(daemon, rate)
    assert other.result(PATIENCE_S) == expected(8)
    assert not waiting.done()
    going.set()
    assert waiting.result(PATIENCE_S) is None


def test_a_callback_may_call(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    rates: list[qos2.FlowRate | None] = []
    called = threading.Event()

    def call(operation: qos2.Operation[None]) -> None:
        rates.append(qos2.Flow(qos, qos2.FlowId(8)).rate())
        again.append(qos2.Flow(qos, qos2.FlowId(7)).begin_notify(CONGESTED))
        called.set()

    again: list[qos2.Operation[None]] = []
    qos2.Flow(qos, qos2.FlowId(7)).begin_notify(CONGESTED).add_done_callback(call)
    daemon.answer(daemon.receive("notify"))
    answer_rate(daemon, daemon.receive("rate"))
    daemon.answer(daemon.receive("notify"))
    assert called.wait(PATIENCE_S)
    assert again[0].result(PATIENCE_S) is None
    assert rates == [expected(8)]


def test_a_callback_in_the_thread_of_another_call_may_call(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    """The thread that leads runs it: it is no leader then, so that it does not wait for itself."""
    leader = rate_of(qos, 1)
    request = daemon.receive("rate")
    threads: list[str] = []

    def call(operation: qos2.Operation[None]) -> None:
        threads.append(threading.current_thread().name)
        assert qos2.Flow(qos, qos2.FlowId(8)).rate() == expected(8)

    operation = qos2.Flow(qos, qos2.FlowId(7)).begin_notify(CONGESTED)
    operation.add_done_callback(call)
    daemon.answer(daemon.receive("notify"))
    answer_rate(daemon, daemon.receive("rate"))
    assert operation.result(PATIENCE_S) is None
    answer_rate(daemon, request)
    assert leader.result(PATIENCE_S) == expected(1)
    assert threads == ["test"]


def test_what_a_callback_raises_is_reported_and_disturbs_nobody(
    daemon: ScriptedDaemon, qos: qos2.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(repr(args.exc_value)))
    called = [threading.Event(), threading.Event()]

    def fail(error: BaseException, operation: qos2.Operation[None]) -> None:
        raise error

    operations = [qos.begin(calls.notify(flow, CONGESTED, 0)) for flow in (1, 2)]
    for operation, event in zip(operations, called, strict=True):
        operation.add_done_callback(partial(fail, ValueError("of a callback")))
        operation.add_done_callback(partial(fail, SystemExit("of a callback")))
        operation.add_done_callback(lambda done, event=event: event.set())  # type: ignore[misc]  # binds the loop's
    # Not by result(), so that the helper receives: what ends a thread is for that thread.
    for event in called:
        daemon.answer(daemon.receive("notify"))
        assert event.wait(PATIENCE_S)
    assert [operation.result(PATIENCE_S) for operation in operations] == [None, None]
    assert reported == ["ValueError('of a callback')", "SystemExit('of a callback')"] * 2


# Cancelling


def test_cancelling_ends_an_operation_at_the_daemon(stage: Stage) -> None:
    with qos2.Handle(stage.path) as qos, udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE, adaptive=True)
        for _ in range(3):
            operation = flow.begin_notify(CONGESTED)
            with pytest.raises(qos2.AlreadyExists):
                flow.notify(CONGESTED)
            operation.cancel()
            with pytest.raises(qos2.Cancelled) as cancelled:
                operation.result(PATIENCE_S)
            assert cancelled.value.win32 == 995
            with pytest.raises(qos2.InvalidRequest, match="has ended"):
                operation.cancel()
        fresh = flow.begin_fundamentals(fresh=True)
        fresh.cancel()
        with pytest.raises(qos2.Cancelled):
            fresh.result(PATIENCE_S)


def test_what_does_not_wait_cannot_be_cancelled(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    operation = qos.begin(calls.rate(7))
    request = daemon.receive("rate")
    cancelling = in_thread(operation.cancel)
    daemon.refuse(daemon.receive("cancel"), qos2.InvalidRequest)
    with pytest.raises(qos2.InvalidRequest, match="as the test wants"):
        cancelling.result(PATIENCE_S)
    answer_rate(daemon, request)
    assert operation.result(PATIENCE_S) == expected(7)


# Conditions and measurements, of the real server


def test_a_condition_ends_the_wait_for_it(stage: Stage) -> None:
    with qos2.Handle(stage.path) as qos, udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE, adaptive=True)
        congested, available = flow.begin_notify(CONGESTED), flow.begin_notify(qos2.Condition.AVAILABLE, 64_000)
        uncongested = in_thread(lambda: flow.notify(qos2.Condition.UNCONGESTED))
        stage.set_condition(flow.id, congested=True)
        assert congested.result(PATIENCE_S) is None
        assert not available.done
        stage.set_condition(flow.id, congested=False, free=64_000)
        assert available.result(PATIENCE_S) is None
        assert uncongested.result(PATIENCE_S) is None


def test_a_fresh_measurement_is_waited_for(stage: Stage) -> None:
    measured = qos2.FlowFundamentals(qos2.Bandwidth(10_000_000), qos2.Bandwidth(4_000_000), 1500)
    with qos2.Handle(stage.path) as qos, udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE, adaptive=True)
        with pytest.raises(qos2.NoData):
            flow.fundamentals()
        fresh = flow.begin_fundamentals(fresh=True)
        with pytest.raises(qos2.TimedOut):
            fresh.result(0.05)
        stage.measure(PEER[0], measured)
        assert fresh.result(PATIENCE_S) == flow.fundamentals() == measured


# The helper


def test_the_helper_ends_with_the_last_operation(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    for _ in range(3):
        operations = [qos.begin(calls.rate(flow)) for flow in (1, 2)]
        assert helpers() == 1
        for operation in operations:
            answer_rate(daemon, daemon.receive("rate"))
            operation.result(PATIENCE_S)
        assert eventually_no_helper()


def test_the_helper_ends_also_where_another_thread_takes_the_last_answer(
    daemon: ScriptedDaemon, qos: qos2.Handle, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, going = threading.Event(), threading.Event()
    take_turn = Channel._take_turn

    def late(channel: Channel, turn: Turn, until_s: float) -> None:
        if turn.pending is None:
            waits.set()
            going.wait(PATIENCE_S)
        take_turn(channel, turn, until_s)

    monkeypatch.setattr(Channel, "_take_turn", late)
    operation = qos.begin(calls.rate(7))
    assert waits.wait(PATIENCE_S)
    answer_rate(daemon, daemon.receive("rate"))
    assert operation.result(PATIENCE_S) == expected(7)
    going.set()
    assert eventually_no_helper()


def test_closing_leaves_no_thread_and_no_descriptor(daemon: ScriptedDaemon) -> None:
    before = open_descriptors()
    qos = daemon.open()
    operation = qos.begin(calls.notify(7, CONGESTED, 0))
    waiting = in_thread(operation.result)
    daemon.receive("notify")
    assert helpers() == 1
    closing(daemon, qos)
    assert helpers() == 0
    with pytest.raises(qos2.Cancelled):
        waiting.result(PATIENCE_S)
    daemon.hang_up()
    assert open_descriptors() == before


def test_a_handle_may_be_closed_by_a_callback(daemon: ScriptedDaemon) -> None:
    qos = daemon.open()
    closed = threading.Event()

    def close(operation: qos2.Operation[None]) -> None:
        qos.close()
        closed.set()

    operation = qos.begin(calls.notify(7, CONGESTED, 0))
    operation.add_done_callback(close)
    daemon.answer(daemon.receive("notify"))
    daemon.answer(daemon.receive("close_handle"))
    assert closed.wait(PATIENCE_S)
    assert operation.result(PATIENCE_S) is None
    assert eventually_no_helper()
