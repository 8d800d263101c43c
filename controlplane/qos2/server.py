"""The daemon's socket: accepts clients, reads their requests, sends the replies. An edge; no rules here.

One event loop, non-blocking SEQPACKET sockets and no streams: a packet is a request. Each request is
whole before the next is read, and no client can make another wait: not by sending much (each has one
request at a time served, inbox.py), by never reading (its replies are bounded), by passing strange
descriptors (what may wait is closed elsewhere), nor by finding a bug (it is logged and answered `internal`).

A request that waits for something has no reply yet. What the service has completed since is sent by
`deliver`, before the reply to the request that completed it.
"""

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Callable

from qos2.core.notifications import Completion
from qos2.core.ruleviews import Loaded
from qos2.core.service import Service
from qos2.errors import InternalError, LimitExceeded, NotPermitted, ProtocolError, QosError
from qos2.inbox import Inbox
from qos2.listener import listen_at
from qos2.model import Condition
from qos2.session import Session, no_policy, reply_of
from qos2.sockets import Closer, Passed, gid_of, peer_of
from qos2.wire import protocol

#: Members may set a raw DSCP and see everybody's flows.
PRIVILEGED_GROUP = "qos2"
#: Connections accepted before the clients that are there have their turn.
TURN_CONNECTIONS = 32
#: Replies kept for a client that does not read, beyond what its socket holds. Those to requests that waited do
#: not count: they may all come at once, and are as many as may be pending.
QUEUED_REPLIES = 64
#: Descriptors of one user whose close() waits; with more, no further one is taken from him.
WAITING_DESCRIPTORS = 64

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_PAUSE_S = 1.0
#: As plain numbers: combining the flags of the socket module takes microseconds.
_CUT = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)
_CLOSE_ON_EXEC = int(socket.MSG_CMSG_CLOEXEC)
_FD = struct.Struct("i")
_ONE_DESCRIPTOR = (int(socket.SOL_SOCKET), int(socket.SCM_RIGHTS))
_ANCILLARY = socket.CMSG_SPACE(_FD.size * protocol.MAX_DESCRIPTORS)
_OPS: dict[type[protocol.Request], str] = {
    each: str(each.__struct_config__.tag) for each in protocol.Request.__subclasses__()
}


class _User:
    """What all connections of one uid take together."""

    __slots__ = ("connections", "waiting")

    def __init__(self) -> None:
        self.connections = 0
        self.waiting: set[Passed] = set()


class _Client:
    """One connection."""

    __slots__ = ("ended", "handle", "late", "replies", "session", "socket", "user", "waiting")

    def __init__(self, connected: socket.socket, session: Session, user: _User) -> None:
        self.socket = connected
        self.session = session
        self.user = user
        self.handle = 0  #: once one of its requests has waited
        self.waiting: dict[int, tuple[str, float]] = {}  #: request -> operation, when it was read
        self.replies: deque[bytes] = deque()
        self.late: deque[bytes] = deque()  #: replies to requests that waited
        self.ended = False


