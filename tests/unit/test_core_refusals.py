"""The datapath refuses in the middle: the caller hears it, and nothing is lost or left behind."""

import pytest

from qos2.core.service import Limits
from qos2.datapath.fake import FakeDatapath
from qos2.errors import DatapathError, NoSuchFlow
from qos2.model import ANY_DESTINATION, FlowStats, TrafficType, flow_id
from unit.core_stage import ALICE, ELSEWHERE, FD, HERE, OTHER_PEER, PEER, Stage, tcp, udp


def test_a_refused_policy_begins_no_flow_and_returns_the_slot() -> None:
    stage = Stage(FakeDatapath(1))
    stage.fake.refuse("put")
    with pytest.raises(DatapathError):
        stage.add(udp(1), PEER)
    assert (stage.service.flows, stage.fake.occupied_slots()) == (0, {})
    assert stage.add(udp(1), PEER) == flow_id(1, 2)


def test_a_refused_binding_ends_the_flow_again() -> None:
    stage = Stage(FakeDatapath(1))
    stage.fake.refuse("bind")
    with pytest.raises(DatapathError):
        stage.add(udp(1), PEER)
    assert (stage.service.flows, stage.fake.occupied_slots(), stage.fake.bindings) == (0, {}, {})
    assert stage.service.accounts.begun == dict.fromkeys(TrafficType, 0)
    assert stage.add(udp(1), PEER) == flow_id(1, 2)


def test_a_flow_that_can_neither_be_bound_nor_ended_ends_with_a_later_tick() -> None:
    stage = Stage(FakeDatapath(1))
    stage.fake.refuse("bind")
    stage.fake.refuse("end", times=2)
    with pytest.raises(DatapathError, match="bind refused"):
        stage.add(udp(1), PEER)
    assert (stage.service.orphans, stage.service.refusals) == (1, 1)
    stage.service.tick()
    assert (stage.service.orphans, stage.service.refusals) == (1, 2)
    stage.service.tick()
    assert (stage.service.orphans, stage.service.refusals) == (0, 2)
    assert stage.fake.occupied_slots() == {}
    assert stage.service.accounts.ended == dict.fromkeys(TrafficType, 0)
    stage.add(udp(1), PEER)


def test_a_refused_move_leaves_the_socket_where_it_was() -> None:
    stage = Stage()
    first = stage.add(udp(1), PEER)
    second = stage.add(udp(2), PEER)
    stage.fake.refuse("bind")
    with pytest.raises(DatapathError):
        stage.add(udp(1), PEER, flow=second)
    assert stage.bound() == {1: {PEER: first}, 2: {PEER: second}}
    third = stage.add(udp(1), OTHER_PEER)
    assert stage.bound() == {1: {PEER: first, OTHER_PEER: third}, 2: {PEER: second}}
    stage.remove(first, udp(1))
    assert stage.bound() == {1: {OTHER_PEER: third}, 2: {PEER: second}}


def test_a_refused_join_takes_the_wider_namespaces_back() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.fake.refuse("bind")
    with pytest.raises(DatapathError):
        stage.add(udp(2, netns=ELSEWHERE), PEER, flow=flow)
    assert stage.fake.policies[flow].netns_cookies == {HERE}
    assert stage.service.refusals == 0
    stage.fake.refuse("put")
    with pytest.raises(DatapathError):
        stage.add(udp(2, netns=ELSEWHERE), PEER, flow=flow)
    assert stage.service.details(stage.handle, flow).members == ("udp 192.0.2.7:5004",)


def test_namespaces_that_could_not_be_taken_back_go_with_the_next_change() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.add(udp(2, netns=ELSEWHERE), PEER, flow=flow)
    stage.fake.refuse("put")
    stage.remove(flow, udp(2, netns=ELSEWHERE))
    assert stage.fake.policies[flow].netns_cookies == {HERE, ELSEWHERE}
    assert stage.service.refusals == 1
    stage.service.set_traffic_type(stage.handle, flow, TrafficType.VOICE)
    assert stage.fake.policies[flow].netns_cookies == {HERE}


def test_a_socket_that_could_not_be_unbound_is_still_a_member() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.add(udp(1), OTHER_PEER, flow=flow)
    stage.add(udp(2), PEER, flow=flow)
    stage.fake.refuse("bind")
    with pytest.raises(DatapathError):
        stage.remove(flow, udp(1))
    assert stage.bound() == {1: {PEER: flow, OTHER_PEER: flow}, 2: {PEER: flow}}
    stage.remove(flow, udp(1))
    assert stage.bound() == {2: {PEER: flow}}


