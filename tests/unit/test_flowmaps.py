"""The arithmetic of a rate contract, and the counters of many flows at once as they lie in the datapath's arrays."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.core.bucket import bucket_depth_bytes
from qos2.core.signals import SIGNALS
from qos2.datapath import abi, maps
from qos2.datapath.flowmaps import TICK_NS, FlowMaps, contract
from qos2.model import MAX_BANDWIDTH, MIN_BANDWIDTH, FlowId, FlowPolicy, flow_id

rates = st.integers(MIN_BANDWIDTH, MAX_BANDWIDTH)


def test_no_rate_is_no_contract() -> None:
    assert contract(0) == (0, 0)


@given(rates)
def test_the_inverse_rate_never_grants_more_and_loses_less_than_a_ten_thousandth(bandwidth: int) -> None:
    ns_per_byte = Fraction(contract(bandwidth)[0], 1 << 20)
    granted = 8_000_000_000 / ns_per_byte
    assert Fraction(9_999, 10_000) * bandwidth < granted <= bandwidth


@given(rates)
def test_bucket_and_one_tick_of_the_cached_clock_never_exceed_the_depth(bandwidth: int) -> None:
    depth_ns = contract(bandwidth)[1]
    granted_ns = Fraction(bucket_depth_bytes(bandwidth) * 8_000_000_000, bandwidth)
    assert 0 < depth_ns <= granted_ns
    assert depth_ns + TICK_NS <= granted_ns + 1 or granted_ns < 2 * TICK_NS


@given(rates)
def test_a_bucket_holds_at_least_a_full_packet(bandwidth: int) -> None:
    assert contract(bandwidth)[1] * bandwidth >= 1500 * 8_000_000_000


# Signals


ENTRIES = 20_000
STRUCTURES = {"policy": abi.FlowPolicy, "hot": abi.FlowHot, "cold": abi.FlowCold}
MINORS = 1 << 16


class Arrays:
    """The three arrays as files of the same layout, for a machine without the kernel's: FlowMaps maps them alike."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        for name, structure in STRUCTURES.items():
            with (directory / name).open("wb") as file:
                # Whole pages, as the kernel's maps have.
                file.truncate(-(-ENTRIES * ctypes.sizeof(structure) // mmap.PAGESIZE) * mmap.PAGESIZE)

    def write(self, name: str, slot: int, **fields: Any) -> None:
        """What the datapath, or a daemon of before, left in this slot."""
        structure = STRUCTURES[name]
        entry = structure()
        for field, value in fields.items():
            is_array = isinstance(value, tuple)
            setattr(entry, field, type(getattr(entry, field))(*value) if is_array else value)
        with (self._directory / name).open("r+b") as file:
            file.seek(slot * ctypes.sizeof(structure))
            file.write(bytes(entry))


@pytest.fixture
def arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Arrays:
    """In the place of pinned maps; everything above the open descriptor is the real code."""
    monkeypatch.setattr(maps, "open_pin", lambda path: os.open(path, os.O_RDWR | os.O_CLOEXEC))
    monkeypatch.setattr(maps, "_max_entries", lambda _: ENTRIES)
    (tmp_path / "tick").touch()
    return Arrays(tmp_path)


@pytest.fixture
def flows(arrays: Arrays, tmp_path: Path) -> Iterator[FlowMaps]:
    with closing(FlowMaps(tmp_path)) as made:
        yield made


def signals(flows: FlowMaps, *slots: int, drops: dict[int, int] | None = None) -> list[dict[str, int]]:
    """What is read of these slots, as values by name."""
    queue_drops = np.zeros(MINORS, np.uint64)
    for minor, number in (drops or {}).items():
        queue_drops[minor] = number
    found = flows.signals(np.array(slots, np.intp), queue_drops)
    assert found.dtype == SIGNALS
    return [dict(zip(SIGNALS.names or (), each.tolist(), strict=True)) for each in found]


def numbered(base: int) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Hot and cold counters, each another number, and the signals that they are."""
    hot = {name: base + number for number, (name, *_) in enumerate(abi.FlowHot._fields_)}
    cold = {"delayed_packets": base + 50, "delay_ns": base + 51, "dropped_bytes": (base + 60, base + 61)}
    cold["dropped_packets"] = (base + 70, base + 80)
    expected = {name: hot[name] for name in SIGNALS.names or () if name in hot}
    expected |= {"delayed_packets": base + 50, "delay_ns": base + 51, "dropped_packets": 2 * base + 150}
    return hot, cold, expected


NOTHING = dict.fromkeys(SIGNALS.names or (), 0)


def test_signals_come_in_the_order_of_the_slots_that_were_asked_for(arrays: Arrays, flows: FlowMaps) -> None:
    expected = {}
    for slot in (1, 2, 700, 4095):
        hot, cold, expected[slot] = numbered(1000 * slot)
        arrays.write("hot", slot, **hot)
        arrays.write("cold", slot, **cold)
    assert set(expected[1]) == set(NOTHING)
    for asked in ((1, 2, 700, 4095), (4095, 1, 700), (2,), (2, 2, 1)):
        assert signals(flows, *asked) == [expected[slot] for slot in asked]
    assert signals(flows) == []


def test_counters_keep_their_whole_width(arrays: Arrays, flows: FlowMaps) -> None:
    wide = {"bytes": 2**64 - 1, "packets": 2**63, "delivered": 2**32 - 1, "srtt_us": 2**32 - 2}
    arrays.write("hot", 5, **wide)
    arrays.write("cold", 5, delay_ns=2**64 - 1, dropped_packets=(2**63, 2**63 - 1))
    assert signals(flows, 5) == [NOTHING | wide | {"delay_ns": 2**64 - 1, "dropped_packets": 2**64 - 1}]


def test_packets_that_the_queue_of_a_flow_dropped_are_among_its_drops(arrays: Arrays, flows: FlowMaps) -> None:
    arrays.write("policy", 5, htb_minor=7)
    arrays.write("policy", 6, htb_minor=MINORS - 1)
    arrays.write("cold", 5, dropped_packets=(3, 4))
    found = signals(flows, 5, 6, 8, drops={7: 100, MINORS - 1: 2000, 9: 30_000})
    assert [each["dropped_packets"] for each in found] == [107, 2000, 0]


def test_a_slot_in_which_no_flow_ever_was_has_sent_nothing(arrays: Arrays, flows: FlowMaps) -> None:
    arrays.write("hot", 9_999, bytes=7)
    arrays.write("hot", ENTRIES - 1, bytes=8)
    # Beyond what is mapped at first; the last slot is one too.
    assert signals(flows, 3, 9_998, ENTRIES - 1, 9_999) == [
        NOTHING,
        NOTHING,
        NOTHING | {"bytes": 8},
        NOTHING | {"bytes": 7},
    ]
    # What was mapped before is mapped on.
    assert signals(flows, 3, 9_999) == [NOTHING, NOTHING | {"bytes": 7}]


def test_a_slot_that_the_table_does_not_have_is_refused(flows: FlowMaps) -> None:
    with pytest.raises(IndexError):
        signals(flows, ENTRIES)


def test_a_flow_that_begins_in_a_slot_does_not_inherit_its_signals(arrays: Arrays, flows: FlowMaps) -> None:
    hot, cold, expected = numbered(1000)
    arrays.write("hot", 5, **hot)
    arrays.write("cold", 5, **cold)
    assert signals(flows, 5) == [expected]
    flows.put(FlowPolicy(flow_id(5, 3), None), htb_minor=0, fresh=True)
    assert signals(flows, 5) == [NOTHING]


def test_signals_are_what_the_counters_of_each_flow_are(arrays: Arrays, flows: FlowMaps) -> None:
    arrays.write("hot", 5, bytes=1500, srtt_us=20_000, min_rtt_us=9_000, retransmits=3, lost=2, delivered=9)
    arrays.write("cold", 5, delayed_packets=4, delay_ns=5_000, dropped_packets=(6, 7))
    (found,) = signals(flows, 5)
    stats = flows.stats(FlowId(flow_id(5, 1)), 0)
    same = {name: getattr(stats, name) for name in NOTHING if name != "dropped_packets"}
    assert found == same | {"dropped_packets": sum(stats.dropped_packets.values())}
