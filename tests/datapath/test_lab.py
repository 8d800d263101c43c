"""The lab itself: what the other tests take for granted of it, and that it leaves nothing behind."""

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo import lab as lab_module
from demo.capture import FlowKey, LiveCapture, Recording
from demo.lab import Lab, LabError
from demo.packets import TCP, UDP

pytestmark = pytest.mark.datapath


def namespaces(prefix: str) -> list[str]:
    folder = Path("/run/netns")
    return [path.name for path in folder.glob(f"{prefix}-{os.getpid()}-*")]


@pytest.fixture
def own() -> Iterator[Lab]:
    with Lab("qos2-lab") as lab:
        yield lab


def test_two_labs_live_side_by_side_and_both_vanish() -> None:
    with Lab("qos2-pair") as first, Lab("qos2-pair") as second:
        assert len(namespaces("qos2-pair")) == 6
        for lab in (first, second):
            for address in (*lab.peer.ipv4, *lab.peer.ipv6):
                lab.app.run("ping", "-c", "1", "-W", "2", address)
    assert namespaces("qos2-pair") == []


def test_a_lab_vanishes_with_its_processes_after_an_error_inside_it() -> None:
    processes: list[subprocess.Popen[bytes]] = []

    def fail() -> None:
        with Lab("qos2-error") as lab:
            processes.append(lab.peer.popen("sleep", "60"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [process.returncode for process in processes] == [-15]
    assert namespaces("qos2-error") == []


def test_a_half_built_lab_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*argv: str, timeout: float = 30.0) -> str:
        if "default" in argv:
            raise LabError("no route for you")
        return command(*argv, timeout=timeout)

    command = lab_module.command
    monkeypatch.setattr(lab_module, "command", failing)
    with pytest.raises(LabError, match="no route for you"), Lab("qos2-half"):
        pass
    assert namespaces("qos2-half") == []


def test_a_failing_command_says_which_and_why(own: Lab) -> None:
    with pytest.raises(LabError, match=r"ip link show no-such.*does not exist"):
        own.app.run("ip", "link", "show", "no-such")


def test_this_thread_comes_back_from_a_namespace(own: Lab) -> None:
    home = os.readlink("/proc/thread-self/ns/net")
    with own.app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((own.app.ipv4[0], 0))
    with own.app.entered():
        assert os.readlink("/proc/thread-self/ns/net") != home
    assert os.readlink("/proc/thread-self/ns/net") == home


@pytest.mark.parametrize(("family", "index"), [(socket.AF_INET, "ipv4"), (socket.AF_INET6, "ipv6")])
def test_both_captures_see_mtu_sized_packets_of_a_stream_and_agree(own: Lab, family: int, index: str) -> None:
    host = getattr(own.peer, index)[0]
    recording = Recording.start(own.peer, own.router)
    with LiveCapture(own.peer) as live, own.peer.socket(family, socket.SOCK_STREAM) as listener:
        listener.bind((host, 0))
        listener.listen()
        port = listener.getsockname()[1]
        with own.app.socket(family, socket.SOCK_STREAM) as sock:
            sock.connect((host, port))
            sport = sock.getsockname()[1]
            accepted, _ = listener.accept()
            with accepted:
                sock.sendall(bytes(60_000))
                sock.shutdown(socket.SHUT_WR)
                while accepted.recv(1 << 16):
                    pass
        packets = recording.stop().select(protocol=TCP, sport=sport, dport=port)
        seen = live.flow(FlowKey(TCP, sport, port))
        assert live.lost() == 0
    assert packets.ip_bytes.max() == 1500
    # The socket's last acknowledgement may have come to one of the captures only.
    data = packets.where(packets.ip_bytes > 100)
    assert sum(size for size in seen.sizes if size > 100) == data.ip_bytes.sum()
    assert dict(seen.dscps).keys() == {0}


def test_a_recording_holds_exactly_what_left_before_its_end(own: Lab) -> None:
    with (
        own.app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        own.peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.bind((own.peer.ipv4[0], 0))
        sock.connect(receiver.getsockname())
        recording = Recording.start(own.peer, own.router)
        receiver.settimeout(5)
        for number in range(500):
            sock.send(number.to_bytes(4, "big"))
            receiver.recv(16)
        packets = recording.stop()
    assert [packets.frame(i)[-4:] for i in range(len(packets.select(protocol=UDP)))] == [
        number.to_bytes(4, "big") for number in range(500)
    ]
