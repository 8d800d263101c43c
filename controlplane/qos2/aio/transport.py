"""The transport of an asyncio handle: one connection on the running loop, no threads.

Requests are sent at once, as many as the daemon takes without an answer, and the others in order. The loop
receives; a task waits for the future of its call. A channel belongs to the loop in which it was made and to the
process: in a forked child its descriptor is closed, and the loop's selector, which is the parent's, left alone.
"""

import asyncio
import contextlib
import math
from collections import deque
from typing import Any, TypeVar

from qos2.channel.forks import close_in_children
from qos2.channel.link import CONNECT_AGAIN_S, Link
from qos2.channel.timeouts import limit_s, patience_s
from qos2.channel.verdicts import CLOSED, CLOSING, GONE, INHERITED, SILENT
from qos2.errors import InvalidRequest, ProtocolError, QosError, TimedOut
from qos2.wire import calls, protocol
from qos2.wire.calls import Call, Reply
from qos2.wire.connection import MAX_AHEAD, Connection

T = TypeVar("T")

#: Packets taken before other callbacks of the loop have their turn.
_TURN_PACKETS = 32


class _Waiting:
    """A call whose answer a task waits for; `future` is done once it is there."""

    __slots__ = ("abandoned", "call", "deadline_s", "fd", "future")

    def __init__(self, call: Call[Any], fd: int, deadline_s: float, future: "asyncio.Future[None]") -> None:
        self.call = call
        self.fd = fd
        self.deadline_s = deadline_s
        self.future = future
        self.abandoned = False

    def answer(self, reply: Reply) -> None:
        self.call.reply = reply
        if not self.future.done():
            self.future.set_result(None)


