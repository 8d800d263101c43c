"""Tracked hosts: who uses them, and that each is measured from its first user to its last."""

import pytest

from qos2.core.rules import Limits
from qos2.core.tracking import LINGER_S
from qos2.errors import HostUnreachable, InvalidHandle, InvalidRequest, LimitExceeded, NoSuchFlow, NotSupported
from qos2.model import Peer, RemoteHost
from unit.core_stage import ALICE, ALICE_TOO, BOB, ELSEWHERE, HERE, PEER, Stage, at, udp

HOST = "192.0.2.7"
OTHER = "192.0.2.8"


def remote(address: str, netns: int = HERE) -> RemoteHost:
    host = at(address).address
    assert host is not None
    return RemoteHost(host, netns)


@pytest.fixture
def stage() -> Stage:
    return Stage()


class TestStart:
    def test_a_host_is_in_use_from_start_to_stop(self, stage: Stage) -> None:
        stage.service.start_tracking(stage.handle, HOST)
        assert stage.paths.begun == {remote(HOST)}
        stage.service.stop_tracking(stage.handle, HOST)
        assert stage.paths.operations == [f"begin {HOST}", f"end {HOST}"]

    def test_starting_again_by_the_same_handle_changes_nothing(self, stage: Stage) -> None:
        for _ in range(3):
            stage.service.start_tracking(stage.handle, HOST)
        stage.service.stop_tracking(stage.handle, HOST)
        assert stage.paths.operations == [f"begin {HOST}", f"end {HOST}"]

    def test_a_host_is_what_is_reached_from_the_namespace_of_the_caller(self, stage: Stage) -> None:
        there = stage.service.open_handle(Peer(pid=ALICE.pid, uid=ALICE.uid, netns_cookie=ELSEWHERE))
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.start_tracking(there, HOST)
        assert stage.paths.begun == {remote(HOST), remote(HOST, ELSEWHERE)}

    def test_a_mapped_address_is_the_host_itself(self, stage: Stage) -> None:
        stage.service.start_tracking(stage.handle, f"::ffff:{HOST}")
        stage.service.stop_tracking(stage.handle, HOST)
        assert stage.paths.begun == set()

    @pytest.mark.parametrize("address", ["", "example.org", "0.0.0.0", "::", "192.0.2.7:5004"])
    def test_what_is_no_host_is_refused(self, stage: Stage, address: str) -> None:
        for call in (stage.service.start_tracking, stage.service.stop_tracking):
            with pytest.raises(InvalidRequest):
                call(stage.handle, address)

    def test_a_host_off_the_link_is_not_supported_and_one_without_a_route_unreachable(self, stage: Stage) -> None:
        stage.paths.set_off_link(HOST)
        stage.paths.set_unreachable(OTHER)
        with pytest.raises(NotSupported) as refused:
            stage.service.start_tracking(stage.handle, HOST)
        assert refused.value.win32 == 50
        with pytest.raises(HostUnreachable) as unreachable:
            stage.service.start_tracking(stage.handle, OTHER)
        assert unreachable.value.win32 == 1232
        assert stage.paths.operations == []

    def test_hosts_are_limited_per_user_those_that_linger_included(self) -> None:
        stage = Stage(limits=Limits(tracked_per_uid=2))
        second = stage.service.open_handle(ALICE_TOO)
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.start_tracking(second, HOST)
        stage.service.close_handle(second)
        with pytest.raises(LimitExceeded) as refused:
            stage.service.start_tracking(stage.handle, OTHER)
        assert "tracked_per_uid" in refused.value.hint
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.start_tracking(stage.service.open_handle(BOB), OTHER)
        stage.now_s += LINGER_S
        stage.service.tick()
        stage.service.start_tracking(stage.handle, OTHER)


class TestStop:
    def test_what_the_process_does_not_track_is_not_found(self, stage: Stage) -> None:
        stage.service.start_tracking(stage.handle, HOST)
        for peer in (ALICE_TOO, BOB, Peer(pid=ALICE.pid, uid=BOB.uid, netns_cookie=HERE)):
            with pytest.raises(NoSuchFlow) as refused:
                stage.service.stop_tracking(stage.service.open_handle(peer), HOST)
            assert refused.value.win32 == 1168
        with pytest.raises(NoSuchFlow, match="is not tracked"):
            stage.service.stop_tracking(stage.handle, OTHER)
        stage.service.stop_tracking(stage.handle, HOST)
        with pytest.raises(NoSuchFlow):
            stage.service.stop_tracking(stage.handle, HOST)

    def test_any_handle_of_the_process_may_stop(self, stage: Stage) -> None:
        second = stage.service.open_handle(ALICE)
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.stop_tracking(second, HOST)
        assert stage.paths.begun == set()
        with pytest.raises(NoSuchFlow):
            stage.service.stop_tracking(stage.handle, HOST)

    def test_a_handle_stops_its_own_start_first(self, stage: Stage) -> None:
        second = stage.service.open_handle(ALICE)
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.start_tracking(second, HOST)
        stage.service.stop_tracking(second, HOST)
        assert stage.paths.begun == {remote(HOST)}
        stage.service.close_handle(second)
        stage.service.stop_tracking(stage.handle, HOST)
        assert stage.paths.begun == set()


