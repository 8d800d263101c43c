"""What the folder for Debian repeats of the rest of the tree is the same there, and its scripts are sound."""

import re
import subprocess
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from unit.native import REPOSITORY, tool

FOLDER = REPOSITORY / "deploy" / "debian"
BUILD = (FOLDER / "build.sh").read_text()
CONTROL = (FOLDER / "debian" / "control").read_text()
SCRIPTS = ["build.sh", "root.sh", "debian/qos2.postinst", "debian/qos2.postrm"]

#: What the packages take from the distribution instead of the lock file.
OF_THE_DISTRIBUTION = {"numpy", "pygments"}


def names(variable: str) -> set[str]:
    """A list in build.sh."""
    found = re.search(rf"^readonly {variable}=\((.*)\)$", BUILD, re.MULTILINE)
    assert found is not None
    return set(found[1].split())


def closure(name: str, extra: str = "") -> set[str]:
    """What a project needs that is installed here, and what that needs."""
    found: set[str] = set()
    for line in requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            found |= {canonicalize_name(requirement.name)} | closure(requirement.name)
    return found


def test_everything_that_is_needed_is_packed_or_depended_on() -> None:
    assert names("FOR_CLIENTS") | names("FOR_COMMANDS") == closure("qos2", "daemon") - OF_THE_DISTRIBUTION
    for name in OF_THE_DISTRIBUTION:
        assert f"python3-{name} (>= " in CONTROL


def test_every_symbol_of_the_library_is_in_the_package_by_its_name() -> None:
    symbols = (FOLDER / "debian" / "libqwave1.symbols").read_text().splitlines()
    version_script = (REPOSITORY / "clients/c/libqwave.map").read_text()
    exported = re.findall(r"^\t(\w+);", version_script.partition("local:")[0], re.MULTILINE)
    assert {line.split("@")[0].strip() for line in symbols[1:]} == {"QWAVE_1.0", *exported}
    major = re.search(r"^SOVERSION := (\d+)$", (REPOSITORY / "clients/c/Makefile").read_text(), re.MULTILINE)
    assert major is not None
    assert symbols[0] == f"libqwave.so.{major[1]} libqwave{major[1]} #MINVER#"
    assert f"Package: libqwave{major[1]}\n" in CONTROL


def test_the_applications_path_is_the_folder_of_what_clients_need() -> None:
    (folder,) = (FOLDER / "debian" / "qos2.pth").read_text().split()
    for command in ("qos2", "qos2d"):
        text = (FOLDER / "debian" / "commands" / command).read_text()
        assert text.startswith("#!/usr/bin/python3 -I\n")
        assert f'sys.path[:0] = ["/usr/lib/qos2/commands", "{folder}"]\n' in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_sound(script: str) -> None:
    done = subprocess.run([tool("shellcheck"), FOLDER / script], capture_output=True, text=True, check=False)
    assert done.stdout == ""


def test_no_script_is_forgotten() -> None:
    found = [*FOLDER.glob("*.sh"), *FOLDER.glob("debian/*.p[or]*[tme]*")]
    assert {str(path.relative_to(FOLDER)) for path in found if path.suffix != ".pth"} == set(SCRIPTS)


def test_units_that_are_packed_exist() -> None:
    copied = re.findall(r"(?:cp|') (deploy/systemd/\S+)", (FOLDER / "debian" / "rules").read_text())
    assert {Path(path).name for path in copied} >= {"qos2d.service", "qos2d.socket", "qos2-reflector.service"}
    assert [path for path in copied if not (REPOSITORY / path).is_file()] == []
