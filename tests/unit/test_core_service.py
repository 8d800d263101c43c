"""Handles, rights, questions, limits, programs and orphans: the service request by request."""

from collections.abc import Callable

import pytest

from qos2.core.service import Limits, Service
from qos2.core.views import FlowView, ServiceStatus
from qos2.datapath.fake import FakeDatapath
from qos2.errors import InvalidHandle, InvalidRequest, LimitExceeded, NoSuchFlow, NotPermitted
from qos2.model import (
    Bandwidth,
    Destination,
    Dscp,
    FlowId,
    FlowPolicy,
    FlowStats,
    Judgement,
    Peer,
    Shaping,
    TrafficType,
    flow_id,
)
from unit.core_stage import ALICE, ALICE_TOO, BOB, ELSEWHERE, FD, OTHER_PEER, PEER, ROOT, Stage, at, tcp, udp

Call = Callable[[Service, int, int], object]

CHANGES: dict[str, Call] = {
    "remove_socket": lambda service, handle, flow: service.remove_socket(handle, flow, None, None),
    "set_traffic_type": lambda service, handle, flow: service.set_traffic_type(handle, flow, TrafficType.VOICE),
    "set_rate": lambda service, handle, flow: service.set_rate(handle, flow, 1_000_000, 1, 0),
    "set_dscp": lambda service, handle, flow: service.set_dscp(handle, flow, 46),
    "notify": lambda service, handle, flow: service.notify(handle, flow, 0),
    "add_socket": lambda service, handle, flow: service.add_socket(
        handle, FD, udp(99), traffic_type=0, flow=flow or 1 << 40, destination=PEER, adaptive=False
    ),
}
QUESTIONS: dict[str, Call] = {
    "priority": lambda service, handle, flow: service.priority(handle, flow),
    "rate": lambda service, handle, flow: service.rate(handle, flow),
    "stats": lambda service, handle, flow: service.stats(handle, flow),
    "details": lambda service, handle, flow: service.details(handle, flow),
    "fundamentals": lambda service, handle, flow: service.fundamentals(handle, flow),
}
WITHOUT_FLOW: dict[str, Call] = {
    "close_handle": lambda service, handle, flow: service.close_handle(handle),
    "add_program": lambda service, handle, flow: service.add_program(handle, 0),
    "enumerate": lambda service, handle, flow: service.enumerate(handle),
    "list_flows": lambda service, handle, flow: service.list_flows(handle, 0, 10),
    "status": lambda service, handle, flow: service.status(handle),
    "cancel": lambda service, handle, flow: service.cancel(handle, 1),
    "start_tracking": lambda service, handle, flow: service.start_tracking(handle, "192.0.2.7"),
    "stop_tracking": lambda service, handle, flow: service.stop_tracking(handle, "192.0.2.7"),
}


def calls(*tables: dict[str, Call]) -> pytest.MarkDecorator:
    every = {name: call for table in tables for name, call in table.items()}
    return pytest.mark.parametrize("call", every.values(), ids=every.keys())


class TestHandles:
    @pytest.mark.parametrize("version", [(0, 0), (1, 5), (2, 0)])
    def test_another_version_than_1_0_is_refused(self, version: tuple[int, int]) -> None:
        with pytest.raises(InvalidRequest) as refused:
            Stage().service.open_handle(ALICE, version)
        assert refused.value.win32 == 87

    def test_each_handle_has_a_number_of_its_own(self) -> None:
        stage = Stage()
        second = stage.service.open_handle(ALICE)
        stage.service.close_handle(second)
        assert len({0, stage.handle, second, stage.service.open_handle(ALICE)}) == 4
        assert stage.service.handles == 2

    def test_closing_ends_the_flows_of_this_handle_and_no_others(self) -> None:
        stage = Stage()
        second = stage.service.open_handle(ALICE)
        ended, other_ended = stage.add(udp(1), PEER), stage.add(tcp(2, peer=PEER))
        living = stage.add(udp(1), OTHER_PEER, handle=second)
        stage.service.close_handle(stage.handle)
        assert stage.fake.policies.keys() == {living}
        assert stage.bound() == {1: {OTHER_PEER: living}}
        assert (stage.service.flows, stage.service.handles) == (1, 1)
        assert ended != other_ended

    def test_a_second_close_is_refused(self) -> None:
        stage = Stage()
        stage.service.close_handle(stage.handle)
        with pytest.raises(InvalidHandle):
            stage.service.close_handle(stage.handle)

    @calls(CHANGES, QUESTIONS, WITHOUT_FLOW)
    def test_every_request_needs_an_open_handle(self, call: Call) -> None:
        stage = Stage()
        stage.service.close_handle(stage.handle)
        with pytest.raises(InvalidHandle) as refused:
            call(stage.service, stage.handle, 1)
        assert refused.value.win32 == 6


