"""Adaptive flows: one path, known or not; what they may ask, and what they are admitted."""

from collections.abc import Callable

import pytest

from qos2.datapath.fake import FakeDatapath
from qos2.errors import (
    DatapathError,
    HostUnreachable,
    InvalidRequest,
    NetworkBusy,
    NoData,
    NoSuchFlow,
    NotAdaptive,
    NotSupported,
    QosError,
    Retry,
)
from qos2.model import Bandwidth, Dscp, FlowFundamentals, FlowRate, Peer, SocketFacts, TrafficType
from unit.core_stage import ALICE_TOO, BOB, ELSEWHERE, HERE, OTHER_PEER, PEER, PEER6, ROOT, Stage, tcp, udp

HOST = "192.0.2.7"
OTHER = "192.0.2.8"
KNOWN = FlowFundamentals(Bandwidth(10_000_000), Bandwidth(4_000_000), 900)


class TestPath:
    @pytest.mark.parametrize(
        ("facts", "destination", "host"),
        [
            (udp(1), PEER, (HOST, HERE)),
            (udp(1, peer=PEER), None, (HOST, HERE)),
            (tcp(1, peer=PEER), None, (HOST, HERE)),
            (tcp(1), PEER, (HOST, HERE)),
            (udp(1, netns=ELSEWHERE), PEER, (HOST, ELSEWHERE)),
        ],
    )
    def test_it_is_that_of_the_socket_when_it_joined(
        self, facts: SocketFacts, destination: None, host: tuple[str, int]
    ) -> None:
        stage = Stage()
        stage.add(facts, destination, adaptive=True)
        assert {(str(each), each.netns_cookie) for each in stage.paths.begun} == {host}

    def test_without_a_route_the_flow_is_refused_and_nothing_has_changed(self) -> None:
        stage = Stage(FakeDatapath(1))
        plain = stage.add(udp(1), PEER)
        stage.paths.set_unreachable(HOST)
        before = list(stage.fake.operations)
        with pytest.raises(HostUnreachable) as refused:
            stage.add(udp(1), PEER, adaptive=True)
        assert refused.value.win32 == 1232
        assert stage.fake.operations == before
        assert stage.bound() == {1: {PEER: plain}}
        # Marks alone need no estimate, and the socket may get its route later.
        stage.remove(plain)
        stage.add(udp(1), PEER)

    def test_a_refusal_of_the_datapath_leaves_no_user_behind(self) -> None:
        stage = Stage()
        stage.fake.refuse("bind")
        with pytest.raises(DatapathError):
            stage.add(udp(1), PEER, adaptive=True)
        assert stage.paths.begun == set()

    def test_a_path_that_becomes_known_later_is_used_from_the_next_question_on(self) -> None:
        stage = Stage()
        stage.paths.set_off_link(HOST)
        flow = stage.add(udp(1), PEER, adaptive=True)
        with pytest.raises(NotSupported):
            stage.service.fundamentals(stage.handle, flow)
        assert stage.paths.operations == []
        stage.paths.set_off_link(HOST, False)
        with pytest.raises(NoData):
            stage.service.fundamentals(stage.handle, flow)
        assert stage.paths.operations == [f"begin {HOST}"]
        stage.paths.set_off_link(HOST)
        stage.remove(flow)
        assert stage.paths.operations == [f"begin {HOST}", f"end {HOST}"]

    def test_a_flow_takes_no_second_socket(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        for adaptive in (True, False):
            with pytest.raises(InvalidRequest):
                stage.add(udp(2), PEER, flow=flow, adaptive=adaptive)
        plain = stage.add(udp(3), PEER)
        with pytest.raises(InvalidRequest):
            stage.add(udp(2), PEER, flow=plain, adaptive=True)


class TestFundamentals:
    def test_before_the_first_measurement_there_is_no_data(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        with pytest.raises(NoData) as refused:
            stage.service.fundamentals(stage.handle, flow)
        assert refused.value.win32 == 232
        stage.paths.set_estimate(HOST, KNOWN)
        assert stage.service.fundamentals(stage.handle, flow) == KNOWN

    @pytest.mark.parametrize("fresh", [True, False])
    def test_flow_capability_and_route_are_checked_in_this_order(self, fresh: bool) -> None:
        stage = Stage()
        plain, far, lost = (
            stage.add(udp(1), PEER),
            stage.add(udp(2), PEER, adaptive=True),
            stage.add(udp(3), OTHER_PEER, adaptive=True),
        )
        stage.paths.set_off_link(HOST)
        stage.paths.set_unreachable(OTHER)
        found: list[tuple[type[QosError], int]] = []
        for flow in (12345, plain, far, lost):
            with pytest.raises(QosError) as refused:
                stage.service.fundamentals(stage.handle, flow, fresh)
            found.append((type(refused.value), refused.value.win32))
        assert found == [(NoSuchFlow, 1168), (NotAdaptive, 50), (NotSupported, 50), (HostUnreachable, 1232)]

    @pytest.mark.parametrize("reader", [ALICE_TOO, ROOT])
    def test_the_same_user_and_privileged_peers_may_ask_about_a_foreign_flow(self, reader: Peer) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        stage.paths.set_estimate(HOST, KNOWN)
        assert stage.service.fundamentals(stage.service.open_handle(reader), flow) == KNOWN
        with pytest.raises(NoSuchFlow):
            stage.service.fundamentals(stage.service.open_handle(BOB), flow)


class TestAdmission:
    def test_more_than_the_flow_holds_is_asked_for(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        for bandwidth in (1_000_000, 3_000_000, 3_000_000, 2_000_000, 0xFFFFFFFF, 0, 8_000):
            stage.service.set_rate(stage.handle, flow, bandwidth, 1, 0)
        assert stage.paths.asked == [(HOST, 0, 1_000_000), (HOST, 1_000_000, 3_000_000), (HOST, 0, 8_000)]

    @pytest.mark.parametrize(("refusal", "win32"), [(NetworkBusy("full"), 54), (Retry("unknown"), 1237)])
    def test_a_refused_rate_leaves_the_contract_so_far(self, refusal: QosError, win32: int) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        stage.paths.set_admission(HOST, refusal)
        with pytest.raises(type(refusal)) as refused:
            stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        assert refused.value.win32 == win32
        assert stage.dscp(flow) is None
        assert stage.service.rate(stage.handle, flow) is None
        stage.paths.set_admission(HOST, None)
        stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        stage.paths.set_admission(HOST, refusal)
        policy = stage.fake.policies[flow]
        with pytest.raises(type(refusal)):
            stage.service.set_rate(stage.handle, flow, 2_000_001, 1, 0)
        assert stage.fake.policies[flow] == policy
        assert stage.service.rate(stage.handle, flow) == FlowRate(Bandwidth(2_000_000))
        # Lowering is not asked, nor is giving up.
        stage.service.set_rate(stage.handle, flow, 1_000_000, 1, 0)
        assert stage.service.rate(stage.handle, flow) == FlowRate(Bandwidth(1_000_000))
        stage.service.set_rate(stage.handle, flow, 0, 1, 0)
        assert stage.dscp(flow) is None

    def test_off_the_link_everything_is_admitted_shaped_and_marked(self) -> None:
        stage = Stage()
        stage.paths.set_off_link(HOST)
        stage.paths.set_admission(HOST, NetworkBusy("never asked"))
        flow = stage.add(udp(1), PEER, adaptive=True)
        stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        policy = stage.fake.policies[flow]
        assert (policy.dscp, policy.bandwidth) == (Dscp(56), 2_000_000)
        assert stage.paths.operations == []

    def test_a_non_adaptive_flow_is_never_asked_about(self) -> None:
        stage = Stage()
        stage.paths.set_admission(HOST, NetworkBusy("never asked"))
        flow = stage.add(udp(1), PEER)
        stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        assert stage.service.rate(stage.handle, flow) == FlowRate(Bandwidth(2_000_000))

    def test_a_rate_that_the_datapath_refuses_completes_no_wait(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        stage.service.notify(stage.handle, flow, 2, 2_000_000, request=1)
        stage.fake.refuse("put")
        with pytest.raises(DatapathError):
            stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        assert (stage.service.take_completed(), stage.service.pending) == ([], 1)

    @pytest.mark.parametrize(
        "wrong",
        [
            lambda service, handle: service.set_rate(handle, 12345, 7_999, 1, 0),
            lambda service, handle: service.set_rate(handle, 12345, 2_000_000, 3, 0),
        ],
    )
    def test_values_are_judged_before_anybody_is_asked(self, wrong: Callable[..., None]) -> None:
        stage = Stage()
        with pytest.raises(InvalidRequest):
            wrong(stage.service, stage.handle)
        assert stage.paths.asked == []


def test_the_adaptive_cycle_of_the_sample() -> None:
    """Query until there is an estimate, contract, congestion, lower, enough bandwidth, raise."""
    stage = Stage()
    service, handle = stage.service, stage.handle
    flow = stage.add(udp(1), PEER, traffic_type=TrafficType.AUDIO_VIDEO, adaptive=True)
    with pytest.raises(NoData):
        service.fundamentals(handle, flow)
    stage.paths.set_estimate(HOST, KNOWN)
    assert service.fundamentals(handle, flow) == KNOWN
    service.set_rate(handle, flow, 3_000_000, 1, 0)
    assert stage.dscp(flow) == 40
    assert service.notify(handle, flow, 0, request=1) is False
    assert [each.request for each in stage.set_condition(flow, congested=True)] == [1]
    service.set_rate(handle, flow, 300_000, 1, 2)
    assert service.notify(handle, flow, 2, 3_000_000, request=2) is False
    assert stage.set_condition(flow, congested=False, free=1_000_000) == []
    assert [each.request for each in stage.set_condition(flow, congested=False, free=2_700_000)] == [2]
    service.set_rate(handle, flow, 3_000_000, 1, 0)
    assert service.rate(handle, flow) == FlowRate(Bandwidth(3_000_000))
    assert service.notify(handle, flow, 0, request=3) is False


def test_ipv6_paths_are_hosts_of_their_own() -> None:
    stage = Stage()
    stage.add(udp(1, family=10), PEER6, adaptive=True)
    assert {str(each) for each in stage.paths.begun} == {"2001:db8::7"}
