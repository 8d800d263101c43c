"""QOSAddSocketToFlow and QOSRemoveSocketFromFlow of qos2.win32, against the real server and service."""

import socket
import tempfile
from collections.abc import Callable
from typing import Any

import pytest

from qos2 import win32
from qos2.core.rules import Rules
from qos2.core.service import Limits
from qos2.model import FlowId
from qos2.win32 import (
    QOS_FLOWID,
    QOS_NON_ADAPTIVE_FLOW,
    QOSTrafficTypeAudioVideo,
    QOSTrafficTypeBackground,
    QOSTrafficTypeVoice,
    WinError,
)
from unit.server_stage import PEER, Stage, staged, udp
from unit.win32_stage import SECOND, UNKNOWN_FLOW, failure, opened, priority

pytest_plugins = ["unit.win32_fixtures"]


def test_a_socket_joins_marks_and_leaves(stage: Stage, handle: win32.HANDLE, sock: socket.socket) -> None:
    flow = win32.QOSAddSocketToFlow(handle, sock, PEER, QOSTrafficTypeAudioVideo, QOS_NON_ADAPTIVE_FLOW)
    assert priority(handle, flow) == (40, 0, 0, 0)
    win32.QOSRemoveSocketFromFlow(handle, sock, flow)
    assert failure(priority, handle, flow) == 1168


@pytest.mark.parametrize("number", [int, QOS_FLOWID, FlowId])
def test_a_flow_takes_more_sockets_and_ends_with_none(
    stage: Stage, handle: win32.HANDLE, flow: int, number: Callable[[int], Any]
) -> None:
    with udp() as other:
        add = win32.QOSAddSocketToFlow
        assert add(handle, other, SECOND, QOSTrafficTypeBackground, QOS_NON_ADAPTIVE_FLOW, number(flow)) == flow
        assert add(handle, other.fileno(), SECOND, 99, QOS_NON_ADAPTIVE_FLOW, number(flow)) == flow
        assert priority(handle, flow) == (56, 0, 0, 0)
        assert failure(add, handle, other, SECOND, QOSTrafficTypeVoice, 0, flow) == 87
        assert failure(add, handle, other, SECOND, QOSTrafficTypeVoice, 0, UNKNOWN_FLOW) == 87
        assert failure(add, handle, other, SECOND, QOSTrafficTypeVoice, 2, UNKNOWN_FLOW) == 1168
        win32.QOSRemoveSocketFromFlow(handle, None, number(flow))
        assert failure(add, handle, other, SECOND, QOSTrafficTypeVoice, 2, flow) == 1168
    assert stage.datapath.policies == {}


@pytest.mark.parametrize("no_socket", [None, 0])
def test_without_a_socket_the_flow_ends(stage: Stage, handle: win32.HANDLE, flow: int, no_socket: Any) -> None:
    win32.QOSRemoveSocketFromFlow(handle, no_socket, flow)
    assert stage.datapath.policies == {}
    assert failure(win32.QOSRemoveSocketFromFlow, handle, no_socket, flow) == 1168
    assert failure(win32.QOSRemoveSocketFromFlow, handle, no_socket, 0) == 1168


def test_a_socket_with_descriptor_0_is_no_missing_socket(stage: Stage, handle: win32.HANDLE, flow: int) -> None:
    """As an object it is meant itself; as a number 0 says that there is none."""

    class Standard:
        def fileno(self) -> int:
            return 0

    assert failure(win32.QOSRemoveSocketFromFlow, handle, Standard(), flow) == 1168
    assert list(stage.datapath.policies) == [flow]


def test_what_is_in_no_flow_cannot_be_removed(handle: win32.HANDLE, flow: int, sock: socket.socket) -> None:
    pair = socket.socketpair()
    with tempfile.TemporaryFile() as file, udp(PEER) as stranger, pair[0], pair[1]:
        closed = udp()
        closed.close()
        for other in (stranger, closed, -1, 10**6, file, pair[0], "socket"):
            assert failure(win32.QOSRemoveSocketFromFlow, handle, other, flow) == 1168, other
        assert failure(win32.QOSRemoveSocketFromFlow, handle, sock, flow, 1) == 87
        assert failure(win32.QOSRemoveSocketFromFlow, handle, sock, "flow") == 87
    assert failure(win32.QOSRemoveSocketFromFlow, handle, sock, flow) == 0


def test_what_cannot_be_added(stage: Stage, handle: win32.HANDLE, sock: socket.socket, flow: int) -> None:
    pair = socket.socketpair()
    with tempfile.TemporaryFile() as file, udp() as unconnected, pair[0], pair[1]:
        closed = udp()
        closed.close()
        for arguments in (
            (closed, None, 4, 2),
            (None, None, 4, 2),
            (-1, None, 4, 2),
            (file, None, 4, 2),
            (pair[0], None, 4, 2),
            (unconnected, None, 4, 2),
            (sock, SECOND, 4, 2),
            (sock, ("example.org", 5004), 4, 2),
            (sock, ("192.0.2.7",), 4, 2),
            (sock, "192.0.2.7", 4, 2),
            (sock, None, 6, 2),
            (sock, None, -1, 2),
            (sock, None, None, 2),
            (sock, None, 4, 1),
            (sock, None, 4, None),
            (sock, None, 4, 2, None),
        ):
            assert failure(win32.QOSAddSocketToFlow, handle, *arguments) == 87, arguments
    assert list(stage.datapath.policies) == [flow]


def test_strict_refuses_what_windows_refuses() -> None:
    add = win32.QOSAddSocketToFlow
    with (
        staged(rules=Rules(strict=True)) as stage,
        opened(stage) as handle,
        udp(family=socket.AF_INET6) as dual_stack,
    ):
        assert failure(add, handle, dual_stack, PEER, QOSTrafficTypeVoice, 2) == 87
        assert failure(add, handle, dual_stack, ("::ffff:192.0.2.7", 5004, 0, 0), QOSTrafficTypeVoice, 2) == 87
        assert failure(add, handle, dual_stack, ("2001:db8::7", 5004, 0, 0), QOSTrafficTypeVoice, 2) == 0


def test_a_flow_has_so_many_members_and_a_user_so_many_flows() -> None:
    limits = Limits(members_per_flow=1, flows_per_privileged_uid=1, flows_per_uid=1)
    with staged(limits=limits) as stage, opened(stage) as handle, udp(PEER) as sock, udp(PEER) as other:
        flow = win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice, 2)
        assert failure(win32.QOSAddSocketToFlow, handle, other, None, QOSTrafficTypeVoice, 2, flow) == 1450
        assert failure(win32.QOSAddSocketToFlow, handle, other, None, QOSTrafficTypeVoice, 2) == 1450


def test_the_kernel_may_refuse(stage: Stage, handle: win32.HANDLE, sock: socket.socket) -> None:
    stage.call(lambda: stage.datapath.refuse("put"))
    with pytest.raises(WinError) as refused:
        win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice, 2)
    assert str(refused.value) == "[WinError 1117] ERROR_IO_DEVICE: put refused (the test asked for it)"
