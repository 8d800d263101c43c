"""QOSSetFlow of qos2.win32: its buffers, its values, and what becomes of the flow."""

import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from qos2 import win32
from qos2.core.rules import Deniable, Rules
from qos2.errors import NetworkBusy
from qos2.model import FlowId
from qos2.win32 import (
    QOS_FLOWRATE_OUTGOING,
    QOSNotifyAvailable,
    QOSNotifyCongested,
    QOSQueryFlowFundamentals,
    QOSQueryOutgoingRate,
    QOSSetOutgoingDSCPValue,
    QOSSetOutgoingRate,
    QOSSetTrafficType,
    QOSShapeAndMark,
    QOSShapeOnly,
    QOSTrafficTypeBackground,
    QOSTrafficTypeVoice,
    QOSUseNonConformantMarkings,
)
from unit.server_stage import PEER, Stage, staged, udp
from unit.win32_stage import RATE, UNKNOWN_FLOW, failure, opened, ordinary, priority

pytest_plugins = ["unit.win32_fixtures"]


@pytest.mark.parametrize(
    "buffer",
    [
        1,
        QOSTrafficTypeBackground,
        ctypes.c_int32(1),
        ctypes.c_uint32(1),
        ctypes.c_uint64(1),
        (ctypes.c_int32 * 1)(1),
        (1).to_bytes(4, "little") + b"more",
        bytearray((1).to_bytes(4, "little")),
        memoryview((1).to_bytes(4, "little")),
    ],
    ids=lambda buffer: type(buffer).__name__,
)
def test_a_number_may_come_in_many_buffers(handle: win32.HANDLE, flow: int, buffer: Any) -> None:
    assert win32.QOSSetFlow(handle, flow, QOSSetTrafficType, None, buffer) is None
    assert priority(handle, flow) == (8, 0, 0, 0)
    win32.QOSSetFlow(handle, flow, QOSSetOutgoingDSCPValue, 4, buffer)
    assert priority(handle, flow) == (1, 0, 0, 0)


@pytest.mark.parametrize(
    "buffer",
    [RATE, bytes(RATE), bytes(RATE) + b"more", bytearray(bytes(RATE)), (QOS_FLOWRATE_OUTGOING * 1)(RATE)],
    ids=lambda buffer: f"{type(buffer).__name__} of {len(bytes(buffer))}",
)
def test_a_rate_may_come_in_many_buffers(stage: Stage, handle: win32.HANDLE, flow: int, buffer: Any) -> None:
    for size in (None, 16, 1000):
        assert win32.QOSSetFlow(handle, flow, QOSSetOutgoingRate, size, buffer) is None
    assert win32.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate) == 2_000_000
    policy = stage.datapath.policies[FlowId(flow)]
    assert (policy.bandwidth, policy.dscp) == (2_000_000, 56)


@pytest.mark.parametrize(
    ("operation", "size", "buffer"),
    [
        (3, None, 1),
        (-1, None, 1),
        (None, None, 1),
        ("rate", None, RATE),
        (QOSSetTrafficType, 3, 1),
        (QOSSetTrafficType, 0, 1),
        (QOSSetTrafficType, -4, 1),
        (QOSSetTrafficType, 4.0, 1),
        (QOSSetTrafficType, None, None),
        (QOSSetTrafficType, None, 6),
        (QOSSetTrafficType, None, -1),
        (QOSSetTrafficType, None, (-1).to_bytes(4, "little", signed=True)),
        (QOSSetTrafficType, None, 2**64),
        (QOSSetTrafficType, None, b"\x01\0\0"),
        (QOSSetTrafficType, None, ctypes.c_uint8(1)),
        (QOSSetTrafficType, None, "voice"),
        (QOSSetTrafficType, None, ctypes.byref(ctypes.c_int32(1))),
        (QOSSetOutgoingRate, 15, RATE),
        (QOSSetOutgoingRate, None, None),
        (QOSSetOutgoingRate, None, 2_000_000),
        (QOSSetOutgoingRate, None, bytes(RATE)[:15]),
        (QOSSetOutgoingRate, None, QOS_FLOWRATE_OUTGOING(7_999, QOSShapeAndMark, 0)),
        (QOSSetOutgoingRate, None, QOS_FLOWRATE_OUTGOING(400_000_000_001, QOSShapeAndMark, 0)),
        (QOSSetOutgoingRate, None, QOS_FLOWRATE_OUTGOING(2**64 - 1, QOSShapeAndMark, 0)),
        (QOSSetOutgoingRate, None, QOS_FLOWRATE_OUTGOING(2_000_000, 3, 0)),
        (QOSSetOutgoingRate, None, QOS_FLOWRATE_OUTGOING(2_000_000, -1, 0)),
        (QOSSetOutgoingRate, None, QOS_FLOWRATE_OUTGOING(2_000_000, QOSShapeAndMark, 5)),
        (QOSSetOutgoingDSCPValue, 3, 46),
        (QOSSetOutgoingDSCPValue, None, None),
        (QOSSetOutgoingDSCPValue, None, 64),
        (QOSSetOutgoingDSCPValue, None, b"\xff\xff\xff\xff"),
    ],
    ids=str,
)
def test_what_cannot_be_set_is_told_before_an_unknown_flow(
    handle: win32.HANDLE, flow: int, operation: Any, size: Any, buffer: Any
) -> None:
    before = priority(handle, flow), win32.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate)
    for each in (flow, UNKNOWN_FLOW, 0):
        assert failure(win32.QOSSetFlow, handle, each, operation, size, buffer) == 87
    assert (priority(handle, flow), win32.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate)) == before


