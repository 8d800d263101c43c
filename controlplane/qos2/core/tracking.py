"""Who uses which remote host: processes that track it, and adaptive flows that send to it.

Each host has one measurement, begun for its first user and ended with its last: nothing is measured for
nobody. That a process tracks a host is remembered for a while after its last handle has closed, since
QOSStopTrackingClient may come later through another one. Virtual time: the caller says what time it is.
"""

from dataclasses import dataclass, field

from qos2.core.flows import Handle
from qos2.core.ports import Paths
from qos2.errors import LimitExceeded, NoSuchFlow
from qos2.model import FlowId, RemoteHost

#: Microsoft says "a limited time" and no number. Short beside a session, long beside a reconnect.
LINGER_S = 60.0

#: pid and uid, as in Handle.owns.
Process = tuple[int, int]


@dataclass(slots=True, eq=False)
class _Tracked:
    """A host that a process tracks: through these handles, or, without any, remembered after the last has closed."""

    handles: set[int] = field(default_factory=set)


class Tracking:
    """`per_uid` bounds the hosts that the processes of one user track, lingering ones among them."""

    __slots__ = ("_flows", "_lingering", "_paths", "_per_uid", "_processes", "_tracked_by_uid", "_users")

    def __init__(self, paths: Paths, per_uid: int) -> None:
        self._paths = paths
        self._per_uid = per_uid
        self._users: dict[RemoteHost, int] = {}
        self._flows: dict[RemoteHost, set[FlowId]] = {}
        self._processes: dict[Process, dict[RemoteHost, _Tracked]] = {}
        self._tracked_by_uid: dict[int, int] = {}
        self._lingering: dict[tuple[Process, RemoteHost], float] = {}  #: their ends, soonest first

    @property
    def hosts(self) -> int:
        """How many hosts are in use."""
        return len(self._users)

    def start(self, handle: Handle, host: RemoteHost) -> None:
        """The handle's process tracks this host; again by the same handle changes nothing. Raises LimitExceeded."""
        process = _process(handle)
        entry = self._processes.get(process, {}).get(host)
        if entry is None:
            uid = handle.peer.uid
            number = self._tracked_by_uid.get(uid, 0)
            if number >= self._per_uid:
                raise LimitExceeded(f"user {uid} tracks {number} hosts", "stop tracking some, or raise tracked_per_uid")
            self._tracked_by_uid[uid] = number + 1
            entry = self._processes.setdefault(process, {})[host] = _Tracked()
        self._lingering.pop((process, host), None)
        if not entry.handles:
            self._use(host)
        entry.handles.add(handle.number)

    def stop(self, handle: Handle, host: RemoteHost) -> None:
        """Take back this handle's start, else one of another handle of its process.

        Raises NoSuchFlow where the process does not track this host.
        """
        process = _process(handle)
        entry = self._processes.get(process, {}).get(host)
        if entry is None:
            raise NoSuchFlow(f"{host} is not tracked", "it was never started, or stopped already")
        if entry.handles:
            entry.handles.discard(handle.number if handle.number in entry.handles else min(entry.handles))
            if not entry.handles:
                self._unuse(host)
        if not entry.handles:
            self._forget(process, host)

    def close(self, handle: Handle, now_s: float) -> None:
        """The handle has closed: what only it tracked is not measured any more, and may be stopped for a while."""
        process = _process(handle)
        for host, entry in self._processes.get(process, {}).items():
            if handle.number in entry.handles:
                entry.handles.remove(handle.number)
                if not entry.handles:
                    self._unuse(host)
                    self._lingering[process, host] = now_s + LINGER_S

    def expire(self, now_s: float) -> None:
        """Forget what has lingered for its time."""
        while self._lingering:
            (process, host), until_s = next(iter(self._lingering.items()))
            if until_s > now_s:
                return
            self._forget(process, host)

    def join(self, flow: FlowId, host: RemoteHost) -> bool:
        """An adaptive flow uses this host, until it leaves. Whether it is new here; again changes nothing."""
        flows = self._flows.setdefault(host, set())
        if flow in flows:
            return False
        flows.add(flow)
        self._use(host)
        return True

    def leave(self, flow: FlowId, host: RemoteHost) -> None:
        """A flow that had joined has ended."""
        flows = self._flows[host]
        flows.remove(flow)
        if not flows:
            del self._flows[host]
        self._unuse(host)

    def has(self, flow: FlowId, host: RemoteHost) -> bool:
        """Whether the flow has joined."""
        return flow in self._flows.get(host, ())

    def flows(self, host: RemoteHost) -> tuple[FlowId, ...]:
        """The flows that have joined."""
        return tuple(self._flows.get(host, ()))

    def _forget(self, process: Process, host: RemoteHost) -> None:
        self._lingering.pop((process, host), None)
        hosts = self._processes[process]
        del hosts[host]
        if not hosts:
            del self._processes[process]
        uid = process[1]
        self._tracked_by_uid[uid] -= 1
        if not self._tracked_by_uid[uid]:
            del self._tracked_by_uid[uid]

    def _use(self, host: RemoteHost) -> None:
        users = self._users.get(host, 0)
        self._users[host] = users + 1
        if users == 0:
            self._paths.begin(host)

    def _unuse(self, host: RemoteHost) -> None:
        self._users[host] -= 1
        if not self._users[host]:
            del self._users[host]
            self._paths.end(host)


def _process(handle: Handle) -> Process:
    return handle.peer.pid, handle.peer.uid
