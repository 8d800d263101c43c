"""The policy as an administrator has it: files in the daemon's folder, `qos2 reload`, judged by what arrives."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from demo.lab import Lab
from demo.processes import Daemon, environment
from harness.device_state import device_state
from harness.wire import UNPROBED, Wire, eventually, marks, port_of
from qos2 import TrafficType

pytestmark = pytest.mark.datapath

AF31, CS1 = 26, 8


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("qos2-test") as made:
        yield made


@pytest.fixture(scope="module")
def distant(lab: Lab) -> Iterator[Daemon]:
    """A daemon in the router's namespace: nothing but a rule attaches it in the application's."""
    with Daemon(lab.router, **UNPROBED) as daemon:
        yield daemon
        assert "Traceback" not in daemon.log, daemon.log


@pytest.fixture
def wire(lab: Lab, distant: Daemon) -> Iterator[Wire]:
    """Of one test; no policy is in force afterwards."""
    before = device_state(lab.app)
    with Wire(lab, distant) as made:
        yield made
    for file in distant.policy.iterdir():
        file.unlink()
    assert reload(distant) == (0, "")
    assert eventually(lambda: device_state(lab.app) == before), device_state(lab.app)


def reload(daemon: Daemon, **rules: str) -> tuple[int, str]:
    """Exit status of `qos2 reload` and what it complains of, once each text of `rules` is in a file of that name."""
    for name, text in rules.items():
        (daemon.policy / f"{name}.toml").write_text(text)
    argv = (sys.executable, "-m", "qos2.cli", "--socket", daemon.socket, "reload")
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr


def arrived(wire: Wire, port: int) -> list[int]:
    """The DSCPs with which three datagrams of a program that nobody registered arrive at this port."""
    recording = wire.record()
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    with wire.lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind((wire.lab.peer.ipv4[0], port))
        sock.connect(receiver.getsockname())
        for _ in range(3):
            sock.send(b"datagram")
        return marks(recording.stop().select(sport=port_of(sock), dport=port))


def test_a_rule_that_names_a_namespace_attaches_the_daemon_there(wire: Wire, distant: Daemon) -> None:
    if not wire.handle().status().datapath["features"]["netns_match"]:
        pytest.skip("this kernel does not tell the network namespace of a packet (Linux 6.15)")
    there = wire.lab.app.name
    rule = f'[[rule]]\nname = "calls"\nmatch = {{ namespace = "{there}", remote_port = 5060 }}\nact.dscp = {AF31}\n'
    assert arrived(wire, 5060) == [0] * 3
    assert reload(distant, calls=rule) == (0, "")
    assert eventually(lambda: arrived(wire, 5060) == [AF31] * 3)
    assert arrived(wire, 5061) == [0] * 3


def test_a_wrong_file_is_refused_by_its_line_and_what_was_in_force_stays(wire: Wire, distant: Daemon) -> None:
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    wire.handle().add_socket(sock, TrafficType.VOICE, dest=("0.0.0.0", 0))  # attaches the daemon in its namespace
    good = f'[[rule]]\nname = "backup"\nmatch.remote_port = 873\nact.dscp = {CS1}\n'
    assert reload(distant, good=good) == (0, "")
    assert arrived(wire, 873) == [CS1] * 3
    status, complaint = reload(distant, wrong='[[rule]]\nname = "web"\nmatch.remote_prot = 80\nact.dscp = 10\n')
    assert (status, arrived(wire, 873)) == (1, [CS1] * 3)
    assert f"{distant.policy}/wrong.toml:3: match.remote_prot: unknown key" in complaint
    assert "remote_port" in complaint
