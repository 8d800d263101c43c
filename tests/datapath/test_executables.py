"""Which processes run an executable: real programs, as they are executed, fork and end."""

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qos2.datapath import executables
from qos2.datapath.executables import Executables, executable_of, number_of
from qos2.datapath.netlink import HEADER
from qos2.errors import DatapathError

pytestmark = pytest.mark.datapath

#: The connector tells within a fraction of a millisecond; this is for a machine whose two cores are busy.
SOON_S = 10.0
#: A program that does what it is told by its arguments, one after the other.
SCRIPT = """
import ctypes, os, sys, threading, time
for word in sys.argv[1:]:
    if word == "fork" and os.fork() == 0: time.sleep(60)
    if word == "thread": threading.Thread(target=time.sleep, args=(60,)).start()
    if word == "leave": ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)  # exit(2)
    if word == "told": print(flush=True)
    if word.startswith("/"): os.execv(word, [word, "60"])
time.sleep(60)
"""


class Kernel:
    """In place of the map: which number is recorded for which process."""

    def __init__(self) -> None:
        self.numbers: dict[int, int] = {}
        self.refuses = False

    def record(self, pid: int, number: int) -> None:
        if self.refuses:
            raise DatapathError("the map is full")
        self.numbers[pid] = number

    def forget(self, pid: int) -> None:
        del self.numbers[pid]


@pytest.fixture(scope="module", autouse=True)
def _connector() -> None:
    try:
        executables._connected().close()
    except TimeoutError:
        pytest.skip("this kernel has no CONFIG_PROC_EVENTS, or this is a pid namespace of its own")
    except OSError as error:
        pytest.skip(f"this kernel has no process connector: {error.strerror}")


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def followed(kernel: Kernel) -> Iterator[Executables]:
    with contextlib.closing(Executables(kernel.record, kernel.forget)) as made:
        yield made


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A sleep of our own, which nobody else on this machine runs."""
    return Path(shutil.copy("/usr/bin/sleep", tmp_path / "qos2-test-sleep"))


@pytest.fixture
def interpreter(tmp_path: Path) -> Path:
    """A Python of our own."""
    return Path(shutil.copy(os.path.realpath(sys.executable), tmp_path / "qos2-test-python"))


@contextlib.contextmanager
def running(*argv: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; all of it is ended afterwards."""
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True)
    try:
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def until(followed: Executables, met: Callable[[], bool]) -> bool:
    """Looks whenever there is something to see, as the daemon's loop does."""
    end_s = time.monotonic() + SOON_S
    while not met() and time.monotonic() < end_s:
        if select.select([followed], [], [], 0.05)[0]:
            followed.look()
    return met()


def test_an_executable_is_known_as_soon_as_it_is_executed(
    followed: Executables, kernel: Kernel, program: Path, interpreter: Path
) -> None:
    followed.follow([str(program)])
    assert kernel.numbers == {}
    with running(interpreter, "-c", SCRIPT, program) as process:
        assert until(followed, lambda: kernel.numbers == {process.pid: number_of(str(program))})
        assert executable_of(process.pid) == str(program)
        assert followed.processes(str(program)) == 1
    assert until(followed, lambda: kernel.numbers == {})
    assert followed.processes(str(program)) == 0
    assert followed.problems == {}


def test_what_runs_already_is_found(followed: Executables, kernel: Kernel, program: Path) -> None:
    with running(program, "60") as process:
        followed.follow([str(program)])
        assert kernel.numbers == {process.pid: followed.index(str(program))}


def test_a_child_runs_what_its_parent_runs(followed: Executables, kernel: Kernel, interpreter: Path) -> None:
    followed.follow([str(interpreter)])
    with running(interpreter, "-c", SCRIPT, "fork", "told") as process:
        assert process.stdout is not None
        process.stdout.readline()
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        (child,) = map(int, children)
        assert until(
            followed, lambda: kernel.numbers == dict.fromkeys((process.pid, child), number_of(str(interpreter)))
        )
        os.kill(child, signal.SIGKILL)
        assert until(followed, lambda: kernel.numbers == {process.pid: number_of(str(interpreter))})


def test_a_process_that_executes_something_else_is_forgotten(
    followed: Executables, kernel: Kernel, program: Path, interpreter: Path
) -> None:
    followed.follow([str(interpreter)])
    with running(interpreter, "-c", SCRIPT, "told", program) as process:
        assert until(followed, lambda: executable_of(process.pid) == str(program) and not kernel.numbers)


def test_a_process_goes_on_in_its_threads(followed: Executables, kernel: Kernel, interpreter: Path) -> None:
    followed.follow([str(interpreter)])
    with running(interpreter, "-c", SCRIPT, "thread", "leave") as process:
        status = Path(f"/proc/{process.pid}/status")
        assert until(followed, lambda: "State:\tZ" in status.read_text())
        followed.look()
        assert kernel.numbers == {process.pid: number_of(str(interpreter))}


def test_a_replaced_file_is_the_same_executable(followed: Executables, kernel: Kernel, program: Path) -> None:
    with running(program, "60") as process:
        program.unlink()
        followed.follow([str(program)])
        assert kernel.numbers == {process.pid: number_of(str(program))}


def test_numbers_are_always_the_same(followed: Executables, kernel: Kernel, program: Path) -> None:
    assert number_of("/usr/bin/rsync") == 0xB8639135  # sockets keep them over a restart of the daemon
    with running(program, "60") as process:
        followed.follow(["/a", str(program), "/z"])
        told = [followed.index(path) for path in ("/a", str(program), "/z", "/other")]
        assert told == [number_of("/a"), number_of(str(program)), number_of("/z"), 0]
        assert kernel.numbers == {process.pid: number_of(str(program))}
        followed.follow(["/a"])
        assert kernel.numbers == {}


