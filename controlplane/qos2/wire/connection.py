"""A client's end of one connection, without the connection: calls to bytes, bytes to replies.

It does no I/O and holds no lock; the synchronous and the asyncio client drive it, each in its own way,
and keep themselves who waits for which number.
"""

from typing import Any

from qos2.errors import InvalidRequest, ProtocolError
from qos2.wire import protocol
from qos2.wire.calls import Call, Reply

#: How many calls, beyond those that wait at the daemon, may be without an answer. The daemon keeps 64 replies for
#: a client that does not read, then it closes the connection; calls that were given up are answered, too.
MAX_AHEAD = 32


class Connection:
    """The numbers of one connection."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def send(self, call: Call[Any]) -> bytes:
        """The message that asks for `call`, under a number of its own, which is in `call.request.id` then.

        Raises InvalidRequest where its arguments cannot be put into a message, or into one of MAX_MESSAGE_BYTES.
        """
        request = call.request
        self._last = request.id = self._last + 1
        try:
            data = protocol.encode(request)
        except (TypeError, ValueError, OverflowError) as error:
            self.withdraw(call)
            raise InvalidRequest(f"cannot be sent: {error}", "numbers and text only") from error
        if len(data) > protocol.MAX_MESSAGE_BYTES:
            self.withdraw(call)
            raise InvalidRequest(f"a request of {len(data)} bytes", f"at most {protocol.MAX_MESSAGE_BYTES}")
        return data

    def withdraw(self, call: Call[Any]) -> None:
        """`call` was numbered, but the kernel did not take it: it has number 0 again, as one that was never sent."""
        call.request.id = 0

    def receive(self, data: bytes) -> Reply:
        """The reply in a message from the daemon. A failure of number 0 is about the connection itself.

        Raises ProtocolError for bytes that are no reply, and for a reply to a number that was never given.
        """
        reply = protocol.decode_reply(data)
        if not 0 < reply.id <= self._last and not (reply.id == 0 and isinstance(reply, protocol.Failure)):
            raise ProtocolError(f"a reply to request {reply.id}, which was never sent", "another daemon?")
        return reply
