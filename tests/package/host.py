"""What a host has beside the packages, for a machine that was booted from a minimal root: programs, a network, units.

The programs are those of the machine that tests, run by its own loader with its own libraries, which lie below /host.
"""

import json
import shutil
import sysconfig
from pathlib import Path

from package.machine import Machine

#: Without these there is nothing to see; what else of PROGRAMS is not here, its steps are left out, by name.
REQUIRED = ("curl", "ip", "prometheus", "promtool")
PROGRAMS = (*REQUIRED, "bpftool", "free", "ss", "tc", "top")
DEVICE, PEER = "eth0", "192.0.2.2"
#: Ports that the units send to; CALLS is marked as voice by the first example of a policy, BACKUP as background.
CALLS, BACKUP, ASKS = 5004, 873, 5006
#: Bits per second at IP level that the backup sends where nothing holds it back; the example holds it at 40 Mbit/s.
BACKUP_RATE = 60_000_000

_USR = Path("/usr")
_HOST = Path("/host")

_CALLS = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("{peer}", {port}))
while True:
    sock.send(bytes(160))
    time.sleep(0.02)
"""

#: Datagrams of 1,250 bytes at IP level: as many as are due, looked at every few milliseconds.
_BACKUP = """
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("{peer}", {port}))
due = time.monotonic()
while True:
    due = max(due, time.monotonic() - 0.1)
    while due < time.monotonic():
        sock.send(bytes(1222))
        due += 1250 * 8 / {rate}
    time.sleep(0.005)
"""

#: A program that asks by itself, and asks again when the daemon was another one meanwhile.
_ASKS = """
import socket, time, qos2
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.connect(("{peer}", {port}))
with qos2.Handle(timeout=30) as qos:
    flow = qos.add_socket(sock, qos2.TrafficType.EXCELLENT_EFFORT)
    while True:
        flow.stats()
        sock.send(bytes(160))
        time.sleep(0.1)
"""

#: At the other end, for so many seconds: by port and DS field, the bytes at IP level that arrive.
_ARRIVING = """
import collections, json, socket, sys, time
found = collections.defaultdict(collections.Counter)
with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800)) as sock:
    sock.settimeout(1)
    end = time.monotonic() + float(sys.argv[1])
    while time.monotonic() < end:
        packet = sock.recv(2048)
        header = (packet[0] & 15) * 4
        found[int.from_bytes(packet[header + 2 : header + 4], "big")][packet[1]] += len(packet)
print(json.dumps(found))
"""

#: As Debian's; it asks once a second instead of every 15.
_PROMETHEUS = """
[Service]
User=prometheus
ExecStartPre=+/bin/sed -i "s/_interval: 15s/_interval: 1s/" /etc/prometheus/prometheus.yml
ExecStart=prometheus --config.file=/etc/prometheus/prometheus.yml --storage.tsdb.path=/var/lib/prometheus/data
"""

_SETUP = f"""
set -e
ip netns add peer
ip link add {DEVICE} type veth peer name {DEVICE} netns peer
ip address add 192.0.2.1/24 dev {DEVICE}
ip link set lo up
ip link set {DEVICE} up
ip -n peer link set {DEVICE} up
# Nobody answers there, not even that nobody listens.
ip neighbour replace {PEER} lladdr 02:00:00:00:00:02 dev {DEVICE}
useradd alice
useradd --system prometheus
mkdir -p /etc/prometheus /var/lib/prometheus
chown prometheus: /var/lib/prometheus
systemctl daemon-reload
systemctl start asterisk.service backup.service
"""


def found(name: str) -> Path | None:
    """Where this machine has a program; None where it has none, or only a script that looks for one."""
    path = shutil.which(name)
    if path is None or not Path(path).read_bytes().startswith(b"\x7fELF"):
        return None
    return Path(path).resolve()


def binds() -> dict[str, Path]:
    """The folders of this machine that the other one must find, for Machine."""
    folders = {path.parent for name in PROGRAMS if (path := found(name)) is not None} | {_USR}
    return {str(_within(folder)): folder for folder in folders if folder == _USR or not folder.is_relative_to(_USR)}


def _within(path: Path) -> Path:
    return _HOST / path.relative_to("/")


def furnish(machine: Machine, shared: Path) -> None:
    """`shared` is the folder that the machine has at /shared."""
    library = _USR / "lib" / str(sysconfig.get_config_var("MULTIARCH"))
    (loader,) = library.glob("ld-linux-*.so.?")
    for name in PROGRAMS:
        if (path := found(name)) is not None:
            run = f"{_within(loader)} --library-path {_within(library)} {_within(path)}"
            _install(machine, shared, f'#!/bin/sh\nexec {run} "$@"\n', f"/usr/local/bin/{name}", "755")
    for name, script, options in (
        ("asterisk", _CALLS.format(peer=PEER, port=CALLS), ""),
        ("backup", _BACKUP.format(peer=PEER, port=BACKUP, rate=BACKUP_RATE), ""),
        ("asks", _ASKS.format(peer=PEER, port=ASKS), "User=alice\nRestart=always\nRestartSec=1\n"),
    ):
        _install(machine, shared, script, f"/usr/local/lib/{name}.py", "644")
        command = f"/usr/bin/python3 /usr/local/lib/{name}.py"
        unit = f"[Unit]\nStartLimitIntervalSec=0\n[Service]\n{options}ExecStart={command}\n"
        _install(machine, shared, unit, f"/run/systemd/system/{name}.service", "644")
    _install(machine, shared, _PROMETHEUS, "/run/systemd/system/prometheus.service", "644")
    machine.run("sh", "-c", _SETUP)


def arriving(machine: Machine, shared: Path, seconds: float) -> dict[int, dict[int, int]]:
    """What arrives at the other end of the line: port -> DS field -> bytes at IP level."""
    (shared / "arriving.py").write_text(_ARRIVING)
    enter = ("nsenter", "--net=/run/netns/peer", "/usr/bin/python3", "/shared/arriving.py", str(seconds))
    sizes = json.loads(machine.run(*enter))
    return {int(port): {int(field): size for field, size in fields.items()} for port, fields in sizes.items()}


def _install(machine: Machine, shared: Path, text: str, target: str, mode: str) -> None:
    source = shared / "installed"
    source.write_text(text)
    machine.run("install", "-D", "-m", mode, "/shared/installed", target)