def test_two_paths_of_one_number_are_told(followed: Executables) -> None:
    first, second = "/qos2/plumless", "/qos2/buckeroo"  # the classic pair of words with one CRC-32, behind one prefix
    assert number_of(first) == number_of(second)
    followed.follow([first, second, "/a"])
    assert (followed.index(first), followed.index(second)) == (0, number_of(second))
    assert followed.problems == {
        first: f"executable {first} cannot be told from {second} (the same CRC-32): it is left out"
    }
    followed.follow(["/a"])
    assert followed.problems == {}


def test_nothing_is_heard_while_nothing_is_named(followed: Executables, program: Path) -> None:
    followed.follow([str(program)])
    followed.follow([])
    with running(program, "60"):
        assert not select.select([followed], [], [], 0.2)[0]
    assert not select.select([followed], [], [], 0.2)[0]


def test_threads_do_not_wake_the_daemon() -> None:
    """Its filter lets none of this process's threads through, and each of its children."""
    with contextlib.closing(executables._connected()) as connector:
        for _ in range(50):
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
        subprocess.run(["/usr/bin/true"], check=True)
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                datagram = connector.recv(256)
                what, *pids = (
                    int.from_bytes(datagram[at : at + 4], sys.byteorder)
                    for at in (HEADER.size + 20, *range(HEADER.size + 36, HEADER.size + 52, 4))
                )
                # Of a fork the third and fourth are the child's, of all else the first and second that process's.
                own, group = pids[2:] if what == 1 else pids[:2]
                assert own == group
                found.append((what, pids[1] if what == 1 else 0))
    assert (1, os.getpid()) in found
    assert {what for what, _ in found} <= {1, 2, 0x80000000}


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EIO])
def test_events_that_were_lost_are_made_up_for(
    followed: Executables, kernel: Kernel, program: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    followed.follow([str(program)])

    class Failed:
        """The connector's socket, after more events than its buffer holds; or for good."""

        def recv(self, _length: int) -> bytes:
            raise OSError(number, os.strerror(number))

        def send(self, _request: bytes) -> None: ...

        def close(self) -> None: ...

    with running(program, "60") as process:
        real = followed._connector
        assert real is not None
        monkeypatch.setattr(followed, "_connector", Failed())
        followed.look()
        assert (followed._connector is None) == (number == errno.EIO)
        monkeypatch.setattr(followed, "_connector", real)
        assert kernel.numbers == {process.pid: number_of(str(program))}
        assert followed.counters["executable_events_lost"] == 1
    wrong = {"connector": "processes are looked for once a second: Input/output error"}
    assert followed.problems == (wrong if number == errno.EIO else {})


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (OSError(errno.EPROTONOSUPPORT, "Protocol not supported"), "the kernel has no process connector"),
        (TimeoutError("timed out"), "the kernel has no process connector"),
        (PermissionError(errno.EPERM, "Operation not permitted"), "Operation not permitted"),
    ],
)
def test_without_a_connector_proc_is_looked_through(
    followed: Executables,
    kernel: Kernel,
    program: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: OSError,
    why: str,
) -> None:
    def refused() -> socket.socket:
        raise error

    monkeypatch.setattr(executables, "_connected", refused)
    monkeypatch.setattr(executables, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(executables, "_SHARE", 1e9)
    followed.follow([str(program)])
    assert followed.problems == {"connector": f"processes are looked for once a second: {why}"}
    with running(program, "60") as process:
        assert _looked(followed, lambda: kernel.numbers == {process.pid: number_of(str(program))})
    assert _looked(followed, lambda: kernel.numbers == {})
    monkeypatch.undo()
    followed.follow([str(program)])
    assert followed.problems == {}


def _looked(followed: Executables, met: Callable[[], bool]) -> bool:
    """Without anything that would tell when."""
    end_s = time.monotonic() + SOON_S
    while not met() and time.monotonic() < end_s:
        followed.look()
    return met()


def test_looking_through_proc_takes_its_share_and_no_more(
    followed: Executables, kernel: Kernel, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    monkeypatch.setattr(executables, "_connected", refused)
    followed.follow([str(program)])
    with running(program, "60"):
        followed.look()  # the last look was less than a second ago
        assert kernel.numbers == {}


def test_in_a_pid_namespace_of_its_own_it_says_so(
    followed: Executables, kernel: Kernel, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "_FIRST_PID_NAMESPACE", 1)
    with running(program, "60"):
        followed.follow([str(program)])
        assert list(followed.problems) == ["pid_namespace"]
        assert (kernel.numbers, followed.index(str(program))) == ({}, 0)
    followed.follow([])
    assert followed.problems == {}


def test_what_cannot_be_recorded_is_counted(followed: Executables, kernel: Kernel, program: Path) -> None:
    kernel.refuses = True
    with running(program, "60"):
        followed.follow([str(program)])
    assert followed.counters["executable_record_failed"] == 1
    assert followed.processes(str(program)) == 0


def test_a_process_that_may_not_be_looked_into_is_counted_once(
    followed: Executables, program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_pid: int) -> str:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(executables, "executable_of", refused)
    followed.follow([str(program)])
    counted = followed.counters["executable_unreadable"]
    assert counted >= 1
    own = os.getpid()
    followed._see(own)
    followed._see(own)
    assert followed.counters["executable_unreadable"] == counted


def test_a_kernel_thread_runs_nothing() -> None:
    with pytest.raises(FileNotFoundError):
        executable_of(2)