def test_rates_shape_mark_and_are_taken_away(stage: Stage, handle: win32.HANDLE, flow: int) -> None:
    def after(bandwidth: int, shaping: int) -> tuple[int | None, int, tuple[int, ...]]:
        rate = QOS_FLOWRATE_OUTGOING(bandwidth, shaping, win32.QOSFlowRateContentChange)
        win32.QOSSetFlow(handle, flow, QOSSetOutgoingRate, None, rate)
        policy = stage.datapath.policies[FlowId(flow)]
        return policy.dscp, win32.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate), priority(handle, flow)

    assert after(2_000_000, QOSShapeOnly) == (0, 2_000_000, (0, 0, 0, 0))
    assert after(2_000_000, QOSUseNonConformantMarkings) == (56, 2_000_000, (56, 0, 0, 0))
    assert after(10_000_000_000, QOSShapeAndMark) == (56, 10_000_000_000, (56, 0, 0, 0))
    assert after(win32.QOS_OUTGOING_DEFAULT_MINIMUM_BANDWIDTH, QOSShapeAndMark) == (56, 64_000, (56, 0, 0, 0))
    assert after(0, QOSShapeAndMark) == (None, 0, (0, 0, 0, 0))


def test_a_dscp_of_ones_own_choice_needs_the_right_and_a_flow_that_is_not_adaptive(stage: Stage) -> None:
    with ordinary(stage) as handle, udp(PEER) as sock, udp(PEER) as other:
        flow = win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice, 2)
        adaptive = win32.QOSAddSocketToFlow(handle, other, None, QOSTrafficTypeVoice)
        assert failure(win32.QOSSetFlow, handle, flow, QOSSetOutgoingDSCPValue, None, 46) == 5
        assert failure(win32.QOSSetFlow, handle, adaptive, QOSSetOutgoingDSCPValue, None, 46) == 5
        assert failure(win32.QOSSetFlow, handle, UNKNOWN_FLOW, QOSSetOutgoingDSCPValue, None, 46) == 1168
        assert priority(handle, flow) == (56, 0, 0, 0)


def test_an_adaptive_flow_has_no_dscp_of_its_own(handle: win32.HANDLE, adaptive: int) -> None:
    assert failure(win32.QOSSetFlow, handle, adaptive, QOSSetOutgoingDSCPValue, None, 46) == 50


def test_a_rate_that_the_path_does_not_have_leaves_the_former_one(
    stage: Stage, handle: win32.HANDLE, adaptive: int
) -> None:
    win32.QOSSetFlow(handle, adaptive, QOSSetOutgoingRate, None, RATE)
    stage.set_admission(PEER[0], NetworkBusy("full", "ask for less"))
    more = QOS_FLOWRATE_OUTGOING(3_000_000, QOSShapeAndMark, 0)
    assert failure(win32.QOSSetFlow, handle, adaptive, QOSSetOutgoingRate, None, more) == 54
    assert win32.QOSQueryFlow(handle, adaptive, QOSQueryOutgoingRate) == 2_000_000


def test_the_administrator_denies() -> None:
    rules = Rules(deny=frozenset(Deniable) - {Deniable.FLOWS})
    with staged(rules=rules) as stage, opened(stage) as handle, udp(PEER) as sock:
        flow = win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice)
        calls: list[Callable[[], object]] = [
            lambda: win32.QOSSetFlow(handle, flow, QOSSetTrafficType, None, 1),
            lambda: win32.QOSSetFlow(handle, flow, QOSSetOutgoingRate, None, RATE),
            lambda: win32.QOSSetFlow(handle, flow, QOSSetOutgoingDSCPValue, None, 46),
            lambda: win32.QOSQueryFlow(handle, flow, QOSQueryFlowFundamentals),
            lambda: win32.QOSQueryFlow(handle, flow, QOSQueryFlowFundamentals, 0),
            lambda: win32.QOSNotifyFlow(handle, flow, QOSNotifyCongested),
            lambda: win32.QOSNotifyFlow(handle, flow, QOSNotifyAvailable, 0, 1),
            lambda: win32.QOSStartTrackingClient(handle, PEER),
            lambda: win32.QOSStopTrackingClient(handle, PEER),
        ]
        assert [failure(call) for call in calls] == [1260] * len(calls)
