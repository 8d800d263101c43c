"""bpf/bucket.h against two models written otherwise: a bucket of whole nanoseconds of tokens, which must
decide alike on each packet, and a bucket of exact fractions of bytes, which must never be exceeded.

Virtual time throughout. How the datapath picks its clock and retries is in qos.bpf.c, not here.
"""

import ctypes
import itertools
import threading
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.native import native, untimed

C = native()

SECOND_NS = 10**9
YEAR_NS = 365 * 86400 * SECOND_NS
BOOT_NS = 5 * SECOND_NS
RATES = [8_000, 64_000, 999_983, 10**6, 10**7, 10**8, 10**9, 2_500_000_001, 10**10, 10**11, 4 * 10**11]  # bits/s
MAX_BYTES = 1 << 23  # BUCKET_MAX_BYTES
GSO_BYTES, GSO_SEGMENTS = 65536 + 44 * 40, 45


class Contract(NamedTuple):
    """A rate in bits/s and a depth in bytes, as the daemon hands them to the datapath: rounded to be kept."""

    bandwidth: int
    depth_bytes: int

    @property
    def bytes_per_ns(self) -> Fraction:
        return Fraction(self.bandwidth, 8 * SECOND_NS)

    @property
    def ns_per_byte_20(self) -> int:
        return ceil((1 << 20) / self.bytes_per_ns)

    @property
    def depth_ns(self) -> int:
        return int(self.depth_bytes / self.bytes_per_ns)

    def cost_ns(self, size: int) -> int:
        return C.cost_ns(size, self.ns_per_byte_20)


class Offer(NamedTuple):
    """A packet that comes `gap_ns` after the one before."""

    gap_ns: int
    size: int
    segments: int


