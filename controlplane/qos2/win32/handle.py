"""HANDLE: what QOSCreateHandle returns, around a qos2.Handle.

As on Windows it is open until QOSCloseHandle or the end of the process, whether or not anything in the
program refers to it: programs are known that mark their sockets and then forget the handle.
"""

import os

from qos2.channel import Channel
from qos2.client import Handle
from qos2.errors import InvalidHandle, InvalidRequest, ServiceLost


class HANDLE:
    """Opaque: made by QOSCreateHandle, ended by QOSCloseHandle."""

    __slots__ = ("_pid", "_session")

    def __init__(self, session: Handle) -> None:
        self._session = session
        self._pid = os.getpid()
        _OPEN.add(self)

    def __repr__(self) -> str:
        return f"<HANDLE {self._session.path}{'' if self in _OPEN else ' closed'}>"


_OPEN: set[HANDLE] = set()


def session(handle: object) -> Handle:
    """What a HANDLE stands for, for a call other than closing it.

    InvalidHandle for anything else, for a closed one, and for a parent's after fork(); ServiceLost once it
    is known that the daemon went away, whatever else may be wrong with the call.
    """
    if not isinstance(handle, HANDLE):
        raise InvalidHandle(f"not a handle: {handle!r}", "QOSCreateHandle makes one")
    # Before the look at _OPEN: a handle that is being closed by another thread is closed, and not lost.
    is_ended = handle._session.closed
    if handle not in _OPEN:
        raise InvalidHandle("the handle is closed", "QOSCreateHandle makes a new one")
    if handle._pid != os.getpid():
        raise InvalidHandle("the handle belongs to the parent process", "QOSCreateHandle makes one for this process")
    if is_ended:
        raise ServiceLost("the daemon went away", "close the handle, make a new one and add the sockets again")
    return handle._session


def channel(handle: object) -> Channel:
    """What carries any call of wire/calls.py for a HANDLE, as it does for a qos2.Flow; refusals as of session()."""
    return session(handle)._channel


def close(handle: object) -> None:
    """End a HANDLE, once; InvalidRequest for a closed one and for anything else."""
    if not isinstance(handle, HANDLE):
        raise InvalidRequest(f"not a handle: {handle!r}", "QOSCreateHandle makes one")
    try:
        # One step: of two threads that close the same handle one succeeds.
        _OPEN.remove(handle)
    except KeyError:
        raise InvalidRequest("the handle is closed already", "each handle is closed once") from None
    handle._session.close()
