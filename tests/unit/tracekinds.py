"""Kinds of flows, made up: what a detector would be given of each, window by window. Deterministic by their seed.

Harmless kinds go on for ever; they say directly what TCP would say. Those with congestion are played over a bottleneck
(unit/bottleneckplay.py), whose queue tells the truth.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, NamedTuple

from qos2.model import Cause, Method
from unit.bottleneckplay import Play, played
from unit.queuetruth import seen_by_probes, truth
from unit.signaltraces import WINDOW_MS, Offer, Trace, Truth, TruthKind, Window

BASE_US = 20_000
SEGMENT_BYTES = 1500

#: What one window brings: the growth of counters, round trips, and offers.
Look = tuple[dict[str, int], tuple[Offer, ...]]
Looks = Iterator[Look]
_NOTHING: Look = ({}, ())


class Harmless(NamedTuple):
    """A kind that no detector may call congested, ever."""

    about: str
    looks: Callable[[random.Random], Looks]
    seconds: float = 60.0


class Scripted(NamedTuple):
    """A kind over a bottleneck, whose queue tells the truth; but for `unseen` where the flow cannot know it."""

    about: str
    play: Play
    seconds: float = 40.0
    unseen: str = ""


class Told(NamedTuple):
    """A kind that says directly what the flow is told, and what is true of its path."""

    about: str
    looks: Callable[[random.Random], Looks]
    seconds: float
    truth: tuple[Truth, ...]


def tcp(srtt_us: float, segments: int, *, min_rtt_us: int = BASE_US, **others: int) -> Look:
    """A window of TCP that was acknowledged so many segments."""
    if not segments:
        return _NOTHING
    sent = {"bytes": segments * SEGMENT_BYTES, "packets": segments, "delivered": segments}
    return {**sent, "srtt_us": int(srtt_us), "min_rtt_us": min_rtt_us, **others}, ()


def exponential(dice: random.Random, mean: float) -> float:
    return -mean * math.log(1 - dice.random())


def lost(dice: random.Random, segments: int, share: float) -> int:
    """Of so many, each with this probability."""
    return sum(dice.random() < share for _ in range(segments))


def application_limited(dice: random.Random) -> Looks:
    """A call or a stream of low rate: 5 to 12 segments each window, the round trip wavers by 2 ms."""
    while True:
        yield tcp(BASE_US + exponential(dice, 2_000), 5 + int(dice.random() * 8))


def bursty(dice: random.Random) -> Looks:
    """Pieces of a film: a burst that waits for itself, up to 20 ms at its end, then nothing for up to 3 s."""
    while True:
        for _ in range(1 + int(dice.random() * 3)):
            yield tcp(BASE_US + 5_000 + dice.random() * 15_000, 200)
        for _ in range(3 + int(dice.random() * 27)):
            yield _NOTHING


def wifi(dice: random.Random) -> Looks:
    """Bursts of delay of 5 to 25 ms, acknowledgements in clumps, a spike of 80 ms at each scan, 0.1 to 0.5 % lost."""
    loss, until_scan, owed = 0.001 + 0.004 * dice.random(), 50, 0
    while True:
        burst_us = 5_000 + 20_000 * dice.random()
        for _ in range(1 + int(dice.random() * 8)):  # a neighbour's transfer
            until_scan, spike_us = until_scan - 1, 0
            if until_scan <= 0:  # for other access points: the radio is away from this channel
                until_scan, spike_us = 50 + int(dice.random() * 100), 80_000
            owed += 40 + int(dice.random() * 40)
            clump, owed = (0, owed) if dice.random() < 0.2 else (owed, 0)
            delay_us = max(burst_us, spike_us) + 2_000 * dice.random()
            yield tcp(BASE_US + delay_us, clump, retransmits=lost(dice, min(clump, 100), loss))
        for _ in range(int(dice.random() * 20)):
            until_scan -= 1
            yield tcp(BASE_US + 3_000 * dice.random(), 60)


def wifi_probed(dice: random.Random) -> Looks:
    """UDP over such a link, seen by two probes each window, 40 ms apart: spikes of single probes, 0.5 % lost."""
    burst = 0
    while True:
        burst = max(0, burst - 1) if burst or dice.random() < 0.95 else 6
        delay_us = 5_000 + 20_000 * dice.random() if burst else exponential(dice, 1_500)
        spiked = dice.random() < 0.03
        one_lost = dice.random() < 0.01
        rtt_us = int(BASE_US + delay_us + (60_000 * dice.random() if spiked and one_lost else 0))
        offer = Offer(Method.PROBE, rtt_us, 1 if one_lost else 2, 2, 1 if one_lost else 0)
        yield {"bytes": 20 * 1200, "packets": 20}, (offer,)


def contract_limited(dice: random.Random) -> Looks:
    """TCP that wants more than its contract: what waits for that is in the smoothed round trip, more or less of it."""
    mean_us = 5_000 + 145_000 * dice.random()
    while True:
        srtt_us = BASE_US + mean_us * (0.5 + 1.1 * dice.random())
        held = 12 + int(dice.random() * 8)
        yield tcp(srtt_us, 20, delayed_packets=held, delay_ns=int(held * mean_us * 1000))


def contract_dropped(dice: random.Random, *lossy: int) -> Looks:
    """TCP of which its contract drops a twentieth; what was dropped is sent again one to four windows later.

    From the first of the `lossy` windows to the second the network drops a tenth besides.
    """
    due: list[int] = [0] * 5
    for window in range(10**9):
        own = lost(dice, 40, 0.05)
        others = lost(dice, 40, 0.1) if window in range(*lossy or (0,)) else 0
        due[1 + int(dice.random() * 4)] += own + others
        yield tcp(BASE_US + exponential(dice, 2_000), 40, dropped_packets=own, retransmits=due.pop(0))
        due.append(0)


def contract_reported(dice: random.Random, *lossy: int) -> Looks:
    """UDP a fifth over its contract, whose receiver reports twice a second what share is missing: what we dropped.

    From the first of the `lossy` windows to the second a fifth of what passed is missing besides.
    """
    dropped = passed = others = own = 0
    for window in range(10**9):
        if window % 5 == 0 and window:
            missing = (dropped - own + others) / (passed + dropped)  # of the latest nobody knows yet
            rtt_us = BASE_US + int(exponential(dice, 1_500))
            offers: tuple[Offer, ...] = (Offer(Method.REPORT, rtt_us, 1, passed, round(passed * missing)),)
            dropped, passed, others = own, 0, 0
        else:
            offers = ()
        own = 4 + int(dice.random() * 3)
        passed, dropped = passed + 20, dropped + own
        others += lost(dice, 20, 0.2) if window in range(*lossy or (0,)) else 0
        yield {"bytes": 20 * 1200, "packets": 20, "dropped_packets": own}, offers


def reported(dice: random.Random) -> Looks:
    """A call by UDP whose application reports twice a second: round trips that waver, 0.3 % lost."""
    while True:
        for _ in range(4):
            yield {"bytes": 5 * 200, "packets": 5}, ()
        rtt_us = BASE_US + int(exponential(dice, 3_000))
        yield {"bytes": 5 * 200, "packets": 5}, (Offer(Method.REPORT, rtt_us, 1, 25, lost(dice, 25, 0.003)),)


def reported_loss(dice: random.Random) -> Looks:
    """A stream by UDP whose application reports twice a second: from the 20th to the 30th second a tenth is lost."""
    for window in range(1, 10**9):
        offers: tuple[Offer, ...] = ()
        if window % 5 == 0:
            share = 0.1 if 200 < window <= 300 else 0.001
            rtt_us = BASE_US + int(exponential(dice, 1_500))
            offers = (Offer(Method.REPORT, rtt_us, 1, 250, lost(dice, 250, share)),)
        yield {"bytes": 50 * 1200, "packets": 50}, offers


def idle(dice: random.Random) -> Looks:
    """A connection that is kept alive: one segment each 15 s, now and then messages for half a second."""
    while True:
        for _ in range(1 if dice.random() < 0.7 else 5):
            yield tcp(BASE_US + exponential(dice, 2_000), 1 + int(dice.random() * 3))
        yield from [_NOTHING] * 149


def stalled(dice: random.Random) -> Looks:
    """A transfer whose receiver, or whose program, pauses for half a second to 15 s; it begins again with one loss."""
    while True:
        for _ in range(20 + int(dice.random() * 60)):
            yield tcp(BASE_US + exponential(dice, 3_000), 80)
        yield from [_NOTHING] * (5 + int(dice.random() * 145))
        yield tcp(BASE_US + 25_000 * dice.random(), 10, retransmits=1)


def lan(dice: random.Random) -> Looks:
    """A link of 0.3 ms with a queue of up to 5 ms, which nobody suffers from."""
    queue_us = 0.0
    while True:
        queue_us = min(5_000.0, max(0.0, queue_us + 3_000 * (dice.random() - 0.5)))
        yield tcp(300 + queue_us, 400, min_rtt_us=300)


def long_and_lossy(dice: random.Random) -> Looks:
    """300 ms with 2 % lost at random: TCP comes to three segments a window there, and its queue is empty."""
    while True:
        segments = 2 + int(dice.random() * 3)
        again = lost(dice, segments, 0.02)
        yield tcp(300_000 + exponential(dice, 8_000), segments, min_rtt_us=300_000, retransmits=again)


def wandering(dice: random.Random) -> Looks:
    octaves = [0.0] * 6
    for window in range(10**9):
        for octave in range(6):
            if window % (1 << octave) == 0:
                octaves[octave] = dice.gauss(0, 2_000)
        yield tcp(BASE_US + abs(sum(octaves)), 50)


def questions(dice: random.Random, *queued: int) -> Looks:
    """A question each window to a server that thinks for up to 40 ms, whose acknowledgement comes with its answer.

    From the first of the `queued` windows to the second there is a queue of 120 ms.
    """
    think_us = 10_000 + 30_000 * dice.random()
    srtt_us = BASE_US + think_us
    for window in range(10**9):
        queue_us = 120_000 if window in range(*queued or (0,)) else 0
        srtt_us += (BASE_US + think_us + queue_us + exponential(dice, 500) - srtt_us) / 8
        yield tcp(srtt_us, 1)


def longer_route(by_us: int) -> Callable[[random.Random], Looks]:
    """A route that is longer from the tenth second on. The kernel's least round trip is that of five minutes."""

    def looks(dice: random.Random) -> Looks:
        for window in range(10**9):
            yield tcp(BASE_US + (by_us if window >= 100 else 0) + 500 * int(4 * dice.random()), 40)

    return looks


