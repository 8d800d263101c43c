"""Two network namespaces and any number of veth pairs between them: no router, so that a packet's way is short.

The near side sends by connected sockets, the far side has one UDP port that nobody reads (its buffer is full
after the first packets) and streams that are drained on another CPU.
"""

import ctypes
import os
import socket
import threading
from contextlib import ExitStack
from types import TracebackType
from typing import Self

from bench.crowd import Crowd, Prepare
from bench.session import SENDER_CPU, pinned
from demo.lab import Namespace, command

_PORT = 5004


class Link:
    """One veth pair, by the name of its near device."""

    def __init__(self, number: int) -> None:
        self.device = f"bench{number}"
        self.near, self.far = (f"192.0.2.{4 * number + offset}" for offset in (1, 2))


class Stream:
    """An established TCP connection whose far end is read to its end on another CPU."""

    def __init__(self, near: socket.socket, far: socket.socket, senders: ctypes.CDLL) -> None:
        self.near = near
        self._far = far
        self._thread = threading.Thread(target=self._drain, args=(senders,), daemon=True)
        self._thread.start()

    def _drain(self, senders: ctypes.CDLL) -> None:
        with pinned(SENDER_CPU + 1):
            senders.stream_drain(self._far.fileno())

    def close(self) -> None:
        """End the connection and the thread that reads it."""
        self.near.close()
        self._thread.join()
        self._far.close()


class Pair:
    """A context manager; what it hands out is closed with it."""

    def __init__(self) -> None:
        prefix = f"qos2-bench-{os.getpid()}"
        self.near = Namespace(f"{prefix}-near", "bench0")
        self.far = Namespace(f"{prefix}-far", "bench0")
        self._stack = ExitStack()
        self._links = 0

    def __enter__(self) -> Self:
        try:
            for namespace in (self.near, self.far):
                command("ip", "netns", "add", namespace.name)
                self._stack.callback(command, "ip", "netns", "del", namespace.name)
            self.near.sysctl("ipv4/ip_local_port_range", "1024 65535")
            self._sink = self._stack.enter_context(self.far.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._sink.bind(("", _PORT))
            self._listener = self._stack.enter_context(self.far.socket(socket.AF_INET, socket.SOCK_STREAM))
            self._listener.bind(("", _PORT))
            self._listener.listen()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def join(self) -> Link:
        """One more veth pair, up, with an address at either end."""
        link = Link(self._links)
        self._links += 1
        command(
            *("ip", "link", "add", link.device, "netns", self.near.name, "type", "veth"),
            *("peer", "name", link.device, "netns", self.far.name),
        )
        for namespace, address in ((self.near, link.near), (self.far, link.far)):
            command("ip", "-netns", namespace.name, "address", "add", f"{address}/30", "dev", link.device)
            command("ip", "-netns", namespace.name, "link", "set", link.device, "up")
        return link

    def crowd(self, link: Link, senders: ctypes.CDLL, count: int, prepare: Prepare) -> Crowd:
        """So many UDP sockets, connected over the link, in a process of their own that runs `prepare` on them."""
        made = Crowd(senders, self.near, count, link.near, (link.far, _PORT), prepare)
        self._stack.callback(made.close)
        return made

    def stream(self, link: Link, senders: ctypes.CDLL) -> Stream:
        """A TCP connection over the link, without Nagle's delay."""
        near = self.near.socket(socket.AF_INET, socket.SOCK_STREAM)
        near.bind((link.near, 0))
        near.connect((link.far, _PORT))
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        far, _ = self._listener.accept()
        stream = Stream(near, far, senders)
        self._stack.callback(stream.close)
        return stream


def sent(count: int) -> int:
    """What a sender returned. Raises OSError where it is an error."""
    if count < 0:
        raise OSError(-count, os.strerror(-count))
    return count
