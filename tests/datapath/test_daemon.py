"""The daemon as a process: how it starts, refuses to start, is killed, comes back, and leaves the host."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import qos2
from demo.lab import Lab, command
from demo.processes import CACHE, Daemon, environment
from harness.tcx import tcx_programs
from qos2.datapath.links import Namespace
from qos2.datapath.shapers import available_kinds

pytestmark = pytest.mark.datapath

MIB = 1 << 20
_DEFAULTS = Path(tempfile.gettempdir(), f"qos2-test-{os.getpid()}.toml")


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    """A lab without the session's daemon."""
    with Lab("qos2-life") as lab:
        yield lab


@pytest.fixture(scope="module", autouse=True)
def defaults() -> Iterator[Path]:
    """A configuration that changes nothing, save that nothing is left in the machine's own cache."""
    _DEFAULTS.write_text(f'cache = "{CACHE}"\n')
    yield _DEFAULTS
    _DEFAULTS.unlink()


def start(lab: Lab, *argv: str, config: Path | None = None, wrapper: tuple[str, ...] = ()) -> tuple[int, str]:
    """Runs a daemon that is expected to end by itself: exit status and what it wrote to stderr."""
    options = ["--config", str(config or _DEFAULTS)]
    done = subprocess.run(
        lab.app.argv(*wrapper, sys.executable, "-m", "qos2.daemon", *options, *argv),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


def socket_in(lab: Lab, port: int = 5004) -> socket.socket:
    sock = lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((lab.peer.ipv4[0].partition("/")[0], port))
    return sock


def device_state(lab: Lab) -> dict[str, object]:
    """Everything of the application's device that a daemon could leave behind."""
    device = lab.app.device
    with open(lab.app.path) as descriptor, Namespace(descriptor.fileno()) as namespace:
        index = next(each.index for each in namespace.devices() if each.name == device)
        programs = tcx_programs(namespace, index)
    return {
        "qdiscs": re.sub(r"direct_packets_stat \d+ ", "", lab.app.run("tc", "qdisc", "show", "dev", device)),
        "filters": lab.app.run("tc", "filter", "show", "dev", device, "egress"),
        "programs": programs,
    }


def pinned(daemon: Daemon) -> dict[str, int]:
    """The kernel's ids of all pinned maps and programs, by path."""
    found = {}
    for kind, folder in (("map", "maps-*"), ("prog", "programs-*")):
        for pin in daemon.pins.glob(f"{folder}/*"):
            found[str(pin)] = int(json.loads(command("bpftool", "-j", kind, "show", "pinned", str(pin)))["id"])
    return found


def test_a_stopped_daemon_leaves_the_host_as_it_found_it(own_lab: Lab) -> None:
    before = device_state(own_lab)
    with Daemon(own_lab.app) as daemon:
        with qos2.Handle(daemon.socket) as qos, socket_in(own_lab) as sock:
            qos.add_socket(sock, qos2.TrafficType.VOICE).set_rate(1_000_000)
            assert device_state(own_lab) != before
        assert daemon.stop() == 0
        assert not daemon.pins.exists()
        assert not Path(daemon.socket).exists()
        assert device_state(own_lab) == before


def test_a_killed_daemon_is_taken_over_without_a_second_filter_or_a_leaked_map(own_lab: Lab) -> None:
    # From a start to the next question an emulated processor takes seconds.
    with Daemon(own_lab.app, orphan_grace_s=4) as daemon, socket_in(own_lab) as sock:
        with qos2.Handle(daemon.socket) as qos:
            flow = qos.add_socket(sock, qos2.TrafficType.VOICE)
            flow.set_rate(1_000_000)
            first = flow.id
            device, pins = device_state(own_lab), pinned(daemon)
            daemon.kill()
            assert device_state(own_lab) == device
            with pytest.raises(qos2.ServiceLost):
                flow.stats()
        for _ in range(3):
            daemon.start()
            assert (device_state(own_lab), pinned(daemon)) == (device, pins)
            daemon.kill()
        daemon.start()
        with qos2.Handle(daemon.socket) as qos:
            assert qos.status().orphans == 1
            second = qos.add_socket(sock, qos2.TrafficType.CONTROL).id
            assert second != first
            until(lambda: qos.status().orphans == 0, "the orphan did not end")
            assert [each.flow for each in qos.flows()] == [second]


def best() -> str:
    """The shaper of a device whose qdisc is the kernel's default."""
    return "fq" if "fq" in available_kinds() else "htb"


def attached(qos: qos2.Handle) -> set[str]:
    """Names of the devices that the daemon says it is attached to."""
    return {device["name"] for device in qos.status().datapath["devices"]}


def test_a_flow_of_another_namespace_attaches_that_namespace_and_lets_go_of_it(own_lab: Lab) -> None:
    router = own_lab.router
    with Daemon(own_lab.app) as daemon, qos2.Handle(daemon.socket) as qos:
        assert attached(qos) == {own_lab.app.device}
        with router.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((own_lab.peer.ipv4[0].partition("/")[0], 5004))
            flow = qos.add_socket(sock, qos2.TrafficType.VOICE)
            assert attached(qos) > {own_lab.app.device, router.device}
            sock.send(b"x")
            assert flow.stats().packets == 1
            flow.close()
        until(lambda: attached(qos) == {own_lab.app.device}, "the namespace is still attached")


def test_a_killed_daemon_leaves_nothing_behind_in_other_namespaces(own_lab: Lab) -> None:
    router = own_lab.router
    before = router.run("tc", "qdisc", "show", "dev", router.device)
    with Daemon(own_lab.app, orphan_grace_s=1) as daemon:
        with qos2.Handle(daemon.socket) as qos, router.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((own_lab.peer.ipv4[0].partition("/")[0], 5004))
            qos.add_socket(sock, qos2.TrafficType.VOICE).set_rate(1_000_000)
            daemon.kill()
            assert f"{best()} 5152:" in router.run("tc", "qdisc", "show", "dev", router.device)
            daemon.start()
        with qos2.Handle(daemon.socket) as qos:
            assert router.device in attached(qos), "the orphan's namespace was not found"
            until(lambda: attached(qos) == {own_lab.app.device}, "the namespace is still attached")
        assert router.run("tc", "qdisc", "show", "dev", router.device) == before


def test_a_device_that_comes_later_is_attached_and_one_that_goes_is_forgotten(
    own_lab: Lab, bpf_fs: Path, tmp_path: Path, defaults: Path
) -> None:
    path = str(tmp_path / "sock")
    process = own_lab.app.popen(
        *(sys.executable, "-m", "qos2.daemon", "--config", str(defaults)),
        *("--socket", path, "--metrics", "", "--pin-path", str(bpf_fs / "all")),
        env=environment(),
    )
    try:
        qos = wait_for(path)
        before = attached(qos)
        own_lab.app.run("ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1")
        until(lambda: attached(qos) == before | {"late0", "late1"}, "the new devices are not attached")
        own_lab.app.run("ip", "link", "del", "late0")
        until(lambda: attached(qos) == before, "the old devices are still listed")
        qos.close()
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0


def wait_for(path: str) -> qos2.Handle:
    deadline = time.monotonic() + 60
    while True:
        try:
            return qos2.Handle(path)
        except qos2.ServiceUnavailable:
            assert time.monotonic() < deadline, "the daemon does not start"
            time.sleep(0.05)


def until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


def test_resident_memory_stays_under_64_mib(own_lab: Lab) -> None:
    with Daemon(own_lab.app, metrics="127.0.0.1:0") as daemon:
        time.sleep(1.5)  # one round of housekeeping, metrics rendered
        assert daemon.process is not None
        found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{daemon.process.pid}/status").read_text())
        assert found is not None
        assert int(found[1]) * 1024 < 64 * MIB


def test_says_ready_to_the_service_manager(own_lab: Lab, tmp_path: Path) -> None:
    manager = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(manager))
        receiver.settimeout(30)
        os.environ["NOTIFY_SOCKET"] = str(manager)
        try:
            with Daemon(own_lab.app) as daemon:
                assert receiver.recv(100) == b"READY=1"
                daemon.stop()
                assert receiver.recv(100) == b"STOPPING=1"
        finally:
            del os.environ["NOTIFY_SOCKET"]


