"""How many flows there are and were, and what all flows of a traffic type ever sent.

Monotonic totals for metrics. The counters of living flows are in the datapath's maps and are summed by
the edge in bulk; this module holds what that sum lacks: counters of ended flows, and what a flow had
sent under another type before its type was changed. Reads nothing itself.
"""

from collections.abc import Mapping, Sequence

from qos2.core.usage import Usage
from qos2.model import FlowStats, TrafficType


class Sum:
    """A running sum of the counters of FlowStats. May be below 0: it corrects another sum."""

    __slots__ = (
        "bytes",
        "delay_ns",
        "delayed_packets",
        "dropped_bytes",
        "dropped_packets",
        "non_conformant_bytes",
        "non_conformant_packets",
        "packets",
    )

    def __init__(self) -> None:
        self.packets = 0
        self.bytes = 0
        self.non_conformant_packets = 0
        self.non_conformant_bytes = 0
        self.delayed_packets = 0
        self.delay_ns = 0
        self.dropped_packets: dict[str, int] = {}
        self.dropped_bytes: dict[str, int] = {}

    def add(self, stats: FlowStats, sign: int = 1) -> None:
        if not (stats.packets or stats.delayed_packets or any(stats.dropped_packets.values())):
            return
        self.packets += sign * stats.packets
        self.bytes += sign * stats.bytes
        self.non_conformant_packets += sign * stats.non_conformant_packets
        self.non_conformant_bytes += sign * stats.non_conformant_bytes
        self.delayed_packets += sign * stats.delayed_packets
        self.delay_ns += sign * stats.delay_ns
        for reason, number in stats.dropped_packets.items():
            self.dropped_packets[reason] = self.dropped_packets.get(reason, 0) + sign * number
        for reason, number in stats.dropped_bytes.items():
            self.dropped_bytes[reason] = self.dropped_bytes.get(reason, 0) + sign * number

    def plus(self, live: FlowStats) -> FlowStats:
        return FlowStats(
            packets=self.packets + live.packets,
            bytes=self.bytes + live.bytes,
            non_conformant_packets=self.non_conformant_packets + live.non_conformant_packets,
            non_conformant_bytes=self.non_conformant_bytes + live.non_conformant_bytes,
            delayed_packets=self.delayed_packets + live.delayed_packets,
            delay_ns=self.delay_ns + live.delay_ns,
            dropped_packets=_joined(self.dropped_packets, live.dropped_packets),
            dropped_bytes=_joined(self.dropped_bytes, live.dropped_bytes),
        )


def _joined(left: Mapping[str, int], right: Mapping[str, int]) -> dict[str, int]:
    return {reason: left.get(reason, 0) + right.get(reason, 0) for reason in {**left, **right}}


class Accounts:
    """Counts and totals per traffic type. `usage` has those per unit, of flows in `slots` slots; tell it beside."""

    __slots__ = ("_begun", "_corrections", "_ended", "_live", "usage")

    def __init__(self, slots: int = 0) -> None:
        self.usage = Usage(slots)
        kinds = len(TrafficType)
        self._begun = [0] * kinds
        self._ended = [0] * kinds
        self._live = [0] * kinds
        self._corrections = [Sum() for _ in range(kinds)]

    def begin(self, traffic_type: TrafficType) -> None:
        """A flow of this type began, its counters at 0."""
        self._begun[traffic_type] += 1
        self._live[traffic_type] += 1

    def end(self, traffic_type: TrafficType, stats: FlowStats) -> None:
        """A flow ended with these counters: from now on they are missing in the sum of the living."""
        self._ended[traffic_type] += 1
        self._live[traffic_type] -= 1
        self._corrections[traffic_type].add(stats)

    def change(self, before: TrafficType, after: TrafficType, stats: FlowStats) -> None:
        """A living flow changed its type at these counters: what it sent so far stays with the old one."""
        self._live[before] -= 1
        self._live[after] += 1
        self._corrections[before].add(stats)
        self._corrections[after].add(stats, -1)

    def totals(self, live: Sequence[FlowStats]) -> dict[TrafficType, FlowStats]:
        """Everything ever sent, per type, from `live[type]`, the sums over the living flows of that type.

        Counters only; readings such as `srtt_us` or `last_ns`, which no sum has, are 0. Never decreases
        from call to call if `live` is read after what the calls above were told.
        """
        return {kind: self._corrections[kind].plus(live[kind]) for kind in TrafficType}

    @property
    def live(self) -> dict[TrafficType, int]:
        """Flows now."""
        return dict(zip(TrafficType, self._live, strict=True))

    @property
    def begun(self) -> dict[TrafficType, int]:
        """Flows that ever began, by the type that they began with."""
        return dict(zip(TrafficType, self._begun, strict=True))

    @property
    def ended(self) -> dict[TrafficType, int]:
        """Flows that ended, by the type that they had at their end."""
        return dict(zip(TrafficType, self._ended, strict=True))
