"""What is known of a path: rates that flows were carried at, single outcomes, and whole sessions of probing.

The grid at the end is the accuracy that is published; it runs the real planner over the simulated bottleneck.
"""

import math
from collections.abc import Iterable
from statistics import median
from typing import NamedTuple

import pytest

from qos2.core.pathmodel import PathModel
from qos2.core.probes import ProbeKind, ProbePlan
from qos2.core.probing import CREDIT_BYTES
from qos2.model import FlowFundamentals, Method, Quality, Statement
from unit.bottleneck import Bottleneck, Kind, Load, Noise, Session

MBIT = 1_000_000
MEASURED, LOWER_BOUND = Quality.MEASURED, Quality.LOWER_BOUND


def carry(
    model: PathModel, begin_s: float, seconds: float, rate: float, *, limited: bool, method: Method = Method.TCP
) -> float:
    """Ten intervals per second; the time after the last."""
    steps = round(seconds * 10)
    for step in range(1, steps + 1):
        model.carried(begin_s + step / 10, 0.1, rate, limited=limited, method=method)
    return begin_s + steps / 10


def known(model: PathModel, now_s: float, promised: int = 0) -> FlowFundamentals:
    estimate = model.estimate(now_s, promised)
    assert estimate is not None
    return estimate


def numbers(estimate: FlowFundamentals) -> tuple[int | None, int | None, int | None]:
    return estimate.bottleneck, estimate.available, estimate.rtt_us


def qualities(estimate: FlowFundamentals) -> dict[str, tuple[int, Quality, Method]]:
    return {name: (each.value, each.quality, each.method) for name, each in estimate.statements.items()}


def probe(model: PathModel, way: Bottleneck, now_s: float, kind: ProbeKind, rate: int = 0, carried: float = 0) -> float:
    outcome = way.execute(ProbePlan(kind, 20, 1400, rate), now_s)
    model.outcome(outcome, carried)
    return outcome.ended_s


def test_at_first_nothing_is_known() -> None:
    model = PathModel()
    assert model.estimate(1.0, 0) is None
    assert model.capacity is None
    assert model.measured_s == -math.inf


# Round trips


def test_the_round_trip_is_the_median_of_the_last_two_seconds() -> None:
    model = PathModel()
    for number, rtt_us in enumerate([90_000, 10_000, 11_000, 12_000, 80_000]):
        model.rtt(number * 0.7, rtt_us, Method.PROBE)
    estimate = known(model, 4.0)
    assert numbers(estimate) == (None, None, 12_000)
    statement = estimate.statements["rtt"]
    assert statement == Statement(12_000, MEASURED, Method.PROBE, statement.age_s)
    assert statement.age_s == pytest.approx(1.2)


def test_an_old_round_trip_is_no_measurement_any_more() -> None:
    model = PathModel()
    model.rtt(1.0, 20_000, Method.TCP)
    assert known(model, 31.0).rtt_us == 20_000
    estimate = known(model, 31.1)
    assert numbers(estimate) == (None, None, None)
    statement = estimate.statements["rtt"]
    assert statement == Statement(20_000, LOWER_BOUND, Method.TCP, statement.age_s)
    assert statement.age_s == pytest.approx(30.1)


# Rates that flows were carried at


def test_a_second_of_data_that_the_network_limited_is_a_measurement() -> None:
    model = PathModel()
    now_s = carry(model, 100.0, 0.9, 20 * MBIT, limited=True)
    assert model.estimate(now_s, 0) is None
    assert model.measured_s == -math.inf
    now_s = carry(model, now_s, 0.1, 20 * MBIT, limited=True)
    estimate = known(model, now_s, promised=5 * MBIT)
    assert numbers(estimate) == (20 * MBIT, 15 * MBIT, None)
    assert estimate.statements == {
        "bottleneck": Statement(20 * MBIT, MEASURED, Method.TCP, 0.0),
        "available": Statement(15 * MBIT, MEASURED, Method.TCP, 0.0),
    }
    assert model.measured_s == now_s


