"""The real Prometheus watches the real daemon with real flows: its rules, the dashboard's queries, and the truth.

A daemon on a bridge (which states a speed, as a veth does not), applications of two units, a bottleneck and a
reflector behind it, and the server with the configuration of the tree, all in network namespaces.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

import qos2
from demo.lab import Lab, Namespace, end
from demo.processes import Daemon, Sink, environment
from harness.guest import needs_speed
from harness.prometheus import Prometheus
from harness.wire import Flood, eventually
from qos2.datapath.maps import LIBBPF
from qos2.datapath.programs import cgroup_mount
from qos2.model import Condition, Shaping, TrafficType

pytestmark = [
    pytest.mark.datapath,
    # In CI it must be there: the tests fail without it.
    pytest.mark.skipif(
        shutil.which("prometheus") is None and not os.environ.get("CI"),
        reason="prometheus is missing: apt-get install prometheus",
    ),
    needs_speed,
]

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "dashboards" / "qos2.json"
METRICS = "http://127.0.0.1:9472/metrics"
MBIT = 1_000_000
VIDEO, BACKUP, REMARKED = 4 * MBIT, 2 * MBIT, 200_000
#: Bytes of a datagram.
PAYLOAD = 1200
#: Of the way to the peer: less and more than what all flows want.
NARROW, WIDE = 8 * MBIT, 50 * MBIT
MOST_SERIES = 400
#: How long the first data of everything may take; 20 s on an idle machine.
PATIENCE_S = 75.0


class Unit:
    """A cgroup, named like a service: what is started in it is of this unit."""

    def __init__(self, name: str) -> None:
        mount = cgroup_mount()
        if mount is None:
            pytest.skip("cgroup2 is not mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
        self.name = f"{name}-{os.getpid()}.service"
        self._folder = mount / self.name
        self._folder.mkdir()

    def popen(self, namespace: Namespace, *argv: str, **options: Any) -> subprocess.Popen[bytes]:
        enter = ("sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(self._folder))
        return namespace.popen(*enter, *argv, **options)

    def close(self) -> None:
        # A process that has ended is taken out of its cgroup a moment later.
        eventually(lambda: not (self._folder / "cgroup.procs").read_text())
        self._folder.rmdir()


def on_a_bridge(app: Namespace) -> None:
    """The application's addresses move to a bridge over its device."""
    for argv in (
        "link add br0 type bridge",
        "link set eth0 master br0",
        "address flush dev eth0",
        "address add 192.0.2.2/24 dev br0",
        "link set br0 up",
        "route replace default via 192.0.2.1",
    ):
        app.run("ip", *argv.split())
    app.device = "br0"


