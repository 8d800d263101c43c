"""Requests that wait: for a condition of an adaptive flow, or for a new measurement of its path."""

from collections.abc import Callable

import pytest

from qos2.core.notifications import Completion
from qos2.core.service import Limits, Service
from qos2.errors import (
    AlreadyExists,
    Cancelled,
    HostUnreachable,
    InvalidRequest,
    LimitExceeded,
    NoSuchFlow,
    NotAdaptive,
    NotSupported,
    QosError,
    Retry,
)
from qos2.model import Bandwidth, Condition, FlowFundamentals, FlowId, RemoteHost
from unit.core_stage import ALICE, ALICE_TOO, HERE, OTHER_PEER, PEER, Stage, udp

CONGESTED, UNCONGESTED, AVAILABLE = Condition
HOST = "192.0.2.7"
REMOTE = RemoteHost(PEER.address, HERE) if PEER.address else None
KNOWN = FlowFundamentals(Bandwidth(10_000_000), Bandwidth(4_000_000), 900)


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def flow(stage: Stage) -> FlowId:
    """An adaptive flow to HOST without a rate."""
    return stage.add(udp(1), PEER, adaptive=True)


def ended(completions: list[Completion]) -> list[tuple[int, int, type[QosError] | None]]:
    """Handle, request and error of each."""
    return [(each.handle, each.request, None if each.error is None else type(each.error)) for each in completions]


class TestConditions:
    @pytest.mark.parametrize(("condition", "congested"), [(CONGESTED, True), (UNCONGESTED, False)])
    def test_a_condition_that_holds_is_told_at_once_and_nothing_waits(
        self, stage: Stage, flow: FlowId, condition: Condition, congested: bool
    ) -> None:
        stage.set_condition(flow, congested=congested)
        assert stage.service.notify(stage.handle, flow, condition, request=7) is True
        assert (stage.service.pending, stage.service.take_completed(), stage.conditions.watched) == (0, [], {})

    @pytest.mark.parametrize(("condition", "congested"), [(CONGESTED, True), (UNCONGESTED, False)])
    def test_a_condition_completes_once_when_it_comes(
        self, stage: Stage, flow: FlowId, condition: Condition, congested: bool
    ) -> None:
        assert stage.service.notify(stage.handle, flow, condition, request=7) is False
        assert stage.conditions.watched == {flow: REMOTE}
        assert stage.set_condition(flow, congested=not congested) == []
        assert stage.set_condition(flow, congested=congested) == [Completion(stage.handle, 7, condition=condition)]
        assert (stage.service.pending, stage.conditions.watched) == (0, {})
        assert stage.set_condition(flow, congested=not congested) == []
        assert stage.set_condition(flow, congested=congested) == []

    def test_conditions_of_one_flow_wait_beside_each_other_and_are_watched_once(
        self, stage: Stage, flow: FlowId
    ) -> None:
        service, handle = stage.service, stage.handle
        for request, condition in enumerate(Condition, start=1):
            assert service.notify(handle, flow, condition, 1_000_000, request=request) is False
        assert service.pending == 3
        assert stage.set_condition(flow, congested=True) == [Completion(handle, 1, condition=CONGESTED)]
        assert stage.set_condition(flow, congested=False, free=1_000_000) == [
            Completion(handle, 2, condition=UNCONGESTED),
            Completion(handle, 3, condition=AVAILABLE),
        ]
        assert stage.conditions.operations == [f"watch {flow}", f"unwatch {flow}"]

    def test_a_bandwidth_is_ignored_where_it_means_nothing(self, stage: Stage, flow: FlowId) -> None:
        assert stage.service.notify(stage.handle, flow, CONGESTED, -5) is False

    def test_a_second_wait_of_the_same_kind_is_refused_whoever_asks(self, stage: Stage, flow: FlowId) -> None:
        stage.service.notify(stage.handle, flow, CONGESTED, request=1)
        second = stage.service.open_handle(ALICE)
        for handle in (stage.handle, second):
            with pytest.raises(AlreadyExists) as refused:
                stage.service.notify(handle, flow, CONGESTED, request=2)
            assert refused.value.win32 == 183
        assert stage.service.notify(second, flow, UNCONGESTED, request=2) is False
        assert ended(stage.set_condition(flow, congested=True)) == [(stage.handle, 1, None)]
        assert ended(stage.set_condition(flow, congested=False)) == [(second, 2, None)]

    def test_a_completion_is_dated_by_the_signals_that_caused_it(self, stage: Stage, flow: FlowId) -> None:
        stage.service.notify(stage.handle, flow, CONGESTED, request=1)
        stage.service.fundamentals(stage.handle, flow, True, request=2)
        stage.paths.set_estimate(HOST, KNOWN)
        stage.paths.finish_refresh(HOST)
        stage.conditions.set(flow, congested=True)
        stage.service.follow(1234.5)
        assert stage.service.take_completed() == [
            Completion(stage.handle, 1, condition=CONGESTED, signal_s=1234.5),
            Completion(stage.handle, 2, KNOWN, signal_s=1234.5),
        ]

    def test_news_of_flows_that_nobody_waits_for_are_passed_over(self, stage: Stage, flow: FlowId) -> None:
        assert stage.set_condition(12345, congested=True) == []
        assert stage.set_condition(flow, congested=True) == []


