"""How an asyncio handle ends: the daemon is not there or goes, it is closed, or it is somebody else's."""

import asyncio
import time
from functools import partial

import pytest

import qos2
import qos2.aio
from qos2.wire.connection import MAX_AHEAD
from unit.aio_stage import asked, closing, opened, run
from unit.scripted_daemon import ScriptedDaemon, answer_rate, expected, in_thread, scripted
from unit.server_stage import PEER, Stage, staged, udp

pytest_plugins = ("unit.channel_fixtures",)

CONGESTED = qos2.Condition.CONGESTED
VOICE = qos2.TrafficType.VOICE


# The daemon is not there, hangs, talks nonsense, or goes


def test_without_a_daemon_the_error_says_what_to_do() -> None:
    async def main() -> None:
        with pytest.raises(qos2.ServiceUnavailable, match="no daemon at /nowhere") as refusal:
            await qos2.aio.Handle("/nowhere/qos2.sock")
        assert refusal.value.win32 == 1068

    run(main)


def test_a_silent_daemon_is_lost_in_time(daemon: ScriptedDaemon) -> None:
    async def main() -> None:
        with pytest.raises(qos2.ServiceUnavailable, match="does not answer"):
            await qos2.aio.Handle(daemon.path, timeout=0.1)
        daemon.accept()
        daemon.hang_up()
        qos = await opened(daemon, timeout=0.3)
        began_s = time.monotonic()
        flow = qos2.aio.Flow(qos, qos2.FlowId(7))
        waiting = asyncio.ensure_future(flow.notify(CONGESTED))
        for call in (qos.status(), waiting):
            with pytest.raises(qos2.ServiceLost, match="does not answer"):
                await call
        assert 0.3 <= time.monotonic() - began_s < 5
        assert qos.closed
        await qos.close()
        await flow.close()

    run(main)


def test_a_busy_loop_is_no_silent_daemon(daemon: ScriptedDaemon) -> None:
    async def main() -> None:
        qos = await opened(daemon, timeout=0.2)
        rate = asyncio.ensure_future(qos2.aio.Flow(qos, qos2.FlowId(7)).rate())
        answer_rate(daemon, await asked(daemon, "rate"))
        time.sleep(0.5)  # noqa: ASYNC251  # a loop that does something else for long is the test
        assert await rate == expected(7)
        await closing(daemon, qos)

    run(main)


def test_a_full_backlog_is_waited_for_in_time() -> None:
    async def main(daemon: ScriptedDaemon) -> None:
        other = asyncio.ensure_future(qos2.aio.Handle(daemon.path).__aenter__())
        await asyncio.sleep(0.01)
        with pytest.raises(qos2.ServiceUnavailable, match="does not answer"):
            await qos2.aio.Handle(daemon.path, timeout=0.1)
        waiting = asyncio.ensure_future(qos2.aio.Handle(daemon.path).__aenter__())
        await asyncio.sleep(0.05)
        for opening in (other, waiting):
            await asyncio.wrap_future(in_thread(daemon.welcome))
            await closing(daemon, await opening)
            daemon.hang_up()

    with scripted(backlog=0) as daemon:
        run(lambda: main(daemon))


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"hello", qos2.ProtocolError),
        (b'{"result":"done","id":99}', qos2.ProtocolError),
        (b'{"result":"error","id":0,"code":"limit_exceeded","win32":1450,"message":"full"}', qos2.LimitExceeded),
        (None, qos2.ServiceLost),
    ],
)
def test_the_end_of_a_connection_ends_all_calls(
    daemon: ScriptedDaemon, said: bytes | None, error: type[qos2.QosError]
) -> None:
    async def main() -> None:
        qos = await opened(daemon)
        flow = qos2.aio.Flow(qos, qos2.FlowId(7))
        under_way = [asyncio.ensure_future(call) for call in (flow.rate(), flow.notify(CONGESTED))]
        await asked(daemon, "rate")
        await asked(daemon, "notify")
        if said is not None:
            daemon.say(said)
        else:
            daemon.hang_up()
        for call in under_way:
            with pytest.raises(error):
                await call
        with pytest.raises(qos2.ServiceLost):
            await flow.rate()
        await qos.close()

    run(main)


def test_no_more_is_sent_ahead_than_the_daemon_keeps_answers_for(daemon: ScriptedDaemon) -> None:
    async def main() -> None:
        qos = await opened(daemon)
        count = 3 * MAX_AHEAD
        rates = [asyncio.ensure_future(qos2.aio.Flow(qos, qos2.FlowId(flow)).rate()) for flow in range(1, count + 1)]
        requests = [await asked(daemon, "rate") for _ in range(MAX_AHEAD)]
        assert await asyncio.wrap_future(in_thread(daemon.is_silent))
        rates[0].cancel()  # answered all the same, so that it counts
        rates[-1].cancel()  # never sent
        for number in range(count - 1):
            answer_rate(daemon, requests[number])
            if len(requests) < count - 1:
                requests.append(await asked(daemon, "rate"))
        assert await asyncio.gather(*rates[1:-1]) == [expected(flow) for flow in range(2, count)]
        await closing(daemon, qos)

    run(main)


