"""The busiest flows one by one, for /metrics/flows: opt-in, since each flow makes series of its own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from qos2.core.views import FlowView


@dataclass(frozen=True, slots=True)
class BusyFlow:
    """A flow, and what it has sent in the last second."""

    view: FlowView
    bytes_per_s: float


def render_top(flows: Iterable[BusyFlow]) -> bytes:
    """In Prometheus' text format: five series for each flow."""
    registry = CollectorRegistry()
    registry.register(_TopCollector(tuple(flows)))
    return generate_latest(registry)


class _TopCollector(Collector):
    def __init__(self, flows: tuple[BusyFlow, ...]) -> None:
        self._flows = flows

    def describe(self) -> Iterable[Metric]:
        return ()  # spares the registry a collection only to learn the names

    def collect(self) -> Iterator[Metric]:
        by_flow = ["flow"]
        info = GaugeMetricFamily(
            "qos2_top_flow_info",
            "One of the busiest flows: its owner, its first socket, and what is said of its way; always 1.",
            labels=["flow", "unit", "program", "traffic_type", "member", "state"],
        )
        rate = GaugeMetricFamily(
            "qos2_top_flow_bytes_per_second", "What it has sent in the last second, at IP level.", labels=by_flow
        )
        sent = CounterMetricFamily(
            "qos2_top_flow_bytes", "Bytes that it has sent since it began, at IP level.", labels=by_flow
        )
        dropped = CounterMetricFamily(
            "qos2_top_flow_dropped_packets", "Its packets that the datapath dropped.", labels=by_flow
        )
        contract = GaugeMetricFamily(
            "qos2_top_flow_contract_bytes_per_second", "Its rate contract, where it has one.", labels=by_flow
        )
        for each in self._flows:
            view, label = each.view, [f"{each.view.flow:#010x}"]
            member = view.members[0] if view.members else ""
            kind, state = view.traffic_type.label, view.judgement.state.value
            info.add_metric([*label, view.unit, view.program, kind, member, state], 1)
            rate.add_metric(label, each.bytes_per_s)
            sent.add_metric(label, view.stats.bytes)
            dropped.add_metric(label, sum(view.stats.dropped_packets.values()))
            if view.bandwidth:
                contract.add_metric(label, view.bandwidth / 8)
        yield from (info, rate, sent, dropped, contract)
