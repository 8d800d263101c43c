"""The exporter: an HTTP server for bytes that others have rendered, which stands bad clients."""

import asyncio
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any
from urllib.request import urlopen

import pytest
from prometheus_client import CONTENT_TYPE_LATEST

from qos2.exporter import Exporter, ExporterThread, RenderTop


@asynccontextmanager
async def exporter(
    timeout_s: float = 5.0, flows_top: int = 0, render_top: RenderTop | None = None
) -> AsyncIterator[Exporter]:
    served = Exporter(("127.0.0.1", 0), timeout_s=timeout_s, flows_top=flows_top, render_top=render_top)
    await served.start()
    try:
        yield served
    finally:
        await served.close()


@asynccontextmanager
async def connected(served: Exporter) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*served.address)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(served: Exporter, request: bytes) -> bytes:
    async with connected(served) as (reader, writer):
        writer.write(request)
        return await reader.read()


def in_loop(test: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await test()

    return asyncio.run(bounded())


def test_a_scrape_gets_the_bytes_published_last() -> None:
    async def scrape() -> bytes:
        async with exporter() as served:
            served.publish(b"old 1\n")
            served.publish(b"new 2\n")
            return await ask(served, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")

    assert in_loop(scrape) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: " + CONTENT_TYPE_LATEST.encode() + b"\r\n"
        b"Content-Length: 6\r\nConnection: close\r\n\r\nnew 2\n"
    )


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"HEAD /metrics HTTP/1.1", b"200 OK", b""),
        (b"GET /metrics?debug=1 HTTP/1.0", b"200 OK", b"a 1\n"),
        (b"GET / HTTP/1.1", b"404 Not Found", b"see /metrics\n"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed", b"GET or HEAD\n"),
        (b"hello", b"400 Bad Request", b"not an HTTP/1 request\n"),
        (b"GET /metrics HTTP/2", b"400 Bad Request", b"not an HTTP/1 request\n"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1", b"431 Request Header Fields Too Large", b"request too long\n"),
    ],
)
def test_each_request_gets_its_status(request_line: bytes, status: bytes, body: bytes) -> None:
    async def scrape() -> bytes:
        async with exporter() as served:
            served.publish(b"a 1\n")
            return await ask(served, request_line + b"\r\n\r\n")

    answer: bytes = in_loop(scrape)
    assert answer.partition(b"\r\n")[0] == b"HTTP/1.1 " + status
    assert answer.partition(b"\r\n\r\n")[2] == body


def flows_asked(*queries: bytes, most: int = 10) -> tuple[list[bytes], list[int]]:
    """The bodies of the replies to these queries of /metrics/flows, and the numbers of flows that were rendered."""
    rendered: list[int] = []

    async def render_top(count: int) -> bytes:
        rendered.append(count)
        return b"flows %d\n" % count

    async def ask_all() -> list[bytes]:
        async with exporter(flows_top=most, render_top=render_top) as served:
            answers = [await ask(served, b"GET /metrics/flows%b HTTP/1.1\r\n\r\n" % query) for query in queries]
            return [answer.partition(b"\r\n\r\n")[2] for answer in answers]

    return in_loop(ask_all), rendered


def test_single_flows_are_told_as_many_as_are_asked_for_and_allowed() -> None:
    queries = (b"", b"?top=3", b"?top=11", b"?x=1&top=4")
    assert flows_asked(*queries) == ([b"flows 10\n", b"flows 3\n", b"flows 10\n", b"flows 4\n"], [10, 3, 4])


def test_single_flows_are_rendered_once_a_second_and_for_four_numbers() -> None:
    busy = b"ask for the same number of flows as others do\n"
    queries = (b"?top=1", b"?top=2", b"?top=3", b"?top=1", b"?top=4", b"?top=5")
    bodies, rendered = flows_asked(*queries)
    assert bodies == [b"flows 1\n", b"flows 2\n", b"flows 3\n", b"flows 1\n", b"flows 4\n", busy]
    assert rendered == [1, 2, 3, 4]


@pytest.mark.parametrize("top", [b"", b"0", b"-1", b"2.5", b"many", b"%D9%A3", b"9" * 4000])
def test_what_is_no_number_of_flows_is_refused(top: bytes) -> None:
    assert flows_asked(b"?top=" + top) == ([b"top is a number of flows, 1 or more\n"], [])


def test_single_flows_are_not_told_unless_that_was_allowed() -> None:
    assert flows_asked(b"", most=0) == ([b"single flows are not told: metrics_flows_top is 0\n"], [])


