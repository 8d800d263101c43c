"""Changes of the state of flows as lines, for pipes and logs: `key=value` columns or JSON, one line each.

A look at the flows tells their present state only; what happened since the look before comes from the
daemon's memory of the last changes, so none of up to ten is missed however slowly one looks.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qos2.cli import evidence, render
from qos2.cli.ports import Client
from qos2.errors import NoSuchFlow
from qos2.wire.protocol import FlowDetails

#: The state of a flow that is there no more.
ENDED = "ended"
#: The columns behind the state, `-` where a number is not among the evidence; JSON has all of it.
COLUMNS = ("queue_delay_us", "loss", "ce_share", "bad_windows", "rtt_us", "baseline_rtt_us", "own_delay_us")
#: Ages come from one clock and are subtracted from another, with the time of a request in between.
_SLACK_S = 0.25


@dataclass(frozen=True, slots=True)
class Change:
    """From `at_s` (seconds since 1970) on a flow was in this state."""

    at_s: float
    flow: FlowDetails
    state: str
    cause: str | None
    evidence: Mapping[str, float]

    def line(self) -> str:
        """Columns that are always the same, separated by spaces; a value with a space in it is quoted."""
        values = {
            "time": self.time,
            "flow": render.hex_id(self.flow.flow),
            "program": _word(render.printable(self.flow.program)),
            "pid": str(self.flow.pid),
            "state": self.state,
            "cause": self.cause or "-",
        }
        numbers = evidence.known(self.evidence)
        values |= {name: f"{numbers[name]:.6g}" if name in numbers else "-" for name in COLUMNS}
        return " ".join(f"{name}={value}" for name, value in values.items())

    def document(self) -> dict[str, Any]:
        """The JSON form, with the whole evidence."""
        return {
            "time": self.time,
            "flow": render.hex_id(self.flow.flow),
            "program": self.flow.program,
            "pid": self.flow.pid,
            "state": self.state,
            "cause": self.cause,
            "evidence": dict(self.evidence),
        }

    @property
    def time(self) -> str:
        """ISO 8601 to the millisecond, in UTC."""
        return datetime.fromtimestamp(self.at_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class _Known:
    """What was told last of a flow."""

    flow: FlowDetails
    since_s: float  #: of the clock of the looks

    def is_that(self, since_s: float, state: str, cause: str | None, evidence: Mapping[str, float]) -> bool:
        if (state, cause) != (self.flow.state, self.flow.cause):
            return False
        # A daemon that was late does not make an old change a new one: its numbers are the same.
        return abs(since_s - self.since_s) <= _SLACK_S or dict(evidence) == dict(self.flow.evidence) != {}


class Changes:
    """What to tell of flows, look by look."""

    def __init__(self, qos: Client) -> None:
        self._qos = qos
        self._known: dict[int, _Known] = {}

    def of(self, flows: Sequence[FlowDetails], now_s: float, time_s: float) -> Iterator[Change]:
        """After a look: a first line per flow, then what changed, oldest first.

        `now_s` is the look's moment on a clock that nobody sets, `time_s` the same since 1970.
        """
        epoch_s = time_s - now_s
        present = {flow.flow for flow in flows}
        for gone in [number for number in self._known if number not in present]:
            yield Change(time_s, self._known.pop(gone).flow, ENDED, None, {})
        for flow in flows:
            since_s = now_s - flow.state_s
            known = self._known.get(flow.flow)
            if known is not None and known.is_that(since_s, flow.state, flow.cause, flow.evidence):
                continue
            news = [] if known is None else self._since(known, flow, now_s, epoch_s)
            yield from news or [Change(since_s + epoch_s, flow, flow.state, flow.cause, flow.evidence)]
            self._known[flow.flow] = _Known(flow, since_s)

    def _since(self, known: _Known, flow: FlowDetails, now_s: float, epoch_s: float) -> list[Change]:
        """What the daemon remembers behind what was told last, up to the state seen now."""
        try:
            remembered = self._qos.explain(flow.flow).changes
        except NoSuchFlow:
            return []  # it has just ended, which the next look tells
        news: list[Change] = []
        for change in remembered:
            since_s = now_s - change.ago_s
            old = since_s < known.since_s - _SLACK_S
            if old or known.is_that(since_s, change.state, change.cause, change.evidence):
                break
            if since_s <= now_s - flow.state_s + _SLACK_S:  # later ones are the next look's
                news.append(Change(since_s + epoch_s, flow, change.state, change.cause, change.evidence))
        return news[::-1]


def _word(text: str) -> str:
    plain = text and not any(c in ' "=\\' for c in text)
    return text if plain else json.dumps(text, ensure_ascii=False)
