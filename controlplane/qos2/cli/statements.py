"""What is known of a path as a table: each quantity with how well it is known, by what method, and how old that is."""

from collections.abc import Callable

from rich.table import Table
from rich.text import Text

from qos2.cli import render
from qos2.model import FlowFundamentals, Quality, Statement


def _bandwidth(bits_per_s: float) -> str:
    return f"{render.bandwidth(bits_per_s)}bit/s"


#: The quantities in the order of showing, and how their values are written.
QUANTITIES: dict[str, Callable[[float], str]] = {
    "bottleneck": _bandwidth,
    "available": _bandwidth,
    "rtt": render.milliseconds,
}
_TITLES = {"rtt": "round trip"}


def statement_table(estimates: FlowFundamentals | None) -> Table | Text:
    """A line per quantity, those without a statement too; None: nothing is known of this path."""
    if estimates is None:
        return Text("nothing is known of its path", "dim")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for name in ("PATH", "VALUE", "QUALITY", "METHOD", "AGE"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("VALUE", "AGE") else "left")
    for quantity in QUANTITIES:
        statement = estimates.statements.get(quantity)
        title = _TITLES.get(quantity, quantity)
        if statement is None:
            table.add_row(title, Text("unknown", "dim"), "", "", "")
        else:
            table.add_row(title, *_words(quantity, statement))
    return table


def age(statement: Statement) -> str:
    """With a decimal while it is short."""
    return f"{statement.age_s:.1f} s" if statement.age_s < 10 else render.duration(statement.age_s)


def _words(quantity: str, statement: Statement) -> tuple[str | Text, ...]:
    """Value, quality, method and age; what is no measurement stands out."""
    bound = statement.quality == Quality.LOWER_BOUND
    quality = Text(statement.quality.replace("_", " "), "yellow" if bound else "")
    value = QUANTITIES[quantity](statement.value)
    return f">= {value}" if bound else value, quality, statement.method, age(statement)
