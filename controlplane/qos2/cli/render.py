"""How the command line writes things: ids, rates, figures, tables and JSON, the same in every command.

No request is made here. Text of other programs (their names) is shown without control characters,
so that no process can write to an administrator's terminal through its name.
"""

import json
import os
import pwd
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import IO, Any, Literal

import msgspec
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Span, Text

from qos2.model import Cause, DeviceStatus, FlowState, FlowStats, Shaping, TrafficType
from qos2.wire.protocol import FlowDetails

#: From this width on, `qos2 flows` spells out what it abbreviates in narrower terminals.
WIDE_COLUMNS = 160
#: Width where the output is no terminal: nothing is cut off in a file or a pipe.
PIPE_COLUMNS = 200

#: Longer tables are printed without styles even on a terminal, because those take milliseconds per row.
STYLED_ROWS = 500

#: Least width of the column of programs, `x…(123456)`.
PROGRAM_COLUMNS = 10

SHORT_SHAPING = {
    Shaping.SHAPE_ONLY: "shape",
    Shaping.SHAPE_AND_MARK: "mark",
    Shaping.USE_NON_CONFORMANT_MARKINGS: "remark",
}

STATE_STYLES = {
    FlowState.UNKNOWN: "dim",
    FlowState.CONGESTED: "bold red",
    FlowState.RATE_LIMITED: "yellow",
    FlowState.UNCONGESTED: "green",
}

#: When to colour. Nothing is told by colour alone.
COLORS = ("auto", "always", "never")

#: States in at most four characters.
SHORT_STATES = {
    FlowState.UNKNOWN: "-",
    FlowState.UNCONGESTED: "free",
    FlowState.RATE_LIMITED: "rate",
    FlowState.CONGESTED: "cong",
}


def console(file: IO[str] | None = None, width: int | None = None, color: str = "auto") -> Console:
    """A console that takes nothing in its text for markup. Honours COLUMNS, and NO_COLOR unless `color` says otherwise.

    `color`: one of COLORS; `always` writes styles into files and pipes too.
    """
    file = sys.stdout if file is None else file
    if width is None and not file.isatty() and "COLUMNS" not in os.environ:
        width = PIPE_COLUMNS
    return Console(
        file=file,
        width=width,
        markup=False,
        highlight=False,
        emoji=False,
        soft_wrap=False,
        no_color={"auto": None, "always": False, "never": True}[color],
        force_terminal=True if color == "always" else None,
    )


def write_json(out: Console, document: Mapping[str, Any]) -> None:
    """One JSON document, indented; never coloured, never wrapped."""
    out.file.write(json.dumps(document, indent=2) + "\n")


def hex_id(flow: int) -> str:
    """A flow id as it is shown and taken everywhere: 0x and eight digits."""
    return f"0x{flow:08x}"


def printable(text: str) -> str:
    """`text` with a question mark for each character that is not printable."""
    return "".join(c if c.isprintable() else "?" for c in text)


def program(name: str, pid: int, width: int = 0) -> str:
    """`name(pid)`; with `width`, the name is shortened so that the pid stays readable."""
    name, number = printable(name) or "?", f"({pid})"
    if width and len(name) + len(number) > width:
        name = name[: max(width - len(number) - 1, 1)] + "…"
    return name + number


@cache
def user(uid: int) -> str:
    """The name of a user of this host; the number where it has none."""
    try:
        return printable(pwd.getpwuid(uid).pw_name)
    except KeyError:
        return str(uid)


def device_names(devices: Iterable[DeviceStatus]) -> list[str]:
    """Of each, with the cookie of its network namespace where there are several: names repeat across them."""
    devices = list(devices)
    several = len({device.netns_cookie for device in devices}) > 1
    names = [printable(device.name) for device in devices]
    return [
        f"{name} (netns {device.netns_cookie})" if several else name
        for name, device in zip(names, devices, strict=True)
    ]