class TestLingering:
    """What a process tracks is measured for as long as it has a handle, and may be stopped a while longer."""

    def test_a_host_is_measured_until_its_last_handle_has_closed(self, stage: Stage) -> None:
        second = stage.service.open_handle(ALICE)
        for handle in (stage.handle, second):
            stage.service.start_tracking(handle, HOST)
        stage.service.close_handle(stage.handle)
        assert stage.paths.begun == {remote(HOST)}
        stage.service.close_handle(second)
        assert stage.paths.operations == [f"begin {HOST}", f"end {HOST}"]

    def test_it_can_be_stopped_through_a_later_handle(self, stage: Stage) -> None:
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.close_handle(stage.handle)
        stage.now_s += LINGER_S - 0.01
        stage.service.tick()
        stage.service.stop_tracking(stage.service.open_handle(ALICE), HOST)
        assert stage.paths.operations == [f"begin {HOST}", f"end {HOST}"]
        stage.now_s += LINGER_S
        stage.service.tick()

    def test_after_its_time_it_is_not_tracked_any_more(self, stage: Stage) -> None:
        second = stage.service.open_handle(ALICE)
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.start_tracking(second, OTHER)
        stage.service.close_handle(stage.handle)
        stage.now_s += 10
        stage.service.close_handle(second)
        stage.now_s += LINGER_S - 10
        stage.service.tick()
        later = stage.service.open_handle(ALICE)
        with pytest.raises(NoSuchFlow):
            stage.service.stop_tracking(later, HOST)
        stage.service.stop_tracking(later, OTHER)

    def test_a_new_start_measures_again(self, stage: Stage) -> None:
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.close_handle(stage.handle)
        again = stage.service.open_handle(ALICE)
        stage.service.start_tracking(again, HOST)
        stage.now_s += 2 * LINGER_S
        stage.service.tick()
        assert stage.paths.operations == [f"begin {HOST}", f"end {HOST}", f"begin {HOST}"]
        stage.service.stop_tracking(again, HOST)
        assert stage.paths.begun == set()

    def test_a_host_that_lingers_counts_for_its_user(self) -> None:
        stage = Stage(limits=Limits(tracked_per_uid=1))
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.close_handle(stage.handle)
        again = stage.service.open_handle(ALICE)
        with pytest.raises(LimitExceeded):
            stage.service.start_tracking(again, OTHER)
        stage.now_s += LINGER_S
        stage.service.tick()
        stage.service.start_tracking(again, OTHER)

    def test_a_closed_handle_tracks_nothing_more(self, stage: Stage) -> None:
        stage.service.close_handle(stage.handle)
        with pytest.raises(InvalidHandle):
            stage.service.start_tracking(stage.handle, HOST)


class TestFlows:
    def test_an_adaptive_flow_uses_its_host_until_it_ends(self, stage: Stage) -> None:
        flow = stage.add(udp(1), PEER, adaptive=True)
        assert stage.paths.begun == {remote(HOST)}
        stage.remove(flow)
        assert stage.paths.operations == [f"begin {HOST}", f"end {HOST}"]

    def test_flows_and_processes_share_one_measurement(self, stage: Stage) -> None:
        stage.service.start_tracking(stage.handle, HOST)
        first, second = (stage.add(udp(n), PEER, adaptive=True) for n in (1, 2))
        stage.remove(first)
        stage.service.stop_tracking(stage.handle, HOST)
        assert stage.paths.operations == [f"begin {HOST}"]
        stage.remove(second)
        assert stage.paths.begun == set()

    def test_stopping_does_not_disturb_a_flow(self, stage: Stage) -> None:
        flow = stage.add(udp(1), PEER, adaptive=True)
        stage.service.notify(stage.handle, flow, 0, request=1)
        stage.service.start_tracking(stage.handle, HOST)
        stage.service.stop_tracking(stage.handle, HOST)
        assert (stage.service.pending, stage.paths.begun) == (1, {remote(HOST)})

    def test_a_non_adaptive_flow_uses_none(self, stage: Stage) -> None:
        stage.remove(stage.add(udp(1), PEER))
        assert stage.paths.operations == []
