"""The eleven calls of qos2.h, and GetOverlappedResult, by their names and parameters there.

What C returns through pointers is the result here, and sizes may be left out; everything else is as in C.
Each call raises WinError with the number that GetLastError would return. It judges what a C program can
get wrong on its own side: the handle first, then flags, operations, sizes and buffers; every rule about
flows is the daemon's. docs/api.md lists what differs from Windows, and why.
"""

import ctypes
import os
from typing import Any, TypeVar

from qos2.channel import Channel
from qos2.client import Handle, Socket, descriptor
from qos2.errors import InvalidHandle, InvalidRequest, NoSuchFlow, ProtocolError, ServiceLost, ServiceUnavailable
from qos2.win32 import requests
from qos2.win32.buffers import Buffer, checked_size
from qos2.win32.enumerations import QOS_NON_ADAPTIVE_FLOW, QOS_QUERYFLOW_FRESH
from qos2.win32.errors import insufficient, windows
from qos2.win32.handle import HANDLE, channel, close, session
from qos2.win32.overlapped import OVERLAPPED
from qos2.win32.requests import FlowNumber, Request, flow_number
from qos2.win32.structures import QOS_FLOWID, QOS_VERSION
from qos2.wire import calls
from qos2.wire.calls import Endpoint

V = TypeVar("V")


@windows
def QOSCreateHandle(
    Version: QOS_VERSION | tuple[int, int] = (1, 0), *, path: str | os.PathLike[str] | None = None
) -> HANDLE:
    """A handle, open until QOSCloseHandle. `path` is the daemon's socket, $QOS2_SOCKET or the default if not given.

    ERROR_INVALID_PARAMETER: a version other than 1.0. ERROR_SERVICE_DEPENDENCY_FAIL: no daemon answers.
    ERROR_NO_SYSTEM_RESOURCES: this user has too many handles. ERROR_ACCESS_DENIED: may not use the daemon's socket.
    """
    version = (Version.MajorVersion, Version.MinorVersion) if isinstance(Version, QOS_VERSION) else Version
    if version != (1, 0):
        raise InvalidRequest(f"version {version!r} of QoS2", "there is (1, 0)")
    try:
        return HANDLE(Handle(path))
    except ServiceLost as error:
        # "Make a new handle" would be poor advice to one who is doing just that.
        raise ServiceUnavailable(error.message, "see the daemon's log") from error


@windows
def QOSCloseHandle(QOSHandle: HANDLE) -> None:
    """End a handle: all its flows, and with ERROR_OPERATION_ABORTED all calls that are under way.

    ERROR_INVALID_PARAMETER: no handle, or closed already.
    """
    close(QOSHandle)


@windows
def QOSStartTrackingClient(QOSHandle: HANDLE, DestAddr: Endpoint | str, Flags: int = 0) -> None:
    """Learn about the path to a host from now on. `DestAddr` is an address or a socket address; its port is ignored.

    ERROR_INVALID_PARAMETER: no single host. ERROR_NOT_SUPPORTED: not on this link. ERROR_HOST_UNREACHABLE: no route.
    """
    run = channel(QOSHandle).run
    _no_flags(Flags)
    run(calls.start_tracking(_client(DestAddr)))


@windows
def QOSStopTrackingClient(QOSHandle: HANDLE, DestAddr: Endpoint | str, Flags: int = 0) -> None:
    """The end of QOSStartTrackingClient, by any handle of the process, and up to 60 s after the first was closed.

    ERROR_INVALID_PARAMETER: no single host. ERROR_NOT_FOUND: this process does not track it.
    """
    run = channel(QOSHandle).run
    _no_flags(Flags)
    run(calls.stop_tracking(_client(DestAddr)))


@windows
def QOSEnumerateFlows(QOSHandle: HANDLE, Size: int | None = None) -> list[int]:
    """The ids of all flows of the machine.

    `Size` is for programs that want to be told ERROR_INSUFFICIENT_BUFFER, with `size`: 4 bytes for each id.
    ERROR_ACCESS_DENIED: neither root nor in the group `qos2`.
    """
    opened = session(QOSHandle)
    given = checked_size(Size, 2**32 - 1)
    flows: list[int] = list(opened.enumerate())
    needed = len(flows) * ctypes.sizeof(QOS_FLOWID)
    if given < needed:
        raise insufficient(given, needed)
    return flows


