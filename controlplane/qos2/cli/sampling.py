"""Counters of flows at moments, and rates from the differences: what `qos2 top` and `qos2 watch` stand on."""

import time
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from qos2.cli import render
from qos2.model import FlowStats
from qos2.wire.protocol import FlowDetails


def interval(text: str) -> float:
    """Seconds between samples. Raises ArgumentTypeError outside 0.1 .. 3600."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise ArgumentTypeError(f"{text!r} is not between 0.1 and 3600 seconds")
    return seconds


@dataclass(frozen=True, slots=True)
class Sample:
    """Every flow's counters, and when they were read (seconds of a monotonic clock)."""

    at_s: float
    flows: dict[int, tuple[FlowDetails, FlowStats]]

    @classmethod
    def of(cls, flows: Iterable[FlowDetails], clock: Callable[[], float] = time.monotonic) -> Self:
        """Of what the daemon has just told."""
        return cls(clock(), {flow.flow: (flow, render.stats_of(flow)) for flow in flows})


@dataclass(frozen=True, slots=True)
class Rates:
    """What counters grew by, all per second."""

    bits: float
    packets: float
    delayed: float
    remarked: float
    dropped: float

    @classmethod
    def between(cls, then: FlowStats, now: FlowStats, elapsed_s: float) -> Self:
        """Of the time between two readings."""
        elapsed_s = max(elapsed_s, 1e-3)
        drops = sum(now.dropped_packets.values()) - sum(then.dropped_packets.values())
        return cls(
            bits=(now.bytes - then.bytes) * 8 / elapsed_s,
            packets=(now.packets - then.packets) / elapsed_s,
            delayed=(now.delayed_packets - then.delayed_packets) / elapsed_s,
            remarked=(now.non_conformant_packets - then.non_conformant_packets) / elapsed_s,
            dropped=drops / elapsed_s,
        )


@dataclass(frozen=True, slots=True)
class Row:
    """One flow over the time between two samples; all figures per second."""

    flow: FlowDetails
    bits: float
    packets: float
    delayed: float
    remarked: float
    dropped: float

    @property
    def use(self) -> float | None:
        """Its share of its contract, None without one."""
        return self.bits / self.flow.bandwidth if self.flow.bandwidth else None


def unit_of(flow: FlowDetails) -> str:
    """The unit of its owner as people call it; empty where it is in none: the root of all cgroups says nothing."""
    return render.printable(flow.unit) if flow.unit != "/" else ""


def rows(before: Sample, after: Sample) -> list[Row]:
    """Rates of the flows of `after`; a flow that began in between counts from its beginning."""
    made = []
    for number, (flow, now) in after.flows.items():
        elapsed_s = after.at_s - before.at_s
        if number in before.flows:
            then = before.flows[number][1]
        else:
            then = FlowStats()
            elapsed_s = min(elapsed_s, flow.age_s)
        rates = Rates.between(then, now, elapsed_s)
        made.append(Row(flow, rates.bits, rates.packets, rates.delayed, rates.remarked, rates.dropped))
    return made
