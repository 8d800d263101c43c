"""OVERLAPPED: a call that goes on after it returned, to wait for, to poll, or to cancel.

The caller makes it and passes it to QOSSetFlow, QOSQueryFlow or QOSNotifyFlow; once that call has ended
it serves for another one. Its event is an eventfd(2), for select, poll and event loops; it is made when
it is first asked for, so that a program which only waits has no descriptor per call.
"""

import contextlib
import os
import threading
from typing import Any

from qos2.channel import Channel, Operation
from qos2.errors import InvalidRequest, QosError
from qos2.win32.errors import ERROR_INVALID_PARAMETER, ERROR_IO_INCOMPLETE, ERROR_SUCCESS, WinError, win_error
from qos2.win32.requests import Request

#: `Internal` of an OVERLAPPED whose call has not ended (ntstatus.h).
STATUS_PENDING = 0x103


class _Attempt:
    """One call under way, or its outcome."""

    __slots__ = ("_request", "channel", "done", "operation", "size", "status")

    def __init__(self, channel: Channel, request: Request[Any, Any]) -> None:
        self._request = request
        self.channel = channel
        self.operation: Operation[Any] = channel.begin(request.call)
        self.size = 0
        self.status = ERROR_SUCCESS
        self.done = False

    def outcome(self) -> tuple[Any, int]:
        """Value and size of an operation that is done; raises WinError, a new one each time."""
        return self._request.outcome(self.operation.result)

    def settle(self) -> None:
        """Take the outcome over: all of it is there before `done` says so."""
        try:
            _, self.size = self.outcome()
        except WinError as error:
            self.status = error.winerror
        self.done = True


class OVERLAPPED:
    """One call at a time that completes later.

    Of calls that are refused before they are under way (WinError at once) it knows nothing. Thread-safe;
    not for use on both sides of a fork(). It lives until its call has ended, also where the program forgets it.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._attempt: _Attempt | None = None
        self._event = -1

    def __repr__(self) -> str:
        return f"<OVERLAPPED Internal={self.Internal:#x} InternalHigh={self.InternalHigh}>"

    def __del__(self) -> None:
        self.close()

    @property
    def Internal(self) -> int:
        """STATUS_PENDING while its call is under way; then 0 or the Win32 number of the error."""
        attempt = self._attempt
        if attempt is None:
            return ERROR_SUCCESS
        return attempt.status if attempt.done else STATUS_PENDING

    @property
    def InternalHigh(self) -> int:
        """Bytes of the result, as the C interface counts them; 0 where there is none."""
        attempt = self._attempt
        return attempt.size if attempt is not None and attempt.done else 0

    @property
    def done(self) -> bool:
        """Whether a call was made with it, and has ended."""
        attempt = self._attempt
        return attempt is not None and attempt.done

    def fileno(self) -> int:
        """The event: an eventfd, readable from the end of one call to the beginning of the next."""
        with self._lock:
            if self._event < 0:
                self._event = os.eventfd(1 if self.done else 0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            return self._event

    def close(self) -> None:
        """Give up the event's descriptor, which nothing may poll any more; fileno() makes another one."""
        with self._lock:
            event, self._event = self._event, -1
            if event >= 0:
                os.close(event)

    def wait(self, timeout: float | None = None) -> Any:
        """The result of its call, waited for; raises the call's WinError.

        ERROR_TIMEOUT where it has not ended after `timeout` seconds: it is still under way then.
        ERROR_INVALID_PARAMETER where no call was made with it.
        """
        attempt = self._begun()
        if not attempt.done:
            try:
                attempt.operation.result(timeout)
            except QosError as error:
                if not attempt.operation.done:
                    raise win_error(error) from error
            self._complete(attempt)
        return attempt.outcome()[0]

    def result(self) -> Any:
        """As wait(), but ERROR_IO_INCOMPLETE where its call has not ended yet."""
        attempt = self._begun()
        if not attempt.done:
            raise WinError(ERROR_IO_INCOMPLETE, "the call has not ended", "wait for it, or poll its event")
        return attempt.outcome()[0]

    def begin(self, channel: Channel, request: Request[Any, Any]) -> None:
        """Have `request` under way. InvalidRequest where another one is."""
        with self._lock:
            if self._attempt is not None and not self._attempt.done:
                raise InvalidRequest("this OVERLAPPED has a call under way", "one OVERLAPPED for each call at a time")
            self._attempt = attempt = _Attempt(channel, request)
            if self._event >= 0:
                with contextlib.suppress(BlockingIOError):  # nothing to drain
                    os.eventfd_read(self._event)
        attempt.operation.add_done_callback(lambda _: self._complete(attempt))

    def cancel(self, channel: Channel) -> None:
        """Ask for the end of its call, which then ends with ERROR_OPERATION_ABORTED.

        InvalidRequest where nothing of this channel is under way, or what is does not wait at the daemon.
        """
        attempt = self._attempt
        if attempt is None or attempt.done or attempt.channel is not channel:
            raise InvalidRequest("nothing is pending with this OVERLAPPED", "the call has ended, or was never made")
        attempt.operation.cancel()

    def _begun(self) -> _Attempt:
        if self._attempt is None:
            raise WinError(ERROR_INVALID_PARAMETER, "no call was made with this OVERLAPPED", "pass it to a call first")
        return self._attempt

    def _complete(self, attempt: _Attempt) -> None:
        """Whoever sees the end first, the receiving or a waiting thread, settles it and sets the event."""
        with self._lock:
            if attempt.done:
                return
            attempt.settle()
            if self._event >= 0:
                os.eventfd_write(self._event, 1)