def test_metrics_are_served_and_count_requests(own_lab: Lab) -> None:
    with Daemon(own_lab.app, metrics="127.0.0.1:9472") as daemon:
        with qos2.Handle(daemon.socket) as qos, socket_in(own_lab) as sock:
            qos.add_socket(sock, qos2.TrafficType.VOICE)
            time.sleep(1.2)  # rendered once a second
            with own_lab.app.entered(), urllib.request.urlopen("http://127.0.0.1:9472/metrics", timeout=5) as answer:
                text = answer.read().decode()
        assert 'qos2_flows{traffic_type="voice"} 1.0' in text
        assert 'qos2_requests_total{op="add_socket",result="ok"} 1.0' in text


def test_a_second_daemon_on_the_same_datapath_is_refused(own_lab: Lab, tmp_path: Path) -> None:
    with Daemon(own_lab.app) as daemon:
        status, said = start(own_lab, "--socket", str(tmp_path / "s"), "--pin-path", str(daemon.pins), "--metrics", "")
        assert status == 1
        assert "another daemon owns" in said


def test_a_second_daemon_on_the_same_socket_is_refused_and_cleans_up(own_lab: Lab, bpf_fs: Path) -> None:
    with Daemon(own_lab.app) as daemon:
        before = device_state(own_lab)
        pins = bpf_fs / "second"
        status, said = start(own_lab, "--socket", daemon.socket, "--pin-path", str(pins), "--metrics", "")
        assert status == 1
        assert daemon.socket in said
        assert not pins.exists()
        assert device_state(own_lab) == before
        with qos2.Handle(daemon.socket) as qos:
            assert qos.status().flows == 0


