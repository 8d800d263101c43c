"""Flows by traffic type, their contracts beside what was achieved, and which units send."""

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qos2.core.usage import Contracts
from qos2.metrics.snapshot import Snapshot
from qos2.model import FlowStats, TrafficType

_BY_TYPE = ["traffic_type"]
#: What a device's queue drops is known of a flow when it ends: told from the start, so that this is a rise.
_NONE_DROPPED = {"queue": 0}


def collect(snapshot: Snapshot) -> Iterator[Metric]:
    """All of it."""
    yield from _numbers(snapshot)
    yield from _traffic(snapshot.totals)
    if snapshot.contracts is not None:
        yield from _contracts(snapshot.contracts)
    if snapshot.units is not None:
        yield _units(snapshot.units)


def _numbers(snapshot: Snapshot) -> Iterator[Metric]:
    live = GaugeMetricFamily("qos2_flows", "Flows that exist now.", labels=_BY_TYPE)
    begun = CounterMetricFamily("qos2_flows_begun", "Flows that were begun.", labels=_BY_TYPE)
    ended = CounterMetricFamily("qos2_flows_ended", "Flows that have ended.", labels=_BY_TYPE)
    for kind in TrafficType:
        live.add_metric([kind.label], snapshot.flows.get(kind, 0))
        begun.add_metric([kind.label], snapshot.begun.get(kind, 0))
        ended.add_metric([kind.label], snapshot.ended.get(kind, 0))
    yield from (live, begun, ended)


def _traffic(totals: Mapping[TrafficType, FlowStats]) -> Iterator[Metric]:
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
        "qos2_flow_delayed_packets", "Packets held back until they conformed to the rate.", labels=_BY_TYPE
    )
    delay = CounterMetricFamily(
        "qos2_flow_delay_seconds", "Time for which packets were held back, summed over them.", labels=_BY_TYPE
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
        stats = totals.get(kind, FlowStats())
        packets.add_metric([label, "true"], stats.conformant_packets)
        packets.add_metric([label, "false"], stats.non_conformant_packets)
        volume.add_metric([label, "true"], stats.conformant_bytes)
        volume.add_metric([label, "false"], stats.non_conformant_bytes)
        delayed.add_metric([label], stats.delayed_packets)
        delay.add_metric([label], stats.delay_ns / 1e9)
        for reason, number in (_NONE_DROPPED | dict(stats.dropped_packets)).items():
            dropped.add_metric([label, reason], number)
        for reason, number in stats.dropped_bytes.items():
            dropped_volume.add_metric([label, reason], number)
    yield from (packets, volume, delayed, delay, dropped, dropped_volume)


def _contracts(contracts: Mapping[TrafficType, Contracts]) -> Iterator[Metric]:
    flows = GaugeMetricFamily("qos2_contract_flows", "Flows that have a rate contract now.", labels=_BY_TYPE)
    agreed = GaugeMetricFamily(
        "qos2_contract_bytes_per_second",
        "What the contracts of these flows allow them in sum, at IP level.",
        labels=_BY_TYPE,
    )
    achieved = GaugeMetricFamily(
        "qos2_contract_achieved_bytes_per_second",
        "What these flows have sent in the last second, at IP level; those begun in it are not counted.",
        labels=_BY_TYPE,
    )
    for kind in TrafficType:
        sums = contracts.get(kind, Contracts())
        flows.add_metric([kind.label], sums.flows)
        agreed.add_metric([kind.label], sums.agreed_bytes_per_s)
        achieved.add_metric([kind.label], sums.achieved_bytes_per_s)
    yield from (flows, agreed, achieved)


def _units(units: Mapping[tuple[str, TrafficType], int]) -> Metric:
    sent = CounterMetricFamily(
        "qos2_unit_bytes",
        "Bytes sent by flows at IP level, by the systemd unit or cgroup of their owner. The busiest have a name of "
        "their own, all others are `other`; in sum as much as qos2_flow_bytes_total.",
        labels=["unit", "traffic_type"],
    )
    for (unit, kind), number in units.items():
        sent.add_metric([unit, kind.label], number)
    return sent
