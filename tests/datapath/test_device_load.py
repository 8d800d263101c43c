"""Loads and queues of real devices: what is read agrees with what was sent, and with what tc tells of the qdisc."""

import json
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from typing import Any

import pytest

import qos2
from demo.lab import Lab
from demo.processes import Daemon
from harness.veth_pair import DEVICE, IP_AND_UDP_BYTES, RECEIVER, VethPair, flooding, run_in
from harness.wire import eventually
from qos2.cli.explain import waits_here
from qos2.datapath.deviceload import (
    LOAD_FAILED,
    SAMPLE_SECONDS,
    SPEED_FAILED,
    DeviceLoad,
    DeviceLoads,
    Sampled,
    read_speed_bps,
)
from qos2.datapath.links import Namespace
from qos2.datapath.routes import device_index
from qos2.errors import HostUnreachable

pytestmark = pytest.mark.datapath

LINK_BYTES = 14
FULL_PAYLOAD = 1472
FULL_FRAME = FULL_PAYLOAD + IP_AND_UDP_BYTES + LINK_BYTES
MBIT = 1_000_000
METRICS_PORT = 9474
SO_SNDBUFFORCE = 32


@pytest.fixture
def pair() -> Iterator[VethPair]:
    with VethPair() as made:
        yield made


class Look:
    """Samples of the near device, as often as a test asks."""

    def __init__(self, pair: VethPair) -> None:
        self.loads = DeviceLoads(cpu_clock=lambda: 0.0)  # a busy machine is not to put a sample off
        self._pair = pair
        self._index = pair.device.index

    def __call__(self) -> DeviceLoad:
        self.loads.sample({1: Sampled(self._pair.near.conversation, {self._index: self._pair.device})})
        return self.loads.of(1, self._index)


def told(pair: VethPair) -> dict[str, Any]:
    """What tc says of the root qdisc."""
    qdiscs = json.loads(pair.command("tc", "-s", "-j", "qdisc", "show", "dev", DEVICE))
    (root,) = (qdisc for qdisc in qdiscs if qdisc.get("root"))
    found: dict[str, Any] = root
    return found


class Span:
    """How long something took, and the bytes that the root qdisc sent meanwhile, as tc tells."""

    def __init__(self, pair: VethPair) -> None:
        self._pair = pair
        self.seconds = -time.monotonic()
        self.sent_bytes: int = -told(pair)["bytes"]

    def end(self) -> None:
        self.sent_bytes += told(self._pair)["bytes"]
        self.seconds += time.monotonic()


def numbers(load: DeviceLoad) -> tuple[int | None, int | None, int | None]:
    return load.backlog_bytes, load.backlog_packets, load.qdisc_drops


def as_told(pair: VethPair) -> tuple[int, int, int]:
    root = told(pair)
    return root["backlog"], root["qlen"], root["drops"]


def resolve(sender: socket.socket, receiver: socket.socket) -> None:
    """So that what is sent from now on is the test's alone, without a question for the neighbour."""
    sender.send(b"who is there")
    receiver.recv(2000)


def test_bytes_sent_are_counted_exactly(pair: VethPair) -> None:
    look = Look(pair)
    with pair.sender() as sender, pair.receiver() as receiver:
        resolve(sender, receiver)
        assert look().load_bps is None
        begun = time.monotonic()
        for _ in range(500):
            sender.send(bytes(FULL_PAYLOAD))
        time.sleep(1)
        load_bps = look().load_bps
        spent_s = time.monotonic() - begun
    assert look.loads.sent_bytes == {DEVICE: 500 * FULL_FRAME}
    assert load_bps is not None
    # The interval is a little longer than what was measured here, or shorter by a sample.
    assert load_bps == pytest.approx(500 * FULL_FRAME * 8 / spent_s, rel=0.05)


