"""A client's end of one connection, without the connection: calls to bytes, bytes to the calls they answer.

It does no I/O and holds no lock; the synchronous and the asyncio client drive it, each in its own way.
What it remembers is which calls have no answer yet, so that a late answer to a call that was given up
(by an exception out of a signal handler, say) is never taken for that of the next.
"""

from typing import Any

from qos2.errors import InvalidRequest, ProtocolError
from qos2.wire import protocol
from qos2.wire.calls import Call


class Connection:
    """The numbers and the unanswered calls of one connection."""

    __slots__ = ("_last", "_pending")

    def __init__(self) -> None:
        self._last = 0
        self._pending: dict[int, Call[Any]] = {}

    @property
    def pending(self) -> int:
        """How many calls have no answer yet."""
        return len(self._pending)

    def send(self, call: Call[Any]) -> bytes:
        """The message that asks for `call`, numbered; the call is pending from now on.

        Raises InvalidRequest where its arguments cannot be put into a message, or into one of
        MAX_MESSAGE_BYTES; it is not pending then.
        """
        self._last += 1
        call.request.id = self._last
        try:
            data = protocol.encode(call.request)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidRequest(f"cannot be sent: {error}", "numbers and text only") from error
        if len(data) > protocol.MAX_MESSAGE_BYTES:
            raise InvalidRequest(f"a request of {len(data)} bytes", f"at most {protocol.MAX_MESSAGE_BYTES}")
        self._pending[self._last] = call
        return data

    def withdraw(self, call: Call[Any]) -> None:
        """`call` was numbered but could not be handed to the kernel: no answer is awaited."""
        self._pending.pop(call.request.id, None)

    def receive(self, data: bytes) -> tuple[Call[Any] | None, protocol.AnyResult | protocol.Failure]:
        """A message from the daemon, with the call that it answers.

        A failure without a number is about the connection itself, and comes with None. Raises
        ProtocolError for bytes that are no reply, and for a reply that nothing asked for.
        """
        reply = protocol.decode_reply(data)
        if reply.id == 0 and isinstance(reply, protocol.Failure):
            return None, reply
        call = self._pending.pop(reply.id, None)
        if call is None:
            raise ProtocolError(f"a reply to request {reply.id}, which is not pending")
        return call, reply
