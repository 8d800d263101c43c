"""Ends flows in the datapath: at once, or, where it refuses and nobody is left to be told, later.

When a handle closes, its flows must end whatever the kernel says. What it refuses is kept here and
tried again by each tick, and until then the slot stays taken: a slot that the datapath still serves
must never get a new flow. Flows of an earlier daemon that was killed (orphans) end here as well.
"""

from collections.abc import Iterable, Mapping

from qos2.core.accounts import Accounts
from qos2.core.flows import NO_TYPE
from qos2.core.ports import Datapath
from qos2.core.slots import SlotPool
from qos2.errors import DatapathError
from qos2.model import Destination, FlowId, SocketFacts, TrafficType, slot_of


class Endings:
    """What is to be taken out of the datapath. `refusals` counts what it refused without a caller to tell."""

    __slots__ = (
        "_accounts",
        "_datapath",
        "_destinations",
        "_flows",
        "_grace_until_s",
        "_pool",
        "_programs",
        "_taken_over",
        "_types",
        "refusals",
    )

    def __init__(self, datapath: Datapath, pool: SlotPool, accounts: Accounts, type_of_slot: bytearray) -> None:
        self._datapath = datapath
        self._pool = pool
        self._accounts = accounts
        self._types = type_of_slot
        self._flows: dict[FlowId, None] = {}
        self._programs: dict[FlowId, None] = {}
        self._destinations: dict[int, set[Destination]] = {}
        self._taken_over: tuple[FlowId, ...] = ()
        self._grace_until_s = 0.0
        self.refusals = 0

    def take_over(self, orphans: Iterable[FlowId], grace_until_s: float) -> None:
        """Flows of an earlier daemon stay in force until then."""
        self._taken_over, self._grace_until_s = tuple(orphans), grace_until_s

    @property
    def unended(self) -> int:
        """Flows without an owner that the datapath still serves."""
        return len(self._taken_over) + len(self._flows)

    def end(self, flow: FlowId) -> None:
        """End a flow, account for what it sent and free its slot. Raises DatapathError: nothing has changed."""
        slot = slot_of(flow)
        kind = self._types[slot]
        if kind == NO_TYPE:  # never answered for: an orphan, or a flow whose first socket was refused
            self._datapath.end(flow)
        else:
            # Read before the end: what comes in between is lost to the totals, but they never go back.
            stats = self._datapath.stats(flow)
            self._datapath.end(flow)
            self._accounts.end(TrafficType(kind), stats)
            self._accounts.usage.end(slot, stats.bytes)
            self._types[slot] = NO_TYPE
        self._pool.give_back(flow)

    def end_anyhow(self, flow: FlowId) -> None:
        """End a flow now or with one of the next ticks."""
        try:
            self.end(flow)
        except DatapathError:
            self.refusals += 1
            self._flows[flow] = None

    def release(self, flow: FlowId) -> None:
        """Let go of the program whose flow has ended."""
        try:
            self._datapath.release_program(flow)
        except DatapathError:
            self.refusals += 1
            self._programs[flow] = None

    def forget(self, cookie: int, destinations: Iterable[Destination]) -> None:
        """A flow has ended without this socket at hand: take its destinations out of the datapath's table.

        The one that stands for the whole socket is no entry there: it lies with the socket itself, where
        the id of an ended flow does nothing.
        """
        listed = tuple([each for each in destinations if not each.is_any])
        if not listed:
            return
        try:
            self._datapath.unbind(cookie, listed)
        except DatapathError:
            self.refusals += 1
            self._destinations.setdefault(cookie, set()).update(listed)

    def detach(
        self, fd: int, facts: SocketFacts, rest: Mapping[Destination, FlowId], destinations: Iterable[Destination]
    ) -> None:
        """As `forget`, with the socket at hand: it keeps `rest`, and its own storage is cleared too."""
        try:
            self._datapath.bind(fd, facts, rest)
        except DatapathError:
            self.refusals += 1
            self.forget(facts.cookie, destinations)
        else:
            self.rebound(facts.cookie)

    def rebound(self, cookie: int) -> None:
        """The datapath has just been told everything about this socket: nothing old is left to forget."""
        if self._destinations:
            self._destinations.pop(cookie, None)

    def settle(self, now_s: float) -> None:
        """Try again what was refused, and end the orphans whose time is over."""
        flows, self._flows = self._flows, {}
        for flow in flows:
            self.end_anyhow(flow)
        programs, self._programs = self._programs, {}
        for flow in programs:
            self.release(flow)
        sockets, self._destinations = self._destinations, {}
        for cookie, destinations in sockets.items():
            self.forget(cookie, destinations)
        if now_s >= self._grace_until_s:
            orphans, self._taken_over = self._taken_over, ()
            for flow in orphans:
                self.end_anyhow(flow)
