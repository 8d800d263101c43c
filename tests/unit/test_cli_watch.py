"""`qos2 watch` on a terminal: what is drawn, what the keys do, and that the terminal is as before afterwards."""

import io
import os
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console

from qos2.cli import watchview
from qos2.cli.keyboard import key_of
from qos2.cli.main import main
from qos2.cli.observations import ORDERS, Observation, Observations
from qos2.cli.sparkline import sparkline
from qos2.cli.trace import LENGTH, Trace
from qos2.cli.watch import Position
from qos2.model import FlowStats
from qos2.wire.protocol import Explanation
from unit.cli_stage import BACKUP, ESTIMATES, SIGNALS, UNKNOWN, VOICE, StandIn, change, details, explanation, printed
from unit.terminal_stage import echoes, seen_until, terminal

SILENT = explanation(changes=(change("unknown", None, 75.0),), source=None, signals={})
EXPLANATIONS = {0x00100001: explanation(estimates=ESTIMATES), VOICE.flow: SILENT, BACKUP.flow: SILENT}


def screen(width: int, height: int = 24) -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), width=width, height=height)


def observed(flow: Any, explained: Explanation | None, samples: int = LENGTH) -> Observation:
    """A flow whose rate and queue have risen steadily."""
    trace = Trace()
    for number in range(samples):
        share = (number + 1) / samples
        trace.add(share * 7_600_000)
        if explained is not None and explained.signals:
            trace.learn({"rtt_us": 20_300 + share * 91_700, "queue_delay_us": share * 91_700, "loss": 0.0})
    return Observation(flow, trace, explained)


THREE = [
    observed(details(), EXPLANATIONS[0x00100001]),
    observed(BACKUP, SILENT),
    observed(VOICE, SILENT, samples=5),
]


def test_sparklines_grow_to_the_right_from_nothing_to_the_largest() -> None:
    assert sparkline([0.0, 1.0, 2.0, 4.0, 6.0, 6.1, 7.0], 7) == "▁▂▃▅▇██"
    assert sparkline([0.0, 0.1, None, 7.0], 6) == "  ▁▂ █"
    assert sparkline([7.0, 0.0, 0.0], 2) == "▁▁"
    assert sparkline([], 3) == "   "
    assert sparkline([1.0], 0) == ""


def test_a_sparkline_below_its_limit_stays_low() -> None:
    assert sparkline([0.0, 1_000.0, 3_000.0], 3, 30_000.0) == "▁▂▂"
    assert sparkline([15_000.0, 60_000.0], 2, 30_000.0) == "▃█"


def test_a_terminal_without_unicode_gets_other_characters() -> None:
    assert sparkline([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], 8, ascii_only=True) == "_.:-=+*#"
    plain = Console(file=io.TextIOWrapper(io.BytesIO(), "latin-1"), width=80, height=24)
    drawn = printed(watchview.overview([observed(details(program="x"), SILENT)], [], plain, watchview.Status("id")), 80)
    assert "\n".join(drawn).isascii()


def test_the_overview_fits_80_columns_with_nothing_cut_off() -> None:
    flows = [each.flow for each in THREE]
    assert printed(watchview.overview(THREE, flows, screen(80), watchview.Status("state")), 80) == [
        "3 flows  1 congested  1 rate_limited  1 unknown  by state",
        "FLOW             STATE           BIT/s       RTT         QUEUE       LOSS",
        "0x00100001       congested       7.6M/8M     112 ms      92 ms       0 %",
        "videosend…(4321) queue_delay 12s ▇▇█████████ ███████████ ▇▇█████████ ▁▁▁▁▁▁▁▁▁▁▁",
        "0x00100003       rate_limited    7.6M/400G   -           -           -",
        "rsync(4321)      contract 2h     ▇▇█████████",
        "0xfff00002       unknown         7.6M        -           -           -",
        "baresip(1234567) for 1m                ▃▄▆▇█",
        "q quit, p pause, s sort, ↑ ↓ scroll, space next page",
    ]


@pytest.mark.parametrize("width", [80, 100, 132, 250])
def test_the_overview_of_many_flows_fits_every_terminal(width: int) -> None:
    flows = [details(number, bandwidth=1_250_000) for number in range(1, 51)]
    out = screen(width)
    shown = [observed(flow, EXPLANATIONS[0x00100001]) for flow in flows[10 : 10 + watchview.room(out)]]
    lines = printed(watchview.overview(shown, flows, out, watchview.Status("id", first=10, paused=True)), width)
    assert len(lines) <= 24
    assert max(map(len, lines)) <= width
    assert lines[0] == "50 flows  50 congested  by id  11 to 20  PAUSED"
    assert lines[2].split()[:5] == ["0x0000000b", "congested", "7.6M/1.25M", "112", "ms"]


