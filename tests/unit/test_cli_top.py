"""`qos2 top`: rates from differences, orders, and what fits a terminal."""

import io
import json
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console

from qos2.cli import render, top
from qos2.cli.main import main
from qos2.cli.sampling import Row, Sample, rows
from qos2.model import FlowStats
from qos2.wire.protocol import FlowDetails
from unit.cli_stage import BACKUP, StandIn, details, printed


def counted(**stats: Any) -> dict[str, Any]:
    return asdict(FlowStats(**stats))


def samples() -> tuple[Sample, Sample]:
    def made(at_s: float, *flows: FlowDetails) -> Sample:
        return Sample(at_s, {flow.flow: (flow, render.stats_of(flow)) for flow in flows})

    before = made(100.0, details(stats=counted(bytes=1_000_000, packets=1_000, dropped_packets={"police": 5})), BACKUP)
    after = made(
        102.0,
        details(
            stats=counted(
                bytes=2_900_000,
                packets=3_000,
                delayed_packets=50,
                non_conformant_packets=20,
                dropped_packets={"police": 15},
            )
        ),
        details(0x00100008, bandwidth=0, shaping=None, age_s=0.5, stats=counted(bytes=250_000, packets=100)),
    )
    return before, after


def test_rates_are_differences_over_time_and_new_flows_count_from_their_beginning() -> None:
    shown = top.ordered(rows(*samples()), "rate")
    figures = [(row.flow.flow, row.bits, row.packets, row.delayed, row.remarked, row.dropped, row.use) for row in shown]
    assert figures == [
        (0x00100001, 7_600_000.0, 1_000.0, 25.0, 10.0, 5.0, 0.95),
        (0x00100008, 4_000_000.0, 200.0, 0.0, 0.0, 0.0, None),
    ]


@pytest.mark.parametrize(
    ("order", "first"),
    [("rate", 1), ("packets", 1), ("held", 1), ("drops", 1), ("id", 1), ("type", 2), ("name", 2)],
)
def test_top_sorts_by_each_of_its_columns(order: str, first: int) -> None:
    busy = Row(details(1, traffic_type=5, program="z"), 9.0, 9.0, 9.0, 0.0, 9.0)
    idle = Row(details(2, traffic_type=0, program="a"), 1.0, 1.0, 1.0, 0.0, 1.0)
    ordered = sorted([idle, busy], key=top.SORTS[order])
    assert ordered[0].flow.flow == first


def test_each_order_has_its_own_key_and_none_is_that_to_quit() -> None:
    assert set(top.KEYS.values()) == set(top.SORTS)
    assert "q" not in top.KEYS


def test_top_fits_80_columns_with_bars() -> None:
    out = Console(file=io.StringIO(), width=80, height=24)
    lines = printed(top.view(top.ordered(rows(*samples()), "rate"), "rate", out), 80)
    assert lines == [
        "2 flows  11.6Mbit/s  1.2k packets/s  by rate",
        "ID         TYPE        PROGRAM           BIT/s OF USE      PKT/s HELD RMRK DROP",
        "───────────────────────────────────────────────────────────────────────────────",
        "0x00100001 audio_video videosender(4321)  7.6M 8M ████████  1.0k   25   10    5",
        "0x00100008 audio_video videosender(4321)    4M  - ████░░░░   200    0    0    0",
    ]


def test_live_top_is_cut_to_the_height_of_the_terminal() -> None:
    out = Console(file=io.StringIO(), width=80, height=24)
    many = [Row(details(number), 1.0, 1.0, 0.0, 0.0, 0.0) for number in range(1, 51)]
    lines = printed(top.view(many, "rate", out, keys=True), 80)
    assert len(lines) <= 24
    assert lines[-2] == "32 more flows: make the terminal higher"


def test_top_as_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    flows = [details(stats=counted(bytes=5_000, packets=5))]
    assert main(["top", "--json", "--interval", "0.1"], connect=StandIn(flows).connect) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["interval_s"] >= 0.1
    assert told["flows"] == [
        {
            "id": "0x00100001",
            "traffic_type": "audio_video",
            "program": "videosender",
            "pid": 4321,
            "bandwidth": 8_000_000,
            "bits_per_s": 0.0,
            "packets_per_s": 0.0,
            "delayed_per_s": 0.0,
            "remarked_per_s": 0.0,
            "dropped_per_s": 0.0,
            "use": 0.0,
        }
    ]