@pytest.mark.parametrize("kind", ["tbf", "htb"])
def test_the_load_of_a_full_device_is_the_rate_of_its_qdisc(pair: VethPair, kind: str) -> None:
    # The bucket lets a queue that was not served for some time catch up.
    if kind == "tbf":
        pair.command(*f"tc qdisc add dev {DEVICE} root handle 7: tbf rate 8mbit burst 15140 limit 60560".split())
    else:
        pair.command(*f"tc qdisc add dev {DEVICE} root handle 7: htb default 1".split())
        pair.command(*f"tc class add dev {DEVICE} parent 7: classid 7:1 htb rate 8mbit burst 15140".split())
        pair.command(*f"tc qdisc add dev {DEVICE} parent 7:1 handle 8: pfifo limit 40".split())
    look = Look(pair)
    with pair.sender() as sender, flooding(sender, FULL_PAYLOAD):
        time.sleep(0.3)
        outer = Span(pair)
        look()
        inner = Span(pair)
        time.sleep(2)
        inner.end()
        load = look()
        outer.end()
    # A packet is counted by the device just before or after it is by the qdisc.
    assert inner.sent_bytes - FULL_FRAME <= look.loads.sent_bytes[DEVICE] <= outer.sent_bytes + FULL_FRAME
    assert load.load_bps is not None
    assert (inner.sent_bytes - FULL_FRAME) * 8 / outer.seconds <= load.load_bps
    assert load.load_bps <= (outer.sent_bytes + FULL_FRAME) * 8 / inner.seconds
    assert 4 * MBIT < load.load_bps < 8.2 * MBIT  # less, if the sender has to wait for a CPU
    assert load.backlog_packets is not None
    assert 1 <= load.backlog_packets <= 40  # full, unless the sender has to wait for a CPU
    assert load.backlog_bytes == load.backlog_packets * FULL_FRAME
    assert load.qdisc_drops is not None
    assert 0 < load.qdisc_drops <= told(pair)["drops"]
    # All of what the flood added since the first look, and no more than the kernel tells now.
    assert 0 < look.loads.dropped_packets[DEVICE] < load.qdisc_drops


def test_a_backlog_is_what_tc_tells(pair: VethPair) -> None:
    look = Look(pair)
    with pair.sender() as sender, pair.receiver() as receiver:
        resolve(sender, receiver)
        pair.command(*f"tc qdisc add dev {DEVICE} root handle 7: tbf rate 8kbit burst 1600 limit 15140".split())
        assert numbers(look()) == (0, 0, 0)
        for _ in range(15):
            sender.send(bytes(FULL_PAYLOAD))
        time.sleep(1)
        before = as_told(pair)
        found = numbers(look())
        after = as_told(pair)
    assert found in (before, after)  # one packet leaves in 1.5 s, three looks take a fraction of that
    assert found in ((10 * FULL_FRAME, 10, 4), (9 * FULL_FRAME, 9, 4))  # of 15, one passed and ten found room
    assert look.loads.dropped_packets == {DEVICE: 4}


def test_a_qdisc_in_the_place_of_another_keeps_the_sum_of_drops(pair: VethPair) -> None:
    slow = "tbf rate 8kbit burst 1600 limit 3028"
    look = Look(pair)
    look()
    drops = []
    with pair.sender() as sender, pair.receiver() as receiver:
        resolve(sender, receiver)
        for handle in ("7:", "8:"):
            pair.command(*f"tc qdisc replace dev {DEVICE} root handle {handle} {slow}".split())
            for _ in range(10):
                sender.send(bytes(FULL_PAYLOAD))
            time.sleep(1)
            drops.append(look().qdisc_drops)
            assert drops[-1] == told(pair)["drops"]
    first, second = drops
    assert first is not None
    assert second is not None
    assert min(first, second) > 0
    assert look.loads.dropped_packets == {DEVICE: first + second}


