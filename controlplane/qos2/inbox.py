"""Which clients have sent something: an epoll of its own below that of asyncio.

asyncio watches one descriptor, that of this epoll. While requests keep coming they are served without
going back to the loop, which costs as much as a small request. And a request that is to be expected
within microseconds is waited for awake: to fall asleep and be woken again on an idle CPU takes longer than
a whole request does (35 us each way were measured in a virtual machine).
"""

import contextlib
import select
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from qos2.wire.vigil import AWAKE_S, Vigil

#: After so long the other duties of the loop have their turn.
TURN_S = 0.002
#: A request is to be expected soon where the last one came within this time: some work of the client between two
#: requests, and two wakeups.
SOON_S = 200e-6

C = TypeVar("C")


class Inbox(Generic[C]):
    """Calls `serve` for each client whose descriptor is readable. `empty` is due whenever `fileno()` is readable."""

    def __init__(self, serve: Callable[[C], None]) -> None:
        self._serve = serve
        self._epoll = select.epoll()
        self._clients: dict[int, C] = {}
        self._last_s = 0.0
        self._vigil = Vigil()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def add(self, descriptor: int, client: C) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)
        self._clients[descriptor] = client

    def remove(self, descriptor: int) -> None:
        """To be called before the descriptor is closed."""
        if self._clients.pop(descriptor, None) is not None:
            with contextlib.suppress(OSError):  # closed at the end of the daemon
                self._epoll.unregister(descriptor)

    def close(self) -> None:
        self._epoll.close()

    def empty(self) -> None:
        """Serve what is there and what comes meanwhile, each client one request at a time, for about TURN_S at most."""
        poll, clients, serve, clock = self._epoll.poll, self._clients, self._serve, time.perf_counter
        began_s = last_s = clock()
        awake_s = AWAKE_S if began_s - self._last_s < SOON_S and self._vigil.is_due() else 0.0
        waited = False
        while True:
            ready = poll(0)
            if ready:
                if waited:
                    self._vigil.paid()
                for descriptor, _ in ready:
                    client = clients.get(descriptor)
                    if client is not None:  # has not been ended by one of those before it
                        serve(client)
                last_s = clock()
                if last_s - began_s >= TURN_S:
                    break
                waited = False
            elif clock() - last_s < awake_s:
                waited = True
            else:
                if waited:
                    self._vigil.was_in_vain()
                break
        self._last_s = last_s
