"""The fixtures of the tests of the clients over a scripted daemon, named in `pytest_plugins` by who uses them."""

from collections.abc import Iterator

import pytest

import qos2
from unit.scripted_daemon import PATIENCE_S, ScriptedDaemon, closing, scripted


@pytest.fixture
def daemon() -> Iterator[ScriptedDaemon]:
    with scripted() as made:
        yield made


@pytest.fixture
def qos(daemon: ScriptedDaemon) -> Iterator[qos2.Handle]:
    """An open handle, closed in order at the end unless it is by then."""
    handle = daemon.open(timeout=PATIENCE_S)
    yield handle
    if not handle.closed:
        closing(daemon, handle)


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """No thread looks after itself: who forgets to wake it is found out."""
    monkeypatch.setattr("qos2.channel.transport.RECHECK_S", 3600.0)
