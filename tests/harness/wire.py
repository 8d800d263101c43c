"""Real sockets in the lab, judged by what the peer captures: what the tests of the wire share.

A Wire is one test's view of a lab with a daemon: it hands out sockets on both sides, captures and senders,
and closes whatever it handed out.
"""

import ctypes
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

import qos2
from demo.capture import Recording
from demo.lab import Lab, end
from demo.packets import Packets
from demo.processes import Daemon, environment
from qos2.core.bucket import bucket_depth_bytes

_LIBC = ctypes.CDLL(None, use_errno=True)
_TESTS = Path(__file__).resolve().parents[1]

#: Settings of a daemon that behaves as Windows to hosts beyond the link, and admits every rate at once to those on it:
#: for tests of marks and contracts, which are not to wait until a path is known.
UNPROBED: dict[str, str | bool] = {"off_link": "windows", "probing": False}
#: Until when something that must happen has happened, in seconds.
PATIENCE_S = 10.0


class Receiver:
    """A UDP socket in the peer, for both families."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.port: int = sock.getsockname()[1]

    def expect(self, count: int) -> None:
        """Wait until so many more datagrams have arrived. Raises TimeoutError."""
        for _ in range(count):
            self._socket.recv(65536)


class Flood:
    """A sender process on one socket (see flood.py), pinned to a CPU if told; it waits for `begin`."""

    def __init__(self, sock: socket.socket, block: int, rate: float = 0.0, cpu: int | None = None) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.flood", str(sock.fileno()), str(block), *([str(rate)] if rate else [])],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[sock.fileno()],
            env=environment() | {"PYTHONPATH": str(_TESTS)},
        )
        if cpu is not None:
            os.sched_setaffinity(self._process.pid, {cpu})

    def begin(self) -> None:
        """Start to send."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"begin\n")

    def stop(self) -> int:
        """End; how many blocks it sent."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        sent = int(self._process.stdout.readline())
        self._process.wait()
        return sent

    def close(self) -> None:
        """End it if it still runs."""
        end(self._process)


class Client:
    """A client process that marks one socket as voice and then only holds its handle, until it is killed."""

    _PROGRAM = (
        "import qos2, sys\n"
        "qos = qos2.Handle(sys.argv[1])\n"
        "qos.add_socket(int(sys.argv[2]), qos2.TrafficType.VOICE)\n"
        "print('ready', flush=True)\n"
        "sys.stdin.read()\n"
    )

    def __init__(self, path: str, sock: socket.socket) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self._PROGRAM, path, str(sock.fileno())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[sock.fileno()],
            env=environment(),
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"

    def kill(self) -> None:
        """End it as a crash would."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it if it still runs."""
        end(self._process)


class Wire:
    """What one test uses of a lab with a daemon; a context manager that closes all it handed out."""

    def __init__(self, lab: Lab, daemon: Daemon) -> None:
        self.lab = lab
        self.daemon = daemon
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def handle(self) -> qos2.Handle:
        """A session with the daemon."""
        return self._stack.enter_context(qos2.Handle(self.daemon.socket))

    def record(self) -> Recording:
        """A capture at the peer that has begun."""
        recording = Recording.start(self.lab.peer, self.lab.router)
        self._stack.callback(recording.cancel)
        return recording

    def sender(self, family: int, kind: int) -> socket.socket:
        """An application's socket, with a time limit on blocking calls."""
        sock = self._stack.enter_context(self.lab.app.socket(family, kind))
        sock.settimeout(PATIENCE_S)
        return sock

    def receiver(self) -> Receiver:
        """A new UDP port of the peer, on all its addresses."""
        sock = self._stack.enter_context(self.lab.peer.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 21)
        sock.settimeout(PATIENCE_S)
        sock.bind(("::", 0))
        return Receiver(sock)

    def listener(self, side: str = "peer") -> socket.socket:
        """A listening TCP socket of the peer (or of the app) on a new port, on all its addresses."""
        namespace = self.lab.peer if side == "peer" else self.lab.app
        sock = self._stack.enter_context(namespace.socket(socket.AF_INET6, socket.SOCK_STREAM))
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.settimeout(PATIENCE_S)
        sock.bind(("::", 0))
        sock.listen()
        return sock

    def accept(self, listener: socket.socket) -> socket.socket:
        """The next connection of a listening socket."""
        sock = self._stack.enter_context(listener.accept()[0])
        sock.settimeout(PATIENCE_S)
        return sock

    def flood(self, sock: socket.socket, block: int, rate: float = 0.0, cpu: int | None = None) -> Flood:
        """A sender process on a connected socket, waiting to begin."""
        flood = Flood(sock, block, rate, cpu)
        self._stack.callback(flood.close)
        return flood

    def client(self, sock: socket.socket) -> Client:
        """A process of its own that has marked `sock` as voice."""
        client = Client(self.daemon.socket, sock)
        self._stack.callback(client.close)
        return client


