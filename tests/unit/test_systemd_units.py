"""The units: what systemd says of them, and that they say what the code does.

That the daemon can do all of its work within them is tested by tests/datapath/test_service_rights.py.
"""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from qos2.client import DEFAULT_PATH
from qos2.config import Config
from qos2.daemon import arguments
from qos2.datapath import pins
from qos2.server import PRIVILEGED_GROUP

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICES = ("qos2d.service", "qos2-reflector.service")
NAMESPACES = "qos2d-namespaces.conf"
#: systemd-analyze counts tenths.
MOST_EXPOSED = 25


def settings(name: str) -> dict[str, list[str]]:
    """Key -> its values, in their order."""
    found: dict[str, list[str]] = {}
    for line in (UNITS / name).read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and key.isalnum():
            found.setdefault(key, []).append(value)
    return found


def comments(name: str) -> str:
    return "\n".join(line for line in (UNITS / name).read_text().splitlines() if line.startswith("#"))


def analyzed(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed (Debian's package systemd)")
    return subprocess.run(["systemd-analyze", *map(str, argv)], capture_output=True, text=True, timeout=60, check=False)


def security(unit: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return analyzed("security", "--offline=true", "--no-pager", *options, unit)


def exposure(unit: Path) -> float:
    told = re.search(r"Overall exposure level for \S+: ([0-9.]+)", security(unit).stdout)
    assert told is not None
    return float(told[1])


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_not_exposed_more_than_needed(name: str) -> None:
    judged = security(UNITS / name, f"--threshold={MOST_EXPOSED}")
    assert judged.returncode == 0, judged.stdout
    assert "Overall exposure level" in judged.stdout


def test_the_threshold_can_fail(tmp_path: Path) -> None:
    bare = tmp_path / "qos2d.service"
    bare.write_text("[Service]\nExecStart=/bin/true\n")
    assert security(bare, f"--threshold={MOST_EXPOSED}").returncode != 0


def words(name: str) -> list[str]:
    """What a reason may name, as patterns, for an item such as `CapabilityBoundingSet=~CAP_(DAC_*|FOWNER)`."""
    option, _, part = name.partition("=")
    if not part.startswith("~"):
        return [rf"\b{option}\b"]
    stem, _, rest = part[1:].partition("(")
    return [stem + each.replace("*", r"\w+") + r"\b" for each in rest.rstrip(")").split("|")]


def test_whatever_exposes_the_daemon_has_its_reason_in_the_unit() -> None:
    judged = security(UNITS / "qos2d.service", "--json=short")
    exposing = {each["name"] for each in json.loads(judged.stdout) if float(each["exposure"] or 0) > 0}
    assert exposing
    said = comments("qos2d.service")
    unexplained = {name for name in exposing if not any(re.search(word, said) for word in words(name))}
    assert unexplained == set()


@pytest.mark.parametrize("name", [*SERVICES, "qos2d.socket"])
def test_systemd_has_nothing_to_say_of_a_unit(name: str, tmp_path: Path) -> None:
    # Programs and manual pages are there once the package is installed.
    for each in (*SERVICES, "qos2d.socket"):
        text = re.sub(r"/usr/bin/qos2d?(?= )", "/bin/true", (UNITS / each).read_text())
        (tmp_path / each).write_text(text)
    checked = analyzed("verify", "--man=no", tmp_path / name)
    ours = [line for line in checked.stderr.splitlines() if "qos2" in line]
    assert (checked.returncode, ours) == (0, [])


def test_systemd_complains_of_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "qos2d.service").write_text("[Service]\nType=notify\nExecStart=/bin/true\nProtectEverything=yes\n")
    assert "ProtectEverything" in analyzed("verify", "--man=no", tmp_path / "qos2d.service").stderr


def test_each_capability_has_its_reason_and_no_reason_is_left_over() -> None:
    service = settings("qos2d.service")
    (bounding,), (ambient,) = service["CapabilityBoundingSet"], service["AmbientCapabilities"]
    assert bounding == ambient
    explained = re.findall(r"^#   (CAP_\w+)  ", comments("qos2d.service"), re.MULTILINE)
    assert explained == bounding.split()


def test_the_drop_in_for_namespaces_says_what_it_costs(tmp_path: Path) -> None:
    service, more = (UNITS / "qos2d.service").read_text(), (UNITS / NAMESPACES).read_text()
    whole = tmp_path / "qos2d.service"
    whole.write_text(service.partition("[Install]")[0] + more.partition("[Service]")[2])
    told = re.search(r"rises to ([0-9.]+[0-9])", more)
    assert told is not None
    assert exposure(whole) == float(told[1]) > exposure(UNITS / "qos2d.service")
    assert settings(NAMESPACES)["CapabilityBoundingSet"] == ["CAP_SYS_ADMIN"]


def test_the_socket_is_where_clients_look() -> None:
    unit = settings("qos2d.socket")
    assert unit["ListenSequentialPacket"] == [DEFAULT_PATH] == [str(Config().socket)]
    assert [int(mode, 8) for mode in unit["SocketMode"]] == [Config().socket_mode]
    (folder,) = (line.split() for line in (UNITS / "qos2.tmpfiles.conf").read_text().splitlines() if line[:1] == "d")
    assert folder == ["d", str(Path(DEFAULT_PATH).parent), "0755", "qos2", "qos2", "-"]


def test_the_daemon_runs_as_the_user_that_is_made() -> None:
    service = settings("qos2d.service")
    (line,) = (line for line in (UNITS / "qos2.sysusers.conf").read_text().splitlines() if not line.startswith("#"))
    # Type u makes a group of the same name.
    assert line.split()[:3] == ["u", "qos2", "-"]
    assert service["User"] == service["Group"] == ["qos2"] == [PRIVILEGED_GROUP]


def test_the_service_starts_the_daemon_as_it_wants_to_be_started() -> None:
    service = settings("qos2d.service")
    (start,) = service["ExecStart"]
    given = arguments().parse_args(start.split()[1:])
    assert given.config == Path("/etc/qos2/qos2d.toml")
    # The daemon removes the folder of its pins when it stops; what is mounted cannot be removed.
    (writable,) = service["ReadWritePaths"]
    assert str(Path(given.pin_path).parent) == writable.removeprefix("-")
    assert service["ExecStartPre"][0].split()[-1] == writable.removeprefix("-")
    assert service["Type"] == ["notify"]
    assert service["ExecReload"] == ["/bin/sh -c 'kill -HUP $MAINPID'"]
    assert service["Requires"] == ["qos2d.socket"]
    assert settings("qos2d.service")["Also"] == ["qos2d.socket"]
    (limit,) = service["TimeoutStartSec"]
    assert int(limit.removesuffix("s")) > pins._COMPILE_SECONDS
