"""Paths of cgroups, and what they say of systemd's units.

Pure text. systemd gives each unit a folder with the unit's name, inside of those of its slices; the manager of
a user does the same below `user@UID.service`. What lies inside of any other unit is that unit's own business: a
container's "asterisk.service" is not the host's.
"""

#: The slice that holds all others; it has no folder of its own.
ROOT_SLICE = "-.slice"


def is_manager(folder: str) -> bool:
    """Whether systemd itself (that of the host, or that of a user) makes the folders in one of this name."""
    return folder.endswith(".slice") or (folder.startswith("user@") and folder.endswith(".service"))


def unit_of(folder: str) -> str:
    """The unit whose folder has this name: the same, but that systemd escapes names such as `memory.service`."""
    return folder.removeprefix("_")


def own_name(unit: str) -> str:
    """The name of a unit's own folder, unescaped: what is behind the last slash; "" for the root."""
    return "" if unit == ROOT_SLICE else unit.rpartition("/")[2]


def parts_of(cgroup: str) -> tuple[str, ...]:
    """The folders on the way to a cgroup, outermost first; none for the root."""
    return tuple(part for part in cgroup.split("/") if part)


def units_of(cgroup: str) -> tuple[str, ...]:
    """The units that a cgroup belongs to, outermost first: slices, the manager of a user, a service or scope."""
    found = []
    for folder in parts_of(cgroup):
        unit = unit_of(folder)
        if "." not in unit:
            break  # made by somebody else
        found.append(unit)
        if not is_manager(unit):
            break
    return tuple(found)


def is_in_unit(cgroup: str, unit: str) -> bool:
    """Whether a cgroup belongs to a unit. `user@1000.service/app-mail.scope` is that of one user alone."""
    units = iter(units_of(cgroup))
    return unit == ROOT_SLICE or all(part in units for part in unit.split("/"))


def is_unit_folder(cgroup: str, unit: str) -> bool:
    """Whether a cgroup is that of a unit itself, not one inside of it."""
    if unit == ROOT_SLICE:
        return not parts_of(cgroup)
    units = units_of(cgroup)
    named = len(units) == len(parts_of(cgroup)) and units[-1:] == (own_name(unit),)
    return named and is_in_unit(cgroup, unit)


def folders_above(cgroup: str) -> tuple[str, ...]:
    """The paths that one comes through on the way to a cgroup, from the root on."""
    parts = parts_of(cgroup)
    return tuple("/" + "/".join(parts[:depth]) for depth in range(len(parts)))


def is_below(cgroup: str, folder: str) -> bool:
    """Whether a cgroup is `folder`, or inside of it."""
    outer = parts_of(folder)
    return parts_of(cgroup)[: len(outer)] == outer


def slice_holds(outer: str, inner: str) -> bool:
    """Whether the slice `outer` has the slice `inner` inside, as their names tell: `a.slice` has `a-b.slice`."""
    if not (outer.endswith(".slice") and inner.endswith(".slice")):
        return False
    return inner.startswith(outer.removesuffix(".slice") + "-") or outer == ROOT_SLICE


def unit_depth(unit: str) -> int:
    """How special a unit is: slices by how deep their names say they lie, anything else beyond all of them."""
    if unit == ROOT_SLICE:
        return 0
    return unit.count("-") + 1 if unit.endswith(".slice") else (1 << 16) + unit.count("/")
