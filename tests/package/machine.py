"""A Debian that is booted, with its own systemd, in a container of systemd-nspawn.

Its files, processes, network and bpf file system are its own, the kernel is this one; what it writes is gone with it.
Its units lie in a slice below the root of cgroup2, so that rules find them by name as on a host: what is in a cgroup
namespace, or in the cgroup that nspawn makes, is a container's own business to the daemon.
"""

import os
import subprocess
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from qos2.datapath.programs import cgroup_mount

#: Run in mounts of its own, so that the bpf file system goes with it: a folder for that, then nspawn's arguments.
_BOOT = 'mount -t bpf bpf "$1" && shift && exec systemd-nspawn "$@"'
#: Run as the first process in there, which then is systemd: the slice that all of its units shall be in.
_INIT = """
set -e
mount -o remount,bind,rw /sys/fs/cgroup
mkdir -p "/sys/fs/cgroup/$1"
echo $$ >"/sys/fs/cgroup/$1/cgroup.procs"
exec /lib/systemd/systemd
"""
_BOOT_S = 60  # one on an idle machine
_KILLED_S = 5
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine:
    """Open it with `with`. It boots from `root`, which is not changed, and finds `folder` at /shared.

    `binds` are further folders of this machine, by where it finds them.
    """

    def __init__(self, root: Path, folder: Path, binds: Mapping[str, Path] | None = None) -> None:
        self._log = folder / "console.log"
        self._slice = f"qos2-test-{os.getpid()}.slice"
        bpf = folder / "bpf"
        bpf.mkdir()
        self._command = (
            *("unshare", "--mount", "--propagation", "private", "sh", "-c", _BOOT, "sh", str(bpf)),
            *("--quiet", f"--directory={root}", "--volatile=overlay", f"--machine=qos2-test-{os.getpid()}"),
            *("--register=no", "--keep-unit", "--private-network", "--capability=all"),
            "--system-call-filter=bpf perf_event_open pidfd_getfd",
            *(f"--bind={bpf}:/sys/fs/bpf", f"--bind-ro={folder}:/shared", "--bind-ro=/usr/src"),
            *(f"--bind-ro={source}:{target}" for target, source in (binds or {}).items()),
            *("--kill-signal=SIGRTMIN+3", "sh", "-c", _INIT, "sh", self._slice),
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        settings = ("API_VFS_WRITABLE=yes", "UNIFIED_HIERARCHY=1", "USE_CGNS=0")
        environment = os.environ | dict(f"SYSTEMD_NSPAWN_{setting}".split("=") for setting in settings)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
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
        self._remove_slice()

    def _remove_slice(self) -> None:
        """nspawn knows nothing of it. A process that has just been killed is in there for a moment more."""
        mount = cgroup_mount()
        if mount is None:
            return
        deadline = time.monotonic() + _KILLED_S
        while (mount / self._slice).is_dir() and time.monotonic() < deadline:
            for folder, _, _ in os.walk(mount / self._slice, topdown=False):
                with suppress(OSError):
                    os.rmdir(folder)
            time.sleep(0.05)

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
