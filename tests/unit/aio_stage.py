"""What the tests of the asyncio client share: its loop, and a scripted daemon that is spoken to from within it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import qos2.aio
from unit.scripted_daemon import ScriptedDaemon, in_thread


def run(main: Callable[[], Awaitable[None]]) -> None:
    """In a new loop, within a minute."""

    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main()

    asyncio.run(bounded())


async def opened(daemon: ScriptedDaemon, **options: Any) -> qos2.aio.Handle:
    welcoming = in_thread(daemon.welcome)
    handle = await qos2.aio.Handle(daemon.path, **options)
    await asyncio.wrap_future(welcoming)
    return handle


async def asked(daemon: ScriptedDaemon, op: str) -> dict[str, Any]:
    """The next request, while the loop goes on."""
    return await asyncio.wrap_future(in_thread(lambda: daemon.receive(op)))


async def closing(daemon: ScriptedDaemon, qos: qos2.aio.Handle) -> None:
    closed = asyncio.ensure_future(qos.close())
    daemon.answer(await asked(daemon, "close_handle"))
    await closed
