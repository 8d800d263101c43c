"""Units of processes, from what /proc/PID/cgroup says on hosts of every kind."""

import os

import pytest

from qos2.units import MAX_CHARACTERS, unit_in, unit_of, unit_of_path

CONTAINER = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/nginx.service", "nginx.service"),
        ("/system.slice/nginx.service/worker/2", "nginx.service"),
        ("/system.slice/system-postgres.slice/postgres@15.service", "postgres@15.service"),
        ("/init.scope", "init.scope"),
        ("/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        (
            "/user.slice/user-1000.slice/user@1000.service/app.slice/app-mail.scope",
            "user@1000.service/app-mail.scope",
        ),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "user@1000.service/init.scope"),
        ("/user.slice/user-1000.slice/user@1000.service", "user@1000.service"),
        (f"/system.slice/docker-{CONTAINER}.scope", f"docker-{CONTAINER}.scope"),
        (f"/system.slice/docker-{CONTAINER}.scope/init", f"docker-{CONTAINER}.scope"),
        ("/kubepods.slice/kubepods-burstable.slice/cri-containerd-7a.scope", "cri-containerd-7a.scope"),
        ("/system.slice/containerd.service/kubepods-pod1.slice:cri:7a", "containerd.service"),
        (f"/docker/{CONTAINER}", f"/docker/{CONTAINER}"),
        ("/machine.slice", "/machine.slice"),
        ("/backup/nightly/", "/backup/nightly"),
        ("/system.slice/_cgroup.service", "cgroup.service"),
        ("/", "/"),
    ],
)
def test_a_cgroup_belongs_to_its_outermost_unit(path: str, unit: str) -> None:
    assert unit_of_path(path) == unit


@pytest.mark.parametrize(
    ("memberships", "unit"),
    [
        ("0::/system.slice/a.service\n", "a.service"),
        ("5:memory:/x\n1:name=systemd:/system.slice/a.service\n0::/system.slice/a.service\n", "a.service"),
        ("1:name=systemd:/system.slice/a.service\n0::/\n", "a.service"),
        ("1:name=systemd:/system.slice/a.service\n", "a.service"),
        ("1:name=systemd:/\n0::/system.slice/a.service\n", "a.service"),
        ("2:cpu,cpuacct:/x\n0::/\n", "/"),
        ("2:cpu,cpuacct:/x\n", ""),
        ("0::/odd:name/with:colons\n", "/odd:name/with:colons"),
        ("", ""),
        ("nonsense\n", ""),
    ],
)
def test_the_unified_hierarchy_speaks_and_else_that_of_systemd(memberships: str, unit: str) -> None:
    assert unit_in(memberships) == unit


def test_a_name_is_printable_and_has_an_end() -> None:
    assert unit_in("0::/a\tb\x1b[31m\n") == "/a?b?[31m"
    assert unit_in(f"0::/{'x' * 1000}\n") == f"/{'x' * 1000}"[:MAX_CHARACTERS]


def test_this_process_is_in_some_unit_and_one_that_is_not_there_in_none() -> None:
    assert unit_of(os.getpid()) != ""
    assert [unit_of(pid) for pid in (0, -7, 1 << 30)] == ["", "", ""]