@windows
def QOSAddSocketToFlow(
    QOSHandle: HANDLE,
    Socket: Socket,
    DestAddr: Endpoint | None,
    TrafficType: int,
    Flags: int = 0,
    FlowId: FlowNumber = 0,
) -> int:
    """The id of the flow in which a socket is now: a new one for `FlowId` 0, else that one.

    `DestAddr` may be None for a connected socket; the all-zero address with port 0 stands for every destination.
    ERROR_INVALID_PARAMETER: socket, address, type, or flags are wrong, or the flow is adaptive and takes no more.
    ERROR_NOT_FOUND: no such flow. ERROR_NO_SYSTEM_RESOURCES: too many flows, or members of the flow.
    """
    run = channel(QOSHandle).run
    fd = descriptor(Socket)
    if Flags not in (0, QOS_NON_ADAPTIVE_FLOW):
        raise InvalidRequest(f"flags {Flags!r}", "0, or 2 (QOS_NON_ADAPTIVE_FLOW)")
    return run(calls.add_socket(TrafficType, flow_number(FlowId), DestAddr, Flags == 0), fd)


@windows
def QOSRemoveSocketFromFlow(QOSHandle: HANDLE, Socket: Socket | None, FlowId: FlowNumber, Flags: int = 0) -> None:
    """A socket leaves a flow, which ends with its last one; without a socket (None or 0) the whole flow ends.

    ERROR_NOT_FOUND: no such flow, or the socket is closed, none at all, or not in it.
    """
    run = channel(QOSHandle).run
    _no_flags(Flags)
    call = calls.remove_socket(flow_number(FlowId))
    if Socket is None or (isinstance(Socket, int) and Socket == 0):
        run(call)
        return
    try:
        run(call, descriptor(Socket))
    except InvalidRequest as error:
        if isinstance(error, ProtocolError | InvalidHandle):
            raise
        # What is no socket that could be in a flow is in none.
        raise NoSuchFlow(error.message, error.hint) from error


@windows
def QOSSetFlow(
    QOSHandle: HANDLE,
    FlowId: FlowNumber,
    Operation: int,
    Size: int | None,
    Buffer: Buffer,
    Flags: int = 0,
    Overlapped: OVERLAPPED | None = None,
) -> OVERLAPPED | None:
    """Change a flow: a QOS_TRAFFIC_TYPE, a QOS_FLOWRATE_OUTGOING or a DSCP in `Buffer`; `Size` None is the right one.

    With `Overlapped` that is returned, and has the outcome later.
    ERROR_INVALID_PARAMETER: operation, buffer, or a value in it. ERROR_NOT_FOUND: no such flow.
    ERROR_ACCESS_DENIED: a DSCP without the right. ERROR_NOT_SUPPORTED: a DSCP for an adaptive flow.
    ERROR_NETWORK_BUSY, ERROR_RETRY: the path does not have the rate, or that cannot be told now.
    """
    opened = channel(QOSHandle)
    _no_flags(Flags)
    return _run(opened, requests.setting(FlowId, Operation, Size, Buffer), Overlapped)


