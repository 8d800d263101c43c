"""Traces of signals: all that the judge of congestion is given of one flow, with the truth about its path.

A file is text. Its header says what it is (`# name: value`) and what is true of the path (`# congested: ...` and so
on, see `Truth`); then a table follows, one line per window that brought anything new:

    at_ms,bytes,srtt_us,offers
    100,12000,20400,
    200,6000,,probe:80120:2:2:0

Counters (SIGNALS) are written as what they grew by, the others (GAUGES) as they are; empty is 0, or as before. Offers
are `method:rtt_us:round_trips:sent:lost`, several with a blank between them. Windows that are left out come every
0.1 s.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np

from qos2.core.congestion import Detector
from qos2.core.signals import SIGNALS
from qos2.core.thresholds import Thresholds
from qos2.model import Cause, FlowState, Method

FOLDER = Path(__file__).with_name("traces")
WINDOW_MS = 100
#: How soon congestion must be stated after its begin, unless the label says otherwise; and how soon that it ended.
WITHIN_S, ENDED_WITHIN_S = 1.0, 3.0

#: Not counters: written as they are. The kernel's `lost` is what is under way and given up.
GAUGES = ("srtt_us", "min_rtt_us", "lost")
_SLOT = 1
_TRUTH = re.compile(
    r"# (?P<kind>congested|undecided|mistaken|unseen): (?P<begin>[\d.]+) (?P<end>[\d.]+)"
    r"(?: (?P<cause>[a-z_]+))?(?: within (?P<within>[\d.]+))?(?: ended (?P<ended>[\d.]+))?(?:: (?P<reason>.+))?"
)


class TruthKind(StrEnum):
    CONGESTED = "congested"  #: must be stated
    UNDECIDED = "undecided"  #: may be stated: the reason says why nobody could tell
    MISTAKEN = "mistaken"  #: is stated although it is not true: a published limit of the detector
    UNSEEN = "unseen"  #: is true and not stated: likewise


@dataclass(frozen=True, slots=True)
class Truth:
    """What is true of the path from `begin_s` to `end_s`; at all other times it is not congested."""

    kind: TruthKind
    begin_s: float
    end_s: float
    cause: Cause | None = None
    within_s: float = WITHIN_S
    ended_within_s: float = ENDED_WITHIN_S
    reason: str = ""

    def __str__(self) -> str:
        cause = f" {self.cause.value}" if self.cause is not None else ""
        within = f" within {self.within_s:g}" if self.within_s != WITHIN_S else ""
        ended = f" ended {self.ended_within_s:g}" if self.ended_within_s != ENDED_WITHIN_S else ""
        reason = f": {self.reason}" if self.reason else ""
        return f"# {self.kind.value}: {self.begin_s:.1f} {self.end_s:.1f}{cause}{within}{ended}{reason}"


class Offer(NamedTuple):
    """What somebody else saw of the flow, as the detector takes it."""

    method: Method
    rtt_us: int | None
    round_trips: int = 1
    sent: int = 0
    lost: int = 0

    def __str__(self) -> str:
        rtt = "" if self.rtt_us is None else self.rtt_us
        return f"{self.method.value}:{rtt}:{self.round_trips}:{self.sent}:{self.lost}"


class Window(NamedTuple):
    """One look: what the counters grew by, gauges that are new, and offers since the last look."""

    at_ms: int
    news: Mapping[str, int]
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True)
class Trace:
    """`origin`: generated with which seed, or recorded where and when."""

    kind: str
    about: str
    origin: str
    seconds: float
    truth: tuple[Truth, ...]
    windows: tuple[Window, ...]


class Change(NamedTuple):
    """A state that the detector came to."""

    at_s: float
    state: FlowState
    cause: Cause | None


def decimated(windows: Iterable[Window]) -> Iterator[Window]:
    """Without what brought nothing new."""
    gauges = dict.fromkeys(GAUGES, 0)
    for window in windows:
        news = {name: value for name, value in window.news.items() if value != gauges.get(name, 0)}
        gauges |= {name: value for name, value in news.items() if name in gauges}
        if news or window.offers:
            yield Window(window.at_ms, news, window.offers)


def written(trace: Trace) -> str:
    """The text of a trace's file."""
    windows = list(decimated(trace.windows))
    columns = [name for name in SIGNALS.names or () if any(name in window.news for window in windows)]
    lines = [f"# kind: {trace.kind}", f"# about: {trace.about}", f"# origin: {trace.origin}"]
    lines += [f"# seconds: {trace.seconds:g}", *map(str, trace.truth), ",".join(["at_ms", *columns, "offers"])]
    for window in windows:
        values = [str(window.news.get(name, "")) for name in columns]
        lines.append(",".join([str(window.at_ms), *values, " ".join(map(str, window.offers))]))
    return "\n".join(lines) + "\n"