class Bucket:
    """The C, driven as a datapath with one CPU drives it."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.tat = ctypes.c_uint64(0)

    def wait_ns(self, now_ns: int, offer: Offer) -> int:
        need_ns = self.contract.cost_ns(offer.size) // offer.segments
        return C.wait_ns(self.tat.value, now_ns, need_ns, self.contract.depth_ns)

    def charge(self, now_ns: int, offer: Offer) -> None:
        assert C.charge(self.tat, self.tat.value, now_ns, self.contract.cost_ns(offer.size))


class TokenModel:
    """The textbook bucket: tokens flow in up to the depth, a packet conforms if there are enough, debt is allowed."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.tokens_ns, self.last_ns = contract.depth_ns, 0

    def conforms(self, now_ns: int, offer: Offer) -> bool:
        self.tokens_ns = min(self.contract.depth_ns, self.tokens_ns + now_ns - self.last_ns)
        self.last_ns = now_ns
        cost_ns = ceil(Fraction(offer.size * self.contract.ns_per_byte_20, 1 << 20))
        if self.tokens_ns < min(cost_ns // offer.segments, self.contract.depth_ns):
            return False
        self.tokens_ns -= cost_ns
        return True


class Meter:
    """Largest excess, over every interval, of bytes passed beyond the rate: at most depth plus one packet may be."""

    def __init__(self, contract: Contract) -> None:
        self.contract = contract
        self.level, self.last_ns, self.largest = Fraction(0), 0, 0

    def passes(self, now_ns: int, size: int) -> None:
        self.level = max(Fraction(0), self.level - (now_ns - self.last_ns) * self.contract.bytes_per_ns) + size
        self.last_ns = now_ns
        self.largest = max(self.largest, size)
        assert self.level <= self.contract.depth_bytes + self.largest


def timed(offers: list[Offer]) -> Iterator[tuple[int, Offer]]:
    times = itertools.accumulate((offer.gap_ns for offer in offers), initial=BOOT_NS)
    return zip(itertools.islice(times, 1, None), offers, strict=True)


contracts = st.builds(
    Contract, st.sampled_from(RATES) | st.integers(8_000, 4 * 10**11), st.integers(40, 3000) | st.integers(3001, 10**8)
)
gaps_ns = st.just(0) | st.integers(0, 2000) | st.integers(0, 10**7) | st.integers(0, 3 * SECOND_NS) | st.just(YEAR_NS)
packets = st.builds(Offer, gaps_ns, st.integers(20, 1500), st.just(1))
gso_packets = st.integers(2, 45).flatmap(
    lambda segments: st.builds(Offer, gaps_ns, st.integers(segments * 41, segments * 1500), st.just(segments))
)
traces = st.lists(packets | gso_packets, min_size=1, max_size=40)


@untimed
@given(size=st.integers(0, 2**32 - 1), bandwidth=st.integers(8_000, 4 * 10**11))
def test_cost_is_the_exact_time_rounded_up_and_never_overflows(size: int, bandwidth: int) -> None:
    contract = Contract(bandwidth, 0)
    charged = min(size, MAX_BYTES)
    assert contract.cost_ns(size) == ceil(Fraction(charged * contract.ns_per_byte_20, 1 << 20))
    exact = charged / contract.bytes_per_ns
    assert exact <= contract.cost_ns(size) < exact + 1 + Fraction(charged, 1 << 20)


@pytest.mark.parametrize("bandwidth", [rate for rate in RATES if rate <= 10**10])
def test_up_to_ten_gigabits_a_full_packet_costs_less_than_a_thousandth_too_much(bandwidth: int) -> None:
    contract = Contract(bandwidth, 3000)
    assert contract.cost_ns(1500) < 1500 / contract.bytes_per_ns * Fraction(1001, 1000)


@untimed
@given(
    tat_ns=st.integers(0, 2**62),
    now_ns=st.integers(0, 2**62),
    need_ns=st.integers(0, 2**63),
    depth_ns=st.integers(0, 2**62),
)
def test_wait_is_what_unbounded_integers_say(tat_ns: int, now_ns: int, need_ns: int, depth_ns: int) -> None:
    missing = max(tat_ns - now_ns, 0) + min(need_ns, depth_ns) - depth_ns
    assert C.wait_ns(tat_ns, now_ns, need_ns, depth_ns) == max(missing, 0)


@untimed
@given(
    tat_ns=st.integers(0, 2**62),
    now_ns=st.integers(0, 2**62),
    need_ns=st.integers(0, 2**62),
    depth_ns=st.integers(0, 2**62),
)
def test_no_packet_starves(tat_ns: int, now_ns: int, need_ns: int, depth_ns: int) -> None:
    """After the wait it conforms, a nanosecond earlier it does not, and the wait ends when the debt is paid."""
    wait_ns = C.wait_ns(tat_ns, now_ns, need_ns, depth_ns)
    assert wait_ns <= max(tat_ns - now_ns, 0)
    assert C.wait_ns(tat_ns, now_ns + wait_ns, need_ns, depth_ns) == 0
    if wait_ns:
        assert C.wait_ns(tat_ns, now_ns + wait_ns - 1, need_ns, depth_ns) == 1


@untimed
@given(contract=contracts, trace=traces)
def test_each_packet_is_judged_as_by_a_bucket_of_tokens(contract: Contract, trace: list[Offer]) -> None:
    bucket, model = Bucket(contract), TokenModel(contract)
    for now_ns, offer in timed(trace):
        conforms = bucket.wait_ns(now_ns, offer) == 0
        assert conforms == model.conforms(now_ns, offer)
        if conforms:
            bucket.charge(now_ns, offer)


@untimed
@given(contract=contracts, trace=traces)
def test_conforming_packets_never_exceed_depth_and_rate_and_one_packet(contract: Contract, trace: list[Offer]) -> None:
    bucket, meter = Bucket(contract), Meter(contract)
    for now_ns, offer in timed(trace):
        if bucket.wait_ns(now_ns, offer) == 0:
            bucket.charge(now_ns, offer)
            meter.passes(now_ns, offer.size)


@untimed
@given(contract=contracts, trace=traces)
def test_delayed_packets_leave_in_order_and_never_exceed_the_contract(contract: Contract, trace: list[Offer]) -> None:
    bucket, meter, last_ns = Bucket(contract), Meter(contract), 0
    for now_ns, offer in timed(trace):
        departure_ns = now_ns + bucket.wait_ns(now_ns, offer)
        bucket.charge(now_ns, offer)
        assert departure_ns >= last_ns
        meter.passes(departure_ns, offer.size)
        last_ns = departure_ns


@pytest.mark.parametrize("depth_bytes", [40, 1500, 3000, 65536])
@pytest.mark.parametrize("bandwidth", RATES)
def test_a_sender_without_pause_gets_its_rate_to_the_nanosecond(bandwidth: int, depth_bytes: int) -> None:
    contract = Contract(bandwidth, depth_bytes)
    bucket, now_ns, spent_ns = Bucket(contract), BOOT_NS, 0
    for size in itertools.islice(itertools.cycle((1500, 1500, 64, 576)), 200):
        offer, cost_ns = Offer(0, size, 1), contract.cost_ns(size)
        now_ns += bucket.wait_ns(now_ns, offer)
        assert now_ns == BOOT_NS + max(0, spent_ns + min(cost_ns, contract.depth_ns) - contract.depth_ns)
        bucket.charge(now_ns, offer)
        spent_ns += cost_ns


@pytest.mark.parametrize("bandwidth", RATES)
def test_after_a_year_idle_the_bucket_is_full_and_no_fuller(bandwidth: int) -> None:
    contract = Contract(bandwidth, 15_000)
    bucket, offer, now_ns = Bucket(contract), Offer(0, 1500, 1), BOOT_NS
    fits = contract.depth_ns // contract.cost_ns(1500)
    for _ in range(3):
        passed = 0
        while bucket.wait_ns(now_ns, offer) == 0:
            bucket.charge(now_ns, offer)
            passed += 1
        assert passed == fits
        now_ns += YEAR_NS


@pytest.mark.parametrize("bandwidth", RATES)
def test_a_clock_that_stands_still_gives_one_depth_and_then_nothing(bandwidth: int) -> None:
    contract = Contract(bandwidth, 3000)
    bucket, offer = Bucket(contract), Offer(0, 100, 1)
    verdicts = []
    for _ in range(100):
        verdicts.append(bucket.wait_ns(BOOT_NS, offer) == 0)
        if verdicts[-1]:
            bucket.charge(BOOT_NS, offer)
    fits = contract.depth_ns // contract.cost_ns(100)
    assert verdicts == [True] * fits + [False] * (100 - fits)


@untimed
@given(
    tat_ns=st.integers(0, 2**62),
    now_ns=st.integers(0, 2**62),
    later_ns=st.integers(0, 2**61),
    need_ns=st.integers(0, 2**62),
    depth_ns=st.integers(0, 2**62),
)
def test_an_older_clock_never_shortens_the_wait(
    tat_ns: int, now_ns: int, later_ns: int, need_ns: int, depth_ns: int
) -> None:
    """So a clock that lags can refuse wrongly but not pass wrongly: the exact one is read before refusing."""
    older = C.wait_ns(tat_ns, now_ns, need_ns, depth_ns)
    assert C.wait_ns(tat_ns, now_ns + later_ns, need_ns, depth_ns) <= older


@pytest.mark.parametrize("bandwidth", RATES)
def test_a_gso_packet_larger_than_the_bucket_passes_on_debt_which_is_paid_in_full(bandwidth: int) -> None:
    contract = Contract(bandwidth, 3000)
    bucket, gso = Bucket(contract), Offer(0, GSO_BYTES, GSO_SEGMENTS)
    cost_ns, depth_ns = contract.cost_ns(GSO_BYTES), contract.depth_ns
    assert cost_ns > depth_ns
    assert bucket.wait_ns(BOOT_NS, gso) == 0
    bucket.charge(BOOT_NS, gso)
    assert bucket.wait_ns(BOOT_NS, gso) == cost_ns + cost_ns // GSO_SEGMENTS - depth_ns
    small = Offer(0, 40, 1)
    assert bucket.wait_ns(BOOT_NS, small) == cost_ns + contract.cost_ns(40) - depth_ns


@pytest.mark.parametrize("bandwidth", RATES)
def test_a_packet_larger_than_the_bucket_passes_when_the_bucket_is_full(bandwidth: int) -> None:
    contract = Contract(bandwidth, 500)
    bucket, offer = Bucket(contract), Offer(0, 1500, 1)
    assert bucket.wait_ns(BOOT_NS, offer) == 0
    bucket.charge(BOOT_NS, offer)
    assert bucket.wait_ns(BOOT_NS, offer) == contract.cost_ns(1500)


def test_a_charge_against_a_state_that_has_moved_on_changes_nothing() -> None:
    tat = ctypes.c_uint64(7000)
    assert not C.charge(tat, 6999, 0, 100)
    assert tat.value == 7000
    assert C.charge(tat, 7000, 0, 100)
    assert tat.value == 7100
    assert C.charge(tat, 7100, 9000, 100)
    assert tat.value == 9100


def test_threads_that_charge_one_bucket_lose_nothing() -> None:
    tat, threads, times, cost_ns = ctypes.c_uint64(0), 4, 50_000, 13
    senders = [threading.Thread(target=C.charge_many, args=(tat, BOOT_NS, cost_ns, times)) for _ in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert tat.value == BOOT_NS + threads * times * cost_ns