class Channel:
    """To be made in the running loop; `connect` comes first, the other methods raise as those of qos2.channel."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout_s = patience_s(timeout)
        self._loop = asyncio.get_running_loop()
        self._connection = Connection()
        #: By number, in the order of sending.
        self._sent: dict[int, _Waiting] = {}
        #: What had to wait: for answers, or for room in the kernel.
        self._unsent: deque[_Waiting] = deque()
        self._lacks_room = False
        #: How many of those that were sent do not wait at the daemon.
        self._ahead = 0
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: protocol.Failure | None = None
        self._end: protocol.Failure | None = None
        self._ended = self._loop.create_future()
        self._link = Link()
        close_in_children(self)

    @property
    def closed(self) -> bool:
        """Closed, being closed, lost, or a parent's."""
        return self._refusal is not None

    async def connect(self, path: str) -> None:
        """Raises OSError where nobody listens at `path`; BlockingIOError: nobody accepts in time."""
        until_s = self._loop.time() + self._timeout_s
        while True:
            try:
                self._link.connect(path)
                break
            except BlockingIOError:
                if self._loop.time() >= until_s:
                    raise
            await asyncio.sleep(CONNECT_AGAIN_S)
        self._loop.add_reader(self._link, self._readable)

    async def run(self, call: Call[T], fd: int = -1, within_s: float | None = None) -> T:
        """Send a call, with a descriptor or without, and wait for its value.

        `within_s` is for a call that waits at the daemon: after that time it is cancelled there, and TimedOut
        is raised here.
        """
        self._check()
        limit_s(within_s)  # refuses what is no time before anything is sent
        await self._ask(call, fd, within_s)
        return call.outcome()

    async def close(self) -> None:
        """End all flows and the connection; returns when that is done, or after `timeout` without an answer."""
        if self._end is not None:
            return
        self._check_loop()
        if self._refusal is not None:
            await asyncio.shield(self._ended)
            return
        self._refusal = CLOSED
        try:
            # Whatever the answer, or if there is none: the end of the connection says the same.
            with contextlib.suppress(QosError):
                await self._ask(calls.close_handle(), -1, None)
        finally:
            self.abort()

    def abort(self) -> None:
        """End the connection without a word."""
        self._refusal = self._refusal or CLOSED
        self._finish(CLOSING)

    def _check(self) -> None:
        if self._refusal is not None:
            raise protocol.error_of(self._refusal)
        self._check_loop()

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise InvalidRequest("this handle belongs to another loop", "each loop makes a qos2.aio.Handle of its own")

    # Sending

    async def _ask(self, call: Call[Any], fd: int, within_s: float | None) -> None:
        """Have a call answered."""
        deadline_s = math.inf if call.waits else self._loop.time() + self._timeout_s
        waiting = _Waiting(call, fd, deadline_s, self._loop.create_future())
        self._unsent.append(waiting)
        self._send()
        self._watch_time()
        try:
            if within_s is None:
                await waiting.future
            else:
                await asyncio.wait((waiting.future,), timeout=within_s)
            if call.reply is None:
                raise TimedOut("the time is over", "the daemon has not answered yet")
        except BaseException:
            self._abandon(waiting)
            raise

    def _send(self) -> None:
        """As much as may be under way and the kernel has room for, in order."""
        while self._unsent and (self._ahead < MAX_AHEAD or self._unsent[0].call.waits):
            waiting = self._unsent[0]
            try:
                if not waiting.abandoned and not self._put(waiting):
                    if not self._lacks_room:
                        self._lacks_room = True
                        self._loop.add_writer(self._link, self._send)
                    return
            except InvalidRequest as error:
                self._connection.withdraw(waiting.call)
                waiting.answer(protocol.failure(0, error))
            self._unsent.popleft()
        if self._lacks_room:
            self._lacks_room = False
            self._loop.remove_writer(self._link)

    def _put(self, waiting: _Waiting) -> bool:
        """Hand a call to the kernel; False where it has no room."""
        call = waiting.call
        if not self._link.send(self._connection.send(call), waiting.fd):
            self._connection.withdraw(call)
            return False
        self._sent[call.request.id] = waiting
        self._ahead += not call.waits
        return True

    def _post(self, call: Call[None] | None) -> None:
        """Send a call whose answer is nobody's."""
        if call is not None and self._end is None:
            # Without room the daemon is far behind; what this would end ends with the handle.
            with contextlib.suppress(QosError):
                self._link.send(self._connection.send(call), -1)

    def _abandon(self, waiting: _Waiting) -> None:
        """Its task does not want the value any more, whether it was sent or not, and whether it is answered or not."""
        waiting.abandoned = True
        if waiting.call.request.id != 0:
            self._post(waiting.call.farewell())

    # Receiving

    def _readable(self) -> None:
        for _ in range(_TURN_PACKETS):
            if self._end is not None or not self._link.receive_now():
                return
            self._deliver(self._link.arrived.pop())

    def _deliver(self, packet: bytes) -> None:
        try:
            reply = self._connection.receive(packet)
        except ProtocolError as error:
            self._finish(protocol.failure(0, error) if packet else GONE)
            return
        waiting = self._sent.pop(reply.id, None)
        if waiting is not None:
            self._ahead -= not waiting.call.waits
            waiting.answer(reply)
            if waiting.abandoned:
                self._post(waiting.call.farewell())
            self._send()
        elif reply.id == 0 and isinstance(reply, protocol.Failure):
            self._finish(reply)

    def _watch_time(self) -> None:
        """One timer for all: for the first that is overdue if nothing comes."""
        if self._timer is None and self._end is None:
            first_s = min((each.deadline_s for each in self._under_way()), default=math.inf)
            if first_s != math.inf:
                self._timer = self._loop.call_at(first_s, self._time_is_over)

    def _under_way(self) -> list[_Waiting]:
        return [*self._sent.values(), *self._unsent]

    def _time_is_over(self) -> None:
        self._timer = None
        self._readable()  # the loop may have had no time for what has come
        if any(each.deadline_s <= self._loop.time() for each in self._under_way()):
            self._finish(SILENT)
        self._watch_time()

    # The end

    def _finish(self, verdict: protocol.Failure) -> None:
        """End the connection: everything that is under way gets this answer."""
        if self._end is not None:
            return
        self._end = verdict
        if self._refusal is None:
            self._refusal = SILENT if verdict is SILENT else GONE
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._loop.remove_reader(self._link)
        self._loop.remove_writer(self._link)
        self._link.close()
        for waiting in self._under_way():
            waiting.answer(verdict)
        self._sent.clear()
        self._unsent.clear()
        self._ended.set_result(None)

    def inherit(self) -> None:
        """In a forked child: close the copy, touch nothing of the parent."""
        self._refusal = self._end = INHERITED
        self._sent.clear()
        self._unsent.clear()
        self._link.close()
