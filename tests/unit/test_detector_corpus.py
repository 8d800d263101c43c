"""The detector against a corpus of traces, each labelled with the truth, and against half an hour of harmless flows."""

import random
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import islice

import numpy as np
import pytest

from qos2.core.congestion import Detector
from qos2.core.signals import SIGNALS, Signals
from qos2.core.thresholds import Thresholds
from qos2.model import Cause, FlowState, Judgement, Method
from unit.queuetruth import Sample, truth
from unit.signaltraces import (
    ENDED_WITHIN_S,
    FOLDER,
    GAUGES,
    WINDOW_MS,
    Change,
    Offer,
    Trace,
    Truth,
    TruthKind,
    Window,
    read,
    replay,
    written,
)
from unit.tracekinds import HARMLESS, NAMES, generated

FILES = sorted(path.name for path in FOLDER.glob("*.csv"))
#: A folder of text that everybody clones.
MOST_BYTES = 600_000
#: Windows are not where seconds begin.
SLACK_S = 0.15
HALF_AN_HOUR = 1800 * 1000 // WINDOW_MS
SEEDS = (1, 2, 3)


def stated(changes: list[Change], seconds: float) -> list[tuple[float, float, Cause | None]]:
    """Each time when congestion was stated: from, to, cause."""
    ends = [*changes[1:], Change(seconds, FlowState.UNKNOWN, None)]
    return [
        (change.at_s, after.at_s, change.cause)
        for change, after in zip(changes, ends, strict=False)
        if change.state is FlowState.CONGESTED
    ]


@cache
def replayed(name: str) -> tuple[Trace, list[Change]]:
    """A file, and what the detector says of it."""
    trace = read((FOLDER / name).read_text())
    return trace, replay(trace)


def faults(trace: Trace, changes: list[Change]) -> list[str]:
    """What the detector says that is not so, or does not say, or says too late."""
    statements = stated(changes, trace.seconds)
    found = []
    owners: dict[Truth, int] = dict.fromkeys(trace.truth, 0)
    carried_on: set[Truth] = set()
    for begin_s, end_s, cause in statements:
        owner = next((each for each in trace.truth if _within(each, begin_s)), None)
        if owner is None or owner.kind is TruthKind.UNSEEN:
            found.append(f"congested from {begin_s} to {end_s}, which is not so")
            continue
        owners[owner] += 1
        # What begins again before its end had to be told is stated already.
        last = owner
        for each in trace.truth:
            if begin_s < each.begin_s <= min(end_s, last.end_s + last.ended_within_s):
                carried_on.add(last := each)
        if end_s > last.end_s + last.ended_within_s + SLACK_S:
            found.append(f"{last}: said to have ended at {end_s} only")
        if owner.cause is not None and cause is not owner.cause:
            found.append(f"{owner}: said to be {cause}")
        if owner.kind is TruthKind.CONGESTED and begin_s > owner.begin_s + owner.within_s + SLACK_S:
            found.append(f"{owner}: stated at {begin_s} only")
    for owner, times in owners.items():
        must = owner.kind in (TruthKind.CONGESTED, TruthKind.MISTAKEN) and owner not in carried_on
        if (must and times != 1) or times > 1:
            found.append(f"{owner}: stated {times} times")
    return found


def _within(owner: Truth, at_s: float) -> bool:
    return owner.begin_s - SLACK_S <= at_s <= owner.end_s + SLACK_S


@pytest.mark.parametrize("name", FILES)
def test_the_detector_says_what_is_true(name: str) -> None:
    """Congested within a second, over within three, once per episode, for the right cause, and never besides."""
    assert faults(*replayed(name)) == []


@pytest.mark.parametrize("name", FILES)
def test_something_is_said_of_every_flow(name: str) -> None:
    """Soon, but of the one that hardly sends: silence would make no mistake either."""
    _trace, changes = replayed(name)
    assert changes[0].at_s < (180 if name == "idle.csv" else 5)


