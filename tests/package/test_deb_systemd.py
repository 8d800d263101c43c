"""The package under a real systemd: the daemon starts, an upgrade changes it below its socket, its removal ends it."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from package.contents import next_version
from package.machine import Machine

pytestmark = [pytest.mark.datapath, pytest.mark.timeout(400)]  # as test_deb.py

ROOT = Path(__file__).parents[2] / ".cache" / "deb" / "root"

#: As an ordinary user: marks a socket, and says which DS field its packets have.
APPLICATION = """
import socket, qos2
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("192.0.2.2", 5004))
with qos2.Handle() as qos:
    qos.add_socket(sock, qos2.TrafficType.VOICE)
    print("dsfield", sock.getsockopt(socket.IPPROTO_IP, socket.IP_TOS))
"""
AS_NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", APPLICATION)
UNITS = ("qos2d.socket", "qos2d.service", "qos2-reflector.service")


@pytest.fixture(scope="module")
def machine(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """Booted, with a network device, and the packages at /shared."""
    if shutil.which("systemd-nspawn") is None:
        pytest.skip("not installed: systemd-container")
    if not ROOT.with_name("root.stamp").is_file():
        pytest.skip(f"no {ROOT}: sudo ./dev deb --test makes it, in a minute, and runs this")
    shared = tmp_path_factory.mktemp("shared")
    shutil.copy(packages["qos2"], shared / "qos2.deb")
    shutil.move(next_version(packages["qos2"], shared / "tree"), shared / "next.deb")
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(Machine(ROOT, shared))
        except OSError as error:
            pytest.skip(f"systemd-nspawn does not work here: {error}")
        with_device(opened)
        yield opened


def with_device(machine: Machine) -> None:
    for command in (
        "ip link add q0 type veth peer name q1",
        "ip address add 192.0.2.1/24 dev q0",
        "ip link set q0 up",
        "ip link set q1 up",
    ):
        machine.network(*command.split())


def active(machine: Machine) -> list[str]:
    """The states of our units."""
    return [machine.property(unit, "ActiveState") for unit in UNITS]


def faults_of_children(machine: Machine) -> int:
    """Page faults of the children that the daemon has waited for: proc(5), cminflt."""
    pid = machine.property("qos2d.service", "MainPID")
    return int(machine.run("cat", f"/proc/{pid}/stat").rpartition(")")[2].split()[8])


def others(machine: Machine) -> set[str]:
    """Every service and socket that runs, but ours."""
    lines = machine.run(
        "systemctl", "list-units", "--plain", "--no-legend", "--state=active", "--type=service,socket"
    ).splitlines()
    return {line.split()[0] for line in lines} - set(UNITS)


def test_installed_upgraded_and_removed(machine: Machine) -> None:
    before = others(machine)
    said = machine.run("dpkg", "-i", "/shared/qos2.deb")
    assert "(running): the datapath compiles with " in said
    assert active(machine) == ["active", "active", "inactive"], machine.run("journalctl", "-u", "qos2d", "--no-pager")
    assert [machine.property(unit, "UnitFileState") for unit in UNITS] == ["enabled", "enabled", "disabled"]
    assert machine.run(*AS_NOBODY) == "dsfield 224\n"
    assert others(machine) >= before
    # Compiled by root at the installation, the daemon's own since its start, which had no compiler for a child.
    assert machine.run("stat", "-c", "%U:%G %a", "/var/cache/qos2") == "qos2:qos2 700\n"
    assert set(machine.run("sh", "-c", "stat -c '%U %a' /var/cache/qos2/*").splitlines()) == {"qos2 600"}
    assert faults_of_children(machine) == 0

    socket_since = machine.property("qos2d.socket", "ActiveEnterTimestampMonotonic")
    daemon = machine.property("qos2d.service", "MainPID")
    machine.run("systemctl", "start", "qos2-reflector.service")
    machine.run("dpkg", "--force-confdef", "-i", "/shared/next.deb")
    assert active(machine) == ["active", "active", "active"]
    assert machine.property("qos2d.socket", "ActiveEnterTimestampMonotonic") == socket_since
    assert machine.property("qos2d.service", "MainPID") != daemon
    assert faults_of_children(machine) == 0
    assert set(machine.run("sh", "-c", "stat -c '%U %a' /var/cache/qos2/*").splitlines()) == {"qos2 600"}
    assert machine.run(*AS_NOBODY) == "dsfield 224\n"

    machine.run("dpkg", "-r", "qos2")
    assert active(machine) == ["inactive", "inactive", "inactive"]
    assert others(machine) >= before
    assert machine.run("find", "/sys/fs/bpf", "-mindepth", "2") == ""

    machine.run("dpkg", "-P", "qos2")
    assert (
        machine.run(
            "sh", "-c", "ls -d /etc/qos2 /run/qos2 /var/cache/qos2 /etc/systemd/system/*/qos2* 2>/dev/null || true"
        )
        == ""
    )
