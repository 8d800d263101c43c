"""The packages as an administrator meets them: installed over this machine's own system, upgraded, removed, purged.

In an overlay, so that nothing of it reaches the machine. That the dependencies are complete is shown in a root that has
nothing else: test_deb_minimal.py.
"""

import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from package.contents import IMPORT_EVERYTHING, left_behind, next_version, packed, unmet
from package.overlay import Overlay

# Building takes 20 s and installing 10 s on two free cores; others may keep them busy.
pytestmark = [pytest.mark.datapath, pytest.mark.timeout(400)]

#: In a network namespace of its own: the daemon as installed, asked by the command and by an application.
SERVE = """
set -e
trap 'kill %1 2>/dev/null || true' EXIT
mount -t bpf bpf /sys/fs/bpf
ip link set lo up
ip link add q0 type veth peer name q1
ip address add 192.0.2.1/24 dev q0
ip link set q0 up
ip link set q1 up
qos2d --config /etc/qos2/qos2d.toml --device q0 2>/run/qos2d.log &
until qos2 status >/dev/null 2>&1; do kill -0 %1 || { cat /run/qos2d.log; exit 1; }; sleep 0.2; done
qos2 status --json | grep -o '"server": "[^"]*"'
/usr/bin/python3 -c '
import socket, qos2
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("192.0.2.2", 5004))
with qos2.Handle() as qos:
    qos.add_socket(sock, qos2.TrafficType.VOICE)
    print("dsfield", sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS))
'
kill %1
wait %1
[ ! -e /sys/fs/bpf/qos2 ] || echo pins are left
"""


@pytest.fixture(scope="module")
def installed(packages: dict[str, Path]) -> Iterator[tuple[Overlay, str]]:
    """This machine with the packages, and what their installation said."""
    if subprocess.run(["dpkg-query", "-s", "qos2"], capture_output=True, check=False).returncode == 0:
        pytest.skip("the package qos2 is installed on this machine itself")
    missing = unmet(packages["qos2"])
    if missing:
        pytest.skip(f"not installed: {missing}")
    with Overlay(Path("/")) as overlay:
        overlay.pretend_systemd()
        yield overlay, overlay.run("dpkg", "-i", *overlay.copy_in(*packages.values()))


@pytest.fixture
def system(installed: tuple[Overlay, str]) -> Overlay:
    return installed[0]


def _version(package: Path) -> str:
    return subprocess.run(
        ["dpkg-deb", "-f", package, "Version"], capture_output=True, text=True, check=True
    ).stdout.strip()


def _built(folder: Path, name: str, version: str = "1", depends: str = "") -> Path:
    """A package of the files in `folder`."""
    (folder / "DEBIAN").mkdir(exist_ok=True)
    (folder / "DEBIAN" / "control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <nobody@example.org>\n"
        f"Description: for a test\n{depends}"
    )
    return packed(folder, name)


def test_the_commands_are_the_installed_ones(system: Overlay, packages: dict[str, Path]) -> None:
    version = _version(packages["qos2"]).partition("-")[0]
    assert system.run("qos2", "--version") == f"qos2 {version}\n"
    assert system.run("qos2d", "--version") == f"qos2d {version}\n"


def test_an_application_gets_the_client_and_not_the_libraries_of_the_commands(system: Overlay) -> None:
    code = "import importlib.util, msgspec, qos2\n"
    code += "print(qos2.__file__, msgspec.__file__, importlib.util.find_spec('pyroute2'), sep='\\n')"
    assert system.run("/usr/bin/python3", "-c", code).splitlines() == [
        "/usr/lib/python3/dist-packages/qos2/__init__.py",
        "/usr/lib/qos2/client/msgspec/__init__.py",
        "None",
    ]


def test_the_commands_do_not_listen_to_the_callers_environment(system: Overlay) -> None:
    bad = system.path("/run/bad")
    bad.mkdir()
    (bad / "qos2.py").write_text("raise SystemExit('misled')")
    assert system.run("env", "PYTHONPATH=/run/bad", "qos2", "--version", cwd="/run/bad").startswith("qos2 ")


def test_every_module_of_the_package_can_be_imported(system: Overlay) -> None:
    # numpy is the distribution's, and so older than that of the other tests.
    expected = "True /usr/lib/python3/dist-packages/numpy/__init__.py\n"
    assert system.run("/usr/bin/python3", "-I", "-c", IMPORT_EVERYTHING) == expected


def test_the_account_and_its_group_are_there(system: Overlay) -> None:
    assert system.run("id", "-un", "qos2") == "qos2\n"
    assert system.run("id", "-gn", "qos2") == "qos2\n"
    assert system.run("getent", "group", "qos2").startswith("qos2:")


def test_the_installation_says_that_the_datapath_compiles(installed: tuple[Overlay, str]) -> None:
    said = re.findall(r"^qos2: .*$", installed[1], re.MULTILINE)
    running = f"qos2: Linux {platform.release()} (running): the datapath compiles with "
    assert [line.startswith(running) and line.endswith(" and the kernel accepts it") for line in said].count(True) == 1


