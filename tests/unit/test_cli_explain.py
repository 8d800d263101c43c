"""`qos2 explain`: the sentences for each state, source and path, and the JSON form."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from qos2.cli import evidence, render
from qos2.cli.explain import admits, sheet
from qos2.cli.main import main
from qos2.model import FlowFundamentals, FlowStats, Method, Quality, Statement
from qos2.wire.protocol import Explanation, FlowDetails
from unit.cli_stage import (
    ESTIMATES,
    EVIDENCE,
    SIGNALS,
    UNKNOWN,
    StandIn,
    change,
    details,
    explanation,
    printed,
)


def told(flow: FlowDetails, explained: Explanation) -> dict[str, str]:
    """The sheet by the words of its first column, unfolded."""
    found: dict[str, str] = {}
    name = ""
    for line in printed(sheet(flow, explained), 1000):
        name = line[:11].strip() or name
        found[name] = (found[name] + "\n" if name in found else "") + line[11:].strip()
    return found


def test_a_congested_flow_is_explained_with_numbers_limits_path_and_history() -> None:
    assert printed(sheet(details(adaptive=True), explanation(estimates=ESTIMATES)), 100) == [
        "flow       0x00100001 of videosender(4321): tcp 192.0.2.7:5004",
        "state      congested by queue_delay for 12 s",
        "why        Its packets wait in a queue on their way. When that was found: queue delay 84 ms (limit",
        "           30 ms), loss 0 % (limit 1 %), bad windows 3 (limit 3).",
        "contract   8Mbit/s at IP level. What exceeds it waits on this host: 1000 of 123456 packets, by 2.5",
        "           ms on average. It dropped 2 packets. Now it delays by 0.84 ms.",
        "signals    From TCP itself: round trips, retransmissions and congestion marks as the kernel counts",
        "           them. Now: queue delay 92 ms (limit 30 ms), loss 0 % (limit 1 %), bad windows 3 (limit",
        "           3), round trip 112 ms, without queue 20 ms, delay by its contract 0.84 ms.",
        "path       Bottleneck: 10.2Mbit/s, measured with trains of probes, 1.3 s ago.",
        "           Available: 2.1Mbit/s, measured on TCP flows to the host, 0.4 s ago.",
        "           Round trip: 112 ms, measured on TCP flows to the host, 0.1 s ago.",
        "admission  Up to 10.1Mbit/s: the 8Mbit/s that it holds and what is available. More is refused",
        "           (network_busy, 54), and what it holds stays in force.",
        "changes    12 s ago: congested by queue_delay; queue delay 84 ms (limit 30 ms), loss 0 % (limit 1",
        "           %), bad windows 3 (limit 3)",
        "           1 min 14 s ago: uncongested; queue delay 1.2 ms (limit 30 ms)",
        "           1 min 15 s ago: unknown",
    ]


@pytest.mark.parametrize(
    ("state", "cause", "numbers", "why"),
    [
        ("congested", "loss", {"loss": 0.032, "limit_loss": 0.01},
         "Its packets are lost on their way. When that was found: loss 3.2 % (limit 1 %)."),
        ("congested", "ce", {"ce_share": 0.4, "limit_ce_share": 0.05},
         "Routers on its way mark its packets as having met congestion. "
         "When that was found: congestion marks 40 % (limit 5 %)."),
        ("congested", "probe", {}, "Probes of its path, which carry its mark, meet congestion."),
        ("rate_limited", "contract", {"own_delay_us": 5_200.0},
         "The network is free; its own contract holds it back. When that was found: delay by its contract 5.2 ms."),
        ("uncongested", None, {}, "Nothing holds it back on its way."),
        ("unknown", None, {}, "Nothing is known of how its packets fare."),
        ("uncongested", None, {"stars": 2.5}, "Nothing holds it back on its way. When that was found: stars 2.5."),
    ],
)  # fmt: skip
def test_each_state_and_cause_has_its_sentence(
    state: str, cause: str | None, numbers: dict[str, float], why: str
) -> None:
    sentences = told(details(), explanation(changes=(change(state, cause, 3_700.0, numbers),)))
    assert sentences["why"] == why
    assert sentences["state"] == f"{state} by {cause} for 1 h 1 min" if cause else f"{state} for 1 h 1 min"


SEVERAL = "None: of several sockets no signal can be told apart. Give each socket a flow of its own."
UDP = "None: nothing comes back through its socket. Let its application report what it knows (`Flow.report`)"


@pytest.mark.parametrize(
    ("flow", "text"),
    [
        ({"whole_program": True, "members": []}, SEVERAL),
        ({"members": ["udp *:*"] * 2}, SEVERAL),
        ({"members": ["tcp 192.0.2.7:80"]},
         "None yet: TCP tells as soon as it sends data and the other end acknowledges it."),
        ({"members": ["udp 192.0.2.7:80"]}, UDP + "."),
        ({"members": ["udp 192.0.2.7:80"], "adaptive": True},
         UDP + ", or run `qos2 reflector` at its destination, which is probed while somebody waits for a condition."),
    ],
)  # fmt: skip
def test_without_signals_it_says_why_and_what_helps(flow: dict[str, Any], text: str) -> None:
    silent = explanation(changes=(change("unknown", None, 75.0),), source=None, signals={})
    assert told(details(**UNKNOWN, **flow), silent)["signals"] == text


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("report", "From reports of its application."),
        ("probe", "From probes to a reflector at its destination; they carry the flow's mark."),
        ("train", "From trains of probes to a reflector at its destination; they carry the flow's mark."),
    ],
)
def test_each_source_of_signals_is_named(source: str, text: str) -> None:
    assert told(details(), explanation(source=Method(source), signals={}))["signals"] == text


def test_a_path_says_what_is_a_lower_bound_and_what_is_unknown() -> None:
    bound = FlowFundamentals(
        statements={"bottleneck": Statement(8_000_000, Quality.LOWER_BOUND, Method.REPORT, 95.0)},
    )
    sentences = told(details(adaptive=True), explanation(estimates=bound))
    assert sentences["path"] == (
        "Bottleneck: at least 8Mbit/s, a lower bound by the application's reports, 1 min 35 s ago.\n"
        "Available: unknown.\n"
        "Round trip: unknown."
    )
    assert sentences["admission"] == (
        "A higher rate is admitted where the path cannot be measured, and refused for the moment (retry, 1237) while "
        "it is being measured. A lower one is always admitted."
    )


def test_paths_of_which_nothing_is_known_or_asked_say_so() -> None:
    assert told(details(adaptive=True), explanation())["path"] == (
        "Nothing is known of it yet, or it cannot be learnt about."
    )
    sentences = told(details(), explanation())
    assert sentences["path"] == "Not estimated: the flow is not adaptive."
    assert sentences["admission"] == "Its rates are not compared with the path: the flow is not adaptive."


def test_what_would_be_admitted_is_what_it_holds_and_what_is_available() -> None:
    assert admits(details(adaptive=True), ESTIMATES) == 10_100_000
    assert admits(details(adaptive=True, bandwidth=0), ESTIMATES) == 2_100_000
    assert admits(details(adaptive=True), replace(ESTIMATES, available=None)) is None
    assert admits(details(adaptive=True), None) is None
    assert admits(details(), ESTIMATES) is None


@pytest.mark.parametrize(
    ("flow", "contract"),
    [
        ({"bandwidth": 0, "shaping": None}, "None: nothing on this host holds it back."),
        ({"shaping": 2, "stats": asdict(FlowStats(packets=10, non_conformant_packets=3))},
         "8Mbit/s at IP level. What exceeds it is sent at once, marked down: 3 of 10 packets."),
        ({"shaping": 0, "stats": asdict(FlowStats())},
         "8Mbit/s at IP level. What exceeds it waits on this host: 0 of 0 packets, by 0.0 ms on average."),
    ],
)  # fmt: skip
def test_what_its_own_contract_does(flow: dict[str, Any], contract: str) -> None:
    assert told(details(**flow), explanation(signals={}))["contract"] == contract


def test_explain_as_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    qos = StandIn([details(adaptive=True)], explanations={0x00100001: explanation(estimates=ESTIMATES)})
    assert main(["explain", "0x00100001", "--json"], connect=qos.connect) == 0
    assert json.loads(capsys.readouterr().out) == {
        "id": "0x00100001",
        "program": "videosender",
        "pid": 4321,
        "state": "congested",
        "cause": "queue_delay",
        "for_s": 12.4,
        "evidence": EVIDENCE,
        "source": "tcp",
        "signals": SIGNALS,
        "bandwidth": 8_000_000,
        "rule": None,
        "estimates": {
            "bottleneck": 10_200_000,
            "available": 2_100_000,
            "rtt_us": 112_000,
            "statements": {
                "bottleneck": {"value": 10_200_000, "quality": "measured", "method": "train", "age_s": 1.26},
                "available": {"value": 2_100_000, "quality": "measured", "method": "tcp", "age_s": 0.4},
                "rtt": {"value": 112_000, "quality": "measured", "method": "tcp", "age_s": 0.1},
            },
        },
        "admits": 10_100_000,
        "device": None,
        "changes": [
            {"state": "congested", "cause": "queue_delay", "ago_s": 12.4, "evidence": EVIDENCE},
            {
                "state": "uncongested",
                "cause": None,
                "ago_s": 74.2,
                "evidence": {"queue_delay_us": 1_210.0, "limit_queue_delay_us": 30_000.0},
            },
            {"state": "unknown", "cause": None, "ago_s": 75.0, "evidence": {}},
        ],
    }


def test_explain_prints_the_sheet_and_refuses_unknown_flows(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "0xfff00002"], connect=StandIn().connect) == 0
    assert capsys.readouterr().out.splitlines()[0].rstrip() == (
        "flow       0xfff00002 of baresip(1234567): udp *:* and 199 more"
    )
    assert main(["explain", "0x00100009"], connect=StandIn().connect) == 1
    assert capsys.readouterr() == ("", "qos2: no flow 1048585\n  hint: see `qos2 flows`\n")


@pytest.mark.parametrize(
    ("microseconds", "text"),
    [(0, "0 ms"), (1, "< 0.01 ms"), (8, "0.01 ms"), (840, "0.84 ms"), (996, "1.0 ms"), (9_940, "9.9 ms"),
     (9_960, "10 ms"), (1_234_000, "1234 ms")],
)  # fmt: skip
def test_delays_are_written_in_milliseconds(microseconds: float, text: str) -> None:
    assert render.milliseconds(microseconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 %"), (0.00001, "< 0.01 %"), (0.0035, "0.35 %"), (0.012, "1.2 %"), (0.0994, "9.9 %"), (0.0996, "10 %"),
     (1, "100 %")],
)  # fmt: skip
def test_shares_are_written_in_per_cent(value: float, text: str) -> None:
    assert render.share(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.9, "0s"), (59.9, "59s"), (60, "1m"), (7_199, "1h"), (86_400, "1d"), (999 * 86_400, "999d")]
)
def test_short_durations_have_one_unit(seconds: float, text: str) -> None:
    assert render.short_duration(seconds) == text


def test_evidence_is_in_the_order_of_its_weight_and_keeps_what_it_does_not_know() -> None:
    numbers = {"zeta": 1.0, "limit_loss": 0.01, "rtt_us": 20_000.0, "alpha": 0.125, "loss": 0.02}
    assert evidence.phrase(numbers) == "loss 2 % (limit 1 %), round trip 20 ms, alpha 0.125, zeta 1"
    assert evidence.phrase({}) == ""


def test_what_was_never_measured_is_not_shown_as_a_measured_zero() -> None:
    silent = {"rtt_us": 0.0, "baseline_rtt_us": 0.0, "queue_delay_us": 0.0, "own_delay_us": 0.0, "loss": 0.0}
    assert evidence.known(silent) == {"loss": 0.0}
    assert evidence.known({"rtt_us": 20_000.0, "queue_delay_us": 0.0}) == {"rtt_us": 20_000.0, "queue_delay_us": 0.0}
    assert evidence.known({"queue_delay_us": 0.0, "own_delay_us": 5.0}) == {"queue_delay_us": 0.0, "own_delay_us": 5.0}
