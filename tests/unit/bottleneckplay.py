"""A TCP flow, or a probed one, over a bottleneck with a queue: a play in steps of 10 ms, for traces.

Traffic is a fluid. The queue is first in, first out, and drops what does not fit; with marking, what leaves after it
waited too long is marked. TCP is Reno with a factor of 0.7 (as cubic has) and hears of everything one round trip of
the path later; its round trip is smoothed as the kernel does it: an eighth per acknowledgement.
"""

import math
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from qos2.model import Method
from unit.queuetruth import Sample
from unit.signaltraces import WINDOW_MS, Offer, Window

STEP_S = 0.01
SEGMENT_BYTES = 1500
FIRST_WINDOW = 10.0
BACK_OFF = 0.7
#: TCP acknowledges every second segment.
SEGMENTS_PER_ACK = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Play:
    """`own` and `cross`: what the application and somebody else want at a time, as shares of `rate` (bits/s)."""

    own: Callable[[float], float]
    cross: Callable[[float], float]
    rate: float = 20e6
    base_us: float = 20_000.0
    buffer_s: float = 0.1
    mark_above_s: float = math.inf
    restarts_s: float = math.inf  #: so often TCP begins anew with its first window
    probed: bool = False  #: UDP, seen by two probes a window, and not TCP


class _Served(NamedTuple):
    own: float  #: bytes
    cross: float
    own_lost: float
    cross_lost: float
    delay_s: float


class _Queue:
    """First in, first out, of two; what it holds is mixed."""

    def __init__(self, rate: float, buffer_s: float) -> None:
        self._step_bytes = rate / 8 * STEP_S
        self._room_bytes = rate / 8 * buffer_s
        self._rate = rate
        self._own = self._cross = 0.0

    def step(self, own: float, cross: float) -> _Served:
        """So many bytes arrive; what leaves, and what does not fit."""
        arrived = own + cross
        over = max(0.0, self._own + self._cross + arrived - self._step_bytes - self._room_bytes)
        dropped = min(1.0, over / arrived) if arrived else 0.0
        self._own += own * (1 - dropped)
        self._cross += cross * (1 - dropped)
        held = self._own + self._cross
        share = min(1.0, self._step_bytes / held) if held else 0.0
        served = self._own * share, self._cross * share
        self._own -= served[0]
        self._cross -= served[1]
        return _Served(*served, own * dropped, cross * dropped, (self._own + self._cross) * 8 / self._rate)


class _Heard(NamedTuple):
    at_s: float
    delivered: float  #: segments
    lost: float
    marked: float
    delay_s: float


class _Tcp:
    def __init__(self, base_us: float) -> None:
        self.base_s = base_us / 1e6
        self.srtt_us = base_us
        self._window, self._threshold = FIRST_WINDOW, math.inf
        self._pending = 0.0  #: segments that the application has written
        self._full = False
        self._recovered_s = 0.0
        self._under_way: deque[_Heard] = deque()

    def restart(self) -> None:
        self._window, self._threshold = FIRST_WINDOW, math.inf

    def send(self, wanted: float) -> float:
        """Segments that go out now. The application writes `wanted` more, as long as 0.25 s of it fit its buffer."""
        self._pending = min(self._pending + wanted, 25 * wanted)
        allowed = self._window / (self.srtt_us / 1e6) * STEP_S
        sent = min(self._pending, allowed)
        self._full = sent >= 0.99 * allowed
        self._pending -= sent
        return sent

    def left(self, now_s: float, served: _Served, marked: float) -> None:
        """What left the queue is heard of one round trip of the path later."""
        delivered, lost = served.own / SEGMENT_BYTES, served.own_lost / SEGMENT_BYTES
        self._under_way.append(_Heard(now_s + self.base_s, delivered, lost, marked, served.delay_s))

    def hear(self, now_s: float, jitter_us: float) -> _Heard:
        """What has been acknowledged by now."""
        delivered = lost = marked = 0.0
        while self._under_way and self._under_way[0].at_s <= now_s:
            heard = self._under_way.popleft()
            delivered, lost, marked = delivered + heard.delivered, lost + heard.lost, marked + heard.marked
            sample_us = (self.base_s + heard.delay_s) * 1e6 + jitter_us
            acks = heard.delivered / SEGMENTS_PER_ACK
            self.srtt_us += (sample_us - self.srtt_us) * (1 - (7 / 8) ** acks)
        self._adapt(now_s, delivered, lost, marked)
        return _Heard(now_s, delivered, lost, marked, 0.0)

    def _adapt(self, now_s: float, delivered: float, lost: float, marked: float) -> None:
        if lost + marked > 0.01:
            if now_s >= self._recovered_s:
                self._window = self._threshold = max(2.0, self._window * BACK_OFF)
                self._recovered_s = now_s + self.srtt_us / 1e6
        elif self._full:
            self._window += delivered if self._window < self._threshold else delivered / self._window


