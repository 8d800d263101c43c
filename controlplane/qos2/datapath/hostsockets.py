"""Every IPv4 and IPv6 socket that some process of this host has open, by a copy of its descriptor.

For what a daemon must do to sockets that nobody handed to it: undo presets when it stops, note who made them.
Needs the right to trace (pidfd_getfd(2)); sockets of processes that refuse it are left out, and counted.
"""

import ctypes
import os
import socket
from collections.abc import Collection, Iterator
from pathlib import Path

_SYS_PIDFD_GETFD = 438  # the same on every architecture
_LIBC = ctypes.CDLL(None, use_errno=True)


class HostSockets:
    """Iterates once over all of them; each is closed when the next is asked for. `refused`: not to be had.

    `pid` is a process that has the present one open: of several, the one that was met first.
    """

    def __init__(self, pids: Collection[int] | None = None) -> None:
        """Of these processes only, unless None."""
        self.refused = 0
        self.pid = 0
        self._pids = pids

    def __iter__(self) -> Iterator[socket.socket]:
        seen: set[str] = set()
        for process in self._processes():
            self.pid = int(process.name)
            yield from self._of(process, seen)

    def _processes(self) -> Iterator[Path]:
        if self._pids is not None:
            yield from (Path(f"/proc/{pid}") for pid in self._pids)
            return
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                yield process

    def _of(self, process: Path, seen: set[str]) -> Iterator[socket.socket]:
        try:
            pidfd = os.pidfd_open(int(process.name))
        except OSError:
            return  # it has ended
        try:
            for entry in _entries(process / "fd"):
                link = _target(entry)
                if link.startswith("socket:") and link not in seen:
                    seen.add(link)
                    yield from self._copy(pidfd, int(entry.name))
        finally:
            os.close(pidfd)

    def _copy(self, pidfd: int, descriptor: int) -> Iterator[socket.socket]:
        copy = int(_LIBC.syscall(_SYS_PIDFD_GETFD, pidfd, descriptor, 0))
        if copy < 0:
            self.refused += 1
            return
        with socket.socket(fileno=copy) as sock:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                yield sock


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []  # it has ended, or is not ours to look into


def _target(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except OSError:
        return ""  # it was closed meanwhile, or its process has ended
