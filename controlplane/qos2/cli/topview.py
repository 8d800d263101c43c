"""What `qos2 top` draws: links and classes as bars, flows as lines. Only the flows on the screen are rendered."""

import socket
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.text import Text

from qos2.cli import columns, render, topbars
from qos2.cli.columns import Context
from qos2.cli.sampling import Row, unit_of
from qos2.cli.selection import Selection
from qos2.cli.snapshot import Snapshot
from qos2.model import FlowState

#: At so few lines for flows, rules, classes and links give way to them, in this turn.
_LEAST_FLOWS = 5
#: From this height on, sections are set apart by empty lines.
_AIRY_LINES = 32

#: The most useful first; those that do not fit are in the help.
_KEYS = "q quit  ? help  ↑ ↓ enter details  / filter  s sort  p pause  r reverse"
_EMPTY = """
No flow yet: no program here has asked for quality of service.
"""
_EMPTY_BUT_RULES = """
No flow: no program here has asked for quality of service.
The rules above act on all others; `qos2 policy explain PID` tells which, and why.
"""
_EMPTY_UNPRIVILEGED = """
No flow of yours yet. Those of other users are seen by root and the group qos2.
"""
_FIRST_STEPS = """
Put any program, with its children, into a flow and look here again:
  qos2 run --type background --rate 20M -- rsync -a /data backup:
  qos2 run --type voice -- baresip
Programs can ask by themselves: `import qos2`, or the C library libqwave.
`qos2 status` tells what the daemon has attached to, and what is wrong.
"""


@dataclass(frozen=True, slots=True)
class Screen:
    """The lines above the flows, and how many flows fit below them."""

    above: list[Text]
    room: int


def screen(snapshot: Snapshot, selection: Selection, trouble: str, out: Console) -> Screen:
    """What stands above the flows, as much of it as the terminal has lines for."""
    # A flow, the head above it and the keys below it are always there.
    title = [_title(snapshot, selection, out.width), *_notices(snapshot, trouble)][: max(out.height - 3, 1)]
    gap = [Text()] if out.height >= _AIRY_LINES else []
    sections = [gap + section for section in _sections(snapshot, out, max(out.height // 8, 1))]
    room = out.height - len(title) - len(gap) - 2
    while sections and room - sum(map(len, sections)) < _LEAST_FLOWS:
        sections.pop()
    above = [line for section in sections for line in section]
    return Screen([*title, *above, *gap], max(room - len(above), 1))


def overview(snapshot: Snapshot, listed: Sequence[Row], selection: Selection, made: Screen, out: Console) -> Group:
    """The live view; `listed` are the flows that match, of which those on the screen are drawn."""
    shown = listed[selection.first : selection.first + made.room]
    flows = _flows(snapshot, listed, shown, selection, out)[: made.room + 1]
    flows += [Text()] * (made.room + 1 - len(flows))
    return Group(*made.above, *flows, _foot(listed, shown, selection, out))


def once(snapshot: Snapshot, listed: Sequence[Row], selection: Selection, out: Console) -> list[Text]:
    """Everything, line by line, however long."""
    lines = [_title(snapshot, selection, out.width), *_notices(snapshot, "")]
    for section in _sections(snapshot, out, max(len(snapshot.links), len(snapshot.rules))):
        lines += [Text(), *section]
    return [*lines, Text(), *_flows(snapshot, listed, listed, None, out)]


def _sections(snapshot: Snapshot, out: Console, most: int) -> list[list[Text]]:
    """The weightiest first; at most so many links, and so many rules."""
    made = (
        topbars.links(snapshot, out, most),
        topbars.classes(snapshot, out),
        topbars.rules(snapshot, out, most),
    )
    return [section for section in made if section]


def _title(snapshot: Snapshot, selection: Selection, width: int) -> Text:
    title = Text.assemble((f"{len(snapshot.rows)} flow{'s' * (len(snapshot.rows) != 1)}", "bold"))
    for state in (FlowState.CONGESTED, FlowState.RATE_LIMITED):
        number = sum(row.flow.state == state for row in snapshot.rows)
        if number:
            title.append(f"  {number} ").append(state, render.STATE_STYLES[state])
    if snapshot.interval_s:
        packets = sum(row.packets for row in snapshot.rows)
        title.append(f"  {render.bandwidth(snapshot.bits)}bit/s  {render.scaled(packets)} packets/s")
    else:
        title.append("  measuring ...", "dim")
    if selection.paused:
        title = Text.assemble(("PAUSED", "bold reverse"), "  ") + title
    where = f"qos2 top on {render.printable(socket.gethostname())}  "
    return columns.one_line(Text(where) + title if len(where) + title.cell_len <= width else title)


def _notices(snapshot: Snapshot, trouble: str) -> list[Text]:
    notices = []
    if trouble:
        text = f"NO ANSWER (asking again; below, the last look): {render.printable(trouble)}"
        notices.append(columns.one_line(Text(text, "bold red")))
    if not snapshot.privileged:
        notices.append(
            columns.one_line(Text("Your own flows only; root and the group qos2 see those of everybody.", "yellow"))
        )
    return notices


def _flows(
    snapshot: Snapshot, listed: Sequence[Row], shown: Sequence[Row], selection: Selection | None, out: Console
) -> list[Text]:
    """Head and lines of the flows `shown`; where there are none, why, and what to do."""
    if not snapshot.rows and snapshot.rules:
        return [columns.one_line(Text(each)) for each in _EMPTY_BUT_RULES.splitlines()]
    if not snapshot.rows:
        text = (_EMPTY if snapshot.privileged else _EMPTY_UNPRIVILEGED) + _FIRST_STEPS
        return [columns.one_line(Text(each)) for each in text.splitlines()]
    if not listed:
        return [columns.one_line(Text(f"None of {len(snapshot.rows)} flows has all of these words."))]
    marked = 0 if selection is None else 2
    empty = {"UNIT": not any(unit_of(row.flow) for row in listed), "RULE": not any(row.flow.rule for row in listed)}
    fit = columns.fitted(out.width - marked, without={head for head, is_empty in empty.items() if is_empty})
    context = Context(out, max(row.bits for row in snapshot.rows), rated=snapshot.interval_s > 0)
    lines = [_marked(columns.head(fit), " " * marked)]
    for row in shown:
        chosen = selection is not None and row.flow.flow == selection.chosen
        line = _marked(columns.body(row, fit, context), ("> " if chosen else "  ")[:marked])
        if chosen:
            line.stylize("reverse")
        lines.append(line)
    return lines


def _marked(line: Text, mark: str) -> Text:
    return Text.assemble(mark, line, no_wrap=True, overflow="crop") if mark else line


def _foot(listed: Sequence[Row], shown: Sequence[Row], selection: Selection, out: Console) -> Text:
    if selection.typing:
        prompt = Text.assemble(("filter: ", "bold"), selection.text, ("_", "blink"), f"  {len(listed)} flows")
        return columns.one_line(prompt.append("  enter keeps it, esc clears it", "dim"))
    parts = f"by {selection.order}{', reversed' * selection.reverse}"
    if selection.text:
        parts += f"; {len(listed)} with '{selection.text}', esc: all"
    if len(shown) < len(listed):
        parts += f"; {selection.first + 1} to {selection.first + len(shown)} of {len(listed)}"
    foot = Text.assemble((parts, "bold"))
    for hint in _KEYS.split("  "):
        plain = hint if out.encoding.startswith("utf") else hint.replace("↑ ↓", "up down")
        if foot.cell_len + 2 + len(plain) <= out.width:
            foot.append(f"  {plain}", "dim")
    return columns.one_line(foot)
