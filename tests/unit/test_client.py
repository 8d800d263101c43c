"""The synchronous client against the real server and service: what an application sees, in good times and bad."""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import qos2
from qos2.model import FlowStats
from qos2.server import listen_at
from qos2.wire import protocol
from unit.server_stage import NOBODY, PEER, Stage, open_descriptors, staged, udp, unprivileged

VOICE = qos2.TrafficType.VOICE


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


@pytest.fixture
def qos(stage: Stage) -> Iterator[qos2.Handle]:
    with qos2.Handle(stage.path) as handle:
        yield handle


# A flow


def test_a_flow_is_marked_limited_counted_and_ended(stage: Stage, qos: qos2.Handle) -> None:
    with udp(PEER) as sock, udp() as other:
        flow = qos.add_socket(sock, VOICE)
        assert flow.priority() == qos2.PacketPriority(qos2.Dscp(56), qos2.Dscp(0))
        assert flow.rate() is None
        flow.set_rate(2_000_000, shaping=qos2.Shaping.SHAPE_ONLY, reason=qos2.RateReason.CONGESTION)
        assert flow.rate() == qos2.FlowRate(
            qos2.Bandwidth(2_000_000), qos2.Shaping.SHAPE_ONLY, qos2.RateReason.CONGESTION
        )
        flow.add_socket(other, dest=("192.0.2.8", 5004))
        assert qos.flow_details(flow.id).members == ["udp 192.0.2.7:5004", "udp 192.0.2.8:5004"]
        flow.remove_socket(other)
        assert qos.flow_details(flow.id).members == ["udp 192.0.2.7:5004"]
        flow.set_traffic_type(qos2.TrafficType.BACKGROUND)
        counted = FlowStats(packets=23, bytes=2300, dropped_packets={"horizon": 2}, dropped_bytes={"horizon": 200})
        stage.call(lambda: stage.datapath.set_stats(flow.id, counted))
        assert flow.stats() == counted
        flow.close()
        assert stage.datapath.policies == {}
        with pytest.raises(qos2.NoSuchFlow):
            flow.stats()
        flow.close()


def test_a_flow_ends_with_its_block_and_a_handle_with_all_its_flows(stage: Stage) -> None:
    with qos2.Handle(stage.path) as qos, udp(PEER) as sock, udp(PEER) as other:
        with qos.add_socket(sock, VOICE) as flow:
            assert [each.flow for each in qos.flows()] == [flow.id]
        assert qos.flows() == []
        kept = qos.add_socket(other, VOICE)
    stage.settle()
    assert stage.datapath.policies == {}
    kept.close()
    with pytest.raises(qos2.InvalidHandle, match="the handle is closed"):
        kept.rate()


@pytest.mark.parametrize(
    "dest",
    [("192.0.2.7", 5004), ("::ffff:192.0.2.7", 5004, 0, 0), qos2.Destination.parse("192.0.2.7", 5004)],
)
def test_a_destination_may_be_a_pair_a_socket_address_or_a_destination(qos: qos2.Handle, dest: Any) -> None:
    with udp(family=socket.AF_INET6) as sock, qos.add_socket(sock, VOICE, dest) as flow:
        assert qos.flow_details(flow.id).members == ["udp 192.0.2.7:5004"]


def test_a_socket_may_be_an_object_a_descriptor_or_what_asyncio_has(qos: qos2.Handle) -> None:
    async def transport_socket() -> list[str]:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("127.0.0.1", 9)
        )
        try:
            with qos.add_socket(transport.get_extra_info("socket"), VOICE) as flow:
                return qos.flow_details(flow.id).members
        finally:
            transport.close()

    with udp(PEER) as sock, qos.add_socket(sock.fileno(), VOICE) as flow:
        assert qos.flow_details(flow.id).members == ["udp 192.0.2.7:5004"]
    assert asyncio.run(transport_socket()) == ["udp 127.0.0.1:9"]


