"""The demonstration's verdict and its table: pure parts, on made-up evidence."""

import io
from collections.abc import Sequence

import pytest
from rich.console import Console, RenderableType

from demo import table
from demo.packets import TCP, UDP
from demo.verdict import Evidence, Finding, Part, judge

VOICE = Part("voice", UDP, 5004, dscp=56, traffic_type="voice", packets_per_second=50)
VIDEO = Part("video", TCP, 7001, dscp=40, traffic_type="audio_video", contract=8_000_000, changed=3_000_000)
BACKUP = Part("backup", TCP, 7002, dscp=8, traffic_type="background", contract=4_000_000)
PLAIN = Part("plain", UDP, 5005, dscp=0, offered=6_000_000)


def evidence(**changes: object) -> Evidence:
    figures: dict[str, object] = {
        "packets": 1000,
        "dscps": {40: 1000},
        "rate_before": 8e6,
        "rate_after": 3e6,
        "packet_rate": 50.0,
        "sent": None,
    }
    return Evidence(**(figures | changes))  # type: ignore[arg-type]  # one dictionary, several types


def goodness(findings: Sequence[Finding]) -> list[bool]:
    return [finding.good for finding in findings]


def test_a_wire_that_agrees_is_good_in_every_claim() -> None:
    assert judge(VIDEO, evidence()) == [
        Finding(True, "DSCP 40 on all 1,000 packets"),
        Finding(True, "8.000 of 8 Mbit/s contracted before the change (+0.0%)"),
        Finding(True, "3.000 of 3 Mbit/s contracted after it (+0.0%)"),
    ]
    assert judge(VOICE, evidence(dscps={56: 1000}, sent=1000)) == [
        Finding(True, "DSCP 56 on all 1,000 packets"),
        Finding(True, "50.0 of 50 packets/s"),
        Finding(True, "none lost"),
    ]
    assert judge(PLAIN, evidence(dscps={0: 1000}, rate_before=6e6, rate_after=6e6, sent=1000)) == [
        Finding(True, "DSCP 0 on all 1,000 packets"),
        Finding(True, "6.000 of 6 Mbit/s offered (+0.0%)"),
        Finding(True, "none lost"),
    ]


def test_one_packet_with_another_dscp_is_enough_for_a_bad_verdict() -> None:
    assert judge(VIDEO, evidence(dscps={40: 999, 0: 1}))[0] == Finding(
        False, "DSCP 40 on 999 of 1,000 packets; 1 with 0"
    )


def test_a_flow_of_which_nothing_arrived_is_bad() -> None:
    assert judge(VOICE, evidence(packets=0, dscps={}, packet_rate=0.0, sent=10)) == [
        Finding(False, "DSCP 56 on 0 of 0 packets; none arrived"),
        Finding(False, "0.0 of 50 packets/s"),
        Finding(False, "10 of 10 packets lost"),
    ]


@pytest.mark.parametrize(
    ("before", "after", "good"),
    [
        (8.23e6, 3.08e6, [True, True]),
        (7.77e6, 2.92e6, [True, True]),
        (8.25e6, 3e6, [False, True]),
        (7.75e6, 3e6, [False, True]),
        (8e6, 8e6, [True, False]),
        (8e6, 0.0, [True, False]),
    ],
)
def test_a_rate_must_keep_within_three_percent_in_both_halves(before: float, after: float, good: list[bool]) -> None:
    assert goodness(judge(VIDEO, evidence(rate_before=before, rate_after=after)))[1:] == good


def test_an_unchanged_contract_is_judged_in_both_halves_too() -> None:
    assert goodness(judge(BACKUP, evidence(dscps={8: 1000}, rate_before=4e6, rate_after=8e6))) == [True, True, False]


@pytest.mark.parametrize(("packet_rate", "good"), [(47.6, True), (52.4, True), (47.4, False), (52.6, False)])
def test_voice_must_keep_its_fifty_packets_a_second(packet_rate: float, good: bool) -> None:
    assert judge(VOICE, evidence(dscps={56: 1000}, packet_rate=packet_rate, sent=1000))[1].good is good


def rendered(what: RenderableType, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width, color_system=None, force_terminal=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


ROWS = [
    table.Row(VOICE, 0, {56: 500}, [75_200.0] * 10, 0, 0, 0),
    table.Row(VIDEO, 3_000_000, {40: 12_345}, [8e6] * 5 + [3e6] * 5, 1_234_567, 0, 0),
    table.Row(PLAIN, 0, {0: 3, 8: 1}, [6e6] * 10),
]


def test_the_table_fits_into_eighty_columns_without_cutting_a_figure() -> None:
    lines = rendered(table.table(ROWS, 80), 80)
    assert max(map(len, lines)) <= 80
    assert lines[4].split() == ["voice", "voice", "56", "56", "-", "0.075", "0", "0", "0"]
    assert lines[5].split() == ["video", "audio_video", "40", "40", "3", "3.00", "1,234,567", "0", "0"]
    assert lines[6].split() == ["plain", "unregistered", "-", "0:75%", "-", "6.00", "-", "-", "-"]
    assert lines[7].split() == ["8:25%"]


def test_a_wide_terminal_also_shows_the_past_seconds() -> None:
    lines = rendered(table.table(ROWS, 120), 120)
    assert "█████▃▃▃▃▃" in lines[5].replace("▄", "▃")


def test_the_plain_line_holds_rate_and_mark_of_each_sender() -> None:
    assert table.line(ROWS[:2], 7.0) == "  7 s  voice 0.075 (DSCP 56)  video 3.00 (DSCP 40)"


def test_the_verdict_names_each_sender_once_and_each_claim() -> None:
    findings = {"video": [Finding(True, "DSCP 40 on all 10 packets"), Finding(False, "2 of 8 Mbit/s")]}
    text = [line.split() for line in rendered(table.verdict(findings), 80)]
    assert ["video", "good", "DSCP", "40", "on", "all", "10", "packets"] in text
    assert ["BAD", "2", "of", "8", "Mbit/s"] in text
