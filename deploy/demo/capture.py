"""What the peer sees, by two captures: LiveCapture for the table on the screen, Recording for the judgement.

Both see only packets that arrive (not the peer's own answers), and both say so when they lost one: a capture
with holes proves nothing. The arithmetic over captured packets is in packets.py.
"""

import os
import re
import socket
import struct
import subprocess
import threading
import time
from array import array
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import IO, Self

import numpy as np

from demo.lab import Namespace, end
from demo.packets import TCP, UDP, CaptureError, Packets, parse_pcap, rate

_ETH_P_ALL = 3
_SO_RCVBUFFORCE = 33
_SOL_PACKET = 263
_PACKET_STATISTICS = 6
_PACKET_IGNORE_OUTGOING = 23
_SNAPLEN = 128
_POLL_S = 0.1
_DISCARD_PORT = 9

#: How long tcpdump may take to begin, and the last packet to arrive, in seconds.
PATIENCE_S = 10.0


@dataclass(frozen=True, slots=True)
class FlowKey:
    """How the live capture tells flows apart."""

    protocol: int
    sport: int
    dport: int


@dataclass(slots=True)
class FlowSeen:
    """What has arrived of one flow."""

    packets: int = 0
    ip_bytes: int = 0
    dscps: Counter[int] = field(default_factory=Counter)
    times_ns: "array[int]" = field(default_factory=lambda: array("q"))  #: CLOCK_MONOTONIC, one per packet
    sizes: "array[int]" = field(default_factory=lambda: array("q"))  #: IP level

    def rate(self, begin_ns: int, end_ns: int) -> float:
        """Bits per second at IP level that arrived in begin <= time < end."""
        return rate(np.array(self.times_ns, np.int64), np.array(self.sizes, np.int64), begin_ns, end_ns)

    def copy(self) -> "FlowSeen":
        return FlowSeen(self.packets, self.ip_bytes, Counter(self.dscps), self.times_ns[:], self.sizes[:])


