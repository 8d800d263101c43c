"""A system of its own to install packages into: an overlay over a folder, which is not changed.

All mounts are in a mount namespace that one process holds; with it they are gone, and with them everything that was
written. systemd does not run in there; where it seems to, a stand-in for systemctl notes what it is asked.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

#: Run in the new namespace: folder, lower folder. `cat` ends when this process does.
_SETUP = """
set -e
mount -t tmpfs -o mode=755 tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=$2,upperdir=$1/upper,workdir=$1/work" overlay "$1/root"
for folder in proc sys dev; do mount --rbind "/$folder" "$1/root/$folder"; done
for folder in run tmp; do mount -t tmpfs tmpfs "$1/root/$folder"; done
echo ready
exec cat
"""

_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}

#: As systemd with everything enabled that packages enable: the socket and the daemon. What concerns files is done.
_SYSTEMCTL = """#!/bin/sh
case "$*" in
*--root=*) exec /usr/bin/systemctl "$@" ;;
*is-enabled*qos2d.*) echo enabled ;;
*is-enabled*) echo disabled; exit 1 ;;
*is-active*) exit 3 ;;
*) echo "$*" >>/run/systemctl.log ;;
esac
"""


class Overlay:
    """Open it with `with`. Paths are those within."""

    def __init__(self, lower: Path) -> None:
        self._lower = lower
        self._folder = Path()
        self._holder: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self._folder = Path(tempfile.mkdtemp(prefix="qos2-overlay-"))
        self._holder = subprocess.Popen(
            ("unshare", "--mount", "--propagation", "private", "sh", "-c", _SETUP, "sh", self._folder, self._lower),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "ready\n":
            self._end()
            raise OSError(f"no overlay over {self._lower}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        assert self._holder is not None
        with self._holder:  # closes its input, at which it ends
            pass
        shutil.rmtree(self._folder)

    def run(self, *command: str, cwd: str = "/", status: int = 0) -> str:
        """What the command writes to standard output and error. AssertionError where it ends with another status."""
        assert self._holder is not None
        # The folder exists outside too, but only in the namespace is something in it.
        done = subprocess.run(
            (
                *("nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "chroot", str(self._folder / "root")),
                *("env", "-i", f"--chdir={cwd}", *(f"{name}={value}" for name, value in _ENVIRONMENT.items())),
                *command,
            ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == status, f"{' '.join(command)}: status {done.returncode}\n{done.stdout}"
        return done.stdout

    def path(self, inside: str) -> Path:
        """A file within, as it is reached from outside."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{self._folder}/root{inside}")

    def copy_in(self, *files: Path) -> list[str]:
        """Copies files to /run, which counts as no change; their paths within."""
        for file in files:
            shutil.copy(file, self.path("/run"))
        return [f"/run/{file.name}" for file in files]

    def pretend_systemd(self) -> None:
        """From here on the maintainer scripts believe that systemd runs."""
        self.path("/run/systemd/system").mkdir(parents=True)
        self.path("/usr/sbin/policy-rc.d").unlink(missing_ok=True)  # with which a container forbids all starts
        systemctl = self.path("/usr/local/sbin/systemctl")
        systemctl.parent.mkdir(parents=True, exist_ok=True)
        systemctl.write_text(_SYSTEMCTL)
        systemctl.chmod(0o755)

    def systemctl_calls(self) -> list[str]:
        """What systemctl was asked to do since the last time."""
        log = self.path("/run/systemctl.log")
        calls = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return calls

    def changes(self) -> set[str]:
        """Everything that is not as in the folder below: added, removed, or with other content; without what is in
        /run, /tmp, or a file system of the kernel."""
        assert self._holder is not None
        upper = Path(f"/proc/{self._holder.pid}/root{self._folder}/upper")
        found = set()
        for folder, folders, files in os.walk(upper):
            for name in (*folders, *files):
                path = Path(folder, name)
                inside = path.relative_to(upper)
                if not _same(path, self._lower / inside):
                    found.add(f"/{inside}")
        return found


def _same(upper: Path, lower: Path) -> bool:
    """Whether what the overlay holds is what it lies over; folders are compared by what is in them."""
    mode = upper.lstat().st_mode
    if not os.path.lexists(lower):
        return stat.S_ISCHR(mode)  # a mark that something was removed, which came and went
    if stat.S_IFMT(mode) != stat.S_IFMT(lower.lstat().st_mode):
        return False
    if stat.S_ISLNK(mode):
        return upper.readlink() == lower.readlink()
    return not stat.S_ISREG(mode) or upper.read_bytes() == lower.read_bytes()