def test_what_an_application_reports_counts_like_tcp() -> None:
    model = PathModel()
    model.carried(100.0, 1.0, 8 * MBIT, limited=True, method=Method.REPORT)
    assert qualities(known(model, 100.0)) == {
        "bottleneck": (8 * MBIT, MEASURED, Method.REPORT),
        "available": (8 * MBIT, MEASURED, Method.REPORT),
    }


def test_a_rate_that_the_application_limited_is_a_lower_bound_and_nothing_else() -> None:
    model = PathModel()
    now_s = carry(model, 100.0, 5, 3 * MBIT, limited=False)
    now_s = carry(model, now_s, 5, 2 * MBIT, limited=False)
    estimate = known(model, now_s, promised=MBIT)
    assert numbers(estimate) == (None, None, None)
    assert qualities(estimate) == {
        "bottleneck": (3 * MBIT, LOWER_BOUND, Method.TCP),
        "available": (2 * MBIT, LOWER_BOUND, Method.TCP),
    }
    assert model.measured_s == -math.inf


def test_silence_is_no_lower_bound() -> None:
    model = PathModel()
    now_s = carry(model, 100.0, 5.0, 3 * MBIT, limited=False)
    now_s = carry(model, now_s, 60.0, 0, limited=False)
    assert qualities(known(model, now_s)) == {
        "bottleneck": (3 * MBIT, LOWER_BOUND, Method.TCP),
        "available": (3 * MBIT, LOWER_BOUND, Method.TCP),
    }


def test_scattered_intervals_make_a_measurement_if_they_are_a_second_of_the_last_two() -> None:
    model = PathModel()
    for step in range(1, 31):
        model.carried(100 + step / 10, 0.1, 10 * MBIT, limited=step % 2 == 0, method=Method.TCP)
    assert known(model, 103.0).available == 10 * MBIT
    sparse = PathModel()
    for step in range(1, 61):
        sparse.carried(100 + step / 10, 0.1, 10 * MBIT, limited=step % 3 == 0, method=Method.TCP)
    assert known(sparse, 106.0).available is None


def test_when_others_begin_what_tcp_shows_follows_within_a_second_and_a_half() -> None:
    model = PathModel()
    now_s = carry(model, 100.0, 5, 20 * MBIT, limited=True)
    now_s = carry(model, now_s, 1.2, 8 * MBIT, limited=True)
    estimate = known(model, now_s)
    assert numbers(estimate) == (20 * MBIT, 8 * MBIT, None)
    # The bottleneck is what was possible within ten seconds.
    now_s = carry(model, now_s, 9.9, 8 * MBIT, limited=True)
    assert numbers(known(model, now_s)) == (8 * MBIT, 8 * MBIT, None)


def test_a_measurement_ages_and_becomes_a_lower_bound_and_is_forgotten() -> None:
    model = PathModel()
    end_s = carry(model, 100.0, 2, 20 * MBIT, limited=True)
    assert numbers(known(model, end_s + 30)) == (20 * MBIT, 20 * MBIT, None)
    assert known(model, end_s + 30).statements["available"].age_s == pytest.approx(30)
    assert qualities(known(model, end_s + 30.1)) == {
        "bottleneck": (20 * MBIT, LOWER_BOUND, Method.TCP),
        "available": (20 * MBIT, LOWER_BOUND, Method.TCP),
    }
    assert known(model, end_s + 300).bottleneck is None
    assert model.estimate(end_s + 300.1, 0) is None


def test_more_than_is_obtainable_may_be_promised_and_then_nothing_is_available() -> None:
    model = PathModel()
    now_s = carry(model, 100.0, 2, 20 * MBIT, limited=True)
    assert known(model, now_s, promised=30 * MBIT).available == 0


# Trains


def test_a_burst_alone_tells_the_bottleneck_and_not_what_is_available() -> None:
    model, way = PathModel(), Bottleneck(20 * MBIT)
    now_s = probe(model, way, 100.0, ProbeKind.BURST)
    estimate = known(model, now_s)
    assert estimate.bottleneck == pytest.approx(20 * MBIT, rel=0.001)
    assert estimate.available is None
    assert set(estimate.statements) == {"bottleneck", "rtt"}
    assert model.measured_s == -math.inf


