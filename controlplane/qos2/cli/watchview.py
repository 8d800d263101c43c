"""What `qos2 watch` draws: all flows in two lines each, or one flow with all that is known of it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qos2.cli import evidence, render
from qos2.cli.observations import SEVERITY, Observation
from qos2.cli.sparkline import sparkline
from qos2.cli.statements import statement_table
from qos2.cli.trace import LENGTH
from qos2.wire.protocol import Explanation, FlowDetails

#: Lines of the live overview that are not flows: title, head, keys.
_OTHER_LINES = 3
_LINES_PER_FLOW = 2
_FLOW_COLUMNS = 16
_STATE_COLUMNS = 15
#: From this width on there is room for whole names, and for the scales of the sparklines.
_WIDE_COLUMNS = 110
_OVERVIEW_KEYS = "q quit, p pause, s sort, ↑ ↓ scroll, space next page"
_CLOSEUP_KEYS = "q quit, p pause"


@dataclass(frozen=True, slots=True)
class Status:
    """Of a live view: its order, the number of the first flow shown, and whether it stands still."""

    order: str
    first: int = 0
    paused: bool = False


def room(out: Console) -> int:
    """How many flows fit the terminal."""
    return max((out.height - _OTHER_LINES) // _LINES_PER_FLOW, 1)


def overview(
    shown: Sequence[Observation], flows: Sequence[FlowDetails], out: Console, status: Status | None = None
) -> Group:
    """The flows `shown` of all `flows`; with `status` it is live, and says how to steer it."""
    wide = out.width >= _WIDE_COLUMNS
    flow_columns = 2 * _FLOW_COLUMNS if wide else _FLOW_COLUMNS
    plot = min(max((out.width - flow_columns - _STATE_COLUMNS - 5) // 4, 8), LENGTH)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name, width in (("FLOW", flow_columns), ("STATE", _STATE_COLUMNS)):
        table.add_column(name, width=width, no_wrap=True, overflow="ellipsis")
    for name in ("BIT/s", "RTT", "QUEUE", "LOSS"):
        table.add_column(name, width=plot, no_wrap=True, overflow="ellipsis")
    for each in shown:
        table.add_row(*_cells(each, plot, flow_columns, out))
    parts: list[RenderableType] = [_title(flows, len(shown), status), table]
    if status is not None:
        parts.append(_keys(_OVERVIEW_KEYS, out))
    return Group(*parts)


def _title(flows: Sequence[FlowDetails], shown: int, status: Status | None) -> Text:
    title = Text.assemble((f"{len(flows)} flows", "bold"))
    states = Counter(flow.state for flow in flows)
    for state in SEVERITY:
        if states[state]:
            title.append(f"  {states[state]} ").append(state, render.STATE_STYLES[state])
    if status is not None:
        title.append(f"  by {status.order}")
        if shown < len(flows):
            title.append(f"  {status.first + 1} to {status.first + shown}")
        if status.paused:
            title.append("  PAUSED", "bold reverse")
    title.no_wrap, title.overflow = True, "ellipsis"
    return title


def _cells(each: Observation, plot: int, flow_columns: int, out: Console) -> list[Text]:
    flow = each.flow
    style = render.STATE_STYLES[flow.state]
    since = render.short_duration(flow.state_s)
    contract = f"/{render.bandwidth(flow.bandwidth)}" if flow.bandwidth else ""
    cells = [
        Text(f"{render.hex_id(flow.flow)}\n{render.program(flow.program, flow.pid, flow_columns)}"),
        Text.assemble((flow.state, style), f"\n{flow.cause or 'for'} {since}"),
    ]
    for number, plotted in _plots(each, plot, out):
        cells.append(Text.assemble(number + (contract if len(cells) == 2 else ""), "\n", (plotted, style)))
    return cells


def _plots(each: Observation, width: int, out: Console) -> list[tuple[str, str]]:
    """Latest number and sparkline of rate, round trip, queue delay and loss; the last two up to their limits."""
    trace, limits = each.trace, each.flow.evidence
    if each.explanation is not None:
        limits = {**each.explanation.evidence, **each.explanation.signals}
    plotted = (
        (trace.rate, render.bandwidth, 0.0),
        (trace.rtt_us, render.milliseconds, 0.0),
        (trace.queue_delay_us, render.milliseconds, limits.get("limit_queue_delay_us", 0.0)),
        (trace.loss, render.share, limits.get("limit_loss", 0.0)),
    )
    ascii_only = not out.encoding.startswith("utf")
    return [
        (
            "-" if not values or values[-1] is None else write(values[-1]),
            sparkline(list(values), width, full, ascii_only=ascii_only),
        )
        for values, write, full in plotted
    ]


def closeup(each: Observation, out: Console, *, live: bool = False, paused: bool = False) -> Group:
    """One flow; cut to the terminal's height where it is live."""
    flow, explanation = each.flow, each.explanation
    parts: list[RenderableType] = [_heading(flow, paused), _state(flow, explanation), Text(), plot_sheet(each, out)]
    if explanation is None:
        return Group(*parts, Text("\nthe flow has ended"))
    sheet = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column(overflow="fold")
    sheet.add_row("rests on", evidence.phrase(explanation.evidence) or "nothing")
    sheet.add_row("now", evidence.phrase(explanation.signals) if explanation.source else "no signals")
    parts += [Text(), sheet, Text(), statement_table(explanation.estimates), Text()]
    keys = [_keys(_CLOSEUP_KEYS, out)] if live else []
    changes = _changes(explanation)
    if live:
        taken = len(out.render_lines(Group(*parts))) + 1 + len(keys)
        changes = changes[: max(out.height - taken, 0)]
    return Group(*parts, Text("LAST CHANGES", "bold"), *changes, *keys)