def test_all_flows_are_listed_page_by_page(qos: qos2.Handle) -> None:
    with udp() as sock:
        ids = [qos.add_socket(sock, VOICE, ("192.0.2.7", port)).id for port in range(1, 201)]
        assert [each.flow for each in qos.flows()] == ids
        assert qos.status().flows == 200


def test_a_program_is_one_flow(stage: Stage, qos: qos2.Handle) -> None:
    with qos.add_program(qos2.TrafficType.BACKGROUND) as flow:
        assert qos.flow_details(flow.id).whole_program is True
        assert stage.datapath.programs[flow.id].pid == os.getpid()
    assert stage.datapath.programs == {}


def test_a_status_tells_the_daemon_and_the_datapath(stage: Stage, qos: qos2.Handle) -> None:
    stage.clock_s = 7.5
    status = qos.status()
    assert (status.server, status.uptime_s, status.handles, status.flows) == ("stage", 7.5, 1, 0)
    assert [device["name"] for device in status.datapath["devices"]] == ["fake0"]
    assert qos.server_version == "stage"


@pytest.mark.parametrize(
    "call",
    [
        lambda qos, flow: flow.fundamentals(),
        lambda qos, flow: flow.notify(qos2.Condition.CONGESTED),
        lambda qos, flow: flow.notify(qos2.Condition.AVAILABLE, 64_000),
        lambda qos, flow: qos.start_tracking("192.0.2.7"),
        lambda qos, flow: qos.stop_tracking("192.0.2.7"),
        lambda qos, flow: qos.cancel(1),
    ],
)
def test_calls_of_later_versions_raise_not_supported(qos: qos2.Handle, call: Any) -> None:
    with (
        udp(PEER) as sock,
        qos.add_socket(sock, VOICE) as flow,
        pytest.raises(qos2.NotSupported, match="supported yet"),
    ):
        call(qos, flow)


# Rights


def test_a_dscp_of_ones_own_needs_a_right(stage: Stage) -> None:
    with unprivileged(), qos2.Handle(stage.path) as qos, udp(PEER) as sock:
        assert qos.privileged is False
        flow = qos.add_socket(sock, VOICE)
        with pytest.raises(qos2.NotPermitted) as refusal:
            flow.set_dscp(46)
        assert refusal.value.win32 == 5
        assert flow.priority().conformant_dscp == 56
        with pytest.raises(qos2.NotPermitted):
            qos.enumerate()
        assert [each.flow for each in qos.flows()] == [flow.id]


def test_root_sees_the_flows_of_all_users(stage: Stage, qos: qos2.Handle) -> None:
    if not qos.privileged:
        pytest.skip("seeing everybody's flows needs root")
    with udp() as sock:
        with unprivileged():
            other = qos2.Handle(stage.path)
        with other:
            ids = {qos.add_socket(sock, VOICE, ("192.0.2.7", 1)).id, other.add_socket(sock, VOICE, ("192.0.2.7", 2)).id}
            assert set(qos.enumerate()) == {each.flow for each in qos.flows()} == ids


def test_root_sets_any_dscp(stage: Stage, qos: qos2.Handle) -> None:
    if not qos.privileged:
        pytest.skip("setting a raw DSCP needs root")
    with udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE)
        flow.set_dscp(46)
        assert flow.priority().conformant_dscp == 46


# Wrong arguments


def test_what_is_no_socket_is_refused_before_it_is_sent(stage: Stage, qos: qos2.Handle) -> None:
    closed = udp()
    closed.close()
    with tempfile.TemporaryFile() as file:
        for wrong in (file, file.fileno(), closed, -1, 2**40, "5", None):
            with pytest.raises(qos2.InvalidRequest) as refusal:
                qos.add_socket(wrong, VOICE)  # type: ignore[arg-type]  # what is no socket is the test
            assert refusal.value.hint
    stage.settle()
    assert [op for op, _, _ in stage.observed] == ["open_handle"]


