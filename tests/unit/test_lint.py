"""Formatters, linters and the type checker as tests: `./dev lint` runs this file and nothing else.

A tool that is not installed skips its case at home and fails it in CI (environment variable CI).
The tools' settings are in pyproject.toml and .clang-format.
"""

import os
import subprocess
from pathlib import Path

import pytest

from unit.native import REPOSITORY, SOURCE, WARNINGS, tool

PYTHON = [name for name in ("controlplane", "deploy", "tests") if (REPOSITORY / name).is_dir()]
SHELL = [name for name in ("dev", ".ci/run") if (REPOSITORY / name).is_file()]
C_FOLDERS = ("bpf", "tests", "clients")
KERNEL_INCLUDES = ("-ffreestanding", f"-I/usr/include/{os.uname().machine}-linux-gnu")
PURE_HEADERS = ("types.h", "packet.h", "dsfield.h", "bucket.h")


def c_files() -> list[str]:
    """All C of the project, generated files (in folders named `build`) excepted."""
    found = (path for folder in C_FOLDERS for path in (REPOSITORY / folder).rglob("*.[ch]"))
    return sorted(str(path.relative_to(REPOSITORY)) for path in found if "build" not in path.parts)


CASES = {
    "ruff check": ["ruff", "check", *PYTHON],
    "ruff format": ["ruff", "format", "--check", "--diff", *PYTHON],
    "mypy": ["mypy", "--strict", *PYTHON],
    "clang-format": ["clang-format", "--dry-run", "-Werror", *c_files()],
    "shellcheck": ["shellcheck", *SHELL],
    "clang, warnings are errors": ["clang", "-O2", *WARNINGS, "-c", "-o", os.devnull, str(SOURCE)],
}


def run(command: list[str], text: str | None = None) -> None:
    """Fails the test with everything that the tool said, and nothing of pytest's own."""
    done = subprocess.run(
        [tool(command[0]), *command[1:]], cwd=REPOSITORY, input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


@pytest.mark.parametrize("name", CASES)
def test_nothing_to_say_for(name: str) -> None:
    run(CASES[name])


@pytest.mark.parametrize("header", PURE_HEADERS)
def test_header_compiles_for_bpf_by_itself(header: str) -> None:
    warnings = [flag for flag in WARNINGS if not flag.startswith("-std")]
    flags = ["-x", "c", "-target", "bpf", "-O2", *KERNEL_INCLUDES, *warnings, "-c", "-o", os.devnull]
    run(["clang", *flags, "-"], text=f'#include "{header}"\n')


def test_there_is_something_to_check() -> None:
    """An empty list of files would pass every tool."""
    assert str(Path("bpf") / "packet.h") in c_files()
    assert str(SOURCE.relative_to(REPOSITORY)) in c_files()
    assert SHELL == ["dev", ".ci/run"]
    assert PYTHON == ["controlplane", "deploy", "tests"]
