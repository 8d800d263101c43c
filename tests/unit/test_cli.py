"""The command `qos2`: what each subcommand prints for given answers of the daemon, and its exit codes."""

import io
import json
import os
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from rich.console import Console

from qos2.cli import render, run, top
from qos2.cli.flow import flow_id, flow_sheet
from qos2.cli.flows import flow_grid
from qos2.cli.main import main
from qos2.cli.status import status_page
from qos2.errors import NoSuchFlow, ServiceLost, ServiceUnavailable
from qos2.model import DatapathStatus, DeviceStatus, FlowStats, RateReason, Shaper, Shaping, TrafficType
from qos2.wire.protocol import FlowDetails, StatusReport

STATS = FlowStats(
    packets=123_456,
    bytes=98_765_432,
    non_conformant_packets=12,
    non_conformant_bytes=12_000,
    delayed_packets=1_000,
    delay_ns=2_500_000_000,
    dropped_packets={"horizon": 2, "police": 0},
    dropped_bytes={"horizon": 3_000, "police": 0},
    srtt_us=1_500,
    min_rtt_us=900,
    retransmits=3,
    lost=1,
    delivered=100_000,
    delivered_ce=7,
)


def details(flow: int = 0x00100001, **changed: Any) -> FlowDetails:
    values: dict[str, Any] = {
        "flow": flow,
        "traffic_type": 3,
        "adaptive": False,
        "dscp": 40,
        "dscp_override": False,
        "non_conformant_dscp": 0,
        "bandwidth": 8_000_000,
        "shaping": 1,
        "pid": 4321,
        "uid": 1000,
        "program": "videosender",
        "age_s": 75.0,
        "members": ["tcp 192.0.2.7:5004"],
        "whole_program": False,
        "shapers": {"eth0": "htb"},
        "stats": asdict(STATS),
    }
    return FlowDetails(**(values | changed))


VOICE = details(
    0xFFF00002,
    traffic_type=4,
    dscp=56,
    bandwidth=0,
    shaping=None,
    pid=1234567,
    program="baresip",
    members=["udp *:*"] * 64 + ["and 136 more"],
    shapers={},
    stats=asdict(FlowStats(packets=50, bytes=10_000)),
)
BACKUP = details(
    0x00100003,
    traffic_type=1,
    dscp=8,
    shaping=2,
    bandwidth=400_000_000_000,
    program="rsync",
    whole_program=True,
    members=[],
    stats=asdict(FlowStats()),
)


def report(**changed: Any) -> StatusReport:
    datapath = DatapathStatus(
        kernel="6.18.0",
        devices=(
            DeviceStatus("eth0", 2, 1, "tcx", Shaper.HTB, "this kernel has no fq; its default qdisc was replaced", 3),
            DeviceStatus("wg0", 3, 1, "clsact", Shaper.POLICE, "the administrator's qdisc cake was left alone"),
        ),
        features={"tcx": True, "fq": False, "htb": True},
        counters={"stale_flow": 0, "fragment_miss": 17},
        events={"loss": 1},
        map_entries={"policy": (3, 65_536)},
        problems=("wg0: rates are policed: TCP will be uneven",),
    )
    values: dict[str, Any] = {
        "server": "0.1.0",
        "uptime_s": 11_520.0,
        "handles": 2,
        "flows": 3,
        "max_flows": 65_536,
        "orphans": 0,
        "datapath": json.loads(json.dumps(asdict(datapath))),
    }
    return StatusReport(**(values | changed))


@dataclass
class StandInFlow:
    """A program's flow that records what is asked of it."""

    id: int = 0x00100007
    rates: list[tuple[int, Shaping]] = field(default_factory=list)
    closed: bool = False
    lost: bool = False

    def set_rate(
        self,
        bandwidth: int,
        shaping: Shaping = Shaping.SHAPE_AND_MARK,
        reason: RateReason = RateReason.NOT_APPLICABLE,
    ) -> None:
        self.rates.append((bandwidth, shaping))

    def stats(self) -> FlowStats:
        if self.lost:
            raise ServiceLost("the daemon went away", "make a new handle")
        return STATS

    def close(self) -> None:
        self.closed = True


