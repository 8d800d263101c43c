"""Handles of qos2.win32: what opens and closes them, what is refused before all else, fork, and the daemon's end."""

import os
import socket
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qos2
from qos2 import win32
from qos2.core.service import Limits
from qos2.win32 import (
    QOS_VERSION,
    QOSNotifyCongested,
    QOSQueryFlowFundamentals,
    QOSQueryOutgoingRate,
    QOSSetOutgoingRate,
    QOSTrafficTypeVoice,
    WinError,
)
from unit.server_stage import PEER, Stage, open_descriptors, staged, udp, unprivileged
from unit.win32_stage import RATE, UNKNOWN_FLOW, failure, opened

pytest_plugins = ["unit.win32_fixtures"]


@pytest.mark.parametrize("version", [(1, 0), QOS_VERSION(1, 0)])
def test_a_handle_is_open_until_it_is_closed_once(stage: Stage, version: Any) -> None:
    handle = win32.QOSCreateHandle(version, path=stage.path)
    assert stage.service.handles == 1
    assert repr(handle) == f"<HANDLE {stage.path}>"
    win32.QOSCloseHandle(handle)
    assert stage.service.handles == 0
    assert repr(handle) == f"<HANDLE {stage.path} closed>"
    assert failure(win32.QOSCloseHandle, handle) == 87


@pytest.mark.parametrize("version", [(0, 0), (1, 5), (2, 0), QOS_VERSION(2, 0), None, "1.0", 1])
def test_there_is_version_1_0_alone(stage: Stage, version: Any) -> None:
    assert failure(win32.QOSCreateHandle, version, path=stage.path) == 87
    assert stage.observed == []


