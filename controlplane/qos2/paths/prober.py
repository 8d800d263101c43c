"""The thread that sends probes: it carries out plans and decides nothing. Of each host one train at a time.

Python of this thread delays the daemon's event loop, so it does little: what is back to back is one system call, what
is paced sleeps in between. Sockets are made in the application's network namespace when a host is first sent to, and
closed when it is shut, since an open one would keep its namespace alive.
"""

import errno
import logging
import os
import select
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePacket, ProbePlan
from qos2.errors import QosError
from qos2.model import RemoteHost
from qos2.paths.probesocket import ProbeSocket

_LOG = logging.getLogger(__name__)

#: How long replies are waited for, in seconds: until a round trip is known, and then by it.
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 1.0
LEAST_WAIT_S = 0.1
ROUND_TRIPS = 4
#: Single probes of one host that may be under way together: one that is lost must not keep the next ones waiting.
MOST_SINGLES = 8
#: epoll_wait(2) counts milliseconds, and rounds up.
EPOLL_TICK_S = 0.002
#: A sleep shorter than this is not worth its inaccuracy: packets of a faster train leave in pairs.
LEAST_SLEEP_S = 300e-6

#: (netns cookie, work) -> what the work returns, done in that namespace. Raises QosError or OSError.
Enter = Callable[[int, Callable[[], ProbeSocket]], ProbeSocket]


@dataclass(slots=True, eq=False)
class _Task:
    """A plan under way."""

    host: RemoteHost
    dscp: int
    plan: ProbePlan
    begun_s: float
    probe_socket: ProbeSocket | None = None
    numbers: list[int] = field(default_factory=list)  #: of its packets, by their socket's count
    sent_ns: list[int] = field(default_factory=list)
    next_s: float = 0.0  #: when to send on
    ends_s: float | None = None  #: when to stop waiting; None before all is sent
    packets: list[ProbePacket | None] = field(default_factory=list)
    missing: int = 0


