"""Group `control`: what the daemon costs: its memory, its start."""

import os
import resource
import socket
import time
from contextlib import ExitStack
from pathlib import Path

import qos2
from bench.figures import Result, Table, Target, spread
from bench.session import Session
from demo.lab import Lab, LabError
from demo.processes import Daemon

_FLOWS = 10_000
_TESTS = Path(__file__).resolve().parents[1]


def measure(session: Session) -> Result:
    """Start and memory."""
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("qos2-bench"))
        first, again = _starts(lab, session)
        with Daemon(lab.app) as daemon:
            empty_mib = resident_mib(daemon)
            full_mib = _full(lab, daemon, session)
    resources = Table(
        "Start and memory",
        ("", "measured"),
        (
            ("start, compiling, s", spread(first).text(2)),
            ("start after kill -9, programs and maps in place, s", spread(again).text(2)),
            ("resident memory without flows, MiB", f"{empty_mib:.1f}"),
            (f"resident memory with {_FLOWS:,} flows, MiB", f"{full_mib:.1f}"),
        ),
    )
    return Result(
        "control",
        "The daemon",
        "The real daemon on a device in a network namespace. Start: from exec until a client can connect. Memory: "
        "VmRSS, without flows right after the start.",
        (resources,),
        (
            Target("control-memory", f"memory with {_FLOWS:,} flows", 64, full_mib, "MiB", decimals=1),
            Target("control-start", "start, compiling", 2, spread(first).median, "s"),
            Target("control-restart", "start, programs in place", 2, spread(again).median, "s"),
        ),
    )


def resident_mib(daemon: Daemon) -> float:
    """VmRSS of the daemon's process in MiB."""
    assert daemon.process is not None
    for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise LabError("the daemon is gone")


def _starts(lab: Lab, session: Session) -> tuple[list[float], list[float]]:
    """Seconds of first starts, and of starts after kill -9, in turn."""
    first, again = [], []
    rounds = session.choose(3, 7)
    for number in range(rounds):
        session.tell(f"start {number + 1} of {rounds}")
        begin = time.monotonic()
        with Daemon(lab.app) as daemon:
            first.append(time.monotonic() - begin)
            daemon.kill()
            begin = time.monotonic()
            daemon.start()
            again.append(time.monotonic() - begin)
    return first, again


def _full(lab: Lab, daemon: Daemon, session: Session) -> float:
    """Resident memory while there are many flows, one socket each."""
    session.tell(f"{_FLOWS:,} flows")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = len(os.listdir("/proc/self/fd")) + _FLOWS + 64
    if need > hard:
        raise LabError(f"{_FLOWS} sockets need a limit of open files of {need}, not {hard} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, need), hard))
    with ExitStack() as stack:
        qos = stack.enter_context(qos2.Handle(daemon.socket))
        stack.enter_context(lab.app.entered())
        for _ in range(_FLOWS):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.connect(("127.0.0.1", 9))
            qos.add_socket(sock, qos2.TrafficType.VOICE)
        return resident_mib(daemon)
