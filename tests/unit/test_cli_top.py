"""`qos2 top`: rates from differences, what links and classes carry, and what is printed once and as JSON."""

import io
import json
import os
import socket
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest
from rich.console import Console

import qos2
from qos2.cli import render, top, topview
from qos2.cli.main import main
from qos2.cli.sampling import Sample, rows
from qos2.cli.selection import Selection, matching, ordered
from qos2.cli.snapshot import Looks, Snapshot
from qos2.model import FlowStats
from qos2.wire.protocol import FlowDetails, RuleDetails
from unit.cli_stage import BACKUP, UNKNOWN, VOICE, StandIn, details, devices, eth0
from unit.server_stage import Stage, unprivileged


def counted(**stats: Any) -> dict[str, Any]:
    return asdict(FlowStats(**stats))


BEFORE = [
    details(stats=counted(bytes=1_000_000, packets=1_000, dropped_packets={"police": 5})),
    BACKUP,
    VOICE,
]
AFTER = [
    details(
        stats=counted(
            bytes=2_900_000,
            packets=3_000,
            delayed_packets=50,
            non_conformant_packets=20,
            dropped_packets={"police": 15},
        )
    ),
    BACKUP,
    details(
        VOICE.flow, traffic_type=4, dscp=56, bandwidth=0, shaping=None, pid=1234567, program="baresip",
        members=["udp 192.0.2.9:4000"], stats=counted(packets=150, bytes=30_000), **UNKNOWN,
    ),
]  # fmt: skip


def stand_in(*loads: int | None, speed_bps: int | None = 1_000_000_000) -> StandIn:
    """Two looks at these flows; the device carries these loads."""
    return StandIn(BEFORE, AFTER, statuses=[devices(eth0(load, speed_bps)) for load in loads or (11_000_000,)])


def snapshot(qos: StandIn) -> Snapshot:
    """The second of two looks, two seconds after the first."""
    looks = Looks(qos, iter([100.0, 102.0]).__next__)
    looks.look()
    return looks.look()


def screen(width: int, height: int = 24) -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), width=width, height=height)


def once(qos: StandIn, width: int) -> list[str]:
    seen, out = snapshot(qos), screen(width)
    lines = topview.once(seen, ordered(seen.rows, "rate"), Selection("rate"), out)
    return [line.plain.rstrip() for line in lines]


@pytest.fixture(autouse=True)
def _fixed_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topview.socket, "gethostname", lambda: "host")  # type: ignore[attr-defined]  # not re-exported


def test_rates_are_differences_over_time_and_new_flows_count_from_their_beginning() -> None:
    def made(at_s: float, *flows: FlowDetails) -> Sample:
        return Sample(at_s, {flow.flow: (flow, render.stats_of(flow)) for flow in flows})

    new = details(0x00100008, bandwidth=0, shaping=None, age_s=0.5, stats=counted(bytes=250_000, packets=100))
    shown = ordered(rows(made(100.0, BEFORE[0], BACKUP), made(102.0, AFTER[0], new)), "rate")
    figures = [(row.flow.flow, row.bits, row.packets, row.delayed, row.remarked, row.dropped, row.use) for row in shown]
    assert figures == [
        (0x00100001, 7_600_000.0, 1_000.0, 25.0, 10.0, 5.0, 0.95),
        (0x00100008, 4_000_000.0, 200.0, 0.0, 0.0, 0.0, None),
    ]


