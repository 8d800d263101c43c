"""What the tests of the command line share: given answers of a daemon, and a stand-in for its client.

Not a test itself; no daemon and no socket is involved.
"""

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

from rich.console import Console

from qos2.errors import NoSuchFlow, ServiceLost
from qos2.model import DatapathStatus, DeviceStatus, FlowStats, RateReason, Shaper, Shaping, TrafficType
from qos2.wire.protocol import FlowDetails, StatusReport

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
        "age_s": 75.0,
        "members": ["tcp 192.0.2.7:5004"],
        "whole_program": False,
        "shapers": {"eth0": "htb"},
        "stats": asdict(STATS),
    }
    return FlowDetails(**(values | changed))


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
    """A client with given answers; those of flows() in their order, the last one again and again."""

    def __init__(self, *flows: Sequence[FlowDetails]) -> None:
        self._flows = list(flows) or [[details(), VOICE, BACKUP]]
        self.paths: list[str | None] = []
        self.types: list[TrafficType] = []
        self.flow = StandInFlow()

    def connect(self, path: str | None) -> Self:
        self.paths.append(path)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def status(self) -> StatusReport:
        return report()

    def flows(self) -> Sequence[FlowDetails]:
        return self._flows.pop(0) if len(self._flows) > 1 else self._flows[0]

    def flow_details(self, flow: int) -> FlowDetails:
        if flow != 0x00100001:
            raise NoSuchFlow(f"no flow {flow}", "see `qos2 flows`")
        return details()

    def add_program(self, traffic_type: TrafficType) -> StandInFlow:
        self.types.append(traffic_type)
        return self.flow


def printed(renderable: Any, width: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False, emoji=False)
    console.print(renderable)
    return [line.rstrip() for line in out.getvalue().splitlines()]