HARMLESS: dict[str, Harmless] = {
    "application_limited": Harmless("TCP with 5 to 12 segments a window", application_limited),
    "bursty": Harmless("TCP in bursts of up to 0.3 s, pauses of up to 3 s", bursty),
    "wifi": Harmless("TCP over Wi-Fi: bursts of delay, clumps, scans, random loss", wifi),
    "wifi_probed": Harmless("UDP over Wi-Fi, seen by probes", wifi_probed),
    "contract_limited": Harmless("TCP held back by its own contract", contract_limited),
    "contract_dropped": Harmless("TCP of which its own contract drops, sent again later", contract_dropped),
    "contract_reported": Harmless("UDP of which its own contract drops, reported as lost", contract_reported),
    "reported": Harmless("UDP with reports of its application", reported),
    "idle": Harmless("TCP kept alive by single segments", idle, 180.0),
    "stalled": Harmless("TCP that pauses for up to 15 s", stalled),
    "lan": Harmless("TCP over 0.3 ms with a queue of milliseconds", lan),
    "long_and_lossy": Harmless("TCP over 300 ms with 2 % random loss", long_and_lossy),
    "wandering": Harmless("TCP over a delay that varies slowly and by itself, by up to 15 ms (pink noise)", wandering),
    "questions": Harmless("TCP with single questions that are acknowledged by their answers", questions),
    "longer_route": Harmless("TCP whose route becomes 20 ms longer", longer_route(20_000)),
}


