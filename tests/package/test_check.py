"""Which kernels qos2.datapath.check looks at, and what it says where it may not; what it finds is in test_deb.py."""

import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from demo.processes import environment
from qos2.datapath import cache, loader
from qos2.datapath.check import installed, main

RUNNING = platform.release()


def test_a_kernel_is_where_its_list_of_modules_is(tmp_path: Path) -> None:
    for release in ("6.1.0-9-amd64", "6.12.1"):
        (tmp_path / release).mkdir()
        (tmp_path / release / "modules.builtin").touch()
    (tmp_path / "headers-alone").mkdir()
    (tmp_path / "headers-alone" / "build").symlink_to("/usr/src")
    assert installed(tmp_path) == ["6.1.0-9-amd64", "6.12.1"]
    assert installed(tmp_path / "nothing") == []


def test_without_rights_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_name: str, *_arguments: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("qos2.datapath.check._call", refused)
    assert main([]) == 1
    why, hint = capsys.readouterr().out.splitlines()
    beginning = "qos2: the datapath cannot be verified here: "
    assert why == f"{beginning}mounts of its own are refused: Operation not permitted"
    assert hint.strip().startswith("it needs root, and a system that was booted")


@pytest.mark.datapath
def test_it_finds_that_the_running_kernel_takes_the_datapath_and_leaves_what_it_compiled(tmp_path: Path) -> None:
    """In a process of its own, since its mounts become private."""
    kept = tmp_path / "kept"
    before = sorted(os.listdir("/lib/modules")), sorted(Path(tempfile.gettempdir()).glob("qos2-check-*"))
    command = [sys.executable, "-m", "qos2.datapath.check", "--cache", str(kept), RUNNING, "9.9.9-not-there"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    first, second = done.stdout.splitlines()
    assert first.startswith(f"qos2: Linux {RUNNING} (running): the datapath compiles with ")
    assert first.endswith(f" and is kept in {kept}, and the kernel accepts it")
    assert second.startswith("qos2: Linux 9.9.9-not-there: the datapath compiles with the headers linux-headers-")
    assert second.endswith("; whether that kernel accepts it shows when it runs")
    after = sorted(os.listdir("/lib/modules")), sorted(Path(tempfile.gettempdir()).glob("qos2-check-*"))
    assert before == after
    text = loader.read_source()
    keys = {
        loader.key_of(text, link, release) for link in loader.LINK_BYTES for release in (RUNNING, "9.9.9-not-there")
    }
    assert {file.name for file in kept.iterdir()} == {key.file_name for key in keys}
    assert all(cache.read(kept, key) is not None for key in keys)
    assert "qos2-check-" not in Path("/proc/self/mountinfo").read_text()
