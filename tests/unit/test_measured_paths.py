"""What is known of ways to hosts: who uses them, how long that is kept, fresh measurements, admission, reports."""

from collections import Counter

import pytest

from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePacket, ProbePlan
from qos2.core.probing import SINGLE_BYTES
from qos2.errors import HostUnreachable, NetworkBusy, Retry
from qos2.model import Dscp, Method, Quality, Reach, RemoteHost, Statement
from qos2.paths.estimates import MOST_KEPT
from qos2.paths.way import Sighting
from unit.paths_stage import (
    ELSEWHERE,
    HELLO,
    HOST,
    MBIT,
    NOTHING,
    OTHER_HOST,
    VOICE,
    A,
    B,
    PathsStage,
    numbers,
    outcome,
    qualities,
    rate,
)

EVER = float("-inf")
MEASURED, LOWER_BOUND = Quality.MEASURED, Quality.LOWER_BOUND


def silent(stage: PathsStage) -> None:
    """No reflector is there."""
    way = stage.way()
    planned = way.plan(stage.now_s, train=True)
    assert planned == (Dscp(0), HELLO)
    assert way.outcome(outcome(HELLO, stage.now_s, seconds=0.5)) is None
    stage.now_s += 0.5


class TestWhichHosts:
    @pytest.mark.parametrize(
        ("reach", "beyond_link", "supported"),
        [
            (Reach.ON_LINK, True, True),
            (Reach.ON_LINK, False, True),
            (Reach.ROUTED, True, True),
            (Reach.ROUTED, False, False),
            (Reach.NO_HOST, True, False),
            (Reach.NO_HOST, False, False),
        ],
    )
    def test_routed_ones_too_unless_it_is_to_be_as_on_windows(
        self, reach: Reach, beyond_link: bool, supported: bool
    ) -> None:
        stage = PathsStage(beyond_link=beyond_link)
        stage.reach[HOST.address] = reach
        assert stage.paths.supports(HOST) is supported

    def test_none_without_a_route(self) -> None:
        stage = PathsStage()
        stage.reach[HOST.address] = None
        with pytest.raises(HostUnreachable):
            stage.paths.supports(HOST)

    def test_an_address_is_another_host_in_another_namespace(self) -> None:
        stage = PathsStage()
        elsewhere = RemoteHost(HOST.address, ELSEWHERE)
        stage.use(A)
        stage.use(B, host=elsewhere)
        stage.carry({A: 20e6})
        assert numbers(stage.paths.estimate(HOST)) == (20 * MBIT, 20 * MBIT, None)
        assert stage.paths.estimate(elsewhere) is None


