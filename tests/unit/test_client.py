"""The synchronous client against the real server and service: what an application sees, in good times and bad."""

import asyncio
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import qos2
from qos2.errors import NetworkBusy
from qos2.listener import listen_at
from qos2.model import FlowStats
from unit.scripted_daemon import in_thread
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


def test_an_adaptive_flow_is_marked_from_its_first_contract_and_followed(stage: Stage, qos: qos2.Handle) -> None:
    known = qos2.FlowFundamentals(qos2.Bandwidth(10_000_000), qos2.Bandwidth(4_000_000), 1500)
    with udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE, adaptive=True)
        with pytest.raises(qos2.NoData) as unknown:
            flow.fundamentals()
        assert unknown.value.win32 == 232
        stage.set_estimate(PEER[0], known)
        assert flow.fundamentals() == known
        flow.set_rate(4_000_000)
        assert flow.priority().conformant_dscp == 56
        with pytest.raises(qos2.TimedOut):
            flow.notify(qos2.Condition.CONGESTED, timeout=0.02)
        stage.set_condition(flow.id, congested=True)
        flow.notify(qos2.Condition.CONGESTED)
        flow.set_rate(2_000_000)
        stage.set_condition(flow.id, congested=False, free=2_000_000)
        flow.notify(qos2.Condition.AVAILABLE, 4_000_000)
        stage.set_admission(PEER[0], NetworkBusy("no room", "later"))
        with pytest.raises(qos2.NetworkBusy):
            flow.set_rate(4_000_000)
        assert flow.rate() == qos2.FlowRate(qos2.Bandwidth(2_000_000))


def test_estimates_are_for_adaptive_flows(qos: qos2.Handle) -> None:
    with udp(PEER) as sock, qos.add_socket(sock, VOICE) as flow:
        for call in (flow.fundamentals, lambda: flow.notify(qos2.Condition.CONGESTED)):
            with pytest.raises(qos2.NotSupported) as refusal:
                call()
            assert refusal.value.win32 == 50


def test_a_host_is_tracked_until_it_is_not(stage: Stage, qos: qos2.Handle) -> None:
    for _ in range(2):
        qos.start_tracking("192.0.2.7")
    assert [str(host) for host in stage.call(lambda: stage.paths.begun)] == ["192.0.2.7"]
    qos.stop_tracking("192.0.2.7")
    with pytest.raises(qos2.NoSuchFlow):
        qos.stop_tracking("192.0.2.7")
    stage.set_off_link("192.0.2.8")
    stage.set_unreachable("192.0.2.9")
    for address, error in (("192.0.2.8", qos2.NotSupported), ("192.0.2.9", qos2.HostUnreachable)):
        with pytest.raises(error):
            qos.start_tracking(address)
    for wrong in ("0.0.0.0", "example.org"):
        with pytest.raises(qos2.InvalidRequest):
            qos.start_tracking(wrong)


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


def test_last_words_are_heard_behind_the_end() -> None:
    """The daemon refuses and closes while the client looks: the kernel may tell the end first (1 of 1,000 times)."""
    code = """
import collections, qos2
seen = collections.Counter()
for _ in range(4000):
    try:
        qos2.Handle()
    except qos2.QosError as error:
        seen[error.code] += 1
print(dict(seen))
"""
    with staged(connections=1) as stage, stage.connection(), stage.script(code) as process:
        assert process.stdout is not None
        assert process.stdout.read() == "{'limit_exceeded': 4000}\n"


def test_a_connection_refused_for_a_limit_says_so() -> None:
    with staged(connections=1) as stage, qos2.Handle(stage.path):
        for _ in range(20):
            with pytest.raises(qos2.LimitExceeded, match="there are 1 connections"):
                qos2.Handle(stage.path)


# Signals, threads, processes (more in test_channel*.py)


@contextmanager
def signalled_in_a_call(handler: Callable[[], None]) -> Iterator[None]:
    """A signal comes to this thread, with this handler, in a call that lasts."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_call_interrupted_by_an_exception_does_not_confuse_the_next(stage: Stage, qos: qos2.Handle) -> None:
    class Interrupted(Exception):
        pass

    def interrupt() -> None:
        raise Interrupted

    with stage.paused(), signalled_in_a_call(interrupt), pytest.raises(Interrupted):
        qos.status()
    with udp(PEER) as sock, stage.paused(), signalled_in_a_call(interrupt), pytest.raises(Interrupted):
        qos.add_socket(sock, VOICE)
    assert qos.status().handles == 1
    # The flow that nobody knows of was ended when its answer came.
    assert qos.flows() == []


def test_a_signal_in_a_call_does_not_end_it(stage: Stage, qos: qos2.Handle) -> None:
    with stage.paused(), signalled_in_a_call(stage.resume):
        assert qos.status().handles == 1


def test_closing_a_handle_ends_what_another_thread_waits_for(stage: Stage) -> None:
    with qos2.Handle(stage.path) as qos, udp(PEER) as sock:
        flow = qos.add_socket(sock, VOICE, adaptive=True)
        waiting = in_thread(lambda: flow.notify(qos2.Condition.CONGESTED))
        while not stage.call(lambda: stage.conditions.watched):
            os.sched_yield()
        qos.close()
        with pytest.raises(qos2.Cancelled) as cancelled:
            waiting.result(10)
        assert cancelled.value.win32 == 995
        flow.close()
    assert stage.call(lambda: stage.service.flows) == 0


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
        except qos2.InvalidHandle as error:
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
