"""Traffic type, rate contract and DSCP override: what requests make of them, in the datapath and in answers."""

import pytest

from qos2.datapath.fake import FakeDatapath
from qos2.errors import InvalidRequest, NotPermitted, NotSupported, QosError
from qos2.model import (
    Action,
    Bandwidth,
    Dscp,
    FlowPolicy,
    FlowRate,
    FlowStats,
    PacketPriority,
    RateReason,
    Shaping,
    TrafficType,
)
from unit.core_stage import HERE, PEER, ROOT, Stage, udp


class TestTrafficType:
    def test_it_changes_at_once_and_clears_an_override(self) -> None:
        stage = Stage()
        root = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=root)
        stage.service.set_dscp(root, flow, 46)
        stage.service.set_traffic_type(root, flow, TrafficType.BACKGROUND)
        assert stage.fake.policies[flow] == FlowPolicy(flow, Dscp(8), netns_cookies=frozenset({HERE}))

    def test_setting_the_same_type_clears_an_override_too(self) -> None:
        stage = Stage()
        root = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=root)
        stage.service.set_dscp(root, flow, 46)
        stage.service.set_traffic_type(root, flow, TrafficType.VOICE)
        assert stage.dscp(flow) == 56

    @pytest.mark.parametrize("kind", [-1, 6])
    def test_an_unknown_type_is_refused_before_the_flow_is_looked_for(self, kind: int) -> None:
        stage = Stage()
        with pytest.raises(InvalidRequest, match="unknown traffic type"):
            stage.service.set_traffic_type(stage.handle, 12345, kind)

    def test_the_type_of_each_slot_is_there_for_sums_over_the_maps(self) -> None:
        stage = Stage(FakeDatapath(3))
        types = stage.service.type_of_slot
        assert types == bytes([255, 255, 255, 255])
        first, second = stage.add(udp(1), PEER), stage.add(udp(2), PEER, traffic_type=TrafficType.BACKGROUND)
        stage.service.set_traffic_type(stage.handle, first, TrafficType.CONTROL)
        assert types == bytes([255, 5, 1, 255])
        stage.remove(second)
        assert types == bytes([255, 5, 255, 255])
        assert stage.service.type_of_slot is types

    def test_totals_keep_what_flows_sent_under_an_earlier_type_and_before_their_end(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.fake.set_stats(flow, FlowStats(packets=10, bytes=1000))
        stage.service.set_traffic_type(stage.handle, flow, TrafficType.CONTROL)
        stage.fake.set_stats(flow, FlowStats(packets=14, bytes=1400))
        stage.remove(flow)
        totals = stage.service.totals([FlowStats()] * 6)
        assert (totals[TrafficType.VOICE], totals[TrafficType.CONTROL]) == (
            FlowStats(packets=10, bytes=1000),
            FlowStats(packets=4, bytes=400),
        )
        none = dict.fromkeys(TrafficType, 0)
        assert stage.service.accounts.begun == none | {TrafficType.VOICE: 1}
        assert stage.service.accounts.ended == none | {TrafficType.CONTROL: 1}
        assert stage.service.accounts.live == none


class TestRate:
    @pytest.mark.parametrize(
        ("shaping", "dscp", "action"),
        [(0, 0, Action.DELAY), (1, 56, Action.DELAY), (2, 56, Action.REMARK)],
    )
    def test_a_contract_is_in_force_as_asked(self, shaping: int, dscp: int, action: Action) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.service.set_rate(stage.handle, flow, 2_000_000, shaping, RateReason.USER_CAUSED)
        assert stage.fake.policies[flow] == FlowPolicy(
            flow, Dscp(dscp), Dscp(0), action, Bandwidth(2_000_000), frozenset({HERE})
        )
        rate = FlowRate(Bandwidth(2_000_000), Shaping(shaping), RateReason.USER_CAUSED)
        assert stage.service.rate(stage.handle, flow) == rate
        assert stage.service.priority(stage.handle, flow) == PacketPriority(Dscp(dscp), Dscp(0))

    def test_without_a_contract_the_rate_is_none(self) -> None:
        stage = Stage()
        assert stage.service.rate(stage.handle, stage.add(udp(1), PEER)) is None

    def test_rate_0_removes_contract_and_marks_and_both_come_back(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        stage.service.set_rate(stage.handle, flow, 0, 1, 0)
        assert stage.fake.policies[flow] == FlowPolicy(flow, None, netns_cookies=frozenset({HERE}))
        assert stage.service.rate(stage.handle, flow) is None
        assert stage.service.priority(stage.handle, flow) == PacketPriority(Dscp(0), Dscp(0))
        stage.service.set_rate(stage.handle, flow, 3_000_000, 1, 0)
        assert stage.dscp(flow) == 56

    def test_the_default_minimum_is_reported_as_what_is_in_force(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.service.set_rate(stage.handle, flow, 0xFFFFFFFF, 1, 0)
        assert stage.fake.policies[flow].bandwidth == 64_000
        assert stage.service.rate(stage.handle, flow) == FlowRate(Bandwidth(64_000))

    @pytest.mark.parametrize(
        ("bandwidth", "shaping", "reason"),
        [(-1, 1, 0), (7_999, 1, 0), (400_000_000_001, 1, 0), (1_000_000, 3, 0), (1_000_000, 1, 5)],
    )
    def test_a_bad_contract_is_refused_before_the_flow_is_looked_for(
        self, bandwidth: int, shaping: int, reason: int
    ) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        before = dict(stage.fake.policies)
        for each in (flow, 0):
            with pytest.raises(InvalidRequest):
                stage.service.set_rate(stage.handle, each, bandwidth, shaping, reason)
        assert stage.fake.policies == before

    def test_an_adaptive_flow_begins_to_mark_with_its_rate(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        assert stage.fake.policies[flow] == FlowPolicy(flow, None, netns_cookies=frozenset({HERE}))
        assert stage.service.priority(stage.handle, flow) == PacketPriority(Dscp(0), Dscp(0))
        stage.service.set_rate(stage.handle, flow, 2_000_000, 1, 0)
        assert stage.service.priority(stage.handle, flow) == PacketPriority(Dscp(56), Dscp(0))


class TestDscp:
    def test_an_override_needs_privilege_and_leaves_the_type_in_force(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        with pytest.raises(NotPermitted) as refused:
            stage.service.set_dscp(stage.handle, flow, 46)
        assert refused.value.win32 == 5
        assert stage.dscp(flow) == 56

    def test_an_override_marks_and_is_reported(self) -> None:
        stage = Stage()
        root = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=root)
        stage.service.set_dscp(root, flow, 46)
        assert stage.dscp(flow) == 46
        assert stage.service.priority(root, flow) == PacketPriority(Dscp(46), Dscp(0))

    def test_rate_0_silences_an_override_until_something_is_set_again(self) -> None:
        stage = Stage()
        root = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=root)
        stage.service.set_dscp(root, flow, 46)
        stage.service.set_rate(root, flow, 0, 1, 0)
        assert stage.dscp(flow) is None
        assert stage.service.priority(root, flow) == PacketPriority(Dscp(0), Dscp(0))
        view = stage.service.details(root, flow)
        assert (view.dscp, view.dscp_override) == (None, False)
        stage.service.set_rate(root, flow, 64_000, 1, 0)
        view = stage.service.details(root, flow)
        assert (view.dscp, view.dscp_override) == (46, True)

    def test_an_adaptive_flow_takes_none(self) -> None:
        stage = Stage()
        root = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=root, adaptive=True)
        with pytest.raises(NotSupported, match="override needs a non-adaptive flow") as refused:
            stage.service.set_dscp(root, flow, 46)
        assert refused.value.win32 == 50

    def test_value_flow_right_and_capability_are_checked_in_this_order(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, adaptive=True)
        codes = []
        for each, dscp in ((12345, 64), (12345, 46), (flow, 46)):
            with pytest.raises(QosError) as refused:
                stage.service.set_dscp(stage.handle, each, dscp)
            codes.append(refused.value.win32)
        assert codes == [87, 1168, 5]
