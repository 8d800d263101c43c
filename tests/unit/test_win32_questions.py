"""What qos2.win32 tells: QOSQueryFlow, QOSEnumerateFlows, and the tracking that estimates come from."""

from collections.abc import Callable
from typing import Any

import pytest

import qos2
from qos2 import win32
from qos2.win32 import (
    QOSQueryFlowFundamentals,
    QOSQueryOutgoingRate,
    QOSQueryPacketPriority,
    QOSTrafficTypeVoice,
    WinError,
)
from unit.server_stage import PEER, Stage, udp
from unit.win32_stage import UNKNOWN_FLOW, failure, opened, ordinary, values

pytest_plugins = ["unit.win32_fixtures"]

# Questions


def test_sizes_of_answers(handle: win32.HANDLE, flow: int) -> None:
    for operation, needed in ((QOSQueryPacketPriority, 16), (QOSQueryOutgoingRate, 8)):
        for size in (needed, needed + 1, 2**32 - 1):
            assert failure(win32.QOSQueryFlow, handle, flow, operation, size) == 0
        for size in (0, needed - 1):
            with pytest.raises(WinError) as refused:
                win32.QOSQueryFlow(handle, flow, operation, size)
            assert (refused.value.winerror, refused.value.size) == (122, needed)
        for wrong in (-1, 2**32, "8", 8.0):
            assert failure(win32.QOSQueryFlow, handle, flow, operation, wrong) == 87
        assert failure(win32.QOSQueryFlow, handle, UNKNOWN_FLOW, operation, 0) == 1168


def test_fundamentals(stage: Stage, handle: win32.HANDLE, adaptive: int) -> None:
    def query(size: int | None = None) -> Any:
        return win32.QOSQueryFlow(handle, adaptive, QOSQueryFlowFundamentals, size)

    assert failure(query) == 232
    with pytest.raises(WinError) as refused:
        query(39)
    assert (refused.value.winerror, refused.value.size) == (122, 40)
    assert isinstance(refused.value.__cause__, qos2.NoData)
    stage.set_estimate(PEER[0], qos2.FlowFundamentals(qos2.Bandwidth(10**9), None, 250))
    assert type(query()) is win32.QOS_FLOW_FUNDAMENTALS
    assert values(query(40)) == (1, 10**9, 0, 0, 1, 250)
    assert failure(query, 39) == 122
    stage.set_off_link(PEER[0])
    assert [failure(query, size) for size in (None, 0)] == [50, 50]
    stage.set_unreachable(PEER[0])
    assert [failure(query, size) for size in (None, 0)] == [1232, 1232]


def test_a_flow_that_is_not_adaptive_has_no_fundamentals(handle: win32.HANDLE, flow: int) -> None:
    assert failure(win32.QOSQueryFlow, handle, flow, QOSQueryFlowFundamentals, 0) == 50


@pytest.mark.parametrize(("operation", "flags"), [(3, 0), (-1, 0), (None, 0), (1, 2), (1, -1), (1, "fresh")])
def test_what_cannot_be_asked(handle: win32.HANDLE, operation: Any, flags: Any) -> None:
    assert failure(win32.QOSQueryFlow, handle, UNKNOWN_FLOW, operation, None, flags) == 87


def test_fresh_means_nothing_for_what_is_not_measured(handle: win32.HANDLE, flow: int) -> None:
    fresh = win32.QOS_QUERYFLOW_FRESH
    assert values(win32.QOSQueryFlow(handle, flow, QOSQueryPacketPriority, None, fresh)) == (56, 0, 0, 0)
    assert win32.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate, None, fresh) == 0


def test_flows_of_the_machine(stage: Stage, handle: win32.HANDLE, flow: int) -> None:
    with opened(stage) as other, udp(PEER) as sock:
        second = win32.QOSAddSocketToFlow(other, sock, None, QOSTrafficTypeVoice, 2)
        assert sorted(win32.QOSEnumerateFlows(handle)) == sorted([flow, second])
        assert sorted(win32.QOSEnumerateFlows(handle, 8)) == sorted([flow, second])
        for size in (0, 7):
            with pytest.raises(WinError) as refused:
                win32.QOSEnumerateFlows(handle, size)
            assert (refused.value.winerror, refused.value.size) == (122, 8)
    with ordinary(stage) as other:
        assert [failure(win32.QOSEnumerateFlows, other, size) for size in (None, 0)] == [5, 5]


def test_no_flows_need_no_room(handle: win32.HANDLE) -> None:
    assert win32.QOSEnumerateFlows(handle, 0) == []


# Tracking


@pytest.mark.parametrize("address", ["192.0.2.7", PEER, ("192.0.2.7", 0), qos2.Destination.parse("192.0.2.7", 1)])
def test_a_host_is_tracked(stage: Stage, handle: win32.HANDLE, address: Any) -> None:
    win32.QOSStartTrackingClient(handle, address)
    assert [str(host) for host in stage.paths.begun] == ["192.0.2.7"]
    win32.QOSStopTrackingClient(handle, address)
    assert stage.paths.begun == set()
    assert failure(win32.QOSStopTrackingClient, handle, address) == 1168


def test_tracking_outlives_its_handle_for_a_while(stage: Stage, handle: win32.HANDLE) -> None:
    with opened(stage) as other:
        win32.QOSStartTrackingClient(other, PEER)
    win32.QOSStopTrackingClient(handle, PEER)
    assert failure(win32.QOSStopTrackingClient, handle, PEER) == 1168


@pytest.mark.parametrize("call", [win32.QOSStartTrackingClient, win32.QOSStopTrackingClient])
def test_what_cannot_be_tracked(handle: win32.HANDLE, call: Callable[..., None]) -> None:
    for address in (None, "", "example.org", "0.0.0.0", ("::", 0, 0, 0), ("192.0.2.7",), ("192.0.2.7", "80"), 7):
        assert failure(call, handle, address) == 87, address
    assert failure(call, handle, PEER, 1) == 87


def test_hosts_about_which_nothing_can_be_learnt(stage: Stage, handle: win32.HANDLE) -> None:
    stage.set_off_link(PEER[0])
    assert failure(win32.QOSStartTrackingClient, handle, PEER) == 50
    stage.set_unreachable(PEER[0])
    assert failure(win32.QOSStartTrackingClient, handle, PEER) == 1232
