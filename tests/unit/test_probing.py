"""What is sent to a reflector next: the first answer, budget, limits of trains, reflectors that come and go."""

from itertools import pairwise

import pytest

from qos2.core.probes import MAX_TRAIN, ProbeKind, ProbeOutcome, ProbePlan
from qos2.core.probing import (
    CREDIT_BYTES,
    HELLOS,
    PAIR_S,
    QUEUE_S,
    SILENT_PLANS,
    SINGLE_BYTES,
    TRAIN_BYTES,
    Demand,
    Probing,
)
from unit.bottleneck import Bottleneck, Kind, Load, Noise, Session

MBIT = 1e6
HELLO = ProbePlan(ProbeKind.SINGLE, HELLOS, SINGLE_BYTES)
SINGLE = ProbePlan(ProbeKind.SINGLE, 1, SINGLE_BYTES)
PAIR = ProbePlan(ProbeKind.SINGLE, 2, SINGLE_BYTES, round(SINGLE_BYTES * 8 / PAIR_S))


def lost(plan: ProbePlan, now_s: float) -> ProbeOutcome:
    return ProbeOutcome(plan, 0, now_s, now_s + 0.5, (None,) * plan.count)


def settled(way: Bottleneck, share: float = 0.01) -> Session:
    run = Session(way, share=share)
    for _ in run.run(2.0):
        pass
    assert run.probing.settled
    return run


def sent_after(run: Session, seconds: float, demand: Demand) -> list[tuple[float, ProbePlan]]:
    before = len(run.sent)
    for _ in run.run(seconds, demand=demand):
        pass
    return run.sent[before:]


def of_kind(sent: list[tuple[float, ProbePlan]], kind: ProbeKind) -> list[ProbePlan]:
    return [plan for _at, plan in sent if plan.kind is kind]


# Whether there is a reflector


def state(probing: Probing) -> tuple[bool | None, bool]:
    return probing.reflector, probing.settled


def test_first_it_is_asked_whether_there_is_a_reflector() -> None:
    probing = Probing()
    assert state(probing) == (None, False)
    assert probing.next(100.0, demand=Demand.NONE) == HELLO
    assert state(probing) == (None, False)
    probing.heard(Bottleneck(20 * MBIT).execute(HELLO, 100.0), None)
    assert state(probing) == (True, False)


def test_where_none_answers_that_settles_it_and_it_is_asked_again_ever_less_often() -> None:
    probing, asked = Probing(), []
    for tenth in range(3000):
        now_s = 100 + tenth / 10
        plan = probing.next(now_s, demand=Demand.FRESH)
        if plan is not None:
            assert plan == HELLO
            asked.append(now_s)
            probing.heard(lost(plan, now_s), None)
            assert state(probing) == (False, True)
    pauses = [round(later - earlier) for earlier, later in pairwise(asked)]
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_reflector_that_falls_silent_is_gone_and_is_found_again() -> None:
    run = settled(Bottleneck(20 * MBIT))
    run.probing.fresh()
    run.way.reflector = False
    for _ in run.run(5.0):
        pass
    assert (run.probing.reflector, run.probing.refreshing) == (False, False)
    run.way.reflector = True
    for _ in run.run(8.0):
        pass
    assert run.probing.reflector is True


def test_after_a_train_of_which_nothing_came_back_single_probes_ask_for_the_reflector() -> None:
    run = settled(Bottleneck(100 * MBIT))
    probing = run.probing
    now_s = run.now_s + 5  # the budget is full again, and nothing is under way
    plan = probing.next(now_s, demand=Demand.BANDWIDTH)
    assert plan is not None
    assert plan.kind is not ProbeKind.SINGLE
    probing.heard(lost(plan, now_s), 100 * MBIT)
    assert probing.next(now_s + 1, demand=Demand.BANDWIDTH) == PAIR
    assert probing.reflector is True


def test_where_only_small_packets_pass_trains_become_smaller() -> None:
    run = Session(Bottleneck(20 * MBIT, mtu=600))
    for _ in run.run(20.0):
        pass
    trains = [plan for _at, plan in run.sent if plan.kind is not ProbeKind.SINGLE]
    sizes = [plan.ip_bytes for plan in trains]
    assert sizes[:4] == [TRAIN_BYTES[0]] * 2 + [TRAIN_BYTES[1]] * 2
    assert set(sizes[4:]) == {TRAIN_BYTES[2]}
    assert run.model.capacity == pytest.approx(20 * MBIT, rel=0.02)


# The first answer


