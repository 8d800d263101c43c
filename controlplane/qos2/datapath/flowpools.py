"""Flows that are ready for sockets and hosts which each get their own: put in by the daemon, drawn by packets.

A pool is a ring. The daemon counts what it has put in, packets count what they have drawn; neither writes the other's
number.
"""

from collections.abc import Sequence, Set
from pathlib import Path

from qos2.datapath import abi
from qos2.datapath.maps import MappedArray
from qos2.errors import DatapathError, LimitExceeded
from qos2.model import FlowId


class FlowPools:
    """The maps `pools` and `drawn`. A pool is known by the flow that serves where it is empty."""

    def __init__(self, pins: Path, in_use: Set[int]) -> None:
        """`in_use`: indexes that rules of an earlier daemon draw from until the next ruleset."""
        self._pools = MappedArray(pins / "pools", abi.Pool, writable=True, reach=1)
        self._drawn = MappedArray(pins / "drawn", abi.Drawn, writable=False, reach=abi.POOLS)
        self._foreign = set(in_use)
        self._next = 0
        self._index: dict[FlowId, int] = {}
        self._begin: dict[FlowId, int] = {}  #: what had been drawn from the index before this pool

    def index(self, flow: FlowId) -> int:
        return self._index[flow]

    def __contains__(self, flow: object) -> bool:
        return flow in self._index

    def open(self, flow: FlowId, prepared: Sequence[FlowId]) -> None:
        """A new pool. Raises LimitExceeded where there are too many; none is open then."""
        index = self._unused()
        self._pools.extend(index + 1)
        begin = int(self._drawn.view["flows"][index])
        self._pools.view["prepared"][index] = begin  # nothing to draw
        self._index[flow], self._begin[flow] = index, begin
        try:
            self.refill(flow, prepared)
        except DatapathError:
            self.forget(flow)
            raise

    def refill(self, flow: FlowId, prepared: Sequence[FlowId]) -> None:
        """Further flows, behind the others. Raises DatapathError where they do not fit: none is taken."""
        index = self._index.get(flow)
        if index is None:
            raise DatapathError(f"flow {flow} has no pool")
        pool = self._pools.view[index]
        number = int(pool["prepared"])
        if number + len(prepared) - int(self._drawn.view["flows"][index]) > abi.POOL_FLOWS:
            raise DatapathError(f"a pool holds {abi.POOL_FLOWS:,} flows")
        for offset, each in enumerate(prepared):
            pool["flow_ids"][(number + offset) % abi.POOL_FLOWS] = each
        pool["prepared"] = number + len(prepared)

    def is_empty(self, flow: FlowId) -> bool:
        index = self._index[flow]
        return int(self._drawn.view["flows"][index]) >= int(self._pools.view["prepared"][index])

    def drawn(self) -> dict[FlowId, int]:
        """How many were drawn from each since it was opened."""
        counts = self._drawn.view["flows"]
        return {flow: int(counts[index]) - self._begin[flow] for flow, index in self._index.items()}

    def keep(self, flows: Set[FlowId]) -> None:
        """Closes all others: the ruleset in force draws from these alone."""
        for flow in self._index.keys() - flows:
            self.forget(flow)
        self._foreign.clear()

    def forget(self, flow: FlowId) -> None:
        del self._index[flow], self._begin[flow]

    def close(self) -> None:
        self._pools.close()
        self._drawn.close()

    def _unused(self) -> int:
        """The one that was closed longest ago: sockets may remember flows of it by its index."""
        used = self._foreign.union(self._index.values())
        for offset in range(abi.POOLS):
            index = (self._next + offset) % abi.POOLS
            if index not in used:
                self._next = index + 1
                return index
        raise LimitExceeded(
            f"over {abi.POOLS} rules have a bucket for each socket or host, those of the policy before among them"
        )
