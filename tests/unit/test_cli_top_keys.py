"""What the keys of `qos2 top` do: order, filter, cursor and pages; and what a terminal sends for them."""

import os
import pty
import sys
from collections.abc import Iterator

import pytest

from qos2.cli import render
from qos2.cli.keyboard import Bell, Keyboard, name_of
from qos2.cli.sampling import Row
from qos2.cli.selection import SORTS, Selection, matching, ordered
from qos2.cli.snapshot import Looks
from unit.cli_stage import BACKUP, VOICE, StandIn, details


def row(number: int, bits: float = 0.0) -> Row:
    return Row(details(number), bits, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture(autouse=True)
def _known_users(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "user", lambda uid: f"user{uid}")


LISTED = [row(number) for number in range(1, 26)]


@pytest.mark.parametrize("order", SORTS)
def test_each_order_brings_its_own_first(order: str) -> None:
    busy = Row(
        details(2, traffic_type=5, program="z", uid=1, state="congested"), bits=9.0, packets=9.0, delayed=9.0,
        remarked=0.0, dropped=9.0,
    )  # fmt: skip
    idle = Row(details(1, traffic_type=0, program="a", uid=0, state="unknown"), 1.0, 1.0, 1.0, 0.0, 1.0)
    first = ordered([idle, busy], order)[0].flow.flow
    assert first == (1 if order in ("type", "name", "user", "unit", "id") else 2)
    assert ordered([idle, busy], order, reverse=True)[0].flow.flow == 3 - first


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [0x00100001, BACKUP.flow, VOICE.flow]),
        ("RSYNC", [BACKUP.flow]),
        ("voice", [VOICE.flow]),
        ("192.0.2.7", [0x00100001]),
        ("congested video", [0x00100001]),
        ("congested rsync", []),
        ("0xfff00002", [VOICE.flow]),
        ("4321 tcp:", []),
        ("contract", [BACKUP.flow]),
        ("user1000", [0x00100001, BACKUP.flow, VOICE.flow]),
        ("nobody", []),
    ],
)
def test_a_filter_finds_flows_that_have_all_of_its_words(text: str, found: list[int]) -> None:
    rows = [Row(flow, 0.0, 0.0, 0.0, 0.0, 0.0) for flow in (details(), BACKUP, VOICE)]
    assert [each.flow.flow for each in matching(rows, text)] == found


def test_the_cursor_moves_by_keys_and_the_list_follows_it() -> None:
    selection, moves = Selection("id"), []
    for key in ("down", "down", "page down", "page down", "page down", "up", "home", "end", "k", "j", "page up"):
        assert selection.press(key, LISTED, room=10)
        selection.settle(LISTED, room=10)
        moves.append((selection.chosen, selection.first))
    assert moves == [
        (1, 0), (2, 0), (12, 2), (22, 12), (25, 15), (24, 15), (1, 0), (25, 15), (24, 15), (25, 15), (15, 14),
    ]  # fmt: skip


def test_the_cursor_stays_with_its_flow_and_goes_with_its_end() -> None:
    selection = Selection("rate")
    selection.press("down", LISTED, room=10)
    moved = [*LISTED[1:], LISTED[0]]
    selection.settle(moved, room=10)
    assert (selection.chosen, selection.first) == (1, 15)
    selection.settle(LISTED[1:], room=10)
    selection.press("down", LISTED[1:], room=10)
    assert selection.chosen == 16  # the first on the screen
    selection.settle(LISTED[:4], room=10)
    assert selection.first == 0
    selection.press("down", [], room=10)


def test_escape_takes_away_the_cursor_and_then_the_filter() -> None:
    selection = Selection("rate", "voice")
    selection.press("down", LISTED, room=10)
    selection.press("escape", LISTED, room=10)
    assert (selection.chosen, selection.text) == (None, "voice")
    selection.press("escape", LISTED, room=10)
    assert (selection.chosen, selection.text) == (None, "")


