"""What replies of the daemon can say: the results of wire/protocol.py, and their parts."""

from typing import Any

import msgspec

from qos2.model import Cause, DeviceStatus, FlowFundamentals, FlowState, Method, Statement


class Result(msgspec.Struct, kw_only=True, tag_field="result"):
    """What a successful reply has."""

    id: int = 0


class Done(Result, tag="done"):
    """Nothing to tell."""


class Opened(Result, tag="opened"):
    """The daemon's version, and whether this caller is privileged."""

    server: str
    privileged: bool


class Added(Result, tag="added"):
    flow: int


class Priority(Result, tag="priority"):
    conformant_dscp: int
    non_conformant_dscp: int
    conformant_l2: int
    non_conformant_l2: int


class Rate(Result, tag="rate"):
    """Bandwidth 0: no contract."""

    bandwidth: int
    shaping: int
    reason: int


class Fundamentals(Result, tag="fundamentals"):
    """Estimates of the path, None where not known: bandwidths in bits/s, round trip time in microseconds.

    `statements` says of "bottleneck", "available" and "rtt" how each is known, lower bounds included.
    """

    bottleneck: int | None = None
    available: int | None = None
    rtt_us: int | None = None
    statements: dict[str, Statement] = {}


class StateChange(msgspec.Struct, kw_only=True, frozen=True):
    """A state that a flow came into, so many seconds ago, and the numbers that it rests on (docs/protocol.md)."""

    state: FlowState
    cause: Cause | None = None
    ago_s: float
    evidence: dict[str, float] = {}


class Explanation(Result, tag="explanation"):
    """`changes`: newest first, the present state among them. `source` None: nobody tells of this flow.

    `signals` are the latest numbers, by the names of the evidence; `estimates` are those of an adaptive flow's path.
    `device` is that by which its packets leave this host, where it is known.
    """

    changes: list[StateChange]
    source: Method | None = None
    signals: dict[str, float] = {}
    estimates: FlowFundamentals | None = None
    device: DeviceStatus | None = None

    @property
    def state(self) -> FlowState:
        """The present one."""
        return self.changes[0].state

    @property
    def cause(self) -> Cause | None:
        return self.changes[0].cause

    @property
    def for_s(self) -> float:
        """Seconds for which it has been so."""
        return self.changes[0].ago_s

    @property
    def evidence(self) -> dict[str, float]:
        return self.changes[0].evidence


class Stats(Result, tag="stats"):
    """model.FlowStats."""

    stats: dict[str, Any]


class FlowIds(Result, tag="flow_ids"):
    """One page; with `more`, ask again `after` as many as are had by now."""

    flows: list[int]
    more: bool = False


class FlowDetails(msgspec.Struct, kw_only=True, frozen=True):
    """Everything about one flow. `dscp` None: left as the application sets it; `bandwidth` 0: no rate.

    Long lists end in an entry "and N more". `stats` is model.FlowStats. `state` has lasted for `state_s` seconds, and
    rests on `evidence`. `rule` of the policy applies to it: its owner asked for what is in `asked_...`, all else is in
    force. `denied`: the rule denies it, so that it does nothing.
    """

    flow: int
    traffic_type: int
    adaptive: bool
    dscp: int | None
    dscp_override: bool
    non_conformant_dscp: int
    bandwidth: int
    shaping: int | None
    pid: int
    uid: int
    program: str
    age_s: float
    members: list[str]
    whole_program: bool
    shapers: dict[str, str]
    stats: dict[str, Any]
    unit: str = ""
    state: FlowState = FlowState.UNKNOWN
    cause: Cause | None = None
    state_s: float = 0.0
    evidence: dict[str, float] = {}
    rule: str = ""
    denied: bool = False
    asked_dscp: int | None = None
    asked_bandwidth: int = 0


class Flows(Result, tag="flows"):
    """One page; with `more`, ask again `after` the last id of this one."""

    flows: list[FlowDetails]
    more: bool = False


class StatusReport(Result, tag="status"):
    """`datapath` is model.DatapathStatus as a mapping; with `more`, ask again `after` the devices had by now."""

    server: str
    uptime_s: float
    handles: int
    flows: int
    max_flows: int
    orphans: int
    datapath: dict[str, Any]
    more: bool = False


class RuleDetails(msgspec.Struct, kw_only=True, frozen=True):
    """One rule of the policy. `match` and `act` by the keys of its file, as text; long lists end in "and N more".

    `flow` None: it denies or exempts. `stats` (model.FlowStats) are of what no application has registered, None for who
    may not know them. Of its pool `used` flows are in use, one for each socket or host, `ready` ones wait. It applies
    to `applications` flows of applications. `missing` is what it names and the host has not at the moment.
    """

    name: str
    precedence: int
    file: str = ""
    line: int = 0
    match: dict[str, list[str]] = {}
    act: dict[str, str] = {}
    flow: int | None = None
    stats: dict[str, Any] | None = None
    used: int = 0
    ready: int = 0
    applications: int = 0
    missing: list[str] = []


class PolicyRules(Result, tag="policy_rules"):
    """One page in order of decision; with `more`, ask again `after` as many as are had by now."""

    generation: int
    rules: list[RuleDetails]
    more: bool = False


class RuleReason(msgspec.Struct, kw_only=True, frozen=True):
    """What becomes of one rule: `verdict` is "matches", "fails" or "shadowed", `condition` the key that fails."""

    rule: str
    verdict: str
    condition: str = ""
    text: str = ""


class PolicyDecision(Result, tag="policy_decision"):
    """What the policy says of a connection, of which `connection` tells what is known, by the keys of a match.

    `rule` is the one that it meets. `reasons` have each rule in order of decision; with `more`, ask again `after` as
    many as are had by now. `flows` are those of applications that its socket is in. `device` is that by which packets
    to the remote host leave, empty where that is not known; `attached`: they are seen there; else `why` says why not.
    """

    generation: int
    rule: RuleDetails | None = None
    reasons: list[RuleReason] = []
    more: bool = False
    connection: dict[str, str] = {}
    flows: list[int] = []
    device: str = ""
    attached: bool = False
    why: str = ""


class Reloaded(Result, tag="reloaded"):
    """The policy was read anew, has so many rules, and is in force. `warnings`: what is probably not meant."""

    generation: int
    rules: int
    warnings: list[str] = []
