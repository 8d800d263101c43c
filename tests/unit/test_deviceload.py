"""Loads of devices: arithmetic over readings, what fails, how often the kernel is asked, and real loopback."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from qos2.datapath.deviceload import (
    CPU_SHARE,
    LOAD_FAILED,
    SAMPLE_SECONDS,
    SPEED_FAILED,
    UNKNOWN,
    DeviceLoad,
    DeviceLoads,
    Queue,
    Reading,
    Sampled,
    read_queues,
    read_sent_bytes,
    read_speed_bps,
)
from qos2.datapath.links import Device
from qos2.datapath.netlink import Conversation

COOKIE, OTHER = 1, 4097
LOOPBACK = socket.if_nametoindex("lo")
SENT = Path("/sys/class/net/lo/statistics/tx_bytes")
IDLE = Queue(0x8001_0000, b"tbf", 0, 0, 0)


def device(index: int = 2, name: str = "eth0", kind: str = "") -> Device:
    return Device(name, index, kind, 1500, True, True, False, None, None, "", 1)


ETH0 = {2: device()}


class Clocks:
    """Time as a test says; the CPU's advances by `cost_s` between two looks at it."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.cost_s = 0.0
        self._spent_s = 0.0

    def now(self) -> float:
        return self.now_s

    def spent(self) -> float:
        self._spent_s += self.cost_s
        return self._spent_s


@contextmanager
def conversing(*, refused: bool = False) -> Iterator[Conversation]:
    """With this namespace, or with something that takes no question."""
    made = Conversation()
    try:
        if refused:
            with open(os.devnull, "wb") as nothing:
                os.dup2(nothing.fileno(), made.socket.fileno(), inheritable=False)
        yield made
    finally:
        made.close()


def reading(at_s: float, sent_bytes: int, queue: Queue | None = IDLE) -> Reading:
    return Reading(at_s, {2: sent_bytes}, {} if queue is None else {2: queue})


def test_nothing_is_known_of_a_device_that_was_not_looked_at() -> None:
    assert DeviceLoads().of(COOKIE, 2) == UNKNOWN == DeviceLoad(None, None, None, None, None)


def test_a_load_takes_two_looks_and_is_what_was_sent_in_between() -> None:
    loads = DeviceLoads()
    loads.note(COOKIE, ETH0, reading(10.0, 5_000_000_000))
    assert loads.of(COOKIE, 2) == DeviceLoad(None, None, 0, 0, 0)
    loads.note(COOKIE, ETH0, reading(12.5, 5_002_500_000, Queue(0x8001_0000, b"tbf", 15_140, 10, 3)))
    assert loads.of(COOKIE, 2) == DeviceLoad(None, 8_000_000, 15_140, 10, 3)
    assert loads.of(OTHER, 2) == UNKNOWN


def test_totals_by_name_begin_with_the_first_look_and_add_namespaces_up() -> None:
    loads = DeviceLoads()
    for cookie, before in ((COOKIE, 1000), (OTHER, 70_000)):
        loads.note(cookie, ETH0, reading(10.0, before, IDLE._replace(drops=5)))
        loads.note(cookie, ETH0, reading(11.0, before + 300, IDLE._replace(drops=7)))
    assert (loads.sent_bytes, loads.dropped_packets) == ({"eth0": 600}, {"eth0": 4})


@pytest.mark.parametrize(
    ("after", "dropped"),
    [
        (IDLE._replace(drops=9), 4),
        (IDLE._replace(drops=2), 2),  # the same handle, a new qdisc
        (Queue(0x8002_0000, b"tbf", 0, 0, 9), 9),
        (Queue(0x8001_0000, b"fq", 0, 0, 9), 9),
    ],
)
def test_drops_of_a_qdisc_in_the_place_of_another_are_added(after: Queue, dropped: int) -> None:
    loads = DeviceLoads()
    loads.note(COOKIE, ETH0, reading(10.0, 0, IDLE._replace(drops=5)))
    loads.note(COOKIE, ETH0, reading(11.0, 0, after))
    assert (loads.dropped_packets, loads.of(COOKIE, 2).qdisc_drops) == ({"eth0": dropped}, after.drops)


def test_a_counter_that_went_back_gives_no_load_and_counts_anew() -> None:
    loads = DeviceLoads()
    loads.note(COOKIE, ETH0, reading(10.0, 9000))
    loads.note(COOKIE, ETH0, reading(11.0, 400))
    assert (loads.of(COOKIE, 2).load_bps, loads.sent_bytes) == (None, {"eth0": 400})
    loads.note(COOKIE, ETH0, reading(12.0, 500))
    assert (loads.of(COOKIE, 2).load_bps, loads.sent_bytes) == (800, {"eth0": 500})


