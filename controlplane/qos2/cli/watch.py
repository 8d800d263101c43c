"""`qos2 watch [FLOW]`: the states of flows and what they rest on, live.

Where the output is a terminal, a view of all flows or a larger one of one flow; into pipes and files, and with
--json, one line per flow at first and one for each change. With --once the view is printed once.
"""

import io
import json
import select
import time
from argparse import Namespace
from collections.abc import Sequence

from rich.console import Console, RenderableType
from rich.live import Live

from qos2.cli import watchview
from qos2.cli.changes import Changes
from qos2.cli.keyboard import Keyboard, terminated_by_exception
from qos2.cli.observations import ORDERS, Look, Observations
from qos2.cli.ports import Client
from qos2.errors import NoSuchFlow
from qos2.wire.protocol import FlowDetails


def execute(qos: Client, arguments: Namespace, out: Console) -> int:
    """Show states until q, Ctrl-C, SIGTERM, the end of the one flow, or of whoever reads."""
    look = _look_at(qos, arguments.flow)
    with terminated_by_exception():
        try:
            if arguments.json or not (arguments.once or out.is_terminal):
                _follow(qos, arguments, out, look)
            elif arguments.once:
                _once(qos, arguments, out, look)
            else:
                _live(qos, arguments, out, look)
        except KeyboardInterrupt:
            pass  # the usual way to leave
    return 0


def _look_at(qos: Client, one: int | None) -> Look:
    """All flows that may be seen, or the one. Raises NoSuchFlow where there is none; later, it has ended."""
    if one is None:
        return qos.flows
    waiting = [qos.flow_details(one)]

    def look() -> Sequence[FlowDetails]:
        if waiting:
            return [waiting.pop()]
        try:
            return [qos.flow_details(one)]
        except NoSuchFlow:
            return []

    return look


def _follow(qos: Client, arguments: Namespace, out: Console, look: Look) -> None:
    """Lines. Of one flow the last one says that it has ended."""
    changes = Changes(qos)
    while True:
        begun_s = time.monotonic()
        flows = look()
        for change in changes.of(flows, time.monotonic(), time.time()):
            # Past the console, which would wrap it.
            out.file.write((json.dumps(change.document()) if arguments.json else change.line()) + "\n")
        out.file.flush()
        if arguments.once or (arguments.flow is not None and not flows):
            return
        _wait_for_reader(out, begun_s + arguments.interval - time.monotonic())


def _wait_for_reader(out: Console, seconds: float) -> None:
    """Wait; raises BrokenPipeError as soon as nobody reads any more: without changes nothing is written."""
    seconds = max(seconds, 0.0)
    try:
        descriptor = out.file.fileno()
    except io.UnsupportedOperation:  # a file in memory has no reader
        time.sleep(seconds)
        return
    poll = select.poll()
    poll.register(descriptor, 0)
    if poll.poll(seconds * 1000):
        raise BrokenPipeError


def _once(qos: Client, arguments: Namespace, out: Console, look: Look) -> None:
    seen = Observations(qos, look)
    time.sleep(arguments.interval)
    seen.look()
    if not seen.flows:
        out.print("no flows" if arguments.flow is None else "the flow has ended")
    elif arguments.flow is None:
        out.print(watchview.overview(seen.shown(arguments.sort, 0, len(seen.flows)), seen.flows, out))
    else:
        out.print(watchview.closeup(seen.shown("id", 0, 1)[0], out))


def _live(qos: Client, arguments: Namespace, out: Console, look: Look) -> None:
    seen = Observations(qos, look)
    position = Position(arguments.sort)
    with Keyboard() as keyboard, Live(console=out, screen=True, auto_refresh=False) as live:
        while seen.flows or arguments.flow is None:
            live.update(_view(seen, position, arguments.flow is not None, out), refresh=True)
            wait_s = arguments.interval if position.paused else seen.at_s + arguments.interval - time.monotonic()
            key = keyboard.wait(wait_s)
            if key == "q":
                return
            position.move(key, watchview.room(out), len(seen.flows))
            if not position.paused and time.monotonic() >= seen.at_s + arguments.interval:
                seen.look()
    out.print("the flow has ended")


class Position:
    """What the keys change: order, the first flow shown, and whether time stands still."""

    def __init__(self, order: str) -> None:
        self.order = order
        self.first = 0
        self.paused = False

    def move(self, key: str, room: int, flows: int) -> None:
        """After a key; `room` flows of so many fit the screen."""
        if key == "p":
            self.paused = not self.paused
        elif key == "s":
            names = list(ORDERS)
            self.order = names[(names.index(self.order) + 1) % len(names)]
        steps = {"up": -1, "down": 1, "page up": -room, "page down": room, "home": -self.first}
        self.first = max(min(self.first + steps.get(key, 0), flows - room), 0)


def _view(seen: Observations, position: Position, one: bool, out: Console) -> RenderableType:
    if one:
        return watchview.closeup(seen.shown("id", 0, 1)[0], out, live=True, paused=position.paused)
    shown = seen.shown(position.order, position.first, watchview.room(out))
    status = watchview.Status(position.order, position.first, position.paused)
    return watchview.overview(shown, seen.flows, out, status)
