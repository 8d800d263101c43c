"""A small HTTP server for the metrics: it serves the bytes that were published last (`metrics` renders them).

/metrics costs nothing, however often it is asked for. /metrics/flows, where an operator has allowed it, is rendered
when it is asked for, at most once a second: it is bounded by the number of flows that are told.

Exporter serves on the running event loop. The daemon has it in a thread (ExporterThread): with very many flows its own
loop is busy for tens of milliseconds at a time, which a scrape need not wait for, nor anybody for a scrape.
"""

import asyncio
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from http import HTTPStatus
from urllib.parse import parse_qs

from prometheus_client import CONTENT_TYPE_LATEST

log = logging.getLogger(__name__)


#: The bytes for the busiest flows, at most so many.
RenderTop = Callable[[int], Awaitable[bytes]]
#: What was rendered of single flows serves for so long.
_TOP_SECONDS = 1.0
#: So many numbers of flows may be asked for meanwhile: each takes the event loop a few milliseconds.
_TOP_RENDERINGS = 4


class Exporter:
    """Serves the bytes published last at GET /metrics of `address`, on the running event loop.

    With a `flows_top` above 0, `render_top` is asked for GET /metrics/flows, for `?top=K` flows but never more.
    """

    MAX_CONNECTIONS = 32
    MAX_HEADER_BYTES = 8 * 1024

    def __init__(
        self,
        address: tuple[str, int],
        *,
        timeout_s: float = 5.0,
        flows_top: int = 0,
        render_top: RenderTop | None = None,
    ) -> None:
        self.address = address  #: once started, with the port that is really in use
        self._timeout_s = timeout_s
        self._flows_top = 0 if render_top is None else flows_top
        self._render_top = render_top
        self._top: dict[int, tuple[float, asyncio.Future[bytes]]] = {}  # count -> when it was asked for, the bytes
        self._body = b""
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Connections being served now."""
        return len(self._connections)

    def publish(self, body: bytes) -> None:
        """Serve `body`, the result of `render`, from now on."""
        self._body = body

    async def start(self) -> None:
        """Listen. Raises OSError: address in use, or not of this machine."""
        host, port = self.address
        self._server = await asyncio.start_server(self._serve, host, port, limit=self.MAX_HEADER_BYTES)
        self.address = (host, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end what is being served."""
        if self._server is None:
            return
        self._server.close()
        connections = tuple(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # start_server runs this as a task
        if len(self._connections) >= self.MAX_CONNECTIONS:
            log.warning("more than %d connections for metrics: one refused", self.MAX_CONNECTIONS)
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            async with asyncio.timeout(self._timeout_s):
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.write_eof()
                # Closing with bytes unread would reset the connection and lose the answer.
                while await reader.read(self.MAX_HEADER_BYTES):
                    pass
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            log.debug("metrics connection ended: %r", error)
        finally:
            # Nothing left to send, or a peer that does not take it: either way, no waiting.
            writer.transport.abort()
            self._connections.discard(task)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"request too long\n")
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, b"not an HTTP/1 request\n")
        method, target, _ = words
        path, _, query = target.partition(b"?")
        if path == b"/metrics/flows" and not self._flows_top:
            return _response(HTTPStatus.NOT_FOUND, b"single flows are not told: metrics_flows_top is 0\n")
        if path not in (b"/metrics", b"/metrics/flows"):
            return _response(HTTPStatus.NOT_FOUND, b"see /metrics\n")
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n", "Allow: GET, HEAD\r\n")
        if path == b"/metrics":
            body = self._body
        else:
            count = _count(query, self._flows_top)
            if count is None:
                return _response(HTTPStatus.BAD_REQUEST, b"top is a number of flows, 1 or more\n")
            top = await self._flows(count)
            if top is None:
                return _response(HTTPStatus.SERVICE_UNAVAILABLE, b"ask for the same number of flows as others do\n")
            body = top
        if not body:
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, b"starting\n")
        return _response(HTTPStatus.OK, body, kind=CONTENT_TYPE_LATEST, with_body=method == b"GET")

    async def _flows(self, count: int) -> bytes | None:
        """The busiest flows, as they were a second ago at most. None: too many other numbers were asked for."""
        assert self._render_top is not None
        now_s = time.monotonic()
        self._top = {each: kept for each, kept in self._top.items() if now_s - kept[0] < _TOP_SECONDS}
        if count not in self._top:
            if len(self._top) >= _TOP_RENDERINGS:
                return None
            self._top[count] = now_s, asyncio.ensure_future(self._render_top(count))
        # Shielded: others may wait for the same, when this connection is given up.
        return await asyncio.shield(self._top[count][1])


def _count(query: bytes, most: int) -> int | None:
    """The K of `top=K`, `most` at most and without one; None where it is no number of flows."""
    told = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("top")
    if told is None:
        return most
    text = told[-1]
    # Digits beyond those of any number of flows are not converted: that takes time.
    return min(int(text), most) if text.isascii() and text.isdigit() and len(text) < 10 and int(text) else None


def _response(
    status: HTTPStatus,
    body: bytes,
    headers: str = "",
    *,
    kind: str = "text/plain; charset=utf-8",
    with_body: bool = True,
) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"{headers}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + (body if with_body else b"")


class ExporterThread:
    """An Exporter on an event loop of its own; `render_top` is called on the loop that has called start()."""

    #: How long a thread that wants to run may have to wait for another one, seconds: each step of a scrape does.
    SWITCH_SECONDS = 1e-3

    def __init__(
        self, address: tuple[str, int], *, flows_top: int = 0, render_top: Callable[[int], bytes] | None = None
    ) -> None:
        self._render_top = render_top
        self._exporter = Exporter(
            address, flows_top=flows_top, render_top=None if render_top is None else self._rendered
        )
        self._thread = threading.Thread(target=self._run, name="qos2-exporter", daemon=True)
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._callers: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()

    @property
    def address(self) -> tuple[str, int]:
        """Once started, with the port that is really in use."""
        return self._exporter.address

    def publish(self, body: bytes) -> None:
        """Serve `body`, the result of `render`, from now on."""
        self._exporter.publish(body)

    async def start(self) -> None:
        """Listen. Raises OSError: address in use, or not of this machine."""
        self._callers = asyncio.get_running_loop()
        sys.setswitchinterval(self.SWITCH_SECONDS)
        self._thread.start()
        await asyncio.wrap_future(self._started)

    async def close(self) -> None:
        """Stop listening and end what is being served."""
        if self._callers is None:
            return
        self._callers = None
        if self._started.exception() is None:
            self._started.result().call_soon_threadsafe(self._stop.set)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        try:
            await self._exporter.start()
        except OSError as error:
            self._started.set_exception(error)
            return
        self._started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        await self._exporter.close()

    async def _rendered(self, count: int) -> bytes:
        """By the caller's loop: what is rendered is not for other threads to read."""
        if self._callers is None:
            return b""  # closing
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(self._render(count), self._callers))

    async def _render(self, count: int) -> bytes:
        assert self._render_top is not None
        return self._render_top(count)