def _heading(flow: FlowDetails, paused: bool) -> Text:
    kind = render.type_label(flow.traffic_type) + (", adaptive" if flow.adaptive else "")
    title = Text.assemble((render.hex_id(flow.flow), "bold"), f"  {render.program(flow.program, flow.pid)}, {kind}")
    title.append(f", {render.sockets(flow)}")
    if paused:
        title = Text.assemble(("PAUSED", "bold reverse"), "  ") + title
    title.no_wrap, title.overflow = True, "ellipsis"
    return title


def _state(flow: FlowDetails, explanation: Explanation | None) -> Text:
    state = render.state_text(flow.state, flow.cause) + f" for {render.duration(flow.state_s)}"
    if explanation is not None:
        state.append(f"; signals: {explanation.source or 'none'}")
    if flow.bandwidth:
        state.append(f"; contract: {render.bandwidth(flow.bandwidth)}bit/s")
    return state


def plot_sheet(each: Observation, out: Console) -> Table:
    """The course of rate, round trip, queue delay and loss, one line each."""
    sheet = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    sheet.add_column(style="bold", width=6)
    sheet.add_column(justify="right", width=8)
    sheet.add_column(no_wrap=True, overflow="crop")
    width = min(max(out.width - 16, 8), LENGTH)
    style = render.STATE_STYLES[each.flow.state]
    names = ("bit/s", "RTT", "queue", "loss")
    for name, (number, plotted) in zip(names, _plots(each, width, out), strict=True):
        sheet.add_row(name, number, Text(plotted, style))
    return sheet


def _changes(explanation: Explanation) -> list[Text]:
    lines = []
    for change in explanation.changes:
        line = Text(f"{render.short_duration(change.ago_s):>4} ago  ") + render.state_text(change.state, change.cause)
        line.append(f"  {evidence.phrase(change.evidence)}", "dim")
        line.no_wrap, line.overflow = True, "ellipsis"
        lines.append(line)
    return lines


def _keys(text: str, out: Console) -> Text:
    plain = text if out.encoding.startswith("utf") else text.replace("↑ ↓", "up down")
    return Text(plain, "dim", no_wrap=True, overflow="ellipsis")
