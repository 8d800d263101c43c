"""Which processes run the executables that rules name, told to the datapath as they begin and end.

The kernel's process connector tells of each exec, fork and exit; a look through /proc tells of those that run already.
Where the kernel has no connector, /proc is looked through once a second. Nothing is done while no rule names any.
"""

import contextlib
import ctypes
import errno
import logging
import os
import select
import socket
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterable

from qos2.datapath.netlink import HEADER, NLMSG_DONE
from qos2.errors import DatapathError

_LOG = logging.getLogger(__name__)

# linux/netlink.h, linux/connector.h, linux/cn_proc.h
_NETLINK_CONNECTOR = 11
_CN_IDX_PROC = 1
_CN_VAL_PROC = 1
_LISTEN = 1
_IGNORE = 2
#: Index and value of the connector, sequence, acknowledgement, length, flags.
_CONNECTOR = struct.Struct("=IIIIHH")
#: What happened, CPU, time; then pids as the event has them.
_PROC_EVENT = struct.Struct("=IIQ")
_PIDS = struct.Struct("=IIII")
_NONE = 0  #: the answer to our request to listen
_FORK = 0x1
_EXEC = 0x2
_EXIT = 0x80000000

# asm-generic/socket.h
_SO_ATTACH_FILTER = 26
_SO_RCVBUFFORCE = 33
_RECEIVE_BYTES = 4 << 20
_DATAGRAMS_AT_ONCE = 4096
#: The kernel answers within the call that asks.
_ANSWER_SECONDS = 0.1

#: The first pid namespace has this inode (linux/proc_ns.h): elsewhere pids are not those that eBPF sees.
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
_DELETED = " (deleted)"

#: Where /proc has to be looked through, that takes at most this share of a core.
_SHARE = 0.01
_LOOK_EVERY_S = 1.0


def executable_of(pid: int) -> str:
    """The path of what a process runs, even where the file was replaced meanwhile; "" of kernel threads.

    Raises OSError where it has ended (FileNotFoundError, ProcessLookupError), or is not ours to look into.
    """
    return os.readlink(f"/proc/{pid}/exe").removesuffix(_DELETED)


def number_of(path: str) -> int:
    """By which the kernel knows an executable: always the same, as sockets keep that of the program that made them."""
    return zlib.crc32(path.encode()) or 1


class Executables:
    """Processes by the number of their executable. Failures are counted, and told in `problems`, not raised."""

    def __init__(self, record: Callable[[int, int], None], forget: Callable[[int], None]) -> None:
        """`record` takes a pid and the number of its executable, `forget` a pid. They may raise DatapathError."""
        self._record = record
        self._forget = forget
        self._poll = select.epoll()
        self._connector: socket.socket | None = None
        self._look_again_s = 0.0
        self._numbers: dict[str, int] = {}
        self._processes: dict[int, str] = {}
        self._unreadable: set[int] = set()
        self.problems: dict[str, str] = {}
        self.counters: Counter[str] = Counter()

    def follow(self, paths: Iterable[str]) -> None:
        """From now on these executables. Their processes are known on return."""
        self.problems = {key: problem for key, problem in self.problems.items() if key == "connector"}
        self._numbers = self._numbered(paths)
        if not self._numbers:
            self._stop_listening()
            self.problems.clear()
        elif os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
            self.problems["pid_namespace"] = (
                "executables cannot be told apart: the daemon runs in a pid namespace of its own (hostPID, --pid=host)"
            )
            self._numbers.clear()
        elif self._connector is None:
            self._listen()  # before the look through /proc, so that nothing is missed
        self._look_through()

    def index(self, path: str) -> int:
        """The number of an executable that is followed; 0 for any other."""
        return self._numbers.get(path, 0)

    def processes(self, path: str) -> int:
        """How many processes run it now."""
        return sum(each == path for each in self._processes.values())

    def fileno(self) -> int:
        """Readable when look() has something to do; the same for as long as this object is open."""
        return self._poll.fileno()

    def look(self) -> None:
        """Follows what has happened. When readable, and once a second."""
        if self._connector is None:
            if self._numbers and time.monotonic() >= self._look_again_s:
                self._look_through()
        elif not self._read(self._connector):
            self.counters["executable_events_lost"] += 1
            self._look_through()

    def close(self) -> None:
        """What was recorded stays recorded."""
        self._stop_listening()
        self._poll.close()

    def _numbered(self, paths: Iterable[str]) -> dict[str, int]:
        taken: dict[int, str] = {}
        for path in sorted(set(paths)):  # in this order, so that the same policy gives the same numbers
            other = taken.setdefault(number_of(path), path)
            if other != path:
                self.problems[path] = f"executable {path} cannot be told from {other} (the same CRC-32): it is left out"
        return {path: number for number, path in taken.items()}

    def _listen(self) -> None:
        try:
            connector = _connected()
        except OSError as error:
            self._give_up("the kernel has no process connector" if _is_missing(error) else error.strerror)
            return
        self.problems.pop("connector", None)
        self._connector = connector
        self._poll.register(connector, select.EPOLLIN)

    def _give_up(self, why: str | None) -> None:
        self._stop_listening()
        self.problems["connector"] = f"processes are looked for once a second: {why}"
        _LOG.warning("%s", self.problems["connector"])

    def _stop_listening(self) -> None:
        if self._connector is not None:
            with contextlib.suppress(OSError):  # older kernels count listeners by this; the socket closes anyway
                self._connector.send(_request(_IGNORE))
            self._connector.close()
            self._connector = None

    def _read(self, connector: socket.socket) -> bool:
        """False where the kernel had to leave events out."""
        for _ in range(_DATAGRAMS_AT_ONCE):
            try:
                datagram = connector.recv(256)
            except BlockingIOError:
                return True
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self._give_up(error.strerror)
                return False
            self._follow_event(datagram)
        return True

    def _follow_event(self, datagram: bytes) -> None:
        at = HEADER.size + _CONNECTOR.size
        what, _cpu, _time_ns = _PROC_EVENT.unpack_from(datagram, at)
        _first, second, _third, fourth = _PIDS.unpack_from(datagram, at + _PROC_EVENT.size)
        if what == _EXEC:
            self._see(second)
        elif what == _FORK:
            self._set(fourth, self._processes.get(second, ""))  # a child runs what its parent runs
        elif what == _EXIT and not _has_threads(second):
            self._set(second, "")

    def _look_through(self) -> None:
        began_s = time.monotonic()
        if self._numbers or self._processes:
            present = {int(entry) for entry in os.listdir("/proc") if entry.isdigit()}
            self._unreadable &= present
            for pid in self._processes.keys() - present:
                self._set(pid, "")
            for pid in present:
                self._see(pid)
        now_s = time.monotonic()
        self._look_again_s = now_s + max(_LOOK_EVERY_S, (now_s - began_s) / _SHARE)

    def _see(self, pid: int) -> None:
        try:
            path = executable_of(pid)
        except (FileNotFoundError, ProcessLookupError):
            path = ""  # it has ended, or is a thread of the kernel
        except OSError:
            path = ""
            self.counters["executable_unreadable"] += pid not in self._unreadable
            self._unreadable.add(pid)
        self._set(pid, path)

    def _set(self, pid: int, path: str) -> None:
        path = path if path in self._numbers else ""
        before = self._processes.pop(pid, "")
        try:
            if path:
                self._record(pid, self._numbers[path])
                self._processes[pid] = path
            elif before:
                self._forget(pid)
        except DatapathError as error:
            self.counters["executable_record_failed"] += 1
            _LOG.debug("executable of process %d: %s", pid, error)


