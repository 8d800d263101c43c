"""Who uses the links: the bytes of all flows by unit and traffic type, the busiest pairs by themselves.

A flow counts for the unit of its owner. Each pair of a unit and a type is an account; `account_of_slot` has one per
slot, so that an edge sums the counters of the living flows in bulk. As in accounts.py, what that sum lacks is kept
here: counters of ended flows, and what a flow had sent under another type.

However many units there are, at most `places` pairs are told by name, all others of a type as OTHER. Who has a place
keeps it until somebody is twice as busy: series that come and go would be of no use. What is told never goes back, and
all of it together is what all flows have sent.
"""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qos2.model import TrafficType

Bytes = NDArray[np.int64]

#: The pairs without a place.
OTHER = "other"
#: A unit that nothing is known of: its process had ended, or is of another pid namespace.
UNKNOWN = "unknown"
#: In `account_of_slot`: no flow.
NO_ACCOUNT = 0xFFFF
#: What was sent counts half for the ranking after about 20 looks.
_FADING = 0.966
#: So much busier must be who takes the place of another.
_BUSIER = 2.0
_TYPES = len(TrafficType)


@dataclass(frozen=True, slots=True)
class Contracts:
    """Flows of one type that have a rate contract. Bytes per second at IP level.

    `achieved` is of those that were there at the last look too, between the two; `agreed` is of all.
    """

    flows: int = 0
    agreed_bytes_per_s: float = 0.0
    achieved_bytes_per_s: float = 0.0


class Usage:
    """Accounts of at most `units` units at a time over `slots` slots; flows of further units count as OTHER."""

    def __init__(self, slots: int, *, units: int = 2048, places: int = 16) -> None:
        #: The same object all the time.
        self.account_of_slot = array("H", [NO_ACCOUNT]) * (slots + 1)
        self.accounts = (units + 1) * _TYPES  #: accounts are below this
        self._names = [OTHER, *[""] * units]
        self._numbers: dict[str, int] = {OTHER: 0}
        self._living = [0] * (units + 1)
        self._idle: dict[int, None] = {}  # numbers of units without flows, longest idle first
        self._unused = 1
        self._places = places
        self._ended = array("q", [0]) * self.accounts
        self._last: Bytes = np.zeros(self.accounts, np.int64)
        self._recent = np.zeros(self.accounts)
        self._told: dict[int, int] = {}  # account -> bytes that it had sent before it got its place
        self._others = [0] * _TYPES
        #: How often a pair that sent something was left without a place, or lost it.
        self.truncated = 0
        self._left_out: set[int] = set()

    def begin(self, slot: int, unit: str, kind: TrafficType) -> None:
        """A flow of a process of `unit` began, its counters at 0."""
        number = self._number(unit or UNKNOWN)
        self._living[number] += 1
        self._idle.pop(number, None)
        self.account_of_slot[slot] = number * _TYPES + kind

    def change(self, slot: int, kind: TrafficType, sent_bytes: int) -> None:
        """A living flow has another type from now on; it has sent so much."""
        before = self.account_of_slot[slot]
        after = before - before % _TYPES + kind
        self._ended[before] += sent_bytes
        self._ended[after] -= sent_bytes
        self.account_of_slot[slot] = after

    def end(self, slot: int, sent_bytes: int) -> None:
        """A flow ended, having sent so much: that is missing in the sum of the living from now on."""
        account = self.account_of_slot[slot]
        self._ended[account] += sent_bytes
        self.account_of_slot[slot] = NO_ACCOUNT
        number = account // _TYPES
        self._living[number] -= 1
        if number and not self._living[number]:
            self._idle[number] = None

    def look(self, living: Bytes) -> None:
        """Take in what the living flows of each account have sent (`accounts` sums); about once a second."""
        totals = living + np.frombuffer(self._ended, np.int64)
        sent = np.maximum(totals - self._last, 0)
        self._recent *= _FADING
        self._recent += sent
        self._rank()
        self._last = totals
        unnamed = sent.copy()
        unnamed[list(self._told)] = 0
        for kind, number in enumerate(unnamed.reshape(-1, _TYPES).sum(axis=0)):
            self._others[kind] += int(number)
        left_out = {int(account) for account in np.flatnonzero(unnamed) if account >= _TYPES}
        self.truncated += len(left_out - self._left_out)
        self._left_out |= left_out
        self._left_out -= self._told.keys()

    def told(self) -> Mapping[tuple[str, TrafficType], int]:
        """Bytes by unit and type as of the last look: of those with a place since they have it, and OTHER."""
        named = {
            (self._names[account // _TYPES], TrafficType(account % _TYPES)): int(self._last[account]) - before
            for account, before in self._told.items()
        }
        return named | {(OTHER, kind): self._others[kind] for kind in TrafficType}

    def _rank(self) -> None:
        """Free places go to the busiest; then the busiest outside takes the place of the laziest, one per look."""
        outside = self._recent.copy()
        outside[:_TYPES] = 0  # units without an account of their own
        outside[list(self._told)] = 0
        while len(self._told) < self._places:
            best = int(outside.argmax())
            if outside[best] < 1:
                return
            self._told[best] = int(self._last[best])
            outside[best] = 0
        best = int(outside.argmax())
        worst = min(self._told, key=lambda account: self._recent[account])
        if outside[best] > _BUSIER * max(self._recent[worst], 1):
            del self._told[worst]
            self._told[best] = int(self._last[best])

    def _number(self, unit: str) -> int:
        """That of a unit; an idle one's for a new unit where all are in use."""
        number = self._numbers.get(unit)
        if number is not None:
            return number
        if self._unused < len(self._names):
            number, self._unused = self._unused, self._unused + 1
        elif self._idle:
            number = next(iter(self._idle))
            del self._idle[number]
            self._forget(number)
        else:
            return 0
        self._numbers[unit] = number
        self._names[number] = unit
        return number

    def _forget(self, number: int) -> None:
        """What a unit sent since the last look is not lost: it goes to the others."""
        del self._numbers[self._names[number]]
        for account in range(number * _TYPES, (number + 1) * _TYPES):
            self._others[account % _TYPES] += max(0, self._ended[account] - int(self._last[account]))
            self._ended[account] = 0
            self._last[account] = 0
            self._recent[account] = 0.0
            self._told.pop(account, None)
            self._left_out.discard(account)