@windows
def QOSQueryFlow(
    QOSHandle: HANDLE,
    FlowId: FlowNumber,
    Operation: int,
    Size: int | None = None,
    Flags: int = 0,
    Overlapped: OVERLAPPED | None = None,
) -> Any:
    """A QOS_FLOW_FUNDAMENTALS, a QOS_PACKET_PRIORITY, or the contract's bits/s (0: none), by `Operation`.

    With `Overlapped` that is returned, and has the outcome later. `Flags` may be QOS_QUERYFLOW_FRESH.
    ERROR_INVALID_PARAMETER: operation or flags. ERROR_NOT_FOUND: no such flow.
    ERROR_INSUFFICIENT_BUFFER: a `Size` that is too small; the error's `size` would do.
    ERROR_NOT_SUPPORTED: fundamentals of a flow that is not adaptive, or goes off this link.
    ERROR_NO_DATA: nothing measured yet. ERROR_RETRY: nothing fresh can be had now.
    """
    opened = channel(QOSHandle)
    if Flags not in (0, QOS_QUERYFLOW_FRESH):
        raise InvalidRequest(f"flags {Flags!r}", "0, or 1 (QOS_QUERYFLOW_FRESH)")
    return _run(opened, requests.question(FlowId, Operation, Size, fresh=Flags == QOS_QUERYFLOW_FRESH), Overlapped)


@windows
def QOSNotifyFlow(
    QOSHandle: HANDLE,
    FlowId: FlowNumber,
    Operation: int,
    Size: int | None = None,
    Buffer: Buffer = None,
    Flags: int = 0,
    Overlapped: OVERLAPPED | None = None,
) -> OVERLAPPED | None:
    """Wait until the path is congested, or not, or has room for the total of `Buffer` bits/s (QOSNotifyAvailable).

    With `Overlapped` that is returned, and completes when the condition holds.
    ERROR_INVALID_PARAMETER: operation, size, buffer, or a total that the flow has already.
    ERROR_INSUFFICIENT_BUFFER: a `Size` below 8. ERROR_NOT_FOUND: no such flow.
    ERROR_NOT_SUPPORTED: the flow is not adaptive, or goes off this link.
    ERROR_ALREADY_EXISTS: the same is waited for already. ERROR_OPERATION_ABORTED: cancelled; the flow or handle ended.
    """
    opened = channel(QOSHandle)
    _no_flags(Flags)
    return _run(opened, requests.wait(FlowId, Operation, Size, Buffer), Overlapped)


@windows
def QOSCancel(QOSHandle: HANDLE, Overlapped: OVERLAPPED) -> None:
    """Have the call of `Overlapped` end; it completes as ever, with ERROR_OPERATION_ABORTED.

    ERROR_INVALID_PARAMETER: no OVERLAPPED, or nothing of this handle is under way with it.
    """
    opened = channel(QOSHandle)
    _checked(Overlapped).cancel(opened)


@windows
def GetOverlappedResult(QOSHandle: HANDLE, Overlapped: OVERLAPPED, Wait: bool) -> Any:
    """The result of the call of `Overlapped`, as the call itself would have returned it, or its WinError.

    ERROR_IO_INCOMPLETE: it is under way, and `Wait` is false. A handle that was closed since serves too.
    ERROR_INVALID_HANDLE: not a HANDLE. ERROR_INVALID_PARAMETER: no OVERLAPPED, or none that a call was made with.
    """
    if not isinstance(QOSHandle, HANDLE):
        raise InvalidHandle(f"not a handle: {QOSHandle!r}", "QOSCreateHandle makes one")
    asked = _checked(Overlapped)
    return asked.wait() if Wait else asked.result()


def _run(opened: Channel, request: Request[Any, V], overlapped: OVERLAPPED | None) -> V | OVERLAPPED:
    """The value of a request, or its OVERLAPPED."""
    if overlapped is None:
        return request.outcome(lambda: opened.run(request.call))[0]
    _checked(overlapped).begin(opened, request)
    return overlapped


def _checked(overlapped: object) -> OVERLAPPED:
    if not isinstance(overlapped, OVERLAPPED):
        raise InvalidRequest(f"not an OVERLAPPED: {overlapped!r}", "qos2.win32.OVERLAPPED() makes one")
    return overlapped


def _no_flags(flags: int) -> None:
    if flags != 0:
        raise InvalidRequest(f"flags {flags!r}", "this call has none: 0")


def _client(address: Endpoint | str) -> str:
    """The host of a socket address, or of a text that is only that."""
    if isinstance(address, str):
        return address
    host, _ = calls.endpoint(address)
    if host is None:
        raise InvalidRequest("no DestAddr", "the address of the host")
    return host
