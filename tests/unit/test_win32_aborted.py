"""Overlapped calls of qos2.win32 that end before their time: cancelled, or with their handle, flow or daemon; fork."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from qos2 import win32
from qos2.win32 import (
    OVERLAPPED,
    QOS_QUERYFLOW_FRESH,
    GetOverlappedResult,
    QOSNotifyCongested,
    QOSQueryFlowFundamentals,
    QOSQueryOutgoingRate,
    QOSQueryPacketPriority,
    QOSTrafficTypeBackground,
    QOSTrafficTypeVoice,
)
from unit.server_stage import PEER, Stage, udp
from unit.win32_stage import SOON_S, await_event, failure, is_set, opened, values

pytest_plugins = ["unit.win32_fixtures"]

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def test_a_call_is_cancelled(stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED) -> None:
    win32.QOSCancel(handle, pending)
    await_event(pending)
    assert (failure(pending.wait), pending.Internal) == (995, 995)
    assert failure(GetOverlappedResult, handle, pending, False) == 995
    assert failure(win32.QOSCancel, handle, pending) == 87
    again = win32.QOSNotifyFlow(handle, adaptive, QOSNotifyCongested, Overlapped=pending)
    assert again is pending
    stage.set_condition(adaptive, congested=True)
    assert pending.wait(SOON_S) is None


def test_a_fresh_query_is_cancelled(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    fresh = win32.QOSQueryFlow(handle, adaptive, QOSQueryFlowFundamentals, None, QOS_QUERYFLOW_FRESH, OVERLAPPED())
    win32.QOSCancel(handle, fresh)
    assert failure(fresh.wait, SOON_S) == 995


def test_only_what_is_pending_on_this_handle_is_cancelled(
    stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED
) -> None:
    ended = win32.QOSQueryFlow(handle, adaptive, QOSQueryOutgoingRate, Overlapped=OVERLAPPED())
    ended.wait()
    with opened(stage) as other:
        assert failure(win32.QOSCancel, other, pending) == 87
    assert [failure(win32.QOSCancel, handle, each) for each in (None, OVERLAPPED(), ended)] == [87, 87, 87]
    assert not pending.done


def test_closing_the_handle_aborts(stage: Stage, handle: win32.HANDLE, pending: OVERLAPPED) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(failure, pending.wait, SOON_S)
        win32.QOSCloseHandle(handle)
        assert waiting.result(SOON_S) == 995
    assert (pending.done, pending.Internal, is_set(pending)) == (True, 995, True)
    assert failure(GetOverlappedResult, handle, pending, False) == 995
    assert failure(win32.QOSCancel, handle, pending) == 6


def test_closing_the_handle_aborts_a_call_that_waits_itself(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(failure, win32.QOSNotifyFlow, handle, adaptive, QOSNotifyCongested)
        while stage.service.pending == 0:
            stage.settle()
        win32.QOSCloseHandle(handle)
        assert waiting.result(SOON_S) == 995


def test_the_end_of_the_flow_aborts(handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED) -> None:
    win32.QOSRemoveSocketFromFlow(handle, None, adaptive)
    await_event(pending)
    assert failure(pending.wait) == 995


def test_the_end_of_the_daemon_is_told(stage: Stage, sock: socket.socket) -> None:
    with opened(stage) as handle:
        flow = win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice)
        pending = win32.QOSNotifyFlow(handle, flow, QOSNotifyCongested, Overlapped=OVERLAPPED())
        assert pending is not None
        stage.settle()
        stage.call(stage.server.close)
        assert failure(pending.wait, SOON_S) == 1164
        assert failure(win32.QOSCancel, handle, pending) == 1164


def test_a_forked_child_does_not_wait_for_the_parents_call(
    stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED
) -> None:
    child = os.fork()
    if child == 0:
        verdict = [failure(pending.wait, 5), failure(win32.QOSCancel, handle, pending)]
        os._exit(0 if verdict == [6, 6] else 1)
    assert os.waitpid(child, 0) == (child, 0)
    stage.set_condition(adaptive, congested=True)
    assert pending.wait(SOON_S) is None


def test_an_overlapped_of_the_parent_is_of_use_in_the_child_again(stage: Stage, pending: OVERLAPPED) -> None:
    """Not the call, which is the parent's, but a new one on a handle of its own has its own OVERLAPPED there."""
    child = os.fork()
    if child == 0:
        with opened(stage) as handle, udp(PEER) as sock:
            flow = win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeBackground, 2)
            found = win32.QOSQueryFlow(handle, flow, QOSQueryPacketPriority, Overlapped=OVERLAPPED()).wait(5)
            verdict = values(found)
        os._exit(0 if verdict == (8, 0, 0, 0) else 1)
    assert os.waitpid(child, 0) == (child, 0)
