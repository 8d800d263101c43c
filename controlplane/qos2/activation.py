"""A listening socket that the service manager made, and the server that takes it (sd_listen_fds(3)).

Clients that connect while no daemon runs wait in its backlog. It is the manager's: here it is neither made nor
bound, and its file is never removed.
"""

import asyncio
import os
import socket
import stat
from collections.abc import MutableMapping
from typing import Any

from qos2.errors import ConfigError
from qos2.server import Server

#: SD_LISTEN_FDS_START: the first descriptor that is passed.
FIRST_DESCRIPTOR = 3
_HINT = "a unit like qos2d.socket passes one, by ListenSequentialPacket="


def passed_listener(
    environment: MutableMapping[str, str] = os.environ, descriptor: int = FIRST_DESCRIPTOR
) -> socket.socket | None:
    """The socket that was passed to this process, None where there is none.

    What told of it is taken out of `environment`: it is not for children. Raises ConfigError for anything but one
    listening AF_UNIX SOCK_SEQPACKET socket.
    """
    pid, count, names = (environment.pop(key, "") for key in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if not pid or pid != str(os.getpid()):
        return None  # meant for nobody, or for the process that started this one
    if not count.isascii() or not count.isdigit():
        raise ConfigError(f"the service manager passed {count!r} descriptors", _HINT)
    if int(count) == 0:
        return None
    if int(count) != 1:
        raise ConfigError(f"the service manager passed {count} descriptors ({names or 'without names'})", _HINT)
    try:
        described = _described(descriptor)
    except OSError as error:
        raise ConfigError(f"descriptor {descriptor} of the service manager: {error.strerror}", _HINT) from error
    if described:
        name = f" ({names})" if names else ""
        raise ConfigError(f"descriptor {descriptor}{name} of the service manager is {described}", _HINT)
    os.set_inheritable(descriptor, False)
    listener = socket.socket(fileno=descriptor)
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket) -> str:
    """Where clients find it: a path, or @NAME in the abstract namespace."""
    name = listener.getsockname()
    return f"@{os.fsdecode(name[1:])}" if isinstance(name, bytes) else str(name)


class ActivatedServer(Server):
    """Serves on a socket that is there already; further arguments are those of Server, whose path is not used."""

    def __init__(self, listener: socket.socket, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._given = listener

    def start(self) -> None:
        """Accept from now on. To be called in the running loop."""
        self._loop = asyncio.get_running_loop()
        self._listener = self._given
        self._loop.add_reader(self._listener, self._accept)
        self._loop.add_reader(self._inbox, self._inbox.empty)


def _described(descriptor: int) -> str:
    """What a descriptor is, empty for one of the kind that serves. Raises OSError where it is none."""
    if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
        return "no socket"
    passed = socket.socket(fileno=descriptor)
    try:
        if (passed.family, passed.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
            return f"a socket of {_word(passed.family)} and {_word(passed.type)}"
        return "" if passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) else "a socket that does not listen"
    finally:
        passed.detach()


def _word(number: int) -> str:
    """The name that C gives it, where Python knows it."""
    return getattr(number, "name", str(number))
