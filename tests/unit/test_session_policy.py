"""The policy over the protocol: pages that fit, rights, sockets that are passed, reloads; with a real client too."""

import asyncio
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network

import pytest

from qos2 import aio
from qos2.client import Handle
from qos2.core.rule import Match, PortRange, Rule
from qos2.core.ruleviews import Loaded
from qos2.errors import ConfigError, DeniedByPolicy, InvalidRequest, NotPermitted, NotSupported
from qos2.model import Bandwidth, Dscp, TrafficType
from qos2.wire import protocol
from qos2.wire.protocol import PolicyExplain, PolicyTest
from unit.policy_stage import AF31, CALLS, CAPPED, DENIED, MBIT, installed, policy, port, rule
from unit.server_stage import PEER, RawClient, Stage, add, refusal, staged, udp, unprivileged

#: Everything that a file may say, as long as it may be.
LONGEST = rule(
    "n" * 64,
    match=Match(
        units=tuple(f"{number}{'u' * 240}.service" for number in range(64)),
        cgroups=tuple(f"/{number}{'ü' * 4000}" for number in range(64)),
        users=tuple(range(4_000_000_000, 4_000_000_064)),
        executables=tuple(f"/{number}{chr(1) * 4000}" for number in range(64)),
        local=tuple(ip_network(f"2001:db8:ffff:ffff:ffff:ffff:ffff:{number:x}") for number in range(64)),
        remote=tuple(ip_network(f"2001:db8:ffff:ffff:ffff:ffff:fffe:{number:x}") for number in range(64)),
        local_ports=tuple(PortRange(number, 65535) for number in range(50000, 50064)),
        devices=tuple(f"{number:015}" for number in range(64)),
        namespaces=tuple(f"{number}{'n' * 250}" for number in range(64)),
        dscps=tuple(map(Dscp, range(64))),
    ),
    traffic_type=TrafficType.VOICE,
    rate=Bandwidth(MBIT),
    ceiling=True,
    priority=5,
)


def load(stage: Stage, *rules: Rule) -> None:
    stage.call(lambda: stage.service.load_policy(policy(*rules)))


@pytest.fixture
def loads() -> list[Loaded | Exception]:
    """What the next reloads come to."""
    return []


@pytest.fixture
def stage(loads: list[Loaded | Exception]) -> Iterator[Stage]:
    def reload() -> Loaded:
        outcome = loads.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    with staged(load_policy=reload) as made:
        yield made


@pytest.fixture
def client(stage: Stage) -> Iterator[RawClient]:
    with stage.connection() as connected:
        yield connected


def test_a_reload_answers_generation_rules_and_warnings(
    stage: Stage, client: RawClient, loads: list[Loaded | Exception]
) -> None:
    if os.geteuid() != 0:
        pytest.skip("reloading is root's to ask for")
    loads += [Loaded(3, 12, ("one",)), ConfigError("a.toml:3: act.dscp: 64 is outside 0..63", "check-config")]
    assert client.ask(op="reload") == {"result": "reloaded", "generation": 3, "rules": 12, "warnings": ["one"]}
    failed = client.ask(op="reload")
    assert (failed["code"], failed["message"]) == ("config_error", "a.toml:3: act.dscp: 64 is outside 0..63")


def test_a_reload_is_for_the_privileged(stage: Stage) -> None:
    with unprivileged(), stage.connection() as other:
        assert refusal(other.ask(op="reload")) == ("not_permitted", 5)


def test_a_daemon_without_a_policy_has_none_to_reload() -> None:
    if os.geteuid() != 0:
        pytest.skip("reloading is root's to ask for")
    with staged() as without, Handle(without.path) as qos, pytest.raises(NotSupported):
        qos.reload()


def test_rules_come_in_pages_that_fit(stage: Stage) -> None:
    rules = [replace(LONGEST, name=f"{number:04}{'n' * 60}") for number in range(3)]
    rules += [rule(f"r{number}", match=port(number + 1), dscp=Dscp(8)) for number in range(200)]
    load(stage, *rules)
    with Handle(stage.path) as qos:
        found = qos.policy()
    assert [each.name for each in found] == [each.name for each in stage.service.policy.rules]
    (longest,) = [each for each in found if each.name == rules[0].name]
    assert len(protocol.encode(protocol.PolicyRules(generation=1, rules=[longest]))) < protocol.MAX_MESSAGE_BYTES
    assert longest.match["user"] == [*(str(4_000_000_000 + number) for number in range(8)), "and 56 more"]
    assert longest.act == {
        **{"traffic_type": "voice", "rate": "1000000", "shaping": "shape_and_mark"},
        **{"priority": "5", "ceiling": "true"},
    }


def test_the_counters_of_rules_are_for_the_privileged(stage: Stage) -> None:
    load(stage, CALLS)
    with unprivileged(), Handle(stage.path) as qos:
        assert [each.stats for each in qos.policy()] == [None]
    if os.geteuid() == 0:
        with Handle(stage.path) as qos:
            (told,) = qos.policy()
            assert told.stats is not None
            assert told.stats["packets"] == 0