def bar(share: float, width: int, style: str, out: Console) -> Text:
    """Filled by a share 0..1, a little where that is not nothing; of characters that the output has."""
    filled = round(min(max(share, 0.0), 1.0) * width) or int(share > 0 and width > 0)
    full, empty = ("█", "░") if out.encoding.startswith("utf") else ("#", ".")
    return Text(full * filled + empty * (width - filled), spans=[Span(0, filled, style), Span(filled, width, "dim")])


def scaled(value: float, base: int = 1000) -> str:
    """At most four characters up to 999 of the largest unit: `999`, `1.2k`, `35M`, `1.0G`."""
    if value < base:
        return f"{value:.0f}"
    for unit in "kMGTPE":
        value /= base
        if value < 9.95:
            return f"{value:.1f}{unit}"
        if value < base - 0.5 or unit == "E":
            break
    return f"{value:.0f}{unit}"


def bandwidth(bits_per_s: float) -> str:
    """Three significant digits, bits per second: `64k`, `8M`, `1.25G`; what `--rate` takes."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if bits_per_s >= size * 0.9995:
            return f"{bits_per_s / size:.3g}{unit}"
    return f"{bits_per_s:.0f}"


def duration(seconds: float) -> str:
    """The two largest units: `42 s`, `3 min 5 s`, `2 h 10 min`, `4 d 3 h`."""
    whole = int(seconds)
    minutes, s = divmod(whole, 60)
    hours, m = divmod(minutes, 60)
    d, h = divmod(hours, 24)
    if d:
        return f"{d} d {h} h"
    if h:
        return f"{h} h {m} min"
    return f"{m} min {s} s" if m else f"{s} s"


def short_duration(seconds: float) -> str:
    """The largest unit alone, at most four characters: `42s`, `3m`, `2h`, `400d`."""
    whole = int(seconds)
    for unit, size in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if whole >= size:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def milliseconds(microseconds: float) -> str:
    """Two digits or more of a delay: `0.84 ms`, `8.4 ms`, `84 ms`, `1234 ms`."""
    value = microseconds / 1e3
    if 0 < value < 0.005:
        return "< 0.01 ms"
    if value >= 9.95 or not value:
        return f"{value:.0f} ms"
    return f"{value:.1f} ms" if value >= 0.995 else f"{value:.2f} ms"


def share(value: float) -> str:
    """A share 0..1 in per cent, at least one digit of it: `0 %`, `0.35 %`, `12 %`."""
    percent = value * 100
    if 0 < percent < 0.01:
        return "< 0.01 %"
    return f"{percent:.0f} %" if percent >= 9.95 else f"{percent:.2g} %"


def short_state(state: FlowState) -> Text:
    """At most four characters, coloured."""
    return Text(SHORT_STATES[state], STATE_STYLES[state])


def state_text(state: FlowState, cause: Cause | None) -> Text:
    """As `congested by queue_delay`, coloured."""
    return Text(f"{state} by {cause}" if cause else state, STATE_STYLES[state])


def type_label(traffic_type: int) -> str:
    """The word for a traffic type; a number that this version does not know, as it is."""
    try:
        return TrafficType(traffic_type).label
    except ValueError:
        return str(traffic_type)


def short_type(traffic_type: int) -> str:
    """At most eleven characters."""
    return type_label(traffic_type).removesuffix("_effort") if traffic_type else "best_effort"


def shaping_label(shaping: int | None, *, short: bool = False) -> str:
    """The word for how a rate is kept; empty without one."""
    if shaping is None:
        return ""
    try:
        known = Shaping(shaping)
    except ValueError:
        return str(shaping)
    return SHORT_SHAPING[known] if short else known.label


def marking(flow: FlowDetails) -> str:
    """The DSCP in force, with a slash before that of packets over the rate; `-`: left as it is."""
    if flow.dscp is None:
        return "-"
    remarks = flow.bandwidth and flow.shaping == Shaping.USE_NON_CONFORMANT_MARKINGS
    return f"{flow.dscp}/{flow.non_conformant_dscp}" if remarks else str(flow.dscp)


def sockets(flow: FlowDetails) -> str:
    """The first one, and how many more."""
    if flow.whole_program:
        return "all of the program"
    number = socket_count(flow)
    return (flow.members[0] if number else "no socket") + (f" and {number - 1} more" if number > 1 else "")


def socket_count(flow: FlowDetails) -> int:
    """How many destinations of sockets are in it."""
    # The daemon tells long lists in part; their last entry says how many it left out.
    rest = re.fullmatch(r"and (\d+) more", flow.members[-1]) if flow.members else None
    return len(flow.members) - 1 + int(rest[1]) if rest else len(flow.members)


def stats_of(flow: FlowDetails) -> FlowStats:
    """The flow's counters as their type; fields that this version does not know are left out."""
    return msgspec.convert(flow.stats, FlowStats)


