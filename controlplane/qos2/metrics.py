"""What Prometheus is told: numbers in, the exposition format out.

The daemon fills a Snapshot once a second, `render` turns it into bytes, exporter.py serves the bytes that were
rendered last: a scrape costs nothing, however many come. Metrics are named by the rules of
prometheus.io/docs/practices/naming: base units, `_total` on counters, and no label whose values grow
with use (no flow ids, addresses, pids or users; those are for `qos2 flows`).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from qos2.model import (
    Cause,
    Condition,
    DatapathStatus,
    DeviceStatus,
    FlowState,
    FlowStats,
    Quality,
    TrafficType,
)

#: Upper bounds of the buckets of notifications, seconds: a tenth is the time between two looks at the signals.
NOTIFICATION_BOUNDS = (1e-3, 5e-3, 25e-3, 0.1, 1.0)
#: Upper bounds of the latency histogram's buckets, seconds: usual, slow, felt by who asks, stuck (or waited). More
#: would make a series each for every operation.
LATENCY_BOUNDS = (50e-6, 250e-6, 5e-3, 1.0)
#: The operation of a request that is none of the known ones, and the result of one outside the known codes.
INVALID = "invalid"
#: More devices than this are left out, those with the fewest shaped flows first, and counted as omitted.
MAX_DEVICES = 8


@dataclass(slots=True)
class _Latency:
    counts: list[int] = field(default_factory=lambda: [0] * (len(LATENCY_BOUNDS) + 1))
    seconds: float = 0.0


class RequestMeter:
    """Counts requests by operation and result, and their latency by operation.

    `operations` and `results` are all values that the labels may take; anything else is counted as
    `invalid`, so that no client can make series.
    """

    def __init__(self, operations: Iterable[str], results: Iterable[str]) -> None:
        self._operations = frozenset(operations)
        self._results = frozenset(results)
        self.requests: dict[tuple[str, str], int] = {}
        self.latency: dict[str, _Latency] = {}

    def observe(self, op: str, result: str, seconds: float) -> None:
        """Count one request that was answered after `seconds`."""
        key = (op, result)
        count = self.requests.get(key)
        if count is None:
            op = op if op in self._operations else INVALID
            key = (op, result if result in self._results else INVALID)
            count = self.requests.get(key, 0)
            self.latency.setdefault(op, _Latency())
        self.requests[key] = count + 1
        latency = self.latency[op]
        latency.counts[bisect_left(LATENCY_BOUNDS, seconds)] += 1
        latency.seconds += seconds


class NotificationMeter:
    """How long it took from reading the signals that fulfilled a condition to the reply that tells so."""

    def __init__(self) -> None:
        self.latency = {condition: _Latency([0] * (len(NOTIFICATION_BOUNDS) + 1)) for condition in Condition}

    def observe(self, condition: Condition, seconds: float) -> None:
        """Count one notification."""
        latency = self.latency[condition]
        latency.counts[bisect_left(NOTIFICATION_BOUNDS, seconds)] += 1
        latency.seconds += seconds


@dataclass(slots=True, kw_only=True)
class PathsSnapshot:
    """What the daemon knows of paths and of congestion at one moment. Counters are since its start."""

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
    """What the daemon knows at one moment. All counters are since its start and never go back."""

    version: str
    datapath: DatapathStatus
    #: Live flows, by type; types left out have none. The same holds for the three below.
    flows: Mapping[TrafficType, int] = field(default_factory=dict)
    totals: Mapping[TrafficType, FlowStats] = field(default_factory=dict)  #: of live and ended flows
    begun: Mapping[TrafficType, int] = field(default_factory=dict)
    ended: Mapping[TrafficType, int] = field(default_factory=dict)
    handles: int = 0
    orphans: int = 0
    pending_requests: int = 0  #: that wait for a condition or a measurement
    refused_connections: Mapping[str, int] = field(default_factory=dict)  #: by reason
    requests: RequestMeter | None = None
    paths: PathsSnapshot | None = None
    #: While devices of a name were attached; both only for names that are attached now.
    device_sent_bytes: Mapping[str, int] = field(default_factory=dict)
    device_dropped_packets: Mapping[str, int] = field(default_factory=dict)


def render(snapshot: Snapshot) -> bytes:
    """The snapshot, and the figures of this process, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_SnapshotCollector(snapshot))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def describe(self) -> Iterable[Metric]:
        return ()  # spares the registry a collection only to learn the names

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        yield from _service(snapshot)
        yield from _flows(snapshot)
        if snapshot.requests is not None:
            yield from _requests(snapshot.requests)
        if snapshot.paths is not None:
            yield from _paths(snapshot.paths)
        yield from _datapath(snapshot.datapath)
        yield from _devices(snapshot)


