"""Which clients have something to say, and for how long the daemon stays awake for the next one."""

import select
import socket
import time
from collections.abc import Iterator

import pytest

from qos2.inbox import Inbox
from qos2.wire.vigil import AWAKE_S


class Clients:
    """Connected sockets; `served` says whose message was read, in order."""

    def __init__(self, count: int) -> None:
        self.pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)]
        self.served: list[int] = []
        self.inbox: Inbox[int] = Inbox(self._serve)
        for number, (ours, _) in enumerate(self.pairs):
            self.inbox.add(ours.fileno(), number)

    def say(self, number: int) -> None:
        self.pairs[number][1].send(b"x")

    def _serve(self, number: int) -> None:
        self.pairs[number][0].recv(16)
        self.served.append(number)

    def close(self) -> None:
        self.inbox.close()
        for pair in self.pairs:
            for each in pair:
                each.close()


@pytest.fixture
def clients() -> Iterator[Clients]:
    made = Clients(3)
    yield made
    made.close()


def test_everything_that_waits_is_served_one_message_of_each_at_a_time(clients: Clients) -> None:
    for number in (0, 0, 0, 2, 2, 1):
        clients.say(number)
    clients.inbox.empty()
    assert sorted(clients.served) == [0, 0, 0, 1, 2, 2]
    assert set(clients.served[:3]) == {0, 1, 2}
    assert set(clients.served[3:5]) == {0, 2}


def test_its_descriptor_is_readable_while_somebody_has_something_to_say(clients: Clients) -> None:
    def readable() -> bool:
        return bool(select.select([clients.inbox], [], [], 0)[0])

    assert not readable()
    clients.say(1)
    assert readable()
    clients.inbox.empty()
    assert not readable()


def test_who_was_removed_is_not_served_even_if_he_had_something_to_say() -> None:
    clients = Clients(2)
    serve = clients.inbox._serve

    def removing(number: int) -> None:
        serve(number)
        clients.inbox.remove(clients.pairs[1 - number][0].fileno())

    clients.inbox._serve = removing
    clients.say(0)
    clients.say(1)
    clients.inbox.empty()
    assert len(clients.served) == 1
    clients.close()


def test_a_flood_leaves_the_other_duties_their_turn(clients: Clients) -> None:
    serve = clients.inbox._serve

    def endless(number: int) -> None:
        serve(number)
        clients.say(number)

    clients.inbox._serve = endless
    clients.say(0)
    clients.inbox.empty()  # would never return
    assert clients.served


def test_the_next_request_is_waited_for_awake_only_while_that_pays(
    clients: Clients, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 0.0

    def clock() -> float:  # virtual: a look at the clock takes 10 us
        nonlocal now_s
        now_s += 10e-6
        return now_s

    monkeypatch.setattr(time, "perf_counter", clock)

    def awake_s(pause_s: float) -> float:
        """How long one call goes on after the last message was served; `pause_s` lies before it."""
        nonlocal now_s
        now_s += pause_s
        clients.say(0)
        begin_s = now_s
        clients.inbox.empty()
        return now_s - begin_s

    asleep = awake_s(1.0)
    assert asleep < AWAKE_S, "after a long pause nothing is expected soon"
    assert awake_s(20e-6) >= AWAKE_S
    in_vain = [awake_s(20e-6) >= AWAKE_S for _ in range(40)]
    assert in_vain.count(True) == 4, "after 2, 4, 8 and 16 times without"
