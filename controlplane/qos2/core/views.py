"""Everything about one flow, and about the daemon, as values for people: `qos2 flows`, `qos2 status`."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice

from qos2.core.flows import Flow, FlowTable
from qos2.core.rule import NO_RATE
from qos2.model import (
    Bandwidth,
    DatapathStatus,
    Dscp,
    Explanation,
    FlowFundamentals,
    FlowId,
    FlowStats,
    Judgement,
    Shaping,
    TrafficType,
)

#: So many members are told one by one, so that the view of one flow fits a message.
MEMBERS_TOLD = 64


@dataclass(frozen=True, slots=True)
class FlowView:
    """One flow at one moment. `dscp` None: left as the application sets it; `bandwidth` 0: no rate.

    All is as it is in force; `asked_...` is what its owner asked for, where a `rule` (its name) grants something else.
    """

    flow: FlowId
    traffic_type: TrafficType
    adaptive: bool
    dscp: Dscp | None
    dscp_override: bool
    non_conformant_dscp: Dscp
    bandwidth: Bandwidth
    shaping: Shaping | None
    pid: int
    uid: int
    program: str
    age_s: float
    members: tuple[str, ...]  #: "udp 192.0.2.7:5004" each; of more than MEMBERS_TOLD the last says how many
    whole_program: bool
    shapers: Mapping[str, str]  #: device name -> how it holds the flow back
    stats: FlowStats
    judgement: Judgement  #: what is said of its way through the network
    judged_for_s: float  #: for how long
    unit: str = ""  #: of the owner, when it connected
    rule: str = ""  #: of the administrator's policy, that applies to it
    denied: bool = False  #: the rule denies it: it does nothing
    asked_dscp: Dscp | None = None
    asked_bandwidth: Bandwidth = NO_RATE


@dataclass(frozen=True, slots=True)
class Explained:
    """One flow, why it is said to be congested or not (None: it is not judged), and what is known of its path."""

    now_s: float  #: of the clock that judgements are dated by
    explanation: Explanation | None
    estimate: FlowFundamentals | None
    view: FlowView


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """The daemon at one moment. `orphans`: flows that the datapath serves for nobody, about to be ended."""

    server: str
    uptime_s: float
    handles: int
    flows: int
    max_flows: int
    orphans: int
    datapath: DatapathStatus


def members_of(flow: Flow, table: FlowTable) -> tuple[str, ...]:
    """The sockets of a flow and where they send, in the order of joining."""
    every = (
        f"{table.sockets[cookie].transport} {destination}"
        for cookie, destinations in flow.members.items()
        for destination in destinations
    )
    told = tuple(islice(every, MEMBERS_TOLD))
    rest = flow.member_count - len(told)
    return (*told, f"and {rest} more") if rest else told


def view_of(
    flow: Flow, table: FlowTable, now_s: float, shapers: Mapping[str, str], stats: FlowStats, judgement: Judgement
) -> FlowView:
    treatment, asked, peer, policy = flow.granted, flow.treatment, flow.owner.peer, flow.policy
    return FlowView(
        flow=flow.id,
        traffic_type=treatment.traffic_type,
        adaptive=treatment.adaptive,
        dscp=policy.dscp,
        dscp_override=asked.marking and asked.override is not None and treatment.override == asked.override,
        non_conformant_dscp=policy.non_conformant_dscp,
        bandwidth=policy.bandwidth,
        shaping=None if treatment.rate is None else treatment.rate.shaping,
        pid=peer.pid,
        uid=peer.uid,
        program=peer.program,
        unit=peer.unit,
        age_s=now_s - flow.begun_s,
        members=members_of(flow, table),
        whole_program=flow.whole_program,
        shapers=shapers,
        stats=stats,
        judgement=judgement,
        judged_for_s=now_s - judgement.since_s,
        rule="" if flow.rule is None else flow.rule.name,
        denied=flow.rule is not None and flow.rule.act.deny,
        asked_dscp=asked.dscp,
        asked_bandwidth=asked.bandwidth,
    )
