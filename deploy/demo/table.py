"""The demonstration on the screen: the live table, its plain form, and the verdict.

Only renders what it is given; measures nothing and waits for nothing. At 80 columns the table fits; a wider
terminal shows the rates of the past seconds beside it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from demo.verdict import Finding, Part

_BARS = "▁▂▃▄▅▆▇█"
_WIDE = 100
_UNIT = 1e6


@dataclass(slots=True)
class Row:
    """One sender as of now."""

    part: Part
    contract: int = 0  #: bits/s in force
    dscps: Mapping[int, int] = field(default_factory=dict)  #: packets by DSCP at the peer
    rates: list[float] = field(default_factory=list)  #: bits/s at the peer, one per past second
    delayed: int | None = None  #: packets; None for one that is not registered
    remarked: int | None = None
    dropped: int | None = None

    @property
    def rate(self) -> float:
        return self.rates[-1] if self.rates else 0.0

    @property
    def seen(self) -> str:
        """The DSCP at the peer; several of them with their shares."""
        total = sum(self.dscps.values())
        if len(self.dscps) < 2:
            return "".join(str(dscp) for dscp in self.dscps) or "-"
        return " ".join(f"{dscp}:{count / total:.0%}" for dscp, count in sorted(self.dscps.items()))

    @property
    def as_asked(self) -> bool:
        return set(self.dscps) <= {self.part.dscp}


def screen(rows: Sequence[Row], elapsed_s: float, seconds: float, news: str, width: int) -> RenderableType:
    """The whole picture of one moment, for a terminal that is `width` columns wide."""
    done = min(1.0, elapsed_s / seconds)
    bar = "━" * round(done * 40)
    line = Text.assemble(
        ("  " + bar, "cyan"), ("━" * (40 - len(bar)), "bright_black"), f" {elapsed_s:3.0f} of {seconds:g} s"
    )
    return Group(table(rows, width), line, Text("  " + news, style="bold yellow"))


def table(rows: Sequence[Row], width: int) -> Table:
    """Asked for against seen, one line per sender."""
    wide = width >= _WIDE
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1 if wide else 0, 0, 0))
    grid.add_column("flow", style="bold", no_wrap=True)
    grid.add_column("type", no_wrap=True)
    grid.add_column("DSCP\nasked", justify="right")
    grid.add_column("DSCP\nseen", justify="right")
    grid.add_column("contract\nMbit/s", justify="right")
    grid.add_column("at peer\nMbit/s", justify="right", style="bold")
    for header in ("delayed", "remarked", "dropped"):
        grid.add_column(f"{header}\npackets", justify="right")
    if wide:
        grid.add_column(f"Mbit/s at the peer,\nlast {_history(width)} seconds", no_wrap=True)
    for row in rows:
        cells: list[RenderableType] = [
            row.part.name,
            row.part.traffic_type or Text("unregistered", style="bright_black"),
            str(row.part.dscp) if row.part.traffic_type else "-",
            Text(row.seen.replace(" ", "\n"), style="green" if row.as_asked else "bold red"),
            f"{row.contract / _UNIT:g}" if row.contract else "-",
            _megabits(row.rate),
            *(f"{count:,}" if count is not None else "-" for count in (row.delayed, row.remarked, row.dropped)),
        ]
        if wide:
            cells.append(Text(_sparkline(row.rates[-_history(width) :]), style="cyan"))
        grid.add_row(*cells)
    return grid


def line(rows: Sequence[Row], elapsed_s: float) -> str:
    """The same in one line of text, where the output is no terminal."""
    cells = (f"{row.part.name} {_megabits(row.rate)} (DSCP {row.seen})" for row in rows)
    return f"{elapsed_s:3.0f} s  {'  '.join(cells)}"


def verdict(findings: Mapping[str, Sequence[Finding]]) -> Table:
    """Each claim of each sender, and whether it held."""
    grid = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title="Verdict of the peer", title_justify="left")
    grid.add_column("flow", style="bold", no_wrap=True)
    grid.add_column("", no_wrap=True)
    grid.add_column("what was seen", overflow="fold")
    for name, found in findings.items():
        for index, finding in enumerate(found):
            mark = Text("good", style="green") if finding.good else Text("BAD", style="bold red")
            grid.add_row(name if index == 0 else "", mark, finding.text)
    return grid


def _history(width: int) -> int:
    return min(20, width - 78)


def _megabits(rate: float) -> str:
    return f"{rate / _UNIT:.3f}" if rate < 100_000 else f"{rate / _UNIT:.2f}"


def _sparkline(rates: Sequence[float]) -> str:
    top = max(rates, default=0.0)
    return "".join(_BARS[round(rate / top * (len(_BARS) - 1))] if top else _BARS[0] for rate in rates)