def test_before_the_first_snapshot_a_scrape_is_told_to_come_again() -> None:
    async def scrape() -> bytes:
        async with exporter() as served:
            return await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")

    assert in_loop(scrape).startswith(b"HTTP/1.1 503 ")


def test_a_client_that_says_nothing_is_disconnected() -> None:
    async def silent() -> bytes:
        async with exporter(timeout_s=0.05) as served:
            return await ask(served, b"GET /metr")

    assert in_loop(silent) == b""


def test_a_client_that_reads_nothing_is_disconnected_and_harms_no_other() -> None:
    async def stuck() -> tuple[bytes, int]:
        async with exporter(timeout_s=0.05) as served:
            served.publish(b"x" * 50_000_000)
            with socket.create_connection(served.address) as deaf:
                deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                # Accepted in their order: after this answer the deaf one is being served, or is over already.
                await ask(served, b"GET / HTTP/1.1\r\n\r\n")
                serving = asyncio.all_tasks() - {asyncio.current_task()}
                if serving:
                    await asyncio.wait(serving)
                connections = served.connections
                served.publish(b"a 1\n")
                return await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n"), connections

    answer, connections = in_loop(stuck)
    assert answer.endswith(b"\r\n\r\na 1\n")
    assert connections == 0


def test_more_than_the_allowed_connections_are_turned_away_at_once() -> None:
    async def crowd() -> int:
        async with exporter() as served, AsyncExitStack() as idle:
            served.publish(b"a 1\n")
            for _ in range(Exporter.MAX_CONNECTIONS):
                await idle.enter_async_context(connected(served))
            # Connections are accepted in their order, so this one comes after all of those.
            with pytest.raises(ConnectionResetError):
                await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")
            return served.connections

    assert in_loop(crowd) == Exporter.MAX_CONNECTIONS


def test_closing_ends_connections_that_are_being_served() -> None:
    async def closing() -> tuple[bool, int, bytes]:
        async with exporter() as served, connected(served) as (reader, _):
            await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")
            before = served.connections > 0
            await served.close()
            with suppress(ConnectionError):
                return before, served.connections, await reader.read()
            return before, served.connections, b""

    assert in_loop(closing) == (True, 0, b"")


def in_thread(test: Callable[[ExporterThread], Awaitable[Any]], **options: Any) -> Any:
    """What a test of an exporter in a thread of its own returns; the interpreter switches as before afterwards."""

    async def bounded() -> Any:
        served = ExporterThread(("127.0.0.1", 0), **options)
        await served.start()
        try:
            async with asyncio.timeout(20):
                return await test(served)
        finally:
            await served.close()

    before_s = sys.getswitchinterval()
    try:
        return asyncio.run(bounded())
    finally:
        sys.setswitchinterval(before_s)


def fetched(address: tuple[str, int], path: str) -> bytes:
    """The body, as a client that blocks gets it."""
    with urlopen(f"http://{address[0]}:{address[1]}{path}", timeout=10) as answer:
        body: bytes = answer.read()
        return body


def test_in_its_own_thread_it_answers_while_the_callers_loop_is_busy() -> None:
    async def busy(served: ExporterThread) -> bytes:
        served.publish(b"a 1\n")
        # Blocks this loop until the answer is there.
        return fetched(served.address, "/metrics")

    assert in_thread(busy) == b"a 1\n"


def test_in_its_own_thread_single_flows_are_rendered_by_the_callers_loop() -> None:
    rendered_by: list[threading.Thread] = []

    def render_top(count: int) -> bytes:
        rendered_by.append(threading.current_thread())
        return b"flows %d\n" % count

    async def ask_for_flows(served: ExporterThread) -> bytes:
        return await asyncio.to_thread(fetched, served.address, "/metrics/flows?top=2")

    assert in_thread(ask_for_flows, flows_top=5, render_top=render_top) == b"flows 2\n"
    assert rendered_by == [threading.main_thread()]


def test_in_its_own_thread_too_an_address_in_use_is_an_error_of_the_start() -> None:
    async def again(served: ExporterThread) -> None:
        second = ExporterThread(served.address)
        with pytest.raises(OSError, match="address already in use"):
            await second.start()
        for _ in range(2):
            await second.close()

    in_thread(again)


def test_once_closed_nobody_listens_and_the_thread_is_gone() -> None:
    async def remember(served: ExporterThread) -> tuple[str, int]:
        return served.address

    address = in_thread(remember)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    assert [thread.name for thread in threading.enumerate() if thread.name == "qos2-exporter"] == []
