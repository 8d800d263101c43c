"""The pool of a rule that gives each socket, or each remote host, a contract of its own.

Its flows are in the datapath before anybody needs them; packets draw them in the order in which they were put in.
Pure bookkeeping: policyflows.py takes slots and tells the datapath.
"""

from collections import deque
from collections.abc import Iterable

from qos2.core.accounts import Sum
from qos2.core.ports import POOL_CAPACITY
from qos2.model import FlowId, FlowStats

#: So many flows are ready where there is room. They are looked after ten times a second.
READY = 64


class Pool:
    """Flows that are ready, `wanted` of them at first, and those in use, with when they were seen to be drawn."""

    __slots__ = ("_drawn", "_wanted", "ended", "ready", "used")

    def __init__(self, wanted: int) -> None:
        self.ready: deque[FlowId] = deque()
        self.used: dict[FlowId, float] = {}
        self.ended = Sum()  #: what flows that were in use have sent
        self._drawn = 0
        self._wanted = wanted

    @property
    def missing(self) -> int:
        """How many flows are to be made ready."""
        return max(0, self._wanted - len(self.ready))

    def put_in(self, flows: Iterable[FlowId]) -> None:
        self.ready.extend(flows)

    def follow(self, drawn: int, now_s: float) -> list[FlowId]:
        """`drawn` flows were drawn since the pool began; returns those that were not known to be.

        Twice as many are kept ready from now on where a quarter of them was drawn between two looks.
        """
        new = [self.ready.popleft() for _ in range(min(drawn - self._drawn, len(self.ready)))]
        self._drawn += len(new)
        self.used.update(dict.fromkeys(new, now_s))
        if len(new) * 4 >= self._wanted:
            self._wanted = min(POOL_CAPACITY, self._wanted * 2)
        return new

    def end(self, flow: FlowId, stats: FlowStats) -> None:
        """A flow in use has ended with these counters."""
        del self.used[flow]
        self.ended.add(stats)

    def flows(self) -> tuple[FlowId, ...]:
        return (*self.used, *self.ready)
