"""The fixtures of the tests of qos2.win32. A test file has them by naming this module in `pytest_plugins`."""

import gc
import socket
import threading
from collections.abc import Iterator

import pytest

from qos2 import win32
from qos2.win32 import QOS_NON_ADAPTIVE_FLOW, QOSTrafficTypeVoice
from unit.server_stage import PEER, Stage, open_descriptors, udp
from unit.win32_stage import opened


@pytest.fixture
def handle(stage: Stage) -> Iterator[win32.HANDLE]:
    with opened(stage) as made:
        yield made


@pytest.fixture
def sock() -> Iterator[socket.socket]:
    with udp(PEER) as made:
        yield made


@pytest.fixture
def flow(handle: win32.HANDLE, sock: socket.socket) -> int:
    """A voice flow that is not adaptive."""
    return win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice, QOS_NON_ADAPTIVE_FLOW)


@pytest.fixture
def adaptive(handle: win32.HANDLE, sock: socket.socket) -> int:
    return win32.QOSAddSocketToFlow(handle, sock, None, QOSTrafficTypeVoice)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No descriptor and no thread beyond those that were there."""
    descriptors, threads = open_descriptors(), set(threading.enumerate())
    yield
    gc.collect()
    assert open_descriptors() == descriptors
    assert set(threading.enumerate()) <= threads


@pytest.fixture
def pending(stage: Stage, handle: win32.HANDLE, adaptive: int) -> Iterator[win32.OVERLAPPED]:
    """A wait for congestion that the daemon has got."""
    found = win32.QOSNotifyFlow(handle, adaptive, win32.QOSNotifyCongested, Overlapped=win32.OVERLAPPED())
    assert found is not None
    stage.settle()
    yield found
    found.close()  # pytest holds it for longer than the test
