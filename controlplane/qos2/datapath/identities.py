"""What the names in rules stand for on this host now: units, cgroups, network namespaces, devices, executables.

The kernel compares numbers: ids of cgroups, cookies of namespaces, indexes of devices. This follows which numbers the
names have, and says when an answer has become another one.
"""

import contextlib
import logging
import os
import select
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from qos2.core.cgrouppath import ROOT_SLICE, is_below, parts_of
from qos2.core.rule import Match
from qos2.datapath.cgrouptree import CgroupTree
from qos2.datapath.executables import Executables
from qos2.datapath.links import Namespace
from qos2.datapath.programs import cgroup_mount
from qos2.errors import QosError
from qos2.model import DeviceStatus

_LOG = logging.getLogger(__name__)

#: Where ip-netns(8) keeps its names.
NAMESPACES = Path("/run/netns")
#: In rules: the namespace of the daemon.
HOST = "host"


#: Deeper cgroups are not looked at by the datapath.
MAX_LEVEL = 15
#: The root of the cgroup2 hierarchy has this inode; that of a cgroup namespace has another one.
_ROOT_ID = 1


class Cgroup(NamedTuple):
    """A cgroup as the kernel knows it. The root is at level 0."""

    id: int
    level: int


@dataclass(frozen=True, slots=True)
class Resolved:
    """The numbers of a match. None: it has no such condition. Empty: it has one that nothing can meet now."""

    cgroups: tuple[Cgroup, ...] | None = None  #: of units and paths both, where it has both: one of these is enough
    netns_cookies: tuple[int, ...] | None = None
    devices: tuple[tuple[int, int], ...] | None = None  #: (cookie of its namespace, index)
    executables: tuple[int, ...] | None = None  #: numbers of Executables


@dataclass(frozen=True, slots=True)
class _Name:
    """A name of ip-netns as it was last looked at. `file` tells one namespace from another of the same name."""

    file: tuple[int, int, int]
    cookie: int  #: 0: it cannot be entered