class TestAvailable:
    def test_it_completes_when_the_total_can_be_had(self, stage: Stage, flow: FlowId) -> None:
        stage.service.set_rate(stage.handle, flow, 1_000_000, 1, 0)
        assert stage.service.notify(stage.handle, flow, AVAILABLE, 3_000_000, request=4) is False
        assert stage.set_condition(flow, congested=False, free=1_999_999) == []
        assert stage.set_condition(flow, congested=True, free=2_000_000) == []
        assert stage.set_condition(flow, congested=False, free=2_000_000) == [
            Completion(stage.handle, 4, condition=AVAILABLE)
        ]

    @pytest.mark.parametrize("wanted", [-1, 0, 999_999, 1_000_000])
    def test_no_more_than_the_flow_holds_is_refused(self, stage: Stage, flow: FlowId, wanted: int) -> None:
        stage.service.set_rate(stage.handle, flow, 1_000_000, 1, 0)
        with pytest.raises(InvalidRequest, match=f"waiting for {wanted} bits/s, and the flow holds 1000000"):
            stage.service.notify(stage.handle, flow, AVAILABLE, wanted)
        assert (stage.service.pending, stage.conditions.operations) == (0, [])

    def test_without_a_contract_0_is_what_the_flow_holds(self, stage: Stage, flow: FlowId) -> None:
        with pytest.raises(InvalidRequest):
            stage.service.notify(stage.handle, flow, AVAILABLE, 0)
        assert stage.service.notify(stage.handle, flow, AVAILABLE, 1) is False

    def test_another_contract_makes_it_judged_anew(self, stage: Stage, flow: FlowId) -> None:
        stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        stage.set_condition(flow, congested=False, free=2_000_000)
        assert stage.service.notify(stage.handle, flow, AVAILABLE, 5_000_000, request=9) is False
        stage.service.set_rate(stage.handle, flow, 3_000_000, 1, 0)
        assert stage.service.take_completed() == [Completion(stage.handle, 9, condition=AVAILABLE)]

    def test_a_contract_of_as_much_ends_the_wait(self, stage: Stage, flow: FlowId) -> None:
        assert stage.service.notify(stage.handle, flow, AVAILABLE, 5_000_000, request=9) is False
        stage.service.set_rate(stage.handle, flow, 4_999_999, 1, 0)
        assert stage.service.take_completed() == []
        stage.service.set_rate(stage.handle, flow, 5_000_000, 1, 0)
        assert stage.service.take_completed() == [Completion(stage.handle, 9, condition=AVAILABLE)]
        assert stage.conditions.watched == {}


