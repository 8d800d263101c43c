"""Who a process is, as rules name it: its systemd unit, its cgroup, its executable.

Read from /proc when a client connects. It decides which rule of the administrator the client meets: who may move
himself into another cgroup chooses among these, for the kernel as for us.
"""

import os
from typing import NamedTuple

from qos2.units import unit_in

#: How the line of cgroup2 begins, cgroups(7).
_UNIFIED = "0::"
#: What the kernel appends to the path of what is not there any more: an executable that an upgrade has replaced.
_DELETED = " (deleted)"


class Owner(NamedTuple):
    """Each is empty where it is not known: the process has ended, or is none of our pid namespace."""

    unit: str = ""  #: as people call it
    cgroup: str = ""  #: path below the mount of cgroup2
    executable: str = ""


NOBODY = Owner()


def owner_of(pid: int) -> Owner:
    """The owner of what a process opens."""
    if pid < 1:
        return NOBODY
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as file:
            memberships = file.read().decode(errors="replace")
    except OSError:
        return NOBODY  # it has ended
    return Owner(unit_in(memberships), cgroup_in(memberships), executable_of(pid))


def cgroup_in(memberships: str) -> str:
    """The path in the hierarchy of cgroup2 that /proc/PID/cgroup tells; empty where it is not in use."""
    lines = (line for line in memberships.splitlines() if line.startswith(_UNIFIED))
    return next(lines, "").removeprefix(_UNIFIED).removesuffix(_DELETED)


def executable_of(pid: int) -> str:
    """The path of what a process runs; empty where it has ended, is a thread of the kernel, or not ours to see."""
    try:
        return os.readlink(f"/proc/{pid}/exe").removesuffix(_DELETED)
    except OSError:
        return ""
