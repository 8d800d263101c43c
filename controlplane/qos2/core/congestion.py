"""Which flows meet congestion: judged all at once, from counters and from what is offered about them.

Pure: the caller says what time it is. Each step looks at one window of every judged flow, about a tenth of a second:
its queueing delay (the round trip less what the path takes by itself, and less what the flow's own contract held
back), its losses (less those of its own contract) and its CE marks. A window is bad, good, or in between; enough bad
ones of the last few make a flow congested, many good ones in turn free it (core/thresholds.py).

Windows that brought nothing new are passed over. Of a flow that goes silent nothing is known after a while.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qos2.core.history import CAUSES, STATES, History
from qos2.core.signals import SIGNALS, Signals, Slots
from qos2.core.thresholds import Thresholds
from qos2.core.window import METHODS, PROBE, REPORT, Flags, Memory, Window
from qos2.model import Cause, Explanation, FlowState, Method

#: Windows between which there was silence for so long are no neighbours.
NEIGHBOURS_S = 2.0
#: Good windows before anything is said of a flow; or so many that are not bad, since bursts may wait for themselves.
FIRST_GOOD_WINDOWS, FIRST_FAIR_WINDOWS = 3, 10
#: A report is about all the time since the one before. A good one counts as so many good windows as that is, and as so
#: many at most, so that no single one ends congestion.
WINDOW_S, REPORTED_WINDOWS = 0.1, 4
#: What the own contract held back comes into TCP's smoothed round trip only when it is over, and stays there: for as
#: long as it was it is kept, and then let go by this per window that brought acknowledgements.
OWN_DELAY_DECAY = 0.8
#: A flow that is held back is judged only by what is beyond so many times the mean of it: single packets wait longer.
OWN_DELAY_MARGIN = 2.0
#: A receiver acknowledges every second segment; a lone one when its answer is ready, or after this time, or the path's
#: round trip if that is longer, up to the latter (Linux: TCP_DELACK_MIN and _MAX).
DELAYED_ACK_US = (40_000.0, 200_000.0)

_UNKNOWN, _UNCONGESTED, _RATE_LIMITED, _CONGESTED = range(4)
assert STATES[_CONGESTED] is FlowState.CONGESTED
_MOST_WINDOWS = 8
_MOST_RUN = 250
_BAD = ("delay_bits", "loss_bits", "ce_bits")
_SUMS = ("lost", "ce", "heard")
_RUNS = ("good_run", "fair_run")
_WORDS = SIGNALS.itemsize // 8
_EVIDENCE = (
    *("rtt_us", "baseline_rtt_us", "queue_delay_us", "own_delay_us"),
    *("loss", "ce_share", "bad_windows", "limit_queue_delay_us"),
)

#: What a window can hold; more than that is no window.
_MOST_OFFERED = 2**32 - 1

_MEMORY = np.dtype(
    [
        ("before", SIGNALS),  # at the last step
        ("seen", np.bool_),  # whether there was one
        ("judged", np.bool_),
        ("state", np.uint8),
        ("cause", np.uint8),
        ("source", np.uint8),
        ("good_run", np.uint8),
        ("fair_run", np.uint8),  # not bad
        ("at", np.uint8),  # the next place in the rings
        ("delay_bits", np.uint8),  # one bit per window, the last one lowest: bad by this
        ("loss_bits", np.uint8),
        ("ce_bits", np.uint8),
        ("held_bits", np.uint8),  # the own contract held it back
        ("lost", np.int64),  # sums over the last windows
        ("ce", np.int64),
        ("heard", np.int64),  # delivered and lost
        ("begun_s", np.float64),
        ("since_s", np.float64),
        ("evidence_s", np.float64),  # when something was last heard
        ("baseline_us", np.float64),
        ("own_us", np.float64),
        ("own_until_s", np.float64),  # when the last that was held back is let go
        ("own_dropped", np.float64),  # by the own contract, and not yet sent again or reported
        ("own_rest", np.float64),  # of these what the last report did not tell of
        ("rtt_us", np.float64),
        ("queue_us", np.float64),
        ("limit_us", np.float64),
        # Offered for the window at hand.
        ("offered_method", np.uint8),
        ("offered_rtt_us", np.float64),  # the least; 0: none
        ("offered_round_trips", np.uint32),
        ("offered_before_us", np.float64),  # the one before
        ("offered_sent", np.uint32),
        ("offered_lost", np.uint32),
    ],
)


class Detector:
    """Flows by slot, from `begin` to `end`. A step costs 0.2 ms, and of 10,000 flows 4 ms."""

    def __init__(self, thresholds: Thresholds, slots: int) -> None:
        self._limits = thresholds
        # An array each, which is twice as fast as one of structures. Pages that no flow touches take no memory.
        self._memory: Memory = {name: np.zeros(slots, _MEMORY[name]) for name in _MEMORY.names or ()}
        self._before = self._memory["before"].view(np.uint64).reshape(-1, _WORDS)
        #: What the sums are made of, by window and slot.
        self._rings = {name: np.zeros((_MOST_WINDOWS, slots), np.uint32) for name in _SUMS}
        self._window_mask = (1 << thresholds.congested_window_count) - 1
        self._history = History(slots, _EVIDENCE)
        #: What the evidence is held against besides, the same for all flows.
        self._limit_numbers = {
            "limit_loss": thresholds.congested_loss,
            "limit_ce_share": thresholds.congested_ce,
            "limit_bad_windows": float(thresholds.congested_bad_windows),
            "limit_windows": float(thresholds.congested_window_count),
        }
        self._last_s: float | None = None

    def begin(self, slot: int, now_s: float) -> None:
        """A flow in this slot is judged from now on; nothing is known of it."""
        for array in self._memory.values():
            array[slot] = 0
        for ring in self._rings.values():
            ring[:, slot] = 0
        self._memory["judged"][slot] = True
        for name in ("begun_s", "since_s", "evidence_s"):
            self._memory[name][slot] = now_s
        self._history.begin(slot, now_s)

    def end(self, slot: int) -> None:
        """It is not any more."""
        self._memory["judged"][slot] = False

    def offer(
        self,
        slot: int,
        *,
        method: Method,
        rtt_us: int | None = None,
        round_trips: int = 1,
        sent: int = 0,
        lost: int = 0,
    ) -> None:
        """What somebody else saw of the flow since the last step.

        `rtt_us` is the least of so many `round_trips`, taken some time apart; of `sent` packets `lost` were lost.
        """
        memory = self._memory
        memory["offered_method"][slot] = METHODS.index(method)
        if rtt_us is not None:
            before_us = memory["offered_rtt_us"][slot]
            memory["offered_rtt_us"][slot] = min(before_us, rtt_us) if before_us else rtt_us
            memory["offered_round_trips"][slot] += round_trips
        for name, count in (("offered_sent", sent), ("offered_lost", min(lost, sent))):
            memory[name][slot] = min(int(memory[name][slot]) + count, _MOST_OFFERED)

    def step(self, now_s: float, slots: Slots, signals: Signals) -> Slots:
        """Look at the next window of these flows; the slots of those whose state is another one now."""
        elapsed_s = 0.0 if self._last_s is None else max(0.0, now_s - self._last_s)
        self._last_s = now_s
        memory = self._of(slots)
        window = Window(memory, signals)
        self._forget_strangers(slots, memory, window, now_s)
        self._note(slots, memory, window, now_s, elapsed_s)
        changed = self._decide(memory, now_s)
        memory["seen"][:] = True
        for name in ("offered_method", "offered_rtt_us", "offered_round_trips", "offered_sent", "offered_lost"):
            memory[name][:] = 0
        # As words: structures are written field by field.
        self._before[slots] = np.ascontiguousarray(signals).view(np.uint64).reshape(-1, _WORDS)
        del memory["before"]
        for name, array in memory.items():
            self._memory[name][slots] = array
        if changed.any():
            news = {name: array[changed] for name, array in memory.items()}
            self._history.add(slots[changed], now_s, news["state"], news["cause"], self._evidence(news))
        return slots[changed]

    def state(self, slot: int) -> FlowState:
        return STATES[int(self._memory["state"][slot])]

    def explain(self, slot: int) -> Explanation:
        """What is said of a flow, and why."""
        memory = self._of(slot)
        signals = {name: float(number) for name, number in self._evidence(memory).items()} | self._limit_numbers
        changes = self._history.of(slot, self._limit_numbers)
        return Explanation(METHODS[int(memory["source"])], changes, signals)

    def census(self) -> Mapping[tuple[FlowState, Cause | None], int]:
        """How many judged flows are in each state, by cause."""
        judged = np.flatnonzero(self._memory["judged"])
        states, causes = (self._memory[name][judged].astype(np.intp) for name in ("state", "cause"))
        pairs, numbers = np.unique(states * 16 + causes, return_counts=True)
        return Counter(
            {
                (STATES[int(pair) // 16], CAUSES[int(pair) % 16]): int(number)
                for pair, number in zip(pairs, numbers, strict=True)
            }
        )

    def _of(self, slots: Slots | int) -> Memory:
        # Of structures a take is many times as fast as an index.
        return {name: array.take(slots) for name, array in self._memory.items()}

    def _forget_strangers(self, slots: Slots, memory: Memory, window: Window, now_s: float) -> None:
        """Windows from before a silence, or of another socket, say nothing about this one."""
        strange = np.flatnonzero(window.restarted | (now_s - memory["evidence_s"] > NEIGHBOURS_S))
        if len(strange):
            for name in (*_BAD, *_SUMS, *_RUNS):
                memory[name][strange] = 0
            for ring in self._rings.values():
                ring[:, slots[strange]] = 0

    def _note(self, slots: Slots, memory: Memory, window: Window, now_s: float, elapsed_s: float) -> None:
        """What the window says goes into the flows' memories."""
        limits = self._limits
        self._note_delay(memory, window, now_s, elapsed_s)
        memory["held_bits"] = (memory["held_bits"] << 1 | window.held) & self._window_mask

        told = window.told
        rows = np.flatnonzero(told)
        at, there = memory["at"][rows], slots[rows]
        for name, found in (("lost", window.lost), ("ce", window.ce), ("heard", window.heard)):
            memory[name][rows] += found[rows] - self._rings[name][at, there]
            self._rings[name][at, there] = found[rows]
        memory["at"][rows] = (at + 1) % limits.congested_window_count
        lost, ce, heard = (memory[name] for name in _SUMS)
        over_limit = memory["queue_us"] > memory["limit_us"]
        bad_delay = window.has_rtt & over_limit
        # A report of some windows also stands for itself: those before it are long ago.
        weight = np.where(window.source == REPORT, np.rint((now_s - memory["evidence_s"]) / WINDOW_S), 1)
        weight = np.clip(weight, 1, REPORTED_WINDOWS).astype(np.uint8)
        alone = weight > 1
        bad_loss = (window.lost > 0) & _more_than_chance(lost, heard, limits.congested_loss)
        bad_loss &= ~alone | (window.lost > limits.congested_loss * window.heard)
        bad_ce = (window.ce > 0) & _more_than_chance(ce, heard, limits.congested_ce)
        for name, bad in (("delay_bits", bad_delay), ("loss_bits", bad_loss), ("ce_bits", bad_ce)):
            shifted = (memory[name] << 1 | bad) & self._window_mask
            memory[name] = np.where(told, shifted, memory[name])
        share = limits.uncongested_share
        good = (memory["queue_us"] <= share * memory["limit_us"]) & ~(bad_delay | bad_loss | bad_ce)
        lately, of = np.where(alone, window.lost, lost), np.where(alone, window.heard, heard)
        good &= lately <= _chance(of, limits.congested_loss * share)
        good &= ce <= _chance(heard, limits.congested_ce * share)
        bad = told & (bad_delay | bad_loss | bad_ce)
        for name, counted in zip(_RUNS, (told & good, told), strict=True):
            memory[name] = np.where(bad, 0, np.minimum(memory[name] + weight * counted, _MOST_RUN))
        memory["evidence_s"][told] = now_s
        memory["source"] = np.where(told, window.source, memory["source"])

    def _note_delay(self, memory: Memory, window: Window, now_s: float, elapsed_s: float) -> None:
        """Queueing delay, and what the path takes by itself."""
        limits, has_rtt = self._limits, window.has_rtt
        kept = np.where(window.told & (now_s > memory["own_until_s"]), OWN_DELAY_DECAY, 1.0)
        # Probes do not wait for the flow's contract.
        own_us = np.maximum(window.own_us, memory["own_us"] * kept) * (window.source != PROBE)
        memory["own_us"] = np.where(own_us < 1, 0, own_us)
        latest_s = np.where(window.own_us > 0, now_s + window.own_us / 1e6, 0)
        memory["own_until_s"] = np.maximum(memory["own_until_s"], latest_s)
        # The kernel's least round trip is of single packets that waited for nothing: it begins the baseline, and
        # bounds what is left of a round trip without its own delay, which is a mean.
        floor_us = np.where(window.least_us > 0, np.minimum(window.least_us, window.rtt_us), 1.0)
        without_own_us = np.maximum(window.rtt_us - memory["own_us"], floor_us)
        first_us = np.where(window.least_us > 0, floor_us, without_own_us)
        baseline_us = np.where(memory["baseline_us"] == 0, first_us, memory["baseline_us"])
        risen_us = baseline_us + (without_own_us - baseline_us) * (1 - np.exp(-elapsed_s / limits.baseline_rise_s))
        baseline_us = np.minimum(risen_us, without_own_us)
        spacing_us = (now_s - memory["evidence_s"]) * 1e6 / np.maximum(window.thin, 1)
        ack_us = np.where(window.thin > 0, np.minimum(spacing_us, np.clip(baseline_us, *DELAYED_ACK_US)), 0)
        queue_us = np.maximum(window.rtt_us - OWN_DELAY_MARGIN * memory["own_us"] - ack_us - baseline_us, 0)
        memory["baseline_us"] = np.where(has_rtt, baseline_us, memory["baseline_us"])
        memory["rtt_us"] = np.where(has_rtt, window.rtt_us, memory["rtt_us"])
        memory["queue_us"] = np.where(has_rtt, queue_us, memory["queue_us"])
        memory["limit_us"] = np.maximum(
            limits.congested_queue_delay_ms * 1e3, limits.congested_rtt_share * memory["baseline_us"]
        )

    def _decide(self, memory: Memory, now_s: float) -> Flags:
        """The states that the memories mean; which of them are new."""
        limits = self._limits
        before = memory["state"].copy()
        many_bad = _bits(_bad_bits(memory)) >= limits.congested_bad_windows
        free = np.where(
            memory["state"] == _CONGESTED,
            (memory["good_run"] >= limits.uncongested_good_windows)
            & (now_s - memory["since_s"] >= limits.congested_dwell_s),
            (memory["state"] != _UNKNOWN)
            | (memory["good_run"] >= FIRST_GOOD_WINDOWS)
            | (memory["fair_run"] >= FIRST_FAIR_WINDOWS),
        )
        held = memory["held_bits"]
        holding = np.where(before == _RATE_LIMITED, held != 0, _bits(held) >= limits.congested_bad_windows)
        state = np.where(free, np.where(holding, _RATE_LIMITED, _UNCONGESTED), before)
        state = np.where(many_bad, _CONGESTED, state)
        state = np.where(now_s - memory["evidence_s"] > limits.unknown_after_s, _UNKNOWN, state)
        changed: Flags = state != before
        memory["state"] = state
        memory["since_s"][changed] = now_s
        if changed.any():
            memory["cause"][changed] = self._cause(memory)[changed]
        # Bits of what has ended do not begin it again.
        over = changed & (before == _CONGESTED)
        for name in _BAD:
            memory[name][over] = 0
        for name in _RUNS:
            memory[name][changed & (state == _UNKNOWN)] = 0
        return changed

    def _cause(self, memory: Memory) -> NDArray[np.intp]:
        """Of congestion what made most windows bad; probes where they were the ones to see it."""
        by_signal = np.stack([_bits(memory[name]) for name in _BAD])
        causes = np.array([CAUSES.index(each) for each in (Cause.QUEUE_DELAY, Cause.LOSS, Cause.CE)])
        found = np.where(memory["source"] == PROBE, CAUSES.index(Cause.PROBE), causes[by_signal.argmax(axis=0)])
        contract = np.where(memory["state"] == _RATE_LIMITED, CAUSES.index(Cause.CONTRACT), 0)
        chosen: NDArray[np.intp] = np.where(memory["state"] == _CONGESTED, found, contract)
        return chosen

    def _evidence(self, memory: Memory) -> dict[str, NDArray[Any]]:
        """The numbers of the last windows (EVIDENCE), an entry per flow."""
        heard = np.maximum(1, memory["heard"])
        numbers = (
            *(memory[name] for name in ("rtt_us", "baseline_us", "queue_us", "own_us")),
            *(memory["lost"] / heard, memory["ce"] / heard, _bits(_bad_bits(memory)), memory["limit_us"]),
        )
        return dict(zip(_EVIDENCE, numbers, strict=True))


def _bad_bits(memory: Memory) -> NDArray[np.uint8]:
    either: NDArray[np.uint8] = np.bitwise_or(memory["delay_bits"], memory["loss_bits"])
    return np.bitwise_or(either, memory["ce_bits"])


_BITS = np.array([each.bit_count() for each in range(256)], np.uint8)


def _bits(of: NDArray[np.uint8]) -> NDArray[np.uint8]:
    counted: NDArray[np.uint8] = _BITS[of]
    return counted


def _chance(number: NDArray[np.int64], share: float) -> NDArray[np.float64]:
    """So many of `number` may be hit where each is with this probability: three standard deviations, and two."""
    expected = number * share
    most: NDArray[np.float64] = expected + 3 * np.sqrt(expected) + 2
    return most


def _more_than_chance(hit: NDArray[np.int64], number: NDArray[np.int64], share: float) -> Flags:
    """Whether so many are evidence of a share above this one: of 20 segments a single lost one is none."""
    more: Flags = hit > _chance(number, share)
    return more
