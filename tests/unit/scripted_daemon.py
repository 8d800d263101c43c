"""A daemon that says what the test tells it to say, over a real socket, for what a real one would never do in time.

One connection; requests and replies are dictionaries. At its end no descriptor and no thread may be left.
"""

import contextlib
import json
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

import qos2
from unit.server_stage import open_descriptors

T = TypeVar("T")

#: So long a test waits for what must come; only a failing test waits so long.
PATIENCE_S = 20.0

_THREADS: list[threading.Thread] = []


class ScriptedDaemon:
    """Listens at `path`. `open` makes a handle; then `receive` and `answer` are this side of its connection."""

    def __init__(self, path: str, backlog: int) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen(backlog)
        self._listener.settimeout(PATIENCE_S)
        self.connection: socket.socket | None = None

    def open(self, **options: Any) -> qos2.Handle:
        """A handle of this daemon."""
        welcoming = in_thread(self.welcome)
        handle = qos2.Handle(self.path, **options)
        welcoming.result(PATIENCE_S)
        return handle

    def accept(self) -> None:
        """Take the connection, and say nothing."""
        self.connection, _ = self._listener.accept()
        self.connection.settimeout(PATIENCE_S)

    def welcome(self) -> None:
        """Take the connection and open its handle."""
        self.accept()
        self.answer(self.receive("open_handle"), "opened", server="scripted", privileged=True)

    def receive_any(self) -> dict[str, Any]:
        """The next request. A descriptor with it is closed by the kernel."""
        assert self.connection is not None
        request: dict[str, Any] = json.loads(self.connection.recv(65536))
        return request

    def receive(self, op: str) -> dict[str, Any]:
        """The next request, which must be this one."""
        request = self.receive_any()
        assert request["op"] == op, request
        return request

    def answer(self, request: dict[str, Any], result: str = "done", **fields: Any) -> None:
        """The reply to a request."""
        self.say(json.dumps({"result": result, "id": request["id"]} | fields).encode())

    def refuse(self, request: dict[str, Any], error: type[qos2.QosError]) -> None:
        """The reply that tells of an error."""
        self.answer(request, "error", code=error.code, win32=error.win32, message="as the test wants", hint="")

    def say(self, data: bytes) -> None:
        """One packet, whatever it is."""
        assert self.connection is not None
        self.connection.send(data)

    def is_silent(self, for_s: float = 0.05) -> bool:
        """Whether no request comes in this time."""
        assert self.connection is not None
        self.connection.settimeout(for_s)
        try:
            self.connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return True
        finally:
            self.connection.settimeout(PATIENCE_S)
        return False

    def hang_up(self) -> None:
        """Go away."""
        if self.connection is not None:
            self.connection.close()

    def close(self) -> None:
        self.hang_up()
        self._listener.close()


@contextlib.contextmanager
def scripted(backlog: int = 8) -> Iterator[ScriptedDaemon]:
    """A daemon; afterwards as many descriptors and threads are there as before."""
    before = open_descriptors()
    threads = threading.active_count()
    with tempfile.TemporaryDirectory(prefix="qos2-") as directory:
        daemon = ScriptedDaemon(f"{directory}/qos2.sock", backlog)
        try:
            yield daemon
        finally:
            daemon.close()
            while _THREADS:
                _THREADS.pop().join(PATIENCE_S)
    assert threading.active_count() == threads
    assert open_descriptors() == before


def in_thread(function: Callable[[], T]) -> "Future[T]":
    """What `function` returns or raises in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            value = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(value)

    thread = threading.Thread(target=run, name="test", daemon=True)
    _THREADS.append(thread)
    thread.start()
    return future


def closing(daemon: ScriptedDaemon, qos: qos2.Handle) -> None:
    """Close a handle, and answer that, whatever was asked before."""
    closed = in_thread(qos.close)
    while (request := daemon.receive_any())["op"] != "close_handle":
        pass
    daemon.answer(request)
    closed.result(PATIENCE_S)


def rate_of(qos: qos2.Handle, flow: int) -> "Future[qos2.FlowRate | None]":
    """The rate of a flow of this number, asked for in another thread."""
    return in_thread(lambda: qos2.Flow(qos, qos2.FlowId(flow)).rate())


def answer_rate(daemon: ScriptedDaemon, request: dict[str, Any]) -> None:
    """With the number of the flow in kbit/s, so that each can tell its own."""
    daemon.answer(request, "rate", bandwidth=request["flow"] * 1000, shaping=1, reason=0)


def expected(flow: int) -> qos2.FlowRate:
    return qos2.FlowRate(qos2.Bandwidth(flow * 1000))


class Interrupted(Exception):
    """Raised by the handler of a signal."""


@contextlib.contextmanager
def signals(handler: Callable[[], None], after_s: float, every_s: float = 0.0) -> Iterator[None]:
    """SIGALRM comes to the main thread, once or again and again."""
    before = signal.signal(signal.SIGALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_REAL, after_s, every_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupt() -> None:
    raise Interrupted