def test_available_is_never_told_before_the_bottleneck() -> None:
    model, way = PathModel(), Bottleneck(20 * MBIT)
    now_s = probe(model, way, 100.0, ProbeKind.PACED, 20 * MBIT)
    assert set(known(model, now_s).statements) == {"rtt"}


def test_what_our_flows_are_carried_at_is_obtainable_too() -> None:
    # Others, of which 5 are ours, send 10 Mbit/s.
    model, way = PathModel(), Bottleneck(20 * MBIT, load=0.5, pattern=Load.CBR)
    now_s = probe(model, way, 100.0, ProbeKind.BURST)
    for _ in range(8):
        now_s = probe(model, way, now_s + 0.3, ProbeKind.PACED, 18 * MBIT, carried=5 * MBIT)
    estimate = known(model, now_s, promised=3 * MBIT)
    assert estimate.available == pytest.approx(12 * MBIT, abs=1.5 * MBIT)
    assert estimate.statements["available"].method is Method.TRAIN
    assert model.measured_s == now_s


def test_trains_that_were_not_held_back_are_a_lower_bound() -> None:
    model, way = PathModel(), Bottleneck(20 * MBIT)
    now_s = probe(model, way, 100.0, ProbeKind.BURST)
    now_s = probe(model, way, now_s + 0.3, ProbeKind.PACED, 8 * MBIT)
    estimate = known(model, now_s)
    assert estimate.available is None
    assert estimate.statements["available"].quality is LOWER_BOUND
    assert estimate.statements["available"].value == pytest.approx(8 * MBIT, rel=0.01)


def test_trains_that_were_sent_too_slowly_take_nothing_from_what_is_known() -> None:
    model, way = PathModel(), Bottleneck(20 * MBIT)
    now_s = 100.0
    for kind, rate in ((ProbeKind.BURST, 0), *[(ProbeKind.PACED, 26 * MBIT)] * 3, *[(ProbeKind.PACED, 5 * MBIT)] * 9):
        now_s = probe(model, way, now_s + 0.2, kind, rate)
    assert known(model, now_s).available == pytest.approx(20 * MBIT, rel=0.05)


def test_what_was_spare_and_more_is_raised_by_a_train_that_was_not_held_back() -> None:
    model, way = PathModel(), Bottleneck(20 * MBIT, load=0.7, pattern=Load.CBR)
    now_s = 100.0
    for kind, rate in ((ProbeKind.BURST, 0), *[(ProbeKind.PACED, 20 * MBIT)] * 2):
        now_s = probe(model, way, now_s + 0.2, kind, rate)
    before = known(model, now_s).available
    way.load = 0.0
    now_s = probe(model, way, now_s + 3.0, ProbeKind.PACED, 12 * MBIT)
    after = known(model, now_s).available
    assert before == pytest.approx(6 * MBIT, rel=0.2)
    assert before is not None
    assert after is not None
    assert after > 1.4 * before


def test_tcp_is_believed_before_trains_while_it_is_fresh() -> None:
    model, way = PathModel(), Bottleneck(20 * MBIT)
    now_s = probe(model, way, 100.0, ProbeKind.BURST)
    now_s = probe(model, way, now_s + 0.3, ProbeKind.PACED, 21 * MBIT)
    now_s = carry(model, now_s, 1.5, 12 * MBIT, limited=True)
    assert qualities(known(model, now_s))["available"] == (12 * MBIT, MEASURED, Method.TCP)
    later_s = probe(model, way, now_s + 3.0, ProbeKind.PACED, 21 * MBIT)
    assert known(model, later_s).statements["available"].method is Method.TRAIN
    assert known(model, later_s).available == pytest.approx(20 * MBIT, rel=0.02)


def test_flows_that_are_carried_at_more_than_trains_say_prove_them_wrong() -> None:
    model, way = PathModel(), Bottleneck(20 * MBIT)
    now_s = probe(model, way, 100.0, ProbeKind.BURST)
    now_s = carry(model, now_s, 1.5, 40 * MBIT, limited=False)
    assert qualities(known(model, now_s))["bottleneck"] == (40 * MBIT, MEASURED, Method.TCP)


