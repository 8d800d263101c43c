"""What the keys of `qos2 top` change: which flows are shown, in what order, and which of them is looked at. Pure."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

from qos2.cli import render
from qos2.cli.observations import SEVERITY
from qos2.cli.sampling import Row, unit_of
from qos2.cli.snapshot import Snapshot

#: What flows can be ordered by: the largest rate, the fullest contract, the worst state first, names from A on ...
SORTS: dict[str, Callable[[Row], Any]] = {
    "rate": lambda row: -row.bits,
    "use": lambda row: -(row.use or 0.0),
    "state": lambda row: (SEVERITY.index(row.flow.state), row.flow.state_s),
    "type": lambda row: row.flow.traffic_type,
    "name": lambda row: row.flow.program,
    "unit": lambda row: unit_of(row.flow),
    "user": lambda row: render.user(row.flow.uid),
    "packets": lambda row: -row.packets,
    "held": lambda row: -row.delayed,
    "drops": lambda row: -row.dropped,
    "id": lambda row: 0,
}

Page = Literal["flows", "details", "help"]


def ordered(rows: Sequence[Row], order: str, *, reverse: bool = False) -> list[Row]:
    """The rows as one of SORTS wants them."""
    return sorted(rows, key=lambda row: (SORTS[order](row), row.flow.flow), reverse=reverse)


def matching(rows: Sequence[Row], text: str) -> Sequence[Row]:
    """Those that have every word of the text somewhere: in program, unit, user, addresses, type, state, rule or id."""
    words = text.lower().split()
    if not words:
        return rows
    return [row for row in rows if all(word in searched for searched in [_searched(row)] for word in words)]


def _searched(row: Row) -> str:
    flow = row.flow
    parts = (
        flow.program, str(flow.pid), unit_of(flow), render.user(flow.uid), render.type_label(flow.traffic_type),
        flow.state, flow.cause or "", render.hex_id(flow.flow), flow.rule, *flow.members,
    )  # fmt: skip
    return "\n".join(parts).lower()


class Selection:
    """The state of the live view. `chosen` is the id of the flow that the cursor is on, None without a cursor."""

    def __init__(self, order: str, text: str = "") -> None:
        self.page: Page = "flows"
        self.order = order
        self.reverse = False
        self.text = text
        self.typing = False
        self.paused = False
        self.chosen: int | None = None
        self.first = 0  #: number of the first flow shown
        self.scrolled = 0  #: lines, in the other pages
        self._listed: tuple[object, list[Row]] = (None, [])

    def listed(self, snapshot: Snapshot) -> list[Row]:
        """Its flows that match the filter, in order; made once for each look."""
        key = (snapshot.at_s, self.text, self.order, self.reverse)
        if self._listed[0] != key:
            self._listed = key, ordered(matching(snapshot.rows, self.text), self.order, reverse=self.reverse)
        return self._listed[1]

    def settle(self, listed: Sequence[Row], room: int) -> None:
        """Keep the cursor's flow, wherever it has gone to, and the list within the `room` of the screen."""
        number = self._number(listed)
        if number is not None:
            self.first = min(max(self.first, number - room + 1), number)
        self.first = max(min(self.first, len(listed) - room), 0)

    def press(self, key: str, listed: Sequence[Row], room: int) -> bool:
        """A key by its name. False: to quit."""
        if self.page != "flows":
            return self._turn(key, room)
        if key == "q":
            return False
        if key in ("up", "down", "page up", "page down", "home", "end", "j", "k"):
            self._move({"j": "down", "k": "up"}.get(key, key), listed, room)
        elif key == "enter" and listed:
            if self._number(listed) is None:
                self.chosen = listed[self.first].flow.flow
            self.page, self.scrolled = "details", 0
        elif key == "escape":
            self.chosen, self.text = None, "" if self.chosen is None else self.text
        elif key in ("?", "h"):
            self.page, self.scrolled = "help", 0
        else:
            self._arrange(key)
        return True

    def type(self, typed: str, key: str) -> None:
        """A key while the filter is being typed; it filters at once."""
        if key == "enter":
            self.typing = False
        elif key == "escape":
            self.text, self.typing = "", False
        elif key in ("backspace", "clear"):
            self.text = self.text[:-1] if key == "backspace" else ""
        elif len(typed) == 1 and typed.isprintable():
            self.text += typed
        self.first = 0

    def _arrange(self, key: str) -> None:
        if key == "p":
            self.paused = not self.paused
        elif key == "r":
            self.reverse = not self.reverse
        elif key == "s":
            names = list(SORTS)
            self.order = names[(names.index(self.order) + 1) % len(names)]
        elif key == "/":
            self.typing = True

    def _turn(self, key: str, room: int) -> bool:
        """A key in one of the other pages, which q leaves as well."""
        if key in ("q", "escape", "enter", "backspace", "?", "h"):
            self.page = "flows"
        elif key == "p":
            self.paused = not self.paused
        steps = {"up": -1, "k": -1, "down": 1, "j": 1, "page up": -room, "page down": room, "home": -self.scrolled}
        # The page itself knows where it ends.
        self.scrolled = max(self.scrolled + steps.get(key, 0), 0)
        return True

    def _move(self, key: str, listed: Sequence[Row], room: int) -> None:
        number = self._number(listed)
        if not listed:
            return
        last = len(listed) - 1
        steps = {"up": -1, "down": 1, "page up": -room, "page down": room, "home": -last, "end": last}
        # Without a cursor the first arrow only shows it.
        step = 0 if number is None and key in ("up", "down") else steps[key]
        start = self.first if number is None else number
        self.chosen = listed[max(min(start + step, last), 0)].flow.flow

    def _number(self, listed: Sequence[Row]) -> int | None:
        if self.chosen is None:
            return None
        return next((number for number, row in enumerate(listed) if row.flow.flow == self.chosen), None)
