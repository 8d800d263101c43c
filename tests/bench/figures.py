"""Samples of interleaved rounds, and what is made of them: medians with quartiles, differences, ratios, targets.

Pure arithmetic and values; what was measured and how is the matter of the groups, how it looks that of report.py.
"""

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure: the median of its rounds, with the quartiles."""

    low: float
    median: float
    high: float
    rounds: int

    def text(self, decimals: int = 1) -> str:
        """`17.7 [17.2-18.0]`; the median alone where there was one round."""
        middle = f"{self.median:,.{decimals}f}"
        return middle if self.rounds == 1 else f"{middle} [{self.low:,.{decimals}f}-{self.high:,.{decimals}f}]"


def spread(samples: Sequence[float]) -> Spread:
    """Median and quartiles of what was measured (not of a population). Raises ValueError without samples."""
    if not samples:
        raise ValueError("no samples")
    if len(samples) == 1:
        return Spread(samples[0], samples[0], samples[0], 1)
    low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
    return Spread(low, median, high, len(samples))


def over(samples: Sequence[float], base: Sequence[float]) -> list[float]:
    """What each round cost more than the base of the same round. Raises ValueError for unequal rounds."""
    return [sample - below for sample, below in zip(samples, base, strict=True)]


def ratios(samples: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Each round's ratio to the reference of the same round. Raises ValueError for unequal rounds."""
    return [sample / other for sample, other in zip(samples, reference, strict=True)]


def percentile(samples: Iterable[float], percent: float) -> float:
    """The least sample that `percent` of all do not exceed. Raises ValueError without samples."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no samples")
    return ordered[max(0, -(-len(ordered) * percent // 100).__int__() - 1)]


@dataclass(frozen=True, slots=True)
class Target:
    """A promise of the project and what was measured. `key` names its explanation, where it is missed."""

    key: str
    claim: str  #: as `UDP, mark + limit: ratio to the reference`
    limit: float
    measured: float
    unit: str = ""
    at_least: bool = False  #: the measured value must reach the limit instead of staying below it
    decimals: int = 2

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit

    @property
    def limit_text(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.limit:,g}{self._unit}"

    @property
    def measured_text(self) -> str:
        return f"{self.measured:,.{self.decimals}f}{self._unit}"

    @property
    def _unit(self) -> str:
        return f" {self.unit}" if self.unit else ""


@dataclass(frozen=True, slots=True)
class Table:
    """Figures ready to be read: the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: row {row[0]!r} has {len(row)} cells of {len(self.columns)}")


@dataclass(frozen=True, slots=True)
class Result:
    """What a group has measured."""

    name: str
    title: str
    method: str
    tables: tuple[Table, ...]
    targets: tuple[Target, ...] = field(default=())
