"""The free slots of the datapath's maps, and the ids that flows in them get.

A slot is an index into the maps, an id is a generation over a slot. A socket may still carry the id of
a flow that has ended, so an id must come back as late as possible: slots never used go first, then the
freed ones, oldest first, each time with the next generation. With 65,536 slots an id comes back after
268 million flows.
"""

from array import array
from collections.abc import Callable, Collection

from qos2.errors import LimitExceeded
from qos2.model import SLOT_BITS, FlowId, flow_id, slot_of


class SlotPool:
    """Slots 1 .. `size`, without the `occupied` ones until these are given back.

    `last_generation` tells the generation that a slot had before this pool began (0: none).
    """

    __slots__ = ("_count", "_freed", "_head", "_last_generation", "_next", "_occupied", "_size")

    def __init__(self, size: int, occupied: Collection[int], last_generation: Callable[[int], int]) -> None:
        self._size = size
        self._occupied = frozenset(occupied)
        self._last_generation = last_generation
        self._next = 1
        # A ring of ended ids: 4 bytes a slot, where a deque of int objects would take 40.
        self._freed = array("I", bytes(4 * size))
        self._head = 0
        self._count = 0

    def take(self) -> FlowId:
        """The id of a new flow. Raises LimitExceeded when every slot is in use."""
        while self._next <= self._size:
            slot = self._next
            if slot not in self._occupied:
                flow = flow_id(slot, self._last_generation(slot) + 1)
                self._next += 1
                return flow
            self._next += 1
        if self._count == 0:
            raise LimitExceeded(
                f"all {self._size} flows are in use", "raise max_flows in the daemon's configuration, or end flows"
            )
        ended = self._freed[self._head]
        self._head = (self._head + 1) % self._size
        self._count -= 1
        return flow_id(slot_of(FlowId(ended)), (ended >> SLOT_BITS) + 1)

    def give_back(self, flow: FlowId) -> None:
        """The flow has ended (or an occupied slot is free now): its slot waits behind all other free ones."""
        self._freed[(self._head + self._count) % self._size] = flow
        self._count += 1
