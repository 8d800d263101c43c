"""The columns of `qos2 top`: what fits the terminal, the weightiest first. Nothing is ever wrapped."""

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Span, Text

from qos2.cli import render
from qos2.cli.sampling import Row, unit_of

_GAP = 1


@dataclass(frozen=True, slots=True)
class Context:
    """What cells are drawn by. `most`: the largest rate, bits/s; `rated`: there are rates already."""

    out: Console
    most: float
    rated: bool


@dataclass(frozen=True, slots=True)
class Column:
    """`cell` draws a row in so many characters. One with a `widest` takes what others leave, up to that."""

    head: str
    width: int
    cell: Callable[[Row, int, Context], str | Text]
    widest: int = 0
    figure: bool = False


def _figure(value: Callable[[Row], float], style: str = "") -> Callable[[Row, int, Context], str | Text]:
    """A rate per second; with a style it stands out unless it is zero."""

    def cell(row: Row, _width: int, context: Context) -> str | Text:
        if not context.rated:
            return Text("-", "dim")
        figure = render.scaled(value(row))
        return render.alarming(figure, style) if style else figure

    return cell


def _rate(row: Row, _width: int, context: Context) -> str | Text:
    return render.bandwidth(row.bits) if context.rated else Text("-", "dim")


def _use(row: Row, width: int, context: Context) -> Text:
    """Filled by the share of the contract; without one, in another colour, by the share of the largest rate."""
    share = row.use if row.use is not None else (row.bits / context.most if context.most else 0.0)
    style = "cyan" if row.use is None else "green" if share < 0.95 else "yellow"
    return render.bar(share, width, style, context.out)


def _destination(row: Row, _width: int, _context: Context) -> str:
    flow = row.flow
    if flow.whole_program or not flow.members:
        return "all it sends" if flow.whole_program else "-"
    number = render.socket_count(flow)
    return flow.members[0] + (f" +{number - 1}" if number > 1 else "")


def _short_type(row: Row, width: int, _context: Context) -> str:
    full = render.type_label(row.flow.traffic_type)
    return full if len(full) <= width else render.short_type(row.flow.traffic_type)


def _state(row: Row, _width: int, _context: Context) -> Text:
    if row.flow.denied:
        return Text("denied by its rule", "bold magenta")
    return render.state_text(row.flow.state, row.flow.cause)


#: By their places on the screen.
COLUMNS = (
    Column("ID", 10, lambda row, _w, _c: render.hex_id(row.flow.flow)),
    Column("USER", 8, lambda row, _w, _c: render.user(row.flow.uid), widest=12),
    Column("PROGRAM", 16, lambda row, width, _c: render.program(row.flow.program, row.flow.pid, width), widest=26),
    Column("UNIT", 14, lambda row, _w, _c: unit_of(row.flow) or "-", widest=32),
    Column("TO", 21, _destination, widest=40),
    Column("TYPE", 11, _short_type, widest=16),
    Column("DSCP", 5, lambda row, _w, _c: render.marking(row.flow), figure=True),
    Column("PKT/s", 5, _figure(lambda row: row.packets), figure=True),
    Column("BIT/s", 5, _rate, figure=True),
    Column(
        "CONTRACT", 8, lambda row, _w, _c: render.bandwidth(row.flow.bandwidth) if row.flow.bandwidth else "-",
        figure=True,
    ),
    Column("USE", 6, _use, widest=24),
    Column("RULE", 10, lambda row, _w, _c: render.printable(row.flow.rule) or "-", widest=20),
    Column("STATE", 24, _state),
    Column("FOR", 4, lambda row, _w, _c: render.short_duration(row.flow.state_s), figure=True),
    Column("HELD", 4, _figure(lambda row: row.delayed), figure=True),
    Column("RMRK", 4, _figure(lambda row: row.remarked, "yellow"), figure=True),
    Column("DROP", 4, _figure(lambda row: row.dropped, "red"), figure=True),
)  # fmt: skip
#: Who is given room first; as many of them as fit, in this turn.
_WEIGHT = (
    "PROGRAM", "BIT/s", "STATE", "TYPE", "CONTRACT", "USE", "FOR", "ID", "UNIT", "RULE", "TO", "DROP", "HELD", "RMRK",
    "PKT/s", "USER", "DSCP",
)  # fmt: skip
_BY_HEAD = {column.head: column for column in COLUMNS}


def fitted(width: int, *, without: Set[str] = frozenset()) -> list[tuple[Column, int]]:
    """The columns that fit so many characters, in their places, each with its width; but not those `without`."""
    chosen, taken = set(), -_GAP
    for head in _WEIGHT:
        if head in without:
            continue
        if taken + _GAP + _BY_HEAD[head].width > width:
            break
        chosen.add(head)
        taken += _GAP + _BY_HEAD[head].width
    widths = {head: _BY_HEAD[head].width for head in chosen}
    spare = width - taken
    for head in _WEIGHT:
        if head in chosen and _BY_HEAD[head].widest:
            more = min(spare, _BY_HEAD[head].widest - widths[head])
            widths[head] += more
            spare -= more
    return [(column, widths[column.head]) for column in COLUMNS if column.head in chosen]


def head(columns: Iterable[tuple[Column, int]]) -> Text:
    """The line of names."""
    return line([(Text(column.head, "bold"), width, column.figure) for column, width in columns])


def body(row: Row, columns: Iterable[tuple[Column, int]], context: Context) -> Text:
    """The line of one flow."""
    return line([(column.cell(row, width, context), width, column.figure) for column, width in columns])


def line(cells: Sequence[tuple[str | Text, int, bool]]) -> Text:
    """Cells of so many characters each, figures to the right, as one line that is never wrapped."""
    parts: list[str] = []
    spans: list[Span] = []
    place = 0
    for cell, width, figure in cells:
        text = _sized(cell if isinstance(cell, str) else cell.plain, width, figure)
        if isinstance(cell, Text):
            if cell.style:
                spans.append(Span(place, place + len(text), cell.style))
            # Those of a bar, which has its width.
            spans += [Span(place + each.start, place + each.end, each.style) for each in cell.spans]
        parts.append(text)
        place += len(text) + _GAP
    # At once: appending piece by piece takes several times as long, which tells with ten thousand flows.
    return Text((" " * _GAP).join(parts), spans=spans, no_wrap=True, overflow="crop")


def one_line(text: Text) -> Text:
    """The same, with an ellipsis at the end of the terminal where it is longer."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


def _sized(text: str, width: int, figure: bool) -> str:
    missing = width - cell_len(text)
    if missing < 0:
        return set_cell_size(text, width - 1) + "…"
    return " " * missing + text if figure else text + " " * missing