def test_a_described_connection_is_tested_with_all_reasons(stage: Stage) -> None:
    load(stage, *(replace(LONGEST, name=f"r{number:03}{'n' * 60}") for number in range(100)), AF31)
    with Handle(stage.path) as qos:
        decision = qos.policy_decision(PolicyTest(remote_port=5004, cgroup="/" + "c" * 4000))
    assert len(decision.reasons) == 101
    assert [each.verdict for each in decision.reasons].count("fails") == 100
    assert decision.reasons[-1] == protocol.RuleReason(rule="af31", verdict="matches", text="matches")
    assert decision.rule is not None
    assert (decision.rule.name, decision.rule.flow, decision.more) == ("af31", installed(stage.datapath)["af31"], False)
    assert decision.connection["remote_port"] == "5004"


@pytest.mark.parametrize("fields", [{"after": 5}, {"after": -1}, {"protocol": "sctp"}, {"local": "x"}, {"uid": -1}])
def test_a_description_that_cannot_be_is_refused(stage: Stage, client: RawClient, fields: dict[str, object]) -> None:
    load(stage, AF31)
    assert refusal(client.ask(op="policy_test", **fields)) == ("invalid_request", 87)


def test_a_passed_socket_is_explained_by_what_the_kernel_says(stage: Stage, client: RawClient) -> None:
    load(stage, CAPPED)
    with udp(PEER) as sock:
        told = client.ask(sock.fileno(), op="policy_explain")
        assert told["rule"]["name"] == "capped"
        assert told["connection"]["remote_port"] == "5004"
        assert told["connection"]["local_port"] == str(sock.getsockname()[1])
        assert told["connection"]["user"] == str(os.geteuid())
        assert told["flows"] == []
        flow = add(client, sock)["flow"]
        assert client.ask(sock.fileno(), op="policy_explain")["flows"] == [flow]
        assert client.ask(op="policy_explain", flow=flow)["flows"] == [flow]
        # One of the two, and what there is.
        assert refusal(client.ask(sock.fileno(), op="policy_explain", flow=flow)) == ("invalid_request", 87)
        assert refusal(client.ask(op="policy_explain")) == ("invalid_request", 87)
        assert refusal(client.ask(op="policy_explain", flow=1)) == ("no_such_flow", 1168)
        assert refusal(client.ask(sock.fileno(), op="policy_explain", pid=4_194_304)) == ("invalid_request", 87)


def test_of_another_users_process_only_the_privileged_may_ask(stage: Stage) -> None:
    if os.geteuid() != 0:
        pytest.skip("process 1 is our own")
    with udp(PEER) as sock:
        with unprivileged(), Handle(stage.path) as qos, pytest.raises(NotPermitted):
            qos.policy_decision(PolicyExplain(pid=1), sock)
        with Handle(stage.path) as qos:
            assert qos.policy_decision(PolicyExplain(pid=1), sock).connection["user"] == "0"


def test_a_denied_socket_is_refused_by_the_name_of_its_rule(stage: Stage) -> None:
    load(stage, DENIED)
    with Handle(stage.path) as qos, udp(PEER) as sock:
        with pytest.raises(DeniedByPolicy, match="the rule denied does not allow it"):
            qos.add_socket(sock, TrafficType.VOICE)
        with udp(("192.0.2.7", 80)) as other:
            assert qos.add_socket(other, TrafficType.VOICE).priority().conformant_dscp == 56


def test_a_flow_tells_its_rule_and_what_was_asked_for(stage: Stage) -> None:
    load(stage, CAPPED)
    with Handle(stage.path) as qos, udp(PEER) as sock:
        flow = qos.add_socket(sock, TrafficType.VOICE)
        flow.set_rate(8 * MBIT)
        rate = flow.rate()
        assert rate is not None
        details = qos.flow_details(flow.id)
        assert (rate.bandwidth, details.rule, details.bandwidth) == (2 * MBIT, "capped", 2 * MBIT)
        assert (details.asked_bandwidth, details.asked_dscp, details.denied) == (8 * MBIT, 56, False)


def test_a_task_asks_the_same(stage: Stage, loads: list[Loaded | Exception]) -> None:
    if os.geteuid() != 0:
        pytest.skip("reloading is root's to ask for")
    loads.append(NotSupported("not here"))
    load(stage, *(rule(f"r{number}", match=port(number + 1), dscp=Dscp(8)) for number in range(200)))

    async def ask(sock: socket.socket) -> None:
        async with aio.Handle(stage.path) as qos:
            assert len(await qos.policy()) == 200
            decision = await qos.policy_decision(PolicyExplain(), sock)
            assert decision.rule is not None
            assert (decision.rule.name, len(decision.reasons)) == ("r99", 200)
            with pytest.raises(InvalidRequest):
                await qos.policy_decision(PolicyTest(protocol="sctp"))
            with pytest.raises(NotSupported):
                await qos.reload()

    with udp(("192.0.2.7", 100)) as sock:
        asyncio.run(ask(sock))


def test_a_socket_that_no_flow_can_have_is_refused(stage: Stage, client: RawClient) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        assert refusal(client.ask(sock.fileno(), op="policy_explain")) == ("invalid_request", 87)