def _steady(share: float, cross: Callable[[float], float], **link: Any) -> Play:
    """An application of this share of the link, beside somebody else's; `link`: other fields of Play."""
    return Play(own=lambda _at_s: share, cross=cross, **link)


def on_off(share: float, on_s: float, off_s: float, first_s: float = 5.0) -> Callable[[float], float]:
    """Cross traffic that comes and goes."""
    return lambda at_s: share if at_s >= first_s and (at_s - first_s) % (on_s + off_s) < on_s else 0.0


def nobody(_at_s: float) -> float:
    return 0.0


def _first_seconds(begin_s: float, end_s: float, much: float, little: float) -> Callable[[float], float]:
    return lambda at_s: much if begin_s <= at_s < end_s else little


SCRIPTED: dict[str, Scripted] = {
    "cross_on_off": Scripted(
        "TCP at 40 % of 20 Mbit/s, cross traffic of 90 % on and off", _steady(0.4, on_off(0.9, 5, 7))
    ),
    "cross_on_off_slow": Scripted(
        "TCP at 40 % of 5 Mbit/s, cross traffic of 90 % on and off", _steady(0.4, on_off(0.9, 5, 7), rate=5e6)
    ),
    "cross_just_fits": Scripted("TCP at 40 %, cross traffic of 55 % on and off", _steady(0.4, on_off(0.55, 5, 7))),
    "bufferbloat": Scripted(
        "TCP that fills 20 Mbit/s with a queue of 200 ms for 20 s",
        Play(own=_first_seconds(5, 25, 10.0, 0.2), cross=nobody, buffer_s=0.2),
    ),
    "slow_start_overshoot": Scripted(
        "TCP that begins with a transfer of some megabytes, again and again",
        Play(own=lambda at_s: 10.0 if at_s % 10 < 1.0 else 0.1, cross=nobody, buffer_s=0.1, restarts_s=10.0),
    ),
    "policer": Scripted(
        "TCP at 30 % of a policer of 20 Mbit/s, cross traffic of 120 % on and off",
        _steady(0.3, on_off(1.2, 6, 8), buffer_s=0.002),
    ),
    "policer_yielded": Scripted(
        "TCP at 30 % of a policer of 20 Mbit/s, cross traffic of 95 % on and off",
        _steady(0.3, on_off(0.95, 6, 8), buffer_s=0.002),
        unseen="TCP gives way until it loses too few to be told from chance",
    ),
    "ce_marks": Scripted(
        "TCP at 40 % of 20 Mbit/s, marked beyond 5 ms, cross traffic on and off",
        _steady(0.4, on_off(0.7, 6, 8), mark_above_s=0.005),
    ),
    "long_path_queue": Scripted(
        "TCP over 200 ms with a queue of 300 ms, cross traffic on and off",
        _steady(0.4, on_off(0.9, 8, 8), base_us=200_000, buffer_s=0.3),
        50.0,
    ),
    "probed_cross_on_off": Scripted(
        "UDP, seen by probes, cross traffic on and off", _steady(0.4, on_off(0.9, 5, 7), probed=True)
    ),
}


