"""The service manager's end of the daemon: the socket that it passes, and what is said to it."""

import asyncio
import logging
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest

from qos2.activation import ActivatedServer, address_of, passed_listener
from qos2.core.service import Service
from qos2.errors import ConfigError
from qos2.metrics import LagMeter
from qos2.policies import Policies
from qos2.runtime import Daemon
from qos2.supervisor import Supervisor

ME = str(os.getpid())


def listening(path: Path | str, kind: int = socket.SOCK_SEQPACKET) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, kind)
    made.bind(str(path))
    if kind != socket.SOCK_DGRAM:
        made.listen(8)
    return made


def passing(descriptors: str = "1", names: str = "qos2", pid: str = ME) -> dict[str, str]:
    return {"LISTEN_PID": pid, "LISTEN_FDS": descriptors, "LISTEN_FDNAMES": names, "KEPT": "yes"}


def refusal(descriptor: int, **told: str) -> str:
    with pytest.raises(ConfigError) as refused:
        passed_listener(passing(**told), descriptor)
    return refused.value.message


def test_the_listening_socket_is_taken_and_not_told_to_children(tmp_path: Path) -> None:
    environment = passing()
    with listening(tmp_path / "s") as made:
        descriptor = os.dup(made.fileno())
        os.set_inheritable(descriptor, True)
        taken = passed_listener(environment, descriptor)
        assert taken is not None
        with taken:
            assert taken.fileno() == descriptor
            assert not os.get_inheritable(descriptor)
            assert taken.gettimeout() == 0.0
            assert address_of(taken) == str(tmp_path / "s")
    assert environment == {"KEPT": "yes"}


def test_an_abstract_address_is_told_as_everywhere() -> None:
    with listening(f"\0qos2-test-{ME}") as made:
        assert address_of(made) == f"@qos2-test-{ME}"


@pytest.mark.parametrize(
    "environment", [{}, passing(descriptors="0"), passing(pid="1"), passing(pid="x"), {"LISTEN_FDS": "1"}]
)
def test_what_is_for_nobody_or_somebody_else_is_not_taken(environment: dict[str, str]) -> None:
    assert passed_listener(environment, -1) is None


def test_anything_else_is_refused_by_what_it_is(tmp_path: Path) -> None:
    with (
        listening(tmp_path / "stream", socket.SOCK_STREAM) as stream,
        listening(tmp_path / "datagram", socket.SOCK_DGRAM) as datagram,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as deaf,
        open(os.devnull) as file,
    ):
        passed = {
            "stream": stream.fileno(),
            "datagram": datagram.fileno(),
            "tcp": tcp.fileno(),
            "deaf": deaf.fileno(),
            "file": file.fileno(),
        }
        assert {kind: refusal(each).partition(" is ")[2] for kind, each in passed.items()} == {
            "stream": "a socket of AF_UNIX and SOCK_STREAM",
            "datagram": "a socket of AF_UNIX and SOCK_DGRAM",
            "tcp": "a socket of AF_INET and SOCK_STREAM",
            "deaf": "a socket that does not listen",
            "file": "no socket",
        }
        # Refused, and not closed: it is the service manager's.
        assert os.fstat(stream.fileno())


def test_a_refusal_names_the_descriptor() -> None:
    with open(os.devnull) as file:
        assert (
            refusal(file.fileno(), names="web")
            == f"descriptor {file.fileno()} (web) of the service manager is no socket"
        )
    assert refusal(-1) == "descriptor -1 of the service manager: Bad file descriptor"
    assert refusal(3, descriptors="2", names="qos2:web") == "the service manager passed 2 descriptors (qos2:web)"
    assert refusal(3, descriptors="2", names="") == "the service manager passed 2 descriptors (without names)"
    assert refusal(3, descriptors="-1") == "the service manager passed '-1' descriptors"


def test_the_server_takes_who_waits_and_leaves_the_socket_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with listening(path) as made, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as early:
        early.connect(str(path))
        made.setblocking(False)

        async def serve() -> int:
            server = ActivatedServer(
                made.dup(),
                cast(Service, _NoService()),
                "/nonexistent/never-used",
                observe=lambda _op, _result, _seconds: None,
                logger=logging.getLogger("test"),
            )
            server.start()
            for _ in range(10):  # turns of the loop; who waits is there already
                await asyncio.sleep(0)
            served = server.connections
            server.close()
            return served

        assert asyncio.run(asyncio.wait_for(serve(), 10)) == 1
        assert early.recv(1) == b""  # its handle has ended
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
            late.settimeout(1)
            late.connect(str(path))  # nobody serves, and it waits all the same
            made.accept()[0].close()


class _NoService:
    """As much of a service as connecting and leaving asks for."""

    completed: tuple[()] = ()

    def close_handle(self, handle: int) -> None:
        raise AssertionError(f"nobody opened handle {handle}")


# What is said to the service manager


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "notify"))
        made.settimeout(5)
        yield made


def heard(manager: socket.socket) -> dict[str, str]:
    """The assignments of one message."""
    return dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())


