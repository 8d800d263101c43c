"""What the tests of the policy share: rules in few words, and what the datapath in memory has of them."""

from typing import Any

from qos2.core.policy import Policy
from qos2.core.rule import Act, Match, PortRange, Rule
from qos2.datapath.fake import FakeDatapath
from qos2.model import Bandwidth, Dscp, FlowId, TrafficType

MBIT = 1_000_000


def rule(name: str, precedence: int = 127, *, match: Match = Match(), **act: Any) -> Rule:  # noqa: B008  immutable
    """A rule of file "10-site.toml"; `act` as in Act."""
    return Rule(name, match, Act(**act), precedence, "10-site.toml", 3)


def port(number: int) -> Match:
    """To this remote port."""
    return Match(remote_ports=(PortRange(number, number),))


CALLS = rule("calls", match=port(5004), traffic_type=TrafficType.VOICE)
AF31 = rule("af31", match=port(5004), dscp=Dscp(26))
CAPPED = rule("capped", match=port(5004), rate=Bandwidth(2 * MBIT), ceiling=True)
LIMITED = rule("limited", match=port(5004), rate=Bandwidth(2 * MBIT))
DENIED = rule("denied", match=port(5004), deny=True)
EXEMPT = rule("exempt", match=port(5004), exempt=True)


def policy(*rules: Rule) -> Policy:
    return Policy(rules)


def installed(fake: FakeDatapath) -> dict[str, FlowId | None]:
    """The own flow of each rule of the ruleset in force, in order of decision."""
    return {each.rule.name: each.flow for each in fake.ruleset}
