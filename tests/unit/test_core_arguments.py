"""Numbers of callers: taken, or refused with what would be right."""

from ipaddress import ip_address

import pytest

from qos2.core.arguments import SMALL_BANDWIDTH, client_address, code_point, contract, known
from qos2.errors import InvalidRequest
from qos2.model import MAX_BANDWIDTH, MIN_BANDWIDTH, Bandwidth, FlowRate, RateReason, Shaping, TrafficType


@pytest.mark.parametrize("value", list(TrafficType))
def test_the_numbers_of_an_enumeration_are_known(value: int) -> None:
    assert known(TrafficType, int(value), "traffic type") is TrafficType(value)


@pytest.mark.parametrize("value", [-1, 6, 1 << 40])
def test_another_number_is_refused_with_the_known_range(value: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        known(TrafficType, value, "traffic type")
    assert refused.value.message == f"unknown traffic type {value}"
    assert refused.value.hint == "0 (BEST_EFFORT) .. 5 (CONTROL)"


@pytest.mark.parametrize("bandwidth", [MIN_BANDWIDTH, 1_000_000, 0xFFFFFFFE, 0x100000000, MAX_BANDWIDTH])
def test_a_contract_has_the_bandwidth_asked_for(bandwidth: int) -> None:
    asked = contract(bandwidth, Shaping.SHAPE_ONLY, RateReason.CONGESTION)
    assert asked == FlowRate(Bandwidth(bandwidth), Shaping.SHAPE_ONLY, RateReason.CONGESTION)


def test_bandwidth_0_is_no_contract() -> None:
    assert contract(0, 1, 0) is None


def test_the_default_minimum_is_64_kbit_and_not_four_gigabits() -> None:
    assert SMALL_BANDWIDTH == 64_000
    assert contract(0xFFFFFFFF, 1, 0) == FlowRate(SMALL_BANDWIDTH)


@pytest.mark.parametrize("bandwidth", [-1, 1, MIN_BANDWIDTH - 1, MAX_BANDWIDTH + 1, 1 << 64])
def test_a_bandwidth_out_of_bounds_is_refused_with_the_bounds(bandwidth: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        contract(bandwidth, 1, 0)
    assert refused.value.message == f"bandwidth {bandwidth} bits/s is outside 8000..400000000000"


@pytest.mark.parametrize("bandwidth", [0, 1_000_000])
@pytest.mark.parametrize(("shaping", "reason", "word"), [(3, 0, "shaping"), (-1, 0, "shaping"), (1, 5, "rate reason")])
def test_unknown_shaping_and_reason_are_refused_even_with_rate_0(
    bandwidth: int, shaping: int, reason: int, word: str
) -> None:
    with pytest.raises(InvalidRequest, match=f"unknown {word}"):
        contract(bandwidth, shaping, reason)


@pytest.mark.parametrize("dscp", [0, 46, 63])
def test_a_dscp_has_six_bits(dscp: int) -> None:
    assert code_point(dscp) == dscp


@pytest.mark.parametrize("dscp", [-1, 64, 184])
def test_a_tos_byte_is_no_dscp(dscp: int) -> None:
    with pytest.raises(InvalidRequest, match=r"outside 0\.\.63"):
        code_point(dscp)


def test_a_tracked_client_is_one_literal_address() -> None:
    assert client_address("2001:db8::7") == ip_address("2001:db8::7")
    assert client_address("::ffff:192.0.2.7") == ip_address("192.0.2.7")


@pytest.mark.parametrize("address", ["", "example.org", "0.0.0.0", "::"])
def test_a_name_or_a_wildcard_is_no_client(address: str) -> None:
    with pytest.raises(InvalidRequest):
        client_address(address)
