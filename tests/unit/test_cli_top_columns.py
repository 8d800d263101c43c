"""The columns of `qos2 top`: which fit what terminal, and that no line is ever longer than that."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from qos2.cli import columns
from qos2.cli.columns import Context
from qos2.cli.sampling import Row
from qos2.wire.protocol import FlowDetails
from unit.cli_stage import BACKUP, VOICE, details

LONG = details(program="名前" * 8, members=["tcp [2001:db8:1234:5678:9abc:def0:1234:5678]:65535"] * 9)
ROWS = [
    Row(LONG, 7.6e6, 1e3, 25, 0, 5),
    Row(VOICE, 80e3, 50, 0, 0, 0),
    Row(BACKUP, 0, 0, 0, 12, 0),
]  # fmt: skip


def screen(width: int) -> Console:
    return Console(file=io.TextIOWrapper(io.BytesIO(), "utf-8"), width=width)


def heads(width: int, *without: str) -> str:
    return " ".join(column.head for column, _ in columns.fitted(width, without=set(without)))


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (30, "PROGRAM BIT/s"),
        (48, "PROGRAM BIT/s STATE"),
        (78, "PROGRAM TYPE BIT/s CONTRACT USE STATE"),
        (92, "ID PROGRAM TYPE BIT/s CONTRACT USE STATE FOR"),
        (118, "ID PROGRAM UNIT TYPE BIT/s CONTRACT USE RULE STATE FOR"),
        (198, "ID USER PROGRAM UNIT TO TYPE DSCP PKT/s BIT/s CONTRACT USE RULE STATE FOR HELD RMRK DROP"),
    ],
)
def test_the_weightiest_columns_are_shown_as_far_as_they_fit(width: int, shown: str) -> None:
    assert heads(width) == shown


def test_what_no_flow_has_leaves_its_room_to_others() -> None:
    assert heads(118, "UNIT", "RULE") == "ID PROGRAM TO TYPE BIT/s CONTRACT USE STATE FOR DROP"
    assert "UNIT" not in heads(400, "UNIT")


@pytest.mark.parametrize("width", [*range(22, 130), 160, 200, 300])
def test_no_line_is_longer_than_the_terminal_and_all_columns_stay_in_line(width: int) -> None:
    fit = columns.fitted(width)
    context = Context(screen(width), 7.6e6, rated=True)
    lines = [columns.head(fit).plain, *(columns.body(row, fit, context).plain for row in ROWS)]
    assert {cell_len(line) for line in lines} == {sum(each for _, each in fit) + len(fit) - 1}
    assert cell_len(lines[0]) <= width


def test_before_the_second_look_there_are_no_rates() -> None:
    fit = columns.fitted(78)
    line = columns.body(ROWS[1], fit, Context(screen(78), 0.0, rated=False)).plain
    assert line.split() == ["baresip(1234567)", "voice", "-", "-", "░░░░░░", "unknown"]


def test_the_use_of_a_contract_is_drawn_and_never_beyond_its_end() -> None:
    def drawn(bits: float, bandwidth: int, out: Console) -> str:
        row = Row(details(bandwidth=bandwidth), bits, 0, 0, 0, 0)
        (use,) = [each for each in columns.COLUMNS if each.head == "USE"]
        return str(use.cell(row, 8, Context(out, 8e6, rated=True)))

    assert [drawn(bits, 8_000_000, screen(80)) for bits in (0, 1e3, 4e6, 8e6, 9e6)] == [
        "░░░░░░░░",
        "█░░░░░░░",
        "████░░░░",
        "████████",
        "████████",
    ]
    assert drawn(4e6, 0, screen(80)) == "████░░░░"  # of the largest rate
    plain = Console(file=io.TextIOWrapper(io.BytesIO(), "latin-1"), width=80)
    assert drawn(4e6, 8_000_000, plain) == "####...."


@pytest.mark.parametrize(
    ("flow", "told"),
    [
        (details(), "tcp 192.0.2.7:5004"),
        (VOICE, "udp *:* +199"),
        (BACKUP, "all it sends"),
        (details(members=[]), "-"),
    ],
)
def test_where_a_flow_goes_to_is_told_in_short(flow: FlowDetails, told: str) -> None:
    (to,) = [each for each in columns.COLUMNS if each.head == "TO"]
    assert to.cell(Row(flow, 0, 0, 0, 0, 0), 40, Context(screen(80), 0, rated=True)) == told


def test_a_flow_that_its_rule_denies_says_so() -> None:
    (state,) = [each for each in columns.COLUMNS if each.head == "STATE"]
    denied = details(rule="no-games", denied=True)
    assert str(state.cell(Row(denied, 0, 0, 0, 0, 0), 24, Context(screen(80), 0, rated=True))) == "denied by its rule"