def test_a_device_that_goes_takes_nothing_with_it_but_its_own_numbers(pair: VethPair) -> None:
    pair.command("ip", "link", "add", "stays", "type", "ifb")
    pair.command("ip", "link", "set", "stays", "up")
    devices = {device.index: device for device in pair.near.devices() if device.name in (DEVICE, "stays")}
    gone, stays = pair.device.index, next(index for index in devices if devices[index].name == "stays")
    loads = DeviceLoads()
    loads.sample({1: Sampled(pair.near.conversation, devices)})
    pair.command("ip", "link", "delete", DEVICE)
    time.sleep(1)
    loads.sample({1: Sampled(pair.near.conversation, devices)})
    assert (loads.of(1, gone), loads.of(1, stays).load_bps) == (DeviceLoad(), 0)
    assert loads.failures == {LOAD_FAILED: 0, SPEED_FAILED: 0}


def test_speeds_are_those_that_drivers_state(pair: VethPair) -> None:
    pair.command("ip", "tuntap", "add", "tunnel", "mode", "tun")
    sock = pair.near.conversation.socket
    for mbps in (10, 2500, 400_000):
        pair.command("ethtool", "-s", "tunnel", "speed", str(mbps), "duplex", "full")
        assert read_speed_bps(sock, "tunnel") == mbps * MBIT
    assert read_speed_bps(sock, "lo") is None
    assert Look(pair)().speed_bps is None  # a veth states 10 Gbit/s, and is not limited to it


def test_ten_devices_cost_two_dumps_and_a_few_milliseconds_of_cpu() -> None:
    with Namespace.fresh() as namespace:
        for number in range(10):
            run_in(namespace, "ip", "link", "add", f"many{number}", "up", "type", "ifb")
        devices = {device.index: device for device in namespace.devices() if not device.loopback}
        assert len(devices) == 10
        clock = iter(range(1000))
        loads = DeviceLoads(lambda: float(next(clock) * 100))
        place = {1: Sampled(namespace.conversation, devices)}
        loads.sample(place)
        begun = time.thread_time()
        for _ in range(20):
            loads.sample(place)
        spent_s = (time.thread_time() - begun) / 20
    assert [loads.of(1, index).load_bps for index in devices] == [0] * 10
    # It took 0.4 ms; the bound tells two dumps from one per device with room for a slow machine.
    assert spent_s < 0.01


def test_the_device_to_a_host_is_that_of_its_route(pair: VethPair) -> None:
    pair.command("ip", "link", "add", "other", "up", "type", "ifb")
    pair.command("ip", "route", "add", "198.51.100.0/24", "via", RECEIVER)
    pair.command("ip", "route", "add", "203.0.113.0/24", "dev", "other")
    indexes = {device.name: device.index for device in pair.near.devices()}
    for address, name in ((RECEIVER, DEVICE), ("198.51.100.7", DEVICE), ("203.0.113.7", "other")):
        assert device_index(pair.near.conversation, ip_address(address)) == indexes[name]
    with pytest.raises(HostUnreachable):
        device_index(pair.near.conversation, ip_address("8.8.8.8"))