def read(text: str) -> Trace:
    """The trace of a file's text. Raises ValueError where it is none."""
    head: dict[str, str] = {}
    truth = []
    lines = iter(text.splitlines())
    for line in lines:
        if not line.startswith("# "):
            columns = line.split(",")[1:-1]
            break
        if label := _TRUTH.fullmatch(line):
            truth.append(_label(label))
        else:
            name, found, value = line[2:].partition(": ")
            if not found or name not in ("kind", "about", "origin", "seconds"):
                raise ValueError(f"no such header line: {line!r}")
            head[name] = value
    else:
        raise ValueError("a header without a table")
    if not set(columns) <= set(SIGNALS.names or ()):
        raise ValueError(f"columns {columns} are not all signals")
    windows = tuple(_window(columns, line) for line in lines)
    return Trace(head["kind"], head["about"], head["origin"], float(head["seconds"]), tuple(truth), windows)


def _label(found: re.Match[str]) -> Truth:
    return Truth(
        TruthKind(found["kind"]),
        float(found["begin"]),
        float(found["end"]),
        None if found["cause"] is None else Cause(found["cause"]),
        WITHIN_S if found["within"] is None else float(found["within"]),
        ENDED_WITHIN_S if found["ended"] is None else float(found["ended"]),
        found["reason"] or "",
    )


def _window(columns: list[str], line: str) -> Window:
    at_ms, *values, offers = line.split(",")
    news = {name: int(value) for name, value in zip(columns, values, strict=True) if value}
    return Window(int(at_ms), news, tuple(map(_offer, offers.split())))


def _offer(text: str) -> Offer:
    method, rtt_us, round_trips, sent, lost = text.split(":")
    return Offer(Method(method), int(rtt_us) if rtt_us else None, int(round_trips), int(sent), int(lost))


def every_window(trace: Trace) -> Iterator[Window]:
    """Those of the file, and in between and after them those that were left out."""
    at_ms = 0
    for window in trace.windows:
        while window.at_ms - at_ms >= 1.5 * WINDOW_MS:
            at_ms += WINDOW_MS
            yield Window(at_ms, {})
        at_ms = window.at_ms
        yield window
    while at_ms < trace.seconds * 1000:
        at_ms += WINDOW_MS
        yield Window(at_ms, {})


def turn(counters: np.ndarray, row: int, news: Mapping[str, int]) -> None:
    """Have the counters of a flow (SIGNALS, one row each) say what is new."""
    for name, value in news.items():
        if name in GAUGES:
            counters[name][row] = value
        else:
            counters[name][row] = int(counters[name][row]) + value


def replay(trace: Trace) -> list[Change]:
    """All that a detector says of a trace, oldest first."""
    detector, slots, counters = Detector(Thresholds(), _SLOT + 1), np.array([_SLOT]), np.zeros(1, SIGNALS)
    detector.begin(_SLOT, 0.0)
    changes = []
    for window in every_window(trace):
        turn(counters, 0, window.news)
        for offer in window.offers:
            detector.offer(_SLOT, **offer._asdict())
        if len(detector.step(window.at_ms / 1000, slots, counters.copy())):
            judgement = detector.explain(_SLOT).judgement
            changes.append(Change(judgement.since_s, judgement.state, judgement.cause))
    return changes
