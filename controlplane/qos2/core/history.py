"""The last changes of many flows, each with its evidence: written for all that change at once, read one by one.

Part of core/congestion.py. Arrays, since objects would take some kilobytes per flow.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qos2.core.signals import Slots
from qos2.model import Cause, FlowState, Judgement

#: Changes remembered of each flow.
HISTORY = 10

STATES = tuple(FlowState)
#: 0 is none.
CAUSES: tuple[Cause | None, ...] = (None, *Cause)


class History:
    """Rings of HISTORY changes by slot; the first is that nothing was known. Pages that none touches take no memory."""

    def __init__(self, slots: int, evidence: tuple[str, ...]) -> None:
        """`evidence`: the names of the numbers that each change rests on."""
        self._count = np.zeros(slots, np.uint32)  # of all changes since the beginning
        self._state = np.zeros((HISTORY, slots), np.uint8)
        self._cause = np.zeros((HISTORY, slots), np.uint8)
        self._since_s = np.zeros((HISTORY, slots))
        self._evidence = {name: np.zeros((HISTORY, slots)) for name in evidence}

    def begin(self, slot: int, now_s: float) -> None:
        """A flow in this slot, of which nothing is known."""
        self._count[slot] = 1
        self._state[0, slot] = self._cause[0, slot] = 0
        self._since_s[0, slot] = now_s

    def add(
        self,
        slots: Slots,
        now_s: float,
        state: NDArray[np.uint8],
        cause: NDArray[np.uint8],
        evidence: Mapping[str, NDArray[Any]],
    ) -> None:
        """These flows have changed; arrays with one entry each."""
        at = self._count[slots] % HISTORY
        self._state[at, slots], self._cause[at, slots], self._since_s[at, slots] = state, cause, now_s
        for name, ring in self._evidence.items():
            ring[at, slots] = evidence[name]
        self._count[slots] += 1

    def of(self, slot: int, limits: Mapping[str, float]) -> tuple[Judgement, ...]:
        """Newest first; `limits` is what the evidence is held against, and part of it."""
        count = int(self._count[slot])
        numbers = range(max(0, count - HISTORY), count)
        return tuple(self._judgement(slot, number, limits) for number in reversed(numbers))

    def _judgement(self, slot: int, number: int, limits: Mapping[str, float]) -> Judgement:
        at = number % HISTORY
        evidence: dict[str, float] = {}
        if number:  # not of the first
            evidence = {name: float(ring[at, slot]) for name, ring in self._evidence.items()}
            evidence.update(limits)
        return Judgement(
            STATES[int(self._state[at, slot])],
            CAUSES[int(self._cause[at, slot])],
            float(self._since_s[at, slot]),
            evidence,
        )
