"""What Prometheus is told: numbers in, the exposition format out.

The daemon fills a Snapshot once a second, `render` turns it into bytes, exporter.py serves the bytes that were
rendered last: a scrape costs nothing, however many come. Metrics are named by the rules of
prometheus.io/docs/practices/naming: base units, `_total` on counters, and no label whose values grow with use: no flow
ids, addresses, pids or users; of units and devices the busiest, all others as "other". So there are at most 400 series
(a test counts them). Single flows are told by topflows.py alone, where an operator asks for it.
"""

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from qos2.metrics import datapath, devices, flows, paths, service
from qos2.metrics.meters import LATENCY_BOUNDS as LATENCY_BOUNDS
from qos2.metrics.meters import NOTIFICATION_BOUNDS as NOTIFICATION_BOUNDS
from qos2.metrics.meters import LagMeter as LagMeter
from qos2.metrics.meters import NotificationMeter as NotificationMeter
from qos2.metrics.meters import RequestMeter as RequestMeter
from qos2.metrics.ranking import MAX_DEVICES as MAX_DEVICES
from qos2.metrics.ranking import DeviceRanking as DeviceRanking
from qos2.metrics.snapshot import PathsSnapshot as PathsSnapshot
from qos2.metrics.snapshot import ReloadStatus as ReloadStatus
from qos2.metrics.snapshot import Snapshot as Snapshot
from qos2.metrics.topflows import BusyFlow as BusyFlow
from qos2.metrics.topflows import render_top as render_top


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
        yield from service.collect(snapshot)
        yield from flows.collect(snapshot)
        if snapshot.paths is not None:
            yield from paths.collect(snapshot.paths)
        yield from datapath.collect(snapshot)
        yield from devices.collect(snapshot)
