"""The programs in docs/porting.md: the one in Python runs, the one in C compiles without a warning."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from unit.native import REPOSITORY, tool
from unit.server_stage import CONTROLPLANE, NOBODY, Stage

PAGE = REPOSITORY / "docs" / "porting.md"


def first_program(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found.group(1)


@pytest.mark.parametrize("privileged", [True, False])
def test_the_program_in_python_runs(stage: Stage, privileged: bool) -> None:
    if privileged and os.geteuid() != 0:
        pytest.skip("needs root, to be privileged")
    code = first_program("python").replace("192.0.2.7", "127.0.0.1")  # a datagram to nobody stays in this machine
    if not privileged:
        # The process connects as somebody else; what it needs to read it has imported by then.
        code = f"import os, encodings.idna, qos2.win32\nif not os.geteuid():\n    os.seteuid({NOBODY})\n{code}"
    env = os.environ | {"QOS2_SOCKET": stage.path, "PYTHONPATH": str(CONTROLPLANE)}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=60)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("" if privileged else "[WinError 5] ERROR_ACCESS_DENIED: ")
    assert (run.stdout == "") is privileged
    assert [(op, result) for op, result, _ in stage.observed] == [
        ("open_handle", "ok"),
        ("add_socket", "ok"),
        ("set_rate", "ok"),
        ("set_dscp", "ok" if privileged else "not_permitted"),
        ("remove_socket", "ok"),
        ("close_handle", "ok"),
    ]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_program_in_c_compiles(tmp_path: Path, compiler: str) -> None:
    source = tmp_path / "app.c"
    source.write_text(first_program("c"))
    include = REPOSITORY / "clients" / "c" / "include"
    flags = ("-std=c11", "-D_POSIX_C_SOURCE=200809L", "-Wall", "-Wextra", "-Werror", "-pedantic", f"-I{include}")
    run = subprocess.run([tool(compiler), *flags, "-fsyntax-only", source], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")
