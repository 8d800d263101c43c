"""The datapath's folder on the bpf file system, and how it is filled: with what is kept, or by a child that compiles.

    PIN_PATH/maps-v1-65537/     maps of layout version 1 with 65,537 slots
    PIN_PATH/programs-<hash>-ethernet/   programs compiled from one state of the sources, per link layer
    PIN_PATH/links/             tcx links, one per device

A folder is complete or not there: the loader fills `new-<link>`, which is renamed (bpffs reserves
dots in names). What is found complete is used as it is, so a restart compiles nothing, and a new
version takes the old maps over with every flow and counter in them. A lock on PIN_PATH keeps a
second daemon out.

What has no pins is loaded from the cache (cache.py), which takes as long as the kernel's verifier; what is not kept,
or refused, is compiled by the loader, which keeps it.
"""

import fcntl
import hashlib
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from qos2.datapath import abi, cache, loader, objects
from qos2.datapath.compiled import Compiled, Unusable
from qos2.errors import BY_CODE, AlreadyRunning, DatapathError, MissingKernelFeature

_LOG = logging.getLogger("qos2d.datapath")

_HALF_DONE = "new"
_COMPILE_SECONDS = 300  # two on a desktop; an emulated processor needs ten, and over 120 where its host is overloaded
_TOLD_AFTER_S = 2.0  # and from then on again and again, what it is that takes so long
_TOLD_AGAIN_S = 15.0


class Pins:
    """Owns PIN_PATH while open. `maps` and `links` are its folders; programs() gives the others."""

    def __init__(self, path: Path, max_flows: int, kept: Path | None = None) -> None:
        """Takes the lock. What is compiled is kept below `kept`, if given.

        Raises MissingKernelFeature without bpffs or privilege, AlreadyRunning when locked.
        """
        self.path = path
        self._cache = kept
        self._kept: dict[str, Compiled] = {}  # found, not loaded yet
        self._slots = max_flows + 1
        self._digest = _digest(path, self._slots)
        self.maps = path / f"maps-v{abi.ABI_VERSION}-{self._slots}"
        self.links = path / "links"
        self.fresh = False  #: nothing was there: no flow to take over
        self._running: dict[str, subprocess.Popen[str]] = {}
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            _require_bpf_fs(path)
            self._lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError as error:
            raise MissingKernelFeature(f"cannot use {path}: {error.strerror}", "run the daemon as root") from error
        except FileNotFoundError as error:
            raise MissingKernelFeature(
                f"{path} cannot be made: {path.parent} is no bpf file system", "mount -t bpf bpf /sys/fs/bpf"
            ) from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise AlreadyRunning(f"another daemon owns {path}", "stop it, or give this one its own pin_path") from None

    def begin(self) -> None:
        """Starts what must be compiled, if it is not kept, in a process of its own, and returns at once."""
        self.links.mkdir(mode=0o700, exist_ok=True)
        for folder in (*self.path.glob("maps-*"), *self.path.glob("programs-*")):
            if folder != self.maps and self._digest not in folder.name:
                _remove(folder)  # another layout or size, whose flows cannot be taken over; another source
        self.fresh = not self.maps.is_dir()
        self.maps.mkdir(mode=0o700, exist_ok=True)
        self._prepare("ethernet")

    def programs(self, link: str) -> Path:
        """The folder of the programs for a link layer (loader.LINK_BYTES), loaded or compiled if need be.

        Raises what the loader reports, and AbiMismatch.
        """
        self._prepare(link)
        if link in self._kept:
            self._load(link, self._kept.pop(link))
        running = self._running.pop(link, None)
        if running is not None:
            report = _report(running, link)
            abi.check(report["layout"])
            if "unkept" in report and self._cache is not None:
                _LOG.warning("what was compiled cannot be kept, each start will compile: %s", report["unkept"])
                self._cache = None  # told once
            self._half_done(link).rename(self._folder(link))
        return self._folder(link)

    def _load(self, link: str, kept: Compiled) -> None:
        """What was kept goes into the kernel; where that refuses it, the compiler is started. Raises AbiMismatch."""
        abi.check(kept.layout)
        half_done = self._half_done(link)
        half_done.mkdir(mode=0o700)
        try:
            objects.load(kept, self.maps, half_done, self._slots)
        except MissingKernelFeature as error:
            _LOG.warning("compiling the datapath anew, what was kept was refused: %s", error.message)
            self._compile(link)
        else:
            half_done.rename(self._folder(link))

    def _folder(self, link: str) -> Path:
        return self.path / f"programs-{self._digest}-{link}"

    def _half_done(self, link: str) -> Path:
        return self.path / f"{_HALF_DONE}-{link}"

    def _prepare(self, link: str) -> None:
        """Where the programs are not pinned: finds what is kept, else starts the compiler."""
        if self._folder(link).is_dir() or link in self._running or link in self._kept:
            return
        _remove(self._half_done(link))  # of a start that was killed
        if self._cache is not None:
            try:
                kept = cache.read(self._cache, loader.key_of(loader.read_source(), link))
            except Unusable as error:
                _LOG.warning("compiling the datapath, what was kept is not used: %s", error)
            else:
                if kept is not None:
                    self._kept[link] = kept
                    return
        self._compile(link)

    def _compile(self, link: str) -> None:
        half_done = self._half_done(link)
        _remove(half_done)
        arguments = [str(self.maps), str(half_done), str(self._slots), link]
        if self._cache is not None:
            arguments.append(str(self._cache))
        self._running[link] = subprocess.Popen(
            (sys.executable, "-m", loader.__name__, *arguments),
            env=dict(os.environ, PYTHONPATH=str(Path(loader.__file__).resolve().parents[2])),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def give_up(self) -> None:
        """After a start that failed: what this one made goes, what an earlier daemon left stays in force."""
        if self.fresh and self.path.is_dir():
            self.remove()

    def remove(self) -> None:
        """Everything below PIN_PATH, and PIN_PATH."""
        for folder in self.path.iterdir():
            _remove(folder)
        self.path.rmdir()

    def close(self) -> None:
        for running in self._running.values():
            running.kill()
            running.communicate()
        os.close(self._lock)


def _digest(path: Path, slots: int) -> str:
    """Of everything that decides what the programs are: the sources, and where and how large their maps are."""
    state = hashlib.sha256(f"{path} {slots}".encode())
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


def _report(running: subprocess.Popen[str], link: str) -> dict[str, Any]:
    """What a loader reports, once it has ended well."""
    said, complaint = _said(running, link)
    try:
        report: dict[str, Any] = json.loads(said)
    except json.JSONDecodeError:
        raise DatapathError(f"the loader died (status {running.returncode}): {complaint.strip()[-500:]}") from None
    if "error" in report:
        raise BY_CODE[report["error"]](report["message"], report["hint"])
    return report


def _said(running: subprocess.Popen[str], link: str) -> tuple[str, str]:
    """What a loader wrote to its outputs until it ended. The log tells of one that takes long."""
    waited_s, wait_s = 0.0, _TOLD_AFTER_S
    while waited_s < _COMPILE_SECONDS:
        try:
            return running.communicate(timeout=wait_s)
        except subprocess.TimeoutExpired:
            waited_s, wait_s = waited_s + wait_s, _TOLD_AGAIN_S
            _LOG.info("compiling the datapath for devices of link layer %s: %.0f s so far", link, waited_s)
    running.kill()
    running.communicate()
    raise DatapathError(f"the loader took more than {_COMPILE_SECONDS} s")


def _remove(folder: Path) -> None:
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for pin in folder.iterdir():
        pin.unlink()
    folder.rmdir()