def _service(snapshot: Snapshot) -> Iterator[Metric]:
    build = GaugeMetricFamily(
        "qos2_build_info",
        "Version of the daemon and release of the kernel it runs on; always 1.",
        labels=["version", "kernel"],
    )
    build.add_metric([snapshot.version, snapshot.datapath.kernel], 1)
    yield build
    yield GaugeMetricFamily("qos2_handles", "Open handles: connections that have asked for one.", snapshot.handles)
    yield GaugeMetricFamily(
        "qos2_orphan_flows",
        "Flows taken over from a daemon that was killed; they end after the configured grace time.",
        snapshot.orphans,
    )
    yield GaugeMetricFamily(
        "qos2_pending_requests",
        "Requests that wait now, for a condition of a flow or a new measurement of its path.",
        snapshot.pending_requests,
    )
    yield _counters(
        "qos2_connections_refused",
        "Client connections that were closed by the daemon, by reason.",
        "reason",
        snapshot.refused_connections,
    )


def _flows(snapshot: Snapshot) -> Iterator[Metric]:
    by_type = ["traffic_type"]
    live = GaugeMetricFamily("qos2_flows", "Flows that exist now.", labels=by_type)
    begun = CounterMetricFamily("qos2_flows_begun", "Flows that were begun.", labels=by_type)
    ended = CounterMetricFamily("qos2_flows_ended", "Flows that have ended.", labels=by_type)
    by_conformance = ["traffic_type", "conformant"]
    packets = CounterMetricFamily(
        "qos2_flow_packets",
        "Packets sent by flows, each segment of a large send counted; conformant=false: sent over the agreed rate, "
        "with the non-conformant DSCP.",
        labels=by_conformance,
    )
    volume = CounterMetricFamily(
        "qos2_flow_bytes", "Bytes sent by flows at IP level, headers included.", labels=by_conformance
    )
    delayed = CounterMetricFamily(
        "qos2_flow_delayed_packets", "Packets held back until they conformed to the rate.", labels=by_type
    )
    delay = CounterMetricFamily(
        "qos2_flow_delay_seconds", "Time for which packets were held back, summed over them.", labels=by_type
    )
    by_reason = ["traffic_type", "reason"]
    dropped = CounterMetricFamily(
        "qos2_flow_dropped_packets",
        "Packets of flows dropped by the datapath, by reason; not those lost in the network.",
        labels=by_reason,
    )
    dropped_volume = CounterMetricFamily(
        "qos2_flow_dropped_bytes", "Bytes at IP level of the packets dropped by the datapath.", labels=by_reason
    )
    for kind in TrafficType:
        label = kind.label
        stats = snapshot.totals.get(kind, FlowStats())
        live.add_metric([label], snapshot.flows.get(kind, 0))
        begun.add_metric([label], snapshot.begun.get(kind, 0))
        ended.add_metric([label], snapshot.ended.get(kind, 0))
        packets.add_metric([label, "true"], stats.conformant_packets)
        packets.add_metric([label, "false"], stats.non_conformant_packets)
        volume.add_metric([label, "true"], stats.conformant_bytes)
        volume.add_metric([label, "false"], stats.non_conformant_bytes)
        delayed.add_metric([label], stats.delayed_packets)
        delay.add_metric([label], stats.delay_ns / 1e9)
        for reason, number in stats.dropped_packets.items():
            dropped.add_metric([label, reason], number)
        for reason, number in stats.dropped_bytes.items():
            dropped_volume.add_metric([label, reason], number)
    yield from (live, begun, ended, packets, volume, delayed, delay, dropped, dropped_volume)