def port_of(sock: socket.socket) -> int:
    """The port that an IPv4 or IPv6 socket is bound to."""
    port: int = sock.getsockname()[1]
    return port


def read(sock: socket.socket, size: int) -> None:
    """Read exactly so many bytes of a stream. Raises TimeoutError, or EOFError where it ends earlier."""
    while size:
        data = sock.recv(min(size, 1 << 18))
        if not data:
            raise EOFError(f"the stream ended {size} bytes early")
        size -= len(data)


def read_to_end(sock: socket.socket) -> int:
    """Read until the other side has sent everything; how many bytes."""
    total = 0
    while data := sock.recv(1 << 18):
        total += len(data)
    return total


def disconnect(sock: socket.socket) -> None:
    """Take the peer of a connected UDP socket away: connect(2) to AF_UNSPEC, which Python's own connect cannot."""
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    if _LIBC.connect(sock.fileno(), nowhere, len(nowhere)) != 0:
        raise OSError(ctypes.get_errno(), "connect to AF_UNSPEC")


def marks(packets: Packets) -> list[int]:
    """The DSCP of each packet, in the order of arrival; and nothing else of a packet may depend on its mark.

    For senders that send the same datagram again and again: all packets between the same two ports must be equal
    byte for byte, but for the DSCP, the IPv4 header checksum (which must be right) and the IPv4 identification,
    which counts. Raises AssertionError where they are not.
    """
    assert packets.checksum_ok.all()
    kinds: dict[tuple[bytes, bytes, int, int], bytes] = {}
    for index in range(len(packets)):
        way = (
            packets.source[index].tobytes(),
            packets.destination[index].tobytes(),
            int(packets.sport[index]),
            int(packets.dport[index]),
        )
        packet = _without_mark(packets.frame(index))
        assert kinds.setdefault(way, packet) == packet
    return [int(dscp) for dscp in packets.dscp]


def _without_mark(frame: bytes) -> bytes:
    """The IP packet of an Ethernet frame with 0 for what the mark may change, and for the IPv4 identification."""
    packet = bytearray(frame[14:])
    if packet[0] >> 4 == 4:
        packet[1] &= 0x03
        packet[4:6] = packet[10:12] = bytes(2)
    else:
        packet[0] &= 0xF0
        packet[1] &= 0x3F
    return bytes(packet)


def check_rate(packets: Packets, bandwidth: int, begin_ns: int, end_ns: int, largest: int) -> None:
    """What arrived in begin <= time < end of senders that offer more than their contract all the time.

    `bandwidth` in bits/s at IP level, `largest`: bytes of the largest skb, which passes as a whole. Never more than
    the contract, one bucket and one skb, and what a stall of this machine held back until it was inside. Not less
    either, but for one skb, and for credit that nobody took: a silence longer than bucket and skb last is the
    machine's, and its credit is lost, as it has to be. Raises AssertionError.
    """
    inside = packets.select(begin_ns=begin_ns, end_ns=end_ns)
    times_ns = np.concatenate(([begin_ns], inside.time_ns, [end_ns]))
    silences_s = np.diff(times_ns) / 1e9
    spare = bucket_depth_bytes(bandwidth) + largest
    lost_s = np.maximum(silences_s - spare * 8 / bandwidth, 0).sum()
    seconds = (end_ns - begin_ns) / 1e9
    arrived = int(inside.ip_bytes.sum())
    assert arrived <= bandwidth / 8 * (seconds + max(0.004, silences_s.max())) + spare
    assert arrived >= 0.98 * bandwidth / 8 * (seconds - lost_s) - spare


def eventually(claim: Callable[[], bool]) -> bool:
    """Whether a claim about another process comes true in time."""
    deadline = time.monotonic() + PATIENCE_S
    while not claim():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
