"""The arithmetic of a rate contract: from bits per second to what the datapath computes with."""

from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from qos2.core.bucket import bucket_depth_bytes
from qos2.datapath.flowmaps import TICK_NS, contract
from qos2.model import MAX_BANDWIDTH, MIN_BANDWIDTH

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
