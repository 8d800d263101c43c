"""What the daemon knows at one moment, for `render`. All counters are since its start and never go back."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from qos2.core.usage import Contracts
from qos2.metrics.meters import LagMeter, NotificationMeter, RequestMeter
from qos2.metrics.ranking import DeviceRanking
from qos2.model import Cause, DatapathStatus, FlowState, FlowStats, Quality, TrafficType


@dataclass(slots=True, kw_only=True)
class ReloadStatus:
    """The configuration and policy in force, and what became of the last attempt to load another."""

    generation: int = 1  #: of what is in force: grows with each reload that succeeds
    succeeded: bool = True  #: the last attempt; if not, the older generation stays in force
    at_s: float = 0.0  #: when what is in force was loaded, seconds since 1970


@dataclass(slots=True, kw_only=True)
class PathsSnapshot:
    """What the daemon knows of paths and of congestion."""

    states: Mapping[tuple[FlowState, Cause | None], int] = field(default_factory=dict)  #: judged flows
    hosts: int = 0  #: in use
    reflectors: int = 0  #: hosts in use whose reflector answers
    estimates: Mapping[tuple[str, Quality], int] = field(default_factory=dict)  #: hosts, by quantity ...
    admissions: Mapping[str, int] = field(default_factory=dict)  #: by result
    probes: Mapping[str, int] = field(default_factory=dict)  #: the prober's counters
    failures: Mapping[str, int] = field(default_factory=dict)  #: the observatory's counters
    notifications: NotificationMeter | None = None


@dataclass(slots=True, kw_only=True)
class Snapshot:
    """The whole. What is None is not told at all: this daemon does not know it."""

    version: str
    datapath: DatapathStatus
    reload: ReloadStatus | None = None
    #: Live flows, by type; types left out have none. The same holds for the four below.
    flows: Mapping[TrafficType, int] = field(default_factory=dict)
    totals: Mapping[TrafficType, FlowStats] = field(default_factory=dict)  #: of live and ended flows
    begun: Mapping[TrafficType, int] = field(default_factory=dict)
    ended: Mapping[TrafficType, int] = field(default_factory=dict)
    contracts: Mapping[TrafficType, Contracts] | None = None
    #: Bytes by unit and type (core.usage.Usage.told), and how often one was left out.
    units: Mapping[tuple[str, TrafficType], int] | None = None
    units_truncated: int = 0
    handles: int = 0
    orphans: int = 0
    pending_requests: int = 0  #: that wait for a condition or a measurement
    refused_connections: Mapping[str, int] = field(default_factory=dict)  #: by reason
    requests: RequestMeter | None = None
    lag: LagMeter | None = None
    paths: PathsSnapshot | None = None
    #: While devices of a name were attached; both only for names that are attached now.
    device_sent_bytes: Mapping[str, int] = field(default_factory=dict)
    device_dropped_packets: Mapping[str, int] = field(default_factory=dict)
    #: Which devices are told by name; the daemon keeps one, so that this changes seldom.
    device_ranking: DeviceRanking = field(default_factory=DeviceRanking)
    #: Runs and seconds by program; without those that the kernel did not count (kernel.bpf_stats_enabled).
    program_runs: Mapping[str, tuple[int, float]] = field(default_factory=dict)
