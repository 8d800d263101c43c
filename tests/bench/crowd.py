"""A crowd of connected UDP sockets, in a process of its own: one process may not be allowed to open them all.

The process is a fork, pinned to the sender's CPU; it makes its sockets, prepares them as told, and then sends
when asked. It ends with its Crowd, and with its parent.
"""

import ctypes
import multiprocessing
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

from bench.session import SENDER_CPU, pinned
from demo.lab import LabError, Namespace

_PR_SET_PDEATHSIG = 1
_PAYLOAD_BYTES = 64
#: Descriptors that are not the crowd's.
_OTHERS = 256
_PATIENCE_S = 60.0

Prepare = Callable[[Sequence[socket.socket]], object]


def most_sockets() -> int:
    """How many sockets one crowd can have here: what the limit of open files leaves."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1] - _OTHERS


class Crowd:
    """A context manager. `ports` are the sockets' own, in the order in which they were prepared."""

    def __init__(
        self,
        senders: ctypes.CDLL,
        namespace: Namespace,
        count: int,
        source: str,
        destination: tuple[str, int],
        prepare: Prepare,
    ) -> None:
        """`prepare` runs in the crowd's process, once, with all sockets. Raises LabError where it fails."""
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_live, args=(other, senders, namespace, count, source, destination, prepare), daemon=True
        )
        self._process.start()
        other.close()
        self.ports: list[int] = self._answer()

    def flood(self, count: int, seconds: float) -> int:
        """Datagrams of 64 bytes by the first `count` sockets, chosen at random; how many. Raises LabError."""
        self._pipe.send((count, seconds))
        sent: int = self._answer()
        return sent

    def close(self) -> None:
        """End the process and with it the sockets."""
        with suppress(BrokenPipeError):
            self._pipe.send(None)
        self._process.join(_PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()
        self._pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv() if self._pipe.poll(_PATIENCE_S) else "no answer"
        except EOFError:
            answer = "its process ended"
        if isinstance(answer, str):
            raise LabError(f"a crowd of sockets: {answer}")
        return answer


def _live(
    pipe: Connection,
    senders: ctypes.CDLL,
    namespace: Namespace,
    count: int,
    source: str,
    destination: tuple[str, int],
    prepare: Prepare,
) -> None:
    """The crowd's process. Errors go to the parent as text."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's matter, who ends this in order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        with ExitStack() as stack:
            made = [stack.enter_context(sock) for sock in _connected(namespace, count, source, destination)]
            prepare(made)
            pipe.send([sock.getsockname()[1] for sock in made])
            descriptors = (ctypes.c_int * count)(*(sock.fileno() for sock in made))
            stack.enter_context(pinned(SENDER_CPU))
            while order := pipe.recv():
                chosen, seconds = order
                sent = senders.udp_flood(descriptors, chosen, _PAYLOAD_BYTES, seconds)
                pipe.send(sent if sent >= 0 else f"sending: {os.strerror(-sent)}")
    except EOFError:
        return
    except Exception as error:  # the parent raises it: this process has nobody to tell
        pipe.send(f"{type(error).__name__}: {error}")


def _connected(namespace: Namespace, count: int, source: str, destination: tuple[str, int]) -> Iterator[socket.socket]:
    with namespace.entered():
        for _ in range(count):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.bind((source, 0))
            sock.connect(destination)
            yield sock