class TestMeasurements:
    def test_a_fresh_query_waits_for_a_new_measurement(self, stage: Stage, flow: FlowId) -> None:
        stage.paths.set_estimate(HOST, FlowFundamentals(rtt_us=5))
        assert stage.service.fundamentals(stage.handle, flow) == FlowFundamentals(rtt_us=5)
        assert stage.service.fundamentals(stage.handle, flow, True, request=3) is None
        assert stage.paths.refreshing == [REMOTE]
        assert stage.service.pending == 1
        assert stage.measure(HOST, KNOWN) == [Completion(stage.handle, 3, KNOWN)]
        assert stage.measure(HOST, KNOWN) == []
        assert stage.service.pending == 0

    def test_one_measurement_answers_all_flows_to_its_host(self, stage: Stage, flow: FlowId) -> None:
        other = stage.add(udp(2), PEER, adaptive=True)
        elsewhere = stage.add(udp(3), OTHER_PEER, adaptive=True)
        for request, each in enumerate((flow, flow, other, elsewhere), start=1):
            assert stage.service.fundamentals(stage.handle, each, True, request=request) is None
        done = {each.request: each.result for each in stage.measure(HOST, KNOWN)}
        assert done == {1: KNOWN, 2: KNOWN, 3: KNOWN}
        assert stage.measure(str(OTHER_PEER.address), KNOWN) == [Completion(stage.handle, 4, KNOWN)]

    def test_a_measurement_that_found_nothing_ends_in_retry(self, stage: Stage, flow: FlowId) -> None:
        stage.service.fundamentals(stage.handle, flow, True, request=3)
        assert ended(stage.measure(HOST, None)) == [(stage.handle, 3, Retry)]

    def test_where_no_measurement_can_be_begun_it_is_refused_and_nothing_waits(
        self, stage: Stage, flow: FlowId
    ) -> None:
        stage.paths.set_refresh(HOST, Retry("not now"))
        with pytest.raises(Retry) as refused:
            stage.service.fundamentals(stage.handle, flow, True)
        assert refused.value.win32 == 1237
        assert stage.service.pending == 0

    def test_a_measurement_that_brought_nothing_new_is_no_answer(self, stage: Stage, flow: FlowId) -> None:
        stage.paths.set_estimate(HOST, KNOWN)
        assert stage.service.fundamentals(stage.handle, flow, True, request=3) is None
        stage.paths.finish_refresh(HOST, new=False)
        stage.service.follow()
        (completion,) = stage.service.take_completed()
        assert completion.error is not None
        assert (completion.request, completion.result, completion.error.win32) == (3, None, 1237)

    def test_fresh_is_passed_over_for_a_flow_of_another_process(self, stage: Stage, flow: FlowId) -> None:
        stage.paths.set_estimate(HOST, KNOWN)
        reader = stage.service.open_handle(ALICE_TOO)
        assert stage.service.fundamentals(reader, flow, True) == KNOWN
        assert stage.paths.refreshing == []

    def test_any_handle_of_the_process_may_ask_for_a_fresh_one(self, stage: Stage, flow: FlowId) -> None:
        second = stage.service.open_handle(ALICE)
        assert stage.service.fundamentals(second, flow, True, request=1) is None
        assert stage.measure(HOST, KNOWN) == [Completion(second, 1, KNOWN)]

    def test_news_of_a_host_come_too_late_for_a_request_that_was_cancelled(self, stage: Stage, flow: FlowId) -> None:
        assert stage.service.fundamentals(stage.handle, flow, True, request=1) is None
        stage.service.cancel(stage.handle, 1)
        stage.service.take_completed()
        assert stage.measure(HOST, KNOWN) == []


def fresh(service: Service, handle: int, flow: FlowId, request: int) -> object:
    return service.fundamentals(handle, flow, True, request=request)


def congestion(service: Service, handle: int, flow: FlowId, request: int) -> object:
    return service.notify(handle, flow, CONGESTED, request=request)


waiting = pytest.mark.parametrize("wait", [fresh, congestion])
Waiting = Callable[[Service, int, FlowId, int], object]


class TestEnds:
    @waiting
    def test_a_cancelled_request_completes_with_cancelled(self, stage: Stage, flow: FlowId, wait: Waiting) -> None:
        wait(stage.service, stage.handle, flow, 5)
        stage.service.cancel(stage.handle, 5)
        done = stage.service.take_completed()
        assert ended(done) == [(stage.handle, 5, Cancelled)]
        assert done[0].error is not None
        assert done[0].error.win32 == 995
        assert (stage.service.pending, stage.conditions.watched) == (0, {})
        assert stage.set_condition(flow, congested=True) + stage.measure(HOST, KNOWN) == []

    @pytest.mark.parametrize("request_", [0, 4, 6])
    def test_what_does_not_wait_cannot_be_cancelled(self, stage: Stage, flow: FlowId, request_: int) -> None:
        congestion(stage.service, stage.handle, flow, 5)
        second = stage.service.open_handle(ALICE)
        for handle, number in ((stage.handle, request_), (second, 5)):
            with pytest.raises(InvalidRequest) as refused:
                stage.service.cancel(handle, number)
            assert refused.value.win32 == 87
        assert stage.service.take_completed() == []

    def test_what_has_completed_cannot_be_cancelled(self, stage: Stage, flow: FlowId) -> None:
        congestion(stage.service, stage.handle, flow, 5)
        stage.conditions.set(flow, congested=True)
        stage.service.follow()
        with pytest.raises(InvalidRequest):
            stage.service.cancel(stage.handle, 5)
        assert ended(stage.service.take_completed()) == [(stage.handle, 5, None)]

    @waiting
    @pytest.mark.parametrize("whole", [True, False])
    def test_the_end_of_a_flow_cancels_who_waits_for_it(
        self, stage: Stage, flow: FlowId, wait: Waiting, whole: bool
    ) -> None:
        second = stage.service.open_handle(ALICE)
        wait(stage.service, stage.handle, flow, 5)
        stage.service.notify(second, flow, UNCONGESTED, request=5)
        stage.remove(flow, None if whole else udp(1))
        assert sorted(ended(stage.service.take_completed()), key=str) == [
            (stage.handle, 5, Cancelled),
            (second, 5, Cancelled),
        ]
        assert (stage.service.pending, stage.conditions.watched, stage.paths.begun) == (0, {}, set())

    @waiting
    def test_a_flow_that_could_not_be_ended_goes_on_being_waited_for(
        self, stage: Stage, flow: FlowId, wait: Waiting
    ) -> None:
        wait(stage.service, stage.handle, flow, 5)
        stage.fake.refuse("end")
        with pytest.raises(QosError):
            stage.remove(flow)
        assert (stage.service.pending, stage.service.take_completed()) == (1, [])
        stage.remove(flow)
        assert ended(stage.service.take_completed()) == [(stage.handle, 5, Cancelled)]

    @waiting
    def test_closing_a_handle_cancels_its_waits_and_those_for_its_flows(
        self, stage: Stage, flow: FlowId, wait: Waiting
    ) -> None:
        second = stage.service.open_handle(ALICE)
        others = stage.add(udp(2), OTHER_PEER, adaptive=True, handle=second)
        wait(stage.service, stage.handle, others, 1)
        wait(stage.service, second, flow, 2)
        stage.service.notify(second, others, UNCONGESTED, request=3)
        stage.service.close_handle(stage.handle)
        done = ended(stage.service.take_completed())
        assert sorted(done) == [(stage.handle, 1, Cancelled), (second, 2, Cancelled)]
        assert ended(stage.set_condition(others, congested=False)) == [(second, 3, None)]
        assert (stage.service.pending, stage.conditions.watched) == (0, {})

    def test_a_socket_that_moves_on_leaves_the_wait_to_the_flow(self, stage: Stage, flow: FlowId) -> None:
        congestion(stage.service, stage.handle, flow, 5)
        stage.add(udp(1), PEER)
        assert ended(stage.set_condition(flow, congested=True)) == [(stage.handle, 5, None)]


