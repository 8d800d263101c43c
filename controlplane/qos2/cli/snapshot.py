"""One look at everything that `qos2 top` shows: links, classes and flows, with rates since the look before.

Asks the daemon and computes; draws nothing. Loads of links are those of the link layer, all other rates those of IP.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import msgspec

from qos2.cli import render
from qos2.cli.ports import Client
from qos2.cli.sampling import Rates, Row, Sample, rows
from qos2.model import DatapathStatus, DeviceStatus, FlowState, FlowStats, TrafficType
from qos2.wire.protocol import RuleDetails

#: What is of value first; what may wait last.
_CLASSES = (
    TrafficType.CONTROL,
    TrafficType.VOICE,
    TrafficType.AUDIO_VIDEO,
    TrafficType.EXCELLENT_EFFORT,
    TrafficType.BEST_EFFORT,
    TrafficType.BACKGROUND,
)
_LINK_HEADER_BITS = 14 * 8
#: Loads and rates are not taken at the same moments: less than this share of the load is no traffic of its own.
_NOISE = 0.02


@dataclass(frozen=True, slots=True)
class Link:
    """A device. `peak_bps` is the largest load seen since the first look; None where no load is known."""

    name: str
    device: DeviceStatus
    peak_bps: float | None

    @property
    def used(self) -> float | None:
        """The share of its speed, None where the load or the speed is not known."""
        if self.device.load_bps is None or not self.device.speed_bps:
            return None
        return self.device.load_bps / self.device.speed_bps


@dataclass(frozen=True, slots=True)
class TrafficClass:
    """All flows of one traffic type, and how many of them are in each state."""

    traffic_type: int
    flows: int
    bits: float
    states: Counter[FlowState]


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of the policy, and what it does with packets of sockets that no application has put into a flow."""

    details: RuleDetails
    rates: Rates


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`interval_s` 0: nothing was seen before, so that there are no rates yet."""

    server: str
    uptime_s: float
    privileged: bool  #: else the flows are those of this user alone
    links: Sequence[Link]
    rules: Sequence[Rule]  #: those that keep counters, for the privileged
    rows: Sequence[Row]
    interval_s: float
    at_s: float  #: by time.monotonic()

    @property
    def bits(self) -> float:
        """Of all flows."""
        return sum(row.bits for row in self.rows)

    @property
    def rest_bits(self) -> float | None:
        """What the links carry beside these flows and rules, about at IP level; None where no load is known."""
        loads = [link.device.load_bps for link in self.links if link.device.load_bps is not None]
        if not loads or not self.interval_s:
            return None
        known: list[Row | Rates] = [*self.rows, *(rule.rates for rule in self.rules)]
        rest = sum(loads) - sum(each.bits + each.packets * _LINK_HEADER_BITS for each in known)
        return rest if rest > _NOISE * sum(loads) else 0.0

    def classes(self) -> list[TrafficClass]:
        """Those that have flows; types that this version does not know last."""
        members: dict[int, list[Row]] = {}
        for row in self.rows:
            members.setdefault(row.flow.traffic_type, []).append(row)
        ordered = [*(int(each) for each in _CLASSES), *sorted(set(members) - set(_CLASSES))]
        return [
            TrafficClass(
                number,
                len(members[number]),
                sum(row.bits for row in members[number]),
                Counter(row.flow.state for row in members[number]),
            )
            for number in ordered
            if number in members
        ]


class Looks:
    """Looks at one daemon, each with rates since the one before."""

    def __init__(self, qos: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._qos = qos
        self._clock = clock
        self._before: Sample | None = None
        self._rules: dict[str, FlowStats] = {}
        self._peaks: dict[tuple[int, int], float] = {}

    def look(self) -> Snapshot:
        """Once more. Raises ServiceLost and the like."""
        report, policy = self._qos.status(), self._qos.policy()
        after = Sample.of(self._qos.flows(), self._clock)
        before, self._before = self._before or after, after
        return Snapshot(
            server=report.server,
            uptime_s=report.uptime_s,
            privileged=self._qos.privileged,
            links=self._links(msgspec.convert(report.datapath, DatapathStatus)),
            rules=self._ruled(policy, after.at_s - before.at_s),
            rows=rows(before, after),
            interval_s=after.at_s - before.at_s,
            at_s=after.at_s,
        )

    def _ruled(self, policy: Sequence[RuleDetails], elapsed_s: float) -> list[Rule]:
        """By their names: they keep their counters when the policy is read anew."""
        before = self._rules
        counting = [rule for rule in policy if rule.stats is not None]
        self._rules = {rule.name: msgspec.convert(rule.stats, FlowStats) for rule in counting}
        made = []
        for rule in counting:
            now = self._rules[rule.name]
            then = before.get(rule.name, now)
            # Another rule of this name has begun anew.
            made.append(Rule(rule, Rates.between(then if then.packets <= now.packets else FlowStats(), now, elapsed_s)))
        return made

    def _links(self, datapath: DatapathStatus) -> list[Link]:
        names = render.device_names(datapath.devices)
        return [self._link(name, device) for name, device in zip(names, datapath.devices, strict=True)]

    def _link(self, name: str, device: DeviceStatus) -> Link:
        key = (device.netns_cookie, device.index)
        if device.load_bps is not None:
            self._peaks[key] = max(self._peaks.get(key, 0.0), device.load_bps)
        return Link(name, device, self._peaks.get(key))
