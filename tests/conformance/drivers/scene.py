"""Where programs over a binding play: real sockets, a daemon, and a way to judge what happens to packets.

A Scene is for one row. StageScene has the real server over fakes, in a thread of the test; lab.py has a
network.
"""

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from conformance.drivers.base import PATIENCE_S
from conformance.drivers.core import HOSTS, estimated, limits_and_rules, mark_of, refusal, set_way
from conformance.table import Sending, Step
from conformance.vocabulary import (
    Address,
    Admission,
    CannotMeasure,
    CloseSocket,
    Congestion,
    Connect,
    DaemonBack,
    DaemonGone,
    Disconnect,
    Estimate,
    Kind,
    Listening,
    Mark,
    Measured,
    Neighbour,
    NoSocket,
    Passes,
    Reach,
    Refuses,
    Socket,
    Steered,
    World,
)
from qos2.errors import Retry
from qos2.model import Destination, FlowFundamentals
from unit.server_stage import CONTROLPLANE, NOBODY, Stage, open_descriptors, regular_file, unprivileged

_LIBC = ctypes.CDLL(None, use_errno=True)
_SO_COOKIE = 57  # <asm-generic/socket.h>: not in Python's socket module

#: A descriptor that is surely not open: no process may have as many.
NOT_OPEN = 1 << 30

#: Another program: as the user `argv[3]` it marks the socket that it inherits, says its flow's id, and stays.
_NEIGHBOUR = (
    "import os, sys, qos2\n"
    "os.geteuid() == 0 and os.seteuid(int(sys.argv[3]))\n"
    "handle = qos2.Handle(sys.argv[1])\n"
    "print(handle.add_socket(int(sys.argv[2]), qos2.TrafficType.VOICE).id, flush=True)\n"
    "sys.stdin.read()\n"
)


class Scene(ABC):
    """Sockets of the row's program by name, and the addresses behind the roles of the table; a context manager."""

    def __init__(self, hosts: Mapping[str, str], ports: tuple[int, int, int]) -> None:
        """`hosts` are the addresses that are special here, and `ports` those behind the indices of the table."""
        self._hosts = {**HOSTS, "malformed": "no address", **hosts}
        self._ports = ports
        self._stack = ExitStack()
        self.privileged = False
        self.sockets: dict[str, socket.socket] = {}
        self.descriptors: dict[str, int] = {}  #: of every socket, and of what is none

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    @abstractmethod
    def path(self) -> str:
        """Of the daemon's socket."""

    @abstractmethod
    def new_socket(self, family: int, kind: int) -> socket.socket:
        """Where the program runs."""

    @abstractmethod
    def end_daemon(self) -> None: ...

    @abstractmethod
    def begin_daemon(self) -> None: ...

    @abstractmethod
    def steer(self, state: Steered, flows: Mapping[str, int]) -> None: ...

    def close(self) -> None:
        """Close the sockets and end who else plays."""
        self._stack.close()

    def written(self, address: Address) -> tuple[str, int]:
        """A socket address as Python has it."""
        host = self._hosts[address.host]
        return f"::ffff:{host}" if address.mapped else host, self._ports[address.port]

    @contextlib.contextmanager
    def user(self) -> Iterator[None]:
        """In this block connections are made by the user that the row is about."""
        with contextlib.nullcontext() if self.privileged else unprivileged():
            yield

    def reach(self, state: Step | Steered, flows: dict[str, int]) -> None:
        """Bring about a state of the world, `flows` being the ids by name."""
        match state:
            case Socket(name, kind, to):
                self._make_socket(name, kind, to)
            case Listening(name):
                made = self._new(name, socket.AF_INET, socket.SOCK_STREAM)
                made.bind(("127.0.0.1", 0))
                made.listen()
            case Connect(name, to):
                self.sockets[name].connect(self.written(to))
            case Disconnect(name):
                nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
                if _LIBC.connect(self.sockets[name].fileno(), nowhere, len(nowhere)) != 0:
                    raise OSError(ctypes.get_errno(), "connect to AF_UNSPEC")
            case CloseSocket(name):
                self.sockets[name].close()
                self.descriptors[name] = -1
            case NoSocket(name, file):
                self.descriptors[name] = NOT_OPEN
                if file:
                    self.descriptors[name] = self._stack.enter_context(regular_file()).fileno()
            case Neighbour(flow, root):
                flows[flow] = self._begin_neighbour(root)
            case DaemonGone():
                self.end_daemon()
            case DaemonBack():
                self.begin_daemon()
            case Steered():
                self.steer(state, flows)
            case _:
                raise NotImplementedError(f"no such state here: {state}")

    def _make_socket(self, name: str, kind: Kind, to: Address | None) -> None:
        stream = kind in (Kind.TCP, Kind.TCP6)
        family = socket.AF_INET if kind in (Kind.UDP, Kind.TCP) else socket.AF_INET6
        made = self._new(name, family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, kind is Kind.UDP6_ONLY)
        if to is not None:
            made.connect(self.written(to))

    def _new(self, name: str, family: int, kind: int) -> socket.socket:
        made = self._stack.enter_context(self.new_socket(family, kind))
        made.settimeout(10)
        self.sockets[name] = made
        self.descriptors[name] = made.fileno()
        return made

    def _begin_neighbour(self, root: bool) -> int:
        """The id of the flow of another process."""
        its = self._stack.enter_context(self.new_socket(socket.AF_INET, socket.SOCK_DGRAM))
        its.connect(("127.0.0.1", 9))
        process = self._stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", _NEIGHBOUR, self.path, str(its.fileno()), str(0 if root else NOBODY)],
                env=os.environ | {"PYTHONPATH": str(CONTROLPLANE)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[its.fileno()],
            )
        )
        self._stack.callback(process.kill)
        assert process.stdout is not None
        return int(process.stdout.readline())


