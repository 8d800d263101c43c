"""libqwave by ctypes: the eleven calls as a Windows program makes them, through the C ABI.

Library has the calls under their Windows names with the same parameters and results as the module qos2.win32, so
that one sequence of calls can run over both: out-parameters are returned, failure raises an error that carries the
number. What no well-behaved program does (NULL pointers, lying sizes) goes through `Library.error`, which takes
what C takes.
"""

import ctypes
import fcntl
import ipaddress
import os
import select
import socket
import struct
import subprocess
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from harness.qos2_h import (
    ERROR_INSUFFICIENT_BUFFER,
    ERROR_IO_PENDING,
    PROTOTYPES,
    QOS_FLOW_FUNDAMENTALS,
    QOS_FLOWRATE_OUTGOING,
    QOS_PACKET_PRIORITY,
    QOS_VERSION,
    STATUS_PENDING,
    NativeOverlapped,
    QOSQueryFlowFundamentals,
    QOSQueryOutgoingRate,
    QOSQueryPacketPriority,
)

_SOURCE = Path(__file__).resolve().parents[2] / "clients" / "c"
_PATH_VARIABLE = "QOS2_SOCKET"
#: How long compiling the library may take, in seconds.
_BUILD_S = 100.0
#: Buffer of a query that there is no such thing as.
_UNKNOWN_BYTES = 64

#: What a query of each kind is answered with.
_ANSWERS: dict[int, type[Any]] = {
    QOSQueryFlowFundamentals: QOS_FLOW_FUNDAMENTALS,
    QOSQueryPacketPriority: QOS_PACKET_PRIORITY,
    QOSQueryOutgoingRate: c_uint64,
}

#: A destination as Python writes socket addresses, None for a NULL pointer.
Address: TypeAlias = tuple[str, int] | tuple[str, int, int, int] | None
#: A socket, None for "no socket".
AnySocket: TypeAlias = socket.socket | int | None


class QwaveError(Exception):
    """A call that returned FALSE. `size`: the bytes that it asks for, where the buffer was too small."""

    def __init__(self, call: str, winerror: int, text: str = "", size: int | None = None) -> None:
        super().__init__(f"{call}: error {winerror}{f': {text}' if text else ''}")
        self.winerror = winerror
        self.size = size


class OverlappedCall:
    """A call under way: an OVERLAPPED in C's memory whose hEvent is an eventfd. To be used again after completion."""

    def __init__(self) -> None:
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        weakref.finalize(self, os.close, self._event)
        self.native = NativeOverlapped(hEvent=self._event)
        self._call = ""
        self._size: c_uint32 | None = None
        self._buffer: Any = None

    def begin(self, call: str, size: c_uint32 | None, buffer: Any) -> None:
        """Keep what a call reads and writes until it is complete."""
        self._call, self._size, self._buffer = call, size, buffer

    def fileno(self) -> int:
        """The eventfd, readable once the call is complete."""
        return self._event

    @property
    def Internal(self) -> int:
        """STATUS_PENDING, then the number of the error, 0 for none."""
        return int(self.native.Internal)

    @property
    def InternalHigh(self) -> int:
        """Bytes written to the buffer."""
        return int(self.native.InternalHigh)

    @property
    def size(self) -> int | None:
        """The Size that the call was given, as it is now; None for a call that only reads it."""
        return None if self._size is None else self._size.value

    @property
    def done(self) -> bool:
        return self.Internal != STATUS_PENDING

    def wait(self, timeout: float | None = None) -> Any:
        """The result, as the call would have returned it. Raises QwaveError, or TimeoutError (the call goes on)."""
        if not select.select([self._event], [], [], timeout)[0]:
            raise TimeoutError(f"{self._call} is still under way after {timeout} s")
        return self.result()

    def result(self) -> Any:
        """The result of a complete call. Raises QwaveError where it failed."""
        if self.Internal:
            raise QwaveError(self._call, self.Internal, size=self.size)
        return _value(self._call, self._buffer)


class Handle:
    """A QOSHandle; as a value, what C was given."""

    def __init__(self, value: int | None) -> None:
        self.value = value

    def __repr__(self) -> str:
        return f"<libqwave handle {self.value}>"


