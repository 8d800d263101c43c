"""What the administrator can say: addresses as on Windows, and what nobody may do."""

from collections.abc import Callable
from contextlib import suppress

import pytest

from qos2.core.rules import Deniable, Rules
from qos2.core.service import Service
from qos2.errors import DeniedByPolicy, InvalidRequest, NoSuchFlow, NotAdaptive, NotPermitted, QosError
from qos2.model import Destination, SocketFacts
from unit.core_stage import FD, PEER, ROOT, Stage, tcp, udp, udp6

V4, V6, MAPPED, ANY4, ANY6 = "192.0.2.7", "2001:db8::7", "::ffff:192.0.2.7", "0.0.0.0", "::"

Call = Callable[[Service, int, int], object]


def add(stage: Stage, facts: SocketFacts, written: str | None, *, flow: int = 0) -> int:
    """As a session adds it."""
    destination = None if written is None else Destination.parse(written, 5004)
    return stage.service.add_socket(
        stage.handle,
        FD,
        facts,
        traffic_type=4,
        flow=flow,
        destination=destination,
        adaptive=False,
        written=written,
    )


class TestStrict:
    @pytest.mark.parametrize(
        ("facts", "written"),
        [
            (udp6(1), V4),
            (udp6(1), MAPPED),
            (udp6(1), ANY4),
            (udp(1), MAPPED),
            (udp(1), ANY6),
            (udp(1, peer=PEER, family=10), V4),
            (udp(1, peer=PEER, family=10), MAPPED),
            (udp(1, peer=PEER), MAPPED),
        ],
    )
    def test_another_family_is_refused_only_then(self, facts: SocketFacts, written: str) -> None:
        connected = facts.peer is not None
        stage = Stage(rules=Rules(strict=True))
        flow = add(stage, udp(9), V4)
        for each in (0, flow):
            with pytest.raises(InvalidRequest, match="is not of the socket's own address family") as refused:
                add(stage, facts, written, flow=each)
            assert refused.value.win32 == 87
        assert stage.service.flows == 1
        assert add(Stage(), facts, None if connected else written) > 0

    @pytest.mark.parametrize(
        ("facts", "written"),
        [
            (udp(1), V4),
            (udp(1), ANY4),
            (udp6(1), V6),
            (udp6(1), ANY6),
            (udp6(1, v6only=True), V6),
            (udp6(1), f"{V6}%eth0"),
            (udp(1, peer=PEER), V4),
            (udp(1, peer=PEER, family=10), None),
            (tcp(1, peer=PEER), None),
        ],
    )
    def test_the_sockets_own_family_is_taken(self, facts: SocketFacts, written: str | None) -> None:
        assert add(Stage(rules=Rules(strict=True)), facts, written) > 0

    @pytest.mark.parametrize(("facts", "written"), [(udp(1), V6), (udp6(1, v6only=True), V4)])
    def test_what_cannot_be_sent_is_refused_in_any_case(self, facts: SocketFacts, written: str) -> None:
        for strict in (True, False):
            with pytest.raises(InvalidRequest):
                add(Stage(rules=Rules(strict=strict)), facts, written)