@pytest.mark.parametrize("bandwidth", [-1, 7_999, 400_000_000_001, 2**70, 64_000.5, "64k"])
def test_a_wrong_rate_is_refused_in_words_and_the_handle_goes_on(qos: qos2.Handle, bandwidth: Any) -> None:
    with udp(PEER) as sock, qos.add_socket(sock, VOICE) as flow:
        with pytest.raises(qos2.InvalidRequest) as refusal:
            flow.set_rate(bandwidth)
        assert refusal.value.win32 == 87
        assert flow.rate() is None


def test_an_unconnected_socket_needs_a_destination(qos: qos2.Handle) -> None:
    with udp() as sock, pytest.raises(qos2.InvalidRequest) as refusal:
        qos.add_socket(sock, VOICE)
    assert refusal.value.hint


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan")])
def test_a_timeout_that_is_none_is_refused(stage: Stage, timeout: float) -> None:
    with pytest.raises(qos2.InvalidRequest, match="a timeout of"):
        qos2.Handle(stage.path, timeout=timeout)


# The daemon is not there, goes away, or hangs


def test_without_a_daemon_the_error_says_what_to_do(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(qos2.ServiceUnavailable, match="no daemon at") as refusal:
        qos2.Handle(tmp_path / "qos2.sock")
    assert refusal.value.hint == "start qos2d, or name its socket in $QOS2_SOCKET"
    listen_at(str(tmp_path / "dead.sock"), 0o666).close()
    with pytest.raises(qos2.ServiceUnavailable, match="Connection refused"):
        qos2.Handle(tmp_path / "dead.sock")
    with pytest.raises(qos2.ServiceUnavailable, match="AF_UNIX path too long"):
        qos2.Handle("x" * 200)
    assert open_descriptors() == before


def test_a_socket_that_may_not_be_entered_is_not_permitted() -> None:
    if os.geteuid() != 0:
        pytest.skip("becoming another user needs root")
    with staged(mode=0o600) as stage, unprivileged(), pytest.raises(qos2.NotPermitted, match="no access to"):
        qos2.Handle(stage.path)
    assert os.geteuid() != NOBODY


def test_the_environment_names_the_socket(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QOS2_SOCKET", stage.path)
    with qos2.Handle() as qos:
        assert qos.path == stage.path
    monkeypatch.setenv("QOS2_SOCKET", "/nowhere/qos2.sock")
    with pytest.raises(qos2.ServiceUnavailable, match="no daemon at /nowhere/qos2"):
        qos2.Handle()
    monkeypatch.delenv("QOS2_SOCKET")
    monkeypatch.setattr("qos2.client.DEFAULT_PATH", stage.path)
    with qos2.Handle() as qos:
        assert qos.path == stage.path


def test_a_daemon_that_went_away_is_lost_and_stays_lost(stage: Stage, qos: qos2.Handle) -> None:
    with udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE)
        stage.call(stage.server.close)
        for _ in range(2):
            with pytest.raises(qos2.ServiceLost) as lost:
                flow.set_rate(64_000)
            assert lost.value.win32 == 1164
        assert qos.closed
        flow.close()


def test_a_daemon_that_does_not_answer_is_lost_in_time(stage: Stage) -> None:
    with qos2.Handle(stage.path, timeout=0.05) as qos, stage.paused():
        with pytest.raises(qos2.ServiceLost, match="does not answer"):
            qos.status()
        assert qos.closed


def test_a_connection_refused_for_a_limit_says_so() -> None:
    with staged(connections=1) as stage, qos2.Handle(stage.path):
        for _ in range(20):
            with pytest.raises(qos2.LimitExceeded, match="there are 1 connections"):
                qos2.Handle(stage.path)


def test_a_reply_of_nonsense_is_a_protocol_error(tmp_path: Path) -> None:
    path = str(tmp_path / "qos2.sock")
    with listen_at(path, 0o600) as listener:
        listener.setblocking(True)

        def answer() -> None:
            connected, _ = listener.accept()
            with connected:
                connected.recv(protocol.MAX_MESSAGE_BYTES)
                connected.send(b"hello")

        nonsense = threading.Thread(target=answer)
        nonsense.start()
        with pytest.raises(qos2.ProtocolError, match="not a reply"):
            qos2.Handle(path)
        nonsense.join()


# Signals, threads, processes


@contextmanager
def signalled_in_a_call(qos: qos2.Handle, handler: Callable[[], None]) -> Iterator[None]:
    """A signal comes to this thread, with this handler, once a call waits for its reply."""
    this_thread = threading.get_ident()

    def signal_it() -> None:
        while qos._connection.pending == 0:
            os.sched_yield()
        signal.pthread_kill(this_thread, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: handler())
    sender = threading.Thread(target=signal_it)
    sender.start()
    try:
        yield
    finally:
        sender.join()
        signal.signal(signal.SIGUSR1, before)


def test_a_call_interrupted_by_an_exception_does_not_confuse_the_next(stage: Stage, qos: qos2.Handle) -> None:
    class Interrupted(Exception):
        pass

    def interrupt() -> None:
        raise Interrupted

    with stage.paused(), signalled_in_a_call(qos, interrupt), pytest.raises(Interrupted):
        qos.status()
    assert qos.flows() == []
    assert qos.status().handles == 1


def test_a_signal_in_a_call_does_not_end_it(stage: Stage, qos: qos2.Handle) -> None:
    with stage.paused(), signalled_in_a_call(qos, stage.resume):
        assert qos.status().handles == 1


def test_threads_share_a_handle(stage: Stage, qos: qos2.Handle) -> None:
    failures: list[BaseException] = []

    def work(port: int) -> None:
        try:
            with udp(("192.0.2.7", port)) as sock:
                for _ in range(50):
                    with qos.add_socket(sock, VOICE) as flow:
                        assert qos.flow_details(flow.id).members == [f"udp 192.0.2.7:{port}"]
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(port,)) for port in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert stage.call(lambda: stage.service.flows) == 0


