"""The asyncio client: the same face as the synchronous one, its waits, and tasks that are cancelled."""

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

import qos2
import qos2.aio
from unit.aio_stage import asked, closing, opened, run
from unit.scripted_daemon import ScriptedDaemon
from unit.server_stage import CONTROLPLANE, PEER, Stage, udp

pytest_plugins = ("unit.channel_fixtures",)

CONGESTED = qos2.Condition.CONGESTED
VOICE = qos2.TrafficType.VOICE


# The face


@pytest.mark.parametrize("kind", ["Handle", "Flow"])
def test_the_two_faces_have_the_same_methods_and_signatures(kind: str) -> None:
    def face(thing: type) -> dict[str, list[tuple[str, Any, Any, str]] | str]:
        found: dict[str, list[tuple[str, Any, Any, str]] | str] = {}
        for name, member in vars(thing).items():
            if name.startswith("_") and name != "__init__":
                continue
            if inspect.isfunction(member):
                signature = inspect.signature(member)
                returned = inspect.formatannotation(signature.return_annotation, base_module=thing.__module__)
                found[name] = [
                    (each.name, each.kind, each.default, inspect.formatannotation(each.annotation))
                    for each in signature.parameters.values()
                    if each.name != "handle"
                ] + [("return", None, None, returned)]
            else:
                found[name] = type(member).__name__
        return found

    # What is only begun is a task in asyncio.
    begun = {"begin", "begin_notify", "begin_fundamentals"}
    synchronous = {name: each for name, each in face(getattr(qos2, kind)).items() if name not in begun}
    assert face(getattr(qos2.aio, kind)) == synchronous
    for name, member in vars(getattr(qos2.aio, kind)).items():
        if inspect.isfunction(member) and not name.startswith("_"):
            assert inspect.iscoroutinefunction(member), name


def test_a_flow_from_its_beginning_to_its_end(stage: Stage) -> None:
    async def main() -> None:
        with udp(PEER) as sock, udp() as other:
            async with qos2.aio.Handle(stage.path) as qos:
                assert (qos.server_version, qos.path, qos.closed) == ("stage", stage.path, False)
                flow = await qos.add_socket(sock, VOICE)
                assert await flow.priority() == qos2.PacketPriority(qos2.Dscp(56), qos2.Dscp(0))
                await flow.set_rate(2_000_000, shaping=qos2.Shaping.SHAPE_ONLY, reason=qos2.RateReason.CONGESTION)
                assert await flow.rate() == qos2.FlowRate(
                    qos2.Bandwidth(2_000_000), qos2.Shaping.SHAPE_ONLY, qos2.RateReason.CONGESTION
                )
                await flow.add_socket(other, dest=("192.0.2.8", 5004))
                members = (await qos.flow_details(flow.id)).members
                assert members == ["udp 192.0.2.7:5004", "udp 192.0.2.8:5004"]
                await flow.remove_socket(other)
                await flow.set_traffic_type(qos2.TrafficType.BACKGROUND)
                assert [each.traffic_type for each in await qos.flows()] == [1]
                assert await flow.stats() == qos2.FlowStats()
                assert ((await qos.status()).flows, (await qos.status()).server) == (1, "stage")
                await qos.start_tracking("192.0.2.7")
                await qos.stop_tracking("192.0.2.7")
                with pytest.raises(qos2.NoSuchFlow):
                    await qos.stop_tracking("192.0.2.7")
                if qos.privileged:
                    await flow.set_dscp(46)
                    assert await qos.enumerate() == [flow.id]
                await flow.close()
                await flow.close()
                with pytest.raises(qos2.NoSuchFlow):
                    await flow.rate()
                async with await qos.add_program(VOICE) as program:
                    assert (await qos.flow_details(program.id)).whole_program is True
                assert await qos.flows() == []
                kept = await qos.add_socket(sock, VOICE)
                assert repr(kept) == f"<Flow {kept.id:#010x}>"
            assert stage.call(lambda: stage.service.flows) == 0
            assert qos.closed
            await kept.close()
            with pytest.raises(qos2.InvalidHandle, match="the handle is closed"):
                await kept.rate()

    run(main)


def test_requests_of_many_tasks_are_sent_ahead(stage: Stage) -> None:
    async def main() -> None:
        threads = threading.active_count()
        async with qos2.aio.Handle(stage.path) as qos:
            with udp() as sock:

                async def add(port: int) -> list[str]:
                    flow = await qos.add_socket(sock, VOICE, ("192.0.2.7", port))
                    members = (await qos.flow_details(flow.id)).members
                    await flow.close()
                    return members

                members = await asyncio.gather(*map(add, range(1, 301)))
                assert members == [[f"udp 192.0.2.7:{port}"] for port in range(1, 301)]
                assert threading.active_count() == threads
            assert await qos.flows() == []

    run(main)