class TestWhatIsShared:
    def test_all_flows_to_a_host_are_told_the_same_and_promised_parts_of_it(self) -> None:
        stage = PathsStage()
        stage.use(A, contract=rate(3))
        stage.use(B, contract=rate(4))
        stage.carry({A: 15e6, B: 5e6})
        assert numbers(stage.paths.estimate(HOST)) == (20 * MBIT, 13 * MBIT, None)
        stage.paths.hold(B, HOST, VOICE, rate(6))
        assert numbers(stage.paths.estimate(HOST)) == (20 * MBIT, 11 * MBIT, None)
        stage.paths.let_go(A, HOST)
        assert numbers(stage.paths.estimate(HOST)) == (20 * MBIT, 14 * MBIT, None)

    def test_every_change_of_what_is_promised_is_news_once(self) -> None:
        stage = PathsStage()
        stage.use(A)
        assert stage.paths.news() == {HOST}
        assert stage.paths.news() == set()
        stage.paths.hold(A, HOST, None, rate(1))
        assert stage.paths.news() == {HOST}
        stage.paths.let_go(A, HOST)
        stage.paths.changed(OTHER_HOST)
        assert stage.paths.news() == {HOST, OTHER_HOST}

    def test_how_many_hosts_and_what_is_known_of_them_by_quality(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.use(B, host=OTHER_HOST)
        stage.carry({A: 20e6})
        stage.carry({B: 2e6}, limited=False, host=OTHER_HOST)
        assert (stage.paths.hosts, stage.paths.reflectors) == (2, 0)
        assert stage.paths.census() == Counter(
            {
                ("bottleneck", MEASURED): 1,
                ("available", MEASURED): 1,
                ("bottleneck", LOWER_BOUND): 1,
                ("available", LOWER_BOUND): 1,
            }
        )
        stage.way().outcome(outcome(HELLO, stage.now_s, answered=2))
        assert stage.paths.reflectors == 1


class TestHowLongItIsKept:
    def test_sixty_seconds_after_the_last_user(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.carry({A: 20e6})
        known_s = stage.now_s
        stage.paths.let_go(A, HOST)
        stage.paths.end(HOST)
        assert stage.paths.hosts == 0
        stage.now_s += 59.9
        stage.paths.expire(stage.now_s)
        stage.paths.begin(HOST)
        estimate = stage.paths.estimate(HOST)
        age_s = stage.now_s - known_s
        assert numbers(estimate) == (None, None, None)  # too old to be a measurement
        assert estimate is not None
        assert estimate.statements == {
            name: Statement(20 * MBIT, LOWER_BOUND, Method.TCP, age_s) for name in ("bottleneck", "available")
        }
        stage.paths.end(HOST)
        stage.now_s += 60.0
        stage.paths.expire(stage.now_s)
        stage.paths.begin(HOST)
        assert stage.paths.estimate(HOST) is None

    def test_a_user_that_comes_back_soon_finds_the_measurement(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.carry({A: 20e6})
        stage.paths.let_go(A, HOST)
        stage.paths.end(HOST)
        stage.now_s += 10.0
        stage.use(B, contract=rate(5))
        assert numbers(stage.paths.estimate(HOST)) == (20 * MBIT, 15 * MBIT, None)

    def test_each_host_for_its_own_time(self) -> None:
        stage = PathsStage()
        for host in (HOST, OTHER_HOST):
            stage.use(A, host=host)
            stage.carry({A: 20e6}, host=host)
            stage.paths.let_go(A, host)
            stage.paths.end(host)
            stage.now_s += 30.0
        stage.now_s += 5.0
        stage.paths.expire(stage.now_s)  # HOST: 67 s, OTHER_HOST: 35 s
        stage.use(A)
        stage.use(A, host=OTHER_HOST)
        assert stage.paths.estimate(HOST) is None
        assert qualities(stage.paths.estimate(OTHER_HOST))["bottleneck"] == (20 * MBIT, LOWER_BOUND)

    def test_not_of_any_number_of_hosts(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.carry({A: 20e6})
        stage.paths.let_go(A, HOST)
        stage.paths.end(HOST)
        for number in range(MOST_KEPT):
            host = RemoteHost(HOST.address, number + 1)
            stage.paths.begin(host)
            stage.paths.end(host)
        stage.paths.begin(HOST)
        assert stage.paths.estimate(HOST) is None

    def test_what_a_reflector_was_like_is_found_out_anew(self) -> None:
        stage = PathsStage()
        stage.use()
        stage.way().plan(stage.now_s, train=True)
        stage.way().outcome(outcome(HELLO, stage.now_s, answered=2))
        assert stage.paths.reflectors == 1
        stage.paths.end(HOST)
        stage.paths.begin(HOST)
        assert stage.paths.reflectors == 0
        assert stage.way().plan(stage.now_s, train=True) == (Dscp(0), HELLO)
        assert stage.paths.estimate(HOST) is not None

    def test_nothing_of_its_former_users_happens_to_new_ones(self) -> None:
        """Not what they were carried at, the probes they lost, nor the measurement that they waited for."""
        stage = PathsStage()
        stage.use(A)
        stage.carry({A: 20e6})
        stage.paths.refresh(HOST)
        stage.way().outcome(outcome(ProbePlan(ProbeKind.SINGLE, 8, SINGLE_BYTES), stage.now_s))
        stage.paths.let_go(A, HOST)
        stage.paths.end(HOST)
        stage.use()
        assert stage.way().carried == 0.0
        assert stage.way().refreshed(stage.now_s + 60) is None
        assert stage.way().outcome(outcome(HELLO, stage.now_s, answered=2)) == Sighting(20_000, 2, 2, 0)


class TestEstimates:
    def test_of_a_flow_that_its_application_limits_there_are_lower_bounds_in_the_statements_only(self) -> None:
        stage = PathsStage()
        stage.use(A, contract=rate(1))
        stage.carry({A: 3e6}, limited=False)
        estimate = stage.paths.estimate(HOST)
        assert numbers(estimate) == (None, None, None)
        assert qualities(estimate) == {"bottleneck": (3 * MBIT, LOWER_BOUND), "available": (2 * MBIT, LOWER_BOUND)}

    def test_the_bottleneck_is_known_before_what_is_available(self) -> None:
        stage = PathsStage()
        stage.use()
        plan = ProbePlan(ProbeKind.BURST, 8, 1400)
        packets = tuple(ProbePacket(0, number * 560_000, 0, 20_000_000) for number in range(8))  # 20 Mbit/s
        stage.way().outcome(ProbeOutcome(plan, 0, stage.now_s, stage.now_s + 0.02, packets))
        stage.now_s += 0.02
        assert numbers(stage.paths.estimate(HOST)) == (20 * MBIT, None, 20_000)

    def test_what_nobody_is_carried_at_any_more_is_not_obtainable_beside_what_is_spare(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.carry({A: 8e6})
        assert stage.way().carried == pytest.approx(8e6)
        stage.paths.let_go(A, HOST)
        stage.way().look(stage.now_s + 0.1, {})
        assert stage.way().carried == 0.0


class TestFreshMeasurements:
    def test_where_nothing_can_be_measured_the_answer_is_1237_at_once(self) -> None:
        stage = PathsStage()
        stage.use()
        silent(stage)
        with pytest.raises(Retry) as refusal:
            stage.paths.refresh(HOST)
        assert (refusal.value.code, refusal.value.win32) == ("retry", 1237)
        assert refusal.value.hint == "no reflector answers there, and no TCP flow sends"
        without = PathsStage(probe_share=0.0)
        without.use()
        with pytest.raises(Retry):
            without.paths.refresh(HOST)

    def test_one_ends_with_what_is_measured_after_it_was_asked_for_and_is_told_once(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.carry({A: 20e6})
        stage.paths.refresh(HOST)
        assert stage.way().refreshed(stage.now_s) is None
        stage.now_s += 0.1
        stage.carry({A: 20e6}, seconds=0.1)
        assert stage.way().refreshed(stage.now_s) is True
        assert stage.way().refreshed(stage.now_s) is None

    def test_what_the_application_limits_is_no_measurement(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.paths.refresh(HOST)
        asked_s = stage.now_s
        stage.now_s += 0.1
        stage.carry({A: 20e6}, seconds=2.8, limited=False)
        assert stage.way().refreshed(asked_s + 2.99) is None
        assert stage.way().refreshed(asked_s + 3.0) is False
        assert stage.way().refreshed(asked_s + 3.1) is None

    def test_a_train_that_was_under_way_when_it_was_asked_for_is_not_new(self) -> None:
        stage = PathsStage()
        stage.use()
        burst = tuple(ProbePacket(0, number * 560_000, 0, 20_000_000) for number in range(8))
        stage.way().outcome(
            ProbeOutcome(ProbePlan(ProbeKind.BURST, 8, 1400), 0, stage.now_s, stage.now_s + 0.02, burst)
        )
        paced = ProbePlan(ProbeKind.PACED, 8, 1400, 22 * MBIT)
        packets = tuple(ProbePacket(number * 509_000, number * 560_000, 0, 20_000_000) for number in range(8))
        before_s, asked_s, after_s = stage.now_s + 0.1, stage.now_s + 0.15, stage.now_s + 0.2
        stage.now_s = asked_s
        stage.paths.refresh(HOST)
        stage.way().outcome(ProbeOutcome(paced, 0, before_s, after_s, packets))
        assert stage.way().refreshed(after_s) is None
        stage.way().outcome(ProbeOutcome(paced, 0, after_s, after_s + 0.1, packets))
        assert stage.way().refreshed(after_s + 0.1) is True

    def test_who_asks_meanwhile_does_not_put_off_its_end(self) -> None:
        stage = PathsStage()
        stage.use(A)
        asked_s = stage.now_s
        for _ in range(30):
            stage.paths.refresh(HOST)
            assert stage.way().refreshed(stage.now_s) is None
            stage.now_s += 0.1
        assert stage.way().refreshed(asked_s + 3.0) is False

    def test_a_reflector_that_is_not_there_ends_it_before_its_time(self) -> None:
        stage = PathsStage()
        stage.use()
        stage.paths.refresh(HOST)
        silent(stage)
        assert stage.way().refreshed(stage.now_s) is False

    def test_its_end_is_told_for_each_host_in_use_once(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.use(B, host=OTHER_HOST)
        stage.paths.finished(HOST, False)
        stage.paths.finished(OTHER_HOST, True)
        stage.paths.let_go(B, OTHER_HOST)
        stage.paths.end(OTHER_HOST)
        assert stage.paths.measured() == {HOST: False}
        assert stage.paths.measured() == {}


class TestAdmission:
    def test_what_is_measured_and_not_promised_to_others_can_be_had(self) -> None:
        stage = PathsStage()
        stage.use(A, contract=rate(12))
        stage.use(B)
        stage.carry({A: 12e6, B: 8e6})
        stage.paths.admit(HOST, NOTHING, rate(8))
        with pytest.raises(NetworkBusy) as refusal:
            stage.paths.admit(HOST, NOTHING, rate(8.000001))
        assert refusal.value.hint == (
            "8000000 bits/s are available beside the 0 that the flow holds, measured by tcp 0.0 s ago: "
            "ask for at most 8000000, or wait until they are available"
        )
        stage.paths.admit(HOST, rate(12), rate(20))
        with pytest.raises(NetworkBusy):
            stage.paths.admit(HOST, rate(12), rate(20.1))
        assert stage.paths.admissions == Counter(admitted=2, network_busy=2)

    def test_while_a_reflector_is_looked_for_it_is_1237_and_without_one_everything_is_admitted(self) -> None:
        stage = PathsStage()
        stage.use(A)
        with pytest.raises(Retry):
            stage.paths.admit(HOST, NOTHING, rate(100))
        silent(stage)
        stage.paths.admit(HOST, NOTHING, rate(100))
        assert stage.paths.admissions == Counter(retry=1, admitted=1)

    def test_where_nothing_is_probed_everything_is_admitted_until_a_flow_shows_otherwise(self) -> None:
        stage = PathsStage(probe_share=0.0)
        stage.use(A)
        assert stage.way().plan(stage.now_s, train=True) is None
        stage.paths.admit(HOST, NOTHING, rate(100))
        stage.carry({A: 20e6}, limited=False)
        stage.paths.admit(HOST, NOTHING, rate(100))
        stage.carry({A: 20e6})
        with pytest.raises(NetworkBusy):
            stage.paths.admit(HOST, NOTHING, rate(100))

    def test_what_was_measured_long_ago_refuses_nothing(self) -> None:
        stage = PathsStage(probe_share=0.0)
        stage.use(A)
        stage.carry({A: 20e6})
        stage.now_s += 29.9
        with pytest.raises(NetworkBusy):
            stage.paths.admit(HOST, NOTHING, rate(21))
        stage.now_s += 0.2
        stage.paths.admit(HOST, NOTHING, rate(21))

    def test_a_flow_can_have_more_as_soon_as_others_are_promised_less(self) -> None:
        stage = PathsStage()
        stage.use(A, contract=rate(12))
        stage.use(B, contract=rate(6))
        stage.carry({A: 12e6, B: 8e6})
        assert [stage.paths.carries(HOST, rate(6), rate(each), EVER) for each in (8, 8.1)] == [True, False]
        stage.paths.hold(A, HOST, None, rate(10))
        assert [stage.paths.carries(HOST, rate(6), rate(each), EVER) for each in (10, 10.1)] == [True, False]

    def test_of_a_way_of_which_nothing_is_known_nothing_is_promised(self) -> None:
        stage = PathsStage()
        stage.use(A)
        assert stage.paths.carries(HOST, NOTHING, rate(0.1), EVER) is False

    def test_nor_by_what_was_measured_before_the_time_that_is_asked_about(self) -> None:
        stage = PathsStage()
        stage.use(A)
        stage.carry({A: 20e6})
        measured_s = stage.now_s
        stage.now_s += 5.0
        asked = [stage.paths.carries(HOST, NOTHING, rate(20), measured_s + each) for each in (-0.1, 0.1)]
        assert asked == [True, False]
