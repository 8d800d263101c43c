"""The pure parts of the path benchmarks: what an episode's latencies begin with, what is never left out, the grid."""

import math
import struct
from collections import Counter

import pytest

from bench import estimates, onset
from bench.backlog import Look, first_empty, first_queued, packets
from bench.baselines import pair_rate
from bench.estimates import Budget, Estimated, Sample, Truth
from bench.figures import Target
from bench.grid import HOSTS, LOADS, MBITS, Cell, Shaper, cells
from bench.onset import Episode, judged, steps_per_cell
from qos2.datapath.netlink import HEADER, Message, attribute
from qos2.errors import DatapathError

#: Nothing waits until 2, the queue is empty again from 7 on.
LOOKS = [Look(second, 1 if 2 <= second < 7 else 0) for second in range(10)]


def test_the_queue_begins_with_the_first_packet_that_waits_after_the_step() -> None:
    assert first_queued(LOOKS, 0.5) == 2
    assert first_queued(LOOKS, 3.5) == 4
    assert first_queued(LOOKS, 7) is None
    assert first_empty(LOOKS, 2.5) == 7
    assert first_empty(LOOKS[:5], 2.5) is None


def test_latencies_are_from_what_the_queue_did_not_from_what_was_ordered() -> None:
    assert judged(LOOKS, (1.0, 2.5), (5.0, 8.5), 2) == Episode(0.5, 1.5, 2)


@pytest.mark.parametrize(
    ("begin", "end", "episode", "missed"),
    [
        ((1.0, math.inf), (5.0, math.inf), Episode(math.inf, math.inf, 0), True),
        # Not told of the begin, and at once that all is well: that is no answer.
        ((1.0, math.inf), (5.0, 5.1), Episode(math.inf, math.inf, 0), True),
        ((1.0, 2.5), (5.0, math.inf), Episode(0.5, math.inf, 0), True),
        # Told before the queue began: its own kind of wrong, and no good latency.
        ((1.0, 1.5), (5.0, 8.0), Episode(math.inf, 1.0, 0, false_alarm=True), False),
        # Never queued: silence is a step that was none, a callback is a false alarm.
        ((7.0, math.inf), (8.0, math.inf), Episode(math.inf, math.inf, 0), True),
        ((7.0, 7.5), (8.0, 9.0), Episode(math.inf, 1.0, 0, false_alarm=True), False),
        # Told of an end that was not.
        ((1.0, 2.5), (9.5, 9.6), Episode(0.5, math.inf, 0), True),
    ],
)
def test_what_an_application_was_not_told_rightly_has_no_latency(
    begin: tuple[float, float], end: tuple[float, float], episode: Episode, missed: bool
) -> None:
    found = judged(LOOKS, begin, end, 0)
    assert found == episode
    assert found.missed is missed


def test_a_hundred_steps_are_shared_out_over_the_cells() -> None:
    assert steps_per_cell(100, 8) == [13, 13, 13, 13, 12, 12, 12, 12]


def values(targets: tuple[Target, ...]) -> dict[str, float]:
    return {target.key: target.measured for target in targets}


def test_a_missed_episode_is_in_every_figure_of_its_cell_and_of_all() -> None:
    good = [Episode(0.3 + number / 1000, 1.0, 2) for number in range(99)]
    episodes = {("TCP", 5): good, ("UDP", 5): [Episode(math.inf, math.inf, 1)]}
    rows = onset.table(episodes).rows
    assert rows == (
        ("TCP, 5 Mbit/s", "99", "0", "0", "0.35", "0.40", "1.00", "1.00", "2"),
        ("UDP, 5 Mbit/s", "1", "1", "0", "inf", "inf", "inf", "inf", "1"),
        ("all", "100", "1", "0", "0.35", "0.40", "1.00", "inf", "2"),
    )
    assert values(onset.targets(episodes)) == {
        "onset-median": pytest.approx(0.349),
        "onset-p99": pytest.approx(0.398),
        "onset-end": math.inf,
        "onset-transitions": 2,
        "onset-missed": 1,
    }


def test_a_false_alarm_misses_the_target_that_allows_no_missed_episode() -> None:
    episodes = {("TCP", 5): [Episode(math.inf, 1.0, 2, false_alarm=True)]}
    assert values(onset.targets(episodes))["onset-missed"] == 1
    assert onset.table(episodes).rows[0][2:4] == ("0", "1")


def test_the_grid_has_every_combination_once() -> None:
    whole = cells(quick=False, policer=True)
    assert len(whole) == len(set(whole)) == len(MBITS) * len(LOADS) * len(Shaper) * 2
    assert {cell.shaper for cell in cells(quick=False, policer=False)} == {Shaper.TBF, Shaper.HTB}


def test_there_are_hosts_enough_for_every_round_and_what_comes_after() -> None:
    two_hops = sum(cell.hops == 2 for cell in cells(quick=False, policer=True))
    assert estimates.ROUNDS * two_hops + len(estimates.BUDGETS) <= HOSTS