class Library:
    """The shared object at `path`, and its calls by name. Every call raises QwaveError where it returns FALSE."""

    WinError = QwaveError
    OVERLAPPED = OverlappedCall
    QOS_FLOWRATE_OUTGOING = QOS_FLOWRATE_OUTGOING

    def __init__(self, path: Path) -> None:
        self.native = ctypes.CDLL(str(path))
        for name, (result, parameters) in PROTOTYPES.items():
            # Looked up as attributes, so that the library keeps the function with its types.
            function = getattr(self.native, name)
            function.restype = result
            function.argtypes = parameters
        #: C writes to these until their calls are complete, whoever still knows of them here.
        self._under_way: list[OverlappedCall] = []

    def __repr__(self) -> str:
        return "libqwave"

    def error(self, name: str, *arguments: Any) -> int:
        """Make one call with what C takes: 0 where it succeeds, else the number that GetLastError() tells."""
        return 0 if getattr(self.native, name)(*arguments) else int(self.native.GetLastError())

    def QOSCreateHandle(self, Version: tuple[int, int] = (1, 0), *, path: str | None = None) -> Handle:
        """A session with the daemon at `path`, by default where $QOS2_SOCKET says."""
        handle = c_void_p()
        with _environment(path):
            self._call("QOSCreateHandle", byref(QOS_VERSION(*Version)), byref(handle))
        return Handle(handle.value)

    def QOSCloseHandle(self, QOSHandle: Handle) -> None:
        self._call("QOSCloseHandle", QOSHandle.value)

    def QOSStartTrackingClient(self, QOSHandle: Handle, DestAddr: Address, Flags: int = 0) -> None:
        self._call("QOSStartTrackingClient", QOSHandle.value, sockaddr(DestAddr), Flags)

    def QOSStopTrackingClient(self, QOSHandle: Handle, DestAddr: Address, Flags: int = 0) -> None:
        self._call("QOSStopTrackingClient", QOSHandle.value, sockaddr(DestAddr), Flags)

    def QOSEnumerateFlows(self, QOSHandle: Handle, Size: int | None = None) -> list[int]:
        """All ids; with `Size`, into a buffer of so many bytes."""
        room = Size or 0
        while True:
            ids, size = (c_uint32 * (room // 4))(), c_uint32(room)
            try:
                self._call("QOSEnumerateFlows", QOSHandle.value, byref(size), ids if room else None, size=size)
            except QwaveError as error:
                if Size is not None or error.winerror != ERROR_INSUFFICIENT_BUFFER:
                    raise
                room = size.value  # flows that begin meanwhile make it ask for more once again
                continue
            return list(ids[: size.value // 4])

    def QOSAddSocketToFlow(
        self,
        QOSHandle: Handle,
        Socket: AnySocket,
        DestAddr: Address,
        TrafficType: int,
        Flags: int = 0,
        FlowId: int = 0,
    ) -> int:
        """The id of the flow."""
        flow = c_uint32(FlowId)
        arguments = (QOSHandle.value, descriptor(Socket), sockaddr(DestAddr), TrafficType, Flags, byref(flow))
        self._call("QOSAddSocketToFlow", *arguments)
        return flow.value

    def QOSRemoveSocketFromFlow(self, QOSHandle: Handle, Socket: AnySocket, FlowId: int, Flags: int = 0) -> None:
        self._call("QOSRemoveSocketFromFlow", QOSHandle.value, descriptor(Socket), FlowId, Flags)

    def QOSSetFlow(
        self,
        QOSHandle: Handle,
        FlowId: int,
        Operation: int,
        Size: int | None,
        Buffer: ctypes.Structure | int | bytes,
        Flags: int = 0,
        Overlapped: OverlappedCall | None = None,
    ) -> OverlappedCall | None:
        """`Size` None: that of the buffer. The OVERLAPPED, where one is given."""
        buffer: Any = c_uint32(Buffer) if isinstance(Buffer, int) else Buffer
        if isinstance(buffer, bytes):
            buffer = ctypes.create_string_buffer(buffer, len(buffer))
        size = ctypes.sizeof(buffer) if Size is None else Size
        arguments = (QOSHandle.value, FlowId, Operation, size, byref(buffer), Flags)
        self._begin("QOSSetFlow", arguments, Overlapped, None, buffer)
        return Overlapped

    def QOSQueryFlow(
        self,
        QOSHandle: Handle,
        FlowId: int,
        Operation: int,
        Size: int | None = None,
        Flags: int = 0,
        Overlapped: OverlappedCall | None = None,
    ) -> Any:
        """A structure, or bits/s for QOSQueryOutgoingRate; the OVERLAPPED, where one is given."""
        buffer = _ANSWERS.get(Operation, ctypes.c_char * _UNKNOWN_BYTES)()
        size = c_uint32(ctypes.sizeof(buffer) if Size is None else Size)
        arguments = (QOSHandle.value, FlowId, Operation, byref(size), byref(buffer), Flags)
        self._begin("QOSQueryFlow", arguments, Overlapped, size, buffer)
        return _value("QOSQueryFlow", buffer) if Overlapped is None else Overlapped

    def QOSNotifyFlow(
        self,
        QOSHandle: Handle,
        FlowId: int,
        Operation: int,
        Size: int | None = None,
        Buffer: int | None = None,
        Flags: int = 0,
        Overlapped: OverlappedCall | None = None,
    ) -> OverlappedCall | None:
        """Returns when the condition holds; `Buffer` is the bandwidth in bits/s. The OVERLAPPED, where one is given."""
        wanted = None if Buffer is None else c_uint64(Buffer)
        size = None if Size is None and wanted is None else c_uint32(8 if Size is None else Size)
        pointers = tuple(None if each is None else byref(each) for each in (size, wanted))
        arguments = (QOSHandle.value, FlowId, Operation, *pointers, Flags)
        self._begin("QOSNotifyFlow", arguments, Overlapped, size, wanted)
        return Overlapped

    def QOSCancel(self, QOSHandle: Handle, Overlapped: OverlappedCall | None) -> None:
        self._call("QOSCancel", QOSHandle.value, None if Overlapped is None else byref(Overlapped.native))

    def GetOverlappedResult(self, QOSHandle: Handle, Overlapped: OverlappedCall, Wait: bool) -> Any:
        """The result of a call that was begun with an OVERLAPPED."""
        written = c_uint32()
        self._call("GetOverlappedResult", QOSHandle.value, byref(Overlapped.native), byref(written), Wait)
        assert written.value == Overlapped.InternalHigh
        return Overlapped.result()

    def _call(self, name: str, *arguments: Any, size: c_uint32 | None = None) -> None:
        """Make a call. Raises QwaveError where it returns FALSE."""
        if number := self.error(name, *arguments):
            raise QwaveError(name, number, self._text(), None if size is None else size.value)

    def _begin(
        self,
        name: str,
        arguments: tuple[Any, ...],
        under_way: OverlappedCall | None,
        size: c_uint32 | None,
        buffer: Any,
    ) -> None:
        """Make a call that may be overlapped; then it may also return FALSE for being under way."""
        if under_way is None:
            self._call(name, *arguments, None, size=size)
            return
        self._under_way = [each for each in self._under_way if not each.done]
        number = self.error(name, *arguments, byref(under_way.native))
        if number not in (0, ERROR_IO_PENDING):
            raise QwaveError(name, number, self._text(), None if size is None else size.value)
        under_way.begin(name, size, buffer)
        self._under_way.append(under_way)

    def _text(self) -> str:
        """What the library says about the last error of this thread."""
        return bytes(self.native.qos2_last_error_message() or b"").decode()


def _value(name: str, buffer: Any) -> Any:
    """What a call returns out of its buffer: only queries do."""
    if name != "QOSQueryFlow":
        return None
    return buffer.value if isinstance(buffer, c_uint64) else buffer


def sockaddr(address: Address) -> bytes | None:
    """A struct sockaddr_in or sockaddr_in6 of this machine, by the form of the address."""
    if address is None:
        return None
    host, port, *rest = address
    ip = ipaddress.ip_address(host)
    if ip.version == 4:
        return struct.pack("=HH4s8x", socket.AF_INET, socket.htons(port), ip.packed)
    flow, scope = rest or (0, 0)
    return struct.pack("=HHI16sI", socket.AF_INET6, socket.htons(port), socket.htonl(flow), ip.packed, scope)


def descriptor(sock: AnySocket) -> int:
    """A SOCKET: the descriptor, 0 for none."""
    if sock is None:
        return 0
    return sock if isinstance(sock, int) else sock.fileno()


@contextmanager
def _environment(path: str | None) -> Iterator[None]:
    """The library looks for the daemon at `path` in this block; it has no parameter for that, as Windows has none."""
    if path is None:
        yield
        return
    before = os.environ.get(_PATH_VARIABLE)
    os.environ[_PATH_VARIABLE] = path
    try:
        yield
    finally:
        if before is None:
            del os.environ[_PATH_VARIABLE]
        else:
            os.environ[_PATH_VARIABLE] = before


@cache
def built() -> Path:
    """The shared object, made by `make -C clients/c` once per run; runs at the same time wait for each other.

    Raises AssertionError where it cannot be compiled, with what the compiler said.
    """
    with open(_SOURCE / "Makefile") as makefile:
        fcntl.flock(makefile, fcntl.LOCK_EX)
        made = subprocess.run(
            ["make", "--silent", "-C", str(_SOURCE)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_BUILD_S,
            check=False,
        )
    if made.returncode:
        raise AssertionError(f"make -C {_SOURCE} failed:\n{made.stdout}")
    return _SOURCE / "build" / "libqwave.so"


@cache
def library() -> Library:
    """libqwave of this checkout."""
    return Library(built())