DENIED: dict[str, tuple[Deniable, Call]] = {
    "add_socket": (
        Deniable.FLOWS,
        lambda service, handle, flow: service.add_socket(
            handle, FD, udp(99), traffic_type=0, flow=0, destination=PEER, adaptive=False
        ),
    ),
    "join": (
        Deniable.FLOWS,
        lambda service, handle, flow: service.add_socket(
            handle, FD, udp(99), traffic_type=0, flow=flow, destination=PEER, adaptive=False
        ),
    ),
    "add_program": (Deniable.FLOWS, lambda service, handle, flow: service.add_program(handle, 0)),
    "set_traffic_type": (
        Deniable.TRAFFIC_TYPE,
        lambda service, handle, flow: service.set_traffic_type(handle, flow, 1),
    ),
    "set_rate": (Deniable.RATE, lambda service, handle, flow: service.set_rate(handle, flow, 64_000, 1, 0)),
    "set_dscp": (Deniable.DSCP, lambda service, handle, flow: service.set_dscp(handle, flow, 46)),
    "fundamentals": (Deniable.ESTIMATES, lambda service, handle, flow: service.fundamentals(handle, flow)),
    "notify": (Deniable.ESTIMATES, lambda service, handle, flow: service.notify(handle, flow, 0)),
    "start_tracking": (Deniable.ESTIMATES, lambda service, handle, flow: service.start_tracking(handle, V4)),
    "stop_tracking": (Deniable.ESTIMATES, lambda service, handle, flow: service.stop_tracking(handle, V4)),
}
FREE: dict[str, Call] = {
    "priority": lambda service, handle, flow: service.priority(handle, flow),
    "rate": lambda service, handle, flow: service.rate(handle, flow),
    "stats": lambda service, handle, flow: service.stats(handle, flow),
    "list_flows": lambda service, handle, flow: service.list_flows(handle, 0, 10),
    "status": lambda service, handle, flow: service.status(handle),
    "remove_socket": lambda service, handle, flow: service.remove_socket(handle, flow, None, None),
    "close_handle": lambda service, handle, flow: service.close_handle(handle),
}


class TestDeny:
    @pytest.mark.parametrize("name", DENIED)
    def test_a_denied_call_fails_for_root_too_and_changes_nothing(self, name: str) -> None:
        word, call = DENIED[name]
        stage = Stage(rules=Rules(deny=frozenset({word})))
        # Made before the rule, so that there is a flow also where adding is denied.
        stage.service._rules = Rules()
        handle = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=handle)
        stage.service._rules = Rules(deny=frozenset({word}))
        before = (dict(stage.fake.policies), list(stage.fake.operations), list(stage.paths.operations))
        with pytest.raises(DeniedByPolicy, match=word.value) as refused:
            call(stage.service, handle, flow)
        assert refused.value.win32 == 1260
        assert (stage.fake.policies, stage.fake.operations, stage.paths.operations) == before

    @pytest.mark.parametrize("name", DENIED)
    def test_every_other_word_leaves_it_allowed(self, name: str) -> None:
        word, call = DENIED[name]
        stage = Stage()
        handle = stage.service.open_handle(ROOT)
        flow = stage.add(udp(1), PEER, handle=handle)
        stage.service._rules = Rules(deny=frozenset(Deniable) - {word})
        with suppress(NotAdaptive, NoSuchFlow):  # that far they come: nothing adaptive, nothing tracked is there
            call(stage.service, handle, flow)

    @pytest.mark.parametrize("name", FREE)
    def test_questions_and_ends_cannot_be_denied(self, name: str) -> None:
        stage = Stage()
        flow = stage.add(udp(1), PEER)
        stage.service._rules = Rules(deny=frozenset(Deniable))
        FREE[name](stage.service, stage.handle, flow)

    def test_it_comes_after_values_flow_and_rights_and_before_capability(self) -> None:
        stage = Stage(rules=Rules(deny=frozenset(Deniable) - {Deniable.FLOWS}))
        root = stage.service.open_handle(ROOT)
        mine, roots = stage.add(udp(1), PEER), stage.add(udp(2), PEER, handle=root, adaptive=True)
        asked: tuple[tuple[int, int, int], ...] = (
            (root, 12345, 64),
            (root, 12345, 46),
            (stage.handle, mine, 46),
            (root, roots, 46),
        )
        found = []
        for handle, flow, dscp in asked:
            with pytest.raises(QosError) as refused:
                stage.service.set_dscp(handle, flow, dscp)
            found.append(refused.value.win32)
        assert found == [87, 1168, 5, 1260]

    def test_nothing_denied_is_the_default(self) -> None:
        assert Rules() == Rules(strict=False, deny=frozenset())
        stage = Stage()
        with pytest.raises(NotPermitted) as refused:
            stage.service.set_dscp(stage.handle, stage.add(udp(1), PEER), 46)
        assert refused.value.win32 == 5
        with pytest.raises(NotAdaptive):
            stage.service.notify(stage.handle, stage.add(udp(2), PEER), 0)