def test_one_wrong_burst_changes_nothing_and_two_that_agree_are_a_new_capacity() -> None:
    model, way = PathModel(), Bottleneck(20 * MBIT)
    now_s = 100.0
    for _ in range(4):
        now_s = probe(model, way, now_s + 0.3, ProbeKind.BURST)
    way.capacity = 10 * MBIT
    now_s = probe(model, way, now_s + 0.3, ProbeKind.BURST)
    assert known(model, now_s).bottleneck == pytest.approx(20 * MBIT, rel=0.01)
    now_s = probe(model, way, now_s + 0.3, ProbeKind.BURST)
    assert known(model, now_s).bottleneck == pytest.approx(10 * MBIT, rel=0.01)


def test_a_burst_that_a_bucket_swallowed_is_forgotten_once_a_longer_one_shows_the_queue() -> None:
    model, way = PathModel(), Bottleneck(10 * MBIT, kind=Kind.TOKENS, burst_bytes=11_200)
    model.outcome(way.execute(ProbePlan(ProbeKind.BURST, 6, 1400), 100.0), 0.0)
    assert known(model, 101.0).bottleneck == pytest.approx(1e9, rel=0.02)
    now_s = probe(model, way, 102.0, ProbeKind.BURST)
    assert known(model, now_s).bottleneck == pytest.approx(10 * MBIT, rel=0.02)


# Whole sessions


class Accuracy(NamedTuple):
    """Errors as shares of the capacity, medians and 95th percentiles over the cells of a grid."""

    bottleneck: float
    available: float
    available_p95: float
    first_s: float
    cost: float  #: the greatest share of the capacity that probes took beyond the first credit


def session(way: Bottleneck, seconds: float) -> tuple[list[float], list[float], float]:
    """Errors of bottleneck and available from 2 s on, and when available was told first (infinite: never)."""
    run = Session(way)
    begin_s, first_s = run.now_s, math.inf
    bottleneck, available = [], []
    for now_s in run.run(seconds):
        estimate = run.model.estimate(now_s, 0)
        told = estimate is not None and estimate.bottleneck is not None and estimate.available is not None
        if told and math.isinf(first_s):
            first_s = now_s - begin_s
        if now_s - begin_s < 2:
            continue
        if estimate is None or estimate.bottleneck is None or estimate.available is None:
            bottleneck.append(1.0)  # not told is as wrong as can be
            available.append(1.0)
        else:
            bottleneck.append(abs(estimate.bottleneck / way.capacity - 1))
            available.append(abs(estimate.available / way.capacity - (1 - way.load)))
    return bottleneck, available, first_s


