"""Minor numbers: by which devices shaped by htb know the class of a delayed flow."""

from array import array

from qos2.datapath import shapers
from qos2.errors import LimitExceeded


class Minors:
    """Minor numbers of delayed flows: the next unused one, or one that was given back long ago."""

    def __init__(self, used: set[int]) -> None:
        self._used = used
        self._next = max(used, default=0) + 1
        self._freed = array("H")

    def take(self) -> int:
        while self._next < 0xFFFF:
            minor, self._next = self._next, self._next + 1
            if minor not in shapers.RESERVED_MINORS and minor not in self._used:
                return minor
        if not self._freed:
            raise LimitExceeded(
                "65,000 flows have a delaying rate contract", "use_non_conformant_markings needs no queue"
            )
        return self._freed.pop(0)

    def give(self, minor: int) -> None:
        self._freed.append(minor)
