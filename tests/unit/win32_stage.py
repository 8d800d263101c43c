"""The stage of the tests of qos2.win32: handles that are closed in any case, and errors as numbers."""

import select
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from qos2 import win32
from qos2.win32 import (
    QOS_FLOWRATE_OUTGOING,
    QOSQueryPacketPriority,
    QOSShapeAndMark,
)
from unit.server_stage import Stage, unprivileged

#: Another host than PEER.
SECOND = ("192.0.2.8", 5004)
UNKNOWN_FLOW = 0xFFFF_FFFF
#: STATUS_PENDING of ntstatus.h.
PENDING = 0x103
#: How long what must come may take.
SOON_S = 10.0
RATE = QOS_FLOWRATE_OUTGOING(2_000_000, QOSShapeAndMark, 0)


@contextmanager
def opened(stage: Stage) -> Iterator[win32.HANDLE]:
    """A handle, which the block may close itself."""
    handle = win32.QOSCreateHandle(path=stage.path)
    try:
        yield handle
    finally:
        failure(win32.QOSCloseHandle, handle)


@contextmanager
def ordinary(stage: Stage) -> Iterator[win32.HANDLE]:
    """A handle of somebody who is neither root nor in the group `qos2`."""
    with unprivileged():
        handle = win32.QOSCreateHandle(path=stage.path)
    try:
        yield handle
    finally:
        failure(win32.QOSCloseHandle, handle)


def failure(call: Callable[..., object], *arguments: Any, **named: Any) -> int:
    """The number of the error of a call, 0 where it succeeds."""
    try:
        call(*arguments, **named)
    except win32.WinError as error:
        return error.winerror
    return 0


def values(structure: Any) -> tuple[int, ...]:
    """The members of a structure, gaps left out."""
    return tuple(getattr(structure, name) for name, *_ in structure._fields_ if not name.startswith("_"))


def priority(handle: win32.HANDLE, flow: int) -> tuple[int, ...]:
    """Conformant and non-conformant DSCP, then both 802.1p priorities, as they are in force."""
    return values(win32.QOSQueryFlow(handle, flow, QOSQueryPacketPriority))


def is_set(overlapped: win32.OVERLAPPED) -> bool:
    """Whether its event is readable."""
    return select.select([overlapped], [], [], 0)[0] == [overlapped]


def await_event(overlapped: win32.OVERLAPPED) -> None:
    """Return when its event is readable, and touch nothing else of it."""
    assert select.select([overlapped], [], [], SOON_S)[0] == [overlapped]