class Prober:
    """`send` and `take` are for the daemon's own thread; the rest happens here. The thread begins with the first host.

    `counters` by name: sent_packets and sent_bytes (IP level), answered, lost, late (after their plan had ended),
    unreadable, refused (no reflector at the port), failed (the kernel would not send).
    """

    def __init__(self, enter: Enter, port: int = 862, clock: Callable[[], float] = time.monotonic) -> None:
        self._enter = enter
        self._port = port
        self._clock = clock
        self._lock = threading.Lock()
        self._open: set[RemoteHost] = set()
        self._under_way: dict[RemoteHost, list[_Task]] = {}
        self._asked: deque[_Task] = deque()
        self._shut: deque[RemoteHost] = deque()
        self._done: deque[tuple[RemoteHost, ProbeOutcome]] = deque()
        self._sockets: dict[tuple[RemoteHost, int], ProbeSocket] = {}
        self._round_trip_s: dict[RemoteHost, float] = {}
        self._warned: set[RemoteHost] = set()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.epoll()
        self._poll.register(self._wake, select.EPOLLIN)
        self._thread: threading.Thread | None = None
        self._closing = False
        self.counters: Counter[str] = Counter()

    def open(self, host: RemoteHost) -> None:
        """Somebody uses this host from now on."""
        with self._lock:
            self._open.add(host)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="qos2-prober", daemon=True)
            self._thread.start()

    def shut(self, host: RemoteHost) -> None:
        """Nothing more is sent to it, what is under way is forgotten, its sockets are closed at once."""
        with self._lock:
            self._open.discard(host)
            self._under_way.pop(host, None)
            self._shut.append(host)
        os.eventfd_write(self._wake, 1)

    def busy(self, host: RemoteHost) -> bool:
        """Whether a train to this host is under way."""
        return any(task.plan.kind is not ProbeKind.SINGLE for task in self._under_way.get(host, ()))

    def send(self, host: RemoteHost, dscp: int, plan: ProbePlan) -> bool:
        """Begin a plan; False for a host that is not open, or has enough of its kind under way."""
        single = plan.kind is ProbeKind.SINGLE
        with self._lock:
            tasks = self._under_way.setdefault(host, []) if host in self._open else None
            if tasks is None or (len(tasks) - self.busy(host) >= MOST_SINGLES if single else self.busy(host)):
                return False
            task = _Task(host, dscp, plan, self._clock())
            tasks.append(task)
            self._asked.append(task)
        os.eventfd_write(self._wake, 1)
        return True

    def take(self) -> list[tuple[RemoteHost, ProbeOutcome]]:
        """What has come of plans since the last call."""
        taken = []
        with self._lock:
            while self._done:
                host, outcome = self._done.popleft()
                if host in self._open:
                    taken.append((host, outcome))
        return taken

    def close(self) -> None:
        """End the thread and close all sockets."""
        self._closing = True
        os.eventfd_write(self._wake, 1)
        if self._thread is not None:
            self._thread.join()
        for probe_socket in self._sockets.values():
            probe_socket.close()
        self._sockets.clear()
        self._poll.close()
        os.close(self._wake)

    # The thread

    def _run(self) -> None:
        tasks: list[_Task] = []
        while not self._closing:
            now_s = self._clock()
            due = [each.next_s if each.ends_s is None else each.ends_s for each in tasks]
            wait_s = max(0.0, min(due) - now_s) if due else None
            if wait_s is not None and 0 < wait_s < EPOLL_TICK_S:
                time.sleep(wait_s)  # wakes within some 60 us, and others may go on meanwhile
                wait_s = 0.0
            for descriptor, _events in self._poll.poll(wait_s):
                if descriptor == self._wake:
                    os.eventfd_read(self._wake)
                else:
                    self._receive(descriptor, tasks)
            tasks = self._take_orders(tasks)
            now_s = self._clock()
            for task in tasks:
                if task.ends_s is None and task.next_s <= now_s and task.missing:
                    self._send_on(task, now_s)
            over = [each for each in tasks if each.missing == 0 or (each.ends_s is not None and each.ends_s <= now_s)]
            for task in over:
                tasks.remove(task)
                self._finish(task, now_s)

    def _take_orders(self, tasks: list[_Task]) -> list[_Task]:
        """The tasks that there are with what was asked for, and without those of hosts that were shut."""
        with self._lock:
            shut, asked = list(self._shut), list(self._asked)
            self._shut.clear()
            self._asked.clear()
        for host in shut:
            self._round_trip_s.pop(host, None)
            self._warned.discard(host)
            for key in [key for key in self._sockets if key[0] == host]:
                probe_socket = self._sockets.pop(key)
                self._poll.unregister(probe_socket)
                probe_socket.close()
        tasks = [task for task in tasks if task.host not in shut]
        for task in asked:
            task.packets = [None] * task.plan.count
            task.missing = task.plan.count
            if task not in self._under_way.get(task.host, ()):
                continue  # shut meanwhile
            try:
                task.probe_socket = self._socket(task.host, task.dscp)
            except (QosError, OSError) as error:
                self._fail(task, error)
                self._finish(task, self._clock())
                continue
            tasks.append(task)
        return tasks

    def _socket(self, host: RemoteHost, dscp: int) -> ProbeSocket:
        key = host, dscp
        if key not in self._sockets:
            made = self._enter(host.netns_cookie, lambda: ProbeSocket(host, self._port, dscp))
            self._sockets[key] = made
            self._poll.register(made, select.EPOLLIN)
        return self._sockets[key]

    def _send_on(self, task: _Task, now_s: float) -> None:
        """Send what is due: everything, or of a paced train the next packet or pair."""
        assert task.probe_socket is not None
        plan = task.plan
        left = plan.count - len(task.sent_ns)
        gap_s = plan.ip_bytes * 8 / plan.rate if plan.kind is ProbeKind.PACED else 0.0
        group = left if gap_s == 0 else min(left, 1 if gap_s >= LEAST_SLEEP_S else 2)
        first = task.probe_socket.next_number
        task.numbers += range(first, first + group)
        try:
            sent_ns = task.probe_socket.send(group, plan.ip_bytes)
        except OSError as error:
            self._fail(task, error)
            sent_ns = time.time_ns()
        else:
            self.counters["sent_packets"] += group
            self.counters["sent_bytes"] += group * plan.ip_bytes
        task.sent_ns += [sent_ns] * group
        if len(task.sent_ns) == plan.count:
            known_s = self._round_trip_s.get(task.host)
            wait_s = FIRST_WAIT_S if known_s is None else ROUND_TRIPS * known_s + LEAST_WAIT_S
            task.ends_s = now_s + min(wait_s, LONGEST_WAIT_S)
        else:
            # By the plan, not by the last sleep, whose lateness would add up; but no catching up in a burst.
            task.next_s = max((task.next_s or now_s) + group * gap_s, now_s + group * gap_s / 2)

    def _receive(self, descriptor: int, tasks: list[_Task]) -> None:
        probe_socket = next((each for each in self._sockets.values() if each.fileno() == descriptor), None)
        if probe_socket is None:
            return
        mine = [each for each in tasks if each.probe_socket is probe_socket]
        try:
            for arrival in probe_socket.receive():
                if arrival is None:
                    self.counters["unreadable"] += 1
                    continue
                task = next((each for each in mine if arrival.number in each.numbers), None)
                index = -1 if task is None else task.numbers.index(arrival.number)
                if task is None or task.packets[index] is not None:
                    self.counters["late"] += 1
                    continue
                task.packets[index] = ProbePacket(task.sent_ns[index], *arrival[1:])
                task.missing -= 1
        except OSError as error:
            for task in mine:
                self._fail(task, error)

    def _fail(self, task: _Task, error: QosError | OSError) -> None:
        """Nothing more comes of this plan: it ends now, with what it has."""
        refused = isinstance(error, OSError) and error.errno == errno.ECONNREFUSED
        self.counters["refused" if refused else "failed"] += 1
        if not refused and task.host not in self._warned:
            self._warned.add(task.host)
            _LOG.warning("%s cannot be probed: %s", task.host, error)
        task.missing = 0

    def _finish(self, task: _Task, now_s: float) -> None:
        answered = [each for each in task.packets if each is not None]
        self.counters["answered"] += len(answered)
        self.counters["lost"] += len(task.sent_ns) - len(answered)
        if answered:
            last = answered[-1]
            self._round_trip_s[task.host] = max(0.0, (last.received_ns - last.sent_ns) / 1e9)
        outcome = ProbeOutcome(task.plan, task.dscp, task.begun_s, now_s, tuple(task.packets))
        with self._lock:
            if task in self._under_way.get(task.host, ()):
                self._under_way[task.host].remove(task)
                self._done.append((task.host, outcome))
