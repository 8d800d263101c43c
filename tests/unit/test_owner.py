"""Who a process is, by which rules name it: this process, one that has ended, and texts of the kernel."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qos2.owner import NOBODY, cgroup_in, executable_of, owner_of


def test_this_process_is_known_by_what_it_runs_and_where() -> None:
    found = owner_of(os.getpid())
    assert found.executable == os.path.realpath(sys.executable)
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    assert [found.cgroup] == [line[3:] for line in lines if line.startswith("0::")] or found.cgroup == ""


@pytest.mark.parametrize("pid", [0, -1, 4_194_304])
def test_of_a_process_that_is_not_there_nothing_is_known(pid: int) -> None:
    assert owner_of(pid) == NOBODY


def test_an_executable_that_was_replaced_keeps_its_path(tmp_path: Path) -> None:
    program = tmp_path / "sleep"
    program.write_bytes(Path("/bin/sleep").resolve().read_bytes())
    program.chmod(0o755)
    with subprocess.Popen([program, "60"]) as process:  # returns when it runs
        program.unlink()
        assert executable_of(process.pid) == str(program)
        process.kill()


@pytest.mark.parametrize(
    ("memberships", "path"),
    [
        ("0::/system.slice/asterisk.service\n", "/system.slice/asterisk.service"),
        ("12:cpu:/x\n1:name=systemd:/y\n0::/user.slice/user-1000.slice\n", "/user.slice/user-1000.slice"),
        ("0::/gone (deleted)\n", "/gone"),
        ("0::/\n", "/"),
        ("4:memory:/old\n", ""),
        ("", ""),
    ],
)
def test_the_cgroup_is_that_of_the_one_hierarchy(memberships: str, path: str) -> None:
    assert cgroup_in(memberships) == path
