"""The calls of a channel that have no answer yet, as a table. Guarded by the lock of the channel."""

import math
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from qos2.wire.calls import Call, Reply
from qos2.wire.connection import MAX_AHEAD

T = TypeVar("T")


class Pending(Generic[T]):
    """A call that was sent: done once its reply is there, and settled once its callbacks were called, too."""

    __slots__ = ("call", "callbacks", "deadline_s", "settled")

    def __init__(self, call: Call[T], deadline_s: float) -> None:
        self.call = call
        #: By the monotonic clock: without an answer then, the daemon counts as lost.
        self.deadline_s = deadline_s
        self.callbacks: list[Callable[[], object]] = []
        self.settled = call.reply is not None

    @property
    def done(self) -> bool:
        return self.call.reply is not None

    def call_back(self) -> None:
        """Call the next of the callbacks, and report its Exception: who happens to receive must not get it."""
        function = self.callbacks[0]
        del self.callbacks[0]
        try:
            function()
        except Exception as error:  # a stranger's code, in a thread that has other things to do
            report(error)


class PendingCalls:
    """By number. Of those that were begun nobody may be waiting for the answer."""

    __slots__ = ("_abandoned", "_begun", "_ordinary", "by_number")

    def __init__(self) -> None:
        self.by_number: dict[int, Pending[Any]] = {}
        #: Those that do not wait at the daemon, in the order of time, since all of these have equally long.
        self._ordinary: dict[int, Pending[Any]] = {}
        self._begun: set[int] = set()
        #: Given up, but what they begin is to be ended. It may be that they were never sent.
        self._abandoned: dict[int, Call[Any]] = {}

    @property
    def any_begun(self) -> bool:
        return bool(self._begun)

    @property
    def first_deadline_s(self) -> float:
        """When the first of them is overdue; infinity where none can be."""
        first = next(iter(self._ordinary.values()), None)
        return math.inf if first is None else first.deadline_s

    @property
    def too_far_ahead(self) -> Pending[Any] | None:
        """The call whose answer is to come before there is another one, if there are so many."""
        return next(iter(self._ordinary.values())) if len(self._ordinary) >= MAX_AHEAD else None

    def add(self, pending: Pending[Any], *, begun: bool) -> None:
        number = pending.call.request.id
        self.by_number[number] = pending
        if not pending.call.waits:
            self._ordinary[number] = pending
        if begun:
            self._begun.add(number)

    def remove(self, number: int) -> None:
        """Interrupted at any point it can be done again."""
        self._ordinary.pop(number, None)
        self._begun.discard(number)
        self.by_number.pop(number, None)

    def abandon(self, call: Call[Any]) -> None:
        """Nobody waits for the answer to a call any more."""
        if call.begins:
            self._abandoned[call.request.id] = call
        self.remove(call.request.id)

    def late(self, reply: Reply) -> Call[None] | None:
        """An answer that nobody waits for: what is to be asked for because of it."""
        call = self._abandoned.pop(reply.id, None)
        if call is None:
            return None
        call.reply = reply
        return call.farewell()

    def clear(self) -> None:
        """Interrupted at any point it can be done again."""
        self._ordinary.clear()
        self._begun.clear()
        self.by_number.clear()


def report(error: BaseException) -> None:
    """What Python does with an exception that ends a thread; this thread goes on."""
    about = (type(error), error, error.__traceback__, threading.current_thread())
    threading.excepthook(threading.ExceptHookArgs(about))
