"""The packages of this checkout, built once in a run; without the tools for that, tests name what is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
NEEDED = {
    "dpkg-buildpackage": "dpkg-dev",
    "dh": "debhelper",
    "dh_python3": "dh-python",
    "lintian": "lintian",
    "nsenter": "util-linux",
}


@pytest.fixture(scope="session")
def packages() -> dict[str, Path]:
    """The files of the packages by their names, of which lintian has said no error."""
    missing = [package for program, package in NEEDED.items() if shutil.which(program) is None]
    if not Path("/usr/lib/python3/dist-packages/numpy").is_dir():
        missing.append("python3-numpy")
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
    done = subprocess.run(
        [REPOSITORY / "deploy" / "debian" / "build.sh"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    files = sorted((REPOSITORY / ".cache" / "deb").glob("*.deb"))
    return {file.name.partition("_")[0]: file for file in files if "-dbgsym_" not in file.name}