class TestOwnership:
    @calls(CHANGES, QUESTIONS)
    @pytest.mark.parametrize("flow", [0, 1, -1, flow_id(1, 77), 1 << 32, 1 << 80])
    def test_an_unknown_id_is_no_such_flow(self, call: Call, flow: int) -> None:
        stage = Stage()
        stage.add(udp(1), PEER)
        with pytest.raises(NoSuchFlow) as refused:
            call(stage.service, stage.handle, flow)
        assert refused.value.win32 == 1168

    @calls(CHANGES, QUESTIONS)
    def test_an_ended_flow_is_no_such_flow(self, call: Call) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.remove(flow)
        with pytest.raises(NoSuchFlow):
            call(stage.service, stage.handle, flow)

    @calls(CHANGES)
    @pytest.mark.parametrize("stranger", [ALICE_TOO, BOB, ROOT, Peer(pid=ALICE.pid, uid=BOB.uid)])
    def test_nobody_changes_a_flow_of_another_process(self, call: Call, stranger: Peer) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        before = dict(stage.fake.policies)
        with pytest.raises(NoSuchFlow):
            call(stage.service, stage.service.open_handle(stranger), flow)
        assert stage.fake.policies == before

    def test_any_handle_of_the_process_may_change_its_flow(self) -> None:
        stage = Stage()
        second = stage.service.open_handle(ALICE)
        flow = stage.add(udp(1), PEER)
        stage.service.set_traffic_type(second, flow, TrafficType.BACKGROUND)
        assert stage.dscp(flow) == 8
        stage.remove(flow, handle=second)
        assert stage.service.flows == 0
        stage.service.close_handle(stage.handle)

    @calls({name: call for name, call in QUESTIONS.items() if name != "fundamentals"})
    @pytest.mark.parametrize("reader", [ALICE_TOO, ROOT])
    def test_the_same_user_and_privileged_peers_may_ask_about_a_foreign_flow(self, call: Call, reader: Peer) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        assert call(stage.service, stage.service.open_handle(reader), flow) == call(stage.service, stage.handle, flow)

    @calls(QUESTIONS)
    def test_another_user_learns_nothing(self, call: Call) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        with pytest.raises(NoSuchFlow):
            call(stage.service, stage.service.open_handle(BOB), flow)

    def test_enumerating_needs_privilege_and_lists_everybodys_flows(self) -> None:
        stage = Stage()
        mine = stage.add(udp(1), PEER)
        bobs = stage.add(udp(2), PEER, handle=stage.service.open_handle(BOB))
        with pytest.raises(NotPermitted) as refused:
            stage.service.enumerate(stage.handle)
        assert refused.value.win32 == 5
        assert sorted(stage.service.enumerate(stage.service.open_handle(ROOT))) == sorted([mine, bobs])

    def test_enumerating_no_flows_is_an_empty_list(self) -> None:
        stage = Stage()
        assert stage.service.enumerate(stage.service.open_handle(ROOT)) == []


