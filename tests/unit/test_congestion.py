"""The judge of congestion: onset and end, each cause, what is no congestion, and what no order or stall may change."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.core.congestion import Detector
from qos2.core.signals import SIGNALS
from qos2.core.thresholds import Thresholds
from qos2.model import Cause, FlowState, Method

WINDOW_S = 0.1
BASE_US = 20_000
FIELDS = len(SIGNALS.names or ())


class Flow:
    """One judged flow whose counters the test turns; `now_s` goes on by a window with each step."""

    def __init__(self, slot: int = 7, **thresholds: float) -> None:
        self.detector = Detector(Thresholds(**thresholds), 16)  # type: ignore[arg-type]  # some are whole numbers
        self.slot = slot
        self.now_s = 100.0
        self.counters = np.zeros(1, SIGNALS)
        self.detector.begin(slot, self.now_s)
        self.changes = 0

    def step(self, *, after_s: float = WINDOW_S, **grown: int) -> FlowState:
        """The next window; `srtt_us` and `min_rtt_us` are set, the other counters grow by this."""
        self.now_s += after_s
        for name, by in grown.items():
            if name.endswith("rtt_us"):
                self.counters[name] = by
            else:
                self.counters[name] += by
        changed = self.detector.step(self.now_s, np.array([self.slot]), self.counters.copy())
        self.changes += len(changed)
        return self.state

    def tcp(self, windows: int, *, srtt_us: int = BASE_US, delivered: int = 70, **others: int) -> FlowState:
        """So many windows of a TCP flow that makes progress."""
        for _ in range(windows):
            sent = {"bytes": delivered * 1500, "packets": delivered, "min_rtt_us": BASE_US}
            self.step(srtt_us=srtt_us, delivered=delivered, **(sent | others))
        return self.state

    def probed(self, windows: int, rtt_us: int | None, *, lost: int = 0, method: Method = Method.PROBE) -> FlowState:
        """So many windows with one probe each."""
        for _ in range(windows):
            self.detector.offer(self.slot, method=method, rtt_us=rtt_us, sent=1 + lost, lost=lost)
            self.step()
        return self.state

    @property
    def state(self) -> FlowState:
        return self.detector.state(self.slot)

    @property
    def cause(self) -> Cause | None:
        return self.detector.explain(self.slot).judgement.cause

    @property
    def evidence(self) -> dict[str, float]:
        return dict(self.detector.explain(self.slot).judgement.evidence)


@pytest.fixture
def flow() -> Flow:
    """A TCP flow that was fine for a while."""
    made = Flow()
    assert made.tcp(15) is FlowState.UNCONGESTED
    return made


class TestOnset:
    def test_nothing_is_said_before_something_is_known(self) -> None:
        flow = Flow()
        assert flow.state is FlowState.UNKNOWN
        assert flow.tcp(3) is FlowState.UNKNOWN  # the first is no difference, two say nothing
        assert flow.tcp(1) is FlowState.UNCONGESTED

    def test_three_bad_windows_of_six_are_congestion(self, flow: Flow) -> None:
        assert flow.tcp(2, srtt_us=60_000) is FlowState.UNCONGESTED
        assert flow.tcp(3) is FlowState.UNCONGESTED
        assert flow.tcp(1, srtt_us=60_000) is FlowState.CONGESTED

    def test_one_and_two_are_none_ever_so_often(self, flow: Flow) -> None:
        for _ in range(100):
            flow.tcp(2, srtt_us=60_000)
            assert flow.tcp(4) is FlowState.UNCONGESTED

    def test_the_delay_must_be_beyond_the_limit(self, flow: Flow) -> None:
        assert flow.tcp(50, srtt_us=BASE_US + 29_000) is FlowState.UNCONGESTED
        assert flow.tcp(3, srtt_us=BASE_US + 33_000) is FlowState.CONGESTED
        assert flow.cause is Cause.QUEUE_DELAY

    def test_on_a_long_path_the_limit_is_a_share_of_it(self) -> None:
        flow = Flow()
        flow.tcp(10, srtt_us=200_000, min_rtt_us=200_000)
        assert flow.tcp(50, srtt_us=290_000, min_rtt_us=200_000) is FlowState.UNCONGESTED
        assert flow.tcp(3, srtt_us=320_000, min_rtt_us=200_000) is FlowState.CONGESTED

    def test_loss_is_congestion_where_chance_does_not_explain_it(self, flow: Flow) -> None:
        assert flow.tcp(60, retransmits=1) is FlowState.UNCONGESTED  # 1.4 %: the limit, and what varies around it
        assert flow.tcp(6, retransmits=5) is FlowState.CONGESTED
        assert flow.cause is Cause.LOSS

    def test_one_burst_of_losses_is_an_accident(self, flow: Flow) -> None:
        flow.tcp(1, retransmits=40)
        assert flow.tcp(20) is FlowState.UNCONGESTED

    def test_few_segments_make_no_share(self, flow: Flow) -> None:
        for _ in range(50):
            flow.tcp(1, delivered=2, retransmits=1)
            assert flow.tcp(5, delivered=2) is FlowState.UNCONGESTED

    def test_marks_are_congestion(self, flow: Flow) -> None:
        assert flow.tcp(20, delivered_ce=2) is FlowState.UNCONGESTED
        assert flow.tcp(6, delivered_ce=20) is FlowState.CONGESTED
        assert flow.cause is Cause.CE

    def test_the_evidence_has_the_numbers_and_their_limits(self, flow: Flow) -> None:
        flow.tcp(3, srtt_us=90_000)
        evidence = flow.evidence
        assert evidence["queue_delay_us"] == pytest.approx(70_000, rel=0.02)
        assert evidence["baseline_rtt_us"] == pytest.approx(BASE_US, rel=0.02)
        assert evidence["bad_windows"] == evidence["limit_bad_windows"] == 3
        assert (evidence["limit_windows"], evidence["limit_queue_delay_us"]) == (6, 30_000)
        assert (evidence["loss"], evidence["ce_share"], evidence["own_delay_us"]) == (0, 0, 0)


class TestEnd:
    def test_ten_good_windows_end_it_but_not_within_two_seconds(self, flow: Flow) -> None:
        flow.tcp(3, srtt_us=90_000)
        assert flow.tcp(19) is FlowState.CONGESTED
        assert flow.tcp(2) is FlowState.UNCONGESTED
        flow.tcp(40, srtt_us=90_000)
        assert flow.tcp(9) is FlowState.CONGESTED
        assert flow.tcp(1) is FlowState.UNCONGESTED

    def test_a_queue_that_empties_by_half_and_fills_again_is_one_episode(self, flow: Flow) -> None:
        before = flow.changes
        for _ in range(30):
            flow.tcp(3, srtt_us=70_000)
            flow.tcp(7, srtt_us=42_000)
        assert flow.state is FlowState.CONGESTED
        flow.tcp(12)
        assert (flow.state, flow.changes - before) == (FlowState.UNCONGESTED, 2)

    def test_a_silent_flow_is_unknown_after_a_while(self, flow: Flow) -> None:
        flow.tcp(3, srtt_us=90_000)
        assert [flow.step() for _ in range(99)][-1] is FlowState.CONGESTED
        assert [flow.step() for _ in range(3)][-1] is FlowState.UNKNOWN

    def test_what_was_before_a_silence_counts_no_more(self, flow: Flow) -> None:
        flow.tcp(2, srtt_us=90_000)
        flow.step(after_s=2.5)
        assert flow.tcp(2, srtt_us=90_000) is FlowState.UNCONGESTED


class TestOwnContract:
    @pytest.mark.parametrize("own_ms", [5, 40, 150, 400])
    def test_a_flow_held_by_its_contract_is_rate_limited_and_never_congested(self, own_ms: int) -> None:
        flow, rng = Flow(), np.random.default_rng(own_ms)
        for window in range(600):
            # What TCP measures is smoothed, of some packets more and of some less than the mean.
            srtt_us = BASE_US + int(own_ms * 1000 * rng.uniform(0.5, 1.6))
            flow.tcp(1, srtt_us=srtt_us, delivered=20, delayed_packets=15, delay_ns=15 * own_ms * 1_000_000)
            assert flow.state is not FlowState.CONGESTED, window
        assert (flow.state, flow.cause) == (FlowState.RATE_LIMITED, Cause.CONTRACT)

    def test_what_its_contract_dropped_is_no_loss_of_the_network(self, flow: Flow) -> None:
        assert flow.tcp(50, retransmits=10, dropped_packets=10) is FlowState.RATE_LIMITED
        assert flow.tcp(8, retransmits=30, dropped_packets=10) is FlowState.CONGESTED

    def test_held_back_long_ago_it_is_free(self, flow: Flow) -> None:
        assert flow.tcp(10, delayed_packets=5, delay_ns=5_000_000) is FlowState.RATE_LIMITED
        assert flow.tcp(7) is FlowState.UNCONGESTED

    def test_probes_do_not_wait_for_it(self) -> None:
        flow = Flow()
        flow.probed(10, BASE_US)
        for _ in range(5):
            flow.detector.offer(flow.slot, method=Method.PROBE, rtt_us=90_000, sent=1)
            flow.step(delayed_packets=5, delay_ns=1_000_000_000, packets=5, bytes=7_500)
        assert (flow.state, flow.cause) == (FlowState.CONGESTED, Cause.PROBE)


class TestOffers:
    def test_probes_tell_of_queues(self) -> None:
        flow = Flow()
        assert flow.probed(3, BASE_US) is FlowState.UNCONGESTED
        flow.probed(4, 80_000)
        assert (flow.state, flow.cause) == (FlowState.CONGESTED, Cause.PROBE)
        assert flow.detector.explain(flow.slot).source is Method.PROBE

    def test_single_spikes_of_one_round_trip_are_none(self) -> None:
        flow = Flow()
        for _ in range(200):
            flow.probed(1, 80_000)
            assert flow.probed(1, BASE_US) in (FlowState.UNKNOWN, FlowState.UNCONGESTED)

    def test_two_round_trips_in_one_window_need_none_before_them(self) -> None:
        flow, pairs = Flow(), Flow()
        for each, round_trips in ((flow, 1), (pairs, 2)):
            each.probed(10, BASE_US)
            for _ in range(3):
                each.detector.offer(
                    each.slot, method=Method.PROBE, rtt_us=80_000, round_trips=round_trips, sent=round_trips
                )
                each.step()
        assert (flow.state, pairs.state) == (FlowState.UNCONGESTED, FlowState.CONGESTED)

    def test_of_what_is_offered_for_one_window_the_least_round_trip_counts(self) -> None:
        flow = Flow()
        flow.probed(10, BASE_US)
        for _ in range(10):
            for rtt_us in (80_000, BASE_US, 90_000):
                flow.detector.offer(flow.slot, method=Method.PROBE, rtt_us=rtt_us)
            flow.step()
        assert flow.state is FlowState.UNCONGESTED

    def test_reports_of_loss_are_losses(self) -> None:
        flow = Flow()
        for _ in range(10):
            flow.detector.offer(flow.slot, method=Method.REPORT, rtt_us=BASE_US, sent=50, lost=0)
            flow.step()
        assert flow.state is FlowState.UNCONGESTED
        for _ in range(6):
            flow.detector.offer(flow.slot, method=Method.REPORT, rtt_us=BASE_US, sent=50, lost=10)
            flow.step()
        assert (flow.state, flow.cause) == (FlowState.CONGESTED, Cause.LOSS)

    def test_what_was_offered_counts_once(self) -> None:
        flow = Flow()
        flow.detector.offer(flow.slot, method=Method.PROBE, rtt_us=BASE_US)
        for _ in range(20):
            flow.step()
        assert flow.state is FlowState.UNKNOWN


class TestPath:
    def test_a_longer_route_is_congestion_for_a_while_and_then_the_path(self, flow: Flow) -> None:
        assert flow.tcp(3, srtt_us=80_000) is FlowState.CONGESTED
        assert flow.tcp(1800, srtt_us=80_000) is FlowState.UNCONGESTED

    def test_a_shorter_one_is_at_once(self, flow: Flow) -> None:
        flow.tcp(1, srtt_us=5_000, min_rtt_us=5_000)
        assert flow.tcp(3, srtt_us=40_000, min_rtt_us=5_000) is FlowState.CONGESTED

    def test_another_socket_begins_anew(self, flow: Flow) -> None:
        flow.tcp(2, srtt_us=90_000)
        flow.counters[:] = 0
        assert flow.tcp(1, srtt_us=90_000) is FlowState.UNCONGESTED
        assert flow.tcp(2, srtt_us=90_000) is FlowState.UNCONGESTED


class TestTogether:
    def test_flows_of_one_step_are_judged_apart_in_any_order(self) -> None:
        orders = np.array([1, 2, 3, 4]), np.array([4, 2, 1, 3])
        found = []
        for order in orders:
            detector = Detector(Thresholds(), 8)
            for slot in order:
                detector.begin(int(slot), 0.0)
            counters = np.zeros(9, SIGNALS)
            for window in range(1, 20):
                counters["delivered"] += 50
                counters["bytes"] += 75_000
                counters["srtt_us"] = BASE_US
                counters["srtt_us"][[2, 3]] = 90_000 if window > 10 else BASE_US
                detector.step(window * WINDOW_S, order, counters[order])
            found.append({int(slot): detector.explain(int(slot)) for slot in order})
        assert found[0] == found[1]
        states = {slot: each.judgement.state for slot, each in found[0].items()}
        assert states == {
            slot: FlowState.CONGESTED if slot in (2, 3) else FlowState.UNCONGESTED for slot in range(1, 5)
        }

    def test_the_census_counts_judged_flows(self) -> None:
        detector = Detector(Thresholds(), 8)
        for slot in (1, 2, 3):
            detector.begin(slot, 0.0)
        detector.end(2)
        assert dict(detector.census()) == {(FlowState.UNKNOWN, None): 2}

    def test_a_slot_is_as_new_for_its_next_flow(self, flow: Flow) -> None:
        flow.tcp(3, srtt_us=90_000)
        flow.detector.end(flow.slot)
        flow.detector.begin(flow.slot, flow.now_s)
        assert flow.state is FlowState.UNKNOWN
        (only,) = flow.detector.explain(flow.slot).changes
        assert (only.state, only.since_s) == (FlowState.UNKNOWN, flow.now_s)

    def test_ten_changes_are_remembered(self, flow: Flow) -> None:
        for _ in range(20):
            flow.tcp(3, srtt_us=90_000)
            flow.tcp(25)
        changes = flow.detector.explain(flow.slot).changes
        assert [each.state for each in changes] == [FlowState.UNCONGESTED, FlowState.CONGESTED] * 5
        assert sorted((each.since_s for each in changes), reverse=True) == [each.since_s for each in changes]


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.0, 0.05, 0.1, 0.4, 3.0, 30.0]),
            st.lists(st.integers(0, 2**32 - 1), min_size=FIELDS, max_size=FIELDS),
            st.none() | st.integers(1, 10**9),
            st.integers(0, 1000),
        ),
        max_size=40,
    )
)
def test_whatever_the_counters_are_congestion_lasts_its_dwell(
    windows: list[tuple[float, list[int], int | None, int]],
) -> None:
    detector = Detector(Thresholds(), 4)
    detector.begin(1, 0.0)
    now_s = 0.0
    for after_s, counters, rtt_us, lost in windows:
        now_s += after_s
        detector.offer(1, method=Method.REPORT, rtt_us=rtt_us, sent=500, lost=lost)
        detector.step(now_s, np.array([1]), np.array([tuple(counters)], SIGNALS))
    changes = detector.explain(1).changes
    for after, before in pairwise(changes):
        assert after.state is not before.state
        if before.state is FlowState.CONGESTED and after.state is not FlowState.UNKNOWN:
            assert after.since_s - before.since_s >= 2.0
    assert all(np.isfinite(value) for value in detector.explain(1).signals.values())
