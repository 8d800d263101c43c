"""What was measured, for people: tables on the terminal, and the page docs/benchmarks.md.

Renders results and says which targets were missed and why; measures nothing. The whys are in reasons.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bench.figures import Result, Table, Target

UNEXPLAINED = "Not explained yet."


@dataclass(frozen=True, slots=True)
class Machine:
    """Where and how the figures were taken."""

    cpu: str
    cpus: int
    kernel: str
    memory_mib: int
    date: str  #: ISO 8601, UTC
    commit: str
    mode: str  #: "full" or "quick"
    load: str  #: load averages at the start and at the end

    def facts(self) -> tuple[tuple[str, str], ...]:
        """Name and value of each, in reading order."""
        return (
            ("CPU", f"{self.cpu}, {self.cpus} CPUs"),
            ("memory", f"{self.memory_mib:,} MiB"),
            ("kernel", self.kernel),
            ("date", self.date),
            ("sources", self.commit or "not a checkout"),
            ("run", self.mode),
            ("load average", self.load),
        )


def page(machine: Machine, results: Sequence[Result], reasons: Mapping[str, str]) -> str:
    """docs/benchmarks.md, whole."""
    parts = [
        "# Benchmarks",
        "Written by `sudo ./dev bench`; do not edit. What is compared takes turns in every round, and a ratio or a "
        "difference is taken within one round. Figures are medians, with the quartiles in brackets. The explanations "
        "of missed targets are in `tests/bench/reasons.py`.",
        _markdown(("machine", ""), machine.facts()),
        "## Targets",
        _markdown(
            ("target", "limit", "measured", ""), [_judged(each) for result in results for each in result.targets]
        ),
    ]
    missed = [each for result in results for each in result.targets if not each.met]
    if missed:
        parts.append("### Why targets were missed")
        parts += [f"- **{each.claim}**: {reasons.get(each.key, UNEXPLAINED)}" for each in missed]
    for result in results:
        parts += [f"## {result.title}", result.method]
        for table in result.tables:
            parts += [f"### {table.title}", _markdown(table.columns, table.rows), *table.notes]
    return _joined(parts)


def show(console: Console, result: Result) -> None:
    """The tables of a group, and how it stands with its targets."""
    console.print(Text(result.title, style="bold cyan"))
    for table in result.tables:
        console.print(_grid(table))
        for note in table.notes:
            console.print(Text(f"  {note}", style="bright_black"))
    for target in result.targets:
        met = Text("met   ", style="green") if target.met else Text("MISSED", style="bold red")
        console.print(Text.assemble("  ", met, f" {target.claim}: {target.measured_text} ({target.limit_text})"))
    console.print()


def _judged(target: Target) -> tuple[str, ...]:
    return target.claim, target.limit_text, target.measured_text, "met" if target.met else "**missed**"


def _grid(table: Table) -> Grid:
    grid = Grid(box=SIMPLE_HEAD, title=table.title, title_justify="left", padding=(0, 1, 0, 0))
    for index, column in enumerate(table.columns):
        grid.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in table.rows:
        grid.add_row(*row)
    return grid


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, rule, *rows))


def _joined(parts: Sequence[str]) -> str:
    """Paragraphs apart, the points of a list together."""
    text = ""
    for part in parts:
        separator = (
            "" if not text else "\n" if part.startswith("- ") and text.rpartition("\n\n")[2][:2] == "- " else "\n\n"
        )
        text += separator + part
    return text + "\n"
