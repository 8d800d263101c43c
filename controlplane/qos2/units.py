"""Which unit a process belongs to, as an administrator would call it: `nginx.service`, a container's scope, a cgroup.

Read from /proc/PID/cgroup, as cgroups(7) describes it; the names of units in it are systemd's. A label for people and
for metrics, and no proof of identity: who may do what rests on what the kernel says of the connection (sockets.py).
"""

#: What runs in no unit and in no cgroup but the root.
ROOT = "/"
#: A longer name is cut here: it becomes a label. A container's scope with its id of 64 digits fits.
MAX_CHARACTERS = 128

_USER_MANAGER = ("user@", ".service")
_SLICE = ".slice"
_UNITS = (".service", ".scope", ".socket", ".mount", ".swap")


def unit_of(pid: int) -> str:
    """The unit of a process now; empty where it has ended, or is outside of our pid namespace (`pid` below 1)."""
    if pid < 1:
        return ""
    try:
        with open(f"/proc/{pid}/cgroup", "rb") as memberships:
            return unit_in(memberships.read().decode(errors="replace"))
    except OSError:
        return ""


def unit_in(memberships: str) -> str:
    """The unit in the text of /proc/PID/cgroup.

    With systemd and the old hierarchies side by side, the cgroup that systemd keeps its units in speaks. Empty for a
    text that has neither that one nor the unified one.
    """
    by_controllers = {}
    for line in memberships.splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon:
            by_controllers[controllers] = path
    unified = by_controllers.get("", "")
    path = by_controllers.get("name=systemd", unified) if unified in ("", ROOT) else unified
    return _printable(unit_of_path(path)) if path else ""


def unit_of_path(path: str) -> str:
    """The unit that a cgroup belongs to: the outermost one that is no slice; of a user's own units also whose.

    `/system.slice/nginx.service/worker` is `nginx.service`; a user's program is `user@1000.service/app-mail.scope`. A
    path without a unit, as container engines make them where there is no systemd, stands for itself.
    """
    parts = [part.removeprefix("_") for part in path.split("/") if part]  # systemd escapes some names by this
    inner = [part for part in parts if not part.endswith(_SLICE)]
    if not inner:
        return path.rstrip("/") or ROOT
    unit, *below = inner
    if not unit.endswith(_UNITS):
        return path.rstrip("/")
    own = next((part for part in below if part.endswith(_UNITS)), None)
    if unit.startswith(_USER_MANAGER[0]) and unit.endswith(_USER_MANAGER[1]) and own is not None:
        return f"{unit}/{own}"
    return unit


def _printable(name: str) -> str:
    """Who makes a cgroup names it: no control characters, and no end."""
    return "".join(each if each.isprintable() else "?" for each in name[:MAX_CHARACTERS])