_ROUTE = Truth(TruthKind.MISTAKEN, 10.0, 140.0, Cause.QUEUE_DELAY, reason="nothing tells a longer route from a queue")
_DROPPED = Truth(TruthKind.CONGESTED, 20.0, 30.0, Cause.LOSS, 1.5, reason="it is sent again up to 0.4 s later")
_ASKED = Truth(TruthKind.CONGESTED, 20.0, 30.0, Cause.QUEUE_DELAY)
_REPORTED = Truth(TruthKind.CONGESTED, 20.0, 30.0, Cause.LOSS, 3.0, reason="two reports a second")

TOLD: dict[str, Told] = {
    "contract_dropped_loss": Told(
        "TCP of which its own contract drops, and the network for ten seconds",
        lambda dice: contract_dropped(dice, 200, 300),
        40.0,
        (_DROPPED,),
    ),
    "contract_reported_loss": Told(
        "UDP of which its own contract drops, and the network for ten seconds",
        lambda dice: contract_reported(dice, 200, 300),
        40.0,
        (_REPORTED,),
    ),
    "questions_queued": Told(
        "TCP with single questions over a queue", lambda dice: questions(dice, 200, 300), 40.0, (_ASKED,)
    ),
    "longer_route_far": Told("TCP whose route becomes 40 ms longer", longer_route(40_000), 160.0, (_ROUTE,)),
    "reported_loss": Told("UDP that reports 10 % loss for ten seconds", reported_loss, 40.0, (_REPORTED,)),
}
NAMES = (*HARMLESS, *SCRIPTED, *TOLD)


def generated(name: str, seed: int = 1) -> Trace:
    """The trace of a kind. Raises KeyError where there is none of this name."""
    dice = random.Random(f"{name} {seed}")
    origin = f"generated, seed {seed}"
    if name in SCRIPTED:
        scripted = SCRIPTED[name]
        played_windows, samples = played(scripted.play, scripted.seconds, dice)
        found = truth(samples, scripted.play.base_us / 1e6)
        if scripted.play.probed:
            found = seen_by_probes(found)
        if scripted.unseen:
            found = tuple(replace(each, kind=TruthKind.UNSEEN, reason=scripted.unseen) for each in found)
        return Trace(name, scripted.about, origin, scripted.seconds, found, tuple(played_windows))
    kind = HARMLESS[name] if name in HARMLESS else TOLD[name]
    known = kind.truth if isinstance(kind, Told) else ()
    looks = islice(kind.looks(dice), round(kind.seconds * 1000 / WINDOW_MS))
    windows = tuple(Window((at + 1) * WINDOW_MS, *look) for at, look in enumerate(looks))
    return Trace(name, kind.about, origin, kind.seconds, known, windows)
