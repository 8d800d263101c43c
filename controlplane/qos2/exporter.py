"""A small HTTP server for the metrics: it serves the bytes that were published last (metrics.py renders them)."""

import asyncio
import logging
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST

log = logging.getLogger(__name__)


class Exporter:
    """Serves the bytes published last at GET /metrics of `address`, on the running event loop."""

    MAX_CONNECTIONS = 32
    MAX_HEADER_BYTES = 8 * 1024

    def __init__(self, address: tuple[str, int], *, timeout_s: float = 5.0) -> None:
        self.address = address  #: once started, with the port that is really in use
        self._timeout_s = timeout_s
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
        if target.partition(b"?")[0] != b"/metrics":
            return _response(HTTPStatus.NOT_FOUND, b"see /metrics\n")
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n", "Allow: GET, HEAD\r\n")
        if not self._body:
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, b"starting\n")
        return _response(HTTPStatus.OK, self._body, kind=CONTENT_TYPE_LATEST, with_body=method == b"GET")


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
