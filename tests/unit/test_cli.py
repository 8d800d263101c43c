"""The command `qos2`: what status, flows and flow print for given answers of the daemon, errors and usage."""

import json
import os
import subprocess
import sys
from dataclasses import asdict

import pytest

from qos2.cli import render
from qos2.cli.flow import flow_id, flow_sheet
from qos2.cli.flows import flow_grid
from qos2.cli.main import main
from qos2.cli.status import status_page
from qos2.errors import ServiceUnavailable
from qos2.model import DatapathStatus, DeviceStatus, FlowStats, Shaper
from unit.cli_stage import BACKUP, UNKNOWN, VOICE, StandIn, details, printed, report


def test_flows_fit_80_columns_with_nothing_cut_off() -> None:
    assert printed(flow_grid([details(), VOICE, BACKUP], 80).table(), 80) == [
        "ID         TYPE        STAT DSCP CONTRACT      N PROGRAM     BYTE HELD RMRK DROP",
        "────────────────────────────────────────────────────────────────────────────────",
        "0x00100001 audio_video cong   40 8M mark       1 vid…(4321)   99M 1.0k   12    2",
        "0xfff00002 voice       -      56 -           200 b…(1234567)  10k    0    0    0",
        "0x00100003 background  rate  8/0 400G remark all rsy…(4321)     0    0    0    0",
    ]


def test_flows_spell_everything_out_in_a_wide_terminal() -> None:
    lines = printed(flow_grid([details(), VOICE, BACKUP], 160).table(), 160)
    assert [line.split() for line in lines if "──" not in line] == [
        ["ID", "TYPE", "STATE", "DSCP", "CONTRACT", "SHAPING", "SOCKETS", "PROGRAM", "PACKETS", "BYTES", "DELAYED",
         "REMARKED", "DROPPED"],
        ["0x00100001", "audio_video", "congested", "40", "8Mbit/s", "shape_and_mark", "1", "videosender(4321)",
         "123456", "98765432", "1000", "12", "2"],
        ["0xfff00002", "voice", "unknown", "56", "-", "200", "baresip(1234567)", "50", "10000", "0", "0", "0"],
        ["0x00100003", "background", "rate_limited", "8/0", "400Gbit/s", "use_non_conformant_markings", "all",
         "rsync(4321)", "0", "0", "0", "0", "0"],
    ]  # fmt: skip


def test_flows_in_a_pipe_are_plain_lines_with_the_same_cells() -> None:
    assert flow_grid([details(), BACKUP], 80).text().splitlines() == [
        "ID          TYPE         STAT  DSCP  CONTRACT       N  PROGRAM      BYTE  HELD  RMRK  DROP",
        "0x00100001  audio_video  cong    40  8M mark        1  vide…(4321)   99M  1.0k    12     2",
        "0x00100003  background   rate   8/0  400G remark  all  rsync(4321)     0     0     0     0",
    ]


def test_one_flow_shows_everything_about_it() -> None:
    assert printed(flow_sheet(details(members=["tcp 192.0.2.7:5004", "tcp [2001:db8::1]:80"])), 80) == [
        "flow       0x00100001 (1048577)",
        "type       audio_video",
        "owner      videosender(4321), uid 1000",
        "age        1 min 15 s",
        "state      congested by queue_delay for 12 s",
        "           queue delay 84 ms (limit 30 ms), loss 0 % (limit 1 %), bad windows 3",
        "           (limit 3)",
        "DSCP       40 (of audio_video)",
        "contract   8000000 bit/s (8Mbit/s) at IP level, excess is delayed",
        "on eth0    htb",
        "sockets    tcp 192.0.2.7:5004",
        "           tcp [2001:db8::1]:80",
        "sent       123456 packets, 98765432 bytes",
        "remarked   12 packets, 12000 bytes",
        "delayed    1000 packets, by 2.500 ms on average",
        "dropped    2 packets, 3000 bytes",
        "  horizon  2 packets, 3000 bytes",
        "TCP        round trip 1.500 ms, least 0.900 ms",
        "           100000 segments delivered, 7 of them congestion-marked, 3",
        "           retransmitted, 1 now thought lost",
    ]


def test_one_flow_without_contract_marking_or_packets_says_so() -> None:
    bare = details(
        dscp=None,
        bandwidth=0,
        shaping=None,
        adaptive=True,
        members=[],
        shapers={},
        stats=asdict(FlowStats()),
        **UNKNOWN,
    )
    lines = printed(flow_sheet(bare), 80)
    assert "type      audio_video, adaptive" in lines
    assert "state     unknown for 1 min 15 s" in lines
    assert "DSCP      left as the application sets it" in lines
    assert "contract  none" in lines
    assert "delayed   0 packets, by 0.000 ms on average" in lines


