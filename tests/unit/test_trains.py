"""One train at a time over the simulated bottleneck: what it tells of queues, buckets, losses and bad stamps."""

from statistics import mean, median

import pytest

from qos2.core import trains
from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePacket, ProbePlan
from unit.bottleneck import Bottleneck, Kind, Load, Noise

MBIT = 1e6
BURST = ProbePlan(ProbeKind.BURST, 20, 1400)


def paced_plan(rate: float) -> ProbePlan:
    return ProbePlan(ProbeKind.PACED, 20, 1400, round(rate))


def bursts(way: Bottleneck, number: int = 40) -> list[trains.Burst]:
    found = [trains.burst(way.execute(BURST, 1.0 + each * 0.5)) for each in range(number)]
    return [each for each in found if each is not None]


def spares(way: Bottleneck, rate: float, head: int = 0, number: int = 60) -> list[float]:
    """As shares of the capacity."""
    outcomes = [way.execute(paced_plan(rate), 1.0 + each * 0.5) for each in range(number)]
    found = [trains.paced(outcome, way.capacity, head) for outcome in outcomes]
    return [each.spare(way.capacity) / way.capacity for each in found if each is not None]


def outcome_of(plan: ProbePlan, times: list[tuple[int, int] | None]) -> ProbeOutcome:
    """From pairs of sending and arrival in microseconds; the way back takes 1 ms, the reflector 10 us."""
    packets = [
        None
        if time is None
        else ProbePacket(time[0] * 1000, time[1] * 1000, (time[1] + 10) * 1000, (time[1] + 1010) * 1000)
        for time in times
    ]
    return ProbeOutcome(plan, 0, 1.0, 1.1, tuple(packets))


@pytest.mark.parametrize("capacity", [1 * MBIT, 5 * MBIT, 100 * MBIT])
def test_without_noise_a_burst_shows_the_capacity_whatever_the_clocks(capacity: float) -> None:
    for seed in range(5):  # each with another offset between the clocks
        (burst,) = bursts(Bottleneck(capacity, seed=seed), 1)
        assert burst.head == 0
        assert burst.capacity == pytest.approx(capacity, rel=1e-4)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
@pytest.mark.parametrize("pattern", Load)
def test_what_others_send_moves_the_capacity_of_bursts_by_the_few_packets_that_come_in_between(
    load: float, pattern: Load
) -> None:
    # In the 0.22 ms that a burst takes to arrive over 1 Gbit/s, others bring 0.22 ms of their load: 20 packets
    # seem to be 20 + 0.22 ms * load / 1400 bytes. At 20 Mbit/s that is 2 %, at 100 Mbit/s 9 %.
    slow = [each.capacity for each in bursts(Bottleneck(20 * MBIT, load=load, pattern=pattern, noise=Noise()))]
    fast = [each.capacity for each in bursts(Bottleneck(100 * MBIT, load=load, pattern=pattern, noise=Noise()))]
    assert median(slow) == pytest.approx(20 * MBIT, rel=0.02)
    assert median(fast) == pytest.approx(100 * MBIT, rel=0.1)


@pytest.mark.parametrize(("burst_bytes", "head"), [(2800, 2), (7000, 5), (14000, 10)])
def test_behind_a_token_bucket_the_sustained_rate_is_shown_and_the_bucket(burst_bytes: int, head: int) -> None:
    way = Bottleneck(10 * MBIT, kind=Kind.TOKENS, burst_bytes=burst_bytes, noise=Noise())
    found = bursts(way)
    assert median(each.capacity for each in found) == pytest.approx(10 * MBIT, rel=0.02)
    assert abs(median(each.head for each in found) - head) <= 1


def test_a_bucket_that_holds_the_whole_burst_is_invisible() -> None:
    way = Bottleneck(10 * MBIT, kind=Kind.TOKENS, burst_bytes=40_000)
    (burst,) = bursts(way, 1)
    assert burst.capacity == pytest.approx(1e9, rel=0.01)
    assert burst.head == 0


def test_stalls_of_the_reflector_do_not_move_the_median_of_bursts() -> None:
    noise = Noise(stall_probability=0.03)  # in 45 % of the bursts
    found = bursts(Bottleneck(100 * MBIT, noise=noise), 60)
    assert median(each.capacity for each in found) == pytest.approx(100 * MBIT, rel=0.03)


def test_a_policer_lets_the_first_packets_pass_and_is_recognised() -> None:
    way = Bottleneck(10 * MBIT, kind=Kind.POLICER, burst_bytes=7000)
    outcome = way.execute(BURST, 1.0)
    assert outcome.answered == 5
    assert trains.policed(outcome)
    assert not trains.policed(Bottleneck(10 * MBIT).execute(BURST, 1.0))
    assert not trains.policed(Bottleneck(10 * MBIT, reflector=False).execute(BURST, 1.0))


def test_a_bucket_with_a_short_queue_is_no_policer_for_its_queue_shows_the_rate() -> None:
    way = Bottleneck(10 * MBIT, kind=Kind.TOKENS, burst_bytes=7000, buffer_s=0.008)
    outcome = way.execute(BURST, 1.0)
    assert 10 <= outcome.answered <= 15
    assert not trains.policed(outcome)
    burst = trains.burst(outcome)
    assert burst is not None
    assert burst.capacity == pytest.approx(10 * MBIT, rel=0.02)