class TestLimits:
    @waiting
    def test_pending_requests_are_limited_per_handle(self, wait: Waiting) -> None:
        stage = Stage(limits=Limits(pending_per_handle=2))
        flow = stage.add(udp(1), PEER, adaptive=True)
        stage.service.notify(stage.handle, flow, UNCONGESTED, request=1)
        stage.service.notify(stage.handle, flow, AVAILABLE, 5, request=2)
        before = list(stage.paths.operations)
        with pytest.raises(LimitExceeded) as refused:
            wait(stage.service, stage.handle, flow, 3)
        assert "pending_per_handle" in refused.value.hint
        assert stage.paths.operations == before
        assert wait(stage.service, stage.service.open_handle(ALICE), flow, 3) in (None, False)
        stage.service.cancel(stage.handle, 1)
        wait(stage.service, stage.handle, stage.add(udp(2), PEER, adaptive=True), 3)

    @waiting
    def test_a_number_that_waits_cannot_be_used_again(self, stage: Stage, flow: FlowId, wait: Waiting) -> None:
        stage.service.notify(stage.handle, flow, UNCONGESTED, request=5)
        with pytest.raises(InvalidRequest, match="request 5 is pending"):
            wait(stage.service, stage.handle, flow, 5)
        assert wait(stage.service, stage.service.open_handle(ALICE), flow, 5) in (None, False)


class TestOrderOfChecks:
    def test_notify(self) -> None:
        stage = Stage()
        plain = stage.add(udp(1), PEER)
        far = stage.add(udp(2), PEER, adaptive=True)
        lost = stage.add(udp(3), OTHER_PEER, adaptive=True)
        near = stage.add(udp(4), PEER, adaptive=True)
        stage.service.notify(stage.handle, near, AVAILABLE, 5, request=1)

        def refusal(flow: int, condition: int, wanted: int) -> tuple[type[QosError], int]:
            with pytest.raises(QosError) as refused:
                stage.service.notify(stage.handle, flow, condition, wanted, request=2)
            return type(refused.value), refused.value.win32

        assert refusal(12345, 3, 0) == (InvalidRequest, 87)
        assert refusal(12345, AVAILABLE, 0) == (NoSuchFlow, 1168)
        assert refusal(plain, AVAILABLE, 0) == (NotAdaptive, 50)
        assert refusal(near, AVAILABLE, 0) == (InvalidRequest, 87)
        assert refusal(near, AVAILABLE, 6) == (AlreadyExists, 183)
        stage.paths.set_off_link(HOST)
        stage.paths.set_unreachable(str(OTHER_PEER.address))
        assert refusal(far, AVAILABLE, 0) == (NotSupported, 50)
        assert refusal(lost, AVAILABLE, 0) == (HostUnreachable, 1232)

    def test_a_foreign_flow_cannot_be_waited_for(self, stage: Stage, flow: FlowId) -> None:
        with pytest.raises(NoSuchFlow):
            stage.service.notify(stage.service.open_handle(ALICE_TOO), flow, CONGESTED)
