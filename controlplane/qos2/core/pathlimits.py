"""How much a PathModel remembers and for how long, and what it remembers rates as."""

from dataclasses import dataclass
from typing import NamedTuple

from qos2.model import Method


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """How much is remembered, and for how long."""

    #: Limited data below this is a burst of acknowledgements, not a rate.
    window_s: float = 1.0
    #: How far back the limited data of one window may reach: TCP is not limited in every single interval.
    window_reach_s: float = 2.0
    #: TCP's rate swings with its window; the maximum over about three swings at 100 ms is the bottleneck's (BBR: 10 s).
    peak_s: float = 10.0
    #: Cross traffic of longer ago says nothing about now.
    stale_s: float = 30.0
    #: Lower bounds are forgotten too: routes change.
    forgotten_s: float = 300.0
    #: Bursts of which the median is the capacity: three wrong ones are borne.
    bursts: int = 7
    #: Two bursts that agree this closely, and differ from those before by `step_share`, mean a new capacity.
    agree_share: float = 0.15
    step_share: float = 0.2
    #: A train that was not held back, and what was carried beside it, were this much above the capacity: it has grown.
    grown_share: float = 0.08
    #: Trains sample cross traffic for some ms each, so several are averaged; weights fall by 1/e in this time.
    spare_decay_s: float = 3.0
    spare_samples: int = 16
    #: Trains that found nothing held back below this share of the capacity leave open how much more there is.
    floor_share: float = 0.85
    #: Sent at this multiple of what arrived, a train was faster than a policer.
    policed_ratio: float = 2.0
    #: What passes a policer is counted in packets, a few per train: more of them are averaged.
    policed_decay_s: float = 10.0
    rtt_samples: int = 9
    rtt_span_s: float = 2.0


class Rate(NamedTuple):
    """Bits/s as they were known at a moment."""

    at_s: float
    value: float
    method: Method
