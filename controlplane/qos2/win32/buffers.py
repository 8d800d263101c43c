"""The Size and Buffer of the calls: what a C program points at, as values.

A buffer is a plain number where the call wants one, a ctypes object, or the bytes themselves. What is
wrong with it is InvalidRequest; what the values mean is the daemon's to judge.
"""

import ctypes
import sys
from typing import Any, TypeAlias

from qos2.errors import InvalidRequest
from qos2.win32.structures import QOS_FLOWRATE_OUTGOING

#: A number, or anything that has the buffer protocol, as ctypes objects and bytes do; None is NULL.
Buffer: TypeAlias = (
    "int | ctypes._SimpleCData[Any] | ctypes.Structure | ctypes.Array[Any] | bytes | bytearray | memoryview | None"
)

DWORD_BYTES = 4
UINT64_BYTES = 8


def checked_size(size: int | None, needed: int) -> int:
    """The Size that a caller gave, `needed` where he gave none; InvalidRequest for what cannot be a ULONG."""
    if size is None:
        return needed
    if not isinstance(size, int) or not 0 <= size < 2**32:
        raise InvalidRequest(f"a Size of {size!r} bytes", f"None, or at least {needed}")
    return size


def check_input_size(size: int | None, needed: int) -> None:
    """For what a call reads: InvalidRequest unless Size is enough. More is fine."""
    if checked_size(size, needed) < needed:
        raise InvalidRequest(f"a Size of {size} bytes", f"this operation reads {needed}")


def number(buffer: Buffer, size: int) -> int:
    """The unsigned integer of `size` bytes in a buffer; a number is taken as it is."""
    if isinstance(buffer, int):
        return buffer
    if isinstance(buffer, ctypes._SimpleCData) and isinstance(buffer.value, int):
        # By value and not by bytes: DWORD of ctypes.wintypes has eight here.
        if ctypes.sizeof(buffer) < size:
            raise InvalidRequest(f"a Buffer of {ctypes.sizeof(buffer)} bytes", f"this operation reads {size}")
        return buffer.value
    return int.from_bytes(_content(buffer, size), sys.byteorder)


def flow_rate(buffer: Buffer) -> QOS_FLOWRATE_OUTGOING:
    """The structure in a buffer."""
    if isinstance(buffer, QOS_FLOWRATE_OUTGOING):
        return buffer
    return QOS_FLOWRATE_OUTGOING.from_buffer_copy(_content(buffer, ctypes.sizeof(QOS_FLOWRATE_OUTGOING)))


def _content(buffer: Buffer, size: int) -> bytes:
    if buffer is None:
        raise InvalidRequest("no Buffer", "this operation reads its value there")
    try:
        content = memoryview(buffer).tobytes()  # type: ignore[arg-type]  # an int is told by the TypeError
    except TypeError as error:
        raise InvalidRequest(
            f"not a Buffer: {buffer!r}", "a ctypes object itself, without byref(); bytes; or a number where one is read"
        ) from error
    if len(content) < size:
        raise InvalidRequest(f"a Buffer of {len(content)} bytes", f"this operation reads {size}")
    return content[:size]