def stats_document(stats: FlowStats) -> dict[str, Any]:
    """All counters under the names of FlowStats."""
    return asdict(stats)


def flow_document(flow: FlowDetails) -> dict[str, Any]:
    """The JSON form of one flow: words for enumerations, None for what it does not have."""
    return {
        "id": hex_id(flow.flow),
        "traffic_type": type_label(flow.traffic_type),
        "adaptive": flow.adaptive,
        "dscp": flow.dscp,
        "dscp_override": flow.dscp_override,
        "non_conformant_dscp": flow.non_conformant_dscp,
        "bandwidth": flow.bandwidth or None,
        "shaping": shaping_label(flow.shaping) or None,
        "pid": flow.pid,
        "uid": flow.uid,
        "program": flow.program,
        "age_s": flow.age_s,
        "members": flow.members,
        "whole_program": flow.whole_program,
        "shapers": flow.shapers,
        "state": flow.state,
        "cause": flow.cause,
        "state_s": flow.state_s,
        "evidence": flow.evidence,
        "rule": flow.rule or None,
        "denied": flow.denied,
        "asked_dscp": flow.asked_dscp,
        "asked_bandwidth": flow.asked_bandwidth or None,
        "stats": stats_document(stats_of(flow)),
    }


@dataclass(frozen=True, slots=True)
class Grid:
    """Rows of one-line cells under a head. `figures` are the columns that are aligned to the right."""

    columns: tuple[str, ...]
    figures: frozenset[str]
    rows: list[tuple[str | Text, ...]] = field(default_factory=list)

    def table(self) -> Table:
        """For a terminal, with styles."""
        made = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False, show_edge=False, header_style="bold")
        for column in self.columns:
            justify: Literal["left", "right"] = "right" if column in self.figures else "left"
            made.add_column(column, justify=justify, no_wrap=True, overflow="ellipsis")
        for row in self.rows:
            made.add_row(*row)
        return made

    def widths(self) -> list[int]:
        """Of each column, characters."""
        return [max(len(str(cell)) for cell in cells) for cells in zip(self.columns, *self.rows, strict=True)]

    def text(self) -> str:
        """For files and pipes, without styles; a hundred times faster, for tens of thousands of rows."""
        widths = self.widths()
        aligned = [str.rjust if column in self.figures else str.ljust for column in self.columns]
        return "".join(
            "  ".join(
                align(str(cell), width) for align, cell, width in zip(aligned, line, widths, strict=True)
            ).rstrip()
            + "\n"
            for line in (self.columns, *self.rows)
        )

    def print(self, out: Console) -> None:
        """In the form that suits the output."""
        if out.is_terminal and len(self.rows) <= STYLED_ROWS:
            out.print(self.table())
        else:
            out.file.write(self.text())


def fitted(width: int, build: Callable[[int], Grid]) -> Grid:
    """A grid whose column of programs takes the columns of the terminal that the others leave.

    `build` makes it for so many characters in that column.
    """
    least = build(PROGRAM_COLUMNS)
    taken = sum(least.widths()) + len(least.columns) - 1
    return build(PROGRAM_COLUMNS + width - taken) if width > taken else least


def grid(columns: str, figures: str) -> Grid:
    """A grid of columns that are named separated by spaces."""
    return Grid(tuple(columns.split()), frozenset(figures.split()))


def alarming(figure: str, style: str = "red") -> Text:
    """A figure that stands out unless it is zero."""
    return Text(figure, style="dim" if figure == "0" else style)