@pytest.mark.parametrize("operation", ["stats", "end"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_flow_that_could_not_be_ended_lives_on(operation: str, whole: bool) -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.fake.refuse(operation)
    with pytest.raises(DatapathError):
        stage.remove(flow, None if whole else udp(1))
    assert stage.bound() == {1: {PEER: flow}}
    assert stage.dscp(flow) == 56
    stage.remove(flow, None if whole else udp(1))
    assert (stage.fake.policies, stage.fake.bindings) == ({}, {})


def test_the_last_socket_may_be_cleared_later_since_its_flow_has_ended() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.add(udp(1), ANY_DESTINATION, flow=flow)
    stage.fake.refuse("bind")
    stage.fake.refuse("unbind")
    stage.remove(flow, udp(1))
    assert stage.fake.policies == {}
    assert stage.fake.bindings == {1: {PEER: flow, ANY_DESTINATION: flow}}
    assert stage.service.refusals == 2
    stage.service.tick()
    assert stage.fake.bindings == {1: {ANY_DESTINATION: flow}}
    assert stage.bound() == {}


def test_destinations_that_were_not_forgotten_are_forgotten_later() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.fake.refuse("unbind", times=2)
    stage.remove(flow)
    stage.service.tick()
    assert stage.fake.bindings == {1: {PEER: flow}}
    stage.service.tick()
    assert (stage.fake.bindings, stage.service.refusals) == ({}, 2)


def test_a_destination_taken_again_meanwhile_is_not_forgotten() -> None:
    stage = Stage()
    stage.fake.refuse("unbind")
    stage.remove(stage.add(udp(1), PEER))
    again = stage.add(udp(1), PEER)
    stage.service.tick()
    assert stage.fake.bindings == {1: {PEER: again}}


def test_a_handle_closes_whatever_the_datapath_says() -> None:
    stage = Stage(FakeDatapath(3), Limits(flows_per_uid=3))
    for n in range(3):
        stage.fake.set_stats(stage.add(tcp(n, peer=PEER)), FlowStats(packets=5))
    stage.fake.refuse("end", times=2)
    stage.service.close_handle(stage.handle)
    assert (stage.service.handles, stage.service.flows, stage.service.orphans) == (0, 0, 2)
    assert len(stage.fake.policies) == 2
    none = dict.fromkeys(TrafficType, 0)
    assert stage.service.accounts.live == none | {TrafficType.VOICE: 2}
    # The edge goes on summing the two flows that still count.
    assert sum(kind == TrafficType.VOICE for kind in stage.service.type_of_slot) == 2
    stage.service.tick()
    assert (stage.service.orphans, stage.fake.policies) == (0, {})
    assert stage.service.totals([FlowStats()] * 6)[TrafficType.VOICE] == FlowStats(packets=15)
    assert stage.service.accounts.live == none
    stage.handle = stage.service.open_handle(ALICE)
    assert len({stage.add(tcp(n, peer=PEER)) for n in range(3)}) == 3


def test_flows_whose_end_was_refused_are_nobodys() -> None:
    stage = Stage()
    second = stage.service.open_handle(ALICE)
    flow = stage.add(tcp(1, peer=PEER))
    stage.fake.refuse("end")
    stage.service.close_handle(stage.handle)
    with pytest.raises(NoSuchFlow):
        stage.service.priority(second, flow)
    assert stage.service.list_flows(second, 0, 10) == []
    # Its socket may join a flow at once, and the late end does not touch that.
    again = stage.add(tcp(1, peer=PEER), handle=second)
    stage.service.tick()
    assert stage.bound() == {1: {ANY_DESTINATION: again}}


def test_orphans_that_could_not_be_ended_are_tried_again() -> None:
    stage = Stage(FakeDatapath(2, occupied={1: flow_id(1, 3), 2: flow_id(2, 3)}))
    stage.now_s += 10
    stage.fake.refuse("end")
    stage.service.tick()
    assert (stage.service.orphans, stage.service.refusals) == (1, 1)
    stage.service.tick()
    assert (stage.service.orphans, stage.fake.occupied_slots()) == (0, {})


def test_a_program_that_could_not_be_adopted_has_no_flow() -> None:
    stage = Stage(FakeDatapath(1))
    stage.fake.refuse("adopt_program")
    with pytest.raises(DatapathError):
        stage.service.add_program(stage.handle, TrafficType.BACKGROUND)
    assert (stage.fake.policies, stage.fake.programs, stage.service.flows) == ({}, {}, 0)
    assert "release_program" not in stage.fake.operations


def test_a_program_that_could_not_be_released_is_released_later() -> None:
    stage = Stage()
    flow = stage.service.add_program(stage.handle, TrafficType.BACKGROUND)
    stage.fake.refuse("release_program")
    stage.remove(flow)
    assert (stage.fake.policies, list(stage.fake.programs)) == ({}, [flow])
    stage.service.tick()
    assert stage.fake.programs == {}


@pytest.mark.parametrize("operation", ["put", "stats"])
def test_a_refused_change_leaves_the_flow_as_it_was(operation: str) -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    before = stage.service.details(stage.handle, flow)
    stage.fake.refuse(operation)
    with pytest.raises(DatapathError):
        stage.service.set_traffic_type(stage.handle, flow, TrafficType.BACKGROUND)
    assert stage.service.details(stage.handle, flow) == before
    assert stage.service.type_of_slot[1] == TrafficType.VOICE
    if operation == "put":
        stage.fake.refuse("put")
        with pytest.raises(DatapathError):
            stage.service.set_rate(stage.handle, flow, 1_000_000, 1, 0)
        assert stage.service.details(stage.handle, flow) == before


def test_a_bug_of_the_datapath_loses_no_slot_either() -> None:
    class Broken(FakeDatapath):
        def bind(self, fd: int, facts: object, flows: object) -> None:
            raise ZeroDivisionError

    stage = Stage(Broken(1))
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            stage.service.add_socket(stage.handle, FD, udp(1), traffic_type=0, flow=0, destination=PEER, adaptive=False)
        assert (stage.service.flows, stage.fake.occupied_slots()) == (0, {})
