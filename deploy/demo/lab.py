"""The lab: three network namespaces, app - router - peer, joined by two veth pairs.

The application's device keeps segmentation offload, so that tc egress there sees the large packets of real
TCP; the router's device towards the peer has none, so that the peer captures what a wire would carry. No
device, address or route of the host is touched, and everything made here is removed on the way out, also
after an error. Knows nothing of QoS: the daemon, the senders and the captures are put into it by others.
"""

import ctypes
import itertools
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

_LIBC = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_NETNS_DIR = Path("/run/netns")
_RUN = itertools.count(1)

#: How long a process of the lab may take to end once it was asked to, in seconds.
GRACE_S = 5.0


class LabError(Exception):
    """A command that builds or uses the lab failed; the message holds what it wrote to stderr."""


def command(*argv: str, timeout: float = 30.0) -> str:
    """Run a command to its end and return its standard output.

    Raises LabError where it fails, is missing or takes longer than `timeout` seconds.
    """
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=timeout)
    except subprocess.CalledProcessError as error:
        raise LabError(f"{' '.join(argv)}: exit status {error.returncode}: {error.stderr.strip()}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{' '.join(argv)}: {error}") from error
    return done.stdout


def end(process: subprocess.Popen[Any], grace_s: float = GRACE_S) -> int:
    """End a process (SIGTERM, after `grace_s` SIGKILL), close its pipes and return its exit status."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
    status = process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            _close(stream)
    return status


def _close(stream: IO[Any]) -> None:
    # What was still buffered for a process that has ended: nobody is left to read it.
    with suppress(BrokenPipeError):
        stream.close()


class Namespace:
    """One network namespace of the lab, with the addresses of its own end."""

    def __init__(self, name: str, device: str, ipv4: Sequence[str] = (), ipv6: Sequence[str] = ()) -> None:
        self.name = name
        self.path = _NETNS_DIR / name
        self.device = device  #: its device (the router's: the one towards the peer)
        self.ipv4 = tuple(ipv4)
        self.ipv6 = tuple(ipv6)
        self._processes: list[subprocess.Popen[Any]] = []

    def argv(self, *argv: str) -> list[str]:
        """`argv` as it must be run to live in here.

        It sees the host's files (bpffs too, which `ip netns exec` would hide), and gets SIGTERM when the thread
        that started it ends, so that nothing outlives a killed caller.
        """
        return ["setpriv", "--pdeathsig", "TERM", "nsenter", f"--net={self.path}", *argv]

    def run(self, *argv: str, timeout: float = 30.0) -> str:
        """Run a command in here to its end; its standard output. Raises LabError where it fails."""
        return command(*self.argv(*argv), timeout=timeout)

    def popen(self, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process in here (options as of subprocess.Popen); the lab ends it when it closes at the latest.

        It gets a session of its own, so that Ctrl-C reaches the caller alone, who ends things in order.
        """
        process: subprocess.Popen[bytes] = subprocess.Popen(self.argv(*argv), start_new_session=True, **options)
        self._processes.append(process)
        return process

    def end_processes(self) -> None:
        """End what `popen` started and still runs: all are asked first, then waited for."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes:
            end(process)
        self._processes.clear()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """This thread is inside the namespace for the block, then back where it was. Other threads are not moved."""
        with open("/proc/thread-self/ns/net") as home, open(self.path) as here:
            _setns(here.fileno())
            try:
                yield
            finally:
                _setns(home.fileno())

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """A socket made in here: it belongs to this namespace wherever it is used afterwards."""
        with self.entered():
            return socket.socket(family, kind, protocol)

    def sysctl(self, key: str, value: int | str) -> None:
        """Write a setting below /proc/sys/net of this namespace, as `ipv4/ip_forward`."""
        with self.entered():
            Path("/proc/sys/net", key).write_text(str(value))


def _setns(descriptor: int) -> None:
    if _LIBC.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"setns: {os.strerror(number)}")


class Lab:
    """Three namespaces; a context manager. Addresses are those reserved for documentation (RFC 5737, RFC 3849).

        app  192.0.2.2   2001:db8:1::2   eth0 -- to-app   router   to-peer -- eth0   198.51.100.2   2001:db8:2::2   peer
                                                                                     198.51.100.3   2001:db8:2::3

    Raises LabError where building fails; what was built until then is removed.
    """

    def __init__(self, prefix: str = "qos2-lab") -> None:
        run = f"{prefix[:32]}-{os.getpid()}-{next(_RUN)}"
        self.app = Namespace(f"{run}-app", "eth0", ["192.0.2.2"], ["2001:db8:1::2"])
        self.router = Namespace(f"{run}-router", "to-peer", ["198.51.100.1"], ["2001:db8:2::1"])
        self.peer = Namespace(
            f"{run}-peer", "eth0", ["198.51.100.2", "198.51.100.3"], ["2001:db8:2::2", "2001:db8:2::3"]
        )
        self._undo = ExitStack()

    def __enter__(self) -> Self:
        try:
            for namespace in (self.app, self.router, self.peer):
                command("ip", "netns", "add", namespace.name)
                self._undo.callback(command, "ip", "netns", "del", namespace.name)
                self._undo.callback(namespace.end_processes)
                # A fresh address is usable at once: nobody else is here to have it already.
                for scope in ("all", "default"):
                    namespace.sysctl(f"ipv6/conf/{scope}/accept_dad", 0)
                _ip(namespace, "link", "set", "lo", "up")
            self.app.sysctl("ipv4/tcp_no_metrics_save", 1)  # what one connection learned must not shape the next
            self.router.sysctl("ipv4/ip_forward", 1)
            self.router.sysctl("ipv6/conf/all/forwarding", 1)
            self._join(self.app, "to-app", ["192.0.2.1"], ["2001:db8:1::1"])
            self._join(self.peer, "to-peer", self.router.ipv4, self.router.ipv6)
            self.router.run("ethtool", "-K", "to-peer", "tso", "off", "gso", "off", "tx-udp-segmentation", "off")
            self.peer.run("ethtool", "-K", "eth0", "gro", "off")
        except BaseException:
            self.close()
            raise
        return self

    def _join(self, end: Namespace, port: str, ipv4: Sequence[str], ipv6: Sequence[str]) -> None:
        """A veth pair between `end` and the router's device `port`, with the router as default route."""
        command(
            *("ip", "link", "add", end.device, "netns", end.name, "type", "veth"),
            *("peer", "name", port, "netns", self.router.name),
        )
        for namespace, device, addresses in (
            (self.router, port, [f"{a}/24" for a in ipv4] + [f"{a}/64" for a in ipv6]),
            (end, end.device, [f"{a}/24" for a in end.ipv4] + [f"{a}/64" for a in end.ipv6]),
        ):
            for address in addresses:
                nodad = ["nodad"] if ":" in address else []
                _ip(namespace, "address", "add", address, "dev", device, *nodad)
            _ip(namespace, "link", "set", device, "up")
        _ip(end, "route", "add", "default", "via", ipv4[0])
        _ip(end, "-6", "route", "add", "default", "via", ipv6[0])

    def close(self) -> None:
        """End the processes started in the lab and remove its namespaces (idempotent)."""
        self._undo.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ip(namespace: Namespace, *argv: str) -> None:
    command("ip", "-netns", namespace.name, *argv)