def test_what_is_refused_before_it_is_sent_is_refused_alike(stage: Stage) -> None:
    async def main() -> None:
        async with qos2.aio.Handle(stage.path) as qos:
            with pytest.raises(qos2.InvalidRequest, match="not a socket"):
                await qos.add_socket("5", VOICE)  # type: ignore[arg-type]  # what is no socket is the test
            with pytest.raises(qos2.InvalidRequest, match="cannot be sent"):
                await qos.start_tracking(object())  # type: ignore[arg-type]  # what is no text is the test
            with udp(PEER) as sock:
                flow = await qos.add_socket(sock, VOICE, adaptive=True)
                for timeout in (-1.0, float("nan")):
                    with pytest.raises(qos2.InvalidRequest, match="a timeout of"):
                        await flow.notify(CONGESTED, timeout=timeout)
        for timeout in (0, float("nan")):
            with pytest.raises(qos2.InvalidRequest, match="a timeout of"):
                qos2.aio.Handle(stage.path, timeout=timeout)

    run(main)


# Waiting and cancelling


def test_conditions_and_measurements_are_waited_for(stage: Stage) -> None:
    measured = qos2.FlowFundamentals(qos2.Bandwidth(10_000_000), qos2.Bandwidth(4_000_000), 1500)

    async def main() -> None:
        async with qos2.aio.Handle(stage.path, timeout=0.2) as qos:
            with udp(PEER) as sock:
                flow = await qos.add_socket(sock, VOICE, adaptive=True)
                congested = asyncio.ensure_future(flow.notify(CONGESTED))
                fresh = asyncio.ensure_future(flow.fundamentals(fresh=True))
                with pytest.raises(qos2.NoData):
                    await flow.fundamentals()
                with pytest.raises(qos2.AlreadyExists):
                    await flow.notify(CONGESTED)
                await asyncio.sleep(0.4)  # longer than an ordinary call may take
                assert not congested.done()
                assert not fresh.done()
                stage.set_condition(flow.id, congested=True)
                stage.measure(PEER[0], measured)
                await congested
                assert await fresh == measured
                for _ in range(2):
                    with pytest.raises(qos2.TimedOut):
                        await flow.notify(qos2.Condition.UNCONGESTED, timeout=0.02)
                    with pytest.raises(qos2.TimedOut):
                        await flow.notify(qos2.Condition.UNCONGESTED, timeout=0)

    run(main)


def test_a_cancelled_task_leaves_nothing_at_the_daemon(stage: Stage) -> None:
    async def main() -> None:
        async with qos2.aio.Handle(stage.path) as qos:
            with udp(PEER) as sock:
                flow = await qos.add_socket(sock, VOICE, adaptive=True)
                for _ in range(3):
                    waiting = asyncio.ensure_future(flow.notify(CONGESTED))
                    await asyncio.sleep(0.01)
                    waiting.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await waiting
                stage.set_condition(flow.id, congested=True)
                await flow.notify(CONGESTED)
                with stage.paused():
                    adding = [asyncio.ensure_future(qos.add_socket(sock, VOICE)) for _ in range(5)]
                    await asyncio.sleep(0.01)
                    for each in adding:
                        each.cancel()
                    await asyncio.wait(adding)
                # The answer to this comes behind those that nobody waits for, and the undoing is sent by then.
                await flow.rate()
                assert [each.flow for each in await qos.flows()] == [flow.id]

    run(main)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_reply_that_meets_the_end_of_its_task_is_undone(daemon: ScriptedDaemon, rounds: int) -> None:
    async def main() -> None:
        qos = await opened(daemon)
        adding = asyncio.ensure_future(qos.add_program(VOICE))
        add = await asked(daemon, "add_program")
        daemon.answer(add, "added", flow=77)
        # The loop takes the packet at the end of the first round, and the task would go on in the second one.
        for _ in range(rounds):
            await asyncio.sleep(0)
        adding.cancel()
        await asyncio.wait((adding,))
        assert adding.cancelled()
        removing = await asked(daemon, "remove_socket")
        assert removing["flow"] == 77
        daemon.answer(removing)
        await closing(daemon, qos)

    run(main)


def test_qos2_alone_does_not_import_asyncio() -> None:
    code = "import sys, qos2; print('asyncio' in sys.modules); import qos2.aio; print('asyncio' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(CONTROLPLANE)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert run.stdout == "False\nTrue\n"
