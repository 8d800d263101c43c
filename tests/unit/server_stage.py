"""The stage of the tests of client and server: the real server and service in a thread, over a datapath in memory.

The stage checks at its end that no descriptor is left open, whatever the test did.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import qos2
from qos2.core.rules import Rules
from qos2.core.service import Limits, Service
from qos2.datapath.fake import FakeDatapath
from qos2.errors import QosError
from qos2.model import Condition, Explanation, FlowFundamentals, FlowId, TrafficType
from qos2.paths.fake import FakeConditions, FakePaths
from qos2.server import Server

T = TypeVar("T")

CONTROLPLANE = Path(qos2.__file__).parent.parent
NOBODY = 65534
PEER = ("192.0.2.7", 5004)
VOICE = int(TrafficType.VOICE)
LINGER_ON = struct.pack("ii", 1, 60)


class Stage:
    """A daemon at `path`. `observed` are its observations, `notified` its notifications: condition, seconds. `clock_s`
    is its time, which the test turns.

    Every host is on-link and unmeasured, no condition is known, until the test says more: by the methods
    below, which may be called from any thread and return when the server has sent what follows from it.
    """

    def __init__(
        self,
        path: str,
        *,
        limits: Limits | None = None,
        rules: Rules | None = None,
        max_flows: int = 1024,
        **options: Any,
    ) -> None:
        self.path = path
        self.clock_s = 0.0
        self.datapath = FakeDatapath(max_flows)
        self.paths = FakePaths()
        self.conditions = FakeConditions()
        self.service = Service(
            self.datapath,
            lambda: self.clock_s,
            limits or Limits(),
            "stage",
            paths=self.paths,
            conditions=self.conditions,
            rules=rules or Rules(),
        )
        self.observed: list[tuple[str, str, float]] = []
        self.notified: list[tuple[Condition, float]] = []
        self.server = Server(
            self.service,
            path,
            observe=self._observe,
            notified=self._notified,
            logger=logging.getLogger("stage"),
            **options,
        )
        self._going = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="stage")
        self._thread.start()
        try:
            self.call(self.server.start)
        except BaseException:
            self._stop()
            raise

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, called in the server's loop."""

        async def called() -> T:
            return function()

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result()

    def set_condition(self, flow: int, *, congested: bool | None, free: int = 0, signal_s: float | None = None) -> None:
        """From now on the flow is congested or not (None: unknown), and `free` bits/s more could be had.

        `signal_s` is when that was read, on CLOCK_MONOTONIC.
        """
        self._steer(lambda: self.conditions.set(flow, congested=congested, free=free), signal_s)

    def set_explanation(self, flow: int, explanation: Explanation) -> None:
        """What is said of a judged flow from now on, and why."""
        self.call(lambda: self.conditions.explanations.update({FlowId(flow): explanation}))

    def set_estimate(self, address: str, estimate: FlowFundamentals | None) -> None:
        """What is known of the way to a host from now on."""
        self._steer(lambda: self.paths.set_estimate(address, estimate))

    def measure(self, address: str, estimate: FlowFundamentals | None, *, signal_s: float | None = None) -> None:
        """The measurements under way of a host (fresh queries) end with this."""

        def finish() -> None:
            self.paths.set_estimate(address, estimate)
            self.paths.finish_refresh(address)

        self._steer(finish, signal_s)

    def set_admission(self, address: str, refusal: QosError | None) -> None:
        """Higher rates of adaptive flows to a host are refused with this, or (None) admitted."""
        self._steer(lambda: self.paths.set_admission(address, refusal))

    def set_off_link(self, address: str, off_link: bool = True) -> None:
        """Nothing can be learnt about a host."""
        self._steer(lambda: self.paths.set_off_link(address, off_link))

    def set_unreachable(self, address: str, unreachable: bool = True) -> None:
        """There is no route to a host."""
        self._steer(lambda: self.paths.set_unreachable(address, unreachable))

    def tick(self) -> None:
        """What the daemon does once a second, at `clock_s`."""
        self._steer(self.service.tick)

    def _steer(self, change: Callable[[], None], signal_s: float | None = None) -> None:
        def steered() -> None:
            change()
            self.service.follow(signal_s)
            self.server.deliver()

        self.call(steered)

    def settle(self) -> None:
        """Return when the server has dealt with everything that the kernel had for it before this call."""

        async def rounds() -> None:
            # The first ends the round of callbacks that runs now, the second one with a look at all sockets.
            for _ in range(3):
                await asyncio.sleep(0)

        asyncio.run_coroutine_threadsafe(rounds(), self._loop).result()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """In this block the server does nothing."""
        self.pause()
        try:
            yield
        finally:
            self.resume()

    def pause(self) -> None:
        """The server does nothing until `resume`."""
        self._going.clear()
        paused = threading.Event()

        def pause() -> None:
            paused.set()
            self._going.wait()

        self._loop.call_soon_threadsafe(pause)
        paused.wait()

    def resume(self) -> None:
        self._going.set()

    def close(self) -> None:
        self.resume()
        self.call(self.server.close)
        self._stop()

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _observe(self, op: str, result: str, seconds: float) -> None:
        self.observed.append((op, result, seconds))

    def _notified(self, condition: Condition, seconds: float) -> None:
        self.notified.append((condition, seconds))

    @contextlib.contextmanager
    def connection(self, *, opened: bool = True) -> Iterator["RawClient"]:
        """A client that can say anything."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connected:
            connected.settimeout(10)
            connected.connect(self.path)
            client = RawClient(connected)
            if opened:
                assert client.ask(op="open_handle")["result"] == "opened"
            yield client

    @contextlib.contextmanager
    def script(self, code: str) -> Iterator["subprocess.Popen[str]"]:
        """Another process that runs `code` with this daemon as $QOS2_SOCKET; killed at the end if need be."""
        env = os.environ | {"QOS2_SOCKET": self.path, "PYTHONPATH": str(CONTROLPLANE)}
        with subprocess.Popen(
            [sys.executable, "-c", code], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()


class RawClient:
    """Speaks the protocol by hand, right or wrong."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._last = 0

    def send(self, data: bytes, fds: tuple[int, ...] = ()) -> None:
        rights = struct.pack(f"{len(fds)}i", *fds)
        self.socket.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)] if fds else [])

    def receive(self) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(self.socket.recv(65536))
        return reply

    def ask(self, *fds: int, **fields: Any) -> dict[str, Any]:
        """The reply to a request of these fields, with these descriptors; its `id` is checked and taken away."""
        self._last += 1
        self.send(json.dumps({"v": 1, "id": self._last} | fields).encode(), fds)
        reply = self.receive()
        assert reply.pop("id") == self._last
        return reply