def test_without_a_daemon_there_is_no_handle(tmp_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(WinError) as refused:
        win32.QOSCreateHandle(path=tmp_path / "nobody.sock")
    assert refused.value.winerror == win32.ERROR_SERVICE_DEPENDENCY_FAIL
    assert "start qos2d" in str(refused.value)
    assert isinstance(refused.value.__cause__, qos2.ServiceUnavailable)
    assert open_descriptors() == before


def test_the_daemon_is_found_by_the_environment(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QOS2_SOCKET", stage.path)
    win32.QOSCloseHandle(win32.QOSCreateHandle())
    assert [op for op, _, _ in stage.observed] == ["open_handle", "close_handle"]


def test_a_user_has_so_many_handles() -> None:
    with staged(limits=Limits(handles_per_uid=1)) as stage, opened(stage):
        assert failure(win32.QOSCreateHandle, path=stage.path) == win32.ERROR_NO_SYSTEM_RESOURCES


def test_the_administrator_may_keep_a_user_from_the_daemon(stage: Stage) -> None:
    os.chmod(stage.path, 0o000 if os.geteuid() else 0o600)
    with unprivileged():
        assert failure(win32.QOSCreateHandle, path=stage.path) == win32.ERROR_ACCESS_DENIED


def test_a_daemon_that_ends_while_a_handle_is_made_is_no_daemon() -> None:
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(f"{folder}/s")
        listening.listen()
        ending = threading.Thread(target=lambda: listening.accept()[0].close())
        ending.start()
        try:
            assert failure(win32.QOSCreateHandle, path=f"{folder}/s") == win32.ERROR_SERVICE_DEPENDENCY_FAIL
        finally:
            ending.join()


def test_a_handle_that_is_forgotten_stays_open(stage: Stage) -> None:
    """CycloneDDS leaves its handle open on purpose."""
    with udp(PEER) as sock:

        def mark() -> tuple[int, int]:
            handle = win32.QOSCreateHandle(path=stage.path)
            return id(handle), win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice, 2)

        number, flow = mark()
        stage.settle()
        assert list(stage.datapath.policies) == [flow]
        (forgotten,) = (each for each in win32.handle._OPEN if id(each) == number)
        win32.QOSCloseHandle(forgotten)
    assert stage.datapath.policies == {}


EVERY_CALL: list[Callable[[Any], object]] = [
    lambda handle: win32.QOSStartTrackingClient(handle, None, 7),  # type: ignore[arg-type]  # wrong on purpose
    lambda handle: win32.QOSStopTrackingClient(handle, None, 7),  # type: ignore[arg-type]  # wrong on purpose
    lambda handle: win32.QOSEnumerateFlows(handle, -1),
    lambda handle: win32.QOSAddSocketToFlow(handle, -1, None, 17, 5, UNKNOWN_FLOW),
    lambda handle: win32.QOSRemoveSocketFromFlow(handle, -1, UNKNOWN_FLOW, 1),
    lambda handle: win32.QOSSetFlow(handle, UNKNOWN_FLOW, 9, 0, None, 1),
    lambda handle: win32.QOSQueryFlow(handle, UNKNOWN_FLOW, 9, 0, 2),
    lambda handle: win32.QOSNotifyFlow(handle, UNKNOWN_FLOW, 9, 0, None, 1),
    lambda handle: win32.QOSCancel(handle, None),  # type: ignore[arg-type]  # wrong on purpose
]


@pytest.mark.parametrize("call", EVERY_CALL)
def test_a_bad_handle_is_told_before_everything_else(stage: Stage, call: Callable[[Any], object]) -> None:
    with opened(stage) as closed:
        win32.QOSCloseHandle(closed)
        assert [failure(call, handle) for handle in (None, 0, -1, object(), "handle", closed)] == [6] * 6


@pytest.mark.parametrize("call", EVERY_CALL)
def test_then_come_arguments_and_the_daemon_is_not_asked(
    stage: Stage, handle: win32.HANDLE, call: Callable[[Any], object]
) -> None:
    stage.observed.clear()
    assert failure(call, handle) == 87
    assert stage.observed == []


@pytest.mark.parametrize("handle", [None, 0, object(), qos2.Handle])
def test_only_a_handle_can_be_closed(handle: Any) -> None:
    assert failure(win32.QOSCloseHandle, handle) == 87


def test_of_two_threads_that_close_a_handle_one_succeeds(stage: Stage) -> None:
    with opened(stage) as handle:
        together = threading.Barrier(2)
        results: list[int] = []

        def close() -> None:
            together.wait()
            results.append(failure(win32.QOSCloseHandle, handle))

        threads = [threading.Thread(target=close) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(results) == [0, 87]


def test_after_fork_the_childs_handle_is_none(stage: Stage, handle: win32.HANDLE, flow: int) -> None:
    def query() -> None:
        win32.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate)

    child = os.fork()
    if child == 0:
        verdict = [failure(query), failure(win32.QOSCloseHandle, handle), failure(win32.QOSCloseHandle, handle)]
        os._exit(0 if verdict == [6, 0, 87] else 1)
    assert os.waitpid(child, 0) == (child, 0)
    stage.settle()
    assert failure(query) == 0


def test_when_the_daemon_goes_every_call_but_close_says_so(stage: Stage, sock: socket.socket) -> None:
    handle = win32.QOSCreateHandle(path=stage.path)
    flow = win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice)
    stage.call(stage.server.close)
    calls: list[Callable[[], object]] = [
        lambda: win32.QOSStartTrackingClient(handle, PEER),
        lambda: win32.QOSStopTrackingClient(handle, PEER),
        lambda: win32.QOSEnumerateFlows(handle),
        lambda: win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice),
        lambda: win32.QOSRemoveSocketFromFlow(handle, sock, flow),
        lambda: win32.QOSRemoveSocketFromFlow(handle, None, flow),
        lambda: win32.QOSSetFlow(handle, flow, QOSSetOutgoingRate, None, RATE),
        lambda: win32.QOSQueryFlow(handle, flow, QOSQueryFlowFundamentals),
        lambda: win32.QOSNotifyFlow(handle, flow, QOSNotifyCongested),
        lambda: win32.QOSNotifyFlow(handle, flow, QOSNotifyCongested, Overlapped=win32.OVERLAPPED()),
    ]
    assert [failure(call) for call in calls] == [1164] * len(calls)
    assert [failure(call, handle) for call in EVERY_CALL] == [1164] * len(EVERY_CALL)
    assert failure(win32.QOSCloseHandle, handle) == 0
    assert [failure(call, handle) for call in EVERY_CALL] == [6] * len(EVERY_CALL)
