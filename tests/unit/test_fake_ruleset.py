"""The datapath in memory refuses what would be a mistake of the control plane in telling it of rules."""

from collections import deque
from collections.abc import Sequence

import pytest

from qos2.core.policy import Policy
from qos2.core.ports import POOL_CAPACITY, InstalledRule, WayOut
from qos2.core.rule import Bucket
from qos2.datapath.fake import FakeDatapath
from qos2.errors import DatapathError
from qos2.model import Bandwidth, FlowId, FlowPolicy, RemoteHost, flow_id
from unit.core_stage import HERE, PEER
from unit.policy_stage import CALLS, DENIED, MBIT, rule

OWN, FIRST, SECOND = (flow_id(slot, 1) for slot in (1, 2, 3))
EACH = rule("each", rate=Bandwidth(MBIT), bucket=Bucket.HOST)


def made(*flows: FlowId) -> FakeDatapath:
    fake = FakeDatapath(2048)
    for flow in flows:
        fake.put(FlowPolicy(flow, None), fresh=True)
    return fake


def test_a_ruleset_takes_the_place_of_the_one_before_and_a_pool_goes_on() -> None:
    fake = made(OWN, FIRST, SECOND)
    assert fake.install([InstalledRule(DENIED, None), InstalledRule(EACH, OWN, (FIRST, SECOND))]) == 1
    assert (fake.draw(OWN), dict(fake.drawn())) == (FIRST, {OWN: 1})
    assert fake.install([InstalledRule(EACH, OWN)]) == 2
    assert (fake.pools, dict(fake.drawn())) == ({OWN: deque([SECOND])}, {OWN: 1})
    assert [fake.draw(OWN), fake.draw(OWN)] == [SECOND, OWN]
    assert dict(fake.drawn()) == {OWN: 2}
    assert fake.install([]) == 3
    assert (fake.ruleset, fake.pools, dict(fake.drawn())) == ((), {}, {})


@pytest.mark.parametrize(
    "rules",
    [
        [InstalledRule(CALLS, SECOND)],  # never put
        [InstalledRule(EACH, OWN, (SECOND,))],
        [InstalledRule(CALLS, OWN, (FIRST,))],  # one contract for all has no pool
        [InstalledRule(DENIED, None, (FIRST,))],
    ],
)
def test_a_ruleset_that_cannot_be_is_refused_and_changes_nothing(rules: Sequence[InstalledRule]) -> None:
    fake = made(OWN, FIRST)
    before = [InstalledRule(CALLS, FIRST)]
    fake.install(before)
    with pytest.raises(DatapathError):
        fake.install(rules)
    assert (list(fake.ruleset), fake.ruleset_generation) == (before, 1)


def test_a_pool_that_goes_on_is_not_given_anew() -> None:
    fake = made(OWN, FIRST)
    fake.install([InstalledRule(EACH, OWN, (FIRST,))])
    with pytest.raises(DatapathError):
        fake.install([InstalledRule(EACH, OWN, (FIRST,))])


def test_a_refill_is_for_a_pool_of_flows_that_are_there_and_bounded() -> None:
    many = [flow_id(slot, 1) for slot in range(4, 4 + POOL_CAPACITY)]
    fake = made(OWN, FIRST, *many)
    with pytest.raises(DatapathError):
        fake.refill(OWN, [FIRST])
    fake.install([InstalledRule(EACH, OWN, (FIRST,))])
    for flows in ([SECOND], many):
        with pytest.raises(DatapathError):
            fake.refill(OWN, flows)
    fake.refill(OWN, many[:-1])
    assert len(fake.pools[OWN]) == POOL_CAPACITY


def test_whether_a_rule_has_a_pool_is_said_by_its_act() -> None:
    assert [InstalledRule(each, OWN).pooled for each in (EACH, CALLS, rule("marks", bucket=Bucket.SOCKET))] == [
        *(True, False, False)
    ]
    assert not InstalledRule(EACH, None).pooled


def test_names_and_ways_out_are_what_the_test_says() -> None:
    fake = FakeDatapath()
    assert PEER.address is not None
    host = RemoteHost(PEER.address, HERE)
    assert (fake.namespace_name(HERE), fake.way_out(host), fake.missing(CALLS)) == ("", WayOut("fake0", True), ())
    fake.namespace_names[HERE], fake.absent["calls"], fake.ways_out[host] = "host", ("device eth7",), WayOut(why="no")
    assert (fake.namespace_name(HERE), fake.way_out(host)) == ("host", WayOut(why="no"))
    assert fake.missing(Policy([CALLS]).rules[0]) == ("device eth7",)