def _requests(meter: RequestMeter) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "qos2_requests", "Requests of clients, by operation and by `ok` or the error's code.", labels=["op", "result"]
    )
    for (op, result), number in meter.requests.items():
        requests.add_metric([op, result], number)
    yield requests
    duration = HistogramMetricFamily(
        "qos2_request_duration_seconds", "Time from reading a request to its reply.", labels=["op"]
    )
    for op, latency in meter.latency.items():
        duration.add_metric([op], _buckets(LATENCY_BOUNDS, latency), latency.seconds)
    yield duration


def _buckets(bounds: Sequence[float], latency: _Latency) -> list[tuple[str, float]]:
    """The cumulative buckets of a histogram."""
    return list(zip((*map(_bound, bounds), "+Inf"), accumulate(latency.counts), strict=True))


def _paths(paths: PathsSnapshot) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "qos2_flow_states",
        "Flows of one socket, by what is said of their way through the network and what that rests on. rate_limited: "
        "the network is free, the flow's own contract holds it back; unknown: nothing was heard of it lately.",
        labels=["state", "cause"],
    )
    for (state, cause), number in sorted(paths.states.items(), key=str):
        states.add_metric([state.value, "" if cause is None else cause.value], number)
    yield states
    yield GaugeMetricFamily("qos2_paths", "Remote hosts whose paths adaptive flows or trackers use now.", paths.hosts)
    yield GaugeMetricFamily("qos2_reflectors", "Of these, hosts with a reflector that answers.", paths.reflectors)
    estimates = GaugeMetricFamily(
        "qos2_path_estimates",
        "Hosts in use of which a quantity is known, by how well; a lower_bound is no measurement.",
        labels=["quantity", "quality"],
    )
    for (quantity, quality), number in sorted(paths.estimates.items()):
        estimates.add_metric([quantity, quality.value], number)
    yield estimates
    yield _counters(
        "qos2_admissions",
        "Rates that adaptive flows asked for beyond what they held: admitted, refused as network_busy, or put off "
        "(retry) while the path was being measured.",
        "result",
        paths.admissions,
    )
    probes = dict(paths.probes)
    yield CounterMetricFamily(
        "qos2_probe_bytes", "Bytes of probes sent to reflectors, at IP level.", probes.pop("sent_bytes", 0)
    )
    yield CounterMetricFamily("qos2_probe_packets", "Probes sent to reflectors.", probes.pop("sent_packets", 0))
    yield _counters(
        "qos2_probe_results",
        "What became of probes: answered, lost; late, unreadable, clock_set, odd_times (replies); refused, failed, "
        "untimed (whole plans).",
        "result",
        probes,
    )
    yield _counters(
        "qos2_observation_failures",
        "Parts of a look at flows and paths that failed, and plans of probes that came to nothing.",
        "part",
        paths.failures,
    )
    if paths.notifications is not None:
        told = HistogramMetricFamily(
            "qos2_notification_seconds",
            "Time from reading the signals that fulfilled a condition to the reply to who waited for it.",
            labels=["condition"],
        )
        for condition, latency in paths.notifications.latency.items():
            told.add_metric([condition.name.lower()], _buckets(NOTIFICATION_BOUNDS, latency), latency.seconds)
        yield told


def _bound(seconds: float) -> str:
    return f"{seconds:f}".rstrip("0").removesuffix(".") + (".0" if seconds.is_integer() else "")


