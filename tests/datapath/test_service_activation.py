"""The real daemon on a socket that it was passed: clients wait while it starts and while it is away."""

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import qos2
from demo.lab import Lab, LabError
from harness.service import ServiceDaemon

pytestmark = pytest.mark.datapath

#: No client of these tests gives up before the daemon's own patience with its compiler ends.
PATIENCE_S = 360.0


@pytest.fixture(scope="module")
def service_lab() -> Iterator[Lab]:
    """A lab without the session's daemon."""
    with Lab("qos2-test-service") as lab:
        yield lab


class Client:
    """Opens a handle in a thread of its own."""

    def __init__(self, path: str) -> None:
        self.handle: qos2.Handle | None = None
        self._path = path
        self._thread = threading.Thread(target=self._open, daemon=True)
        self._thread.start()

    def _open(self) -> None:
        self.handle = qos2.Handle(self._path, timeout=PATIENCE_S)

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def served(self) -> qos2.Handle:
        self._thread.join(PATIENCE_S)
        assert self.handle is not None
        return self.handle


def marked(lab: Lab, handle: qos2.Handle) -> tuple[socket.socket, qos2.Flow]:
    sock = lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((lab.peer.ipv4[0], 5004))
    return sock, handle.add_socket(sock, qos2.TrafficType.VOICE)


def test_clients_wait_for_the_daemon_before_its_start_after_a_kill_and_through_a_restart(service_lab: Lab) -> None:
    with ServiceDaemon(service_lab.app) as daemon:
        inode = os.stat(daemon.socket).st_ino
        first = qos2.Handle(daemon.socket)
        sock, flow = marked(service_lab, first)

        daemon.kill()
        waiting = [Client(daemon.socket) for _ in range(3)]
        with pytest.raises(qos2.ServiceLost):  # a handle ends with its daemon: that is its meaning
            flow.stats()
        time.sleep(0.3)
        assert [client.waits for client in waiting] == [True, True, True]
        daemon.start()
        handles = [client.served() for client in waiting]
        assert handles[0].status().orphans == 1  # its marks and limits stayed in force meanwhile
        again = handles[0].add_socket(sock, qos2.TrafficType.VOICE)
        assert again.stats().packets == 0

        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log, daemon.log
        assert os.stat(daemon.socket).st_ino == inode  # it is the manager's
        assert not daemon.pins.exists()
        late = Client(daemon.socket)
        time.sleep(0.3)
        assert late.waits
        daemon.start()
        with late.served() as handle:
            assert handle.status().orphans == 0
        sock.close()
        for handle in (first, *handles):
            handle.close()
    assert not os.path.exists(daemon.socket)  # with the directory of the test


def test_the_manager_hears_of_the_daemon_what_it_has_to_know(service_lab: Lab) -> None:
    with ServiceDaemon(service_lab.app) as daemon:
        assert daemon.process is not None
        assert daemon.hear("WATCHDOG", 10) == {"WATCHDOG": "1"}
        with daemon.stuck():
            while daemon_said(daemon, 0.2):
                pass  # what it had said before
            assert not daemon_said(daemon, 2.0)  # four feeds
        assert daemon.hear("WATCHDOG", 10) == {"WATCHDOG": "1"}
        daemon.process.send_signal(signal.SIGHUP)
        began = int(daemon.hear("RELOADING", 10)["MONOTONIC_USEC"])
        assert abs(time.monotonic() - began / 1e6) < 10
        assert daemon.hear("READY", 10)["STATUS"].startswith("reloaded: ")
        with qos2.Handle(daemon.socket) as handle:
            assert handle.status().datapath["devices"]
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.hear("STOPPING", 10) == {"STOPPING": "1"}
        assert daemon.process.wait(20) == 0


def daemon_said(daemon: ServiceDaemon, within_s: float) -> bool:
    try:
        daemon.hear("WATCHDOG", within_s)
    except LabError:
        return False
    return True


def test_another_kind_of_socket_is_refused_by_its_name(service_lab: Lab) -> None:
    with pytest.raises(LabError) as refused, ServiceDaemon(service_lab.app, kind=socket.SOCK_DGRAM):
        pass
    assert "descriptor 3 (qos2) of the service manager is a socket of AF_UNIX and SOCK_DGRAM" in str(refused.value)