class Scene:
    """Everything that is watched, and what the applications do."""

    def __init__(self, stack: ExitStack) -> None:
        self.stack = stack
        self.lab = stack.enter_context(Lab("qos2-test"))
        on_a_bridge(self.lab.app)
        self.daemon = stack.enter_context(Daemon(self.lab.app, metrics="127.0.0.1:9472", metrics_flows_top=5))
        self.prometheus = stack.enter_context(Prometheus(self.lab.app))
        self.qos = stack.enter_context(qos2.Handle(self.daemon.socket))
        stack.enter_context(Sink(self.lab.peer, [5001, 5002], [5004, 5005, 5006]))
        self.units = {name: Unit(f"qos2-test-{name}") for name in ("video", "backup")}
        for unit in self.units.values():
            stack.callback(unit.close)
        self._stop = threading.Event()

    def begin(self) -> None:
        """Applications send, in their units and in this process."""
        run_time_statistics = LIBBPF.bpf_enable_stats(0)
        assert run_time_statistics >= 0
        self.stack.callback(os.close, run_time_statistics)
        self._sender("video", "video", 5001, VIDEO)
        self._sender("backup", "backup", 5002, BACKUP)
        remarked = self._udp(5004)
        flow = self.qos.add_socket(remarked, TrafficType.EXCELLENT_EFFORT)
        flow.set_rate(REMARKED, Shaping.USE_NON_CONFORMANT_MARKINGS)
        self._flood(remarked, 3 * REMARKED)
        self.policed = self._udp(5006)
        self.policed_flow = self.qos.add_socket(self.policed, TrafficType.CONTROL)
        self.policed_flow.set_rate(REMARKED)
        self._flood(self.policed, 3 * REMARKED)
        reflector = ("-m", "qos2.cli", "reflector", "--allow", "192.0.2.0/24")
        process = self.lab.peer.popen(sys.executable, *reflector, stdout=subprocess.PIPE, env=environment())
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"reflecting")
        self._bottleneck(NARROW)
        adaptive = self._udp(5005)
        self.adaptive = self.qos.add_socket(adaptive, TrafficType.VOICE, adaptive=True)
        for work in (self._wait_for_conditions, self._ask, self._widen_and_narrow):
            thread = threading.Thread(target=work)
            thread.start()
            self.stack.callback(thread.join)
        self.stack.callback(self._stop.set)
        self._flood(adaptive, 3 * MBIT)

    def police(self) -> None:
        """An administrator puts a qdisc below the flows that cannot hold them back."""
        app = self.lab.app
        qdisc = ("handle", "77:", "tbf", "rate", "1gbit", "burst", "1m", "limit", "1m")
        app.run("tc", "qdisc", "replace", "dev", app.device, "root", *qdisc)

    def _bottleneck(self, rate: int) -> None:
        tbf = ("tbf", "rate", str(rate), "burst", "3000", "latency", "100ms")
        self.lab.router.run("tc", "qdisc", "replace", "dev", self.lab.router.device, "root", *tbf)

    def _widen_and_narrow(self) -> None:
        """So that conditions change; congestion ends two seconds after its beginning at the earliest."""
        rate, other = WIDE, NARROW
        while not self._stop.wait(4):
            self._bottleneck(rate)
            rate, other = other, rate

    def _ask(self) -> None:
        """Requests of all kinds, some of which are refused."""
        with qos2.Handle(self.daemon.socket) as qos:
            while not self._stop.wait(0.5):
                qos.status()
                with suppress(qos2.QosError):
                    qos.flow_details(0x7FF00001)  # there is none
                with suppress(qos2.NetworkBusy, qos2.Retry):
                    self.adaptive.set_rate(4 * MBIT)

    def _wait_for_conditions(self) -> None:
        """As an application that follows its path: it hears of congestion, then of its end, and so on."""
        awaited, other = Condition.CONGESTED, Condition.UNCONGESTED
        while not self._stop.is_set():
            with suppress(qos2.TimedOut):
                self.adaptive.notify(awaited, timeout=1)
                awaited, other = other, awaited
                self._stop.wait(0.1)

    def _udp(self, port: int) -> socket.socket:
        sock = self.stack.enter_context(self.lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect((self.lab.peer.ipv4[0], port))
        return sock

    def _flood(self, sock: socket.socket, rate: float) -> None:
        flood = Flood(sock, PAYLOAD, rate)
        self.stack.callback(flood.close)
        flood.begin()

    def _sender(self, unit: str, role: str, port: int, rate: int) -> None:
        argv = ("-m", "demo.senders", role, "--to", self.lab.peer.ipv4[0], "--port", str(port), "--rate", str(rate))
        process = self.units[unit].popen(
            self.lab.app,
            *(sys.executable, *argv, "--service", self.daemon.socket),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        self.stack.callback(end, process)
        assert process.stdout is not None
        assert b"started" in process.stdout.readline()


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    """Everything runs, and there is data of all of it but of drops."""
    with ExitStack() as stack:
        made = Scene(stack)
        made.begin()
        wait_for_data(made, {name: query for name, query in expressions().items() if "dropped" not in query})
        yield made
        assert "Traceback" not in made.daemon.log, made.daemon.log


def expressions() -> dict[str, str]:
    """Every query of the dashboard by panel and letter, its variables put in."""
    found = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            written = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
            found[f"{panel['title']} / {target['refId']}"] = written
    return found


def wait_for_data(scene: Scene, queries: dict[str, str]) -> None:
    """Until each of the queries has returned some."""
    deadline_s = time.monotonic() + PATIENCE_S
    while queries := {name: query for name, query in queries.items() if not scene.prometheus.query(query)}:
        assert time.monotonic() < deadline_s, f"no data: {json.dumps(queries, indent=2)}"
        time.sleep(0.5)


def test_the_dashboard_lists_the_hosts(scene: Scene) -> None:
    (host,) = (each for each in json.loads(DASHBOARD.read_text())["templating"]["list"] if each["name"] == "instance")
    asked = re.fullmatch(r"label_values\((\w+), (\w+)\)", host["query"]["query"])
    assert asked is not None
    metric, label = asked.groups()
    assert scene.prometheus.ask(f"label/{label}/values", **{"match[]": metric}) == ["127.0.0.1:9472"]


def test_every_rule_is_evaluated_by_the_server_without_an_error(scene: Scene) -> None:
    rules = [rule for group in scene.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) > 20
    assert [(rule["name"], rule["health"], rule.get("lastError", "")) for rule in rules if rule["health"] != "ok"] == []


def test_who_uses_the_link_is_told_by_unit_and_type(scene: Scene) -> None:
    found = scene.prometheus.query("unit_traffic_type:qos2_unit_bytes:rate1m > 0")
    told = {(labels["unit"], labels["traffic_type"]) for labels, _ in found}
    assert told >= {
        (scene.units["video"].name, "audio_video"),
        (scene.units["backup"].name, "background"),
    }
    assert {kind for _, kind in told} == {"audio_video", "background", "excellent_effort", "control", "voice"}


def test_contracts_are_told_as_they_were_agreed_and_achieved(scene: Scene) -> None:
    contract = 'qos2_contract_bytes_per_second{traffic_type="%s"}'
    assert scene.prometheus.value(contract % "audio_video") == pytest.approx(VIDEO / 8, rel=1e-6)
    assert scene.prometheus.value(contract % "background") == pytest.approx(BACKUP / 8, rel=1e-6)
    assert scene.prometheus.value('qos2_contract_flows{traffic_type="background"}') == 1
    # What exceeds this contract is marked down and not held back: three times as much is sent as was agreed.
    achieved = 'avg_over_time(qos2_contract_achieved_bytes_per_second{traffic_type="excellent_effort"}[5s])'
    ip_rate = 3 * REMARKED / 8 * (PAYLOAD + 28) / PAYLOAD
    assert scene.prometheus.value(contract % "excellent_effort") == pytest.approx(REMARKED / 8, rel=1e-6)
    # Five looks of a second: a sender that is late catches up within the next one. Measured: within 2 %.
    assert scene.prometheus.value(achieved) == pytest.approx(ip_rate, rel=0.2)


def test_a_reload_is_told(scene: Scene) -> None:
    value = scene.prometheus.value
    before = value("qos2_config_generation")
    assert scene.daemon.process is not None
    scene.daemon.process.send_signal(signal.SIGHUP)
    assert eventually(lambda: value("qos2_config_generation") == before + 1)
    assert value("qos2_config_last_reload_success") == 1
    assert 0 <= value("time() - qos2_config_last_reload_timestamp_seconds") < PATIENCE_S


def test_a_scrape_is_small_and_quick(scene: Scene) -> None:
    assert scene.prometheus.value('max_over_time(scrape_samples_scraped{job="qos2"}[5m])') <= MOST_SERIES
    # Also on a machine that does much else; tests/bench/scrape.py measures it.
    assert scene.prometheus.value('quantile_over_time(0.5, scrape_duration_seconds{job="qos2"}[5m])') < 0.1


def checked_by_promtool(text: bytes) -> tuple[int, bytes]:
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_promtool_has_nothing_to_complain_of_in_what_is_served(scene: Scene) -> None:
    for path in ("", "/flows?top=3"):
        assert checked_by_promtool(scene.prometheus.get(METRICS + path)) == (0, b"")


def test_the_busiest_flows_are_told_one_by_one_with_their_unit(scene: Scene) -> None:
    text = scene.prometheus.get(METRICS + "/flows?top=3").decode()
    info = [line for line in text.splitlines() if line.startswith("qos2_top_flow_info{")]
    assert len(info) == 3
    assert len(scene.prometheus.get(METRICS + "/flows").decode().splitlines()) > len(text.splitlines())
    assert all('unit="' in line and 'unit=""' not in line for line in info)


def test_every_query_of_the_dashboard_returns_data(scene: Scene) -> None:
    queries = expressions()
    assert [query for query in queries.values() if "$" in query] == []
    scene.police()  # what held packets back until now drops them
    wait_for_data(scene, queries)
    found = scene.prometheus.query('qos2_device_info{device="br0"}')
    assert [labels["shaper"] for labels, _ in found] == ["police"]


def sums(text: str) -> dict[str, dict[str, float]]:
    """Bytes by type: of flows, and of units."""
    found: dict[str, dict[str, float]] = {"flow": {}, "unit": {}}
    for of, kind, number in re.findall(r'qos2_(flow|unit)_bytes_total\{.*?traffic_type="(\w+)".*?\} (\S+)', text):
        found[of][kind] = found[of].get(kind, 0) + float(number)
    return found


def test_units_and_types_have_sent_the_same_in_sum() -> None:
    with Lab("qos2-test") as lab, Daemon(lab.app, metrics="127.0.0.1:9472") as daemon, Sink(lab.peer, [], [5004]):
        with qos2.Handle(daemon.socket) as qos, lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.connect((lab.peer.ipv4[0], 5004))
            flow = qos.add_socket(sock, TrafficType.VOICE)
            for kind, count in ((TrafficType.VOICE, 3), (TrafficType.CONTROL, 5), (TrafficType.VOICE, 7)):
                flow.set_traffic_type(kind)
                for _ in range(count):
                    sock.send(bytes(72))
            flow.close()
        time.sleep(1.2)  # rendered once a second
        found = sums(Prometheus(lab.app).get(METRICS).decode())
    assert found["flow"] == found["unit"]
    assert {kind: sent for kind, sent in found["unit"].items() if sent} == {"voice": 1000, "control": 500}
