"""Whether it pays to wait awake: for the next request in the daemon, for the reply in a client (ADR 0013).

Pure counting; who waits, and for how long, is said by whoever does.
"""

#: How long a wait is awake, in seconds: longer than a request takes, shorter than to fall asleep and be woken.
AWAKE_S = 60e-6
#: The longest pause after waits in vain, in occasions.
_MOST_SKIPPED = 1024


class Vigil:
    """After a wait in vain some occasions are passed over: twice as many each time, until one has paid."""

    __slots__ = ("_in_vain", "_skip")

    def __init__(self) -> None:
        self._in_vain = 0
        self._skip = 0

    def is_due(self) -> bool:
        """To be asked once at each occasion."""
        if self._skip:
            self._skip -= 1
            return False
        return True

    def paid(self) -> None:
        """What was waited for has come."""
        self._in_vain = 0

    def was_in_vain(self) -> None:
        """It has not come in time."""
        self._in_vain += 1
        self._skip = min(1 << self._in_vain, _MOST_SKIPPED)
