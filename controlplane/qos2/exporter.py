"""The Prometheus side: numbers in, the exposition format out, and a small HTTP server for it.

The daemon fills a Snapshot once a second, `render` turns it into bytes, `Exporter` serves the bytes
that were rendered last: a scrape costs nothing, however many come. Metrics are named by the rules of
prometheus.io/docs/practices/naming: base units, `_total` on counters, and no label whose values grow
with use (no flow ids, addresses, pids or users; those are for `qos2 flows`).
"""

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from qos2.model import DatapathStatus, DeviceStatus, FlowStats, TrafficType

log = logging.getLogger(__name__)

#: Upper bounds of the latency histogram's buckets, seconds.
LATENCY_BOUNDS = (50e-6, 100e-6, 250e-6, 1e-3, 5e-3, 25e-3, 0.1, 1.0)
#: The operation of a request that is none of the known ones, and the result of one outside the known codes.
INVALID = "invalid"
#: More devices than this are left out, those with the fewest shaped flows first, and counted as omitted.
MAX_DEVICES = 16


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
        yield from _datapath(snapshot.datapath)
        yield from _devices(snapshot.datapath.devices)


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
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, number in zip((*map(_bound, LATENCY_BOUNDS), "+Inf"), latency.counts, strict=True):
            below += number
            buckets.append((bound, below))
        duration.add_metric([op], buckets, latency.seconds)
    yield duration


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


def _devices(devices: tuple[DeviceStatus, ...]) -> Iterator[Metric]:
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
        "Attached devices that the two metrics above leave out, because there are too many.",
        len(devices) - len(told),
    )


def _counters(name: str, explanation: str, label: str, numbers: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, explanation, labels=[label])
    for value, number in numbers.items():
        family.add_metric([value], number)
    return family


class Exporter:
    """Serves the bytes published last at GET /metrics of `address`, on the running event loop."""

    MAX_CONNECTIONS = 32
    MAX_HEADER_BYTES = 8 * 1024

    def __init__(self, address: tuple[str, int], *, timeout_s: float = 5.0) -> None:
        self.address = address  #: once started, with the port that is really in use
        self._timeout_s = timeout_s
        self._body = b""
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def connections(self) -> int:
        """Connections being served now."""
        return len(self._connections)

    def publish(self, body: bytes) -> None:
        """Serve `body`, the result of `render`, from now on."""
        self._body = body

    async def start(self) -> None:
        """Listen. Raises OSError: address in use, or not of this machine."""
        host, port = self.address
        self._server = await asyncio.start_server(self._serve, host, port, limit=self.MAX_HEADER_BYTES)
        self.address = (host, self._server.sockets[0].getsockname()[1])

    async def close(self) -> None:
        """Stop listening and end what is being served."""
        if self._server is None:
            return
        self._server.close()
        connections = tuple(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # start_server runs this as a task
        if len(self._connections) >= self.MAX_CONNECTIONS:
            log.warning("more than %d connections for metrics: one refused", self.MAX_CONNECTIONS)
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            async with asyncio.timeout(self._timeout_s):
                writer.write(await self._answer(reader))
                await writer.drain()
                writer.write_eof()
                # Closing with bytes unread would reset the connection and lose the answer.
                while await reader.read(self.MAX_HEADER_BYTES):
                    pass
                writer.close()
                await writer.wait_closed()
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            log.debug("metrics connection ended: %r", error)
        finally:
            # Nothing left to send, or a peer that does not take it: either way, no waiting.
            writer.transport.abort()
            self._connections.discard(task)

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _response(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, b"request too long\n")
        words = head.partition(b"\r\n")[0].split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _response(HTTPStatus.BAD_REQUEST, b"not an HTTP/1 request\n")
        method, target, _ = words
        if target.partition(b"?")[0] != b"/metrics":
            return _response(HTTPStatus.NOT_FOUND, b"see /metrics\n")
        if method not in (b"GET", b"HEAD"):
            return _response(HTTPStatus.METHOD_NOT_ALLOWED, b"GET or HEAD\n", "Allow: GET, HEAD\r\n")
        if not self._body:
            return _response(HTTPStatus.SERVICE_UNAVAILABLE, b"starting\n")
        return _response(HTTPStatus.OK, self._body, kind=CONTENT_TYPE_LATEST, with_body=method == b"GET")


def _response(
    status: HTTPStatus,
    body: bytes,
    headers: str = "",
    *,
    kind: str = "text/plain; charset=utf-8",
    with_body: bool = True,
) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        f"{headers}Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + (body if with_body else b"")
