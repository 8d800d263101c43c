"""What the tests of the command line share: given answers of a daemon, and a stand-in for its client.

Not a test itself; no daemon and no socket is involved.
"""

import io
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from rich.console import Console

from qos2.errors import NoSuchFlow, QosError, ServiceLost
from qos2.model import (
    Bandwidth,
    Cause,
    DatapathStatus,
    DeviceStatus,
    FlowFundamentals,
    FlowState,
    FlowStats,
    Method,
    Quality,
    RateReason,
    Shaper,
    Shaping,
    Statement,
    TrafficType,
)
from qos2.wire.protocol import (
    Explanation,
    FlowDetails,
    PolicyDecision,
    PolicyExplain,
    PolicyTest,
    Reloaded,
    RuleDetails,
    StateChange,
    StatusReport,
)

STATS = FlowStats(
    packets=123_456,
    bytes=98_765_432,
    non_conformant_packets=12,
    non_conformant_bytes=12_000,
    delayed_packets=1_000,
    delay_ns=2_500_000_000,
    dropped_packets={"horizon": 2, "police": 0},
    dropped_bytes={"horizon": 3_000, "police": 0},
    srtt_us=1_500,
    min_rtt_us=900,
    retransmits=3,
    lost=1,
    delivered=100_000,
    delivered_ce=7,
)

#: What a judge found when it called a flow congested.
EVIDENCE = {
    "queue_delay_us": 84_200.0,
    "limit_queue_delay_us": 30_000.0,
    "loss": 0.0,
    "limit_loss": 0.01,
    "bad_windows": 3.0,
    "limit_bad_windows": 3.0,
}
#: What it has seen last.
SIGNALS = EVIDENCE | {
    "rtt_us": 112_000.0,
    "baseline_rtt_us": 20_300.0,
    "queue_delay_us": 91_700.0,
    "own_delay_us": 840.0,
}
UNKNOWN: dict[str, Any] = {"state": "unknown", "cause": None, "state_s": 75.0, "evidence": {}}


def details(flow: int = 0x00100001, **changed: Any) -> FlowDetails:
    values: dict[str, Any] = {
        "flow": flow,
        "traffic_type": 3,
        "adaptive": False,
        "dscp": 40,
        "dscp_override": False,
        "non_conformant_dscp": 0,
        "bandwidth": 8_000_000,
        "shaping": 1,
        "pid": 4321,
        "uid": 1000,
        "program": "videosender",
        "unit": "",
        "age_s": 75.0,
        "members": ["tcp 192.0.2.7:5004"],
        "whole_program": False,
        "shapers": {"eth0": "htb"},
        "stats": asdict(STATS),
        "state": "congested",
        "cause": "queue_delay",
        "state_s": 12.4,
        "evidence": EVIDENCE,
    }
    values |= changed
    values["state"] = FlowState(values["state"])
    values["cause"] = None if values["cause"] is None else Cause(values["cause"])
    return FlowDetails(**values)


VOICE = details(
    0xFFF00002,
    traffic_type=4,
    dscp=56,
    bandwidth=0,
    shaping=None,
    pid=1234567,
    program="baresip",
    members=["udp *:*"] * 64 + ["and 136 more"],
    shapers={},
    stats=asdict(FlowStats(packets=50, bytes=10_000)),
    **UNKNOWN,
)
BACKUP = details(
    0x00100003,
    traffic_type=1,
    dscp=8,
    shaping=2,
    bandwidth=400_000_000_000,
    program="rsync",
    whole_program=True,
    members=[],
    stats=asdict(FlowStats()),
    state="rate_limited",
    cause="contract",
    state_s=7_500.0,
    evidence={},
)


def change(state: str, cause: str | None, ago_s: float, evidence: dict[str, float] | None = None) -> StateChange:
    return StateChange(
        state=FlowState(state), cause=None if cause is None else Cause(cause), ago_s=ago_s, evidence=evidence or {}
    )


def explanation(**changed: Any) -> Explanation:
    """That of `details()` where nothing else is said."""
    values: dict[str, Any] = {
        "changes": [
            change("congested", "queue_delay", 12.4, EVIDENCE),
            change("uncongested", None, 74.2, {"queue_delay_us": 1_210.0, "limit_queue_delay_us": 30_000.0}),
            change("unknown", None, 75.0),
        ],
        "source": Method.TCP,
        "signals": dict(SIGNALS),
        "estimates": None,
    }
    values |= changed
    return Explanation(**(values | {"changes": list(values["changes"])}))


ESTIMATES = FlowFundamentals(
    bottleneck=Bandwidth(10_200_000),
    available=Bandwidth(2_100_000),
    rtt_us=112_000,
    statements={
        "bottleneck": Statement(10_200_000, Quality.MEASURED, Method.TRAIN, 1.26),
        "available": Statement(2_100_000, Quality.MEASURED, Method.TCP, 0.4),
        "rtt": Statement(112_000, Quality.MEASURED, Method.TCP, 0.1),
    },
)


