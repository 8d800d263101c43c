"""The domain's values: ids, destinations, counters."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.errors import BY_CODE, InvalidHandle, InvalidRequest, QosError
from qos2.model import (
    ANY_DESTINATION,
    GENERATIONS,
    SLOT_MASK,
    Destination,
    FlowStats,
    Shaping,
    TrafficType,
    flow_id,
    slot_of,
)


@given(slot=st.integers(1, SLOT_MASK), generation=st.integers(0, 3 * GENERATIONS))
def test_an_id_is_32_bits_never_0_and_leads_back_to_its_slot(slot: int, generation: int) -> None:
    flow = flow_id(slot, generation)
    assert 0 < flow < 1 << 32
    assert slot_of(flow) == slot
    assert flow >> 20 == generation % 4096


def test_an_id_is_its_generation_over_its_slot() -> None:
    assert flow_id(0x54321, 0xABC) == 0xABC54321


def test_the_generation_wraps_to_0() -> None:
    assert flow_id(7, 4096) == 7


@pytest.mark.parametrize(
    ("text", "port", "expected"),
    [
        ("192.0.2.7", 5004, Destination(IPv4Address("192.0.2.7"), 5004)),
        ("2001:db8::7", 1, Destination(IPv6Address("2001:db8::7"), 1)),
        ("::ffff:192.0.2.7", 5004, Destination(IPv4Address("192.0.2.7"), 5004)),
        ("fe80::1%eth0", 9, Destination(IPv6Address("fe80::1"), 9)),
        ("0.0.0.0", 0, ANY_DESTINATION),
        ("::", 0, ANY_DESTINATION),
        ("::ffff:0.0.0.0", 0, ANY_DESTINATION),
        ("0.0.0.0", 53, Destination(None, 53)),
        ("192.0.2.7", 0, Destination(IPv4Address("192.0.2.7"), 0)),
    ],
)
def test_a_destination_is_read_from_text(text: str, port: int, expected: Destination) -> None:
    assert Destination.parse(text, port) == expected


@pytest.mark.parametrize(("text", "port"), [("example.org", 1), ("", 1), ("192.0.2", 1), ("::1", 65536), ("::1", -1)])
def test_what_is_no_address_or_no_port_is_a_value_error(text: str, port: int) -> None:
    with pytest.raises(ValueError, match=r"."):
        Destination.parse(text, port)


@pytest.mark.parametrize(
    ("destination", "text"),
    [
        (Destination.parse("192.0.2.7", 5004), "192.0.2.7:5004"),
        (Destination.parse("2001:db8::7", 5004), "[2001:db8::7]:5004"),
        (Destination.parse("192.0.2.7", 0), "192.0.2.7:*"),
        (Destination(None, 53), "*:53"),
        (ANY_DESTINATION, "*:*"),
    ],
)
def test_a_destination_is_written_as_people_write_it(destination: Destination, text: str) -> None:
    assert str(destination) == text


def test_only_address_and_port_wild_means_every_destination() -> None:
    assert ANY_DESTINATION.is_any
    assert not Destination(None, 53).is_any
    assert not Destination(IPv4Address("192.0.2.7"), 0).is_any


def test_conformant_is_what_is_not_non_conformant() -> None:
    stats = FlowStats(packets=10, bytes=1000, non_conformant_packets=3, non_conformant_bytes=400)
    assert (stats.conformant_packets, stats.conformant_bytes) == (7, 600)


def test_labels_are_the_words_of_metrics() -> None:
    assert [kind.label for kind in TrafficType] == [
        "best_effort",
        "background",
        "excellent_effort",
        "audio_video",
        "voice",
        "control",
    ]
    assert Shaping.USE_NON_CONFORMANT_MARKINGS.label == "use_non_conformant_markings"


def test_every_error_is_found_by_its_own_code() -> None:
    def classes(root: type[QosError]) -> list[type[QosError]]:
        """Those of errors.py: a module may refine one for itself, under the same code."""
        children = (child for child in root.__subclasses__() if child.__module__ == QosError.__module__)
        return [root, *(each for child in children for each in classes(child))]

    assert sorted(BY_CODE) == sorted(kind.code for kind in classes(QosError))
    assert all(BY_CODE[kind.code] is kind for kind in classes(QosError))


def test_a_bad_handle_is_an_invalid_request_with_a_number_of_its_own() -> None:
    assert issubclass(InvalidHandle, InvalidRequest)
    assert (InvalidHandle.win32, InvalidRequest.win32) == (6, 87)


def test_a_hint_follows_the_message() -> None:
    assert str(InvalidRequest("bad", "do better")) == "bad (do better)"
    assert str(InvalidRequest("bad")) == "bad"