class TestCorpus:
    def test_every_kind_is_there_and_nothing_else(self) -> None:
        recordings = {name for name in FILES if name.startswith("recorded_")}
        assert {f"{name}.csv" for name in NAMES} == set(FILES) - recordings
        assert len(recordings) >= 6

    @pytest.mark.parametrize("name", NAMES)
    def test_what_is_generated_is_what_is_stored(self, name: str) -> None:
        assert (FOLDER / f"{name}.csv").read_text() == written(generated(name))

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_survives_being_read(self, name: str) -> None:
        text = (FOLDER / name).read_text()
        assert written(read(text)) == text

    def test_it_stays_small(self) -> None:
        assert sum((FOLDER / name).stat().st_size for name in FILES) < MOST_BYTES

    def test_it_has_of_everything(self) -> None:
        labels = [each for name in FILES for each in read((FOLDER / name).read_text()).truth]
        causes = {each.cause for each in labels if each.kind is TruthKind.CONGESTED}
        assert causes == {Cause.QUEUE_DELAY, Cause.LOSS, Cause.CE, Cause.PROBE}
        exceptions = [
            each
            for each in labels
            if each.kind is not TruthKind.CONGESTED or each.within_s > 1 or each.ended_within_s > ENDED_WITHIN_S
        ]
        assert all(each.reason for each in exceptions)


class TestFaults:
    """A judge of detectors that finds nothing would pass every detector."""

    TRACE = generated("cross_on_off")

    def relabelled(self, *labels: Truth) -> list[str]:
        return faults(replace(self.TRACE, truth=labels), replayed("cross_on_off.csv")[1])

    def test_the_labels_are_right_as_they_are(self) -> None:
        assert self.relabelled(*self.TRACE.truth) == []

    def test_a_false_alarm_is_found(self) -> None:
        assert self.relabelled(*self.TRACE.truth[1:]) == ["congested from 5.4 to 11.1, which is not so"]

    @pytest.mark.parametrize(
        ("change", "fault"),
        [
            (lambda _: Truth(TruthKind.CONGESTED, 4.0, 10.0, Cause.QUEUE_DELAY), "stated at 5.4 only"),
            (lambda _: Truth(TruthKind.CONGESTED, 5.0, 7.0, Cause.QUEUE_DELAY), "said to have ended at 11.1 only"),
            (lambda _: Truth(TruthKind.CONGESTED, 5.0, 10.0, Cause.LOSS), "said to be queue_delay"),
        ],
    )
    def test_what_is_late_or_wrong_is_found(self, change: Callable[[Truth], Truth], fault: str) -> None:
        first, *others = self.TRACE.truth
        (found,) = self.relabelled(change(first), *others)
        assert found.endswith(fault)

    def test_an_episode_that_nobody_stated_is_found(self) -> None:
        ghost = Truth(TruthKind.CONGESTED, 1.0, 3.0, Cause.LOSS)
        assert self.relabelled(ghost, *self.TRACE.truth) == [f"{ghost}: stated 0 times"]

    def test_an_episode_that_was_stated_twice_is_found(self) -> None:
        whole = Truth(TruthKind.UNDECIDED, 1.0, 34.0, reason="all of it")
        assert self.relabelled(whole) == [f"{whole}: stated 3 times"]


class TestFormat:
    def test_a_trace_is_as_it_was_written(self) -> None:
        labels = (
            Truth(TruthKind.CONGESTED, 1.0, 2.5, Cause.CE, 1.5, 4.0, "a reason: with a colon"),
            Truth(TruthKind.UNSEEN, 3.0, 4.0, Cause.LOSS),
        )
        offers = (Offer(Method.PROBE, 80_000, 2, 2, 0), Offer(Method.REPORT, None, 1, 50, 7))
        windows = (
            Window(100, {"bytes": 3000, "srtt_us": 20_000}, ()),
            Window(300, {"bytes": 1500}, offers),
        )
        trace = Trace("kind", "about it", "made up", 0.5, labels, windows)
        assert read(written(trace)) == trace

    def test_what_brings_nothing_new_is_left_out(self) -> None:
        windows = tuple(Window(at, {"srtt_us": 20_000, "delivered": 0}) for at in (100, 200, 300))
        assert read(written(Trace("k", "a", "o", 1.0, (), windows))).windows == (Window(100, {"srtt_us": 20_000}),)

    @pytest.mark.parametrize(
        "text", ["", "# kind: x\n", "# size: 1\nat_ms,offers\n", "# kind: x\nat_ms,weight,offers\n", "# congested: 1\n"]
    )
    def test_what_is_none_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"header|columns"):
            read(text)


