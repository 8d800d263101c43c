"""The cgroups that rules name, followed as they come and go.

A unit's cgroup is made when the unit starts and removed when it stops, and a new one has another id. inotify tells of
both at once, so nothing is looked through while nothing happens. Watched are only the folders in which systemd makes
those of units, and those on the way to a cgroup that is named by its path.
"""

import ctypes
import errno
import logging
import os
import select
import struct
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from qos2.core.cgrouppath import folders_above, is_manager, is_unit_folder, own_name, parts_of, unit_of

_LOG = logging.getLogger(__name__)
_LIBC = ctypes.CDLL(None, use_errno=True)

# sys/inotify.h
_IN_CREATE = 0x100
_IN_DELETE = 0x200
_IN_Q_OVERFLOW = 0x4000
_IN_ONLYDIR = 0x1000000
_IN_ISDIR = 0x40000000
_EVENT = struct.Struct("=iIII")

#: Where folders cannot be watched, looking through them takes at most this share of a core.
_SHARE = 0.01
_LOOK_EVERY_S = 1.0


class CgroupTree:
    """One mount of cgroup2. Paths are as in the policy: below the mount, "/" is its root."""

    def __init__(self, mount: Path) -> None:
        self._mount = mount
        self._poll = select.epoll()
        self._inotify = -1
        self._units: dict[str, list[str]] = {}  #: by the name of the folder
        self._paths: frozenset[str] = frozenset()
        self._above: frozenset[str] = frozenset()  #: folders on the way to those
        self._watches: dict[int, str] = {}
        self._found: dict[str, int] = {}
        self._folders: dict[str, list[str]] = {}
        self._look_again_s: float | None = None  #: only where something cannot be watched
        self.problem = ""

    @property
    def found(self) -> Mapping[str, int]:
        """Path -> id of each cgroup that is named, or is the folder of a unit that is named."""
        return self._found

    def folders_of(self, unit: str) -> Sequence[str]:
        """The paths in `found` that are of a unit: more than one where several managers have one of this name."""
        return self._folders.get(unit, ())

    def fileno(self) -> int:
        """Readable when read() has something to tell; the same for as long as this object is open."""
        return self._poll.fileno()

    def follow(self, units: Collection[str], paths: Collection[str]) -> None:
        """From now on these, and `found` has what there is of them."""
        self._units = {}
        for unit in units:
            self._units.setdefault(own_name(unit), []).append(unit)
        self._paths = frozenset(paths)
        self._above = frozenset(outer for path in paths for outer in folders_above(path))
        self._begin()

    def read(self) -> bool:
        """Follows what has happened; True where `found` is another one now. When readable, and once a second."""
        before = dict(self._found)
        due = self._look_again_s is not None and time.monotonic() >= self._look_again_s
        if due or (self._inotify >= 0 and not self._read_events()):
            self._begin()
        return self._found != before

    def close(self) -> None:
        self._stop()
        self._poll.close()

    def _stop(self) -> None:
        if self._inotify >= 0:
            os.close(self._inotify)
        self._inotify = -1
        self._watches.clear()
        self._found.clear()
        self._folders.clear()
        self._look_again_s = None
        self.problem = ""

    def _begin(self) -> None:
        """Watches and finds everything anew."""
        self._stop()
        if not self._units and not self._paths:
            return
        began_s = time.monotonic()
        self._inotify = int(_LIBC.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        if self._inotify >= 0:
            self._poll.register(self._inotify, select.EPOLLIN)
        else:
            self._cannot_watch(ctypes.get_errno())
        self._appear("/")
        if self.problem:
            now_s = time.monotonic()
            self._look_again_s = now_s + max(_LOOK_EVERY_S, (now_s - began_s) / _SHARE)

    def _read_events(self) -> bool:
        """False where the kernel had to leave some out."""
        while True:
            try:
                events = memoryview(os.read(self._inotify, 1 << 16))
            except BlockingIOError:
                return True
            at = 0
            while at < len(events):
                watch, mask, _cookie, length = _EVENT.unpack_from(events, at)
                at += _EVENT.size + length
                if mask & _IN_Q_OVERFLOW:
                    return False
                folder = self._watches.get(watch)
                if folder is None or not mask & _IN_ISDIR:
                    continue  # the watch has ended meanwhile, or it is about a file
                path = _inside(folder, os.fsdecode(bytes(events[at - length : at]).rstrip(b"\0")))
                self._vanish(path)
                if mask & _IN_CREATE:
                    self._appear(path)

    def _appear(self, path: str) -> None:
        units = self._units_at(path)
        if units or path in self._paths:
            with suppress(OSError):  # it has gone again: another event tells
                self._found[path] = os.stat(self._at(path)).st_ino
                for unit in units:
                    self._folders.setdefault(unit, []).append(path)
        if not self._is_on_the_way(path):
            return
        self._watch(path)  # before the look inside, so that nothing is missed
        try:
            with os.scandir(self._at(path)) as entries:
                inside = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        except OSError:
            return  # likewise
        for name in inside:
            self._appear(_inside(path, name))

    def _vanish(self, path: str) -> None:
        below = f"{path}/"
        for known in [known for known in self._found if known == path or known.startswith(below)]:
            del self._found[known]
            for unit in self._units_at(known):
                self._folders[unit].remove(known)
        for watch, folder in list(self._watches.items()):
            if folder == path or folder.startswith(below):
                del self._watches[watch]
                _LIBC.inotify_rm_watch(self._inotify, watch)  # refused where it went with its folder

    def _watch(self, path: str) -> None:
        if self._inotify < 0:
            return
        mask = _IN_CREATE | _IN_DELETE | _IN_ONLYDIR
        watch = int(_LIBC.inotify_add_watch(self._inotify, os.fsencode(self._at(path)), mask))
        if watch >= 0:
            self._watches[watch] = path
        elif ctypes.get_errno() not in (errno.ENOENT, errno.ENOTDIR):
            self._cannot_watch(ctypes.get_errno())

    def _cannot_watch(self, number: int) -> None:
        if not self.problem:
            limits = "fs.inotify.max_user_watches, max_user_instances"
            self.problem = f"cgroups cannot be watched: {os.strerror(number)} ({limits}); looked for once a second"
            _LOG.debug("%s", self.problem)  # whoever follows tells it once

    def _units_at(self, path: str) -> list[str]:
        """The units whose own folder has this path."""
        candidates = self._units.get(unit_of(path.rpartition("/")[2]))
        return [unit for unit in candidates if is_unit_folder(path, unit)] if candidates else []

    def _is_on_the_way(self, path: str) -> bool:
        return path in self._above or (bool(self._units) and all(map(is_manager, parts_of(path))))

    def _at(self, path: str) -> str:
        return f"{self._mount}{path}"


def _inside(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"
