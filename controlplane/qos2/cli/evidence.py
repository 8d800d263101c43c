"""The numbers of the evidence as people read them: with name, unit and, where there is one, the limit.

Their names on the wire are those that the judge of congestion uses; limits are called `limit_` and the name
of what they limit. A name that this version does not know is shown as it is.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qos2.cli import render

_LIMIT = "limit_"


def _count(value: float) -> str:
    return f"{value:.10g}"


#: What each number is called, and how it is written, in the order of their weight.
_KNOWN = {
    "queue_delay_us": ("queue delay", render.milliseconds),
    "loss": ("loss", render.share),
    "ce_share": ("congestion marks", render.share),
    "bad_windows": ("bad windows", _count),
    "rtt_us": ("round trip", render.milliseconds),
    "baseline_rtt_us": ("without queue", render.milliseconds),
    "own_delay_us": ("delay by its contract", render.milliseconds),
}


#: Without a round trip these mean nothing.
_OF_ROUND_TRIPS = ("rtt_us", "baseline_rtt_us", "queue_delay_us")


def known(evidence: Mapping[str, float]) -> dict[str, float]:
    """Without what is 0 because it was never measured, and without a delay by the contract where there is none."""
    unknown = set(_OF_ROUND_TRIPS) if evidence.get("rtt_us") == 0 else set()
    if evidence.get("own_delay_us") == 0:
        unknown.add("own_delay_us")
    return {name: value for name, value in evidence.items() if name not in unknown}


class Figure(NamedTuple):
    """One number in words. `limit` is empty where there is none."""

    name: str
    value: str
    limit: str

    def __str__(self) -> str:
        return f"{self.name} {self.value}" + (f" (limit {self.limit})" if self.limit else "")


def figures(evidence: Mapping[str, float]) -> list[Figure]:
    """All numbers that are known but the limits, the weightiest first."""
    evidence = known(evidence)
    names = [name for name in _KNOWN if name in evidence]
    names += sorted(name for name in evidence if name not in _KNOWN and not name.startswith(_LIMIT))
    return [_figure(evidence, name) for name in names]


def phrase(evidence: Mapping[str, float]) -> str:
    """All of it in one line, as `queue delay 84 ms (limit 30 ms), loss 0 %`."""
    return ", ".join(map(str, figures(evidence)))


def _figure(evidence: Mapping[str, float], name: str) -> Figure:
    title, write = _KNOWN.get(name, (name, _count))
    limit = evidence.get(_LIMIT + name)
    return Figure(title, write(evidence[name]), "" if limit is None else write(limit))