class StandIn:
    """A client with given answers; those of flows() in their order, the last one again and again."""

    def __init__(self, *flows: Sequence[FlowDetails]) -> None:
        self._flows = list(flows) or [[details(), VOICE, BACKUP]]
        self.paths: list[str | None] = []
        self.types: list[TrafficType] = []
        self.flow = StandInFlow()

    def connect(self, path: str | None) -> Self:
        self.paths.append(path)
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def status(self) -> StatusReport:
        return report()

    def flows(self) -> Sequence[FlowDetails]:
        return self._flows.pop(0) if len(self._flows) > 1 else self._flows[0]

    def flow_details(self, flow: int) -> FlowDetails:
        if flow != 0x00100001:
            raise NoSuchFlow(f"no flow {flow}", "see `qos2 flows`")
        return details()

    def add_program(self, traffic_type: TrafficType) -> StandInFlow:
        self.types.append(traffic_type)
        return self.flow


def printed(renderable: Any, width: int) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, markup=False, highlight=False, emoji=False)
    console.print(renderable)
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_flows_fit_80_columns_with_nothing_cut_off() -> None:
    assert printed(flow_grid([details(), VOICE, BACKUP], 80).table(), 80) == [
        "ID         TYPE        DSCP CONTRACT      N PROGRAM     PKTS BYTE HELD RMRK DROP",
        "────────────────────────────────────────────────────────────────────────────────",
        "0x00100001 audio_video   40 8M mark       1 vid…(4321)  123k  99M 1.0k   12    2",
        "0xfff00002 voice         56 -           200 b…(1234567)   50  10k    0    0    0",
        "0x00100003 background   8/0 400G remark all rsy…(4321)     0    0    0    0    0",
    ]


def test_flows_spell_everything_out_in_a_wide_terminal() -> None:
    lines = printed(flow_grid([details(), VOICE, BACKUP], 160).table(), 160)
    assert [line.split() for line in lines if "──" not in line] == [
        ["ID", "TYPE", "DSCP", "CONTRACT", "SHAPING", "SOCKETS", "PROGRAM", "PACKETS", "BYTES", "DELAYED", "REMARKED",
         "DROPPED"],
        ["0x00100001", "audio_video", "40", "8Mbit/s", "shape_and_mark", "1", "videosender(4321)", "123456",
         "98765432", "1000", "12", "2"],
        ["0xfff00002", "voice", "56", "-", "200", "baresip(1234567)", "50", "10000", "0", "0", "0"],
        ["0x00100003", "background", "8/0", "400Gbit/s", "use_non_conformant_markings", "all", "rsync(4321)", "0", "0",
         "0", "0", "0"],
    ]  # fmt: skip


def test_flows_in_a_pipe_are_plain_lines_with_the_same_cells() -> None:
    assert flow_grid([details(), BACKUP], 80).text().splitlines() == [
        "ID          TYPE         DSCP  CONTRACT       N  PROGRAM      PKTS  BYTE  HELD  RMRK  DROP",
        "0x00100001  audio_video    40  8M mark        1  vide…(4321)  123k   99M  1.0k    12     2",
        "0x00100003  background    8/0  400G remark  all  rsync(4321)     0     0     0     0     0",
    ]


def test_one_flow_shows_everything_about_it() -> None:
    assert printed(flow_sheet(details(members=["tcp 192.0.2.7:5004", "tcp [2001:db8::1]:80"])), 80) == [
        "flow       0x00100001 (1048577)",
        "type       audio_video",
        "owner      videosender(4321), uid 1000",
        "age        1 min 15 s",
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
        dscp=None, bandwidth=0, shaping=None, adaptive=True, members=[], shapers={}, stats=asdict(FlowStats())
    )
    lines = printed(flow_sheet(bare), 80)
    assert "type      audio_video, adaptive" in lines
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
    for command in (["status"], ["flows"], ["flow", "0x100001"], ["top", "--interval", "0.1"]):
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
    ("text", "bits"),
    [("64k", 64_000), ("20M", 20_000_000), ("1.5G", 1_500_000_000), ("8000", 8_000), ("0.4t", 400_000_000_000),
     ("12.5K", 12_500)],
)  # fmt: skip
def test_rates_are_decimal_bits_per_second(text: str, bits: int) -> None:
    assert run.rate(text) == bits