class TestViews:
    def test_details_tell_everything_about_a_flow(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.add(tcp(2, peer=OTHER_PEER), flow=flow)
        stage.service.set_rate(stage.handle, flow, 2_000_000, 0, 0)
        stage.fake.set_stats(flow, FlowStats(packets=3))
        stage.now_s += 12.5
        assert stage.service.details(stage.handle, flow) == FlowView(
            flow=flow,
            traffic_type=TrafficType.VOICE,
            adaptive=False,
            dscp=Dscp(0),
            dscp_override=False,
            non_conformant_dscp=Dscp(0),
            bandwidth=Bandwidth(2_000_000),
            shaping=Shaping.SHAPE_ONLY,
            pid=100,
            uid=1000,
            program="voip",
            age_s=12.5,
            members=("udp 192.0.2.7:5004", "tcp *:*"),
            whole_program=False,
            shapers={"fake0": "fq"},
            stats=FlowStats(packets=3),
            judgement=Judgement(since_s=1000.0),
            judged_for_s=12.5,
            asked_dscp=Dscp(0),
            asked_bandwidth=Bandwidth(2_000_000),
        )

    def test_an_override_and_an_unmarked_flow_are_told_apart(self) -> None:
        stage = Stage()
        root = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=root)
        stage.service.set_rate(root, flow, 0, 1, 0)
        view = stage.service.details(root, flow)
        assert (view.dscp, view.dscp_override, view.bandwidth, view.shaping, view.shapers) == (None, False, 0, None, {})
        stage.service.set_dscp(root, flow, 0)
        view = stage.service.details(root, flow)
        assert (view.dscp, view.dscp_override) == (0, True)

    def test_of_very_many_members_the_rest_is_a_number(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), at("192.0.2.7", 1))
        for port in range(2, 71):
            stage.add(udp(1), at("192.0.2.7", port), flow=flow)
        members = stage.service.details(stage.handle, flow).members
        assert members[:2] == ("udp 192.0.2.7:1", "udp 192.0.2.7:2")
        assert members[63:] == ("udp 192.0.2.7:64", "and 6 more")

    def test_pages_follow_the_slots_and_show_only_what_the_caller_may_see(self) -> None:
        stage = Stage()
        bob, root = stage.service.open_handle(BOB), stage.service.open_handle(ROOT)
        every = [stage.add(udp(n), PEER, handle=bob if n % 3 == 0 else stage.handle) for n in range(1, 10)]
        stage.remove(every[3])
        del every[3]
        bobs = [every[2], every[4], every[7]]

        def pages(handle: int, count: int) -> list[list[FlowId]]:
            found: list[list[FlowId]] = []
            after = 0
            while page := stage.service.list_flows(handle, after, count):
                found.append([view.flow for view in page])
                after = page[-1].flow
            return found

        assert pages(root, 3) == [every[0:3], every[3:6], every[6:8]]
        assert pages(bob, 2) == [bobs[:2], bobs[2:]]
        assert pages(stage.handle, 10) == [[flow for flow in every if flow not in bobs]]
        assert pages(stage.service.open_handle(ALICE_TOO), 10) == pages(stage.handle, 10)

    def test_status_is_for_everybody(self) -> None:
        stage = Stage(FakeDatapath(16, occupied={3: flow_id(3, 2)}))
        stage.add(udp(1), PEER)
        bob = stage.service.open_handle(BOB)
        stage.now_s += 60
        assert stage.service.status(bob) == ServiceStatus("1.2.3", 60.0, 2, 1, 16, 1, stage.fake.status())


class TestLimits:
    def test_handles_are_limited_per_user(self) -> None:
        stage = Stage(limits=Limits(handles_per_uid=2))
        second = stage.service.open_handle(ALICE_TOO)
        with pytest.raises(LimitExceeded) as refused:
            stage.service.open_handle(ALICE)
        assert "handles_per_uid" in refused.value.hint
        stage.service.open_handle(BOB)
        stage.service.close_handle(second)
        stage.service.open_handle(ALICE)

    def test_flows_are_limited_per_user_and_wider_for_privileged_ones(self) -> None:
        stage = Stage(limits=Limits(flows_per_uid=2, flows_per_privileged_uid=3))
        second = stage.service.open_handle(ALICE_TOO)
        first = stage.add(udp(1), PEER)
        stage.add(udp(2), PEER, handle=second)
        before = dict(stage.fake.policies)
        with pytest.raises(LimitExceeded, match="raise flows_per_uid"):
            stage.add(udp(3), PEER)
        with pytest.raises(LimitExceeded, match="raise flows_per_uid"):
            stage.service.add_program(stage.handle, 0)
        assert stage.fake.policies == before
        stage.add(udp(3), PEER, flow=first)
        stage.remove(first)
        stage.add(udp(3), PEER)
        root = stage.service.open_handle(ROOT)
        for n in range(3):
            stage.add(udp(10 + n), PEER, handle=root)
        with pytest.raises(LimitExceeded):
            stage.add(udp(20), PEER, handle=root)

    def test_a_full_table_names_its_key(self) -> None:
        stage = Stage(FakeDatapath(2))
        flows = [stage.add(udp(1), PEER), stage.add(udp(2), PEER)]
        with pytest.raises(LimitExceeded) as refused:
            stage.add(udp(3), PEER)
        assert refused.value.win32 == 1450
        assert "max_flows" in refused.value.hint
        stage.remove(flows[0])
        assert stage.add(udp(3), PEER) == flow_id(1, 2)

    def test_members_are_limited_per_flow(self) -> None:
        stage = Stage(limits=Limits(members_per_flow=2))
        flow = stage.add(udp(1), PEER)
        stage.add(udp(1), OTHER_PEER, flow=flow)
        with pytest.raises(LimitExceeded) as refused:
            stage.add(udp(2), PEER, flow=flow)
        assert "members_per_flow" in refused.value.hint
        assert stage.add(udp(1), PEER, flow=flow) == flow
        assert stage.bound() == {1: {PEER: flow, OTHER_PEER: flow}}

    def test_the_defaults_are_those_of_the_documentation(self) -> None:
        assert Limits() == Limits(16_384, 65_536, 1_024, 4_096, 10.0, 1_024, 1_024)


