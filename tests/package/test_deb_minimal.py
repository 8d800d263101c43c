"""The packages in a Debian that has what they depend on, and nothing else: nothing is needed that they do not name.

There is no kernel, no header and no compiler in there, as in a container or in a machine just made.
"""

import platform
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from package.contents import IMPORT_EVERYTHING, left_behind
from package.overlay import Overlay

pytestmark = [pytest.mark.datapath, pytest.mark.timeout(400)]  # as test_deb.py

ROOT = Path(__file__).parents[2] / ".cache" / "deb" / "root"


@pytest.fixture(scope="module")
def installed(packages: dict[str, Path]) -> Iterator[tuple[Overlay, str]]:
    """The root with the packages, and what their installation said."""
    if not ROOT.with_name("root.stamp").is_file():
        pytest.skip(f"no {ROOT}: sudo ./dev deb --test makes it, in a minute, and runs this")
    with Overlay(ROOT) as overlay:
        yield overlay, overlay.run("dpkg", "-i", *overlay.copy_in(*packages.values()))


def test_installed_it_says_what_is_missing_and_goes_on(installed: tuple[Overlay, str]) -> None:
    lines = installed[1].splitlines()
    line = lines.index(f"qos2: Linux {platform.release()} (running): no kernel headers are installed")
    assert "apt-get install linux-headers-" in lines[line + 1]


def test_every_module_can_be_imported(installed: tuple[Overlay, str]) -> None:
    system = installed[0]
    assert system.run("/usr/bin/python3", "-I", "-c", IMPORT_EVERYTHING).split()[0] == "True"


def test_the_commands_run(installed: tuple[Overlay, str]) -> None:
    system = installed[0]
    assert system.run("qos2", "--version").startswith("qos2 ")
    assert "start qos2d, or name its socket" in system.run("qos2", "status", status=1)
    said = system.run("qos2d", "--config", "/etc/qos2/qos2d.toml", status=1)
    assert re.search("^qos2d: /sys/fs/bpf", said, re.MULTILINE)
    assert "Traceback" not in said


def test_an_application_imports_the_client(installed: tuple[Overlay, str]) -> None:
    said = installed[0].run("/usr/bin/python3", "-c", "import qos2; print(qos2.TrafficType.VOICE.label)")
    assert said == "voice\n"


def test_removed_and_purged(installed: tuple[Overlay, str], packages: dict[str, Path]) -> None:
    """The last one of this file: nothing is left of the packages."""
    system = installed[0]
    system.run("dpkg", "-r", *packages)
    assert system.path("/etc/qos2/qos2d.toml").exists()
    system.run("dpkg", "-P", *packages)
    assert left_behind(system) == set()