def test_what_the_kernel_has_no_room_for_is_sent_later(daemon: ScriptedDaemon) -> None:
    async def main() -> None:
        qos = await opened(daemon)
        count = 3000
        waits = [
            asyncio.ensure_future(qos2.aio.Flow(qos, qos2.FlowId(flow)).notify(CONGESTED)) for flow in range(count)
        ]
        await asyncio.sleep(0.05)
        waits[-1].cancel()  # not sent yet
        given_up = asyncio.ensure_future(qos2.aio.Flow(qos, qos2.FlowId(count)).rate())

        def answer() -> None:
            for flow in range(count - 1):
                request = daemon.receive("notify")
                assert request["flow"] == flow
                daemon.answer(request)
            answer_rate(daemon, daemon.receive("rate"))

        answering = in_thread(answer)
        assert await asyncio.gather(*waits[:-1]) == [None] * (count - 1)
        assert await given_up == expected(count)
        await asyncio.wrap_future(answering)
        assert waits[-1].cancelled()
        await closing(daemon, qos)

    run(main)


# Closing


def test_closing_ends_what_other_tasks_wait_for(stage: Stage) -> None:
    async def main() -> None:
        qos = await qos2.aio.Handle(stage.path)
        with udp(PEER) as sock:
            flow = await qos.add_socket(sock, VOICE, adaptive=True)
            waiting = asyncio.ensure_future(flow.notify(CONGESTED))
            await asyncio.sleep(0.01)
            await asyncio.gather(qos.close(), qos.close())
            assert stage.call(lambda: stage.service.flows) == 0
            with pytest.raises(qos2.Cancelled) as cancelled:
                await waiting
            assert cancelled.value.win32 == 995
            await qos.close()

    run(main)


def test_closing_does_not_wait_for_ever(daemon: ScriptedDaemon) -> None:
    async def main() -> None:
        qos = await opened(daemon, timeout=0.2)
        waiting = asyncio.ensure_future(qos2.aio.Flow(qos, qos2.FlowId(7)).notify(CONGESTED))
        await asked(daemon, "notify")
        began_s = time.monotonic()
        await qos.close()
        assert 0.2 <= time.monotonic() - began_s < 5
        with pytest.raises(qos2.ServiceLost):
            await waiting

    run(main)


def test_a_cancelled_closing_closes(daemon: ScriptedDaemon) -> None:
    async def main() -> None:
        qos = await opened(daemon)
        waiting = asyncio.ensure_future(qos2.aio.Flow(qos, qos2.FlowId(7)).notify(CONGESTED))
        await asked(daemon, "notify")
        closed = asyncio.ensure_future(qos.close())
        await asked(daemon, "close_handle")
        closed.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closed
        with pytest.raises(qos2.Cancelled, match="closed during the call"):
            await waiting

    run(main)


# Whose it is


def test_a_handle_is_opened_once_and_used_when_it_is_open(stage: Stage) -> None:
    async def main() -> None:
        qos = qos2.aio.Handle(stage.path)
        assert qos.closed
        with pytest.raises(qos2.InvalidHandle, match="not open"):
            await qos.status()
        await qos.close()
        async with qos:
            assert repr(qos) == f"<Handle {stage.path}>"
            with pytest.raises(qos2.InvalidRequest, match="opened already"):
                await qos
        assert repr(qos) == f"<Handle {stage.path} closed>"

    run(main)


def test_a_handle_is_not_for_another_loop(stage: Stage) -> None:
    async def main() -> None:
        async with qos2.aio.Handle(stage.path) as qos:
            for call in (qos.status, qos.close):
                with pytest.raises(qos2.InvalidRequest, match="belongs to another loop"):
                    await asyncio.wrap_future(in_thread(partial(asyncio.run, call())))
            assert (await qos.status()).handles == 1

    run(main)


FORK = f"""
import asyncio, os, socket
import qos2, qos2.aio

async def main():
    async with qos2.aio.Handle() as qos:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect({PEER!r})
            flow = await qos.add_socket(sock, qos2.TrafficType.VOICE)
            descriptors = len(os.listdir("/proc/self/fd"))
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    assert len(os.listdir("/proc/self/fd")) == descriptors - 1
                    for call in (flow.rate, qos.status):
                        try:
                            await call()
                        except qos2.InvalidHandle as error:
                            assert "belongs to the parent" in error.message
                        else:
                            raise AssertionError("not refused")
                    await flow.close()
                    await qos.close()
                    code = 0
                finally:
                    os._exit(code)
            print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
            assert await flow.rate() is None
            waiting = asyncio.ensure_future(flow.rate())
            print("parent", await waiting, [each.flow == flow.id for each in await qos.flows()])

asyncio.run(main())
"""


def test_a_forked_child_cannot_use_the_handle_and_does_not_disturb_it() -> None:
    with staged() as stage, stage.script(FORK) as process:
        output, _ = process.communicate(timeout=60)
    assert (output, process.returncode) == ("child 0\nparent None [True]\n", 0)
