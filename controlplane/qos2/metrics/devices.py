"""The network devices that the datapath is attached to: the first few by name, all others together.

A label's value is a device's name: namespaces may each have a device of the same name, which are one.
"""

from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from qos2.metrics.ranking import OTHER
from qos2.metrics.snapshot import Snapshot
from qos2.model import DeviceStatus

_BY_DEVICE = ["device"]


def collect(snapshot: Snapshot) -> Iterator[Metric]:
    """All of it."""
    devices, ranking = snapshot.datapath.devices, snapshot.device_ranking
    names = ranking.look(devices, snapshot.device_sent_bytes, snapshot.device_dropped_packets)
    by_label: dict[str, list[DeviceStatus]] = {name: [] for name in names}
    if ranking.left_out:
        by_label[OTHER] = []
    for device in devices:
        by_label[device.name if device.name in names else OTHER].append(device)
    yield _info(by_label)
    yield from _gauges(by_label)
    yield from _counters(names, snapshot)
    truncated = CounterMetricFamily(
        "qos2_series_truncated",
        "Values of a label that got no series of their own, because there are too many, and went into `other`.",
        labels=["label"],
    )
    truncated.add_metric(["device"], ranking.truncated)
    truncated.add_metric(["unit"], snapshot.units_truncated)
    yield truncated


def _info(by_label: Mapping[str, list[DeviceStatus]]) -> Metric:
    info = GaugeMetricFamily(
        "qos2_device_info",
        "A network device that the datapath is attached to, by which hook, and how it holds packets back; always 1.",
        labels=["device", "hook", "shaper"],
    )
    for name, alike in by_label.items():
        if name != OTHER and alike:
            # Of a name in several namespaces the worst is told: one series for each, whatever they have.
            worst = max(alike, key=lambda device: (device.shaper.value == "police", device.shaped_flows))
            info.add_metric([name, worst.hook, worst.shaper.value], 1)
    return info


def _gauges(by_label: Mapping[str, list[DeviceStatus]]) -> Iterator[Metric]:
    """What devices can carry, and do; those of one label are summed, as far as they are known."""
    attached = GaugeMetricFamily(
        "qos2_device_programs",
        "Programs of the datapath that are attached to a device now: one, or one for each namespace with that name.",
        labels=_BY_DEVICE,
    )
    shaped = GaugeMetricFamily(
        "qos2_device_shaped_flows", "Flows that a device holds to their rate now.", labels=_BY_DEVICE
    )
    speed = GaugeMetricFamily(
        "qos2_device_speed_bytes",
        "Bytes per second that a device can send, where its driver states it.",
        labels=_BY_DEVICE,
    )
    backlog = GaugeMetricFamily(
        "qos2_device_backlog_bytes", "Bytes that wait in the root qdisc of a device.", labels=_BY_DEVICE
    )
    for name, alike in by_label.items():
        attached.add_metric([name], len(alike))
        shaped.add_metric([name], sum(device.shaped_flows for device in alike))
        speeds = [device.speed_bps for device in alike if device.speed_bps is not None]
        backlogs = [device.backlog_bytes for device in alike if device.backlog_bytes is not None]
        if alike and len(speeds) == len(alike):
            speed.add_metric([name], sum(speeds) / 8)
        if backlogs:
            backlog.add_metric([name], sum(backlogs))
    yield from (attached, shaped, speed, backlog)


def _counters(names: Iterable[str], snapshot: Snapshot) -> Iterator[Metric]:
    ranking = snapshot.device_ranking
    sent = CounterMetricFamily(
        "qos2_device_sent_bytes",
        "Bytes that a device has sent while attached, link headers included.",
        labels=_BY_DEVICE,
    )
    dropped = CounterMetricFamily(
        "qos2_device_dropped_packets",
        "Packets that the root qdisc of a device has dropped while attached, whoever sent them.",
        labels=_BY_DEVICE,
    )
    for family, numbers in ((sent, snapshot.device_sent_bytes), (dropped, snapshot.device_dropped_packets)):
        for name in names:
            if name in numbers:
                family.add_metric([name], numbers[name])
    if ranking.left_out:
        sent.add_metric([OTHER], ranking.other_sent_bytes)
        dropped.add_metric([OTHER], ranking.other_dropped_packets)
    yield from (sent, dropped)
