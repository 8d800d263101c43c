"""What the path of a cgroup says of systemd's units."""

import pytest

from qos2.core.cgrouppath import (
    folders_above,
    is_below,
    is_in_unit,
    is_unit_folder,
    slice_holds,
    unit_depth,
    units_of,
)

CONTAINER = "/machine.slice/docker-1f.scope/system.slice/asterisk.service"
MAIL = "/user.slice/user-1000.slice/user@1000.service/app.slice/app-mail.scope"


@pytest.mark.parametrize(
    ("cgroup", "units"),
    [
        ("/", ()),
        ("/init.scope", ("init.scope",)),
        ("/system.slice/asterisk.service", ("system.slice", "asterisk.service")),
        ("/system.slice/asterisk.service/worker/x.service", ("system.slice", "asterisk.service")),
        ("/system.slice/_memory.service", ("system.slice", "memory.service")),
        (CONTAINER, ("machine.slice", "docker-1f.scope")),
        (MAIL, ("user.slice", "user-1000.slice", "user@1000.service", "app.slice", "app-mail.scope")),
        ("/docker/1f/system.slice/asterisk.service", ()),
        ("/user.slice/qos2-00100001", ("user.slice",)),
    ],
)
def test_units_are_those_of_the_managers_of_this_host(cgroup: str, units: tuple[str, ...]) -> None:
    assert units_of(cgroup) == units


@pytest.mark.parametrize(
    ("cgroup", "unit", "inside", "itself"),
    [
        ("/system.slice/asterisk.service", "asterisk.service", True, True),
        ("/system.slice/asterisk.service/a", "asterisk.service", True, False),
        ("/system.slice/asterisk.service", "system.slice", True, False),
        ("/system.slice", "system.slice", True, True),
        ("/system.slice/asterisk.service", "asterisk", False, False),
        ("/system.slice/_memory.service", "memory.service", True, True),
        (CONTAINER, "asterisk.service", False, False),
        (MAIL, "app-mail.scope", True, True),
        (MAIL, "user@1000.service/app-mail.scope", True, True),
        (MAIL, "user@1001.service/app-mail.scope", False, False),
        (MAIL, "app-mail.scope/user@1000.service", False, False),
        (MAIL, "user@1000.service", True, False),
        (MAIL, "-.slice", True, False),
        ("/", "-.slice", True, True),
    ],
)
def test_a_cgroup_is_in_a_unit_or_is_its_own(cgroup: str, unit: str, inside: bool, itself: bool) -> None:
    assert (is_in_unit(cgroup, unit), is_unit_folder(cgroup, unit)) == (inside, itself)


def test_below_is_by_whole_folders() -> None:
    assert is_below("/a/b", "/a")
    assert is_below("/a", "/a/")
    assert is_below("/a", "/")
    assert not is_below("/ab", "/a")
    assert not is_below("/a", "/a/b")


def test_the_way_to_a_cgroup_begins_at_the_root() -> None:
    assert folders_above("/a/b/c") == ("/", "/a", "/a/b")
    assert folders_above("/") == ()


def test_slices_hold_each_other_by_their_names() -> None:
    assert slice_holds("system.slice", "system-x.slice")
    assert slice_holds("-.slice", "system.slice")
    assert not slice_holds("system-x.slice", "system.slice")
    assert not slice_holds("system.slice", "systemd.slice")
    assert not slice_holds("system.slice", "asterisk.service")


def test_a_service_is_deeper_than_any_slice() -> None:
    deeper = ["-.slice", "system.slice", "system-x.slice", "a-b-c-d.service", "user@1.service/a.service"]
    assert sorted(reversed(deeper), key=unit_depth) == deeper