def _connected() -> socket.socket:
    """A socket that hears of exec, fork and exit. Raises OSError."""
    connector = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _NETLINK_CONNECTOR)
    try:
        connector.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _RECEIVE_BYTES)
        program, buffer = _processes_only()
        connector.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        del buffer  # it had to live until here
        connector.bind((0, _CN_IDX_PROC))
        connector.settimeout(_ANSWER_SECONDS)
        connector.send(_request(_LISTEN))
        connector.recv(256)  # without CONFIG_PROC_EVENTS nothing answers
        connector.setblocking(False)
    except OSError:
        connector.close()
        raise
    return connector


def _is_missing(error: OSError) -> bool:
    return isinstance(error, TimeoutError) or error.errno == errno.EPROTONOSUPPORT


def _request(operation: int) -> bytes:
    body = _CONNECTOR.pack(_CN_IDX_PROC, _CN_VAL_PROC, 0, 0, 4, 0) + struct.pack("=I", operation)
    return HEADER.pack(HEADER.size + len(body), NLMSG_DONE, 0, 0, 0) + body


def _processes_only() -> tuple[bytes, ctypes.Array[ctypes.c_char]]:
    """A socket filter (struct sock_fprog, and the instructions that it points to): threads do not wake us."""
    ld, tax, ret, jump_equal, jump_equal_x, jump = 0x20, 0x07, 0x06, 0x15, 0x1D, 0x05
    event = HEADER.size + _CONNECTOR.size
    pids = event + _PROC_EVENT.size

    def swapped(value: int) -> int:  # a filter loads words in network order
        return int.from_bytes(value.to_bytes(4, sys.byteorder), "big")

    # Code, instructions to skip if equal and if not, operand.
    instructions = (
        (ld, 0, 0, event),
        (jump_equal, 11, 0, swapped(_NONE)),
        (jump_equal, 10, 0, swapped(_EXEC)),
        (jump_equal, 0, 4, swapped(_FORK)),
        (ld, 0, 0, pids + 8),  # child_pid
        (tax, 0, 0, 0),
        (ld, 0, 0, pids + 12),  # child_tgid
        (jump, 0, 0, 4),
        (jump_equal, 0, 5, swapped(_EXIT)),
        (ld, 0, 0, pids),  # process_pid
        (tax, 0, 0, 0),
        (ld, 0, 0, pids + 4),  # process_tgid
        (jump_equal_x, 0, 1, 0),
        (ret, 0, 0, 0xFFFF),
        (ret, 0, 0, 0),
    )
    buffer = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *each) for each in instructions))
    return struct.pack("@HP", len(instructions), ctypes.addressof(buffer)), buffer


def _has_threads(pid: int) -> bool:
    """Whether a process whose first thread has ended goes on in others."""
    try:
        return any(task != str(pid) for task in os.listdir(f"/proc/{pid}/task"))
    except OSError:
        return False
