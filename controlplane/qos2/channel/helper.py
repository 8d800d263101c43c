"""The thread that receives for calls that were begun and that no thread waits for."""

import threading
from collections.abc import Callable

from qos2.errors import LimitExceeded


class Helper:
    """One at most at a time."""

    __slots__ = ("_thread", "active")

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self.active = False

    def ensure(self, receive: Callable[[], None]) -> None:
        """Have it run `receive`, which is to end `active` itself, under the lock of the channel, when it ends.

        Raises LimitExceeded where there can be no more threads.
        """
        if self.active:
            return
        # A daemon: what still waits must not keep the application from ending.
        thread = threading.Thread(target=receive, name="qos2-receiver", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise LimitExceeded("no thread can be started to receive the answer", "call without begin") from error
        self._thread = thread
        self.active = True

    def join(self, timeout_s: float) -> None:
        """Wait until it has ended; not for itself."""
        if self._thread is not None and self._thread.ident != threading.get_ident():
            self._thread.join(timeout_s)
