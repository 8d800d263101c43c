"""The datapath's folder on the bpf file system, and the child process that fills it.

    PIN_PATH/maps-v1-65537/     maps of layout version 1 with 65,537 slots
    PIN_PATH/programs-<hash>/   programs compiled from one state of the sources
    PIN_PATH/links/             tcx links, one per device

A folder is complete or not there: the loader fills `new-programs`, which is renamed (bpffs reserves
dots in names). What is found complete is used as it is, so a restart compiles nothing, and a new
version takes the old maps over with every flow and counter in them. A lock on PIN_PATH keeps a
second daemon out.
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from qos2.datapath import abi, loader
from qos2.errors import BY_CODE, AlreadyRunning, DatapathError, MissingKernelFeature

_HALF_DONE = "new-programs"


class Pins:
    """Owns PIN_PATH while open. `maps`, `programs` and `links` are its folders."""

    def __init__(self, path: Path, max_flows: int) -> None:
        """Takes the lock. Raises MissingKernelFeature without bpffs or privilege, AlreadyRunning when locked."""
        self.path = path
        self._slots = max_flows + 1
        self.maps = path / f"maps-v{abi.ABI_VERSION}-{self._slots}"
        self.programs = path / f"programs-{_digest(path)}"
        self.links = path / "links"
        self.compiled = False
        self.fresh = False  #: nothing was there: no flow to take over
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            _require_bpf_fs(path)
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError as error:
            raise MissingKernelFeature(f"cannot use {path}: {error.strerror}", "run the daemon as root") from error
        except FileNotFoundError as error:
            raise MissingKernelFeature(
                f"{path.parent} does not exist", "mount the bpf file system: mount -t bpf bpf /sys/fs/bpf"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyRunning(f"another daemon owns {path}", "stop it, or give this one its own pin_path") from None

    def fill(self) -> None:
        """Maps and programs are there afterwards. Raises what the loader reports, and AbiMismatch."""
        self.links.mkdir(mode=0o700, exist_ok=True)
        if self.programs.is_dir() and self.maps.is_dir():
            return
        for other in self.path.glob("maps-*"):
            if other != self.maps:
                _remove(other)  # another layout or size: its flows cannot be taken over
        self.fresh = not self.maps.is_dir()
        self.maps.mkdir(mode=0o700, exist_ok=True)
        _remove(self.path / _HALF_DONE)  # of a start that was killed
        half_done = self.path / _HALF_DONE
        try:
            abi.check(_compile(self.maps, half_done, self._slots))
        except DatapathError:
            _remove(half_done)
            raise
        if self.programs.is_dir():
            _remove(self.programs)
        half_done.rename(self.programs)
        self.compiled = True
        for other in self.path.glob("programs-*"):
            if other != self.programs:
                _remove(other)

    def give_up(self) -> None:
        """After a start that failed: what this one made goes, what an earlier daemon left stays in force."""
        if self.fresh:
            self.remove()

    def remove(self) -> None:
        """Everything below PIN_PATH, and PIN_PATH."""
        for folder in self.path.iterdir():
            _remove(folder)
        self.path.rmdir()

    def close(self) -> None:
        os.close(self._lock)


def _digest(path: Path) -> str:
    """Of everything that decides what the programs are: the sources and where their maps are."""
    state = hashlib.sha256(str(path).encode())
    for source in sorted(loader.SOURCE.glob("*.[ch]")):
        state.update(source.read_bytes())
    return state.hexdigest()[:12]


def _require_bpf_fs(path: Path) -> None:
    # statfs(2) has no wrapper in Python that tells the type; the mount table does.
    wanted = os.stat(path).st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        major, minor = fields[2].split(":")
        if os.makedev(int(major), int(minor)) == wanted and fields[fields.index("-") + 1] == "bpf":
            return
    path.rmdir()
    raise MissingKernelFeature(f"{path} is not on a bpf file system", "mount -t bpf bpf /sys/fs/bpf")


def _compile(maps: Path, programs: Path, slots: int) -> dict[str, dict[str, object]]:
    """Runs the loader in a process of its own; the layout that it reports."""
    environment = dict(os.environ, PYTHONPATH=str(Path(loader.__file__).resolve().parents[2]))
    command = [sys.executable, "-m", "qos2.datapath.loader", str(maps), str(programs), str(slots)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    try:
        report = json.loads(done.stdout)
    except json.JSONDecodeError:
        raise DatapathError(f"the loader died (status {done.returncode}): {done.stderr.strip()[-500:]}") from None
    if "error" in report:
        raise BY_CODE[report["error"]](report["message"], report["hint"])
    layout: dict[str, dict[str, object]] = report["layout"]
    return layout


def _remove(folder: Path) -> None:
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for pin in folder.iterdir():
        pin.unlink()
    folder.rmdir()