def test_closing_a_handle_ends_the_call_of_another_thread(stage: Stage) -> None:
    qos = qos2.Handle(stage.path)
    errors: list[qos2.QosError] = []

    def wait() -> None:
        try:
            qos.status()
        except qos2.QosError as error:
            errors.append(error)

    with stage.paused():
        waiting = threading.Thread(target=wait)
        waiting.start()
        while qos._connection.pending == 0:
            os.sched_yield()
        qos.close()
        waiting.join()
    assert [type(error) for error in errors] == [qos2.ServiceLost]


FORK = f"""
import os, qos2, socket, sys
qos = qos2.Handle()
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect({PEER!r})
flow = qos.add_socket(sock, qos2.TrafficType.VOICE)
pid = os.fork()
if pid == 0:
    for call in (flow.rate, lambda: qos.add_socket(sock, qos2.TrafficType.VOICE)):
        try:
            call()
        except qos2.InvalidRequest as error:
            assert "belongs to the parent" in str(error)
        else:
            os._exit(1)
    flow.close()
    qos.close()
    with qos2.Handle() as own:
        assert [each.flow for each in own.flows()] == [flow.id]
    print("child", flush=True)
    sys.stdin.read()  # lives on when the parent is gone
    os._exit(0)
"""


def test_a_forked_child_cannot_use_the_handle_and_does_not_disturb_it(stage: Stage) -> None:
    code = FORK + "assert flow.rate() is None\nprint('parent', flush=True)\nsys.stdin.read()\nos.waitpid(pid, 0)\n"
    with stage.script(code) as process:
        assert _lines(process, 2) == {"child", "parent"}
        assert stage.call(lambda: stage.service.flows) == 1
        process.communicate()


def test_flows_end_with_the_process_that_made_them_and_not_with_its_children(stage: Stage) -> None:
    with stage.script(FORK + "os.waitid(os.P_PID, pid, os.WEXITED)\n") as process:
        assert _lines(process, 1) == {"child"}
        assert stage.call(lambda: stage.service.flows) == 1
        process.kill()
        process.wait()
        stage.settle()
        stage.settle()
        assert stage.call(lambda: stage.service.flows) == 0
        process.communicate()


def _lines(process: "subprocess.Popen[str]", count: int) -> set[str]:
    assert process.stdout is not None
    return {process.stdout.readline().strip() for _ in range(count)}
