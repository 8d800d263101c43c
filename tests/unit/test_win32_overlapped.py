"""Overlapped calls of qos2.win32: pending, complete and refused; their events and their threads."""

import asyncio
import gc
import os
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import qos2
from qos2 import win32
from qos2.errors import Retry
from qos2.win32 import (
    OVERLAPPED,
    QOS_QUERYFLOW_FRESH,
    GetOverlappedResult,
    QOSNotifyAvailable,
    QOSNotifyCongested,
    QOSNotifyUncongested,
    QOSQueryFlowFundamentals,
    QOSQueryOutgoingRate,
    QOSQueryPacketPriority,
    QOSSetOutgoingDSCPValue,
    QOSSetOutgoingRate,
    QOSSetTrafficType,
    WinError,
)
from unit.server_stage import PEER, Stage
from unit.win32_stage import PENDING, RATE, SOON_S, UNKNOWN_FLOW, await_event, failure, is_set, values

pytest_plugins = ["unit.win32_fixtures"]

pytestmark = pytest.mark.usefixtures("nothing_is_left")


# Complete


@pytest.mark.parametrize(
    ("begin", "value", "size"),
    [
        (lambda h, f, o: win32.QOSSetFlow(h, f, QOSSetTrafficType, None, 1, Overlapped=o), None, 0),
        (lambda h, f, o: win32.QOSSetFlow(h, f, QOSSetOutgoingRate, 16, RATE, 0, o), None, 0),
        (lambda h, f, o: win32.QOSQueryFlow(h, f, QOSQueryOutgoingRate, Overlapped=o), 0, 8),
        (lambda h, f, o: win32.QOSQueryFlow(h, f, QOSQueryPacketPriority, 16, 0, o), (0, 0, 0, 0), 16),
        (lambda h, f, o: win32.QOSQueryFlow(h, f, QOSQueryFlowFundamentals, 99, 0, o), (0, 0, 0, 0, 1, 250), 40),
        (lambda h, f, o: win32.QOSNotifyFlow(h, f, QOSNotifyCongested, Overlapped=o), None, 0),
        (lambda h, f, o: win32.QOSNotifyFlow(h, f, QOSNotifyCongested, None, None, 0, o), None, 0),
    ],
)
def test_a_call_completes_with_its_value(
    stage: Stage, handle: win32.HANDLE, adaptive: int, begin: Callable[..., Any], value: Any, size: int
) -> None:
    stage.set_estimate(PEER[0], qos2.FlowFundamentals(rtt_us=250))
    stage.set_condition(adaptive, congested=True)
    overlapped = OVERLAPPED()
    assert begin(handle, adaptive, overlapped) is overlapped
    await_event(overlapped)
    assert (overlapped.done, overlapped.Internal, overlapped.InternalHigh) == (True, 0, size)
    for result in (
        overlapped.wait(),
        overlapped.wait(0),
        GetOverlappedResult(handle, overlapped, False),
        GetOverlappedResult(handle, overlapped, True),
    ):
        assert (values(result) if isinstance(value, tuple) else result) == value
    assert is_set(overlapped)


def test_a_wait_is_pending_until_its_condition_holds(
    stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED
) -> None:
    assert repr(pending) == "<OVERLAPPED Internal=0x103 InternalHigh=0>"
    assert (pending.done, pending.Internal, pending.InternalHigh, is_set(pending)) == (False, PENDING, 0, False)
    assert failure(GetOverlappedResult, handle, pending, False) == win32.ERROR_IO_INCOMPLETE
    assert failure(pending.wait, 0.05) == win32.ERROR_TIMEOUT
    assert (pending.done, pending.Internal, is_set(pending)) == (False, PENDING, False)
    stage.set_condition(adaptive, congested=True)
    await_event(pending)
    assert (pending.done, pending.Internal, pending.wait()) == (True, 0, None)