@pytest.mark.parametrize("capacity", [5 * MBIT, 20 * MBIT, 100 * MBIT])
def test_the_first_answer_comes_within_two_seconds_and_within_the_credit(capacity: float) -> None:
    run = Session(Bottleneck(capacity, load=0.3, delay_s=0.05, noise=Noise()))
    for _ in run.run(2.0):
        if run.probing.settled:
            break
    assert run.probing.settled
    earned = 0.01 * capacity / 8 * (run.now_s - 100)
    assert run.way.sent_bytes <= CREDIT_BYTES + earned
    kinds = [plan.kind for _at, plan in run.sent if plan.kind is not ProbeKind.SINGLE]
    assert kinds[:5] == [*(ProbeKind.BURST,) * 3, *(ProbeKind.PACED,) * 2]


def test_where_trains_tell_nothing_it_is_settled_all_the_same() -> None:
    # Everything but small packets is lost, in all sizes.
    run = Session(Bottleneck(20 * MBIT, mtu=200))
    for _ in run.run(10.0):
        if run.probing.settled:
            break
    assert run.probing.settled
    assert run.probing.reflector is True
    assert run.model.capacity is None
    assert run.now_s - 100 <= 6.0


# Limits of trains


@pytest.mark.parametrize("capacity", [1 * MBIT, 5 * MBIT, 20 * MBIT, 100 * MBIT, 800 * MBIT])
@pytest.mark.parametrize("load", [0.0, 0.8])
def test_no_train_is_longer_than_twenty_packets_or_fills_the_queue(capacity: float, load: float) -> None:
    run = settled(Bottleneck(capacity, load=load, pattern=Load.CBR, noise=Noise()))
    sent = sent_after(run, 20.0, Demand.BANDWIDTH)
    bursts, paced = of_kind(sent, ProbeKind.BURST), of_kind(sent, ProbeKind.PACED)
    assert bursts
    assert paced
    assert max(plan.count for plan in (*bursts, *paced)) <= MAX_TRAIN
    # One packet more than fits, and the capacity is known to some percent.
    packet_s = 1400 * 8 / capacity
    assert max(plan.bytes * 8 / capacity for plan in bursts) <= 1.1 * QUEUE_S + packet_s
    spare = (1 - load) * capacity
    growth_s = [plan.bytes * 8 / capacity * max(0.0, plan.rate - spare) / plan.rate for plan in paced]
    assert sorted(growth_s)[len(growth_s) // 2] <= 1.1 * QUEUE_S + packet_s


def test_trains_are_paced_above_what_is_spare() -> None:
    run = settled(Bottleneck(20 * MBIT, load=0.5, pattern=Load.CBR, noise=Noise()))
    paced = of_kind(sent_after(run, 15.0, Demand.BANDWIDTH), ProbeKind.PACED)
    assert all(11 * MBIT < plan.rate < 24 * MBIT for plan in paced)


# The budget


@pytest.mark.parametrize("share", [0.001, 0.01, 0.05])
@pytest.mark.parametrize("capacity", [5 * MBIT, 100 * MBIT])
@pytest.mark.parametrize("demand", Demand)
def test_no_more_than_its_share_is_spent_beyond_the_credit(share: float, capacity: float, demand: Demand) -> None:
    run = Session(Bottleneck(capacity, load=0.4, noise=Noise()), share=share)
    for _ in run.run(60.0, demand=demand):
        pass
    # The capacity may be taken for some percent more than it is.
    assert run.way.sent_bytes <= CREDIT_BYTES + 1.1 * share * capacity / 8 * 60


@pytest.mark.parametrize(("burst_bytes", "capacity"), [(11_200, 5 * MBIT), (20_000, 20 * MBIT)])
def test_a_bucket_that_feigns_its_line_rate_does_not_open_the_budget_for_long(
    burst_bytes: int, capacity: float
) -> None:
    run = Session(Bottleneck(capacity, kind=Kind.TOKENS, burst_bytes=burst_bytes, noise=Noise()))
    for _ in run.run(60.0):
        pass
    # Until a longer burst shows the queue, the line rate of 1 Gbit/s earns: that is some tenths of a second.
    assert run.way.sent_bytes <= 2 * CREDIT_BYTES + 1.5 * 0.01 * capacity / 8 * 60


def test_while_nobody_asks_a_pair_of_trains_now_and_then_keeps_the_estimate_fresh() -> None:
    run = settled(Bottleneck(20 * MBIT))
    before = len(run.sent)
    ages = []
    for now_s in run.run(60.0, demand=Demand.NONE):
        estimate = run.model.estimate(now_s, 0)
        assert estimate is not None
        assert estimate.available is not None
        ages.append(estimate.statements["available"].age_s)
    sent = run.sent[before:]
    assert max(ages) < 15.0
    assert 4 <= len(of_kind(sent, ProbeKind.BURST)) <= 6
    assert 4 <= len(of_kind(sent, ProbeKind.PACED)) <= 6
    assert 40 <= len(of_kind(sent, ProbeKind.SINGLE)) <= 61


def test_single_probes_lost_before_one_that_came_back_are_no_silence() -> None:
    run = settled(Bottleneck(20 * MBIT))
    now_s = run.now_s
    run.probing.heard(Bottleneck(20 * MBIT).execute(SINGLE, now_s + 2), 20 * MBIT)
    for number in range(2 * SILENT_PLANS):
        run.probing.heard(lost(SINGLE, now_s + number * 0.05), 20 * MBIT)
    assert run.probing.reflector is True
    for number in range(SILENT_PLANS):
        run.probing.heard(lost(SINGLE, now_s + 3 + number * 0.05), 20 * MBIT)
    assert run.probing.reflector is False


@pytest.mark.parametrize(("mbit", "plan"), [(20, PAIR), (2, SINGLE)])
def test_while_a_condition_is_waited_for_every_tenth_of_a_second_is_probed(mbit: float, plan: ProbePlan) -> None:
    """Twice, where a third of the budget pays for it."""
    run = settled(Bottleneck(mbit * MBIT))
    singles = of_kind(sent_after(run, 10.0, Demand.CONDITION), ProbeKind.SINGLE)
    assert set(singles) == {plan}
    assert 90 <= len(singles) <= 100


def test_what_others_start_to_send_is_followed_by_a_burst_at_once() -> None:
    run = settled(Bottleneck(20 * MBIT, pattern=Load.CBR))
    for _ in run.run(10.0):
        pass
    run.way.load = 0.7
    sent = sent_after(run, 4.0, Demand.BANDWIDTH)
    kinds = [plan.kind for _at, plan in sent if plan.kind is not ProbeKind.SINGLE]
    first_burst = kinds.index(ProbeKind.BURST)
    assert kinds[first_burst + 1] is ProbeKind.PACED
    times = [at for at, plan in sent if plan.kind is not ProbeKind.SINGLE]
    assert times[first_burst + 1] - times[first_burst] <= 0.3


# A fresh measurement


@pytest.mark.parametrize("capacity", [5 * MBIT, 100 * MBIT])
@pytest.mark.parametrize("demand", [Demand.NONE, Demand.BANDWIDTH, Demand.FRESH])
def test_a_fresh_measurement_is_a_burst_and_a_paced_train_at_once(capacity: float, demand: Demand) -> None:
    run = settled(Bottleneck(capacity, noise=Noise()))
    for _ in run.run(30.0, demand=demand):
        pass
    asked_s = run.now_s
    run.probing.fresh()
    before = len(run.sent)
    for _ in run.run(3.0, demand=Demand.FRESH):
        if not run.probing.refreshing:
            break
    assert run.now_s - asked_s <= 1.0
    assert run.model.measured_s > asked_s
    # One that is under way when it is asked counts, for it has not been heard yet.
    kinds = [plan.kind for _at, plan in run.sent[before - 1 :] if plan.kind is not ProbeKind.SINGLE]
    assert (ProbeKind.BURST, ProbeKind.PACED) in pairwise(kinds)


# Policers


@pytest.mark.parametrize("capacity", [5 * MBIT, 20 * MBIT])
def test_behind_a_policer_paced_trains_look_for_its_rate(capacity: float) -> None:
    run = Session(Bottleneck(capacity, kind=Kind.POLICER, burst_bytes=3000, noise=Noise()))
    for _ in run.run(20.0):
        pass
    paced = of_kind(run.sent, ProbeKind.PACED)
    assert len({plan.rate for plan in paced}) > 3  # several rates tell its capacity from what others send
    assert run.model.capacity == pytest.approx(capacity, rel=0.3)


@pytest.mark.parametrize("seed", range(4))
def test_a_full_queue_is_no_policer(seed: int) -> None:
    run = settled(Bottleneck(20 * MBIT, noise=Noise(), seed=seed))
    known = run.model.capacity
    run.way.load = 1.2
    paced = of_kind(sent_after(run, 15.0, Demand.BANDWIDTH), ProbeKind.PACED)
    assert known is not None
    # No faster than the capacity by more than what an idle way gets; a policer would get 2.9 times that.
    assert max(plan.rate for plan in paced) <= 1.2 * known
