"""A Debian that is booted, with its own systemd, in a container of systemd-nspawn.

Its files, processes, network and bpf file system are its own, the kernel is this one; what it writes is gone with it.
"""

import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

#: Run in mounts of its own, so that the bpf file system goes with it: a folder for that, then nspawn's arguments.
_BOOT = 'mount -t bpf bpf "$1" && shift && exec systemd-nspawn "$@"'
_BOOT_S = 60  # one on an idle machine
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """Open it with `with`. It boots from `root`, which is not changed, and finds `folder` at /shared."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._log = folder / "console.log"
        bpf = folder / "bpf"
        bpf.mkdir()
        self._command = (
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _BOOT, "sh", str(bpf)),
            *("--quiet", f"--directory={root}", "--volatile=overlay", f"--machine=qos2-test-{os.getpid()}"),
            *("--register=no", "--keep-unit", "--private-network", "--capability=all"),
            "--system-call-filter=bpf perf_event_open pidfd_getfd",
            *(f"--bind={bpf}:/sys/fs/bpf", f"--bind-ro={folder}:/shared", "--bind-ro=/usr/src", "--boot"),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        writable = {"SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | writable
            )
        try:
            self._wait_until_booted()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _wait_until_booted(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + _BOOT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            for child in children:
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    self._leader = int(child)
            if self._leader and self._ask("systemctl", "is-system-running").stdout in ("running\n", "degraded\n"):
                return
            time.sleep(0.2)
        raise OSError(f"it does not boot: {self._log.read_text(errors='replace')[-1000:]}")

    def _end(self) -> None:
        assert self._process is not None
        self._process.terminate()  # which it takes for an order to power off
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ask(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ("nsenter", f"--target={self._leader}", "--all", "env", "-i", f"PATH={_PATH}", "LANG=C.UTF-8", *command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    def run(self, *command: str, status: int = 0) -> str:
        """What the command says. AssertionError where it ends with another status."""
        done = self._ask(*command)
        assert done.returncode == status, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}"
        return done.stdout

    def network(self, *command: str) -> None:
        """Runs a program of this machine in the container's network."""
        subprocess.run(("nsenter", f"--target={self._leader}", "--net", *command), check=True)

    def property(self, unit: str, name: str) -> str:
        """Of a unit, as systemd knows it."""
        return self.run("systemctl", "show", "--value", f"--property={name}", unit).strip()