class TestTruth:
    """The rule by which a bottleneck's queue is labelled."""

    @staticmethod
    def samples(*delays_ms: float, dropped: int = 0) -> list[Sample]:
        return [Sample((at + 1) / 10, delay / 1000, 100, dropped) for at, delay in enumerate(delays_ms)]

    def test_a_queue_counts_from_its_first_packet_to_its_last_long_delay(self) -> None:
        found = truth(self.samples(*[0] * 5, 5, *[80] * 10, 20, 10, *[0] * 20), 0.02)
        assert found == (Truth(TruthKind.CONGESTED, 0.6, 1.7, Cause.QUEUE_DELAY),)

    def test_a_queue_that_grows_slowly_has_its_own_bound(self) -> None:
        (found,) = truth(self.samples(0, *[10] * 10, *[50] * 10, 0), 0.02)
        assert (found.begin_s, found.within_s, found.reason) == (0.2, 1.7, "the queue took 1.0 s to its limit")

    def test_what_is_short_is_undecided(self) -> None:
        (found,) = truth(self.samples(0, 0, 80, 80, *[0] * 20), 0.02)
        assert (found.kind, found.begin_s, found.end_s) == (TruthKind.UNDECIDED, 0.3, 0.4)

    def test_on_a_long_path_more_is_allowed(self) -> None:
        assert truth(self.samples(*[80] * 30), 0.2) == ()

    def test_what_is_little_apart_is_one_time(self) -> None:
        sawtooth = [*[80] * 5, *[0] * 5] * 3
        assert len(truth(self.samples(0, *sawtooth), 0.02)) == 1
        assert len(truth(self.samples(0, *[80] * 6, *[0] * 12, *[80] * 6), 0.02)) == 2

    def test_losses_without_a_queue_are_congestion(self) -> None:
        (found,) = truth(self.samples(*[0] * 20, dropped=5), 0.02)
        assert (found.kind, found.cause) == (TruthKind.CONGESTED, Cause.LOSS)


def half_hours() -> tuple[Signals, dict[int, list[tuple[int, Offer]]]]:
    """Counters by window and flow, and offers by window: every harmless kind with every seed."""
    flows = [(name, seed) for name in HARMLESS for seed in SEEDS]
    counters = np.zeros((HALF_AN_HOUR, len(flows)), SIGNALS)
    offered: dict[int, list[tuple[int, Offer]]] = {}
    for row, (name, seed) in enumerate(flows):
        looks = list(islice(HARMLESS[name].looks(random.Random(f"{name} {seed}")), HALF_AN_HOUR))
        for column in {column for news, _offers in looks for column in news}:
            if column in GAUGES:
                latest, values = 0, []
                for news, _offers in looks:
                    latest = news.get(column, latest)
                    values.append(latest)
                counters[column][:, row] = values
            else:
                counters[column][:, row] = np.cumsum([news.get(column, 0) for news, _offers in looks])
        for window, (_news, offers) in enumerate(looks):
            for offer in offers:
                offered.setdefault(window, []).append((row, offer))
    return counters, offered


def test_half_an_hour_of_harmless_flows_has_no_congestion() -> None:
    counters, offered = half_hours()
    kinds = [(name, seed) for name in HARMLESS for seed in SEEDS]
    detector, slots = Detector(Thresholds(), len(kinds)), np.arange(len(kinds))
    for slot in slots:
        detector.begin(int(slot), 0.0)
    alarms: list[tuple[tuple[str, int], Judgement]] = []
    known: dict[tuple[str, int], set[FlowState]] = {}
    for window in range(HALF_AN_HOUR):
        for row, offer in offered.get(window, ()):
            detector.offer(row, **offer._asdict())
        for slot in detector.step((window + 1) * WINDOW_MS / 1000, slots, counters[window]):
            judgement = detector.explain(int(slot)).judgement
            known.setdefault(kinds[slot], set()).add(judgement.state)
            if judgement.state is FlowState.CONGESTED:
                alarms.append((kinds[slot], judgement))
    assert alarms == []
    # And each was known well enough for an alarm.
    assert known.keys() == set(kinds), set(kinds) - known.keys()
