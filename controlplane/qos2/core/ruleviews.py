"""Rules, and what they say of a connection, as values for people: `qos2 policy list`, `test`, `explain`, `reload`."""

from dataclasses import dataclass

from qos2.core.policy import Connection, Reason
from qos2.core.ports import WayOut
from qos2.core.rule import Rule
from qos2.model import FlowId, FlowStats


@dataclass(frozen=True, slots=True)
class RuleView:
    """One rule in force. `flow` None: it denies or exempts. `stats` None: the caller may not know them."""

    rule: Rule
    flow: FlowId | None
    stats: FlowStats | None  #: of all sockets and hosts that no application has registered
    used: int  #: flows of its pool in use, one for each socket or host
    ready: int  #: flows of its pool that wait to be drawn
    applications: int  #: flows of applications that it applies to
    missing: tuple[str, ...]  #: what it names and this host has not


@dataclass(slots=True)
class Decision:
    """What the rules say of one connection. `reasons`: one for each rule, in order of decision."""

    connection: Connection
    rule: RuleView | None
    reasons: tuple[Reason, ...]
    way: WayOut
    flows: tuple[FlowId, ...] = ()  #: those of applications that its socket is in


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy that has come into force, as the daemon read it."""

    generation: int
    rules: int
    warnings: tuple[str, ...] = ()  #: what is probably not meant