def _datapath(status: DatapathStatus) -> Iterator[Metric]:
    entries = GaugeMetricFamily("qos2_map_entries", "Entries in use of a BPF map.", labels=["map"])
    size = GaugeMetricFamily("qos2_map_size", "Entries that a BPF map can hold.", labels=["map"])
    for name, (used, capacity) in status.map_entries.items():
        entries.add_metric([name], used)
        size.add_metric([name], capacity)
    yield entries
    yield size
    yield _counters(
        "qos2_datapath_errors",
        "Packets or sockets that the datapath did not treat in the usual way, by what happened.",
        "name",
        status.counters,
    )
    yield _counters(
        "qos2_datapath_events", "Events that the datapath reported to the daemon, by kind.", "kind", status.events
    )
    feature = GaugeMetricFamily(
        "qos2_kernel_feature", "Whether the kernel has a feature that the datapath can use.", labels=["feature"]
    )
    for name, present in status.features.items():
        feature.add_metric([name], int(present))
    yield feature


def _devices(snapshot: Snapshot) -> Iterator[Metric]:
    devices = snapshot.datapath.devices
    told = sorted(devices, key=lambda device: (-device.shaped_flows, device.name))[:MAX_DEVICES]
    info = GaugeMetricFamily(
        "qos2_device_info",
        "A network device that the datapath is attached to, by which hook, and how it holds packets back; always 1.",
        labels=["device", "hook", "shaper"],
    )
    # Namespaces may each have a device of the same name: one series for all of them.
    for name, hook, shaper in dict.fromkeys((device.name, device.hook, device.shaper.value) for device in told):
        info.add_metric([name, hook, shaper], 1)
    yield info
    shaped: dict[str, int] = {}
    for device in told:
        shaped[device.name] = shaped.get(device.name, 0) + device.shaped_flows
    flows = GaugeMetricFamily(
        "qos2_device_shaped_flows", "Flows that a device holds to their rate now.", labels=["device"]
    )
    for name, number in shaped.items():
        flows.add_metric([name], number)
    yield flows
    yield GaugeMetricFamily(
        "qos2_devices_omitted",
        "Attached devices that the other metrics of devices leave out, because there are too many.",
        len(devices) - len(told),
    )
    yield from _loads(told, snapshot)


def _loads(told: Sequence[DeviceStatus], snapshot: Snapshot) -> Iterator[Metric]:
    """What devices can carry, and do; those of one name are summed, as far as they are known."""
    by_device = ["device"]
    speed = GaugeMetricFamily(
        "qos2_device_speed_bytes",
        "Bytes per second that a device can send, where its driver states it.",
        labels=by_device,
    )
    backlog = GaugeMetricFamily(
        "qos2_device_backlog_bytes", "Bytes that wait in the root qdisc of a device.", labels=by_device
    )
    sent = CounterMetricFamily(
        "qos2_device_sent_bytes",
        "Bytes that a device has sent while attached, link headers included.",
        labels=by_device,
    )
    dropped = CounterMetricFamily(
        "qos2_device_dropped_packets",
        "Packets that the root qdisc of a device has dropped while attached, whoever sent them.",
        labels=by_device,
    )
    for name in dict.fromkeys(device.name for device in told):
        alike = [device for device in told if device.name == name]
        speeds = [device.speed_bps for device in alike if device.speed_bps is not None]
        backlogs = [device.backlog_bytes for device in alike if device.backlog_bytes is not None]
        if len(speeds) == len(alike):
            speed.add_metric([name], sum(speeds) / 8)
        if backlogs:
            backlog.add_metric([name], sum(backlogs))
        if name in snapshot.device_sent_bytes:
            sent.add_metric([name], snapshot.device_sent_bytes[name])
        if name in snapshot.device_dropped_packets:
            dropped.add_metric([name], snapshot.device_dropped_packets[name])
    yield from (speed, backlog, sent, dropped)


def _counters(name: str, explanation: str, label: str, numbers: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, explanation, labels=[label])
    for value, number in numbers.items():
        family.add_metric([value], number)
    return family
