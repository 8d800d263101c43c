"""The pure parts of the benchmarks: medians, differences, ratios, targets, the rate between arrivals, the page."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from bench.figures import Result, Spread, Table, Target, over, percentile, ratios, spread
from bench.rate import Step, rate_of
from bench.report import UNEXPLAINED, Machine, page, show
from bench.testrun import packet

MACHINE = Machine("A CPU", 2, "6.1.0", 2_048, "2026-01-02 03:04+00:00", "abc1234", "quick", "0.10")


def test_a_spread_is_the_median_with_the_quartiles() -> None:
    assert spread([5, 1, 3, 2, 4]) == Spread(2, 3, 4, 5)


def test_a_spread_of_one_round_is_shown_without_quartiles() -> None:
    assert spread([1234.56]).text() == "1,234.6"
    assert spread([1, 2, 3]).text(2) == "2.00 [1.50-2.50]"


def test_without_samples_there_is_no_spread() -> None:
    with pytest.raises(ValueError, match="no samples"):
        spread([])


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50))
def test_quartiles_lie_around_the_median_within_the_samples(samples: list[float]) -> None:
    found = spread(samples)
    assert min(samples) <= found.low <= found.median <= found.high <= max(samples)


def test_differences_and_ratios_are_taken_round_by_round() -> None:
    assert over([10, 20], [1, 5]) == [9, 15]
    assert ratios([10, 20], [5, 4]) == [2, 5]


def test_rounds_that_do_not_pair_are_refused() -> None:
    for pairwise in (over, ratios):
        with pytest.raises(ValueError, match="argument 2 is shorter"):
            pairwise([1, 2], [1])


def test_a_percentile_is_a_sample_that_so_many_do_not_exceed() -> None:
    samples = range(1, 201)
    assert percentile(samples, 50) == 100
    assert percentile(samples, 99) == 198
    assert percentile([7], 99) == 7


@pytest.mark.parametrize(
    ("measured", "at_least", "met"), [(1.3, False, True), (1.31, False, False), (1.3, True, True), (1.29, True, False)]
)
def test_a_target_is_met_up_to_and_with_its_limit(measured: float, at_least: bool, met: bool) -> None:
    assert Target("key", "claim", 1.3, measured, at_least=at_least).met is met


def test_a_target_shows_limit_and_measurement_with_their_unit() -> None:
    target = Target("key", "claim", 5_000, 4_999.6, "pairs", at_least=True, decimals=0)
    assert (target.limit_text, target.measured_text) == ("≥ 5,000 pairs", "5,000 pairs")


def test_a_row_that_does_not_fit_its_table_is_refused() -> None:
    with pytest.raises(ValueError, match="row 'a' has 1 cells of 2"):
        Table("title", ("x", "y"), (("a",),))


def test_a_rate_counts_what_came_from_the_first_arrival_until_before_the_last() -> None:
    # 1000 bytes each second, and a late burst that is paid for by nobody within the window.
    steps = [Step(second, 1_000 * second) for second in range(5)]
    assert rate_of(steps, 1, 4) == 8_000
    assert rate_of(steps, 0.5, 3.9) == 8_000


def test_one_arrival_has_no_rate() -> None:
    with pytest.raises(ValueError, match="1 arrivals have no rate"):
        rate_of([Step(1, 0)], 0, 2)


def test_the_packet_of_the_test_runs_has_a_right_checksum() -> None:
    header = packet(46)[14:34]
    total = sum(int.from_bytes(header[at : at + 2]) for at in range(0, 20, 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert header[1] == 46 << 2
    assert len(packet(0)) == 14 + 20 + 8 + 64


def a_result(*targets: Target) -> Result:
    table = Table("Numbers", ("program", "ns"), (("empty", "1.0"), ("full", "2.0")), ("A note.",))
    return Result("group", "A group", "By measuring.", (table,), targets)


def test_the_page_has_machine_method_tables_and_targets() -> None:
    text = page(MACHINE, [a_result(Target("fast", "is fast", 30, 17.7, "ns", decimals=1))], {})
    for part in (
        "| CPU | A CPU, 2 CPUs |",
        "| target | limit | measured |  |\n| --- | ---: | ---: | ---: |\n| is fast | ≤ 30 ns | 17.7 ns | met |",
        "## A group\n\nBy measuring.\n\n### Numbers\n\n| program | ns |\n| --- | ---: |\n| empty | 1.0 |\n",
        "\n\nA note.\n",
    ):
        assert part in text
    assert "missed\n" not in text
    assert text.endswith(".\n")


def test_the_page_explains_each_missed_target_or_says_that_it_cannot() -> None:
    missed = [Target(key, f"claim {key}", 1, 2) for key in ("known", "unknown")]
    text = page(MACHINE, [a_result(*missed)], {"known": "It is the cache."})
    listed = f"\n\n- **claim known**: It is the cache.\n- **claim unknown**: {UNEXPLAINED}\n\n"
    assert "### Why targets were missed" + listed in text
    assert "| claim known | ≤ 1 | 2.00 | **missed** |" in text


def test_the_terminal_shows_every_figure_and_verdict() -> None:
    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  closed by the next line
    with console.file:
        show(console, a_result(Target("slow", "is fast", 1, 2)))
        text = console.export_text()
    for part in ("A group", "Numbers", "full", "2.0", "A note.", "MISSED is fast: 2.00 (≤ 1)"):
        assert part in text
