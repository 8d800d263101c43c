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
from itertools import pairwise
from statistics import median

from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePacket, ProbePlan
from qos2.errors import QosError
from qos2.model import RemoteHost
from qos2.paths.probesocket import ProbeSocket

_LOG = logging.getLogger(__name__)

#: How long replies are waited for, in seconds: until a round trip is known, and then by it.
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 1.0
LEAST_WAIT_S = 0.3
ROUND_TRIPS = 4
#: Single probes wait longer, since a queue that has just filled holds them up, and keep nobody waiting ...
SINGLE_WAIT_S = 2.0
#: ... and this long once the reply to a later one is there: then they are lost.
REORDER_S = 0.02
#: Single probes of one host that may be under way together: twice as many as go in SINGLE_WAIT_S.
MOST_SINGLES = 80
#: epoll_wait(2) counts milliseconds, and rounds up.
EPOLL_TICK_S = 0.002
#: Some reflectors read the clock but once per packet, when their process comes to it. It is woken some 0.1 ms after the
#: packet, and what has come meanwhile seems to have come at once: trains must take longer than ten times that.
LEAST_TIMED_NS = 1_000_000
#: Others read it twice, but with this share of a gap they are busy, and no packet came meanwhile: they did not look.
BUSY_SHARE = 0.5
#: ... or one packet, it says, came so soon after it was done with the one before.
AT_ONCE_SHARE = 0.1
#: After such a train none from there is believed for so long: now and then one looks as if it had been timed.
UNTIMED_S = 30.0
#: How far the wall clock, which times probes, and the daemon's may go apart before the first was set.
CLOCK_STEP_NS = 5_000_000
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
    doubtful: bool = False  #: the reflector does not say that it knows when packets arrive