def open_descriptors() -> list[str]:
    """What this process has open, as number and target."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of listdir itself
            found.append(f"{fd} {os.readlink(f'/proc/self/fd/{fd}')}")
    return sorted(found)


@contextlib.contextmanager
def staged(**options: Any) -> Iterator[Stage]:
    """A stage in a directory that any user may enter; afterwards as many descriptors are open as before."""
    before = open_descriptors()
    with tempfile.TemporaryDirectory(prefix="qos2-") as directory:
        os.chmod(directory, 0o755)
        stage = Stage(f"{directory}/qos2.sock", **options)
        try:
            yield stage
        finally:
            stage.close()
    assert open_descriptors() == before


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Connections made in this block are those of an ordinary user, also where the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def udp(peer: tuple[str, int] | None = None, family: int = socket.AF_INET) -> socket.socket:
    """A UDP socket, connected to `peer`: nothing is sent by that."""
    made = socket.socket(family, socket.SOCK_DGRAM)
    if peer is not None:
        made.connect(peer)
    return made


def udp6_only() -> socket.socket:
    """A UDP socket for IPv6 without IPv4-mapped addresses."""
    made = udp(family=socket.AF_INET6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


def regular_file() -> Any:
    """A descriptor that is no socket."""
    return tempfile.TemporaryFile()


def add(client: RawClient, sock: socket.socket, **fields: Any) -> dict[str, Any]:
    """The reply to add_socket."""
    return client.ask(sock.fileno(), **({"op": "add_socket", "traffic_type": VOICE} | fields))


def refusal(reply: dict[str, Any]) -> tuple[str, int]:
    """Code and Win32 number of a reply that refuses."""
    assert reply["result"] == "error", reply
    assert reply["message"]
    return reply["code"], reply["win32"]
