"""Sockets of flows: who joins, moves and leaves, and what the datapath is told of each socket."""

from socket import AF_INET6

import pytest

from qos2.datapath.fake import FakeDatapath
from qos2.errors import InvalidRequest, NoSuchFlow
from qos2.model import ANY_DESTINATION, Destination, Dscp, FlowPolicy, SocketFacts, TrafficType
from unit.core_stage import BOB, ELSEWHERE, HERE, OTHER_PEER, PEER, PEER6, Stage, tcp, udp, udp6


def test_policy_comes_before_the_binding() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    assert stage.fake.operations == ["put", "bind"]
    assert stage.fake.policies == {flow: FlowPolicy(flow, Dscp(56), netns_cookies=frozenset({HERE}))}
    assert stage.fake.bindings == {1: {PEER: flow}}


def test_one_socket_to_many_destinations_in_one_flow() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    assert stage.add(udp(1), OTHER_PEER, flow=flow) == flow
    assert stage.bound() == {1: {PEER: flow, OTHER_PEER: flow}}


def test_many_sockets_in_one_flow() -> None:
    stage = Stage()
    flow = stage.add(tcp(1, peer=PEER))
    stage.add(tcp(2, peer=PEER), flow=flow)
    stage.add(udp6(3), PEER6, flow=flow)
    assert stage.bound() == {1: {ANY_DESTINATION: flow}, 2: {ANY_DESTINATION: flow}, 3: {PEER6: flow}}


def test_one_socket_in_several_flows() -> None:
    stage = Stage()
    voice = stage.add(udp(1), PEER)
    background = stage.add(udp(1), OTHER_PEER, traffic_type=TrafficType.BACKGROUND)
    whole = stage.add(udp(1), ANY_DESTINATION, traffic_type=TrafficType.CONTROL)
    assert stage.bound() == {1: {PEER: voice, OTHER_PEER: background, ANY_DESTINATION: whole}}
    assert [stage.dscp(flow) for flow in (voice, background, whole)] == [56, 8, 56]


def test_adding_again_to_the_same_flow_changes_nothing() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    done = list(stage.fake.operations)
    assert stage.add(udp(1), PEER, flow=flow) == flow
    assert stage.fake.operations == done
    stage.remove(flow, udp(1))
    assert stage.service.flows == 0


def test_the_type_is_ignored_when_adding_to_a_flow() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.add(udp(2), PEER, flow=flow, traffic_type=77)
    assert stage.dscp(flow) == 56


@pytest.mark.parametrize("kind", [-1, 6])
def test_an_unknown_type_begins_no_flow(kind: int) -> None:
    stage = Stage()
    with pytest.raises(InvalidRequest):
        stage.add(udp(1), PEER, traffic_type=kind)
    assert stage.fake.operations == []


def test_in_a_second_flow_the_last_one_wins_and_the_first_stays_as_a_husk() -> None:
    stage = Stage()
    first = stage.add(udp(1), PEER)
    second = stage.add(udp(1), PEER, traffic_type=TrafficType.BACKGROUND)
    assert stage.bound() == {1: {PEER: second}}
    assert stage.service.details(stage.handle, first).members == ()
    husk = stage.fake.policies[first]
    assert husk == FlowPolicy(first, Dscp(56), netns_cookies=frozenset({udp(1).netns_cookie}))
    with pytest.raises(NoSuchFlow):
        stage.remove(first, udp(1))
    stage.remove(first)
    assert stage.bound() == {1: {PEER: second}}
    assert stage.fake.policies.keys() == {second}


def test_a_husk_takes_members_again() -> None:
    stage = Stage()
    husk = stage.add(udp(1), PEER)
    other = stage.add(udp(1), PEER)
    stage.add(udp(1), PEER, flow=husk)
    assert stage.bound() == {1: {PEER: husk}}
    assert stage.fake.policies[husk].netns_cookies == {HERE}
    assert stage.service.details(stage.handle, other).members == ()


def test_a_husk_ends_with_its_handle() -> None:
    stage = Stage()
    stage.add(udp(1), PEER)
    taken = stage.add(udp(1), PEER, handle=stage.service.open_handle(BOB))
    stage.service.close_handle(stage.handle)
    assert stage.fake.policies.keys() == {taken}
    assert stage.bound() == {1: {PEER: taken}}


def test_who_holds_the_socket_takes_it_over_from_another_process() -> None:
    stage = Stage()
    first = stage.add(udp(1), PEER)
    bob = stage.service.open_handle(BOB)
    second = stage.add(udp(1), PEER, handle=bob)
    assert stage.bound() == {1: {PEER: second}}
    stage.service.close_handle(bob)
    assert stage.bound() == {}
    assert stage.fake.policies.keys() == {first}


def test_removing_a_socket_removes_all_its_destinations_in_that_flow_and_no_others() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.add(udp(1), OTHER_PEER, flow=flow)
    stage.add(udp(2), PEER, flow=flow)
    other = stage.add(udp(1), ANY_DESTINATION)
    stage.remove(flow, udp(1))
    assert stage.bound() == {1: {ANY_DESTINATION: other}, 2: {PEER: flow}}
    with pytest.raises(NoSuchFlow):
        stage.remove(flow, udp(1))


def test_the_last_socket_that_leaves_ends_the_flow() -> None:
    stage = Stage()
    flow = stage.add(tcp(1, peer=PEER))
    stage.add(tcp(2, peer=PEER), flow=flow)
    stage.remove(flow, tcp(1))
    assert stage.fake.policies.keys() == {flow}
    stage.remove(flow, tcp(2))
    assert (stage.fake.policies, stage.fake.bindings) == ({}, {})
    with pytest.raises(NoSuchFlow):
        stage.remove(flow, tcp(2))


