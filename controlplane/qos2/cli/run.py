"""`qos2 run`: an unchanged program, with all of its sockets and its children's, in one flow.

The daemon puts this process into a cgroup of its own; the command is started as its child, so it is
born there. The flow ends with the command, whose exit code is handed on (128 + n for a signal n).
"""

import os
import signal
import sys
import time
from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from qos2.cli import render
from qos2.cli.ports import Client, ProgramFlow
from qos2.core.bandwidth import parse_bandwidth
from qos2.errors import ServiceLost
from qos2.model import FlowStats, Shaping, TrafficType

#: Exit codes of POSIX shells for a command that is not there, or cannot be executed.
NOT_FOUND = 127
NOT_EXECUTABLE = 126

_FORWARDED = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
#: si_code of a signal that the terminal sent: the whole foreground process group, our child included, has it.
_SI_KERNEL = 0x80
#: A missed SIGCHLD (another thread of an embedding process may take it) costs no more than this.
_LOOK_EVERY_S = 1.0

#: So long without a packet, and the flow's sockets are taken to be empty.
QUIET_S = 0.1
#: How long a command's last data may take by default.
LINGER_S = 10.0


def rate(text: str) -> int:
    """Bits per second of `64k`, `20M`, `1.5G` or plain digits; units are decimal. Raises ArgumentTypeError."""
    try:
        return parse_bandwidth(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def traffic_type(text: str) -> TrafficType:
    """A traffic type by its word, with `-` or `_`. Raises ArgumentTypeError."""
    for kind in TrafficType:
        if kind.label == text.lower().replace("-", "_"):
            return kind
    raise ArgumentTypeError(f"{text!r} is none of {', '.join(kind.label for kind in TrafficType)}")


def shaping(text: str) -> Shaping:
    """What happens to packets over the rate, by its word, with `-` or `_`. Raises ArgumentTypeError."""
    for kind in Shaping:
        if kind.label == text.lower().replace("-", "_"):
            return kind
    raise ArgumentTypeError(f"{text!r} is none of {', '.join(kind.label for kind in Shaping)}")


def seconds(text: str) -> float:
    """A time to wait. Raises ArgumentTypeError outside 0 .. 86400."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 86_400:
        raise ArgumentTypeError(f"{text!r} is not between 0 and 86400 seconds")
    return value


@contextmanager
def named_after(command: Sequence[str]) -> Iterator[None]:
    """While connected, this process has the name of its command: the daemon takes it for the flow's program."""
    own = Path("/proc/self/comm")
    name = own.read_text()
    own.write_text(os.path.basename(command[0]))  # the kernel cuts it to 15 bytes
    try:
        yield
    finally:
        own.write_text(name.rstrip("\n"))


def execute(qos: Client, arguments: Namespace, _out: Console) -> int:
    """Begin the flow, run the command in it, hand on its exit code. Our own words go to stderr."""
    err = render.console(sys.stderr)
    flow = qos.add_program(arguments.type)
    if arguments.rate is not None:
        flow.set_rate(arguments.rate, arguments.shaping)
    code = run_command(arguments.command, err)
    try:
        drain(flow, arguments.linger)
        if arguments.stats:
            err.print(summary(flow, flow.stats()))
        flow.close()
    except ServiceLost as error:
        # The command has done its work; that its flow ended earlier must not change its exit code.
        err.print(f"qos2: {render.printable(error.message)}; the flow had ended before the command did")
    return code


def drain(flow: ProgramFlow, linger_s: float) -> None:
    """Wait until what the command left in its sockets has been sent, at most `linger_s` seconds.

    The flow ends with its handle, and the rest would leave unmarked and unlimited. All is sent when the
    contract is not used up ahead and no counter moves: TCP hands over the next when the last has left.
    """
    end_s = time.monotonic() + linger_s
    stats, moved_s = flow.stats(), time.monotonic()
    while time.monotonic() < min(moved_s + QUIET_S, end_s):
        time.sleep(QUIET_S / 5)
        before, stats = stats, flow.stats()
        if stats.debt_ns or stats.packets != before.packets:
            moved_s = time.monotonic()


def summary(flow: ProgramFlow, stats: FlowStats) -> str:
    """One line of counters."""
    return (
        f"qos2: flow {render.hex_id(flow.id)}: {stats.packets} packets, {stats.bytes} bytes, "
        f"{stats.delayed_packets} delayed, {stats.non_conformant_packets} remarked, "
        f"{sum(stats.dropped_packets.values())} dropped"
    )


def run_command(command: Sequence[str], err: Console) -> int:
    """Run `command` with our terminal, pass signals on to it, and wait. Returns a shell's exit code for it."""
    # An inherited "ignore" would make the kernel reap our child without telling us its status.
    inherited = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    waited = {*_FORWARDED, signal.SIGCHLD}
    # Blocked before the child exists: a signal that comes early waits, instead of killing only us.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, waited)
    try:
        try:
            pid = os.posix_spawnp(
                command[0], list(command), os.environ, setsigmask=mask, setsigdef=(signal.SIGPIPE, signal.SIGXFSZ)
            )
        except OSError as error:
            err.print(f"qos2: {render.printable(command[0])}: {error.strerror}")
            return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE
        return _wait(pid, waited)
    finally:
        while signal.sigtimedwait(waited, 0) is not None:
            pass  # meant for the command, which is gone
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGCHLD, inherited)


def _wait(pid: int, waited: set[signal.Signals]) -> int:
    while True:
        received = signal.sigtimedwait(waited, _LOOK_EVERY_S)
        if received is not None and received.si_signo in _FORWARDED and received.si_code != _SI_KERNEL:
            os.kill(pid, received.si_signo)  # not reaped yet, so the pid is still his
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code