def test_without_a_bpf_file_system_it_says_how_to_mount_one(own_lab: Lab, tmp_path: Path) -> None:
    for pins in (tmp_path / "pins", tmp_path / "missing" / "pins"):
        status, said = start(own_lab, "--pin-path", str(pins), "--socket", str(tmp_path / "s"), "--metrics", "")
        assert status == 1
        assert "mount -t bpf bpf" in said
        assert not pins.exists()


def test_without_privilege_it_says_that_it_needs_root(own_lab: Lab, bpf_fs: Path, tmp_path: Path) -> None:
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    status, said = start(own_lab, "--pin-path", str(bpf_fs / "nobody"), "--metrics", "", wrapper=nobody)
    assert status == 1
    assert "root" in said


def test_a_device_that_does_not_exist_is_named_with_those_that_do(own_lab: Lab, bpf_fs: Path, tmp_path: Path) -> None:
    pins = bpf_fs / "nodevice"
    status, said = start(
        own_lab, "--device", "eth77", "--pin-path", str(pins), "--socket", str(tmp_path / "s"), "--metrics", ""
    )
    assert status == 1
    assert "eth77" in said
    assert own_lab.app.device in said
    assert not pins.exists()


def test_an_unknown_key_in_the_configuration_is_named_with_the_nearest_one(own_lab: Lab, tmp_path: Path) -> None:
    config = tmp_path / "qos2d.toml"
    config.write_text("max_flow = 10\n")
    status, said = start(own_lab, config=config)
    assert status == 1
    assert "max_flow" in said
    assert "max_flows" in said


def test_sigint_ends_it_like_sigterm(own_lab: Lab) -> None:
    with Daemon(own_lab.app) as daemon:
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGINT)
        assert daemon.process.wait(15) == 0
        assert not daemon.pins.exists()


def test_an_administrators_qdisc_is_left_alone_and_the_device_is_said_to_police(own_lab: Lab) -> None:
    app = own_lab.app
    with Daemon(app) as daemon, qos2.Handle(daemon.socket) as qos, socket_in(own_lab) as sock:
        flow = qos.add_socket(sock, qos2.TrafficType.VOICE)
        flow.set_rate(1_000_000)
        assert [device["shaper"] for device in qos.status().datapath["devices"]] == [best()]
        tbf = ["handle", "77:", "tbf", "rate", "1gbit", "burst", "1m", "limit", "1m"]
        app.run("tc", "qdisc", "replace", "dev", app.device, "root", *tbf)
        before = app.run("tc", "qdisc", "show", "dev", app.device)
        try:
            until(lambda: qos.status().datapath["devices"][0]["shaper"] == "police", "the new qdisc is not noticed")
            assert "police" in qos.status().datapath["problems"][0]
            flow.set_rate(2_000_000)
            assert app.run("tc", "qdisc", "show", "dev", app.device) == before
        finally:
            app.run("tc", "qdisc", "del", "dev", app.device, "root")