def test_a_manager_is_told_each_state(manager: socket.socket) -> None:
    environment = {"NOTIFY_SOCKET": manager.getsockname(), "KEPT": "yes"}
    supervisor = Supervisor(environment)
    assert environment == {"KEPT": "yes"}
    supervisor.ready()
    assert heard(manager) == {"READY": "1"}
    supervisor.ready("reloaded: 3 rules")
    assert heard(manager) == {"READY": "1", "STATUS": "reloaded: 3 rules"}
    supervisor.reloading()
    told = heard(manager)
    assert (sorted(told), told["RELOADING"]) == (["MONOTONIC_USEC", "RELOADING"], "1")
    assert 0 < int(told["MONOTONIC_USEC"]) / 1e6 < float(Path("/proc/uptime").read_text().split()[0]) + 1
    supervisor.alive()
    assert heard(manager) == {"WATCHDOG": "1"}
    supervisor.stopping()
    assert heard(manager) == {"STOPPING": "1"}


def test_an_abstract_address_of_the_manager_is_understood() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0qos2-test-notify-{ME}")
        Supervisor({"NOTIFY_SOCKET": f"@qos2-test-notify-{ME}"}).stopping()
        assert manager.recv(100) == b"STOPPING=1"


@pytest.mark.parametrize(
    ("told", "feed_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "60000000"}, 15.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": ME}, 15.0),
        ({"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdog_is_fed_four_times_in_its_time(told: dict[str, str], feed_s: float | None) -> None:
    assert Supervisor({"NOTIFY_SOCKET": "/nowhere", **told}).feed_s == feed_s
    assert Supervisor(dict(told)).feed_s is None  # nobody to tell


def test_without_a_manager_nothing_is_said_and_a_deaf_one_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    Supervisor({}).ready("x")
    assert caplog.messages == []
    Supervisor({"NOTIFY_SOCKET": "/nonexistent/notify"}).ready("x")
    assert caplog.messages == ["the service manager does not hear READY=1: [Errno 2] No such file or directory"]


def test_a_manager_that_does_not_read_is_not_waited_for_when_it_is_fed(manager: socket.socket) -> None:
    code = (
        "import socket, sys, time\n"
        "from qos2.supervisor import Supervisor\n"
        "fed = Supervisor({'NOTIFY_SOCKET': sys.argv[1]})\n"
        "began = time.monotonic()\n"
        "for _ in range(2000): fed.alive()\n"  # more than net.unix.max_dgram_qlen
        "print(time.monotonic() - began < 10)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, manager.getsockname()],
        env=os.environ | {"PYTHONPATH": str(Path(passed_listener.__code__.co_filename).parents[1])},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "True\n"


def test_the_watchdog_hears_nothing_of_a_loop_that_is_stuck(manager: socket.socket) -> None:
    supervisor = Supervisor({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "40000"})
    assert supervisor.feed_s == 0.01
    feed_s = supervisor.feed_s
    daemon = Daemon.__new__(Daemon)  # a periodic duty needs this part alone
    daemon._lag = LagMeter()

    async def turn() -> None:
        async with asyncio.TaskGroup() as tasks:
            duty = tasks.create_task(daemon._every(feed_s, supervisor.alive))
            await asyncio.sleep(0.1)
            assert heard(manager) == {"WATCHDOG": "1"}
            drain(manager)
            time.sleep(0.1)  # noqa: ASYNC251 - this is what being stuck is
            assert drain(manager) == 0
            duty.cancel()

    asyncio.run(turn())


def drain(manager: socket.socket) -> int:
    """How many messages there were."""
    found = 0
    while select.select([manager], [], [], 0)[0]:
        manager.recv(4096)
        found += 1
    return found


# What SIGHUP does


class Rereading(Policies):
    """In place of a folder, what its reading comes to."""

    def __init__(self, reread: Callable[[], str]) -> None:
        self._came_of_it = reread

    def reread(self) -> str:
        return self._came_of_it()


def reloaded(manager: socket.socket, reread: Callable[[], str]) -> list[dict[str, str]]:
    daemon = Daemon.__new__(Daemon)  # reload() needs these two parts alone
    daemon.supervisor = Supervisor({"NOTIFY_SOCKET": manager.getsockname()})
    daemon.policies = Rereading(reread)
    daemon.reload()
    return [heard(manager), heard(manager)]


def test_a_reload_is_announced_and_ends_with_what_came_of_it(
    manager: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    first, last = reloaded(manager, lambda: "3 rules")
    assert (first["RELOADING"], last) == ("1", {"READY": "1", "STATUS": "reloaded: 3 rules"})
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [("INFO", "reloaded: 3 rules")]


def test_a_reload_that_fails_leaves_the_daemon_ready(manager: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    def refuse() -> str:
        raise ConfigError("10-calls.toml:3: unknown key `matsch`", "did you mean `match`?")

    _, last = reloaded(manager, refuse)
    words = "not reloaded, all is as it was: 10-calls.toml:3: unknown key `matsch` (did you mean `match`?)"
    assert last == {"READY": "1", "STATUS": words}
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [("ERROR", words)]

    def fail() -> str:
        raise ZeroDivisionError

    _, last = reloaded(manager, fail)
    assert last == {"READY": "1", "STATUS": "not reloaded: a bug, see the log"}
    assert caplog.records[-1].exc_info is not None