def test_a_socket_that_never_joined_is_not_found() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    with pytest.raises(NoSuchFlow) as refused:
        stage.remove(flow, udp(2))
    assert refused.value.win32 == 1168
    assert stage.bound() == {1: {PEER: flow}}


def test_ending_a_flow_forgets_its_destinations_and_leaves_those_of_other_flows() -> None:
    stage = Stage()
    ended = stage.add(udp(1), PEER)
    stage.add(udp(2), PEER, flow=ended)
    stage.add(udp(2), ANY_DESTINATION, flow=ended)
    kept = stage.add(udp(1), OTHER_PEER)
    stage.remove(ended)
    # The whole socket 2 still carries the id of the ended flow, where it does nothing.
    assert stage.fake.bindings == {1: {OTHER_PEER: kept}, 2: {ANY_DESTINATION: ended}}
    assert stage.bound() == {1: {OTHER_PEER: kept}}
    assert stage.fake.flow_of(2, PEER) is None


def test_a_whole_socket_needs_nothing_forgotten() -> None:
    stage = Stage()
    flow = stage.add(tcp(1, peer=PEER))
    stage.remove(flow)
    assert stage.fake.operations == ["put", "bind", "end"]


def test_a_socket_bound_again_loses_what_ended_flows_left_on_it() -> None:
    stage = Stage()
    stage.remove(stage.add(tcp(1, peer=PEER)))
    flow = stage.add(tcp(1, peer=PEER))
    assert stage.fake.bindings == {1: {ANY_DESTINATION: flow}}


def test_marks_per_datagram() -> None:
    stage = Stage(FakeDatapath(4))
    for n in range(50):
        flow = stage.add(udp(1), Destination.parse("192.0.2.7", 1 + n % 3))
        assert stage.bound() == {1: {Destination.parse("192.0.2.7", 1 + n % 3): flow}}
        stage.remove(flow)
        assert stage.fake.bindings == {}


def test_an_adaptive_flow_has_one_member() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER, adaptive=True)
    for facts, destination in ((udp(2), PEER), (udp(1), OTHER_PEER), (udp(1), PEER)):
        with pytest.raises(InvalidRequest):
            stage.add(facts, destination, flow=flow)
    assert stage.bound() == {1: {PEER: flow}}


def test_adding_to_a_flow_as_adaptive_is_refused_before_the_flow_is_looked_for() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    for each in (flow, 12345):
        with pytest.raises(InvalidRequest):
            stage.add(udp(2), PEER, flow=each, adaptive=True)


@pytest.mark.parametrize("destination", [ANY_DESTINATION, None])
def test_an_adaptive_flow_needs_a_destination(destination: Destination | None) -> None:
    stage = Stage()
    with pytest.raises(InvalidRequest):
        stage.add(udp(1), destination, adaptive=True)
    assert stage.fake.operations == []


@pytest.mark.parametrize(
    ("facts", "destination"),
    [(udp(1), None), (tcp(1), None), (udp(1, peer=PEER), OTHER_PEER), (udp(1), PEER6), (udp6(1, v6only=True), PEER)],
)
def test_an_unfit_socket_is_refused_and_leaves_nothing(facts: SocketFacts, destination: Destination | None) -> None:
    stage = Stage()
    flow = stage.add(udp(9), PEER)
    done = list(stage.fake.operations)
    for each in (0, flow):
        with pytest.raises(InvalidRequest) as refused:
            stage.add(facts, destination, flow=each)
        assert refused.value.win32 == 87
    assert stage.fake.operations == done


@pytest.mark.parametrize(
    ("facts", "destination", "bound"),
    [
        (tcp(1, peer=PEER), None, ANY_DESTINATION),
        (tcp(1), PEER, PEER),
        (tcp(1, listening=True), None, ANY_DESTINATION),
        (udp(1, peer=PEER), None, PEER),
        (udp(1), ANY_DESTINATION, ANY_DESTINATION),
        (udp6(1), PEER, PEER),
        (udp(1, peer=PEER, family=AF_INET6), None, PEER),
    ],
)
def test_the_datapath_is_told_where_the_socket_sends(
    facts: SocketFacts, destination: Destination | None, bound: Destination
) -> None:
    stage = Stage()
    flow = stage.add(facts, destination)
    assert stage.bound() == {1: {bound: flow}}


def test_a_flow_names_the_namespaces_of_its_sockets() -> None:
    stage = Stage()
    flow = stage.add(udp(1), PEER)
    stage.add(udp(2, netns=ELSEWHERE), PEER, flow=flow)
    stage.add(udp(3, netns=ELSEWHERE), PEER, flow=flow)
    assert stage.fake.operations == ["put", "bind", "put", "bind", "bind"]
    assert stage.fake.policies[flow].netns_cookies == {HERE, ELSEWHERE}
    stage.service.set_rate(stage.handle, flow, 1_000_000, 1, 0)
    assert stage.fake.policies[flow].netns_cookies == {HERE, ELSEWHERE}
    stage.remove(flow, udp(2, netns=ELSEWHERE))
    assert stage.fake.policies[flow].netns_cookies == {HERE, ELSEWHERE}
    stage.remove(flow, udp(3, netns=ELSEWHERE))
    assert stage.fake.policies[flow].netns_cookies == {HERE}
    assert stage.fake.policies[flow].bandwidth == 1_000_000