def test_once_shows_links_classes_and_flows_in_80_columns() -> None:
    assert once(stand_in(), 80) == [
        "3 flows  1 congested  1 rate_limited  7.68Mbit/s  1.1k packets/s",
        "",
        "LINK             LOAD                 BIT/s      SPEED     USED    QUEUE SHAPER",
        "eth0             █░░░░░░░░░░░░░░░░░░    11M         1G    1.1 %     0 ms     fq",
        "",
        "CLASS            SHARE                BIT/s      %  FLOWS CONGESTED RATE_LIMITED",
        "voice            █░░░░░░░░░░░░░░░░░░    80k      1      1         0            0",
        "audio_video      █████████████░░░░░░   7.6M     70      1         1            0",
        "background       ░░░░░░░░░░░░░░░░░░░      0      0      1         0            1",
        "in no flow       ██████░░░░░░░░░░░░░   3.2M     29",
        "",
        "PROGRAM          TYPE        BIT/s CONTRACT USE    STATE                     FOR",
        "videosend…(4321) audio_video  7.6M       8M ██████ congested by queue_delay  12s",
        "baresip(1234567) voice         80k        - █░░░░░ unknown                    1m",
        "rsync(4321)      background      0     400G ░░░░░░ rate_limited by contract   2h",
    ]


class Ruled(StandIn):
    """With rules of the policy that count: more at each look."""

    def policy(self) -> Sequence[RuleDetails]:
        self.looks = getattr(self, "looks", 0) + 1
        sent = counted(bytes=self.looks * 500_000, packets=self.looks * 400, delayed_packets=self.looks * 50)
        backup = RuleDetails(name="backup", precedence=1, act={"rate": "4000000"}, flow=9, stats=sent)
        idle = RuleDetails(name="idle", precedence=2, flow=10, stats=counted())
        return [idle, backup, RuleDetails(name="deny-games", precedence=3)]


def test_rules_of_the_policy_are_shown_with_what_they_do_to_programs_that_never_asked() -> None:
    seen = snapshot(Ruled(BEFORE, AFTER, statuses=[devices(eth0(11_000_000))]))
    assert [(rule.details.name, rule.rates.bits, rule.rates.delayed) for rule in seen.rules] == [
        ("idle", 0.0, 0.0),
        ("backup", 2_000_000.0, 25.0),
    ]
    assert seen.rest_bits == 11_000_000 - (7_680_000 + 2_000_000 + (1_050 + 200) * 112)
    lines = once(Ruled(BEFORE, AFTER, statuses=[devices(eth0(11_000_000))]), 80)
    assert lines[9:15] == [
        "by rules         ███░░░░░░░░░░░░░░░░     2M     18",
        "in no flow       ██░░░░░░░░░░░░░░░░░  1.18M     11",
        "",
        "RULE             SHARE                BIT/s      % CONTRACT  HELD  RMRK  DROP",
        "backup           ███░░░░░░░░░░░░░░░░     2M     18       4M    25     0     0",
        "idle             ░░░░░░░░░░░░░░░░░░░      0      0        -     0     0     0",
    ]
    told = top.document(seen, [])
    assert [(rule["name"], rule["bits_per_s"]) for rule in told["rules"]] == [("idle", 0.0), ("backup", 2_000_000.0)]


def test_a_rule_that_has_begun_anew_counts_from_nothing() -> None:
    class Anew(StandIn):
        counts = iter((900, 100))

        def policy(self) -> Sequence[RuleDetails]:
            return [RuleDetails(name="x", precedence=1, flow=9, stats=counted(packets=next(self.counts)))]

    assert snapshot(Anew()).rules[0].rates.packets == 50.0


def test_what_links_carry_beside_the_flows_is_told_where_loads_are_known() -> None:
    # Two looks: 7.6 and 0.08 Mbit/s of flows, 1050 packets/s with 14 bytes of link header each.
    of_flows = 7_600_000 + 80_000 + (1_000 + 50) * 112
    assert snapshot(stand_in(11_000_000)).rest_bits == 11_000_000 - of_flows
    assert snapshot(stand_in(of_flows + 100_000)).rest_bits == 0.0  # less than the loads are exact to
    assert snapshot(stand_in(7_000_000)).rest_bits == 0.0
    assert snapshot(stand_in(None)).rest_bits is None
    assert not any(line.startswith("in no flow") for line in once(stand_in(None), 80))