def test_a_kernel_that_comes_is_compiled_for_and_never_refused(system: Overlay, tmp_path: Path) -> None:
    for release in ("9.9.8-broken", "9.9.9-bare"):
        (tmp_path / "kernel/lib/modules" / release).mkdir(parents=True)
        (tmp_path / "kernel/lib/modules" / release / "modules.builtin").touch()
    (tmp_path / "kernel/lib/modules/9.9.8-broken/build").symlink_to("/usr/src/linux-headers-9.9.8-broken")
    include = tmp_path / "kernel/usr/src/linux-headers-9.9.8-broken/include/linux"
    include.mkdir(parents=True)
    (include / "kconfig.h").write_text("#error these headers are of no use\n")
    said = system.run("dpkg", "-i", *system.copy_in(_built(tmp_path / "kernel", "linux-image-9")))
    assert "qos2: Linux 9.9.8-broken: bcc could not compile" in said
    assert re.search(r"^qos2: Linux 9\.9\.9-bare: the datapath compiles with the headers linux-headers-", said, re.M)
    assert system.run("dpkg-query", "-W", "-f", "${db:Status-Status}", "linux-image-9") == "installed"
    assert system.run("dpkg-query", "-W", "-f", "${db:Status-Status}", "qos2") == "installed"
    said = system.run("dpkg", "-r", "linux-image-9")
    assert "9.9.9-bare" not in said
    assert f"qos2: Linux {platform.release()} (running): the datapath compiles" in said


def test_a_program_in_c_compiles_with_pkg_config(system: Overlay) -> None:
    system.run(
        "sh", "-c", "cc -Wall -Werror -o /run/mark /usr/share/doc/libqwave-dev/examples/mark.c "
        "$(pkg-config --cflags --libs libqwave)",
    )  # fmt: skip
    assert "libqwave.so.1 => /lib/" in system.run("ldd", "/run/mark")


def test_every_page_renders_without_a_warning(system: Overlay) -> None:
    pages = [path for path in system.run("dpkg", "-L", "qos2").split() if path.startswith("/usr/share/man/man")]
    pages = [path for path in pages if path.endswith(".gz")]
    assert {"qos2.1.gz", "qos2-run.1.gz", "qos2d.8.gz", "qos2d.toml.5.gz"} <= {Path(path).name for path in pages}
    for path in pages:
        text = system.run("sh", "-c", f"man --warnings -E UTF-8 -l -Tutf8 -Z {path} 2>&1 >/dev/null")
        assert text == "", path


@pytest.mark.parametrize(("command", "typed", "expected"), [("qos2", "to", "top"), ("qos2d", "--conf", "--config")])
def test_completion_loads(system: Overlay, command: str, typed: str, expected: str) -> None:
    code = f"source /usr/share/bash-completion/completions/{command}; COMP_WORDS=({command} {typed}); COMP_CWORD=1; "
    assert system.run("bash", "-c", f'{code} _{command}; echo "${{COMPREPLY[@]}}"') == f"{expected}\n"


def test_the_installed_daemon_serves_an_application(system: Overlay, packages: dict[str, Path]) -> None:
    version = _version(packages["qos2"]).partition("-")[0]
    said = system.run("unshare", "--net", "--mount", "bash", "-c", SERVE)
    # DSCP 56 of voice, in the upper six bits; and behind the daemon nothing is left on the bpf file system.
    assert said == f'"server": "{version}"\ndsfield 224\n'


def _asked_of_systemd(system: Overlay) -> list[str]:
    calls = [call.replace("--quiet ", "").replace("--system ", "") for call in system.systemctl_calls()]
    return [call for call in calls if call != "daemon-reload"]


def test_upgraded_removed_and_purged(system: Overlay, packages: dict[str, Path], tmp_path: Path) -> None:
    """The last one of this file: nothing is left of the packages."""
    assert _asked_of_systemd(system) == ["start qos2d.socket", "start qos2d.service"]
    links = (
        "/etc/systemd/system/sockets.target.wants/qos2d.socket",
        "/etc/systemd/system/multi-user.target.wants/qos2d.service",
    )
    assert [system.path(link).is_symlink() for link in links] == [True, True]
    configuration = system.path("/etc/qos2/qos2d.toml")
    configuration.write_text("max_flows = 1024\n")
    system.path("/etc/qos2/policy.d/mine.toml").touch()

    # As apt does it unattended: what dpkg would propose.
    upgrade = system.copy_in(next_version(packages["qos2"], tmp_path / "next"))
    system.run("dpkg", "--force-confdef", "-i", *upgrade)
    assert system.run("dpkg-query", "-W", "-f", "${Version}", "qos2").endswith("+next")
    assert configuration.read_text() == "max_flows = 1024\n"
    assert _asked_of_systemd(system) == ["start qos2d.socket", "restart qos2d.service"]

    names = list(packages)
    system.run("dpkg", "-r", *names)
    assert configuration.read_text() == "max_flows = 1024\n"
    assert _asked_of_systemd(system) == ["stop qos2-reflector.service", "stop qos2d.service", "stop qos2d.socket"]

    system.run("dpkg", "-P", *names)
    assert left_behind(system) == set()
    assert not system.path("/run/qos2").exists()
    before, after = (Path(folder, "passwd").read_text().splitlines() for folder in ("/etc", system.path("/etc")))
    assert {line.partition(":")[0] for line in set(after) - set(before)} == {"qos2"}