def test_the_closeup_fits_80_columns_and_24_lines() -> None:
    history = tuple(change("uncongested", None, 60.0 * number) for number in range(2, 12))
    one = observed(
        details(adaptive=True), explanation(changes=(explanation().changes[0], *history), estimates=ESTIMATES)
    )
    assert printed(watchview.closeup(one, screen(80), live=True), 80) == [
        "0x00100001  videosender(4321), audio_video, adaptive, tcp 192.0.2.7:5004",
        "congested by queue_delay for 12 s; signals: tcp; contract: 8Mbit/s",
        "",
        "bit/s      7.6M ▂▂▂▂▂▂▂▂▃▃▃▃▃▃▃▃▃▄▄▄▄▄▄▄▄▅▅▅▅▅▅▅▅▅▆▆▆▆▆▆▆▆▇▇▇▇▇▇▇▇▇█████████",
        "RTT      112 ms ▃▃▃▃▃▃▃▄▄▄▄▄▄▄▄▄▄▄▅▅▅▅▅▅▅▅▅▅▆▆▆▆▆▆▆▆▆▆▆▇▇▇▇▇▇▇▇▇▇███████████",
        "queue     92 ms ▂▂▂▂▂▂▂▂▃▃▃▃▃▃▃▃▃▄▄▄▄▄▄▄▄▅▅▅▅▅▅▅▅▅▆▆▆▆▆▆▆▆▇▇▇▇▇▇▇▇▇█████████",
        "loss        0 % ▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁▁",
        "",
        "rests on  queue delay 84 ms (limit 30 ms), loss 0 % (limit 1 %), bad windows 3",
        "          (limit 3)",
        "now       queue delay 92 ms (limit 30 ms), loss 0 % (limit 1 %), bad windows 3",
        "          (limit 3), round trip 112 ms, without queue 20 ms, delay by its",
        "          contract 0.84 ms",
        "",
        "PATH             VALUE  QUALITY   METHOD    AGE",
        "bottleneck  10.2Mbit/s  measured  train   1.3 s",
        "available    2.1Mbit/s  measured  tcp     0.4 s",
        "round trip      112 ms  measured  tcp     0.1 s",
        "",
        "LAST CHANGES",
        " 12s ago  congested by queue_delay  queue delay 84 ms (limit 30 ms), loss 0 % (…",
        "  2m ago  uncongested",
        "  3m ago  uncongested",
        "q quit, p pause",
    ]


def test_the_closeup_says_what_is_not_known() -> None:
    lines = printed(watchview.closeup(observed(VOICE, SILENT, samples=0), screen(80)), 80)
    assert lines == [
        "0xfff00002  baresip(1234567), voice, udp *:* and 199 more",
        "unknown for 1 min 15 s; signals: none",
        "",
        "bit/s         -",
        "RTT           -",
        "queue         -",
        "loss          -",
        "",
        "rests on  nothing",
        "now       no signals",
        "",
        "nothing is known of its path",
        "",
        "LAST CHANGES",
        "  1m ago  unknown",
    ]


def test_the_closeup_of_a_flow_that_has_just_ended_says_so() -> None:
    lines = printed(watchview.closeup(observed(details(), None), screen(80), live=True, paused=True), 80)
    assert lines[0].startswith("PAUSED  0x00100001")
    assert lines[1] == "congested by queue_delay for 12 s; contract: 8Mbit/s"
    assert lines[-1] == "the flow has ended"


def test_only_the_signals_of_flows_that_are_shown_are_asked_for_and_once_a_look() -> None:
    qos = StandIn(explanations=EXPLANATIONS)
    seen = Observations(qos, qos.flows)
    assert [each.flow.flow for each in seen.shown("state", 0, 1)] == [0x00100001]
    assert [each.flow.flow for each in seen.shown("state", 1, 5)] == [BACKUP.flow, VOICE.flow]
    seen.shown("state", 0, 5)
    assert qos.explained == [0x00100001, BACKUP.flow, VOICE.flow]
    seen.look()
    (first,) = seen.shown("state", 0, 1)
    assert qos.explained[3:] == [0x00100001]
    assert list(first.trace.rtt_us) == [SIGNALS["rtt_us"]] * 2
    assert list(first.trace.queue_delay_us) == [SIGNALS["queue_delay_us"]] * 2
    assert list(first.trace.loss) == [0.0, 0.0]
    assert list(first.trace.rate) == [None, 0.0]  # of one look there is no rate


def test_traces_of_flows_that_have_ended_are_forgotten() -> None:
    qos = StandIn([details()], [], [details()])
    seen = Observations(qos, qos.flows)
    seen.look()
    assert seen.flows == []
    assert seen.shown("id", 0, 10) == []
    seen.look()
    assert len(seen.shown("id", 0, 1)[0].trace.rate) == 1


