"""Applications' requests under the administrator's policy: what is granted, refused, told, and judged anew."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from qos2.core.rule import Match
from qos2.errors import DeniedByPolicy, NetworkBusy, NotPermitted
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
from unit.core_stage import ALICE, ELSEWHERE, HERE, PEER, ROOT, Stage, at, tcp, udp
from unit.policy_stage import AF31, CALLS, CAPPED, DENIED, EXEMPT, LIMITED, MBIT, policy, port, rule

ELSE = at("192.0.2.7", 80)


def asked(stage: Stage, flow: int, bandwidth: int, shaping: Shaping = Shaping.SHAPE_AND_MARK) -> FlowRate | None:
    """The rate that is granted to who asks for this one."""
    stage.service.set_rate(stage.handle, flow, bandwidth, shaping, RateReason.NOT_APPLICABLE)
    return stage.service.rate(stage.handle, flow)


def conformant(stage: Stage, flow: int) -> int:
    return stage.service.priority(stage.handle, flow).conformant_dscp


class TestDeny:
    def test_a_socket_that_a_rule_denies_is_refused_with_the_name_of_the_rule(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(DENIED))
        with pytest.raises(DeniedByPolicy, match="the rule denied does not allow it") as refused:
            stage.add(udp(1), PEER)
        assert refused.value.hint == "10-site.toml:3 says so; see `qos2 policy list`"
        assert (refused.value.win32, stage.fake.policies, stage.bound()) == (1260, {}, {})
        assert stage.dscp(stage.add(udp(1), ELSE)) == 56

    def test_each_socket_that_joins_is_checked_by_itself(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(DENIED))
        flow = stage.add(udp(1), ELSE)
        with pytest.raises(DeniedByPolicy):
            stage.add(udp(2), PEER, flow=flow)
        assert stage.add(udp(3), ELSE, flow=flow) == flow
        assert set(stage.bound()) == {1, 3}

    def test_a_program_is_refused_by_rules_about_its_owner_alone(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(DENIED))
        assert stage.service.add_program(stage.handle, TrafficType.VOICE) in stage.fake.programs
        stage.service.load_policy(policy(rule("no-voip", match=Match(users=(ALICE.uid,)), deny=True)))
        with pytest.raises(DeniedByPolicy, match="no-voip"):
            stage.service.add_program(stage.handle, TrafficType.VOICE)

    def test_a_flow_that_is_denied_later_does_nothing_until_it_is_allowed_again(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        asked(stage, flow, 8 * MBIT)
        before = stage.fake.policies[flow]
        stage.service.load_policy(policy(DENIED))
        assert stage.fake.policies[flow] == FlowPolicy(flow, None, netns_cookies=frozenset({HERE}))
        assert stage.service.rate(stage.handle, flow) is None
        assert stage.service.priority(stage.handle, flow) == PacketPriority(Dscp(0), Dscp(0))
        for request in (
            lambda: stage.service.set_rate(stage.handle, flow, MBIT, 1, 0),
            lambda: stage.service.set_traffic_type(stage.handle, flow, 1),
            lambda: stage.add(udp(2), ELSE, flow=flow),
        ):
            with pytest.raises(DeniedByPolicy):
                request()
        view = stage.service.details(stage.handle, flow)
        assert (view.rule, view.denied, view.asked_dscp, view.asked_bandwidth) == ("denied", True, 56, 8 * MBIT)
        stage.service.load_policy(policy())
        assert stage.fake.policies[flow] == before
        assert asked(stage, flow, MBIT) == FlowRate(Bandwidth(MBIT))


class TestMarks:
    def test_what_a_rule_marks_is_above_what_the_application_asks_for(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(AF31))
        root = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=root)
        requests: list[Callable[[], None]] = [
            lambda: None,
            lambda: stage.service.set_traffic_type(root, flow, TrafficType.BACKGROUND),
            lambda: stage.service.set_dscp(root, flow, 46),
            lambda: stage.service.set_rate(root, flow, 8 * MBIT, Shaping.SHAPE_ONLY, 0),
            lambda: stage.service.set_rate(root, flow, 0, 1, 0),
        ]
        for request in requests:
            request()
            assert (stage.dscp(flow), stage.service.priority(root, flow).conformant_dscp) == (26, 26)
        stage.service.load_policy(policy())
        assert stage.dscp(flow) is None  # the last rate of 0 took the application's own marks away

    def test_a_traffic_type_of_a_rule_is_what_the_flow_is_counted_as(self) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER, traffic_type=TrafficType.BACKGROUND)
        stage.fake.set_stats(flow, FlowStats(packets=10, bytes=1000))
        stage.service.load_policy(policy(CALLS))
        assert conformant(stage, flow) == 56
        assert stage.service.type_of_slot[flow & 0xFFFFF] == TrafficType.VOICE
        live = [FlowStats()] * 6
        live[TrafficType.VOICE] = FlowStats(packets=15, bytes=1500)
        totals = stage.service.totals(live)
        assert (totals[TrafficType.BACKGROUND].packets, totals[TrafficType.VOICE].packets) == (10, 5)
        # Its own flow is one of voice as well.
        assert stage.service.accounts.live[TrafficType.VOICE] == 2
        stage.service.set_traffic_type(stage.handle, flow, TrafficType.CONTROL)
        assert (conformant(stage, flow), stage.service.type_of_slot[flow & 0xFFFFF]) == (56, TrafficType.VOICE)

    def test_an_802_1p_priority_is_told_and_set(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(rule("tagged", priority=5)))
        flow = stage.add(udp(1), PEER)
        assert stage.fake.policies[flow].priority == 5
        assert stage.service.priority(stage.handle, flow) == PacketPriority(Dscp(56), Dscp(0), 5, 5)

    def test_exempt_leaves_the_application_its_own(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(EXEMPT, rule("all", dscp=Dscp(8))))
        assert (stage.dscp(stage.add(udp(1), PEER)), stage.dscp(stage.add(udp(2), ELSE))) == (56, 8)


class TestRates:
    def test_below_a_ceiling_the_application_has_what_it_asks_for_and_above_it_the_ceiling(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(CAPPED))
        flow = stage.add(udp(1), PEER)
        imposed = FlowRate(Bandwidth(2 * MBIT), Shaping.SHAPE_AND_MARK)
        assert stage.service.rate(stage.handle, flow) == imposed
        assert asked(stage, flow, MBIT, Shaping.SHAPE_ONLY) == FlowRate(Bandwidth(MBIT), Shaping.SHAPE_ONLY)
        assert asked(stage, flow, 5 * MBIT, Shaping.SHAPE_ONLY) == FlowRate(Bandwidth(2 * MBIT), Shaping.SHAPE_ONLY)
        assert (stage.fake.policies[flow].bandwidth, stage.fake.policies[flow].action) == (2 * MBIT, Action.DELAY)
        # Giving the contract back is no way around it, nor does it bring marks.
        assert asked(stage, flow, 0) == imposed
        assert stage.dscp(flow) is None
        view = stage.service.details(stage.handle, flow)
        assert (view.rule, view.bandwidth, view.asked_bandwidth, view.asked_dscp) == ("capped", 2 * MBIT, 0, None)

    def test_a_rate_without_ceiling_takes_the_place_of_the_applications(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(LIMITED))
        flow = stage.add(udp(1), PEER)
        assert asked(stage, flow, MBIT, Shaping.USE_NON_CONFORMANT_MARKINGS) == FlowRate(Bandwidth(2 * MBIT))
        assert (stage.dscp(flow), stage.fake.policies[flow].action) == (56, Action.DELAY)

    @pytest.mark.parametrize("kind", [None, TrafficType.BACKGROUND])
    def test_a_rule_that_only_shapes_leaves_the_applications_mark(self, kind: TrafficType | None) -> None:
        stage = Stage()
        uplink = rule("uplink", rate=Bandwidth(2 * MBIT), shaping=Shaping.SHAPE_ONLY, traffic_type=kind)
        stage.service.load_policy(policy(uplink))
        flow = stage.add(udp(1), PEER)
        assert (stage.dscp(flow), stage.fake.policies[flow].bandwidth) == (56, 2 * MBIT)
        own = stage.fake.ruleset[0].flow
        assert own is not None
        assert (stage.dscp(own), stage.fake.policies[own].bandwidth) == (None, 2 * MBIT)

    def test_of_an_adaptive_flow_what_is_granted_is_what_is_admitted_and_held(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(CAPPED))
        flow = stage.add(udp(1, peer=PEER), adaptive=True)
        assert (stage.dscp(flow), stage.fake.policies[flow].bandwidth) == (None, 2 * MBIT)
        stage.paths.set_admission("192.0.2.7", NetworkBusy("full"))
        # No more than it holds: nothing is to be admitted, and the marks begin.
        assert asked(stage, flow, 9 * MBIT) == FlowRate(Bandwidth(2 * MBIT))
        assert stage.dscp(flow) == 56
        stage.service.load_policy(policy())
        assert stage.service.rate(stage.handle, flow) == FlowRate(Bandwidth(9 * MBIT))
        stage.service.load_policy(policy(rule("wide", rate=Bandwidth(20 * MBIT), ceiling=True)))
        with pytest.raises(NetworkBusy):
            asked(stage, flow, 30 * MBIT)
        assert stage.service.rate(stage.handle, flow) == FlowRate(Bandwidth(9 * MBIT))


class TestFacts:
    """What a socket is matched by."""

    @pytest.mark.parametrize(
        ("match", "holds"),
        [
            (Match(users=(ALICE.uid,)), True),
            (Match(users=(0,)), False),
            (Match(units=("voip.service",)), True),
            (Match(units=("system.slice",)), True),
            (Match(cgroups=("/system.slice",)), True),
            (Match(cgroups=("/user.slice",)), False),
            (Match(executables=("/usr/bin/voip",)), True),
            (Match(namespaces=("host",)), True),
            (Match(namespaces=("blue",)), False),
            (port(5004), True),
            (port(80), False),
            # Not known of what an application passes.
            (Match(devices=("eth0",)), False),
            (Match(dscps=(Dscp(0),)), False),
        ],
    )
    def test_owner_ends_and_namespace_are_known(self, match: Match, holds: bool) -> None:
        stage = Stage()
        stage.fake.namespace_names = {HERE: "host", ELSEWHERE: "blue"}
        stage.service.load_policy(policy(rule("af31", match=match, dscp=Dscp(26))))
        peer = replace(ALICE, unit="voip.service", cgroup="/system.slice/voip.service", executable="/usr/bin/voip")
        handle = stage.service.open_handle(peer)
        assert stage.dscp(stage.add(udp(1), PEER, handle=handle)) == (26 if holds else 56)

    def test_the_destination_counts_where_a_socket_is_not_connected_and_the_peer_where_it_is(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(AF31))
        assert stage.dscp(stage.add(tcp(1, peer=PEER))) == 26
        assert stage.dscp(stage.add(tcp(2, peer=ELSE))) == 56
        assert stage.dscp(stage.add(udp(3), at("198.51.100.9"))) == 26

    def test_the_first_socket_decides_for_its_flow_and_goes_on_to_when_it_has_left(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(AF31))
        first, second = udp(1), udp(2)
        flow = stage.add(first, PEER)
        stage.add(second, ELSE, flow=flow)
        stage.remove(flow, first)
        stage.service.load_policy(policy(AF31, rule("other", match=port(80), dscp=Dscp(8))))
        assert stage.dscp(flow) == 26

    def test_a_namespace_that_gets_a_name_later_is_known_by_it(self) -> None:
        stage = Stage()
        stage.service.load_policy(policy(rule("blue", match=Match(namespaces=("blue",)), dscp=Dscp(26))))
        assert stage.dscp(stage.add(udp(1, netns=ELSEWHERE), PEER)) == 56
        stage.fake.namespace_names = {ELSEWHERE: "blue"}
        assert stage.dscp(stage.add(udp(2, netns=ELSEWHERE), PEER)) == 26


def test_who_may_not_reload_is_refused() -> None:
    stage = Stage()
    with pytest.raises(NotPermitted):
        stage.service.check_reload(stage.handle)
    stage.service.check_reload(stage.service.open_handle(ROOT))