class Server:
    """Serves a Service on an AF_UNIX SOCK_SEQPACKET socket at `path`, in the running asyncio loop.

    `observe` is called once per request, when it is answered, with operation ("invalid" for what is none), result
    ("ok" or the code of the error) and seconds; `notified` with a condition and the seconds from its signals to the
    reply. `connections` bounds all connections, `connections_per_uid` those of one user other than root: a connection
    takes a place before it has opened its handle. `load_policy` reads the administrator's policy anew.
    """

    def __init__(
        self,
        service: Service,
        path: str,
        *,
        observe: Callable[[str, str, float], None],
        notified: Callable[[Condition, float], None] = lambda _condition, _seconds: None,
        mode: int = 0o666,
        logger: logging.Logger,
        connections: int = 4096,
        connections_per_uid: int = 1024,
        load_policy: Callable[[], Loaded] = no_policy,
    ) -> None:
        self._service = service
        self._path = path
        self._observe = observe
        self._notified = notified
        self._mode = mode
        self._log = logger
        self._most_connections = connections
        self._most_connections_per_uid = connections_per_uid
        self._load_policy = load_policy
        self._privileged_gid = gid_of(PRIVILEGED_GROUP)
        self._closer = Closer()
        self._clients: set[_Client] = set()
        self._inbox: Inbox[_Client] = Inbox(self._readable)
        self._completed = service.completed
        self._by_handle: dict[int, _Client] = {}  # of those whose requests have waited
        self._delivering = False
        self._users: dict[int, _User] = {}
        self._accepted = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._resume: asyncio.TimerHandle | None = None
        #: Connections refused or given up, by reason: a limit, not_reading, resources, credentials.
        self.refused: Counter[str] = Counter()

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._clients)

    def start(self) -> None:
        """Listen. To be called in the running loop.

        Raises AlreadyRunning where another daemon answers at the path, ConfigError where it cannot be used.
        """
        self._loop = asyncio.get_running_loop()
        self._listener = listen_at(self._path, self._mode)
        found = os.stat(self._path)
        self._inode = (found.st_dev, found.st_ino)
        self._loop.add_reader(self._listener, self._accept)
        self._loop.add_reader(self._inbox, self._inbox.empty)

    def close(self) -> None:
        """End all connections with their flows, and remove the socket file unless it is another daemon's by now."""
        if self._loop is None or self._listener is None:
            return
        if self._resume is not None:
            self._resume.cancel()
        self._loop.remove_reader(self._listener)
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(self._path)
            if (found.st_dev, found.st_ino) == self._inode:
                os.unlink(self._path)
        self._listener.close()
        self._listener = None
        for client in tuple(self._clients):
            self._end(client)
        self._loop.remove_reader(self._inbox)
        self._inbox.close()
        if not self._closer.stop(timeout_s=1.0):
            self._log.warning("a descriptor that a client passed is still being closed by its file system")

    # Connections

    def _accept(self) -> None:
        assert self._listener is not None
        for _ in range(TURN_CONNECTIONS):
            try:
                connected, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    self._pause(error)
                    return
                self._log.warning("a connection was lost before it was accepted: %s", error)
                continue
            self._welcome(connected)

    def _pause(self, error: OSError) -> None:
        """The waiting connection keeps the listener readable: look again later, not in a busy loop."""
        assert self._loop is not None
        assert self._listener is not None
        self.refused["resources"] += 1
        self._log.error("no connection can be accepted: %s; raise LimitNOFILE", error)
        self._loop.remove_reader(self._listener)
        self._resume = self._loop.call_later(_PAUSE_S, self._loop.add_reader, self._listener, self._accept)

    def _welcome(self, connected: socket.socket) -> None:
        assert self._loop is not None
        connected.setblocking(False)
        self._accepted += 1
        try:
            peer = peer_of(connected, self._privileged_gid, stranger=-self._accepted)
        except OSError as error:
            self._log.warning("a client was refused, its credentials cannot be read: %s", error)
            self._refuse(connected, "credentials", NotPermitted("the credentials of the client cannot be read"))
            return
        user = self._users.get(peer.uid) or _User()
        if len(self._clients) >= self._most_connections:
            self._refuse(connected, "connections", _too_many(self._most_connections, "connections"))
        elif peer.uid != 0 and user.connections >= self._most_connections_per_uid:
            refusal = _too_many(self._most_connections_per_uid, "handles_per_uid")
            self._refuse(connected, "connections_per_uid", refusal)
        else:
            user.connections += 1
            self._users[peer.uid] = user
            client = _Client(connected, Session(self._service, peer, self._load_policy), user)
            self._clients.add(client)
            self._inbox.add(connected.fileno(), client)

    def _refuse(self, connected: socket.socket, reason: str, error: QosError) -> None:
        self.refused[reason] += 1
        # Its queue is empty and takes the words, unless the client is gone already.
        with contextlib.suppress(OSError):
            connected.send(protocol.encode(protocol.failure(0, error)))
        connected.close()

    def _end(self, client: _Client) -> None:
        """The connection has ended, and its handle with it."""
        if client.ended:
            return
        assert self._loop is not None
        client.ended = True
        self._inbox.remove(client.socket.fileno())
        self._loop.remove_writer(client.socket)
        client.socket.close()
        client.replies.clear()
        client.late.clear()
        self._clients.discard(client)
        user = client.user
        user.connections -= 1
        if user.connections == 0 and not user.waiting:
            self._users.pop(client.session.peer.uid, None)
        try:
            client.session.end()
        except Exception:  # one client's bug must not end the daemon
            self._log.exception("a bug: the handle of %s could not be closed", client.session.peer)
        if client.handle and not client.waiting:
            del self._by_handle[client.handle]
        self.deliver()

    # Requests

    def _readable(self, client: _Client) -> None:
        # Without room the kernel closes the descriptors itself, and says so by MSG_CTRUNC.
        room = _ANCILLARY if len(client.user.waiting) < WAITING_DESCRIPTORS else 0
        try:
            data, ancillary, flags, _address = client.socket.recvmsg(protocol.MAX_MESSAGE_BYTES, room, _CLOSE_ON_EXEC)
        except BlockingIOError:
            return
        except OSError:
            self._end(client)
            return
        if not data:
            self._end(client)
            return
        passed = _descriptors(ancillary) if ancillary else []
        try:
            reply, op, result, seconds = self._answer(client, data, flags, passed)
        finally:
            for each in passed:
                self._closer.close(each, client.user.waiting)
        if self._completed:
            self.deliver()
        if reply:
            if not client.ended:
                self._send(client, reply)
            self._observe(op, result, seconds)

    def _answer(self, client: _Client, data: bytes, flags: int, passed: list[Passed]) -> tuple[bytes, str, str, float]:
        """The reply to one packet, whatever it holds; operation, result and seconds for the metrics.

        Empty for a request that waits.
        """
        session = client.session
        began_s = time.perf_counter()
        op = "invalid"
        number: int | None = None
        error: QosError
        try:
            if flags & _CUT or len(passed) > protocol.MAX_DESCRIPTORS:
                raise _cut(flags, passed)
            request = protocol.decode_request(data)
            op, number = _OPS[type(request)], request.id
            answer = session.answer(request, passed[0] if passed else None)
            if answer is None:
                client.handle = session.handle
                client.waiting[number] = op, began_s
                self._by_handle[client.handle] = client
                return b"", op, "", 0.0
            reply = protocol.encode(answer)
            if len(reply) > protocol.MAX_MESSAGE_BYTES:
                raise RuntimeError(f"a reply of {len(reply)} bytes to {op}")
            return reply, op, "ok", time.perf_counter() - began_s
        except QosError as refusal:
            error = refusal
        except Exception:  # one request's bug is answered `internal` and harms nobody else
            self._log.exception("a bug: request %s of %s failed", op, session.peer)
            error = InternalError("a bug of the daemon in this request", "its log has the traceback")
        if number is None:
            number = protocol.request_id(data)
        return protocol.encode(protocol.failure(number, error)), op, error.code, time.perf_counter() - began_s

    # Replies

    def deliver(self) -> None:
        """Send what requests that waited have come to. To be called after whatever may have completed some."""
        if self._delivering:  # a client was ended in the middle, which completed others: the loop below has them
            return
        self._delivering = True
        try:
            while self._completed:
                for each in self._service.take_completed():
                    self._complete(each)
        finally:
            self._delivering = False

    def _complete(self, completion: Completion) -> None:
        client = self._by_handle[completion.handle]
        op, began_s = client.waiting.pop(completion.request)
        if not client.ended:
            self._send(client, protocol.encode(reply_of(completion)), late=True)
        elif not client.waiting:
            del self._by_handle[completion.handle]
        result = "ok" if completion.error is None else completion.error.code
        self._observe(op, result, time.perf_counter() - began_s)
        # Nobody was told where the connection has ended, before this reply or by it.
        if completion.condition is not None and completion.signal_s is not None and not client.ended:
            self._notified(completion.condition, time.monotonic() - completion.signal_s)

    def _send(self, client: _Client, reply: bytes, *, late: bool = False) -> None:
        if not client.replies and not client.late:
            try:
                client.socket.send(reply)
                return
            except BlockingIOError:
                assert self._loop is not None
                self._loop.add_writer(client.socket, self._writable, client)
            except OSError:
                self._end(client)
                return
        # Who reads a late reply before he asks again never has more of them here than may be pending.
        kept, most = (
            (client.late, self._service.limits.pending_per_handle) if late else (client.replies, QUEUED_REPLIES)
        )
        if len(kept) >= most:
            self.refused["not_reading"] += 1
            self._log.warning("%s does not read its replies: its connection is closed", client.session.peer)
            self._end(client)
            return
        kept.append(reply)

    def _writable(self, client: _Client) -> None:
        assert self._loop is not None
        try:
            # The late ones first: all of them are to be sent before the reply to close_handle.
            for kept in (client.late, client.replies):
                while kept:
                    client.socket.send(kept[0])
                    kept.popleft()
        except BlockingIOError:
            return
        except OSError:
            self._end(client)
            return
        self._loop.remove_writer(client.socket)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> list[Passed]:
    """All descriptors that came with a packet: whatever becomes of it, each is to be closed."""
    if len(ancillary) == 1 and ancillary[0][:2] == _ONE_DESCRIPTOR and len(ancillary[0][2]) == _FD.size:
        return [Passed(_FD.unpack(ancillary[0][2])[0])]
    return [
        Passed(fd)
        for level, kind, content in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for (fd,) in struct.iter_unpack("i", content[: len(content) - len(content) % 4])
    ]


def _too_many(limit: int, key: str) -> QosError:
    return LimitExceeded(f"there are {limit} connections", f"close some, or raise `{key}` in the configuration")


def _cut(flags: int, passed: list[Passed]) -> QosError:
    """Why a packet that did not arrive whole is refused."""
    if flags & socket.MSG_TRUNC:
        return ProtocolError("the request is too long", f"at most {protocol.MAX_MESSAGE_BYTES} bytes")
    if passed:
        return ProtocolError("surplus descriptors", f"at most {protocol.MAX_DESCRIPTORS} with a request")
    return LimitExceeded("the daemon cannot take the descriptor", "too many are open or not closed yet; try again")