def test_a_dscp_set_by_hand_is_told_from_that_of_the_type() -> None:
    assert "DSCP       46 (set by hand)" in printed(flow_sheet(details(dscp=46, dscp_override=True)), 80)


def test_status_tells_devices_shapers_why_features_counters_and_problems() -> None:
    assert printed(status_page(report()), 80) == [
        "qos2d 0.1.0, up 3 h 12 min, kernel 6.18.0",
        "flows 3 of 65536, handles 2, orphaned flows 0",
        "",
        "DEVICE HOOK   SHAPER SHAPED WHY THIS SHAPER",
        "────────────────────────────────────────────────────────────────────────────────",
        "eth0   tcx    htb         3 this kernel has no fq; its default qdisc was",
        "                            replaced",
        "wg0    clsact police      0 the administrator's qdisc cake was left alone",
        "",
        "Kernel features",
        "  present  htb, tcx",
        "  missing  fq",
        "",
        "Datapath counters that are not zero",
        "  fragment_miss  17",
        "",
        "Problems",
        "  wg0: rates are policed: TCP will be uneven",
    ]


def test_status_says_when_no_device_is_attached() -> None:
    bare = report(datapath=json.loads(json.dumps(asdict(DatapathStatus(kernel="6.18.0")))))
    assert printed(status_page(bare), 80)[3:] == ["no devices attached: no packet is marked or counted"]


def test_devices_of_several_namespaces_are_told_apart() -> None:
    devices = tuple(DeviceStatus("eth0", 2, cookie, "tcx", Shaper.FQ, "") for cookie in (1, 4097))
    both = report(datapath=json.loads(json.dumps(asdict(DatapathStatus(kernel="6.18.0", devices=devices)))))
    lines = printed(status_page(both), 80)
    assert [line.split(" tcx")[0].rstrip() for line in lines if " tcx" in line] == [
        "eth0 (netns 1)",
        "eth0 (netns 4097)",
    ]


def test_no_program_writes_to_the_terminal_through_its_name() -> None:
    assert render.program("evil\x1b[2J", 7) == "evil?[2J(7)"


def test_names_that_look_like_markup_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flow", "0x00100001"], connect=StandIn().connect)
    qos = StandIn([details(program="[red]x")])
    main(["flows"], connect=qos.connect)
    assert "[red]x(4321)" in capsys.readouterr().out


def test_flows_as_json_are_exact(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flows", "--json"], connect=StandIn([VOICE]).connect) == 0
    assert json.loads(capsys.readouterr().out) == {
        "flows": [
            {
                "id": "0xfff00002",
                "traffic_type": "voice",
                "adaptive": False,
                "dscp": 56,
                "dscp_override": False,
                "non_conformant_dscp": 0,
                "bandwidth": None,
                "shaping": None,
                "pid": 1234567,
                "uid": 1000,
                "program": "baresip",
                "age_s": 75.0,
                "members": ["udp *:*"] * 64 + ["and 136 more"],
                "whole_program": False,
                "shapers": {},
                "state": "unknown",
                "cause": None,
                "state_s": 75.0,
                "evidence": {},
                "rule": None,
                "denied": False,
                "asked_dscp": None,
                "asked_bandwidth": None,
                "stats": {
                    "packets": 50,
                    "bytes": 10_000,
                    "non_conformant_packets": 0,
                    "non_conformant_bytes": 0,
                    "delayed_packets": 0,
                    "delay_ns": 0,
                    "dropped_packets": {},
                    "dropped_bytes": {},
                    "last_ns": 0,
                    "debt_ns": 0,
                    "srtt_us": 0,
                    "min_rtt_us": 0,
                    "retransmits": 0,
                    "lost": 0,
                    "delivered": 0,
                    "delivered_ce": 0,
                },
            }
        ]
    }


def test_one_flow_as_json_is_the_same_document_as_in_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    main(["flow", "1048577", "--json"], connect=StandIn().connect)
    one = json.loads(capsys.readouterr().out)
    main(["flows", "--json"], connect=StandIn().connect)
    assert json.loads(capsys.readouterr().out)["flows"][0] == one


def test_status_as_json_is_what_the_daemon_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--json"], connect=StandIn().connect) == 0
    assert json.loads(capsys.readouterr().out) == {
        "server": "0.1.0",
        "uptime_s": 11520.0,
        "handles": 2,
        "flows": 3,
        "max_flows": 65536,
        "orphans": 0,
        "datapath": report().datapath,
    }


def test_output_that_is_no_terminal_has_no_escape_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["status"],
        ["flows"],
        ["flow", "0x100001"],
        ["explain", "0x100001"],
        ["top", "--interval", "0.1"],
        ["watch", "--once", "--interval", "0.1"],
        ["watch", "0x100001", "--once", "--interval", "0.1"],
    ):
        main(command, connect=StandIn().connect)
    assert "\x1b" not in capsys.readouterr().out