def test_too_few_or_simultaneous_arrivals_are_no_burst() -> None:
    plan = ProbePlan(ProbeKind.BURST, 6, 1400)
    assert trains.burst(outcome_of(plan, [(0, 100), (0, 200), (0, 300), None, None, None])) is None
    assert trains.burst(outcome_of(plan, [(0, 100)] * 6)) is None


# What a bucket of two packets lets pass at once is a fifteenth of such a train, and seen as capacity.
@pytest.mark.parametrize(("kind", "more"), [(Kind.SHAPER, 0.0), (Kind.TOKENS, 0.067)])
def test_an_idle_way_has_all_of_its_capacity_to_spare(kind: Kind, more: float) -> None:
    way = Bottleneck(20 * MBIT, kind=kind, noise=Noise())
    assert median(spares(way, 23 * MBIT)) == pytest.approx(1.0 + more, abs=0.03)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_constant_cross_traffic_is_seen_by_each_train(load: float) -> None:
    way = Bottleneck(20 * MBIT, load=load, pattern=Load.CBR, noise=Noise())
    found = spares(way, 20 * MBIT * (2.3 - load) / 2)
    assert median(found) == pytest.approx(1 - load, abs=0.03)


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_random_cross_traffic_is_seen_in_the_mean(load: float) -> None:
    # A train of 10 ms meets about 10 packets of others, so one train errs by a fifth; the mean of 60 by 3 %.
    way = Bottleneck(20 * MBIT, load=load, pattern=Load.POISSON, noise=Noise())
    found = spares(way, 20 * MBIT * (2.3 - load) / 2)
    assert mean(found) == pytest.approx(1 - load, abs=0.08)


def test_of_a_token_bucket_only_what_comes_after_it_counts() -> None:
    way = Bottleneck(20 * MBIT, kind=Kind.TOKENS, burst_bytes=6000, load=0.6, pattern=Load.CBR)
    # The part that counts begins where a packet of others has emptied the bucket, so of those that come at fixed
    # intervals half a one too few is seen: of the 3.6 in this time a seventh, a tenth of the capacity.
    assert median(spares(way, 40 * MBIT, head=4)) == pytest.approx(0.4, abs=0.12)
    # Without that knowledge the bucket seems to be spare.
    assert median(spares(way, 40 * MBIT)) > 0.55


def test_a_train_below_what_is_spare_is_not_held_and_tells_its_own_rate() -> None:
    way = Bottleneck(20 * MBIT)
    paced = trains.paced(way.execute(paced_plan(8 * MBIT), 1.0), 20 * MBIT)
    assert paced is not None
    assert not paced.held
    assert paced.rate == pytest.approx(8 * MBIT, rel=0.01)
    assert paced.spare(20 * MBIT) == pytest.approx(8 * MBIT, rel=0.01)


def test_losses_count_like_delay() -> None:
    # Three of four dropped: a policer of a quarter of the rate.
    times = [(number * 100, number * 100 + 500) if number % 4 == 0 else None for number in range(20)]
    paced = trains.paced(outcome_of(paced_plan(112 * MBIT), times), None)
    assert paced is not None
    assert paced.lossy
    assert paced.arrived == pytest.approx(28 * MBIT)
    assert paced.ratio == pytest.approx(4.0)


def test_one_loss_is_no_policer() -> None:
    times = [(number * 100, number * 100 + 500) if number != 7 else None for number in range(20)]
    paced = trains.paced(outcome_of(paced_plan(112 * MBIT), times), 200 * MBIT)
    assert paced is not None
    assert (paced.lossy, paced.held) == (False, False)


def test_pauses_of_the_sender_are_left_out() -> None:
    # Ten packets at 100 us and, 5 ms later, seven more: in between the queue had run empty.
    sent = [number * 100 for number in range(10)] + [5900 + number * 100 for number in range(7)]
    times: list[tuple[int, int] | None] = [(each, 500 + 2 * each) for each in sent[:10]]
    times += [(each, 6000 + 2 * (each - 5900)) for each in sent[10:]]
    paced = trains.paced(outcome_of(ProbePlan(ProbeKind.PACED, 17, 1400, 112_000_000), times), None)
    assert paced is not None
    assert paced.span_s == pytest.approx(900e-6)
    assert paced.ratio == pytest.approx(2.0)


def test_late_stamps_within_and_at_the_end_of_a_train_are_seen_through() -> None:
    capacity = 112 * MBIT  # 100 us per packet
    right = [(number * 100, number * 100 + 500) for number in range(20)]
    for stalled in (range(5, 9), range(16, 20)):
        end = right[stalled[-1]][1] + 100  # the stamps of all of these, a little after the last had come
        times: list[tuple[int, int] | None] = [
            (sent, end) if number in stalled else (sent, reached) for number, (sent, reached) in enumerate(right)
        ]
        paced = trains.paced(outcome_of(paced_plan(capacity), times), capacity)
        assert paced is not None
        assert paced.ratio == pytest.approx(1.0, abs=0.01), stalled


def test_the_round_trip_is_that_of_the_first_packet_without_the_reflectors_time() -> None:
    plan = ProbePlan(ProbeKind.BURST, 3, 1400)
    assert trains.rtt_us(outcome_of(plan, [None, (0, 700), (0, 900)])) == 1700
    assert trains.rtt_us(outcome_of(plan, [None, None, None])) is None


def test_of_single_probes_the_least_round_trip_counts() -> None:
    plan = ProbePlan(ProbeKind.SINGLE, 2, 92)
    assert trains.rtt_us(outcome_of(plan, [(0, 900), (0, 700)])) == 1700
    assert trains.rtt_us(outcome_of(plan, [(0, 900), None])) == 1900
