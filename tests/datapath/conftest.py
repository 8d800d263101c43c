"""What the datapath tests stand on: root, one lab with one daemon for the whole session, one Wire per test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.lab import Lab, command
from demo.processes import Daemon
from harness.policed import Policed, Stage
from harness.wire import UNPROBED, Wire


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """Three namespaces: app - router - peer."""
    with Lab("qos2-test") as lab:
        yield lab


@pytest.fixture(scope="session")
def daemon(lab: Lab) -> Iterator[Daemon]:
    """The real daemon on the application's device."""
    with Daemon(lab.app, **UNPROBED) as daemon:
        yield daemon
        assert "Traceback" not in daemon.log, daemon.log


@pytest.fixture
def wire(lab: Lab, daemon: Daemon) -> Iterator[Wire]:
    """Sockets, captures and senders of one test."""
    with Wire(lab, daemon) as wire:
        yield wire


@pytest.fixture(scope="session")
def bpf_fs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bpf file system of this session's own."""
    mount = tmp_path_factory.mktemp("bpf")
    command("mount", "-t", "bpf", "bpf", str(mount))
    yield mount
    command("umount", str(mount))


@pytest.fixture(scope="module")
def policed(bpf_fs: Path) -> Iterator[Policed]:
    """The datapath on the application's device, without a daemon."""
    with Lab("qos2-test") as lab, Policed(lab, lab.app, bpf_fs) as policed:
        yield policed


@pytest.fixture(scope="module")
def forwarding(bpf_fs: Path) -> Iterator[Policed]:
    """The datapath on the router's device towards the peer."""
    with Lab("qos2-test") as lab, Policed(lab, lab.router, bpf_fs) as policed:
        yield policed


@pytest.fixture
def stage(policed: Policed) -> Iterator[Stage]:
    """Rules, sockets and captures of one test."""
    with Stage(policed) as stage:
        yield stage
