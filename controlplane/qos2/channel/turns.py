"""Which of the threads that wait for answers receives: the leader.

A lock of its own, which the leader holds by a `with` statement, is the lead: however the leader leaves, by an
exception of a signal too, it has let go of it. The others, its followers, sleep each on a lock of its own. Whoever
lets go of the lead wakes one of them; nobody else is to know, so where that is missed they look after themselves
every RECHECK_S.
"""

import threading
from typing import Any

from qos2.channel.pending import Pending
from qos2.errors import InvalidRequest

#: A leader that was interrupted twice, within microseconds, may leave without a word to its followers.
RECHECK_S = 1.0


class Turn:
    """A thread that waits for a call, or (None) the helper, which waits for none of its own."""

    __slots__ = ("lead", "pending", "thread", "wake")

    def __init__(self, pending: Pending[Any] | None) -> None:
        self.pending = pending
        self.thread = threading.get_ident()
        #: Held while this thread receives, or finds out whether it is to.
        self.lead = threading.Lock()
        self.wake = threading.Lock()
        self.wake.acquire()


class Turns:
    """Guarded by the lock of the channel, but for letting go of `lead`."""

    __slots__ = ("followers", "lead", "thread")

    def __init__(self) -> None:
        #: Where it is locked, `thread` receives.
        self.lead = threading.Lock()
        self.thread = 0
        self.followers: list[Turn] = []

    @property
    def is_led_here(self) -> bool:
        """Whether this thread receives: what asks has interrupted that, in the handler of a signal."""
        return self.thread == threading.get_ident() and self.lead.locked()

    def refuse_nested(self) -> None:
        """Raises InvalidRequest where this thread would wait for what it has interrupted itself."""
        if self.is_led_here:
            raise InvalidRequest("a signal handler interrupted a call of this handle", "use another qos2.Handle there")

    def take(self, turn: Turn) -> bool:
        """Lead (True), or follow: sleep on `turn.wake`. `turn.lead` is held."""
        if turn.pending is not None and turn.pending.done:
            self.follow(turn)  # another thread calls its callbacks
            return False
        if self.lead.locked() and self.lead is not turn.lead:
            self.follow(turn)
            # Once more: the leader lets go without the lock, and then looks for followers.
            if self.lead.locked():
                return False
        self.leave(turn)
        self.thread = turn.thread
        self.lead = turn.lead
        return True

    def follow(self, turn: Turn) -> None:
        """Be woken in turn. The last one comes first, the helper, which has time, last."""
        if turn not in self.followers:
            self.followers.insert(0 if turn.pending is None else len(self.followers), turn)

    def leave(self, turn: Turn) -> None:
        """This one is no follower any more."""
        if turn in self.followers:
            self.followers.remove(turn)

    def promote(self) -> None:
        """Wake a follower that has no reply yet, so that it takes the lead, unless somebody has it."""
        if self.lead.locked():
            return
        for index in range(len(self.followers) - 1, -1, -1):
            turn = self.followers[index]
            if turn.pending is None or not turn.pending.done:
                # No call, and thus no exception of a signal, between these two.
                del self.followers[index]
                turn.wake.release()
                return

    def wake(self, pending: Pending[Any] | None) -> None:
        """Wake all who follow for this call; None: the helper."""
        for index in range(len(self.followers) - 1, -1, -1):
            turn = self.followers[index]
            if turn.pending is pending:
                del self.followers[index]
                turn.wake.release()