def test_the_outcome_is_there_before_the_event(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    overlapped = OVERLAPPED()
    overlapped.fileno()
    for bandwidth in range(1, 200):
        rate = win32.QOS_FLOWRATE_OUTGOING(8_000 + bandwidth, win32.QOSShapeAndMark, 0)
        win32.QOSSetFlow(handle, adaptive, QOSSetOutgoingRate, None, rate)
        win32.QOSQueryFlow(handle, adaptive, QOSQueryOutgoingRate, Overlapped=overlapped)
        await_event(overlapped)
        assert (overlapped.Internal, overlapped.InternalHigh) == (0, 8)
        assert GetOverlappedResult(handle, overlapped, False) == 8_000 + bandwidth


def test_the_event_is_drained_when_the_next_call_begins(
    stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED
) -> None:
    event = pending.fileno()
    stage.set_condition(adaptive, congested=True)
    pending.wait()
    await_event(pending)
    win32.QOSNotifyFlow(handle, adaptive, QOSNotifyUncongested, Overlapped=pending)
    assert (pending.fileno(), is_set(pending), pending.Internal) == (event, False, PENDING)
    stage.set_condition(adaptive, congested=False)
    await_event(pending)
    assert pending.wait() is None


def test_an_event_may_be_asked_for_late_and_given_up(stage: Stage, adaptive: int, pending: OVERLAPPED) -> None:
    stage.set_condition(adaptive, congested=True)
    pending.wait()
    assert is_set(pending)
    pending.close()
    pending.close()
    assert is_set(pending)
    os.eventfd_read(pending.fileno())
    assert not is_set(pending)


def test_a_call_is_not_forgotten_with_its_overlapped(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    def begin() -> "weakref.ref[OVERLAPPED]":
        overlapped = OVERLAPPED()
        overlapped.fileno()
        win32.QOSNotifyFlow(handle, adaptive, QOSNotifyCongested, Overlapped=overlapped)
        return weakref.ref(overlapped)

    forgotten = begin()
    gc.collect()
    kept = forgotten()
    assert kept is not None
    stage.set_condition(adaptive, congested=True)
    assert kept.wait(SOON_S) is None
    del kept
    stage.settle()
    deadline_s = time.monotonic() + SOON_S
    while forgotten() is not None and time.monotonic() < deadline_s:
        gc.collect()
    assert forgotten() is None


def test_several_wait_for_one_call(stage: Stage, adaptive: int, pending: OVERLAPPED) -> None:
    with ThreadPoolExecutor(4) as threads:
        waiting = [threads.submit(pending.wait, SOON_S) for _ in range(4)]
        stage.set_condition(adaptive, congested=True)
        assert [each.result(SOON_S) for each in waiting] == [None] * 4


def test_calls_of_several_kinds_are_pending_on_one_flow(
    stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED
) -> None:
    available = win32.QOSNotifyFlow(handle, adaptive, QOSNotifyAvailable, 8, 1_000_000, 0, OVERLAPPED())
    fresh = win32.QOSQueryFlow(handle, adaptive, QOSQueryFlowFundamentals, None, QOS_QUERYFLOW_FRESH, OVERLAPPED())
    assert available is not None
    stage.settle()
    assert [each.done for each in (pending, available, fresh)] == [False, False, False]
    stage.measure(PEER[0], qos2.FlowFundamentals(rtt_us=250))
    assert values(fresh.wait(SOON_S)) == (0, 0, 0, 0, 1, 250)
    stage.set_condition(adaptive, congested=False, free=1_000_000)
    assert available.wait(SOON_S) is None
    assert not pending.done
    stage.set_condition(adaptive, congested=True)
    assert pending.wait(SOON_S) is None


def test_a_bandwidth_beyond_every_path_is_waited_for(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    stage.set_condition(adaptive, congested=False, free=400_000_000_000)
    waiting = win32.QOSNotifyFlow(handle, adaptive, QOSNotifyAvailable, 8, 2**64 - 1, 0, OVERLAPPED())
    assert waiting is not None
    assert failure(waiting.wait, 0.05) == win32.ERROR_TIMEOUT
    win32.QOSCancel(handle, waiting)
    assert failure(waiting.wait, SOON_S) == 995


def test_an_event_loop_hears_of_the_end(stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED) -> None:
    async def follow() -> object:
        heard = asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_reader(pending, heard.set)
        await loop.run_in_executor(None, lambda: stage.set_condition(adaptive, congested=True))
        await asyncio.wait_for(heard.wait(), SOON_S)
        loop.remove_reader(pending)
        return GetOverlappedResult(handle, pending, False)

    assert asyncio.run(follow()) is None


def test_many_threads_have_calls_under_way_on_one_handle(handle: win32.HANDLE, flow: int) -> None:
    def ask(number: int) -> list[int]:
        found = []
        for turn in range(50):
            overlapped = win32.QOSQueryFlow(handle, flow, QOSQueryPacketPriority, Overlapped=OVERLAPPED())
            if (number + turn) % 2:
                await_event(overlapped)
            found.append(overlapped.wait(SOON_S).ConformantDSCPValue)
        return found

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(ask, range(8))) == [[56] * 50] * 8


# Refused


def test_what_the_daemon_refuses_is_told_by_the_overlapped(handle: win32.HANDLE, flow: int, adaptive: int) -> None:
    begun: list[tuple[Any, int]] = [
        (win32.QOSSetFlow(handle, UNKNOWN_FLOW, QOSSetTrafficType, None, 1, 0, OVERLAPPED()), 1168),
        (win32.QOSSetFlow(handle, flow, QOSSetTrafficType, None, 6, 0, OVERLAPPED()), 87),
        (win32.QOSSetFlow(handle, adaptive, QOSSetOutgoingDSCPValue, None, 46, 0, OVERLAPPED()), 50),
        (win32.QOSQueryFlow(handle, UNKNOWN_FLOW, QOSQueryOutgoingRate, None, 0, OVERLAPPED()), 1168),
        (win32.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate, 7, 0, OVERLAPPED()), 122),
        (win32.QOSQueryFlow(handle, adaptive, QOSQueryFlowFundamentals, None, 0, OVERLAPPED()), 232),
        (win32.QOSQueryFlow(handle, adaptive, QOSQueryFlowFundamentals, 39, 0, OVERLAPPED()), 122),
        (win32.QOSNotifyFlow(handle, flow, QOSNotifyCongested, None, None, 0, OVERLAPPED()), 50),
        (win32.QOSNotifyFlow(handle, adaptive, QOSNotifyAvailable, 7, 1, 0, OVERLAPPED()), 122),
        (win32.QOSNotifyFlow(handle, adaptive, QOSNotifyAvailable, 8, 0, 0, OVERLAPPED()), 87),
    ]
    for overlapped, number in begun:
        await_event(overlapped)
        assert (failure(overlapped.wait), overlapped.Internal, overlapped.InternalHigh) == (number, number, 0)
        assert failure(GetOverlappedResult, handle, overlapped, False) == number
        overlapped.close()  # the errors below keep this frame, and with it the list
    with pytest.raises(WinError) as first:
        begun[0][0].wait()
    with pytest.raises(WinError) as second:
        begun[0][0].wait()
    assert first.value is not second.value
    assert isinstance(first.value.__cause__, qos2.NoSuchFlow)


def test_what_is_refused_on_this_side_leaves_the_overlapped_alone(
    stage: Stage, handle: win32.HANDLE, adaptive: int
) -> None:
    overlapped = OVERLAPPED()
    calls: list[Callable[[], object]] = [
        lambda: win32.QOSSetFlow(handle, adaptive, QOSSetTrafficType, 3, 1, 0, overlapped),
        lambda: win32.QOSQueryFlow(handle, adaptive, 7, None, 0, overlapped),
        lambda: win32.QOSNotifyFlow(handle, adaptive, QOSNotifyCongested, 8, 1, 0, overlapped),
    ]
    assert [failure(call) for call in calls] == [87] * len(calls)
    assert failure(win32.QOSSetFlow, None, adaptive, QOSSetTrafficType, None, 1, 0, overlapped) == 6
    assert (overlapped.done, overlapped.Internal, is_set(overlapped)) == (False, 0, False)
    assert [failure(overlapped.wait), failure(GetOverlappedResult, handle, overlapped, True)] == [87, 87]
    assert failure(GetOverlappedResult, handle, overlapped, False) == 87


def test_an_overlapped_has_one_call_at_a_time(
    stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED
) -> None:
    assert failure(win32.QOSQueryFlow, handle, adaptive, QOSQueryOutgoingRate, None, 0, pending) == 87
    assert (pending.Internal, is_set(pending)) == (PENDING, False)
    stage.set_condition(adaptive, congested=True)
    assert pending.wait(SOON_S) is None
    assert win32.QOSQueryFlow(handle, adaptive, QOSQueryOutgoingRate, None, 0, pending).wait(SOON_S) == 0


@pytest.mark.parametrize("wrong", [7, object(), OVERLAPPED])
def test_what_is_no_overlapped(handle: win32.HANDLE, adaptive: int, wrong: Any) -> None:
    assert failure(win32.QOSQueryFlow, handle, adaptive, QOSQueryOutgoingRate, None, 0, wrong) == 87
    assert failure(win32.QOSCancel, handle, wrong) == 87
    assert failure(GetOverlappedResult, handle, wrong, False) == 87
    assert failure(GetOverlappedResult, wrong, OVERLAPPED(), False) == 6


def test_one_of_a_kind_is_pending_on_a_flow(
    stage: Stage, handle: win32.HANDLE, adaptive: int, pending: OVERLAPPED
) -> None:
    assert failure(win32.QOSNotifyFlow, handle, adaptive, QOSNotifyCongested) == 183
    again = win32.QOSNotifyFlow(handle, adaptive, QOSNotifyCongested, Overlapped=OVERLAPPED())
    assert again is not None
    assert failure(again.wait, SOON_S) == 183
    assert not pending.done


def test_a_fresh_measurement_may_come_to_nothing(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    def fresh(size: int | None = None) -> Any:
        return win32.QOSQueryFlow(handle, adaptive, QOSQueryFlowFundamentals, size, QOS_QUERYFLOW_FRESH, OVERLAPPED())

    overlapped = fresh()
    stage.settle()
    stage.measure(PEER[0], None)
    assert failure(overlapped.wait, SOON_S) == 1237
    stage.call(lambda: stage.paths.set_refresh(PEER[0], Retry("not now", "later")))
    assert failure(fresh().wait, SOON_S) == 1237


def test_nobody_measures_for_a_buffer_that_is_too_small(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    fresh = QOS_QUERYFLOW_FRESH
    assert failure(win32.QOSQueryFlow, handle, adaptive, QOSQueryFlowFundamentals, 39, fresh) == 122
    assert stage.paths.refreshing == []
