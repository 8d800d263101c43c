"""A lab whose router has a bottleneck towards the peer, with cross traffic, a reflector and applications on demand.

    app (applications, the daemon, cross traffic) - router, bottleneck - peer (reflector, sinks)

The peer is beyond the router. The bottleneck is a token bucket of two packets with a queue (tc-tbf(8)); it counts
link headers, so what it lets through at IP level is a little less than its rate.
"""

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Self

import qos2
from demo.lab import Lab, LabError, command
from demo.processes import Daemon, environment
from harness.wire import Flood

PEER, OTHER_PEER = "198.51.100.2", "198.51.100.3"
PACKET_BYTES = 1400  #: at IP level, of UDP
_LINK_BYTES = 14
_UDP_AND_IP_BYTES = 28
_PATIENCE_S = 10.0


class CongestedLab:
    """A context manager: the lab, its daemon and a reflector at the peer."""

    def __init__(self, prefix: str = "qos2-test", **settings: str | int | bool) -> None:
        self._stack = ExitStack()
        self._prefix = prefix
        self._settings: dict[str, Any] = settings
        self._drains: list[threading.Thread] = []
        self._closing = threading.Event()

    def __enter__(self) -> Self:
        try:
            self.lab = self._stack.enter_context(Lab(self._prefix))
            self.daemon = self._stack.enter_context(Daemon(self.lab.app, **self._settings))
            self._stack.callback(self._end_drains)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def reflector(self, address: str = "") -> None:
        """Begin to reflect at the peer: at all of its addresses, or at one."""
        listen = ("--listen", address) if address else ()
        process = self.lab.peer.popen(
            *(sys.executable, "-m", "qos2.cli", "reflector", "--allow", "192.0.2.0/24", "--rate", "100000", *listen),
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"reflecting")

    def bottleneck(self, rate: float, queue_ms: float = 100.0) -> float:
        """From now on the way to the peer carries so many bits/s of link layer; what that is at IP level."""
        kind = ("tbf", "rate", f"{rate:.0f}bit", "burst", "3000", "latency", f"{queue_ms}ms")
        self.lab.router.run("tc", "qdisc", "replace", "dev", self.lab.router.device, "root", *kind)
        return rate * PACKET_BYTES / (PACKET_BYTES + _LINK_BYTES)

    def netem(
        self, *, delay_ms: float, jitter_ms: float = 0.0, loss: float = 0.0, rate: float = 100e6, packets: int = 10_000
    ) -> float:
        """From now on the way to the peer delays and loses (tc-netem(8)), and carries `rate` bits/s of link layer.

        The jitter is normally distributed, and having a rate keeps the packets in order all the same: each waits for
        the one before. `packets` are those under way and in the queue. What the rate is at IP level.
        """
        kind = ("netem", "limit", str(packets), "delay", f"{delay_ms}ms")
        spread = (f"{jitter_ms}ms", "distribution", "normal") if jitter_ms else ()
        lost = ("loss", f"{loss:.3%}") if loss else ()
        rated = ("rate", f"{rate:.0f}bit")
        self.lab.router.run(
            *("tc", "qdisc", "replace", "dev", self.lab.router.device, "root"), *kind, *spread, *lost, *rated
        )
        return rate * PACKET_BYTES / (PACKET_BYTES + _LINK_BYTES)

    def handle(self) -> qos2.Handle:
        """A session with the daemon; the caller closes it."""
        return qos2.Handle(self.daemon.socket)

    def udp(self, peer: str = PEER) -> socket.socket:
        """An application's socket, connected to the peer, where everything is taken."""
        sink = self._stack.enter_context(self.lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sink.bind((peer, 0))
        self._drain(sink)
        sock = self._stack.enter_context(self.lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect(sink.getsockname())
        return sock

    def tcp(self) -> socket.socket:
        """An application's connection to the peer, where everything is read."""
        with contextlib.closing(self.lab.peer.socket(socket.AF_INET, socket.SOCK_STREAM)) as listener:
            listener.bind((PEER, 0))
            listener.listen()
            sock = self._stack.enter_context(self.lab.app.socket(socket.AF_INET, socket.SOCK_STREAM))
            sock.connect(listener.getsockname())
            self._drain(self._stack.enter_context(listener.accept()[0]))
        return sock

    @contextmanager
    def sending(self, sock: socket.socket, rate: float = 0.0, block: int = 0) -> Iterator[Flood]:
        """A process that sends on the socket for the block, once it is told to begin; `rate` 0: all that it can."""
        payload = block or PACKET_BYTES - _UDP_AND_IP_BYTES
        flood = Flood(sock, payload, rate * payload / (payload + _UDP_AND_IP_BYTES) if rate else 0.0)
        try:
            yield flood
        finally:
            flood.close()

    @contextmanager
    def cross(self, rate: float) -> Iterator[Flood]:
        """Datagrams of somebody else through the same bottleneck, of so many bits/s at IP level."""
        with ExitStack() as stack:
            sink = stack.enter_context(self.lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sink.bind((OTHER_PEER, 0))  # nobody reads: what does not fit is dropped behind the bottleneck
            sock = stack.enter_context(self.lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.connect(sink.getsockname())
            yield stack.enter_context(self.sending(sock, rate))

    def _drain(self, sink: socket.socket) -> None:
        sink.settimeout(0.2)

        def run() -> None:
            while not self._closing.is_set():
                try:
                    if not sink.recv(1 << 18):
                        return
                except TimeoutError:
                    continue
                except OSError:
                    return

        thread = threading.Thread(target=run)
        thread.start()
        self._drains.append(thread)

    def _end_drains(self) -> None:
        self._closing.set()
        for thread in self._drains:
            thread.join()


def has_netem() -> bool:
    """Whether this kernel has netem, tried in an empty namespace (which loads its module)."""
    try:
        command("unshare", "--net", "tc", "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except LabError as error:
        if "unknown" in str(error):  # so says tc of the kernel's ENOENT
            return False
        raise
    return True


def wait_until(true: Any, timeout_s: float = _PATIENCE_S) -> float:
    """Seconds until `true()` is. Raises TimeoutError."""
    begin = time.monotonic()
    while not true():
        if time.monotonic() - begin > timeout_s:
            raise TimeoutError
        time.sleep(0.01)
    return time.monotonic() - begin