class TestPrograms:
    def test_a_program_is_adopted_and_released_with_its_flow(self) -> None:
        stage = Stage()
        flow = stage.service.add_program(stage.handle, TrafficType.BACKGROUND)
        assert stage.fake.policies[flow] == FlowPolicy(flow, Dscp(8))
        assert stage.fake.programs == {flow: ALICE}
        assert stage.service.details(stage.handle, flow).whole_program
        stage.service.set_rate(stage.handle, flow, 20_000_000, 1, 0)
        stage.service.close_handle(stage.handle)
        assert (stage.fake.programs, stage.fake.policies) == ({}, {})

    def test_its_flow_outlives_sockets_added_by_hand(self) -> None:
        stage = Stage()
        flow = stage.service.add_program(stage.handle, TrafficType.BACKGROUND)
        stage.add(udp(1, netns=ELSEWHERE), PEER, flow=flow)
        stage.remove(flow, udp(1))
        assert stage.fake.policies == {flow: FlowPolicy(flow, Dscp(8))}
        assert stage.bound() == {}

    def test_an_unknown_type_is_refused(self) -> None:
        stage = Stage()
        with pytest.raises(InvalidRequest):
            stage.service.add_program(stage.handle, 9)


class TestOrphans:
    def test_flows_of_a_killed_daemon_end_after_their_grace(self) -> None:
        orphans = {1: flow_id(1, 7), 4: flow_id(4, 4095)}
        fake = FakeDatapath(4, occupied=orphans)
        stage = Stage(fake, Limits(orphan_grace_s=10.0))
        assert stage.service.orphans == 2
        stage.now_s += 9.99
        stage.service.tick()
        assert fake.occupied_slots() == orphans
        stage.now_s += 0.01
        stage.service.tick()
        assert (fake.occupied_slots(), stage.service.orphans) == ({}, 0)

    def test_their_slots_are_not_given_out_before_and_get_the_next_generation_then(self) -> None:
        fake = FakeDatapath(2, occupied={1: flow_id(1, 7)})
        stage = Stage(fake)
        assert stage.add(udp(1), PEER) == flow_id(2, 1)
        with pytest.raises(LimitExceeded):
            stage.add(udp(2), PEER)
        stage.now_s += 60
        stage.service.tick()
        assert stage.add(udp(2), PEER) == flow_id(1, 8)

    def test_nobody_owns_them(self) -> None:
        stage = Stage(FakeDatapath(2, occupied={1: flow_id(1, 7)}))
        root = stage.service.open_handle(ROOT)
        assert stage.service.enumerate(root) == []
        with pytest.raises(NoSuchFlow):
            stage.service.priority(root, flow_id(1, 7))

    def test_a_free_slot_goes_on_from_the_generation_it_had(self) -> None:
        stage = Stage(FakeDatapath(1, generations={1: 41}))
        assert stage.add(udp(1), PEER) == flow_id(1, 42)


def test_ids_come_back_late() -> None:
    stage = Stage(FakeDatapath(8))
    ids = set()
    for _ in range(100):
        flow = stage.add(udp(1), Destination.parse("192.0.2.7", 9))
        assert flow not in ids
        ids.add(flow)
        stage.remove(flow)
