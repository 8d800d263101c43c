"""The real daemon as a service manager starts it: with a socket, somebody to notify, and the rights of its unit."""

import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from demo.lab import LabError, Namespace, command
from demo.processes import START_S, Daemon, environment

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "qos2d.service"
#: A user that nobody else is, as long as the package is not installed.
USER = 54_321

#: Gives the descriptor in its first argument on as sd_listen_fds(3) says, to what it becomes. The second argument
#: is the system calls that this may make, empty: all. Other ones fail with EPERM, as does making memory executable that
#: was writable (PR_SET_MDWE, from Linux 6.3 on).
_PASS = """
import ctypes, os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="qos2")
if sys.argv[2]:
    ctypes.CDLL(None).prctl(65, 1, 0, 0, 0)
    seccomp = ctypes.CDLL("libseccomp.so.2")
    seccomp.seccomp_init.restype = ctypes.c_void_p
    made = ctypes.c_void_p(seccomp.seccomp_init(0x00050001))  # SCMP_ACT_ERRNO(EPERM)
    for name in sys.argv[2].split(","):
        number = seccomp.seccomp_syscall_resolve_name(name.encode())
        if number >= 0:  # others are of other architectures
            assert seccomp.seccomp_rule_add(made, 0x7FFF0000, number, 0) == 0  # SCMP_ACT_ALLOW
    assert seccomp.seccomp_load(made) == 0
os.execv(sys.executable, [sys.executable, *sys.argv[3:]])
"""


def unit_values(key: str) -> list[str]:
    """What the unit sets it to, in their order."""
    return re.findall(rf"^{key}=(.*)$", UNIT.read_text(), re.MULTILINE)


def system_calls() -> frozenset[str]:
    """Those that the unit's filter lets through, by systemd's own sets."""
    allowed: set[str] = set()
    for value in unit_values("SystemCallFilter"):
        named = {call for word in value.removeprefix("~").split() for call in _expanded(word)}
        allowed = allowed - named if value.startswith("~") else allowed | named
    return frozenset(allowed)


def _expanded(word: str) -> Iterator[str]:
    if not word.startswith("@"):
        yield word
        return
    for line in command("systemd-analyze", "syscall-filter", word).splitlines():
        if line.startswith(" ") and "#" not in line:
            yield from _expanded(line.strip())


def capabilities() -> frozenset[str]:
    """Those of the unit, as `net_admin`."""
    (told,) = unit_values("CapabilityBoundingSet")
    return frozenset(each.removeprefix("CAP_").lower() for each in told.split())


class ServiceDaemon(Daemon):
    """A daemon as any other. `manager` hears what it says to the service manager; `listener` outlives it.

    With `rights`, it runs as a user other than root with these capabilities; with `calls`, it can make no other ones.
    """

    def __init__(
        self,
        namespace: Namespace,
        *,
        kind: int = socket.SOCK_SEQPACKET,
        rights: Collection[str] | None = None,
        calls: Collection[str] = (),
        **settings: str | int | bool | list[str],
    ) -> None:
        super().__init__(namespace, **settings)
        self._rights = rights
        self._calls = ",".join(sorted(calls))
        self.listener = socket.socket(socket.AF_UNIX, kind)
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @property
    def pins(self) -> Path:
        """Below a folder that the unit makes for it."""
        return self.directory / "bpf" / "qos2" / "pins"

    def start(self) -> None:
        """Start it and wait until it says that it is ready. Raises LabError where it does not."""
        self.launch()
        self.hear("READY")

    def launch(self) -> None:
        """Start it."""
        if not self.listener.getsockname():
            self._prepare()
        with open(self.directory / "log", "ab") as log:
            self.process = self._namespace.popen(
                *self._setpriv(),
                *(sys.executable, "-c", _PASS, str(self.listener.fileno()), self._calls),
                *("-m", "qos2.daemon", "--config", str(self.directory / "qos2d.toml")),
                *("--socket", "/nonexistent/qos2.sock", "--device", self._namespace.device),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self.listener.fileno()],
                env=environment() | {"NOTIFY_SOCKET": self.manager.getsockname(), "WATCHDOG_USEC": "2000000"},
            )

    def hear(self, word: str, timeout_s: float = START_S) -> dict[str, str]:
        """The next message to the manager that has this word. Raises LabError where the daemon ends before."""
        assert self.process is not None
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if select.select([self.manager], [], [], 0.05)[0]:
                told = dict(line.split("=", 1) for line in self.manager.recv(4096).decode().splitlines())
                if word in told:
                    return told
            elif self.process.poll() is not None:
                raise LabError(f"the daemon ended with status {self.process.returncode}\n{self.log[-4000:]}")
        raise LabError(f"the daemon did not say {word}\n{self.log[-4000:]}")

    @contextmanager
    def stuck(self) -> Iterator[None]:
        """It does not run meanwhile."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        try:
            super().close()
        finally:
            self.listener.close()
            self.manager.close()

    def _prepare(self) -> None:
        """What systemd has made before it starts the daemon."""
        self.listener.bind(self.socket)
        os.chmod(self.socket, 0o666)
        if self.listener.type == socket.SOCK_SEQPACKET:
            self.listener.listen(64)
        self.manager.bind(str(self.directory / "notify"))
        os.chmod(self.directory / "notify", 0o666)
        os.chmod(self.directory / "bpf", 0o700)  # as systemd mounts it
        folder = self.pins.parent
        folder.mkdir(mode=0o700)
        if self._rights is not None:
            os.chown(folder, USER, USER)

    def _setpriv(self) -> list[str]:
        if self._rights is None:
            return []
        told = ",".join(["-all", *(f"+{each}" for each in sorted(self._rights))])
        return [
            *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
            *(f"--inh-caps={told}", f"--ambient-caps={told}", f"--bounding-set={told}"),
        ]