@pytest.mark.parametrize("text", ["", "k", "-5M", "20Mbit", "1e9", "nan", "inf", "7k", "401G", "0", "٣M"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        run.rate(text)


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


def counted(**stats: Any) -> dict[str, Any]:
    return asdict(FlowStats(**stats))


def samples() -> tuple[top.Sample, top.Sample]:
    def made(at_s: float, *flows: FlowDetails) -> top.Sample:
        return top.Sample(at_s, {flow.flow: (flow, render.stats_of(flow)) for flow in flows})

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
    shown = top.rows(*samples(), "rate")
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
    busy = top.Row(details(1, traffic_type=5, program="z"), 9.0, 9.0, 9.0, 0.0, 9.0)
    idle = top.Row(details(2, traffic_type=0, program="a"), 1.0, 1.0, 1.0, 0.0, 1.0)
    ordered = sorted([idle, busy], key=top.SORTS[order])
    assert ordered[0].flow.flow == first


def test_each_order_has_its_own_key_and_none_is_that_to_quit() -> None:
    assert set(top.KEYS.values()) == set(top.SORTS)
    assert "q" not in top.KEYS


def test_top_fits_80_columns_with_bars() -> None:
    out = Console(file=io.StringIO(), width=80, height=24)
    lines = printed(top.view(top.rows(*samples(), "rate"), "rate", out), 80)
    assert lines == [
        "2 flows  11.6Mbit/s  1.2k packets/s  by rate",
        "ID         TYPE        PROGRAM           BIT/s OF USE      PKT/s HELD RMRK DROP",
        "───────────────────────────────────────────────────────────────────────────────",
        "0x00100001 audio_video videosender(4321)  7.6M 8M ████████  1.0k   25   10    5",
        "0x00100008 audio_video videosender(4321)    4M  - ████░░░░   200    0    0    0",
    ]


def test_live_top_is_cut_to_the_height_of_the_terminal() -> None:
    out = Console(file=io.StringIO(), width=80, height=24)
    many = [top.Row(details(number), 1.0, 1.0, 0.0, 0.0, 0.0) for number in range(1, 51)]
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


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["/etc/passwd"], 126),
        (["there-is-no-such-command"], 127),
    ],
)
def test_run_hands_on_the_exit_code_and_ends_the_flow(command: list[str], code: int) -> None:
    qos = StandIn()
    assert main(["run", "--type", "background", "--", *command], connect=qos.connect) == code
    assert qos.types == [TrafficType.BACKGROUND]
    assert qos.flow.rates == []
    assert qos.flow.closed


def test_run_sets_the_rate_before_the_command_starts() -> None:
    qos = StandIn()
    arguments = ["run", "--type", "audio-video", "--rate", "1.5M", "--shaping", "use-non-conformant-markings"]
    assert main([*arguments, "true", "--rate", "7"], connect=qos.connect) == 0
    assert qos.types == [TrafficType.AUDIO_VIDEO]
    assert qos.flow.rates == [(1_500_000, Shaping.USE_NON_CONFORMANT_MARKINGS)]


def test_the_daemon_sees_the_name_of_the_command_when_we_connect() -> None:
    def own_name() -> str:
        return Path("/proc/self/comm").read_text()

    names = [own_name()]

    def connect(path: str | None) -> StandIn:
        names.append(own_name())
        return StandIn()

    assert main(["run", "--type", "voice", "--", "/bin/true"], connect=connect) == 0
    assert names[1:] == ["true\n"]
    assert own_name() == names[0]


def test_run_says_why_a_command_cannot_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--type", "voice", "--", "there-is-no-such-command"], connect=StandIn().connect)
    assert capsys.readouterr().err == "qos2: there-is-no-such-command: No such file or directory\n"


def test_run_prints_the_counters_to_stderr_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    main(["run", "--type", "voice", "--stats", "--", "echo", "hello"], connect=StandIn().connect)
    assert capfd.readouterr() == (
        "hello\n",
        "qos2: flow 0x00100007: 123456 packets, 98765432 bytes, 1000 delayed, 12 remarked, 2 dropped\n",
    )


def test_a_lost_daemon_does_not_change_the_exit_code_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    qos = StandIn()
    qos.flow.lost = True
    assert main(["run", "--type", "voice", "--stats", "--", "sh", "-c", "exit 3"], connect=qos.connect) == 3
    assert capsys.readouterr().err == "qos2: the daemon went away; the flow had ended before the command did\n"


def test_the_command_has_our_signal_mask_and_not_the_ignored_signals_of_python(
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    assert main(["run", "--type", "voice", "--", "sh", "-c", script], connect=StandIn().connect) == 0
    told = dict(line.split(":\t") for line in capfd.readouterr().out.splitlines())
    assert int(told["SigBlk"], 16) == 0
    of_python = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert int(told["SigIgn"], 16) & of_python == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_passes_signals_on_to_the_command(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 42' {name}; echo ready; while :; do sleep 0.05; done"
    program = (
        "import sys; from rich.console import Console; from qos2.cli.run import run_command;"
        "sys.exit(run_command(['sh', '-c', sys.argv[1]], Console(stderr=True)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
        runner.send_signal(number)
        assert runner.wait(timeout=20) == 42


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith("qos2 ")


def test_a_reader_that_has_seen_enough_makes_no_traceback() -> None:
    program = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from unit.test_cli import StandIn, details\n"
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