def test_another_name_under_an_index_is_another_device() -> None:
    loads = DeviceLoads()
    loads.note(COOKIE, ETH0, reading(10.0, 9000))
    loads.note(COOKIE, {2: device(name="eth1")}, reading(11.0, 9500))
    assert (loads.of(COOKIE, 2).load_bps, loads.sent_bytes) == (None, {"eth0": 0, "eth1": 0})


def test_a_device_without_a_qdisc_has_a_load_and_no_backlog() -> None:
    loads = DeviceLoads()
    loads.note(COOKIE, ETH0, reading(10.0, 0, None))
    loads.note(COOKIE, ETH0, reading(11.0, 125, None))
    assert loads.of(COOKIE, 2) == DeviceLoad(None, 1000, None, None, None)


def test_a_look_that_failed_leaves_a_gap_and_the_next_load_spans_it() -> None:
    loads = DeviceLoads()
    loads.note(COOKIE, ETH0, reading(10.0, 0))
    loads.note(COOKIE, ETH0, Reading(11.0, {}, {}))
    assert loads.of(COOKIE, 2) == UNKNOWN
    loads.note(COOKIE, ETH0, reading(12.0, 500))
    assert (loads.of(COOKIE, 2).load_bps, loads.sent_bytes) == (2000, {"eth0": 500})


def test_loopbacks_counters_are_those_of_sysfs() -> None:
    with conversing() as conversation:
        least = int(SENT.read_text())
        sent = read_sent_bytes(conversation)
        most = int(SENT.read_text())
        queues = read_queues(conversation)
    assert least <= sent[LOOPBACK] <= most
    assert sent.keys() == {index for index, _name in socket.if_nameindex()}
    assert queues.keys() <= sent.keys()


@pytest.mark.parametrize("name", ["lo", "there-is-none"])
def test_a_device_that_states_nothing_or_is_not_there_has_no_speed(name: str) -> None:
    with conversing() as conversation:
        assert read_speed_bps(conversation.socket, name) is None


def test_a_namespace_that_cannot_be_asked_is_counted_and_does_not_hide_the_others() -> None:
    clocks = Clocks()
    loads = DeviceLoads(clocks.now, clocks.spent)
    with conversing(refused=True) as gone, conversing() as here:
        places = {
            OTHER: Sampled(gone, ETH0),
            COOKIE: Sampled(here, {LOOPBACK: device(LOOPBACK, "lo"), 2**31 - 1: device(2**31 - 1, "vanished")}),
        }
        loads.sample(places)
        clocks.now_s += 1
        loads.sample(places)
        sent = int(SENT.read_text())
    assert loads.failures == {LOAD_FAILED: 2, SPEED_FAILED: 1}  # a speed is not asked for again within a minute
    assert (loads.of(OTHER, 2), loads.of(COOKIE, 2**31 - 1)) == (UNKNOWN, UNKNOWN)
    load_bps = loads.of(COOKIE, LOOPBACK).load_bps
    assert load_bps is not None
    assert 0 <= load_bps <= sent * 8
    assert loads.sent_bytes.keys() == {"lo"}


def test_the_kernel_is_asked_once_a_second_at_most_and_less_where_that_costs_more_than_its_share() -> None:
    clocks = Clocks()
    loads = DeviceLoads(clocks.now, clocks.spent)
    with conversing(refused=True) as gone:

        def failures() -> int:
            loads.sample({COOKIE: Sampled(gone, {})})
            return loads.failures[LOAD_FAILED]

        assert failures() == 1
        clocks.now_s += SAMPLE_SECONDS - 0.01
        assert failures() == 1
        clocks.now_s += 0.02
        clocks.cost_s = 0.05  # from now on
        assert failures() == 2
        clocks.now_s += 0.05 / CPU_SHARE - 0.01
        assert failures() == 2
        clocks.now_s += 0.02
        assert failures() == 3


def test_speeds_are_asked_for_again_when_a_link_has_changed_and_never_of_pairs_and_tunnels() -> None:
    clocks = Clocks()
    loads = DeviceLoads(clocks.now, clocks.spent)
    devices = ETH0 | {3: device(3, "veth0", "veth"), 4: device(4, "tun0", "tun")}
    with conversing(refused=True) as gone:
        for renewed, failures in ((OTHER, 1), (OTHER, 1), (COOKIE, 2)):
            loads.renew_speeds(renewed)
            loads.sample({COOKIE: Sampled(gone, devices)})
            assert loads.failures[SPEED_FAILED] == failures
            clocks.now_s += 1


def test_what_was_known_of_a_device_goes_with_it() -> None:
    clocks = Clocks()
    loads = DeviceLoads(clocks.now, clocks.spent)
    loads.note(COOKIE, ETH0, reading(10.0, 0))
    loads.note(COOKIE, ETH0, reading(11.0, 125))
    loads.sample({})
    assert (loads.of(COOKIE, 2), loads.sent_bytes, loads.dropped_packets) == (UNKNOWN, {}, {})