class Identities:
    """All that the present rules name. Failures are counted, and told in `problems`, not raised."""

    def __init__(
        self,
        devices: Callable[[], Iterable[DeviceStatus]],
        *,
        own_netns_cookie: int,
        executables: Executables | None = None,
        cgroup2: Path | None = None,
        namespaces: Path = NAMESPACES,
    ) -> None:
        """`devices` gives those that the datapath is attached to; `cgroup2` is where it is mounted (None: look)."""
        self._attached = devices
        self._own_netns_cookie = own_netns_cookie
        self._executables = executables
        self._folder = namespaces
        mount = cgroup2 or cgroup_mount()
        if mount is None:
            self._no_tree = "cgroup2 is not mounted"
        elif mount.stat().st_ino != _ROOT_ID:
            self._no_tree = "the daemon is in a cgroup namespace of its own"
        else:
            self._no_tree = ""
        self._tree = None if mount is None or self._no_tree else CgroupTree(mount)
        self._never = select.epoll()  # of nothing
        self._named: frozenset[str] = frozenset()
        self._names: dict[str, _Name] = {}
        self._wanted_devices: frozenset[str] = frozenset()
        self._devices: dict[str, tuple[tuple[int, int], ...]] = {}
        self._problems: dict[str, str] = {}
        self.counters: Counter[str] = Counter()

    @property
    def problems(self) -> dict[str, str]:
        """What a person must be told, by what it is about."""
        executables = {} if self._executables is None else self._executables.problems
        return self._problems | executables

    def follow(self, matches: Iterable[Match]) -> None:
        """From now on what these name; resolve() knows it on return. Called before a ruleset is installed."""
        present = list(matches)
        self._problems.clear()
        self._names = {}
        units = {unit for match in present for unit in match.units}
        paths = {path for match in present for path in match.cgroups}
        if self._tree is not None:
            self._tree.follow(units, paths)
        else:
            consequence = f"{self._no_tree}: rules that name a unit or cgroup match nothing"
            self._tell("cgroup2", consequence if units or paths else "")
        self._named = frozenset(name for match in present for name in match.namespaces) - {HOST}
        self._wanted_devices = frozenset(name for match in present for name in match.devices)
        if self._executables is not None:
            self._executables.follow(path for match in present for path in match.executables)
        self._look_around()

    def fileno(self) -> int:
        """Readable when look() has something to do at once, so never where there is no cgroup2."""
        return self._never.fileno() if self._tree is None else self._tree.fileno()

    def look(self) -> bool:
        """True where resolve() may have another answer now. When readable, and once a second for the other names."""
        changed = self._tree is not None and self._tree.read()
        self._tell("cgroups", "" if self._tree is None else self._tree.problem)
        before = self._names, self._devices
        self._look_around()
        return changed or before != (self._names, self._devices)

    def resolve(self, match: Match) -> Resolved:
        """The numbers of one of the matches that are followed."""
        cookies = tuple(dict.fromkeys(filter(None, map(self._cookie, match.namespaces))))
        devices = (
            each
            for name in match.devices
            for each in self._devices.get(name, ())
            if not match.namespaces or each[0] in cookies
        )
        indexes = map(self._index, match.executables)
        return Resolved(
            self._cgroups(match),
            cookies if match.namespaces else None,
            tuple(devices) if match.devices else None,
            tuple(filter(None, indexes)) if match.executables else None,
        )

    def missing(self, match: Match) -> tuple[str, ...]:
        """What a match names and is not there now, as `unit asterisk.service`."""
        return (
            *(f"unit {unit}" for unit in match.units if self._tree is None or not self._tree.folders_of(unit)),
            *(f"cgroup {path}" for path in match.cgroups if self._tree is None or path not in self._tree.found),
            *(f"executable {path}" for path in match.executables if not self._runs(path)),
            *(f"device {name}" for name in match.devices if not self._devices.get(name)),
            *(f"namespace {name}" for name in match.namespaces if not self._cookie(name)),
        )

    def named_namespaces(self) -> Mapping[Path, int]:
        """File -> cookie of each namespace that a rule names and that is there now; without the daemon's own."""
        return {self._folder / name: found.cookie for name, found in self._names.items() if found.cookie}

    def name_of(self, netns_cookie: int) -> str:
        """As rules name a namespace: "host" for the daemon's own; empty where it has no name."""
        if netns_cookie == self._own_netns_cookie:
            return HOST
        known = {name: found.cookie for name, found in self._names.items()}
        with contextlib.suppress(OSError):  # no namespace has a name
            for name in os.listdir(self._folder):
                if name not in known and (found := self._look_at(name)) is not None:
                    known[name] = found.cookie
        return next((name for name, cookie in sorted(known.items()) if cookie == netns_cookie), "")

    def close(self) -> None:
        """Of the executables too."""
        self._never.close()
        if self._tree is not None:
            self._tree.close()
        if self._executables is not None:
            self._executables.close()

    def _cgroups(self, match: Match) -> tuple[Cgroup, ...] | None:
        # The root holds everything, so it is no condition.
        by_unit = bool(match.units) and ROOT_SLICE not in match.units
        by_path = bool(match.cgroups) and "/" not in match.cgroups
        if not by_unit and not by_path:
            return None
        if self._tree is None:
            return ()
        found = self._tree.found
        units = [path for unit in match.units for path in self._tree.folders_of(unit)] if by_unit else []
        paths = [path for path in match.cgroups if path in found] if by_path else []
        if by_unit and by_path:  # what is in both: the inner one of each pair, if one is in the other
            pairs = [(unit, path) for unit in units for path in paths]
            inner = [unit if is_below(unit, path) else path for unit, path in pairs if _nested(unit, path)]
        else:
            inner = units or paths
        return tuple(Cgroup(found[path], len(parts_of(path))) for path in dict.fromkeys(inner) if self._reachable(path))

    def _reachable(self, path: str) -> bool:
        level = len(parts_of(path))
        if level > MAX_LEVEL:
            self._tell(f"cgroup {path}", f"cgroup {path} is {level} levels deep: no rule can match it")
        return level <= MAX_LEVEL

    def _cookie(self, name: str) -> int:
        """0 where there is none of that name now."""
        if name == HOST:
            return self._own_netns_cookie
        known = self._names.get(name)
        return 0 if known is None else known.cookie

    def _index(self, path: str) -> int:
        return 0 if self._executables is None else self._executables.index(path)

    def _runs(self, path: str) -> bool:
        return self._executables is not None and self._executables.processes(path) > 0

    def _look_around(self) -> None:
        """Namespaces and devices, at the cost of one system call per name."""
        self._names = {name: found for name in self._named if (found := self._look_at(name)) is not None}
        devices: dict[str, tuple[tuple[int, int], ...]] = {}
        for device in self._attached() if self._wanted_devices else ():
            if device.name in self._wanted_devices:
                devices[device.name] = (*devices.get(device.name, ()), (device.netns_cookie, device.index))
        self._devices = devices

    def _look_at(self, name: str) -> _Name | None:
        known = self._names.get(name)
        try:
            status = os.stat(self._folder / name)
            file = (status.st_dev, status.st_ino, status.st_ctime_ns)
            if known is not None and known.file == file:
                return known
            self._tell(f"namespace {name}", "")
            if status.st_dev == os.stat(self._folder).st_dev:
                return None  # a file that stands for no namespace yet, or no longer
        except OSError:
            self._tell(f"namespace {name}", "")
            return None
        try:
            return _Name(file, _cookie_of(self._folder / name))
        except (OSError, QosError) as error:
            self.counters["namespace_failed"] += 1
            self._tell(f"namespace {name}", f"network namespace {name} cannot be entered: {error}")
            return _Name(file, 0)

    def _tell(self, about: str, problem: str) -> None:
        """Once, however often it is met."""
        if problem and self._problems.get(about) != problem:
            _LOG.warning("%s", problem)
            self._problems[about] = problem
        elif not problem:
            self._problems.pop(about, None)


def _cookie_of(path: Path) -> int:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        namespace = Namespace(descriptor)
    finally:
        os.close(descriptor)
    namespace.close()
    return namespace.cookie


def _nested(one: str, other: str) -> bool:
    return is_below(one, other) or is_below(other, one)
