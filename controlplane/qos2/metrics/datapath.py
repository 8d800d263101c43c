"""The kernel's side: maps, programs, what they met, and what the kernel can do."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qos2.metrics.service import counters
from qos2.metrics.snapshot import Snapshot


def collect(snapshot: Snapshot) -> Iterator[Metric]:
    """All of it."""
    status = snapshot.datapath
    entries = GaugeMetricFamily("qos2_map_entries", "Entries in use of a BPF map.", labels=["map"])
    size = GaugeMetricFamily("qos2_map_size", "Entries that a BPF map can hold.", labels=["map"])
    for name, (used, capacity) in status.map_entries.items():
        entries.add_metric([name], used)
        size.add_metric([name], capacity)
    yield entries
    yield size
    yield counters(
        "qos2_datapath_errors",
        "Packets or sockets that the datapath did not treat in the usual way, by what happened.",
        "name",
        status.counters,
    )
    yield counters(
        "qos2_datapath_events", "Events that the datapath reported to the daemon, by kind.", "kind", status.events
    )
    yield GaugeMetricFamily(
        "qos2_datapath_problems",
        "Things that are not as they should be now, as devices that cannot be attached; `qos2 status` tells them.",
        len(status.problems),
    )
    feature = GaugeMetricFamily(
        "qos2_kernel_feature", "Whether the kernel has a feature that the datapath can use.", labels=["feature"]
    )
    for name, present in status.features.items():
        feature.add_metric([name], int(present))
    yield feature
    if snapshot.program_runs:
        yield from _programs(snapshot.program_runs)


def _programs(runs: Mapping[str, tuple[int, float]]) -> Iterator[Metric]:
    number = CounterMetricFamily(
        "qos2_program_runs",
        "How often the kernel ran an eBPF program of the datapath, while kernel.bpf_stats_enabled was set.",
        labels=["program"],
    )
    time = CounterMetricFamily("qos2_program_run_seconds", "CPU time that these runs took.", labels=["program"])
    for program, (times, seconds) in runs.items():
        number.add_metric([program], times)
        time.add_metric([program], seconds)
    yield number
    yield time