def percentile(values: Iterable[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[round(share * (len(ordered) - 1))]


def grid(
    capacities: list[float], loads: list[float], patterns: list[Load], kind: Kind, burst_bytes: int
) -> tuple[Accuracy, str]:
    """The accuracy over a grid, and the table of its cells."""
    bottleneck: list[float] = []
    available: list[float] = []
    first_s = cost = 0.0
    rows = [f"{kind}, bucket {burst_bytes} bytes\n Mbit/s load pattern  bottleneck  available  (95 %)  first s  probes"]
    for capacity in capacities:
        for load in loads:
            for pattern in patterns if load else patterns[:1]:
                cell: tuple[list[float], list[float]] = ([], [])
                cell_first_s = cell_cost = 0.0
                for seed in range(2):
                    way = Bottleneck(
                        capacity,
                        kind=kind,
                        load=load,
                        pattern=pattern,
                        burst_bytes=burst_bytes,
                        noise=Noise(),
                        seed=seed,
                    )
                    errors = session(way, 15.0)
                    cell[0].extend(errors[0])
                    cell[1].extend(errors[1])
                    cell_first_s = max(cell_first_s, errors[2])
                    cell_cost = max(cell_cost, (way.sent_bytes - CREDIT_BYTES) * 8 / 15.0 / capacity)
                rows.append(
                    f"{capacity / MBIT:7.0f} {load:4.1f} {pattern:8} {median(cell[0]):10.3f} {median(cell[1]):10.3f}"
                    f" {percentile(cell[1], 0.95):7.3f} {cell_first_s:8.1f} {cell_cost:7.2%}"
                )
                bottleneck += cell[0]
                available += cell[1]
                first_s, cost = max(first_s, cell_first_s), max(cost, cell_cost)
    accuracy = Accuracy(median(bottleneck), median(available), percentile(available, 0.95), first_s, cost)
    return accuracy, "\n".join([*rows, repr(accuracy)])


CAPACITIES = [5e6, 10e6, 20e6, 50e6, 100e6]
LOADS = [0.0, 0.3, 0.6, 0.8]


# A bucket of 6,000 bytes takes the first four packets of each train: what is left of a short one varies more than the
# goal (35 % for the 95th percentile) allows, which was measured as 45 to 49 %, and the median as 10.4 %.
@pytest.mark.parametrize(
    ("kind", "burst_bytes", "most", "most_p95"),
    [(Kind.SHAPER, 0, 0.10, 0.35), (Kind.TOKENS, 3000, 0.10, 0.35), (Kind.TOKENS, 6000, 0.12, 0.55)],
)
def test_behind_a_shaper_or_token_bucket_the_goals_are_met(
    kind: Kind, burst_bytes: int, most: float, most_p95: float
) -> None:
    accuracy, table = grid(CAPACITIES, LOADS, list(Load), kind, burst_bytes)
    assert accuracy.bottleneck <= 0.02, table  # goal 10 %
    assert accuracy.available <= most, table  # goal 15 %
    assert accuracy.available_p95 <= most_p95, table
    assert accuracy.first_s <= 2.0, table
    assert accuracy.cost <= 0.0105, table  # the credit is refilled in the time, too


def test_behind_a_policer_the_capacity_is_known_roughly() -> None:
    # Its bucket holds two packets, of a train six or so pass, and each is a sixth. Others that are policed as well
    # make that worse; above 50 Mbit/s so does pacing by the timers of an ordinary host.
    accuracy, table = grid([5e6, 10e6, 20e6], [0.0, 0.3], [Load.CBR, Load.POISSON], Kind.POLICER, 3000)
    assert accuracy.bottleneck <= 0.2, table
    assert accuracy.available <= 0.25, table
    assert accuracy.cost <= 0.0125, table


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.7), (0.7, 0.0)])
def test_when_others_begin_or_end_the_estimate_follows_within_seconds(before: float, after: float) -> None:
    delays = []
    for capacity in CAPACITIES:
        for seed in range(6):
            way = Bottleneck(capacity, load=before, pattern=Load.CBR, noise=Noise(), seed=seed)
            run = Session(way)
            for _ in run.run(12 + 0.37 * seed):
                pass
            way.load = after
            delays.append(follow_s(run, capacity * (1 - after), 0.2 * capacity))
    # A step is seen by the next train, which may be 2 s away at 5 Mbit/s, and believed with the one after it.
    assert median(delays) <= 1.5, sorted(delays)
    assert percentile(delays, 0.9) <= 4.0, sorted(delays)


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_when_the_capacity_changes_the_estimate_follows_within_seconds(factor: float) -> None:
    delays = []
    for capacity in CAPACITIES:
        for seed in range(6):
            way = Bottleneck(capacity, noise=Noise(), seed=seed)
            run = Session(way)
            for _ in run.run(12 + 0.37 * seed):
                pass
            way.capacity *= factor
            delays.append(follow_s(run, way.capacity, 0.2 * way.capacity))
    assert median(delays) <= 2.5, sorted(delays)
    assert percentile(delays, 0.9) <= 4.5, sorted(delays)


def follow_s(run: Session, truth: float, allowed: float) -> float:
    """How long until available is right; infinite: not within 15 s."""
    begin_s = run.now_s
    for now_s in run.run(15.0):
        estimate = run.model.estimate(now_s, 0)
        if estimate is not None and estimate.available is not None and abs(estimate.available - truth) <= allowed:
            return now_s - begin_s
    return math.inf