def test_a_link_without_a_stated_speed_is_shown_against_the_most_that_was_seen() -> None:
    lines = once(stand_in(40_000_000, 10_000_000, speed_bps=None), 80)
    assert lines[3] == "eth0             █████░░░░░░░░░░░░░░    10M   peak 40M        -     0 ms     fq"
    assert once(stand_in(None, speed_bps=None), 80)[3].split() == ["eth0", "-", "-", "-", "-", "fq"]


def test_classes_come_by_their_weight_and_unknown_types_last() -> None:
    flows = [details(number + 1, traffic_type=number) for number in (7, 0, 1, 2, 3, 4, 5)]
    seen = snapshot(StandIn(flows))
    assert [each.traffic_type for each in seen.classes()] == [5, 4, 3, 2, 0, 1, 7]


def test_who_is_not_privileged_is_told_that_there_may_be_more() -> None:
    qos = stand_in()
    qos.privileged = False
    lines = once(qos, 80)
    assert lines[1] == "Your own flows only; root and the group qos2 see those of everybody."
    assert [line for line in lines if line.startswith("others")]
    alone = StandIn([])
    alone.privileged = False
    assert "No flow of yours yet. Those of other users are seen by root and the group qos2." in once(alone, 80)


def test_an_empty_host_says_what_to_do() -> None:
    lines = once(StandIn([], statuses=[devices(eth0(1_000_000))]), 80)
    assert "No flow yet: no program here has asked for quality of service." in lines
    assert "  qos2 run --type background --rate 20M -- rsync -a /data backup:" in lines
    assert max(map(len, lines)) <= 80


def test_without_flows_the_rules_are_pointed_at() -> None:
    lines = once(Ruled([], []), 80)
    assert lines[-2:] == [
        "No flow: no program here has asked for quality of service.",
        "The rules above act on all others; `qos2 policy explain PID` tells which, and why.",
    ]


def test_a_daemon_without_devices_says_so() -> None:
    assert once(StandIn([], statuses=[devices()]), 80)[2] == (
        "No device attached: nothing is marked or counted. See `qos2 status`."
    )


def test_links_that_do_not_fit_are_counted_and_the_busiest_are_shown() -> None:
    many = [
        eth0(number * 1_000_000) if number == 5 else eth0(number * 1_000_000, shaped_flows=0) for number in range(6)
    ]
    named = devices(*many).datapath["devices"]
    report = devices(*many)
    for number, each in enumerate(named):
        each["name"], each["index"] = f"eth{number}", number
    report.datapath["devices"] = named
    seen = snapshot(StandIn(AFTER, statuses=[report]))
    lines = [line.plain for line in topview.screen(seen, Selection("rate"), "", screen(80)).above]
    assert [line.split()[0] for line in lines[1:5]] == ["LINK", "eth5", "eth4", "and"]
    assert lines[4] == "and 4 more: qos2 status"


def test_top_as_json_is_exact(capsys: pytest.CaptureFixture[str]) -> None:
    flows = [details(stats=counted(bytes=5_000, packets=5)), VOICE]
    qos = StandIn(flows, statuses=[devices(eth0(11_000_000))])
    assert main(["top", "--json", "--interval", "0.1", "--filter", "video"], connect=qos.connect) == 0
    told = json.loads(capsys.readouterr().out)
    assert told.pop("interval_s") >= 0.1
    assert told == {
        "privileged": True,
        "links": [
            {
                "name": "eth0",
                "netns_cookie": 1,
                "speed_bits_per_s": 1_000_000_000,
                "load_bits_per_s": 11_000_000,
                "use": 0.011,
                "backlog_bytes": 0,
                "shaper": "fq",
            }
        ],
        "classes": [
            {"traffic_type": "voice", "flows": 1, "bits_per_s": 0.0, "states": {"unknown": 1}},
            {"traffic_type": "audio_video", "flows": 1, "bits_per_s": 0.0, "states": {"congested": 1}},
        ],
        "rules": [],
        "in_no_flow_bits_per_s": 11_000_000.0,
        "flows": [
            {
                "id": "0x00100001",
                "traffic_type": "audio_video",
                "program": "videosender",
                "pid": 4321,
                "uid": 1000,
                "unit": None,
                "bandwidth": 8_000_000,
                "bits_per_s": 0.0,
                "packets_per_s": 0.0,
                "delayed_per_s": 0.0,
                "remarked_per_s": 0.0,
                "dropped_per_s": 0.0,
                "use": 0.0,
                "rule": None,
                "denied": False,
                "state": "congested",
                "cause": "queue_delay",
                "state_s": 12.4,
                "members": ["tcp 192.0.2.7:5004"],
            }
        ],
    }