@pytest.mark.parametrize(
    ("order", "ids"),
    [("state", [1, 2, 3, 4, 5]), ("since", [4, 2, 1, 3, 5]), ("rate", [5, 1, 2, 3, 4]), ("name", [5, 1, 2, 3, 4]),
     ("id", [1, 2, 3, 4, 5])],
)  # fmt: skip
def test_flows_are_sorted_by_each_order(order: str, ids: list[int]) -> None:
    still, moved = asdict(FlowStats()), asdict(FlowStats(bytes=10**9))
    flows = [
        details(5, **(UNKNOWN | {"state_s": 900.0}), program="a", stats=still),
        details(4, **(UNKNOWN | {"state_s": 1.0}), program="z", stats=still),
        details(3, state="uncongested", state_s=60.0, program="m", stats=still),
        details(2, state="congested", state_s=30.0, program="m", stats=still),
        details(1, state="congested", state_s=20.0 if order == "state" else 40.0, program="m", stats=still),
    ]
    qos = StandIn(flows, [details(5, **(UNKNOWN | {"state_s": 900.0}), program="a", stats=moved), *flows[1:]])
    seen = Observations(qos, qos.flows)
    seen.look()
    assert [each.flow.flow for each in seen.shown(order, 0, 10)] == ids


def test_keys_sort_pause_and_scroll_within_the_list() -> None:
    position = Position("state")
    moves = []
    for key in ("up", "down", "down", "page down", "page down", "up", "page up", "home", "x", ""):
        position.move(key, room=10, flows=25)
        moves.append(position.first)
    assert moves == [0, 1, 2, 12, 15, 14, 4, 0, 0, 0]
    orders = []
    for _ in ORDERS:
        position.move("s", room=10, flows=25)
        orders.append(position.order)
    assert orders == [*list(ORDERS)[1:], "state"]
    position.move("p", room=10, flows=25)
    assert position.paused
    position.first = 15
    position.move("", room=10, flows=12)  # flows have ended
    assert position.first == 2
    position.move("p", room=10, flows=3)
    assert (position.paused, position.first) == (False, 0)


@pytest.mark.parametrize(
    ("typed", "key"),
    [("q", "q"), ("Q", "q"), ("\x1b[A", "up"), ("\x1bOB", "down"), ("\x1b[5~\x1b[5~", "page up"), (" ", "page down"),
     ("\x1b", "\x1b"), ("", "q")],
)  # fmt: skip
def test_keys_are_words(typed: str, key: str) -> None:
    assert key_of(typed) == key


def test_once_prints_the_view_also_into_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    qos = StandIn(explanations=EXPLANATIONS)
    assert main(["watch", "--once", "--interval", "0.1"], connect=qos.connect) == 0
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "3 flows  1 congested  1 rate_limited  1 unknown"
    assert [line.split()[0] for line in lines[1::2]] == ["FLOW", "videosender(4321)", "rsync(4321)", "baresip(1234567)"]
    assert main(["watch", "0x00100001", "--once", "--interval", "0.1"], connect=qos.connect) == 0
    assert capsys.readouterr().out.startswith("0x00100001  videosender(4321), audio_video, tcp 192.0.2.7:5004")
    assert main(["watch", "--once", "--interval", "0.1"], connect=StandIn([]).connect) == 0
    assert capsys.readouterr().out == "no flows\n"


# On a real terminal


def test_live_the_keys_work_and_q_leaves_the_terminal_as_it_was() -> None:
    with terminal("watch", "--interval", "0.1") as (process, ours):
        seen_until(ours, "by state")
        assert not echoes(ours)
        os.write(ours, b"s")
        seen_until(ours, "by since")
        os.write(ours, b"p")
        seen_until(ours, "PAUSED")
        os.write(ours, b"q")
        seen_until(ours, "\x1b[?1049l")  # the former screen is back
        assert process.wait(timeout=20) == 0
        assert echoes(ours)


def test_live_sigterm_leaves_the_terminal_as_it_was() -> None:
    with terminal("watch", "--interval", "0.1") as (process, ours):
        seen_until(ours, "by state")
        process.terminate()
        seen_until(ours, "\x1b[?1049l")
        assert process.wait(timeout=20) == 128 + 15
        assert echoes(ours)


def test_live_the_view_of_one_flow_ends_with_it() -> None:
    with terminal("watch", "0x00100001", "--interval", "0.1", flows="[details()], [details()], []") as (process, ours):
        sent = seen_until(ours, "the flow has ended")
        assert "queue delay 92 ms" in sent
        assert process.wait(timeout=20) == 0