def test_a_quick_grid_has_every_capacity_load_shaper_and_distance() -> None:
    few = cells(quick=True, policer=False)
    assert [cell.mbit for cell in few] == list(MBITS)
    for values_of in ("load", "shaper", "hops"):
        assert sorted(Counter(getattr(cell, values_of) for cell in few).values()) == [2, 2]


CELL = Cell(20, 0.5, Shaper.TBF, 2)


def estimated(kind: str, *samples: Sample, cell: Cell = CELL, first_s: float = 0.5) -> Estimated:
    return Estimated(kind, cell, first_s, samples, Truth(20e6, 10e6))


def test_errors_are_relative_to_the_truth_and_what_was_not_told_is_counted_apart() -> None:
    found = estimated("UDP", Sample(19e6, 12e6, (40e6, 20e6)), Sample(20e6, None, (None, 18e6)))
    assert found.bottleneck == [pytest.approx(5), 0]
    assert found.available == [pytest.approx(20)]
    assert found.untold == 1
    assert found.baseline(0) == [pytest.approx(100)]
    assert found.baseline(1) == [0, pytest.approx(10)]


def test_where_nothing_was_told_there_is_no_error_and_no_target_is_met() -> None:
    nothing = Sample(None, None, (1e6, 1e6))
    found = [estimated(kind, nothing, nothing, first_s=math.inf) for kind in estimates.KINDS]
    tcp, _udp, _probes = estimates.tables(found, [], "")
    assert tcp.rows[0][1:5] == ("-", "-", "-", "-")
    assert tcp.rows[0][-2:] == ("inf", "2 of 2")
    targets = estimates.targets(found, [Budget(5, 5e6, 5, 0, 5, 0)])
    assert [target.key for target in targets if target.met] == ["paths-probes"]


def test_the_delivery_rate_is_judged_by_what_a_flow_can_have() -> None:
    assert estimated("TCP", Sample(None, None, (9e6,))).baseline(0) == [pytest.approx(10)]


def test_rows_are_cells_of_one_kind_and_all_of_it() -> None:
    other = Cell(5, 0.0, Shaper.HTB, 1)
    found = [
        estimated("TCP", Sample(20e6, 11e6, (5e6,))),
        estimated("UDP", Sample(20e6, 10e6, (20e9, 20e6))),
        estimated("TCP", Sample(10e6, 12e6, (10e6,)), cell=other, first_s=math.inf),
    ]
    tcp, udp, probes = estimates.tables(found, [Budget(5, 5e6, 30, 281_250, 25, 125_000)], "no such thing")
    assert tcp.rows == (
        ("20 Mbit/s, 50% load, TBF, 2 hops", "0.0", "0.0", "10.0", "10.0", "50.0", "50.0", "0.50", "0 of 1"),
        ("5 Mbit/s, 0% load, HTB, 1 hop", "50.0", "50.0", "20.0", "20.0", "0.0", "0.0", "inf", "0 of 1"),
        ("all", "0.0", "50.0", "10.0", "20.0", "0.0", "50.0", "inf", "0 of 2"),
    )
    alone = ("0.0", "0.0", "0.0", "0.0", "99,900.0", "99,900.0", "0.0", "0.0", "0.50", "0 of 1")
    assert udp.rows == (("20 Mbit/s, 50% load, TBF, 2 hops", *alone), ("all", *alone))
    assert probes.rows == (("5 Mbit/s", "30", "281,250", "1.50", "0.80"),)
    assert any("act_police (no such thing)" in note for note in tcp.notes)
    assert values(estimates.targets(found, [Budget(50, 50e6, 5, 0, 5, 0), Budget(5, 5e6, 5, 150_000, 5, 56_250)])) == {
        "paths-tcp-bottleneck-50-95": 0,
        "paths-tcp-bottleneck-0-95": pytest.approx(50),
        "paths-tcp-available-50": pytest.approx(10),
        "paths-tcp-available-95": pytest.approx(20),
        "paths-udp-bottleneck-95": 0,
        "paths-udp-available-50": 0,
        "paths-udp-available-95": 0,
        "paths-tcp-first": math.inf,
        "paths-udp-first": 0.5,
        "paths-probes": pytest.approx(0.9),
    }


def test_two_packets_apart_by_their_own_time_tell_the_rate() -> None:
    assert pair_rate(0, 560_000) == 20e6
    assert pair_rate(1, 1) is pair_rate(None, 5) is pair_rate(5, None) is None


def answer(*attributes: bytes) -> Message:
    return Message(36, 1, 0, memoryview(bytes(HEADER.size + 20) + b"".join(attributes)))


def test_the_length_of_a_queue_is_in_its_second_kind_of_statistics() -> None:
    queue = attribute(3, struct.pack("=IIIII", 7, 9_898, 1, 0, 2))
    assert packets(answer(attribute(1, b"tbf\0"), attribute(7, attribute(1, bytes(16)) + queue))) == 7


def test_a_queue_without_a_length_is_no_empty_one() -> None:
    with pytest.raises(DatapathError, match="tells no length"):
        packets(answer(attribute(7, attribute(1, bytes(16)))))