def test_without_flows_the_list_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flows"], connect=StandIn([]).connect) == 0
    assert capsys.readouterr().out == "no flows\n"


@pytest.mark.parametrize("arguments", [["--socket", "/x", "status"], ["status", "--socket", "/x"]])
def test_the_socket_may_be_named_before_and_behind_the_command(arguments: list[str]) -> None:
    qos = StandIn()
    main(arguments, connect=qos.connect)
    assert qos.paths == ["/x"]


def test_without_a_socket_the_client_chooses() -> None:
    qos = StandIn()
    main(["status"], connect=qos.connect)
    assert qos.paths == [None]


def test_an_error_is_one_line_and_a_hint_with_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flow", "0x00100009"], connect=StandIn().connect) == 1
    assert capsys.readouterr() == ("", "qos2: no flow 1048585\n  hint: see `qos2 flows`\n")


def test_no_daemon_is_such_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(path: str | None) -> StandIn:
        raise ServiceUnavailable("no daemon at /run/qos2/qos2.sock")

    assert main(["status"], connect=refuse) == 1
    assert capsys.readouterr().err == "qos2: no daemon at /run/qos2/qos2.sock\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["halt"],
        ["flow"],
        ["flow", "0x0"],
        ["flow", "eth0"],
        ["flow", "-1"],
        ["flow", "4294967296"],
        ["top", "--sort", "colour"],
        ["top", "--interval", "0"],
        ["explain"],
        ["explain", "eth0"],
        ["watch", "eth0"],
        ["watch", "--sort", "colour"],
        ["watch", "--interval", "0.01"],
        ["run", "--type", "voice"],
        ["run", "--type", "voice", "--"],
        ["run", "--", "true"],
        ["run", "--type", "loud", "--", "true"],
        ["run", "--type", "voice", "--rate", "fast", "--", "true"],
    ],
)
def test_wrong_usage_exits_with_2_and_asks_the_daemon_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    qos = StandIn()
    with pytest.raises(SystemExit) as left:
        main(arguments, connect=qos.connect)
    assert left.value.code == 2
    assert "qos2" in capsys.readouterr().err
    assert qos.paths == []


@pytest.mark.parametrize(
    ("text", "value"), [("0x00100001", 0x100001), ("0XfFf00002", 0xFFF00002), ("1048577", 1048577)]
)
def test_flow_ids_are_taken_in_hexadecimal_and_decimal(text: str, value: int) -> None:
    assert flow_id(text) == value
    assert flow_id(render.hex_id(value)) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (999, "999"), (1000, "1.0k"), (9_949, "9.9k"), (9_950, "10k"), (999_499, "999k"), (999_500, "1.0M"),
     (2**64, "18E"), (1e21, "1000E")],
)  # fmt: skip
def test_figures_are_scaled_to_four_characters(value: float, text: str) -> None:
    assert render.scaled(value) == text


@pytest.mark.parametrize(
    ("bits", "text"),
    [(0, "0"), (800, "800"), (8_000, "8k"), (64_000, "64k"), (1_250_000, "1.25M"), (999_999, "1M"), (400e9, "400G")],
)
def test_bandwidths_have_three_significant_digits(bits: float, text: str) -> None:
    assert render.bandwidth(bits) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (75, "1 min 15 s"), (11_520, "3 h 12 min"), (360_000, "4 d 4 h")]
)
def test_durations_have_two_units(seconds: float, text: str) -> None:
    assert render.duration(seconds) == text


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("qos2 ")


def test_a_reader_that_has_seen_enough_makes_no_traceback() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from unit.cli_stage import StandIn, details\n"
        "from qos2.cli.main import main\n"
        "sys.exit(main(['flows'], connect=StandIn([details()] * 5000).connect))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, *sys.path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # An unbuffered Python loses the rest of a short write without an error.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    ) as lister:
        assert lister.stdout is not None
        assert lister.stderr is not None
        lister.stdout.readline()
        lister.stdout.close()
        assert lister.stderr.read() == b""
        assert lister.wait(timeout=20) == 1