def report(**changed: Any) -> StatusReport:
    datapath = DatapathStatus(
        kernel="6.18.0",
        devices=(
            DeviceStatus("eth0", 2, 1, "tcx", Shaper.HTB, "this kernel has no fq; its default qdisc was replaced", 3),
            DeviceStatus("wg0", 3, 1, "clsact", Shaper.POLICE, "the administrator's qdisc cake was left alone"),
        ),
        features={"tcx": True, "fq": False, "htb": True},
        counters={"stale_flow": 0, "fragment_miss": 17},
        events={"loss": 1},
        map_entries={"policy": (3, 65_536)},
        problems=("wg0: rates are policed: TCP will be uneven",),
    )
    values: dict[str, Any] = {
        "server": "0.1.0",
        "uptime_s": 11_520.0,
        "handles": 2,
        "flows": 3,
        "max_flows": 65_536,
        "orphans": 0,
        "datapath": json.loads(json.dumps(asdict(datapath))),
    }
    return StatusReport(**(values | changed))


def devices(*made: DeviceStatus) -> StatusReport:
    """A report with these."""
    told = report()
    return report(datapath=told.datapath | {"devices": json.loads(json.dumps([asdict(each) for each in made]))})


def eth0(load_bps: int | None, speed_bps: int | None = 1_000_000_000, **changed: Any) -> DeviceStatus:
    """A device that carries so much."""
    why = "the kernel's default qdisc was replaced"
    return DeviceStatus(
        "eth0", 2, 1, "tcx", Shaper.FQ, why, load_bps=load_bps, speed_bps=speed_bps, backlog_bytes=0, **changed
    )


@dataclass
class StandInFlow:
    """A program's flow that records what is asked of it."""

    id: int = 0x00100007
    rates: list[tuple[int, Shaping]] = field(default_factory=list)
    closed: bool = False
    lost: bool = False

    def set_rate(
        self,
        bandwidth: int,
        shaping: Shaping = Shaping.SHAPE_AND_MARK,
        reason: RateReason = RateReason.NOT_APPLICABLE,
    ) -> None:
        self.rates.append((bandwidth, shaping))

    def stats(self) -> FlowStats:
        if self.lost:
            raise ServiceLost("the daemon went away", "make a new handle")
        return STATS

    def close(self) -> None:
        self.closed = True


class StandIn:
    """A client with given answers; those of flows() in their order, the last one again and again.

    With `ends` the last one is followed by Ctrl-C. One flow is found where flows() would have it. Of `statuses` the
    last one is told again and again; `trouble` is raised instead of it while it is set.
    """

    def __init__(
        self,
        *flows: Sequence[FlowDetails],
        explanations: Mapping[int, Explanation] | None = None,
        ends: bool = False,
        statuses: Sequence[StatusReport] = (),
    ) -> None:
        self._statuses = list(statuses) or [report()]
        self._flows = list(flows) or [[details(), VOICE, BACKUP]]
        self._ends = ends
        self.explanations = dict(explanations or {})
        self.explained: list[int] = []
        self.paths: list[str | None] = []
        self.types: list[TrafficType] = []
        self.flow = StandInFlow()
        self.rules: Sequence[RuleDetails] = ()
        self.reloaded = Reloaded(generation=1, rules=0)
        self.decision = PolicyDecision(generation=1)
        self.questions: list[tuple[PolicyTest | PolicyExplain, socket.socket | None]] = []
        self.privileged = True
        self.trouble: QosError | None = None

    def connect(self, path: str | None) -> Self:
        self.paths.append(path)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def status(self) -> StatusReport:
        if self.trouble is not None:
            raise self.trouble
        return self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]

    def flows(self) -> Sequence[FlowDetails]:
        if self._ends and not self._flows:
            raise KeyboardInterrupt
        return self._flows.pop(0) if self._ends or len(self._flows) > 1 else self._flows[0]

    def flow_details(self, flow: int) -> FlowDetails:
        for each in self.flows():
            if each.flow == flow:
                return each
        raise NoSuchFlow(f"no flow {flow}", "see `qos2 flows`")

    def explain(self, flow: int) -> Explanation:
        self.explained.append(flow)
        return self.explanations[flow] if flow in self.explanations else explanation()

    def reload(self) -> Reloaded:
        return self.reloaded

    def policy(self) -> Sequence[RuleDetails]:
        return self.rules

    def policy_decision(
        self, question: PolicyTest | PolicyExplain, sock: socket.socket | None = None
    ) -> PolicyDecision:
        self.questions.append((question, sock))
        return self.decision

    def add_program(self, traffic_type: TrafficType) -> StandInFlow:
        self.types.append(traffic_type)
        return self.flow


def printed(renderable: Any, width: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False, emoji=False)
    console.print(renderable)
    return [line.rstrip() for line in out.getvalue().splitlines()]
