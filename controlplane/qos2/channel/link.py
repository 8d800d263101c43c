"""The socket of a channel: AF_UNIX SOCK_SEQPACKET, one packet per message. No message is understood here."""

import contextlib
import math
import select
import socket
import struct
import time

from qos2.errors import InvalidRequest
from qos2.wire.protocol import MAX_MESSAGE_BYTES
from qos2.wire.vigil import AWAKE_S, Vigil

#: As plain numbers: the socket module's enumerations are slow. No SIGPIPE, whatever the application made of it.
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
_SOCKET_LEVEL = int(socket.SOL_SOCKET)
_RIGHTS = int(socket.SCM_RIGHTS)
_DESCRIPTOR = struct.Struct("i")
#: For list.extend(map(recv, ...)): the packet is in the list before the handler of a signal can run.
_WHOLE = (MAX_MESSAGE_BYTES,)
_AT_ONCE = (int(socket.MSG_DONTWAIT),)
#: As a struct timeval: how long `receive_soon` waits. Each signal that a handler takes begins that time anew.
_SOON = struct.pack("ll", 0, 5_000)
#: Between two attempts to connect to a daemon whose backlog is full: for AF_UNIX there is no way to wait for that.
CONNECT_AGAIN_S = 0.01
#: The longest single wait: poll() takes milliseconds as a C int.
LONGEST_WAIT_S = 1_000_000.0


class Link:
    """A socket, not connected yet. One thread at a time receives; any may send."""

    __slots__ = ("_poll", "_socket", "_vigil", "arrived")

    def __init__(self) -> None:
        #: The packet that was received and not dealt with yet, if any; an empty one is the end.
        self.arrived: list[bytes] = []
        self._vigil = Vigil()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def fileno(self) -> int:
        """For the selector of a loop."""
        return self._socket.fileno()

    def connect_until(self, path: str, until_s: float) -> None:
        """As `connect`, with so much time for somebody to accept."""
        while True:
            try:
                self.connect(path)
                return
            except BlockingIOError:
                if time.monotonic() >= until_s:
                    raise
            time.sleep(CONNECT_AGAIN_S)

    def connect(self, path: str) -> None:
        """Raises OSError where nobody listens at `path`; BlockingIOError: nobody accepts now, try again."""
        self._socket.connect(path)
        self._socket.setblocking(True)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _SOON)

    def send(self, data: bytes, fd: int) -> bool:
        """Hand a packet to the kernel, with a descriptor or (-1) without; False where it has no room.

        True also where the other end is gone: who receives finds out too, and there its last words come first.
        Raises InvalidRequest where the kernel takes none such (the descriptor is closed by now, say).
        """
        try:
            if fd < 0:
                self._socket.send(data, _SEND_FLAGS)
            else:
                self._socket.sendmsg((data,), ((_SOCKET_LEVEL, _RIGHTS, _DESCRIPTOR.pack(fd)),), _SEND_FLAGS)
        except BlockingIOError:
            return False
        except ConnectionError:
            return True
        except OSError as error:
            if error.errno is None:
                raise  # a TimeoutError of a signal handler, say
            raise InvalidRequest(f"the request cannot be sent: {error.strerror}") from error
        return True

    def wait_for_room(self, wait_s: float) -> None:
        """Return when there is room to send, or after that time."""
        room = select.poll()
        room.register(self._socket, select.POLLOUT)
        room.poll(_milliseconds(wait_s))

    def receive_soon(self) -> bool:
        """Wait some milliseconds for a packet, without a poll(); False: ask `receive` why none came."""
        if self._vigil.is_due() and self._receive_awake():
            return True
        try:
            self.arrived.extend(map(self._socket.recv, _WHOLE))
        except OSError as error:
            if error.errno is None:
                raise  # a TimeoutError of a signal handler, say
            return False
        self._look_behind_the_end()
        return True

    def _look_behind_the_end(self) -> None:
        """Last words, where the end was told before them.

        A recv() may find no message, then the other end sends its last one and closes, and then the same recv()
        sees that and tells the end (unix_dgram_recvmsg() of Linux).
        """
        while self.arrived == [b""]:
            try:
                self.arrived.extend(map(self._socket.recv, _WHOLE, _AT_ONCE))
            except ConnectionError:
                continue  # told once
            except OSError as error:
                if error.errno is None:
                    raise  # a TimeoutError of a signal handler, say
                return
            del self.arrived[0]  # the last words, or the end again
            return

    def _receive_awake(self) -> bool:
        """Look for a packet for a moment, without falling asleep (ADR 0013)."""
        clock, receive, arrived = time.perf_counter, self._socket.recv, self.arrived
        until_s = clock() + AWAKE_S
        while clock() < until_s:
            try:
                arrived.extend(map(receive, _WHOLE, _AT_ONCE))
            except BlockingIOError:
                continue
            except OSError as error:
                if error.errno is None:
                    raise  # a TimeoutError of a signal handler, say
                return False  # asked again, and judged, by the caller
            self._look_behind_the_end()
            self._vigil.paid()
            return True
        self._vigil.was_in_vain()
        return False

    def receive(self, wait_s: float) -> bool:
        """Wait for a packet for so long, whatever signals come; False: the time is over."""
        return bool(self._poll.poll(_milliseconds(wait_s))) and self.receive_now()

    def receive_now(self) -> bool:
        """Take a packet if one is there."""
        try:
            self.arrived.extend(map(self._socket.recv, _WHOLE, _AT_ONCE))
        except ConnectionError:
            return self.receive_now()  # reset: what the other end sent before comes yet, and then the end
        except OSError as error:
            if error.errno is None:
                raise  # a TimeoutError of a signal handler, say
            if not isinstance(error, BlockingIOError):
                self.arrived.append(b"")
        self._look_behind_the_end()
        return bool(self.arrived)

    def shut(self) -> None:
        """The end, for the other side and for whoever receives or waits for room here."""
        with contextlib.suppress(OSError):  # the other side was quicker, or it was never connected
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back. Nobody may be using it."""
        self._socket.close()


def _milliseconds(seconds: float) -> int:
    return math.ceil(min(max(seconds, 0.0), LONGEST_WAIT_S) * 1000)
