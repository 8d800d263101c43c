"""A program over libqwave, by its C ABI: pointers, sizes and buffers as they are, guards around what is written."""

import ctypes
import os
import select
import struct
from ctypes import byref, c_uint32, c_void_p
from typing import Any

from conformance.calls import AVAILABLE_BYTES, Rate
from conformance.drivers.base import PATIENCE_S
from conformance.drivers.binding import BindingDriver
from conformance.drivers.scene import Scene
from conformance.numbers import (
    ERROR_INSUFFICIENT_BUFFER,
    ERROR_IO_PENDING,
    QUERY_FUNDAMENTALS,
    QUERY_PRIORITY,
    QUERY_RATE,
    SET_RATE,
)
from conformance.vocabulary import NULL, Address, Fundamentals, Named, Outcome, Pointer, Priority
from harness.qos2_h import QOS_VERSION, NativeOverlapped
from harness.qwave import library, sockaddr

#: What GetLastError() says before a call, and still after one that succeeds.
_UNTOUCHED_ERROR = 0xDEAD
_FILL = 0xA5
_GUARD_BYTES = 32
_NOT_A_FAMILY = struct.pack("=H126x", 1)  # AF_UNIX

#: QOS_FLOW_FUNDAMENTALS, QOS_PACKET_PRIORITY and UINT64 as they lie in memory, by operation of QOSQueryFlow.
_FUNDAMENTALS = struct.Struct("=i4xQi4xQiI")
_PRIORITY = struct.Struct("=4I")
_BANDWIDTH = struct.Struct("=Q")
_RATE = struct.Struct("=Qii")
_NUMBER = struct.Struct("=I")


class _Memory:
    """`size` bytes that a call may write, between others that it must not."""

    def __init__(self, size: int, content: bytes = b"") -> None:
        self.size = size
        self._all = (ctypes.c_ubyte * (size + 2 * _GUARD_BYTES))(*[_FILL] * (size + 2 * _GUARD_BYTES))
        ctypes.memmove(self.address, content, len(content))
        self._before = bytes(self._all)

    @property
    def address(self) -> int:
        return ctypes.addressof(self._all) + _GUARD_BYTES

    @property
    def untouched(self) -> bool:
        return bytes(self._all) == self._before

    def read(self, size: int) -> bytes:
        """The first bytes; nothing was written behind them, nor before. Raises AssertionError."""
        now = bytes(self._all)
        end = _GUARD_BYTES + size
        assert size <= self.size
        assert (now[:_GUARD_BYTES], now[end:]) == (self._before[:_GUARD_BYTES], self._before[end:])
        return now[_GUARD_BYTES:end]


class _Overlapped:
    """An OVERLAPPED with an eventfd, and what its call reads and writes."""

    def __init__(self) -> None:
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.native = NativeOverlapped(hEvent=self.event)
        self.operation: int | None = None  #: of QOSQueryFlow
        self.size: c_uint32 | None = None
        self.memory: _Memory | None = None

    def close(self) -> None:
        os.close(self.event)


