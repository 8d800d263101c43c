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
    rests on `evidence`.
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
    state: FlowState = FlowState.UNKNOWN
    cause: Cause | None = None
    state_s: float = 0.0
    evidence: dict[str, float] = {}


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
