"""A call under way, as an application holds it."""

from collections.abc import Callable
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from qos2.channel.pending import Pending
from qos2.channel.timeouts import limit_s
from qos2.errors import InvalidRequest
from qos2.wire import calls
from qos2.wire.calls import Call

T = TypeVar("T")


class _Carrier(Protocol):
    """What an operation needs of its channel."""

    def run(self, call: Call[T]) -> T: ...

    def wait(self, pending: Pending[Any], until_s: float) -> None: ...

    def call_later(self, pending: Pending[Any], function: Callable[[], object]) -> None: ...


class Operation(Generic[T]):
    """A call under way, as Handle.begin returns it. Any thread may wait for it, as often as it likes."""

    __slots__ = ("_carrier", "_pending")

    def __init__(self, carrier: _Carrier, pending: Pending[T]) -> None:
        self._carrier = carrier
        self._pending = pending

    def __repr__(self) -> str:
        return f"<Operation {type(self._pending.call.request).__name__}{' done' if self.done else ''}>"

    @property
    def done(self) -> bool:
        """Whether its answer is there, or cannot come any more."""
        return self._pending.done

    def result(self, timeout: float | None = None) -> T:
        """Wait until it is done, for `timeout` seconds at most (None: as long as it takes), and return its value.

        Raises the error of the call, TimedOut where it is not done in time (it stays under way), InvalidRequest
        where a signal handler waits that interrupted a call of the same handle in this thread.
        """
        pending = self._pending
        if not pending.done:
            self._carrier.wait(pending, limit_s(timeout))
        return pending.call.outcome()

    def cancel(self) -> None:
        """Have the daemon give it up: it ends with Cancelled then, unless its answer was under way already.

        Raises InvalidRequest where it has ended, and for a call that does not wait at the daemon.
        """
        if self.done:
            raise InvalidRequest("the operation has ended", "there is nothing to cancel")
        self._carrier.run(calls.cancel(self._pending.call.request.id))

    def add_done_callback(self, function: "Callable[[Operation[T]], object]") -> None:
        """Have `function` called with this operation once it is done, at once if it is.

        It is called in whichever thread receives, before those that wait in result() go on. It may use the
        handle, and must not take long. An Exception in it goes to threading.excepthook and disturbs nothing.
        """
        self._carrier.call_later(self._pending, partial(function, self))