def test_a_filter_is_typed_until_enter_keeps_it_or_escape_clears_it() -> None:
    selection = Selection("rate")
    selection.press("/", LISTED, room=10)
    assert selection.typing
    for typed in ("q", " ", "Z", "ü", "\x1b[A", "\x7f"):
        selection.type(typed, name_of(typed))
    assert selection.text == "q Z"
    selection.type("\r", "enter")
    assert (selection.typing, selection.text) == (False, "q Z")
    selection.press("/", LISTED, room=10)
    selection.type("\x15", "clear")
    selection.type("x", "x")
    assert selection.text == "x"
    selection.type("\x1b", "escape")
    assert (selection.typing, selection.text) == (False, "")


def test_enter_opens_the_flow_of_the_cursor_and_q_goes_back_before_it_quits() -> None:
    selection = Selection("rate")
    selection.press("enter", LISTED[:0], room=10)
    assert selection.page == "flows"
    selection.press("enter", LISTED, room=10)
    assert (selection.page, selection.chosen) == ("details", 1)
    selection.press("down", LISTED, room=10)
    selection.press("page down", LISTED, room=10)
    assert (selection.scrolled, selection.chosen) == (11, 1)
    assert selection.press("q", LISTED, room=10)
    assert selection.page == "flows"
    selection.press("?", LISTED, room=10)
    assert (selection.page, selection.scrolled) == ("help", 0)
    assert selection.press("escape", LISTED, room=10)
    assert not selection.press("q", LISTED, room=10)


def test_keys_sort_reverse_and_pause() -> None:
    selection = Selection("rate")
    orders = []
    for _ in SORTS:
        selection.press("s", LISTED, room=10)
        orders.append(selection.order)
    assert orders == [*list(SORTS)[1:], "rate"]
    selection.press("r", LISTED, room=10)
    selection.press("p", LISTED, room=10)
    assert (selection.reverse, selection.paused) == (True, True)


def test_the_list_is_made_once_for_each_look() -> None:
    looks = Looks(StandIn([details(), VOICE]))
    selection, seen = Selection("id"), looks.look()
    listed = selection.listed(seen)
    assert selection.listed(seen) is listed
    selection.text = "voice"
    assert [each.flow for each in selection.listed(seen)] == [VOICE]
    selection.text = ""
    assert selection.listed(looks.look()) is not listed


# What a terminal sends


@pytest.fixture
def typing(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Keyboard, int]]:
    """A keyboard, and where to type."""
    ours, theirs = pty.openpty()
    with open(theirs, "rb", buffering=0) as standard_input:
        monkeypatch.setattr(sys, "stdin", standard_input)
        with Keyboard() as keyboard:
            yield keyboard, ours
    os.close(ours)


def test_keys_typed_faster_than_they_are_read_are_all_heard(typing: tuple[Keyboard, int]) -> None:
    keyboard, ours = typing
    os.write(ours, "/vü\x1b[A\x1b[6~\x1b[1;5C\x1bOB \r\x7f\x1b".encode())
    typed = [keyboard.typed(5.0) for _ in range(10)]
    assert typed == ["/", "v", "ü", "\x1b[A", "\x1b[6~", "\x1b[1;5C", "\x1bOB", " ", "\n", "\x7f"]
    assert keyboard.typed(5.0) == "\x1b"
    assert [name_of(each or "") for each in typed] == [
        "/", "v", "ü", "up", "page down", "", "down", "page down", "enter", "backspace",
    ]  # fmt: skip
    assert keyboard.typed(0.0) is None


def test_a_control_sequence_in_two_pieces_is_one_key(typing: tuple[Keyboard, int]) -> None:
    keyboard, ours = typing
    pieces = iter([b"\x1b", b"[A"])
    os.write(ours, next(pieces))
    read = os.read

    def reading(fd: int, count: int) -> bytes:
        got = read(fd, count)
        for piece in pieces:
            os.write(ours, piece)
        return got

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "read", reading)
        assert keyboard.typed(5.0) == "\x1b[A"


def test_a_bell_ends_the_waiting_and_is_heard_once(typing: tuple[Keyboard, int]) -> None:
    keyboard, ours = typing
    with Bell() as bell:
        bell.ring()
        bell.ring()
        assert keyboard.typed(5.0, bell) is None
        os.write(ours, b"x")
        assert keyboard.typed(5.0, bell) == "x"
    bell.ring()  # late, from a thread that has not heard of the end
