"""`qos2 run`: an unchanged program and its children in one flow, judged at the peer."""

import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import qos2
from demo.packets import TCP, UDP, Packets
from demo.processes import environment
from harness.wire import Wire, eventually, port_of, read_to_end

pytestmark = pytest.mark.datapath

V4 = "198.51.100.2"

#: Sends one datagram and one connection's worth, by itself and by a child.
PROGRAM = """
import os, socket, subprocess, sys
host, tcp, udp, depth = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x" * 500, (host, udp))
with socket.create_connection((host, tcp)) as stream:
    stream.sendall(b"y" * 20000)
if depth:
    sys.exit(subprocess.call([sys.executable, *sys.orig_argv[1:-1], str(depth - 1)]))
sys.exit(7)
"""


def run(wire: Wire, *command: str, options: tuple[str, ...] = ("--type", "background")) -> tuple[int, str]:
    """`qos2 run` in the application's namespace: exit code and stderr."""
    argv = (sys.executable, "-m", "qos2.cli", "--socket", wire.daemon.socket, "run", *options, "--", *command)
    done = subprocess.run(
        wire.lab.app.argv(*argv), env=environment(), stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def cgroups() -> set[str]:
    return {str(path) for path in Path("/sys/fs/cgroup").rglob("qos2-*")}


def sent_by_program(packets: Packets, tcp: int, udp: int) -> list[int]:
    chosen = ((packets.protocol == TCP) & (packets.dport == tcp)) | ((packets.protocol == UDP) & (packets.dport == udp))
    return [int(dscp) for dscp in packets.dscp[chosen]]


def test_every_packet_of_the_program_and_its_children_is_marked_and_the_exit_code_returned(wire: Wire) -> None:
    before = cgroups()
    listener, receiver = wire.listener(), wire.receiver()
    recording = wire.record()
    code, said = run(
        wire,
        *(sys.executable, "-c", PROGRAM, V4, str(port_of(listener)), str(receiver.port), "2"),
        options=("--type", "background", "--stats"),
    )
    for _ in range(3):
        assert read_to_end(wire.accept(listener)) == 20000
    receiver.expect(3)
    marks = sent_by_program(recording.stop(), port_of(listener), receiver.port)
    assert code == 7
    assert set(marks) == {8}
    assert f" {len(marks)} packets" in said
    assert eventually(lambda: cgroups() == before)
    with qos2.Handle(wire.daemon.socket) as qos:
        assert qos.flows() == []


def test_a_rate_holds_the_whole_program(wire: Wire) -> None:
    listener = wire.listener()
    recording = wire.record()
    program = (
        "import socket, sys; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); s.sendall(bytes(2_000_000))"
    )
    with ThreadPoolExecutor(1) as reader:
        received = reader.submit(lambda: read_to_end(wire.accept(listener)))
        code, _ = run(
            wire,
            *(sys.executable, "-c", program, V4, str(port_of(listener))),
            options=("--type", "background", "--rate", "8M"),
        )
        assert received.result() == 2_000_000
    assert code == 0
    packets = recording.stop()
    mine = packets.dport == port_of(listener)
    times, sizes = packets.time_ns[mine], packets.ip_bytes[mine]
    seconds = (int(times[-1]) - int(times[0])) / 1e9
    assert 0.95 * 8e6 < int(sizes.sum()) * 8 / seconds < 1.1 * 8e6


def test_sockets_made_outside_stay_outside(wire: Wire) -> None:
    receiver = wire.receiver()
    outside = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    outside.connect((V4, receiver.port))
    recording = wire.record()
    assert run(wire, "true")[0] == 0
    outside.send(b"x")
    receiver.expect(1)
    packets = recording.stop()
    assert [int(dscp) for dscp in packets.dscp[packets.dport == receiver.port]] == [0]


@pytest.mark.parametrize(("command", "code"), [(("false",), 1), (("sh", "-c", "kill -9 $$"), 137), (("no-such",), 127)])
def test_exit_codes_are_a_shells(wire: Wire, command: tuple[str, ...], code: int) -> None:
    assert run(wire, *command)[0] == code
