"""What is known of paths through the network and of congestion, and how soon applications hear of it."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from qos2.metrics.service import counters
from qos2.metrics.snapshot import PathsSnapshot

# Told from the start, so that the first one is a rise.
_NO_ADMISSIONS = dict.fromkeys(("admitted", "network_busy", "retry"), 0)
_NO_RESULTS = dict.fromkeys(
    ("answered", "lost", "late", "unreadable", "clock_set", "odd_times", "refused", "failed", "untimed"), 0
)
_NO_FAILURES = dict.fromkeys(("hear", "judge", "follow", "look", "tcp", "plan", "expire", "unsent", "outdated"), 0)


def collect(paths: PathsSnapshot) -> Iterator[Metric]:
    """All of it."""
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
    yield counters(
        "qos2_admissions",
        "Rates that adaptive flows asked for beyond what they held: admitted, refused as network_busy, or put off "
        "(retry) while the path was being measured.",
        "result",
        _NO_ADMISSIONS | dict(paths.admissions),
    )
    yield from _probes(paths)
    if paths.notifications is not None:
        told = HistogramMetricFamily(
            "qos2_notification_seconds",
            "Time from reading the signals that fulfilled a condition to the reply to who waited for it.",
            labels=["condition"],
        )
        for condition, latency in paths.notifications.latency.items():
            told.add_metric([condition.name.lower()], latency.buckets(), latency.seconds)
        yield told


def _probes(paths: PathsSnapshot) -> Iterator[Metric]:
    probes = dict(paths.probes)
    yield CounterMetricFamily(
        "qos2_probe_bytes", "Bytes of probes sent to reflectors, at IP level.", probes.pop("sent_bytes", 0)
    )
    yield CounterMetricFamily("qos2_probe_packets", "Probes sent to reflectors.", probes.pop("sent_packets", 0))
    yield counters(
        "qos2_probe_results",
        "What became of probes: answered, lost; late, unreadable, clock_set, odd_times (replies); refused, failed, "
        "untimed (whole plans).",
        "result",
        _NO_RESULTS | probes,
    )
    yield counters(
        "qos2_observation_failures",
        "Parts of a look at flows and paths that failed, and plans of probes that came to nothing.",
        "part",
        _NO_FAILURES | dict(paths.failures),
    )