class StageScene(Scene):
    """The real server over a datapath, paths and conditions in memory; hosts are of the loopback device."""

    def __init__(self, world: World) -> None:
        self._before = set(open_descriptors()), _threads()
        listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        port: int = listener.getsockname()[1]
        super().__init__({"peer": "127.0.0.1", "second": "127.0.0.2", "peer6": "::1"}, (0, port, port ^ 1))
        self._stack.enter_context(listener)
        directory = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="qos2-")))
        directory.chmod(0o755)
        self._world = world
        self._path = str(directory / "qos2.sock")
        self._estimates: dict[Address, FlowFundamentals] = {}
        self._living = False
        self.begin_daemon()

    def close(self) -> None:
        """No descriptor and no thread is left, whatever the row did. Raises AssertionError."""
        if self._living:
            self.end_daemon()
        super().close()
        # What others had left behind may have been collected meanwhile.
        assert set(open_descriptors()) <= self._before[0]
        deadline = time.monotonic() + PATIENCE_S
        while _threads() - self._before[1]:  # one that was joined may still be on its last way out
            assert time.monotonic() < deadline, "a thread is left"
            time.sleep(0.001)

    @property
    def path(self) -> str:
        return self._path

    def new_socket(self, family: int, kind: int) -> socket.socket:
        return socket.socket(family, kind)

    def begin_daemon(self) -> None:
        limits, rules = limits_and_rules(self._world)
        self._stage = Stage(self._path, limits=limits, rules=rules)
        self._living = True
        for address in self._addresses():
            self._stage.set_off_link(address)

    def end_daemon(self) -> None:
        self._living = False
        self._stage.close()

    def marks(self, sendings: Collection[Sending]) -> dict[Sending, Mark]:
        """What would happen now to a packet of each of these."""
        if not sendings:
            return {}  # also where there is no daemon
        datapath = self._stage.datapath
        cookies = {
            name: int.from_bytes(self.sockets[name].getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)
            for name, _ in sendings
        }
        return self._stage.call(
            lambda: {
                (name, address): mark_of(datapath, cookies[name], Destination.parse(*self.written(address)))
                for name, address in sendings
            }
        )

    def steer(self, state: Steered, flows: Mapping[str, int]) -> None:
        stage = self._stage
        match state:
            case Refuses(operation):
                stage.call(lambda: stage.datapath.refuse(operation))
            case Reach(host, way):
                stage.call(lambda: set_way(stage.paths, self._hosts[host.host], way))
            case Estimate(host):
                self._estimates[host] = estimated(state)
                stage.set_estimate(self._hosts[host.host], self._estimates[host])
            case Measured(host):
                stage.measure(self._hosts[host.host], self._estimates.get(host))
            case CannotMeasure(host):
                stage.call(lambda: stage.paths.set_refresh(self._hosts[host.host], Retry("the row says so")))
            case Admission(error):
                for each in self._addresses():
                    stage.set_admission(each, refusal(error))
            case Congestion(flow, congested, free):
                stage.set_condition(flows[flow], congested=congested, free=free)
            case Passes(seconds):
                stage.clock_s += seconds
                stage.tick()
            case _:
                raise NotImplementedError(f"no such state here: {state}")

    def _addresses(self) -> list[str]:
        return [address for role, address in self._hosts.items() if role != "malformed"]


def _threads() -> set[str]:
    """Those of this process, Python's own or not, by number."""
    return set(os.listdir("/proc/self/task"))
