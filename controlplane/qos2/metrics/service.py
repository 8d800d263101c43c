"""The daemon itself: version, configuration, clients and their requests, the event loop."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from qos2.metrics.meters import LagMeter, RequestMeter
from qos2.metrics.snapshot import ReloadStatus, Snapshot

#: Told from the start, so that the first one is a rise.
_NONE_REFUSED = dict.fromkeys(("connections", "connections_per_uid", "resources", "credentials", "not_reading"), 0)


def collect(snapshot: Snapshot) -> Iterator[Metric]:
    """All of it."""
    build = GaugeMetricFamily(
        "qos2_build_info",
        "Version of the daemon and release of the kernel it runs on; always 1.",
        labels=["version", "kernel"],
    )
    build.add_metric([snapshot.version, snapshot.datapath.kernel], 1)
    yield build
    if snapshot.reload is not None:
        yield from _reload(snapshot.reload)
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
    yield counters(
        "qos2_connections_refused",
        "Client connections that were closed by the daemon, by reason.",
        "reason",
        _NONE_REFUSED | dict(snapshot.refused_connections),
    )
    if snapshot.requests is not None:
        yield from _requests(snapshot.requests)
    if snapshot.lag is not None:
        yield _lag(snapshot.lag)


def counters(name: str, explanation: str, label: str, numbers: Mapping[str, int]) -> Metric:
    """A family of counters with one label."""
    family = CounterMetricFamily(name, explanation, labels=[label])
    for value, number in numbers.items():
        family.add_metric([value], number)
    return family


def _reload(reload: ReloadStatus) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "qos2_config_generation",
        "Which configuration and policy is in force: grows with each reload that succeeds.",
        reload.generation,
    )
    yield GaugeMetricFamily(
        "qos2_config_last_reload_success",
        "Whether the last attempt to load configuration and policy succeeded; 0: the older one stays in force.",
        int(reload.succeeded),
    )
    yield GaugeMetricFamily(
        "qos2_config_last_reload_timestamp_seconds",
        "When what is in force was loaded, in seconds since 1970; the start counts as a reload.",
        reload.at_s,
    )


def _requests(meter: RequestMeter) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "qos2_requests", "Requests of clients, by operation and result, `ok` or `error`.", labels=["op", "result"]
    )
    for (op, result), number in meter.requests.items():
        requests.add_metric([op, result], number)
    yield requests
    yield counters(
        "qos2_request_errors",
        "Requests that were answered with an error, by its code; internal is a bug of the daemon.",
        "code",
        meter.errors,
    )
    duration = HistogramMetricFamily(
        "qos2_request_duration_seconds",
        "Time from reading a request to its reply. waiting: notify and fundamentals, which may wait for the network; "
        "answered: all others.",
        labels=["kind"],
    )
    for kind, latency in meter.latency.items():
        duration.add_metric([kind], latency.buckets(), latency.seconds)
    yield duration


def _lag(meter: LagMeter) -> Metric:
    return HistogramMetricFamily(
        "qos2_event_loop_lag_seconds",
        "How much later than due the daemon's event loop came to its periodic duties: so long anybody may wait.",
        meter.latency.buckets(),
        meter.latency.seconds,
    )
