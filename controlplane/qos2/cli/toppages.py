"""The other pages of `qos2 top`: all about one flow, and the help. Both can be longer than the terminal is high."""

from textwrap import fill

from rich.console import Console, Group, RenderableType
from rich.segment import SegmentLines
from rich.text import Text

from qos2.cli import explain, flow, render, watchview
from qos2.cli.observations import Observation
from qos2.cli.sampling import unit_of
from qos2.cli.selection import SORTS, Selection

_KEYS = "q back  p pause  ↑ ↓ space scroll"

_HELP = """\
LINK   A device that the daemon has attached to. Its bar is its load as a
       share of its speed, or of the most seen so far (peak) where its driver
       states no speed. QUEUE: how long what waits in it takes to leave.
       SHAPER: what holds packets back there.
CLASS  The flows of a traffic type together, and their share of all that is
       sent. "in no flow": what the links carry beside, under no rule either.
RULE   A rule of the policy, and what it does to programs that never asked.
Flows, one line each; wider terminals show more:
  BIT/s     what it sends now, headers of IP included
  CONTRACT  the rate it is held at; - none
  USE       its rate as a share of its contract; of the largest rate without one
  STATE     congested: the network delays, drops or marks its packets
            rate_limited: its own contract holds it back, the network is free
            uncongested: neither; if it is slow, its program or the other end is
            unknown: nothing has come back lately that would tell
  FOR       for how long that has been so
  HELD RMRK DROP  packets/s that its contract delayed, marked down, dropped
  DSCP      what its packets are marked with; 40/0: above its contract with 0
  UNIT RULE the unit of its program; the rule of the policy that applies to it

  q         quit; from here and from a flow, back
  ↑ ↓ ...   the cursor, which stays with its flow; space, page up, page down,
            home, end, j, k as well
  enter     all about the flow of the cursor: its course, `qos2 explain` and
            `qos2 flow` in one
  /         filter while you type: flows that have all of the words in program,
            pid, unit, user, address, type, state, rule or id; enter keeps it
  esc       without cursor, then without filter
  s         next order: {orders}
  r         that order in reverse
  p         pause: nothing moves until p again
"""


def details(observed: Observation | None, selection: Selection, trouble: str, out: Console) -> Group:
    """The course of one flow, why it is in its state, and every fact and counter. None: not told yet."""
    if observed is None:
        return _page([Text(f"NO ANSWER: {trouble}" if trouble else "asking the daemon ...")], selection, out)
    parts: list[RenderableType] = [_heading(observed, selection, trouble), Text()]
    parts += [watchview.plot_sheet(observed, out), Text()]
    if observed.explanation is not None:
        parts += [explain.sheet(observed.flow, observed.explanation), Text()]
    parts.append(flow.flow_sheet(observed.flow))
    return _page(parts, selection, out)


def _heading(observed: Observation, selection: Selection, trouble: str) -> Text:
    seen = observed.flow
    title = Text.assemble(("PAUSED", "bold reverse"), "  ") if selection.paused else Text()
    title.append(render.program(seen.program, seen.pid), "bold").append(f" of {render.user(seen.uid)}")
    if unit := unit_of(seen):
        title.append(f" in {unit}")
    title.append(f", {render.type_label(seen.traffic_type)}: ")
    if observed.explanation is None:
        title.append("the flow has ended", "bold")
    else:
        title.append_text(render.state_text(seen.state, seen.cause))
    if trouble:
        title.append(f"\nNO ANSWER: {render.printable(trouble)}; this is the last that is known", "bold red")
    return title


def help_page(selection: Selection, out: Console) -> Group:
    """What is shown, and what the keys do."""
    text = _HELP.format(orders=fill(", ".join(SORTS), 56, subsequent_indent=" " * 12))
    return _page([Text(text.rstrip())], selection, out)


def _page(parts: list[RenderableType], selection: Selection, out: Console) -> Group:
    """As many lines as fit, from where it is scrolled to; it is never scrolled beyond the end."""
    room = max(out.height - 1, 1)
    lines = out.render_lines(Group(*parts), pad=False)
    selection.scrolled = max(min(selection.scrolled, len(lines) - room), 0)
    shown = lines[selection.scrolled : selection.scrolled + room]
    shown += [[] for _ in range(room - len(shown))]
    foot = Text(_KEYS if out.encoding.startswith("utf") else _KEYS.replace("↑ ↓", "up down"), "dim")
    if len(lines) > room:
        foot = Text(f"{selection.scrolled + 1} to {selection.scrolled + room} of {len(lines)} lines  ", "bold") + foot
    foot.no_wrap, foot.overflow = True, "ellipsis"
    return Group(SegmentLines(shown, new_lines=True), foot)
