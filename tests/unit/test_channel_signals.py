"""Signals in calls of the synchronous client: what a handler raises is the application's, and harms nobody else."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

import qos2
from unit.scripted_daemon import (
    PATIENCE_S,
    Interrupted,
    ScriptedDaemon,
    answer_rate,
    expected,
    in_thread,
    interrupt,
    rate_of,
    signals,
)
from unit.server_stage import PEER, Stage, staged, udp

pytest_plugins = ("unit.channel_fixtures",)
pytestmark = pytest.mark.usefixtures("asleep")

CONGESTED = qos2.Condition.CONGESTED

VOICE = qos2.TrafficType.VOICE


def test_an_exception_of_a_signal_leaves_nothing_behind(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    flow = qos2.Flow(qos, qos2.FlowId(1))
    with signals(interrupt, 0.05), pytest.raises(Interrupted):
        flow.notify(CONGESTED)
    notify, cancel = daemon.receive("notify"), daemon.receive("cancel")
    assert cancel["request"] == notify["id"]
    with signals(interrupt, 0.05), pytest.raises(Interrupted), udp(PEER) as sock:
        qos.add_socket(sock, VOICE)
    add = daemon.receive("add_socket")
    assert daemon.is_silent()
    # Late: the flow that nobody knows of is ended.
    daemon.refuse(notify, qos2.Cancelled)
    daemon.answer(cancel)
    daemon.answer(add, "added", flow=77)
    asked = rate_of(qos, 2)
    requests = {request["op"]: request for request in (daemon.receive_any(), daemon.receive_any())}
    assert requests["remove_socket"]["flow"] == 77
    daemon.answer(requests["remove_socket"])
    answer_rate(daemon, requests["rate"])
    assert asked.result(PATIENCE_S) == expected(2)


def test_a_leader_that_is_interrupted_hands_over(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    followers: dict[int, Future[qos2.FlowRate | None]] = {}
    requests: dict[int, dict[str, Any]] = {}

    def follow() -> None:
        notify = daemon.receive("notify")
        for flow in (2, 3):
            followers[flow] = rate_of(qos, flow)
            requests[flow] = daemon.receive("rate")
        requests[1] = notify
        os.kill(os.getpid(), signal.SIGALRM)

    following = in_thread(follow)
    with signals(interrupt, 0), pytest.raises(Interrupted):
        qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED)
    following.result(PATIENCE_S)
    assert daemon.receive("cancel")["request"] == requests[1]["id"]
    for flow in (3, 2):
        answer_rate(daemon, requests[flow])
        assert followers[flow].result(PATIENCE_S) == expected(flow)


def test_a_timeout_error_of_an_application_is_its_own(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    def expire() -> None:
        raise TimeoutError("of the application")

    for call in (qos.status, lambda: qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED)):
        with signals(expire, 0.05), pytest.raises(TimeoutError, match="of the application"):
            call()
    assert not qos.closed


def test_no_exception_of_a_handler_is_swallowed_wherever_it_comes(stage: Stage) -> None:
    raised: list[int] = []
    caught: list[int] = []

    def expire() -> None:
        raised.append(1)
        raise TimeoutError("of the application")

    with qos2.Handle(stage.path) as qos, signals(expire, 0):
        for turn in range(600):
            try:
                signal.setitimer(signal.ITIMER_REAL, (turn % 30 + 1) * 10e-6)
                qos.status()
                signal.setitimer(signal.ITIMER_REAL, 0)
            except TimeoutError:
                caught.append(1)
        assert len(raised) > 50
        assert caught == raised
        assert qos.status().handles == 1


def test_signals_that_raise_nothing_are_not_noticed(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    taken: list[float] = []

    def answer() -> None:
        notify = daemon.receive("notify")
        time.sleep(0.5)
        daemon.answer(notify)

    answering = in_thread(answer)
    with signals(lambda: taken.append(time.monotonic()), 0.01, 0.01):
        qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED)
    answering.result(PATIENCE_S)
    assert len(taken) > 10


def test_a_call_in_a_handler_is_refused_where_it_would_hang(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    refused: list[str] = []

    def call() -> None:
        with pytest.raises(qos2.InvalidRequest) as refusal:
            qos.status()
        refused.append(refusal.value.message)
        daemon.answer(daemon.receive("notify"))

    with signals(call, 0.1):
        qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED)
    assert refused == ["a signal handler interrupted a call of this handle"]


@pytest.mark.parametrize(
    "call", [lambda qos: qos.status(), lambda qos: qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED)]
)
def test_a_handler_may_close_the_handle_whose_call_it_interrupts(
    daemon: ScriptedDaemon, call: Callable[[qos2.Handle], object]
) -> None:
    qos = daemon.open()
    with signals(qos.close, 0.1), pytest.raises(qos2.Cancelled, match="closed during the call"):
        call(qos)
    with pytest.raises(qos2.InvalidHandle):
        qos.status()


STORM = """
import signal, sys, threading
import qos2

class Interrupted(Exception):
    pass

def interrupt(*_):
    if armed:
        raise Interrupted

def work(port):
    import socket
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("192.0.2.7", port))
        while not over.is_set():
            with qos.add_socket(sock, qos2.TrafficType.VOICE) as flow:
                details = qos.flow_details(flow.id)
                assert details.members == [f"udp 192.0.2.7:{port}"], details
                assert flow.rate() is None
                rounds[port] += 1

armed = False
over = threading.Event()
interrupted = 0
rounds = dict.fromkeys((1, 2, 3), 0)
failures = []
threading.excepthook = lambda args: failures.append(repr(args.exc_value))
qos = qos2.Handle(timeout=5)
threads = [threading.Thread(target=work, args=(port,)) for port in rounds]
for thread in threads:
    thread.start()
signal.signal(signal.SIGALRM, interrupt)
signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
while interrupted < 1500:
    try:
        armed = True
        while True:
            qos.status()
    except Interrupted:
        armed = False
        interrupted += 1
signal.setitimer(signal.ITIMER_REAL, 0)
over.set()
for thread in threads:
    thread.join()
left = qos.status().flows
qos.close()
print(failures, left, all(count > 100 for count in rounds.values()), threading.active_count())
"""


def test_a_storm_of_exceptions_in_one_thread_loses_no_reply_of_the_others() -> None:
    with staged() as stage, stage.script(STORM) as process:
        output, _ = process.communicate(timeout=100)
    assert output == "[] 0 True 1\n"