class QwaveDriver(BindingDriver):
    """Each call is also held to what C promises of it: the last error set on failure alone, nothing written then."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(scene)
        self._library = library()
        os.environ["QOS2_SOCKET"] = scene.path

    def close(self) -> None:
        super().close()
        del os.environ["QOS2_SOCKET"]

    def expected(self, outcome: Outcome) -> Outcome:
        return outcome

    def new_overlapped(self) -> _Overlapped:
        return _Overlapped()

    def QOSCreateHandle(self, Version: Any, QOSHandle: Any = None) -> Outcome:
        handle = c_void_p(_FILL)
        version = None if Version is NULL else byref(QOS_VERSION(*Version))
        with self.scene.user():
            error = self._error("QOSCreateHandle", version, None if QOSHandle is NULL else byref(handle))
        return Outcome(error) if error else Outcome(0, handle.value)

    def QOSCloseHandle(self, QOSHandle: Any) -> Outcome:
        return Outcome(self._error("QOSCloseHandle", _handle(QOSHandle)))

    def QOSStartTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int) -> Outcome:
        return Outcome(self._error("QOSStartTrackingClient", _handle(QOSHandle), self._address(DestAddr), Flags))

    def QOSStopTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int) -> Outcome:
        return Outcome(self._error("QOSStopTrackingClient", _handle(QOSHandle), self._address(DestAddr), Flags))

    def QOSEnumerateFlows(self, QOSHandle: Any, Size: Any, Buffer: Any) -> Outcome:
        if Size is None:
            need = self.QOSEnumerateFlows(QOSHandle, 0, NULL)
            return self.QOSEnumerateFlows(QOSHandle, need.size, Buffer) if need.size else need
        size = c_uint32(0 if Size is NULL else Size)
        memory = _Memory(size.value)
        error = self._error(
            "QOSEnumerateFlows",
            _handle(QOSHandle),
            None if Size is NULL else byref(size),
            None if Buffer is NULL else memory.address,
        )
        if error:
            return self._short(error, size, memory)
        ids = memory.read(size.value)
        return Outcome(0, list(struct.unpack(f"={len(ids) // 4}I", ids)), size.value)

    def QOSAddSocketToFlow(
        self, QOSHandle: Any, Socket: str, DestAddr: Any, TrafficType: int, Flags: int, FlowId: Any
    ) -> Outcome:
        before = 0 if FlowId is NULL else FlowId
        flow = c_uint32(before)
        fd, pointer = self.scene.descriptors[Socket], None if FlowId is NULL else byref(flow)
        arguments = (_handle(QOSHandle), fd, self._address(DestAddr), TrafficType, Flags, pointer)
        error = self._error("QOSAddSocketToFlow", *arguments)
        if error:
            assert flow.value == before
            return Outcome(error)
        return Outcome(0, flow.value)

    def QOSRemoveSocketFromFlow(self, QOSHandle: Any, Socket: str | None, FlowId: int, Flags: int) -> Outcome:
        fd = 0 if Socket is None else self.scene.descriptors[Socket]
        return Outcome(self._error("QOSRemoveSocketFromFlow", _handle(QOSHandle), fd, FlowId, Flags))

    def QOSSetFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        content = _content(Operation, Buffer)
        memory = _Memory(max(len(content), Size), content)
        pointer = None if Buffer is NULL else memory.address
        overlapped = self._prepared(Overlapped, None, None, memory)
        arguments = (_handle(QOSHandle), FlowId, Operation, Size, pointer, Flags, overlapped)
        error = self._error("QOSSetFlow", *arguments)
        assert memory.untouched
        return Outcome(error)

    def QOSQueryFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        size = c_uint32(0 if Size is NULL else Size)
        memory = _Memory(size.value)
        pointer = None if Buffer is NULL else memory.address
        overlapped = self._prepared(Overlapped, Operation, size, memory)
        arguments = (_handle(QOSHandle), FlowId, Operation, None if Size is NULL else byref(size), pointer)
        error = self._error("QOSQueryFlow", *arguments, Flags, overlapped)
        if error == ERROR_IO_PENDING:
            return Outcome(error)
        if error:
            return self._short(error, size, memory)
        return _answer(Operation, memory, size.value)

    def QOSNotifyFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        size = c_uint32(0 if Size is NULL else Size)
        memory = _Memory(max(AVAILABLE_BYTES, size.value), b"" if Buffer is NULL else _BANDWIDTH.pack(Buffer))
        pointers = (None if Size is NULL else byref(size), None if Buffer is NULL else memory.address)
        overlapped = self._prepared(Overlapped, None, size, memory)
        arguments = (_handle(QOSHandle), FlowId, Operation, *pointers, Flags, overlapped)
        error = self._error("QOSNotifyFlow", *arguments)
        assert memory.untouched
        return Outcome(error, size=size.value if error == ERROR_INSUFFICIENT_BUFFER else None)

    def QOSCancel(self, QOSHandle: Any, Overlapped: Any) -> Outcome:
        pointer = None if Overlapped is NULL else byref(self.overlapped(Overlapped).native)
        return Outcome(self._error("QOSCancel", _handle(QOSHandle), pointer))

    def GetOverlappedResult(self, QOSHandle: Any, Overlapped: str, Wait: bool) -> Outcome:
        overlapped: _Overlapped = self.overlapped(Overlapped)
        if Wait:
            assert select.select([overlapped.event], [], [], PATIENCE_S)[0], f"the event of {Overlapped} is not written"
        written = c_uint32(_FILL)
        error = self._error("GetOverlappedResult", QOSHandle, byref(overlapped.native), byref(written), Wait)
        size, memory = overlapped.size, overlapped.memory
        if error == 0 and overlapped.operation is not None:
            assert size is not None
            assert memory is not None
            assert size.value == written.value
            return _answer(overlapped.operation, memory, written.value)
        if error == 0:
            assert written.value == 0
            return Outcome()
        return Outcome(error, size=size.value if size is not None and error == ERROR_INSUFFICIENT_BUFFER else None)

    def _error(self, name: str, *arguments: Any) -> int:
        """Make a call: 0, or its error."""
        native = self._library.native
        native.SetLastError(_UNTOUCHED_ERROR)
        if getattr(native, name)(*arguments):
            assert native.GetLastError() == _UNTOUCHED_ERROR
            return 0
        error: int = native.GetLastError()
        assert error not in (0, _UNTOUCHED_ERROR)
        return error

    def _short(self, error: int, size: c_uint32, memory: _Memory) -> Outcome:
        """A refusal; the buffer is as it was."""
        assert memory.untouched
        return Outcome(error, size=size.value if error == ERROR_INSUFFICIENT_BUFFER else None)

    def _prepared(self, name: str | None, operation: int | None, size: c_uint32 | None, memory: _Memory) -> Any:
        """The pointer to an OVERLAPPED; what its call uses lives as long as that."""
        if name is None:
            return None
        overlapped: _Overlapped = self.overlapped(name)
        if overlapped.native.Internal != _STATUS_PENDING:
            overlapped.operation, overlapped.size, overlapped.memory = operation, size, memory
        return byref(overlapped.native)

    def _address(self, address: Address | Pointer | None) -> bytes | None:
        if not isinstance(address, Address):
            return None
        return _NOT_A_FAMILY if address.host == "malformed" else sockaddr(self.scene.written(address))


_STATUS_PENDING = 0x103  # ntstatus.h


def _handle(handle: Any) -> int | None:
    if handle is NULL:
        return None
    return 0x7FFF_1234 if isinstance(handle, Named) else int(handle)


def _content(operation: int, buffer: Any) -> bytes:
    """The bytes that QOSSetFlow reads."""
    if buffer is NULL:
        return b""
    if operation == SET_RATE:
        rate: Rate = buffer
        return _RATE.pack(rate.bandwidth, rate.shaping, rate.reason)
    return _NUMBER.pack(buffer & 0xFFFF_FFFF)


def _answer(operation: int, memory: _Memory, size: int) -> Outcome:
    """What QOSQueryFlow has written, in the words of the table."""
    data = memory.read(size)
    if operation == QUERY_PRIORITY:
        return Outcome(0, Priority(*_PRIORITY.unpack(data)), size)
    if operation == QUERY_RATE:
        return Outcome(0, _BANDWIDTH.unpack(data)[0], size)
    assert operation == QUERY_FUNDAMENTALS
    known, bottleneck, has_available, available, has_rtt, rtt_us = _FUNDAMENTALS.unpack(data)
    assert {known, has_available, has_rtt} <= {0, 1}
    return Outcome(
        0,
        Fundamentals(bottleneck if known else None, available if has_available else None, rtt_us if has_rtt else None),
        size,
    )
