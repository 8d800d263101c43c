"""A Windows program's view of QoS2: the eleven calls by name, whichever binding makes them.

Two bindings have these calls: the module qos2.win32, and libqwave through its C ABI (qwave.py). A Program is
what one test plays: it makes handles with one binding, and closes whatever the test leaves open.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Protocol, Self

import qos2.win32
from harness.qos2_h import ERROR_INVALID_PARAMETER, QOS_NON_ADAPTIVE_FLOW
from harness.qwave import Address, AnySocket, library

_NOBODY = 65534


class Calls(Protocol):
    """The calls, with out-parameters as results. What they refuse they raise as `WinError`, with `.winerror`."""

    @property
    def WinError(self) -> type[Any]: ...

    @property
    def OVERLAPPED(self) -> Callable[[], Any]: ...

    @property
    def QOS_FLOWRATE_OUTGOING(self) -> Callable[[int, int, int], Any]: ...

    def QOSCreateHandle(self, Version: tuple[int, int] = (1, 0), /, *, path: str | None = None) -> Any: ...

    def QOSCloseHandle(self, QOSHandle: Any, /) -> None: ...

    def QOSStartTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int = 0, /) -> None: ...

    def QOSStopTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int = 0, /) -> None: ...

    def QOSEnumerateFlows(self, QOSHandle: Any, Size: int | None = None, /) -> list[int]: ...

    def QOSAddSocketToFlow(
        self,
        QOSHandle: Any,
        Socket: socket.socket | int,
        DestAddr: Address,
        TrafficType: int,
        Flags: int = 0,
        FlowId: int = 0,
        /,
    ) -> int: ...

    def QOSRemoveSocketFromFlow(self, QOSHandle: Any, Socket: AnySocket, FlowId: int, Flags: int = 0, /) -> None: ...

    def QOSSetFlow(
        self,
        QOSHandle: Any,
        FlowId: int,
        Operation: int,
        Size: int | None,
        Buffer: Any,
        Flags: int = 0,
        Overlapped: Any = None,
        /,
    ) -> Any: ...

    def QOSQueryFlow(
        self,
        QOSHandle: Any,
        FlowId: int,
        Operation: int,
        Size: int | None = None,
        Flags: int = 0,
        Overlapped: Any = None,
        /,
    ) -> Any: ...

    def QOSNotifyFlow(
        self,
        QOSHandle: Any,
        FlowId: int,
        Operation: int,
        Size: int | None = None,
        Buffer: int | None = None,
        Flags: int = 0,
        Overlapped: Any = None,
        /,
    ) -> Any: ...

    def QOSCancel(self, QOSHandle: Any, Overlapped: Any, /) -> None: ...

    def GetOverlappedResult(self, QOSHandle: Any, Overlapped: Any, Wait: bool, /) -> Any: ...


#: By name, made on demand: libqwave is compiled by the first test that calls it.
BINDINGS: dict[str, Callable[[], Calls]] = {"libqwave": library, "win32": lambda: qos2.win32}


class Program:
    """One program, its calls made by one binding and answered by the daemon at `path`; a context manager."""

    def __init__(self, calls: Calls, path: str) -> None:
        self.calls = calls
        self._path = path
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def create(self, *, privileged: bool = True) -> Any:
        """QOSCreateHandle. The handle is closed at the end of the program, if it is still open then."""
        with _user(0 if privileged else _NOBODY):
            handle = self.calls.QOSCreateHandle((1, 0), path=self._path)
        self._stack.callback(self._close, handle)
        return handle

    def add(self, handle: Any, sock: socket.socket | int, address: Address, traffic_type: int, flow: int = 0) -> int:
        """QOSAddSocketToFlow with QOS_NON_ADAPTIVE_FLOW, as all of these programs call it; the id of the flow."""
        return self.calls.QOSAddSocketToFlow(handle, sock, address, traffic_type, QOS_NON_ADAPTIVE_FLOW, flow)

    def _close(self, handle: Any) -> None:
        assert self.failure(self.calls.QOSCloseHandle, handle) in (0, ERROR_INVALID_PARAMETER), "closed, or was already"

    def failure(self, call: Callable[..., object], *arguments: Any) -> int:
        """Make a call: the number of its error, 0 where it succeeds."""
        try:
            call(*arguments)
        except self.calls.WinError as error:
            number: int = error.winerror
            return number
        return 0


@contextmanager
def _user(uid: int) -> Iterator[None]:
    """What this process connects to in the block, it connects to as this user. The tests run as root."""
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