class _Whole:
    """Whole numbers of what comes in fractions."""

    def __init__(self) -> None:
        self._rest = 0.0

    def of(self, amount: float) -> int:
        self._rest += amount
        whole = int(self._rest)
        self._rest -= whole
        return whole


def played(play: Play, seconds: float, dice: random.Random) -> tuple[list[Window], list[Sample]]:
    """What the detector is given, and what the bottleneck saw, at the end of each window."""
    queue, flow = _Queue(play.rate, play.buffer_s), _Tcp(play.base_us)
    whole = {name: _Whole() for name in ("sent", "delivered", "lost", "marked", "passed", "dropped", "all_marked")}
    windows, samples = [], []
    steps = round(WINDOW_MS / 1000 / STEP_S)
    step_bytes = play.rate / 8 * STEP_S
    for window in range(round(seconds * 1000 / WINDOW_MS)):
        sums = dict.fromkeys(whole, 0.0)
        delay_s = 0.0
        for step in range(steps):
            now_s = (window * steps + step + 1) * STEP_S
            if now_s % play.restarts_s < STEP_S:
                flow.restart()
            wanted = play.own(now_s) * step_bytes
            own = wanted if play.probed else flow.send(wanted / SEGMENT_BYTES) * SEGMENT_BYTES
            served = queue.step(own, play.cross(now_s) * step_bytes)
            delay_s = served.delay_s
            marked = min(1.0, max(0.0, delay_s / play.mark_above_s - 1)) if play.mark_above_s < math.inf else 0.0
            flow.left(now_s, served, marked * served.own / SEGMENT_BYTES)
            heard = flow.hear(now_s, 1_000 * dice.random())
            for name, segments in (
                ("sent", own / SEGMENT_BYTES),
                ("delivered", heard.delivered),
                ("lost", heard.lost),
                ("marked", heard.marked),
                ("passed", (served.own + served.cross) / SEGMENT_BYTES),
                ("dropped", (served.own_lost + served.cross_lost) / SEGMENT_BYTES),
                ("all_marked", marked * (served.own + served.cross) / SEGMENT_BYTES),
            ):
                sums[name] += segments
        counted = {name: whole[name].of(amount) for name, amount in sums.items()}
        at_ms = (window + 1) * WINDOW_MS
        samples.append(Sample(at_ms / 1000, delay_s, counted["passed"], counted["dropped"], counted["all_marked"]))
        news = {"bytes": counted["sent"] * SEGMENT_BYTES, "packets": counted["sent"]}
        if play.probed:
            windows.append(Window(at_ms, news, (_probe(play, delay_s, counted, dice),)))
            continue
        news |= {"srtt_us": round(flow.srtt_us), "min_rtt_us": round(play.base_us)}
        news |= {"delivered": counted["delivered"], "retransmits": counted["lost"], "delivered_ce": counted["marked"]}
        windows.append(Window(at_ms, news))
    return windows, samples


def _probe(play: Play, delay_s: float, counted: dict[str, int], dice: random.Random) -> Offer:
    """Two probes, which are lost as everything is."""
    share = counted["dropped"] / max(1, counted["dropped"] + counted["passed"])
    lost = sum(dice.random() < share for _ in range(2))
    rtt_us = None if lost == 2 else round(play.base_us + delay_s * 1e6 + 1_000 * dice.random())
    return Offer(Method.PROBE, rtt_us, 2 - lost, 2, lost)
