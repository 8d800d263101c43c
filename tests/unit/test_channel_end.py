"""How a synchronous channel ends: it is closed, the daemon goes, or a forked child has a copy of it."""

import gc
import os
import subprocess
import sys
import time

import pytest

import qos2
from qos2.wire import calls
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
from unit.server_stage import CONTROLPLANE, PEER, Stage, staged, udp

pytest_plugins = ("unit.channel_fixtures",)

CONGESTED = qos2.Condition.CONGESTED


# The end


def test_closing_waits_until_the_flows_have_ended(daemon: ScriptedDaemon) -> None:
    qos = daemon.open()
    closed = in_thread(qos.close)
    close = daemon.receive("close_handle")
    with pytest.raises(qos2.InvalidHandle, match="the handle is closed"):
        qos.status()
    second = in_thread(qos.close)
    time.sleep(0.1)
    assert not closed.done()
    assert not second.done()
    daemon.answer(close)
    assert closed.result(PATIENCE_S) is None
    assert second.result(PATIENCE_S) is None
    assert daemon.connection is not None
    assert daemon.connection.recv(1) == b""
    qos.close()


def test_closing_ends_what_is_under_way(daemon: ScriptedDaemon) -> None:
    qos = daemon.open()
    waiting = in_thread(lambda: qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED))
    notify = daemon.receive("notify")
    begun = qos.begin(calls.notify(2, CONGESTED, 0))
    daemon.receive("notify")
    closed = in_thread(qos.close)
    close = daemon.receive("close_handle")
    # One is answered as it should be, the other is not: it ends all the same.
    daemon.refuse(notify, qos2.Cancelled)
    with pytest.raises(qos2.Cancelled, match="as the test wants"):
        waiting.result(PATIENCE_S)
    daemon.answer(close)
    closed.result(PATIENCE_S)
    with pytest.raises(qos2.Cancelled, match="closed during the call") as cancelled:
        begun.result(PATIENCE_S)
    assert cancelled.value.win32 == 995


def test_closing_does_not_wait_for_ever(daemon: ScriptedDaemon) -> None:
    qos = daemon.open(timeout=0.2)
    waiting = in_thread(lambda: qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED))
    daemon.receive("notify")
    began_s = time.monotonic()
    qos.close()
    assert 0.2 <= time.monotonic() - began_s < 5
    with pytest.raises(qos2.ServiceLost):
        waiting.result(PATIENCE_S)
    with pytest.raises(qos2.InvalidHandle):
        qos.status()


def test_an_exception_during_closing_closes(daemon: ScriptedDaemon) -> None:
    qos = daemon.open()
    with signals(interrupt, 0.05), pytest.raises(Interrupted):
        qos.close()
    daemon.receive("close_handle")
    assert daemon.connection is not None
    assert daemon.connection.recv(1) == b""
    qos.close()


def test_a_daemon_that_goes_ends_what_is_under_way(daemon: ScriptedDaemon) -> None:
    qos = daemon.open()
    asked = [rate_of(qos, flow) for flow in (1, 2)]
    waiting = in_thread(lambda: qos2.Flow(qos, qos2.FlowId(3)).notify(CONGESTED))
    begun = qos.begin(calls.notify(4, CONGESTED, 0))
    requests = [daemon.receive_any() for _ in range(4)]
    # What it said before it went still counts.
    answered = next(request for request in requests if request["op"] == "rate")
    answer_rate(daemon, answered)
    daemon.hang_up()
    assert asked[answered["flow"] - 1].result(PATIENCE_S) == expected(answered["flow"])
    for call in (asked[2 - answered["flow"]], waiting, begun):
        with pytest.raises(qos2.ServiceLost, match="went away") as lost:
            call.result(PATIENCE_S)
        assert lost.value.win32 == 1164
    with pytest.raises(qos2.ServiceLost, match="went away"):
        qos.begin(calls.rate(1))
    qos.close()
    with pytest.raises(qos2.ServiceLost, match="went away"):
        qos.status()


@pytest.mark.parametrize("nonsense", [b"hello", b"\0", b'{"result":"done","id":99}', b'{"result":"done","id":0}'])
def test_a_daemon_that_talks_nonsense_is_given_up(daemon: ScriptedDaemon, nonsense: bytes) -> None:
    qos = daemon.open()
    waiting = in_thread(lambda: qos2.Flow(qos, qos2.FlowId(1)).notify(CONGESTED))
    daemon.receive("notify")
    asked = rate_of(qos, 2)
    daemon.receive("rate")
    daemon.say(nonsense)
    for call in (waiting, asked):
        with pytest.raises(qos2.ProtocolError):
            call.result(PATIENCE_S)
    with pytest.raises(qos2.ServiceLost):
        qos.status()
    qos.close()


def test_a_lone_call_sees_nonsense_and_last_words(daemon: ScriptedDaemon) -> None:
    for said, error in ((b"hello", qos2.ProtocolError), (LAST_WORDS, qos2.LimitExceeded)):
        qos = daemon.open()
        asked = rate_of(qos, 1)
        daemon.receive("rate")
        daemon.say(said)
        with pytest.raises(error):
            asked.result(PATIENCE_S)
        qos.close()
        daemon.hang_up()