def scraped(lab: Lab) -> dict[str, float]:
    """The daemon's metrics, as they are written."""
    with lab.app.entered(), urllib.request.urlopen(f"http://127.0.0.1:{METRICS_PORT}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if line[0] != "#")}


def test_the_daemon_tells_what_its_device_carries_and_what_waits() -> None:
    with Lab("qos2-load") as lab, Daemon(lab.app, metrics=f"127.0.0.1:{METRICS_PORT}") as daemon:
        lab.app.run(*f"tc qdisc add dev {lab.app.device} root handle 7: tbf rate 8mbit burst 15140 limit 60560".split())
        with (
            qos2.Handle(daemon.socket) as qos,
            lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        ):
            sock.connect((lab.peer.ipv4[0].partition("/")[0], 5004))

            def device() -> dict[str, Any]:
                (found,) = qos.status().datapath["devices"]
                told: dict[str, Any] = found
                return told

            with flooding(sock, FULL_PAYLOAD):
                # One look in the middle of the flood, from one second to the next.
                assert eventually(
                    lambda: (
                        6 * MBIT < ((found := device())["load_bps"] or 0) < 8.2 * MBIT
                        and 0 < found["backlog_bytes"] == found["backlog_packets"] * FULL_FRAME <= 40 * FULL_FRAME
                        and found["qdisc_drops"] > 0
                    )
                )
            found = device()
            assert found["speed_bps"] is None
            assert eventually(lambda: (device()["load_bps"], device()["backlog_packets"]) == (0, 0))
            metrics = scraped(lab)
            assert metrics[f'qos2_device_backlog_bytes{{device="{lab.app.device}"}}'] == 0
            # What made the load that was told, and what else the flood has sent.
            sent = metrics[f'qos2_device_sent_bytes_total{{device="{lab.app.device}"}}']
            assert sent >= 6 * MBIT * SAMPLE_SECONDS / 8
            # The qdisc was placed before or after the first look of the daemon at its device.
            dropped = metrics[f'qos2_device_dropped_packets_total{{device="{lab.app.device}"}}']
            assert 0 < dropped <= device()["qdisc_drops"]
            assert metrics['qos2_datapath_errors_total{name="device_load_failed"}'] == 0


def test_devices_of_another_namespace_are_looked_at_while_it_is_in_use() -> None:
    with (
        Lab("qos2-load") as lab,
        Daemon(lab.app, metrics=f"127.0.0.1:{METRICS_PORT}") as daemon,
        qos2.Handle(daemon.socket) as qos,
        lab.router.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        sock.connect((lab.peer.ipv4[0].partition("/")[0], 5004))
        flow = qos.add_socket(sock, qos2.TrafficType.VOICE)

        def loads() -> dict[str, int | None]:
            return {device["name"]: device["load_bps"] for device in qos.status().datapath["devices"]}

        def counted() -> set[str]:
            return {name.split('"')[1] for name in scraped(lab) if name.startswith("qos2_device_sent_bytes_total")}

        assert eventually(lambda: None not in loads().values())
        assert loads().keys() > {lab.app.device, lab.router.device}
        assert eventually(lambda: counted() == loads().keys())
        flow.close()
        assert eventually(lambda: loads().keys() == counted() == {lab.app.device})


def test_a_flow_behind_a_full_queue_of_its_own_device_is_told_where_it_waits() -> None:
    with Lab("qos2-load") as lab, Daemon(lab.app) as daemon, ExitStack() as stack:
        own = lab.app.device
        lab.app.run(*f"tc qdisc add dev {own} root handle 7: tbf rate 8mbit burst 3028 limit 605600".split())
        qos = stack.enter_context(qos2.Handle(daemon.socket))
        peer = lab.peer.ipv4[0].partition("/")[0]
        listener = stack.enter_context(lab.peer.socket(socket.AF_INET, socket.SOCK_STREAM))
        listener.bind((peer, 0))
        listener.listen()
        stream = stack.enter_context(lab.app.socket(socket.AF_INET, socket.SOCK_STREAM))
        stream.connect(listener.getsockname())
        accepted = stack.enter_context(listener.accept()[0])
        flow = qos.add_socket(stream, qos2.TrafficType.AUDIO_VIDEO, adaptive=False)
        datagrams = stack.enter_context(lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.connect((peer, 5004))
        # Of so much, some 180 packets wait in the device for 0.27 s, and none is dropped.
        datagrams.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, 400_000)

        def told() -> str:
            """Sends a little, so that there is something to hear of, and asks."""
            stream.send(b"a word")
            accepted.recv(100)
            return str(qos.explain(flow.id).state)

        assert eventually(lambda: told() == "uncongested")
        device = qos.explain(flow.id).device
        assert device is not None
        assert (device.name, device.backlog_packets) == (own, 0)
        with flooding(datagrams, FULL_PAYLOAD):
            assert eventually(lambda: told() == "congested")
            assert eventually(lambda: told() == "congested" and told_where(qos, flow.id))


def told_where(qos: qos2.Handle, flow: int) -> bool:
    """Whether `qos2 explain` says that the queue is on this host."""
    explanation = qos.explain(flow)
    return explanation.device is not None and waits_here(explanation, explanation.device)