class LiveCapture:
    """Counts per flow while it runs; a context manager around a packet socket and the thread that reads it."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        self._flows: dict[FlowKey, FlowSeen] = {}
        self._lost = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, name="live-capture", daemon=True)

    def __enter__(self) -> Self:
        self._socket = self._namespace.socket(socket.AF_PACKET, socket.SOCK_RAW)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 64 << 20)
            self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
            self._socket.settimeout(_POLL_S)
            self._socket.bind((self._namespace.device, _ETH_P_ALL))
        except BaseException:
            self._socket.close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()

    def flow(self, key: FlowKey) -> FlowSeen:
        """A copy of what has arrived of a flow so far; all zero for one that nothing came of."""
        with self._lock:
            return self._flows.get(key, FlowSeen()).copy()

    def lost(self) -> int:
        """Packets that the kernel could not hand over since the start: with any, the counts are too low."""
        with self._lock:
            # Reading them sets the kernel's counters back to 0.
            _, drops = struct.unpack("=II", self._socket.getsockopt(_SOL_PACKET, _PACKET_STATISTICS, 8))
            self._lost += drops
            return self._lost

    def _read(self) -> None:
        frame = bytearray(_SNAPLEN)
        while not self._stop.is_set():
            try:
                size = self._socket.recv_into(frame)
            except TimeoutError:
                continue
            self._count(frame, size, time.monotonic_ns())

    def _count(self, frame: bytearray, size: int, now_ns: int) -> None:
        ethertype = frame[12] << 8 | frame[13]
        if ethertype == 0x0800 and size >= 34:
            l4 = 14 + (frame[14] & 0xF) * 4
            protocol, dsfield = frame[23], frame[15]
            ip_bytes = frame[16] << 8 | frame[17]
        elif ethertype == 0x86DD and size >= 54:
            l4 = 54
            protocol, dsfield = frame[20], (frame[14] << 4 | frame[15] >> 4) & 0xFF
            ip_bytes = (frame[18] << 8 | frame[19]) + 40
        else:
            return
        ports = (0, 0)
        if protocol in (TCP, UDP) and size >= l4 + 4:
            ports = struct.unpack_from("!HH", frame, l4)
        with self._lock:
            seen = self._flows.setdefault(FlowKey(protocol, *ports), FlowSeen())
            seen.packets += 1
            seen.ip_bytes += ip_bytes
            seen.dscps[dsfield >> 2] += 1
            seen.times_ns.append(now_ns)
            seen.sizes.append(ip_bytes)


class Recording:
    """Every packet that arrives between start and stop, by tcpdump, an implementation that is not ours.

    `stop` sends a marker from the router through the same device and waits until it was recorded, so that
    nothing that left before is missing, without a pause of guessed length.
    """

    def __init__(self, peer: Namespace, router: Namespace, snaplen: int = _SNAPLEN) -> None:
        self._router = router
        self._target = (peer.ipv4[0], _DISCARD_PORT)
        self._marker = os.urandom(24)
        self._data = bytearray()
        self._marked = threading.Event()
        self._messages: list[str] = []
        self._process = peer.popen(
            *("tcpdump", "--interface", peer.device, "--direction", "in", "-n", "-w", "-", "-U", "-Z", "root"),
            *("--immediate-mode", "--snapshot-length", str(snaplen), "--time-stamp-precision", "nano"),
            *("--buffer-size", "16384"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        listening = threading.Event()
        self._threads = [
            threading.Thread(target=self._collect, args=(self._process.stdout,), daemon=True),
            threading.Thread(target=self._listen, args=(self._process.stderr, listening), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        listening.wait(PATIENCE_S)
        if not any("listening on" in message for message in self._messages):
            self._end()
            raise CaptureError(f"tcpdump did not begin: {' '.join(self._messages) or 'no message'}")

    @classmethod
    def start(cls, peer: Namespace, router: Namespace, snaplen: int = _SNAPLEN) -> Self:
        """Begin; returns when every further packet will be recorded. Raises CaptureError where tcpdump fails."""
        return cls(peer, router, snaplen)

    def stop(self) -> Packets:
        """End; what arrived until now. Raises CaptureError where a packet was lost."""
        try:
            with self._router.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
                sender.sendto(self._marker, self._target)
            if not self._marked.wait(PATIENCE_S):
                raise CaptureError("the end marker did not arrive: the capture stands still")
        finally:
            self._end()
        lost = re.search(r"(\d+) packets? dropped by kernel", " ".join(self._messages))
        if lost is None:
            raise CaptureError(f"tcpdump told no count of lost packets: {' '.join(self._messages)}")
        if lost.group(1) != "0":
            raise CaptureError(f"the capture lost {lost.group(1)} packets")
        packets = parse_pcap(bytes(self._data))
        marked = [i for i in np.flatnonzero(packets.dport == _DISCARD_PORT) if self._marker in packets.frame(int(i))]
        keep = np.ones(len(packets), np.bool_)
        keep[marked[0] :] = False
        return packets.where(keep)

    def cancel(self) -> None:
        """End and forget what was recorded (idempotent, also after stop)."""
        self._end()

    def _end(self) -> None:
        # The readers end with the pipes, and only they may close them.
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        for thread in self._threads:
            thread.join()
        end(self._process)

    def _collect(self, stream: IO[bytes]) -> None:
        while chunk := os.read(stream.fileno(), 1 << 16):
            begin = max(0, len(self._data) - len(self._marker))
            self._data += chunk
            if self._data.find(self._marker, begin) >= 0:
                self._marked.set()

    def _listen(self, stream: IO[bytes], listening: threading.Event) -> None:
        for line in stream:
            self._messages.append(line.decode(errors="replace").strip())
            if "listening on" in self._messages[-1]:
                listening.set()
        listening.set()
