"""Two fresh network namespaces joined by a veth pair: 192.0.2.1 sends, 192.0.2.2 receives.

The namespaces have no names and end with the test. Programs are two instructions, packed by hand, so
that tests of hooks and shapers need no compiler.
"""

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.tcx import tcx_programs
from qos2.datapath.links import Device, Namespace
from qos2.datapath.maps import LIBBPF
from qos2.datapath.tc import TrafficControl

DEVICE = "qos0"
SENDER, RECEIVER = "192.0.2.1", "192.0.2.2"
IP_AND_UDP_BYTES = 28

#: tcx came with Linux 6.6.
HAS_TCX = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2]) >= (6, 6)

_BPF_PROG_TYPE_SCHED_CLS = 3
_BPF_TCX_EGRESS = 47
_LIBC = ctypes.CDLL(None, use_errno=True)


class VethPair:
    """`near` is the namespace under test; close() ends both."""

    def __init__(self) -> None:
        self.near = Namespace.fresh()
        self.far = Namespace.fresh()
        try:
            peer = f"/proc/{os.getpid()}/fd/{self.far.fileno()}"
            self.command("ip", "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", peer)
            for namespace, address in ((self.near, SENDER), (self.far, RECEIVER)):
                run_in(namespace, "ip", "address", "add", f"{address}/30", "dev", DEVICE)
                # No neighbour discovery by itself: only what a test sends leaves.
                run_in(namespace, "sysctl", "-qw", f"net.ipv6.conf.{DEVICE}.disable_ipv6=1")
                run_in(namespace, "ip", "link", "set", DEVICE, "up")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.near.close()
        self.far.close()

    @property
    def device(self) -> Device:
        (found,) = (device for device in self.near.devices() if device.name == DEVICE)
        return found

    @property
    def tc(self) -> TrafficControl:
        return TrafficControl(self.near.conversation, self.device.index)

    def command(self, *argv: str) -> str:
        return run_in(self.near, *argv)

    def qdiscs(self) -> str:
        return self.command("tc", "-j", "qdisc", "show", "dev", DEVICE)

    def filters(self) -> tuple[str, ...]:
        return tuple(self.command("tc", "-j", "filter", "show", "dev", DEVICE, side) for side in ("ingress", "egress"))

    def sent_packets(self) -> int:
        """What the device has sent, ARP included."""
        (link,) = json.loads(self.command("ip", "-j", "-s", "link", "show", "dev", DEVICE))
        return int(link["stats64"]["tx"]["packets"])

    def tcx_programs(self) -> list[int]:
        """Ids of the tcx programs at egress, in the order in which packets meet them."""
        return tcx_programs(self.near, self.device.index)

    def attach_foreign_tcx(self, program_fd: int) -> None:
        index = self.device.index
        failed = self.near.run(lambda: LIBBPF.bpf_prog_attach(program_fd, index, _BPF_TCX_EGRESS, 0))
        assert not failed

    def sender(self, priority: int = 0) -> socket.socket:
        """A UDP socket connected to the receiver; `priority` may be the id of an HTB class."""
        sender = self.near.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sender.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
        sender.connect((RECEIVER, 5004))
        return sender

    def receiver(self) -> socket.socket:
        receiver = self.far.run(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        receiver.bind((RECEIVER, 5004))
        receiver.settimeout(2)
        return receiver

    def ip_rate(self, priority: int, payload_bytes: int, seconds: float, settle: float = 0.4) -> float:
        """Bits/s at IP level at which a sender that blocks gets through, after `settle` seconds."""
        with self.sender(priority) as sender, self.receiver() as receiver, flooding(sender, payload_bytes):
            begin = time.monotonic() + settle
            while time.monotonic() < begin:
                receiver.recv(65_536)
            first = last = time.monotonic()
            octets = 0
            while last - first < seconds:
                octets += len(receiver.recv(65_536)) + IP_AND_UDP_BYTES
                last = time.monotonic()
        return octets * 8 / (last - first)


@contextlib.contextmanager
def flooding(sender: socket.socket, payload_bytes: int) -> Iterator[None]:
    """Sends as fast as the socket takes it, on another thread."""
    stop = threading.Event()
    sender.settimeout(1)

    def send() -> None:
        payload = bytes(payload_bytes)
        while not stop.is_set():
            with contextlib.suppress(TimeoutError, ConnectionRefusedError):
                sender.send(payload)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def run_in(namespace: Namespace, *argv: str) -> str:
    """Output of a command run inside a namespace. `ip netns exec` would hide the bpf file system."""
    net = f"--net=/proc/{os.getpid()}/fd/{namespace.fileno()}"
    return subprocess.run(["nsenter", net, *argv], check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True, slots=True)
class Program:
    """A loaded program that lets every packet go on to the next."""

    fd: int

    @property
    def id(self) -> int:
        return self._fact("prog_id")

    @property
    def runs(self) -> int:
        """How many packets it has met while counting() was in force."""
        return self._fact("run_cnt")

    def pin(self, path: Path) -> None:
        assert not LIBBPF.bpf_obj_pin(self.fd, str(path).encode())

    def _fact(self, name: str) -> int:
        lines = Path(f"/proc/self/fdinfo/{self.fd}").read_text().splitlines()
        return int(dict(line.split(":", 1) for line in lines)[name])


@contextlib.contextmanager
def loaded_program(name: str) -> Iterator[Program]:
    """r0 = -1; exit: TCX_NEXT, which is TC_ACT_UNSPEC too."""
    code = bytes([0xB7, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x95, 0, 0, 0, 0, 0, 0, 0])
    fd = LIBBPF.bpf_prog_load(_BPF_PROG_TYPE_SCHED_CLS, name.encode(), b"GPL", code, ctypes.c_size_t(2), None)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        yield Program(fd)
    finally:
        os.close(fd)


@contextlib.contextmanager
def counting() -> Iterator[None]:
    """The kernel counts the runs of every program meanwhile."""
    fd = LIBBPF.bpf_enable_stats(0)
    assert fd >= 0, os.strerror(ctypes.get_errno())
    try:
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def bpf_file_system(directory: Path) -> Iterator[Path]:
    """An empty folder in a bpf file system of its own, mounted at `directory`."""
    assert not _LIBC.mount(b"bpf", str(directory).encode(), b"bpf", 0, None), os.strerror(ctypes.get_errno())
    try:
        pins = directory / "pins"  # the kernel has entries of its own in the top folder
        pins.mkdir()
        yield pins
    finally:
        assert not _LIBC.umount2(str(directory).encode(), 0), os.strerror(ctypes.get_errno())
