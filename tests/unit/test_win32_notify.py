"""QOSNotifyFlow of qos2.win32 where it is answered at once: conditions that hold, and what cannot be waited for."""

import ctypes
from typing import Any

import pytest

from qos2 import win32
from qos2.errors import NoSuchFlow
from qos2.win32 import (
    QOSNotifyAvailable,
    QOSNotifyCongested,
    QOSNotifyUncongested,
    QOSQueryPacketPriority,
    QOSSetOutgoingRate,
    WinError,
)
from unit.server_stage import PEER, Stage
from unit.win32_stage import RATE, UNKNOWN_FLOW, failure

pytest_plugins = ["unit.win32_fixtures"]


def test_a_condition_that_holds_is_told_at_once(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    stage.set_condition(adaptive, congested=True)
    assert win32.QOSNotifyFlow(handle, adaptive, QOSNotifyCongested) is None
    stage.set_condition(adaptive, congested=False, free=1_000_000)
    assert win32.QOSNotifyFlow(handle, adaptive, QOSNotifyUncongested) is None
    for buffer in (1_000_000, ctypes.c_uint64(1_000_000), (1_000_000).to_bytes(8, "little")):
        for size in (None, 8, 9):
            assert win32.QOSNotifyFlow(handle, adaptive, QOSNotifyAvailable, size, buffer) is None


@pytest.mark.parametrize(
    ("operation", "size", "buffer"),
    [
        (QOSNotifyCongested, 0, None),
        (QOSNotifyCongested, None, 1),
        (QOSNotifyUncongested, 8, 1),
        (QOSNotifyAvailable, None, None),
        (QOSNotifyAvailable, 8, None),
        (QOSNotifyAvailable, 0, None),
        (QOSNotifyAvailable, None, b"\0" * 7),
        (QOSNotifyAvailable, None, ctypes.c_uint32(1)),
        (QOSNotifyAvailable, -1, 1),
        (3, None, None),
        (None, None, None),
    ],
)
def test_what_cannot_be_waited_for(handle: win32.HANDLE, operation: Any, size: Any, buffer: Any) -> None:
    assert failure(win32.QOSNotifyFlow, handle, UNKNOWN_FLOW, operation, size, buffer) == 87


def test_a_bandwidth_that_does_not_fit_its_buffer_is_told_after_flow_and_path(
    stage: Stage, handle: win32.HANDLE, adaptive: int
) -> None:
    with pytest.raises(WinError) as refused:
        win32.QOSNotifyFlow(handle, adaptive, QOSNotifyAvailable, 7, 3_000_000)
    assert (refused.value.winerror, refused.value.size) == (122, 8)
    assert failure(win32.QOSNotifyFlow, handle, UNKNOWN_FLOW, QOSNotifyAvailable, 7, 3_000_000) == 1168
    stage.set_off_link(PEER[0])
    assert failure(win32.QOSNotifyFlow, handle, adaptive, QOSNotifyAvailable, 7, 3_000_000) == 50


def test_a_bandwidth_that_the_flow_holds_is_not_waited_for(handle: win32.HANDLE, adaptive: int) -> None:
    win32.QOSSetFlow(handle, adaptive, QOSSetOutgoingRate, None, RATE)
    for wanted in (0, 1_999_999, 2_000_000):
        assert failure(win32.QOSNotifyFlow, handle, adaptive, QOSNotifyAvailable, None, wanted) == 87


def test_a_flow_that_is_not_adaptive_is_not_watched(handle: win32.HANDLE, flow: int) -> None:
    assert failure(win32.QOSNotifyFlow, handle, flow, QOSNotifyCongested) == 50
    assert failure(win32.QOSNotifyFlow, handle, flow, QOSNotifyAvailable, 0, 1) == 50


def test_errors_keep_their_cause(handle: win32.HANDLE) -> None:
    with pytest.raises(WinError, match=r"\[WinError 1168\] ERROR_NOT_FOUND: no flow 4294967295") as refused:
        win32.QOSQueryFlow(handle, UNKNOWN_FLOW, QOSQueryPacketPriority)
    cause = refused.value.__cause__
    assert isinstance(cause, NoSuchFlow)
    assert (refused.value.strerror, refused.value.hint) == (cause.message, cause.hint)