class Prober:
    """`send` and `take` are for the daemon's own thread; the rest happens here. The thread begins with the first host.

    `counters` by name: sent_packets and sent_bytes (IP level), answered, lost, late (after their plan had ended),
    unreadable, refused (no reflector at the port), failed (the kernel would not send), clock_set (replies without a
    round trip time, which are lost too), odd_times (the reflector's are impossible: its own time is not taken off),
    untimed (trains that the reflector's clock cannot tell anything of).
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
        self._untimed_s: dict[RemoteHost, float] = {}  #: when a train from there was last found to be untimed
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
            for task in _tasks(host, dscp, plan, self._clock()):
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
                _overtake(task, tasks, now_s)

    def _take_orders(self, tasks: list[_Task]) -> list[_Task]:
        """The tasks that there are with what was asked for, and without those of hosts that were shut."""
        with self._lock:
            shut, asked = list(self._shut), list(self._asked)
            self._shut.clear()
            self._asked.clear()
        for host in shut:
            self._round_trip_s.pop(host, None)
            self._warned.discard(host)
            self._untimed_s.pop(host, None)
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
        gap_s = plan.ip_bytes * 8 / plan.rate if plan.rate else 0.0
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
            if known_s is None:
                wait_s = FIRST_WAIT_S
            elif plan.kind is ProbeKind.SINGLE:
                wait_s = SINGLE_WAIT_S
            else:
                wait_s = min(ROUND_TRIPS * known_s + LEAST_WAIT_S, LONGEST_WAIT_S)
            task.ends_s = now_s + wait_s
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
                packet = self._checked(task, ProbePacket(task.sent_ns[index], *arrival[1:4]))
                if packet is not None:
                    task.doubtful |= not arrival.at_arrival
                    task.packets[index] = packet
                    task.missing -= 1
        except OSError as error:
            for task in mine:
                self._fail(task, error)

    def _checked(self, task: _Task, packet: ProbePacket) -> ProbePacket | None:
        """The packet as far as its times can be true; None where our own clock was set meanwhile."""
        both_ns = packet.received_ns - packet.sent_ns
        if not 0 < both_ns < (self._clock() - task.begun_s) * 1e9 + CLOCK_STEP_NS:
            self.counters["clock_set"] += 1
            return None
        if not 0 <= packet.returned_ns - packet.reached_ns <= both_ns:
            self.counters["odd_times"] += 1
            return packet._replace(returned_ns=packet.reached_ns)
        return packet

    def _fail(self, task: _Task, error: QosError | OSError) -> None:
        """Nothing more comes of this plan: it ends now, with what it has."""
        refused = isinstance(error, OSError) and error.errno == errno.ECONNREFUSED
        self.counters["refused" if refused else "failed"] += 1
        if not refused and task.host not in self._warned:
            self._warned.add(task.host)
            _LOG.warning("%s cannot be probed: %s", task.host, error)
        task.missing = 0

    def _is_untimed(self, task: _Task, answered: list[ProbePacket], now_s: float) -> bool:
        if _untimed(task.plan.kind, answered):
            self._untimed_s[task.host] = now_s
        return now_s - self._untimed_s.get(task.host, float("-inf")) < UNTIMED_S

    def _finish(self, task: _Task, now_s: float) -> None:
        answered = [each for each in task.packets if each is not None]
        self.counters["answered"] += len(answered)
        self.counters["lost"] += len(task.sent_ns) - len(answered)
        if answered:
            last = answered[-1]
            self._round_trip_s[task.host] = max(0.0, (last.received_ns - last.sent_ns) / 1e9)
        if task.plan.kind is not ProbeKind.SINGLE and task.doubtful and self._is_untimed(task, answered, now_s):
            self.counters["untimed"] += 1
            # In one moment of the reflector's clock: nothing is concluded from that.
            task.packets = [each and each._replace(reached_ns=0, returned_ns=0) for each in task.packets]
        outcome = ProbeOutcome(task.plan, task.dscp, task.begun_s, now_s, tuple(task.packets))
        with self._lock:
            if task in self._under_way.get(task.host, ()):
                self._under_way[task.host].remove(task)
                self._done.append((task.host, outcome))


def _tasks(host: RemoteHost, dscp: int, plan: ProbePlan, now_s: float) -> list[_Task]:
    """One for the plan; of spaced single probes one each, since the first need not wait for the others."""
    if plan.kind is not ProbeKind.SINGLE or not plan.rate:
        return [_Task(host, dscp, plan, now_s)]
    gap_s = plan.ip_bytes * 8 / plan.rate
    alone = ProbePlan(ProbeKind.SINGLE, 1, plan.ip_bytes)
    times_s = [now_s + number * gap_s for number in range(plan.count)]
    return [_Task(host, dscp, alone, at_s, next_s=at_s) for at_s in times_s]


def _overtake(over: _Task, tasks: list[_Task], now_s: float) -> None:
    """Single probes that left before one that was answered are not waited for much longer."""
    if over.plan.kind is not ProbeKind.SINGLE or over.packets[0] is None:
        return
    for task in tasks:
        earlier = task.probe_socket is over.probe_socket and task.begun_s < over.begun_s
        if earlier and task.plan.kind is ProbeKind.SINGLE and task.ends_s is not None:
            task.ends_s = min(task.ends_s, now_s + REORDER_S)


def _untimed(kind: ProbeKind, answered: list[ProbePacket]) -> bool:
    """Whether the times of a train tell when the reflector's process ran, and not when packets came.

    The usual packet counts, for a process that pauses now and then makes fast trains look slow.
    """
    if len(answered) < 2:
        return False
    gaps_ns = [after.reached_ns - before.reached_ns for before, after in pairwise(answered)]
    stays_ns = [each.returned_ns - each.reached_ns for each in answered[:-1]]
    if not any(stays_ns):
        # Of a paced train packets may leave in pairs.
        took_ns = median(gaps_ns) * len(gaps_ns) if kind is ProbeKind.BURST else sum(gaps_ns)
        return took_ns < LEAST_TIMED_NS
    idle_ns = min(gap_ns - stay_ns for stay_ns, gap_ns in zip(stays_ns, gaps_ns, strict=True))
    if idle_ns < 0:
        return False  # a packet came while it was busy with another, and it knows when
    return median(stays_ns) > BUSY_SHARE * median(gaps_ns) or idle_ns < AT_ONCE_SHARE * median(gaps_ns)
