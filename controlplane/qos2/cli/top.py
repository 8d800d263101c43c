"""`qos2 top`: what each flow sends now, from the differences of its counters between two samples.

Live where the output is a terminal; else, and with --once or --json, one table after one interval.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from qos2.cli import render
from qos2.cli.keyboard import Keyboard, terminated_by_exception
from qos2.cli.ports import Client
from qos2.cli.render import Grid
from qos2.cli.sampling import Row, Sample, rows

#: Lines of the live view that are not flows: title, table head and rule, note on hidden flows, keys.
_OTHER_LINES = 6
#: From this width on, types are spelt out and bars are long.
_WIDE_COLUMNS = 110


SORTS: dict[str, Callable[[Row], Any]] = {
    "rate": lambda row: -row.bits,
    "packets": lambda row: -row.packets,
    "held": lambda row: -row.delayed,
    "drops": lambda row: -row.dropped,
    "type": lambda row: row.flow.traffic_type,
    "name": lambda row: row.flow.program,
    "id": lambda row: row.flow.flow,
}
#: First letters are the keys of the live view.
KEYS = {name[0]: name for name in SORTS}


def execute(qos: Client, arguments: Namespace, out: Console) -> int:
    """Show rates, once or until q."""
    if arguments.once or arguments.json or not out.is_terminal:
        return _once(qos, arguments, out)
    return _live(qos, arguments, out)


def ordered(shown: Sequence[Row], order: str) -> list[Row]:
    """The rows as one of SORTS wants them."""
    return sorted(shown, key=lambda row: (SORTS[order](row), row.flow.flow))


def document(shown: Sequence[Row], interval_s: float) -> dict[str, Any]:
    """The JSON form; `use` is the share of the contract, None without one."""
    return {
        "interval_s": interval_s,
        "flows": [
            {
                "id": render.hex_id(row.flow.flow),
                "traffic_type": render.type_label(row.flow.traffic_type),
                "program": row.flow.program,
                "pid": row.flow.pid,
                "bandwidth": row.flow.bandwidth or None,
                "bits_per_s": row.bits,
                "packets_per_s": row.packets,
                "delayed_per_s": row.delayed,
                "remarked_per_s": row.remarked,
                "dropped_per_s": row.dropped,
                "use": row.use,
            }
            for row in shown
        ],
    }


def view(shown: Sequence[Row], order: str, out: Console, *, keys: bool = False) -> Group:
    """Title and table, cut to the terminal's height where it is live (`keys`)."""
    bits, packets = sum(row.bits for row in shown), sum(row.packets for row in shown)
    title = Text.assemble(
        (f"{len(shown)} flows", "bold"),
        f"  {render.bandwidth(bits)}bit/s  {render.scaled(packets)} packets/s  by {order}",
    )
    room = max(out.height - _OTHER_LINES, 1) if keys else len(shown)
    most = max((row.bits for row in shown), default=0.0)
    made = render.fitted(out.width, lambda program_width: _grid(shown[:room], most, out, program_width))
    parts: list[Any] = [title, made.table()]
    if len(shown) > room:
        parts.append(Text(f"{len(shown) - room} more flows: make the terminal higher", style="dim"))
    if keys:
        parts.append(Text("q quit; sort by " + ", ".join(f"{key} {name}" for key, name in KEYS.items()), style="dim"))
    return Group(*parts)


def _grid(shown: Sequence[Row], most: float, out: Console, program_width: int) -> Grid:
    wide = out.width >= _WIDE_COLUMNS
    made = render.grid("ID TYPE PROGRAM BIT/s OF USE PKT/s HELD RMRK DROP", figures="BIT/s OF PKT/s HELD RMRK DROP")
    for row in shown:
        flow = row.flow
        made.rows.append(
            (
                render.hex_id(flow.flow),
                render.type_label(flow.traffic_type) if wide else render.short_type(flow.traffic_type),
                render.program(flow.program, flow.pid, program_width),
                render.bandwidth(row.bits),
                render.bandwidth(flow.bandwidth) if flow.bandwidth else "-",
                bar(row, most, 30 if wide else 8, ascii_only=not out.encoding.startswith("utf")),
                render.scaled(row.packets),
                render.scaled(row.delayed),
                render.alarming(render.scaled(row.remarked), "yellow"),
                render.alarming(render.scaled(row.dropped)),
            )
        )
    return made


def bar(row: Row, most: float, width: int, *, ascii_only: bool) -> Text:
    """Filled by the share of the contract; without one, dimmer and by the share of the largest rate."""
    share = row.use if row.use is not None else (row.bits / most if most else 0.0)
    filled = round(min(max(share, 0.0), 1.0) * width)
    style = "cyan" if row.use is None else "green" if share < 0.95 else "yellow"
    full, empty = ("#", ".") if ascii_only else ("█", "░")
    return Text.assemble((full * filled, style), (empty * (width - filled), "dim"))


def _once(qos: Client, arguments: Namespace, out: Console) -> int:
    before = Sample.of(qos.flows())
    time.sleep(arguments.interval)
    after = Sample.of(qos.flows())
    shown = ordered(rows(before, after), arguments.sort)
    if arguments.json:
        render.write_json(out, document(shown, after.at_s - before.at_s))
    else:
        out.print(view(shown, arguments.sort, out))
    return 0


def _live(qos: Client, arguments: Namespace, out: Console) -> int:
    order: str = arguments.sort
    before = after = Sample.of(qos.flows())
    with (
        terminated_by_exception(),
        Keyboard() as keyboard,
        Live(console=out, screen=True, auto_refresh=False) as live,
    ):
        try:
            while True:
                live.update(view(ordered(rows(before, after), order), order, out, keys=True), refresh=True)
                key = keyboard.wait(after.at_s + arguments.interval - time.monotonic())
                if key == "q":
                    return 0
                order = KEYS.get(key, order)
                if time.monotonic() >= after.at_s + arguments.interval:
                    before, after = after, Sample.of(qos.flows())
        except KeyboardInterrupt:
            return 0
