"""One run of the benchmarks, as its groups see it: how thorough it is, and how they tell of their progress."""

import ctypes
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from demo.lab import command

#: The sender's CPU, and the one of receivers where there is a second.
SENDER_CPU = 0


@dataclass(frozen=True, slots=True)
class Session:
    """`quick` halves what is measured, never how; `tell` takes one line about what is being done."""

    quick: bool
    tell: Callable[[str], None]

    def choose(self, quick: int, full: int) -> int:
        """A number of rounds, of sockets ..."""
        return quick if self.quick else full

    def choose_s(self, quick: float, full: float) -> float:
        """A duration in seconds."""
        return quick if self.quick else full


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """This thread runs on one CPU for the block (modulo the number of CPUs)."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(allowed)[cpu % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@contextmanager
def bpf_folder() -> Iterator[Path]:
    """A bpf file system of its own for the block: what is pinned in it goes with it, however this ends."""
    with tempfile.TemporaryDirectory(prefix="qos2-bench-") as folder:
        command("mount", "-t", "bpf", "bpf", folder)
        try:
            yield Path(folder)
        finally:
            command("umount", folder)


@contextmanager
def senders() -> Iterator[ctypes.CDLL]:
    """The functions of udp_flood.c, compiled for the block. Raises LabError without a compiler."""
    with tempfile.TemporaryDirectory(prefix="qos2-bench-") as folder:
        library = Path(folder, "senders.so")
        command("gcc", "-O2", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(library), str(_SENDERS))
        loaded = ctypes.CDLL(str(library))
        loaded.udp_flood.argtypes = [ctypes.POINTER(ctypes.c_int), ctypes.c_uint, ctypes.c_uint, ctypes.c_double]
        loaded.write_flood.argtypes = [ctypes.c_int, ctypes.c_uint, ctypes.c_double]
        loaded.stream_drain.argtypes = [ctypes.c_int]
        for function in (loaded.udp_flood, loaded.write_flood, loaded.stream_drain):
            function.restype = ctypes.c_long
        yield loaded


_SENDERS = Path(__file__).with_name("udp_flood.c")


def cpu_model() -> str:
    """As the kernel names it; the machine's architecture where it names none."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return os.uname().machine


def commit() -> str:
    """The state of the sources that was measured; empty outside a checkout."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