LAST_WORDS = b'{"result":"error","id":0,"code":"limit_exceeded","win32":1450,"message":"full"}'


def test_a_daemon_that_went_away_does_not_kill_by_sigpipe() -> None:
    code = f"""
import signal, sys
sys.path.insert(0, {str(CONTROLPLANE)!r})
import qos2
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
qos = qos2.Handle()
print("open", flush=True)
sys.stdin.readline()
for _ in range(2):
    try:
        qos.status()
    except qos2.ServiceLost as lost:
        print(lost.code, flush=True)
"""
    with staged() as stage, stage.script(code) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "open\n"
        stage.call(stage.server.close)
        output, _ = process.communicate("go\n", timeout=60)
    assert (output, process.returncode) == ("service_lost\nservice_lost\n", 0)


def test_a_handle_that_nobody_holds_ends_without_the_garbage_collector(stage: Stage) -> None:
    gc.disable()
    try:
        qos = qos2.Handle(stage.path)
        with udp(PEER) as sock:
            flow = qos.add_socket(sock, qos2.TrafficType.VOICE)
        assert qos.begin(calls.rate(flow.id)).result(PATIENCE_S) is None
        qos._channel._helper.join(PATIENCE_S)
        with pytest.warns(ResourceWarning, match="unclosed"):
            del qos, flow
        while stage.call(lambda: stage.service.flows):
            os.sched_yield()
    finally:
        gc.enable()


# Processes

FORK = """
import os, sys, threading, time
import qos2
from qos2.wire import calls

def refused(call):
    try:
        call()
    except qos2.InvalidHandle as error:
        assert error.win32 == 6 and "belongs to the parent" in error.message, error
    else:
        raise AssertionError("not refused")

qos = qos2.Handle()
flow = qos2.Flow(qos, 1)
descriptors = len(os.listdir("/proc/self/fd"))
waiting = flow.begin_notify(qos2.Condition.CONGESTED)
called = []
waiting.add_done_callback(called.append)
thread = threading.Thread(target=lambda: flow.notify(qos2.Condition.UNCONGESTED))
thread.start()
held, release = threading.Event(), threading.Event()

def hold():
    with qos._channel._lock:
        held.set()
        release.wait()

holder = threading.Thread(target=hold)
holder.start()
held.wait()
pid = os.fork()
if pid == 0:
    code = 1
    try:
        assert len(os.listdir("/proc/self/fd")) == descriptors - 1
        for call in (flow.rate, qos.status, waiting.result, lambda: waiting.result(0),
                     lambda: qos.begin(calls.rate(1)), flow.begin_fundamentals):
            refused(call)
        try:
            waiting.cancel()
        except qos2.InvalidRequest:
            pass
        assert waiting.done and called == [] and qos.closed
        flow.close()
        qos.close()
        qos.close()
        assert threading.active_count() == 1
        code = 0
    finally:
        os._exit(code)
release.set()
holder.join()
_, status = os.waitpid(pid, 0)
print("child", os.waitstatus_to_exitcode(status), flush=True)
waiting.result()
thread.join()
print("parent", called == [waiting], flush=True)
qos.close()
print("closed", threading.active_count(), flush=True)
"""


def test_a_child_has_nothing_of_the_parents_even_where_locks_were_held(daemon: ScriptedDaemon) -> None:
    env = os.environ | {"QOS2_SOCKET": daemon.path, "PYTHONPATH": str(CONTROLPLANE)}
    with subprocess.Popen([sys.executable, "-c", FORK], env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            daemon.welcome()
            requests = [daemon.receive("notify"), daemon.receive("notify")]
            assert process.stdout is not None
            assert process.stdout.readline() == "child 0\n"
            assert daemon.is_silent()
            for request in requests:
                daemon.answer(request)
            assert process.stdout.readline() == "parent True\n"
            daemon.answer(daemon.receive("close_handle"))
            assert process.stdout.readline() == "closed 1\n"
        finally:
            process.kill()


def test_a_fork_in_a_handler_ends_the_call_of_the_child_alone(daemon: ScriptedDaemon) -> None:
    code = """
import os, signal
import qos2
qos = qos2.Handle()
children = []
signal.signal(signal.SIGALRM, lambda *_: children.append(os.fork()))
for call in (lambda: qos2.Flow(qos, 1).notify(qos2.Condition.CONGESTED), qos2.Flow(qos, 1).rate):
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        value = call()
    except qos2.InvalidHandle:
        os._exit(0 if children[-1] == 0 else 1)
    else:
        if children[-1] == 0:
            os._exit(2)
    print(value, os.waitstatus_to_exitcode(os.waitpid(children[-1], 0)[1]), flush=True)
"""
    env = os.environ | {"QOS2_SOCKET": daemon.path, "PYTHONPATH": str(CONTROLPLANE)}
    with subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            daemon.welcome()
            notify = daemon.receive("notify")
            time.sleep(0.4)
            daemon.answer(notify)
            rate = daemon.receive("rate")
            time.sleep(0.4)
            answer_rate(daemon, rate)
            output, _ = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
    assert output.splitlines() == ["None 0", f"{expected(1)} 0"]
