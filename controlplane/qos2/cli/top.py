"""`qos2 top`: who sends what now: links, classes and flows, live.

Where the output is no terminal, and with --once or --json, one look after one interval.
"""

import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from qos2.cli import render, toppages, topview
from qos2.cli.feed import Feed
from qos2.cli.keyboard import Bell, Keyboard, name_of, terminated_by_exception
from qos2.cli.observations import Observation
from qos2.cli.ports import Client
from qos2.cli.sampling import Rates, Row
from qos2.cli.selection import Selection, matching, ordered
from qos2.cli.snapshot import Looks, Snapshot
from qos2.client import Handle

Connect = Callable[[], Client]

#: Without news the view is drawn anew so often, seconds.
_REDRAW_S = 2.0
#: A daemon that takes longer for an answer is said to be silent, seconds. (65,536 flows take one or two.)
_SILENT_S = 5.0


def execute(qos: Client, arguments: Namespace, out: Console, connect: Connect | None = None) -> int:
    """Show it once or until q. `connect` reaches a daemon that went away (None: by a handle of its own)."""
    live = out.is_terminal and not (arguments.once or arguments.json)
    out = render.console(out.file, color=arguments.color)
    if live:
        _live(qos, arguments, out, connect or (lambda: Handle(arguments.socket)))
        return 0
    looks = Looks(qos)
    looks.look()
    time.sleep(arguments.interval)
    snapshot = looks.look()
    listed = ordered(matching(snapshot.rows, arguments.filter), arguments.sort)
    if arguments.json:
        render.write_json(out, document(snapshot, listed))
    else:
        _print(topview.once(snapshot, listed, Selection(arguments.sort, arguments.filter), out), out)
    return 0


def document(snapshot: Snapshot, listed: Sequence[Row]) -> dict[str, Any]:
    """The JSON form. `use` of a flow is the share of its contract, of a link that of its speed; None: not known.

    Classes have all flows, `flows` those `listed`. `rules` are those of the policy that
    apply to packets in no flow; `in_no_flow_bits_per_s`: what the links carry beside flows and rules.
    """
    return {
        "interval_s": snapshot.interval_s,
        "privileged": snapshot.privileged,
        "links": [
            {
                "name": link.device.name,
                "netns_cookie": link.device.netns_cookie,
                "speed_bits_per_s": link.device.speed_bps,
                "load_bits_per_s": link.device.load_bps,
                "use": link.used,
                "backlog_bytes": link.device.backlog_bytes,
                "shaper": link.device.shaper.value,
            }
            for link in snapshot.links
        ],
        "classes": [
            {
                "traffic_type": render.type_label(each.traffic_type),
                "flows": each.flows,
                "bits_per_s": each.bits,
                "states": {state: number for state, number in sorted(each.states.items())},
            }
            for each in snapshot.classes()
        ],
        "rules": [{"name": rule.details.name, **_rates(rule.rates)} for rule in snapshot.rules],
        "in_no_flow_bits_per_s": snapshot.rest_bits,
        "flows": [_flow(row) for row in listed],
    }


def _flow(row: Row) -> dict[str, Any]:
    flow = row.flow
    return {
        "id": render.hex_id(flow.flow),
        "traffic_type": render.type_label(flow.traffic_type),
        "program": flow.program,
        "pid": flow.pid,
        "uid": flow.uid,
        "unit": flow.unit or None,
        "bandwidth": flow.bandwidth or None,
        **_rates(row),
        "use": row.use,
        "rule": flow.rule or None,
        "denied": flow.denied,
        "state": flow.state,
        "cause": flow.cause,
        "state_s": flow.state_s,
        "members": flow.members,
    }


def _rates(rates: Row | Rates) -> dict[str, float]:
    return {
        "bits_per_s": rates.bits,
        "packets_per_s": rates.packets,
        "delayed_per_s": rates.delayed,
        "remarked_per_s": rates.remarked,
        "dropped_per_s": rates.dropped,
    }


def _print(lines: Sequence[Text], out: Console) -> None:
    if out.is_terminal and len(lines) <= render.STYLED_ROWS:
        for line in lines:
            line.end = "\n"
            out.print(line)
    else:
        out.file.write("".join(f"{line.plain.rstrip()}\n" for line in lines))


def _live(qos: Client, arguments: Namespace, out: Console, connect: Connect) -> None:
    selection = Selection(arguments.sort, arguments.filter)
    with (
        terminated_by_exception(),
        Bell() as bell,
        Feed(qos, connect, arguments.interval, bell.ring) as feed,
        Keyboard() as keyboard,
        Live(console=out, screen=True, auto_refresh=False) as live,
    ):
        try:
            while _step(selection, feed, keyboard, bell, live, out):
                feed.check()
        except KeyboardInterrupt:
            pass  # the usual way to leave


def _step(selection: Selection, feed: Feed, keyboard: Keyboard, bell: Bell, live: Live, out: Console) -> bool:
    """Draw, wait for a key or news, and obey. False: to quit."""
    snapshot, trouble = feed.latest, _trouble(feed)
    listed: list[Row] = []
    room = 1
    if snapshot is None:
        live.update(Text(f"NO ANSWER: {trouble}" if trouble else "asking the daemon ..."), refresh=True)
    else:
        drawn, listed, room = _drawn(snapshot, selection, feed.observed, trouble, out)
        live.update(drawn, refresh=True)
    typed = keyboard.typed(_REDRAW_S, bell)
    if typed is None:
        return True
    if not typed:  # the terminal has hung up
        return False
    if selection.typing:
        selection.type(typed, name_of(typed))
        return True
    before = selection.page, selection.paused
    goes_on = selection.press(name_of(typed), listed, room)
    if (selection.page, selection.paused) != before:
        feed.pause(selection.paused)
        chosen = [row.flow for row in listed if row.flow.flow == selection.chosen]
        feed.follow(chosen[0] if selection.page == "details" and chosen else None)
    return goes_on


def _trouble(feed: Feed) -> str:
    """What is wrong with the daemon; empty if nothing is."""
    if feed.silent_s > _SILENT_S:
        return f"it has not answered for {feed.silent_s:.0f} s"
    return feed.trouble


def _drawn(
    snapshot: Snapshot, selection: Selection, observed: Observation | None, trouble: str, out: Console
) -> tuple[RenderableType, list[Row], int]:
    """The page, the flows that match, and how many lines of it move at a time."""
    listed, room = selection.listed(snapshot), max(out.height - 1, 1)
    if selection.page == "details":
        return toppages.details(observed, selection, trouble, out), listed, room
    if selection.page == "help":
        return toppages.help_page(selection, out), listed, room
    made = topview.screen(snapshot, selection, trouble, out)
    selection.settle(listed, made.room)
    return topview.overview(snapshot, listed, selection, made, out), listed, made.room