def test_into_a_pipe_everything_is_printed_without_styles_unless_they_are_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    many = [details(number) for number in range(1, 101)]
    arguments = ["top", "--once", "--interval", "0.1"]
    assert main(arguments, connect=StandIn(many).connect) == 0
    plain = capsys.readouterr().out
    assert plain.count("videosender(4321)") == 100
    assert "\x1b" not in plain
    assert main([*arguments, "--color", "always"], connect=StandIn(many).connect) == 0
    styled = capsys.readouterr().out
    assert "\x1b[1;31mcongested by queue_delay" in styled
    assert main([*arguments, "--color", "never"], connect=StandIn(many).connect) == 0
    assert capsys.readouterr().out.splitlines()[1:] == plain.splitlines()[1:]


@pytest.mark.parametrize(
    ("no_color", "color", "coloured"),
    [("", "auto", True), ("1", "auto", False), ("1", "always", True), ("", "never", False)],
)
def test_colours_obey_no_color_and_the_option(
    no_color: str, color: str, coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setenv("TERM", "xterm-256color")
    file = io.StringIO()
    file.isatty = lambda: True  # type: ignore[method-assign]  # a terminal as far as rich can tell
    out = render.console(file, color=color)
    out.print(render.state_text(details().state, None))
    assert ("\x1b[1;31m" in file.getvalue()) is coloured


def test_the_names_of_programs_cannot_write_to_the_terminal() -> None:
    qos = StandIn([details(program="x\x1b[2Jy", members=["tcp 192.0.2.7:5004"])])
    assert any("x?[2Jy(4321)" in line for line in once(qos, 120))
    assert not any("\x1b" in line for line in once(qos, 200))


def test_the_json_form_has_every_flow_of_the_filter_in_the_order_asked_for() -> None:
    seen = snapshot(stand_in())
    told = top.document(seen, ordered(seen.rows, "name"))
    assert [flow["program"] for flow in told["flows"]] == ["baresip", "rsync", "videosender"]


def test_the_unit_of_an_owner_and_the_rule_are_shown_found_and_told() -> None:
    qos = StandIn(
        [
            details(unit="video.service", rule="no-games"),
            details(2, unit=""),
            details(4, unit="/"),
            details(3, unit="x\x1by.scope"),
        ]
    )
    lines = once(qos, 160)
    (head,) = [line for line in lines if "UNIT" in line]
    place = head.index("UNIT")
    rows = lines[lines.index(head) + 1 :]
    assert sorted(row[place:].split()[0] for row in rows) == ["-", "-", "video.service", "x?y.scope"]
    assert [row for row in rows if "video.service" in row and "no-games" in row]
    seen = snapshot(qos)
    found = matching(seen.rows, "VIDEO.service no-games")
    assert [flow["unit"] for flow in top.document(seen, found)["flows"]] == ["video.service"]


def test_over_a_daemon_an_ordinary_user_sees_his_own_flows_and_is_told_so(stage: Stage) -> None:
    with qos2.Handle(stage.path) as ours, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        ours.add_socket(sock, qos2.TrafficType.VOICE, dest=("192.0.2.7", 5004))
        with unprivileged():
            other = qos2.Handle(stage.path)
        with other:
            seen = Looks(other).look()
        assert not seen.privileged
        # Without root both are the same user.
        assert len(seen.rows) == (0 if os.geteuid() == 0 else 1)
