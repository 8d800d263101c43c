"""The channel itself: calls, receiving in turns, and the end of it all."""

import contextlib
import math
import threading
import time
from collections.abc import Callable
from threading import Lock, get_ident
from typing import Any, TypeVar

from qos2.channel.forks import close_in_children
from qos2.channel.helper import Helper
from qos2.channel.link import LONGEST_WAIT_S, Link
from qos2.channel.operation import Operation
from qos2.channel.pending import Pending, PendingCalls, report
from qos2.channel.timeouts import check_time, limit_s, patience_s
from qos2.channel.turns import RECHECK_S, Turn, Turns
from qos2.channel.verdicts import CLOSED, CLOSING, GONE, INHERITED, SILENT
from qos2.errors import InvalidRequest, ProtocolError, QosError, TimedOut
from qos2.wire import calls, protocol
from qos2.wire.calls import Call, Reply
from qos2.wire.connection import Connection

T = TypeVar("T")

#: So much later than the leader a follower calls the daemon silent: both may have been stopped for a while.
_GRACE_S = 0.5
#: How long close() waits until other threads of this process have let go of the connection.
_PARTING_S = 1.0


class Channel:
    """A connection to the daemon at `path`; raises OSError where it cannot be made, BlockingIOError: not in time.

    Its calls raise the error of the call; ServiceLost once the daemon is gone, or has not answered a call that
    does not wait there for `timeout` seconds (None: for ever); InvalidHandle once it is closed, and in a forked
    child; Cancelled where it is closed meanwhile.
    """

    def __init__(self, path: str, timeout: float | None) -> None:
        self._timeout_s = patience_s(timeout)
        # Reentrant for destructors, which may run within any allocation. Never held while anything waits.
        self._lock = threading.RLock()
        self._connection = Connection()
        self._turns = Turns()
        #: But for the one call of a lone thread.
        self._pending = PendingCalls()
        #: Done, but their callbacks are to be called yet.
        self._settling: list[Pending[Any]] = []
        self._helper = Helper()
        #: How many threads wait for room to send.
        self._writers = 0
        #: Why calls are refused, and why the connection ended, for those that were under way.
        self._refusal: protocol.Failure | None = None
        self._end: protocol.Failure | None = None
        self._parted = threading.Event()
        self._link = Link()
        close_in_children(self)
        try:
            self._link.connect_until(path, time.monotonic() + self._timeout_s)
        except BaseException:
            self.abort()
            raise

    @property
    def closed(self) -> bool:
        """Closed, being closed, lost, or a parent's."""
        return self._refusal is not None

    def run(self, call: Call[T], fd: int = -1, timeout: float | None = None) -> T:
        """Send a call, with a descriptor or without, and wait for its value.

        `timeout` is for a call that waits at the daemon: after so many seconds it is cancelled there, and
        TimedOut is raised here.
        """
        try:
            if call.waits or not self._ask_alone(call, fd):
                until_s = limit_s(timeout)
                self.wait(self._send(call, fd), until_s)
            return call.outcome()
        except BaseException:
            self._abandon(call)
            raise

    def begin(self, call: Call[T], fd: int = -1) -> Operation[T]:
        """Send a call and do not wait. Raises LimitExceeded where no thread can be started to receive its answer."""
        try:
            return Operation(self, self._send(call, fd, begun=True))
        except BaseException:
            self._abandon(call)
            raise

    def wait(self, pending: Pending[Any], until_s: float) -> None:
        """Return when a call is done; raises TimedOut at `until_s` of the monotonic clock."""
        turn = Turn(pending)
        with self._lock:
            self._turns.refuse_nested()
        try:
            while not pending.settled:
                self._take_turn(turn, until_s)
        except TimedOut:
            if not pending.done:
                raise
        finally:
            self._hand_over(turn)

    def call_later(self, pending: Pending[Any], function: Callable[[], object]) -> None:
        """Have `function` called when the call is done, at once if it is."""
        with self._lock:
            pending.callbacks.append(function)
            if pending.settled:
                self._settling.append(pending)
        self._settle()

    def close(self) -> None:
        """End all flows and the connection; returns when that is done, or after `timeout` without an answer.

        What is under way ends with Cancelled. No thread and no descriptor of this channel is left. In a forked
        child, and in a signal handler that interrupted a call of this channel, nothing is waited for.
        """
        with self._lock:
            is_first = self._refusal is None
            self._refusal = self._refusal or CLOSED
            is_nested = self._turns.is_led_here
        if is_nested:
            self._finish(CLOSING)
            return
        try:
            if is_first:
                # Whatever the answer, or if there is none: the end of the connection says the same.
                with contextlib.suppress(QosError):
                    self.wait(self._send(calls.close_handle(), closing=True), math.inf)
            else:
                self._parted.wait(min(self._timeout_s, LONGEST_WAIT_S))
        finally:
            self.abort()
            self._parted.wait(_PARTING_S)
            self._helper.join(_PARTING_S)

    def abort(self) -> None:
        """End the connection without a word."""
        with self._lock:
            self._refusal = self._refusal or CLOSED
            self._finish(CLOSING)
        self._settle()

    def _ask_alone(self, call: Call[Any], fd: int) -> bool:
        """Have a call answered where nothing else is under way. Else False, and nothing was sent."""
        turns, link = self._turns, self._link
        lead = Lock()
        try:
            with lead:
                with self._lock:
                    if turns.lead.locked() or self._pending.by_number or link.arrived or self._refusal:
                        return False
                    turns.thread = get_ident()
                    turns.lead = lead
                    if not self._put(call, fd):
                        return False
                if link.receive_soon():
                    try:
                        reply = self._connection.receive(link.arrived[0])
                    except ProtocolError:
                        pass  # seen again, and dealt with, by who leads next
                    else:
                        if reply.id == call.request.id:
                            call.reply = reply
                            link.arrived.clear()
                            return True
                # Another's reply, the end of the connection, or a daemon that takes its time.
                pending = self._register(call, begun=False)
        finally:
            if turns.followers or self._end is not None:
                self._hand_over()
        self.wait(pending, math.inf)
        return True

    def _send(self, call: Call[T], fd: int = -1, *, begun: bool = False, closing: bool = False) -> Pending[T]:
        """Hand a call to the kernel, once the daemon and the kernel have room."""
        until_s = 0.0
        while True:
            with self._lock:
                self._turns.refuse_nested()
                if self._refusal is not None and not (closing and self._end is None):
                    raise protocol.error_of(self._refusal)
                first = None if call.waits else self._pending.too_far_ahead
                if first is None:
                    if self._put(call, fd):
                        pending = self._register(call, begun)
                        if begun:
                            self._helper.ensure(self._help)
                        return pending
                    self._writers += 1
            if first is not None:
                self.wait(first, math.inf)
                continue
            try:
                until_s = until_s or time.monotonic() + self._timeout_s
                left_s = until_s - time.monotonic()
                if left_s > 0:
                    self._link.wait_for_room(left_s)
                else:
                    self._finish(SILENT)
            finally:
                with self._lock:
                    self._writers -= 1
                self._hand_over()

    def _put(self, call: Call[Any], fd: int = -1) -> bool:
        """Hand a call to the kernel; False where it has no room. Raises InvalidRequest for what cannot be sent."""
        try:
            if self._link.send(self._connection.send(call), fd):
                return True
        except InvalidRequest:
            self._connection.withdraw(call)
            raise
        self._connection.withdraw(call)
        return False

    def _post(self, call: Call[None] | None) -> None:
        """Send a call whose answer is nobody's."""
        if call is not None and self._end is None:
            # Without room the daemon is far behind; what this would end ends with the handle.
            with contextlib.suppress(QosError):
                self._put(call)

    def _register(self, call: Call[T], begun: bool) -> Pending[T]:
        """A call that was sent is pending from now on."""
        with self._lock:
            call.reply = call.reply or self._end
            pending = Pending(call, math.inf if call.waits else time.monotonic() + self._timeout_s)
            if not pending.done:
                self._pending.add(pending, begun=begun)
            return pending

    def _abandon(self, call: Call[Any]) -> None:
        """Nobody wants the value of a call any more, whether it was sent or not, and whether it is answered or not."""
        with self._lock:
            if call.request.id != 0:
                self._post(call.farewell())
                if call.reply is None:
                    self._pending.abandon(call)
                    self._release_helper()

    # Receiving

    def _take_turn(self, turn: Turn, until_s: float) -> None:
        """Call callbacks, receive one packet for all, or sleep until there is something to do."""
        if self._settling:
            self._hand_over()
            return
        pending = turn.pending
        with turn.lead:
            with self._lock:
                if not self._waits(pending):
                    return
                leads = self._turns.take(turn)
            if leads:
                self._receive(until_s)
                return
        overdue_s = math.inf if pending is None or pending.done else pending.deadline_s + _GRACE_S
        left_s = min(until_s, overdue_s) - time.monotonic()
        if turn.wake.acquire(timeout=min(max(left_s, 0.0), RECHECK_S)):
            return
        if time.monotonic() >= overdue_s:
            self._finish(SILENT)
        else:
            check_time(until_s)

    def _waits(self, pending: Pending[Any] | None) -> bool:
        """Whether there is something to wait for; for the helper, while something was begun."""
        return self._pending.any_begun and self._end is None if pending is None else not pending.settled

    def _receive(self, until_s: float) -> None:
        """As the leader: wait for one packet until then, and deliver it."""
        with self._lock:
            deadline_s = self._pending.first_deadline_s
        if self._link.arrived:
            self._deliver()  # the last leader was interrupted
        elif self._link.receive(min(until_s, deadline_s) - time.monotonic()):
            self._deliver()
        elif time.monotonic() >= deadline_s:
            self._finish(SILENT)
        else:
            check_time(until_s)

    def _deliver(self) -> None:
        """As the leader: the packet to whom it answers. Interrupted at any point it can be done again."""
        packet = self._link.arrived[0]
        with self._lock:
            try:
                reply = self._connection.receive(packet)
            except ProtocolError as error:
                self._finish(protocol.failure(0, error) if packet else GONE)
            else:
                pending = self._pending.by_number.get(reply.id)
                if pending is not None:
                    self._answer(pending, reply)
                    self._pending.remove(reply.id)
                    self._release_helper()
                elif reply.id == 0 and isinstance(reply, protocol.Failure):
                    self._finish(reply)
                else:
                    self._post(self._pending.late(reply))
            self._link.arrived.clear()

    def _answer(self, pending: Pending[Any], reply: Reply) -> None:
        pending.call.reply = pending.call.reply or reply
        if not pending.callbacks:
            pending.settled = True
            self._turns.wake(pending)
        elif pending not in self._settling:
            self._settling.append(pending)

    def _release_helper(self) -> None:
        if self._helper.active and not self._pending.any_begun:
            self._turns.wake(None)

    def _hand_over(self, turn: Turn | None = None) -> None:
        """What is to be done by who has let go of the lead, or does not wait any longer (`turn`)."""
        with self._lock:
            if turn is not None:
                self._turns.leave(turn)
            self._turns.promote()
            self._let_go()
        self._settle()

    def _settle(self) -> None:
        """Call the callbacks of what is done, then wake those who wait for it. Not as the leader: they may call."""
        while True:
            with self._lock:
                if not self._settling:
                    return
                pending = self._settling[-1]
                del self._settling[-1]
            try:
                while pending.callbacks:
                    pending.call_back()
            finally:
                with self._lock:
                    if pending.callbacks:
                        self._settling.append(pending)
                    else:
                        pending.settled = True
                        self._turns.wake(pending)

    def _help(self) -> None:
        """The helper: receive while there is what was begun."""
        turn = Turn(None)
        while True:
            with self._lock:
                if not self._waits(None) and not self._settling:
                    self._helper.active = False
                    break
            try:
                self._take_turn(turn, math.inf)
            except BaseException as error:  # a callback wants to end its thread; this one has others to serve
                report(error)
        self._hand_over(turn)

    # The end

    def _finish(self, verdict: protocol.Failure) -> None:
        """End the connection: everything that is under way gets this answer."""
        with self._lock:
            if self._end is None:
                self._end = verdict
                if self._refusal is None:
                    self._refusal = SILENT if verdict is SILENT else GONE
                self._link.shut()
            for pending in self._pending.by_number.values():
                self._answer(pending, self._end)
            self._pending.clear()
            self._turns.wake(None)
            self._let_go()

    def _let_go(self) -> None:
        """Close the descriptor once nobody uses it any more."""
        if self._end is not None and not self._turns.lead.locked() and not self._writers:
            self._link.close()
            self._parted.set()

    def inherit(self) -> None:
        """In a forked child: close the copy, touch nothing of the parent. No other thread exists here."""
        self._lock = threading.RLock()
        self._parted = threading.Event()
        self._refusal = self._end = INHERITED
        for pending in self._pending.by_number.values():
            pending.callbacks.clear()
            pending.call.reply, pending.settled = INHERITED, True
        self._pending.clear()
        self._turns = Turns()
        self._settling.clear()
        self._link.arrived.clear()
        self._helper = Helper()
        self._writers = 0
        self._let_go()
