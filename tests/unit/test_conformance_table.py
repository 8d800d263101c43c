"""The conformance table itself: rows are told apart, and every documented error is in it or explained away."""

import re
from collections import Counter

from conformance.documented import DOCUMENTED, outcome_of
from conformance.rows import ROWS
from unit.native import REPOSITORY

_HEADING = "## Errors that cannot arise here"
_LINE = re.compile(r"\| (\S+) \| (\d+) \| (\S.*) \|")


def impossible() -> dict[tuple[str, int], str]:
    """What docs/api.md says to be impossible: (call, error) -> reason."""
    text = (REPOSITORY / "docs" / "api.md").read_text()
    section = text.partition(f"{_HEADING}\n")[2].partition("\n## ")[0]
    header, rule, *lines = [line for line in section.splitlines() if line.startswith("|")]
    assert (header, rule) == ("| call | error | reason |", "|---|---|---|")
    found: dict[tuple[str, int], str] = {}
    for line in lines:
        match = _LINE.fullmatch(line)
        assert match is not None, line
        call, error, reason = match[1].strip("`"), int(match[2]), match[3]
        calls = [each for each in DOCUMENTED if error in DOCUMENTED[each]] if call == "all" else [call]
        for each in calls:
            assert (each, error) not in found, line
            found[each, error] = reason
    return found


def test_every_documented_error_is_in_the_table_or_cannot_arise() -> None:
    outcomes = {outcome_of(row) for row in ROWS}
    documented = {(call, error) for call, errors in DOCUMENTED.items() for error in errors}
    assert documented - outcomes - impossible().keys() == set()


def test_nothing_that_cannot_arise_is_in_the_table() -> None:
    assert impossible().keys() & {outcome_of(row) for row in ROWS} == set()


def test_only_what_is_documented_is_explained_away() -> None:
    assert {(call, error) for call, error in impossible() if error not in DOCUMENTED[call]} == set()


def test_each_row_has_a_name_of_its_own() -> None:
    assert [name for name, count in Counter(map(str, ROWS)).items() if count > 1] == []


def test_every_call_has_rows_that_succeed_and_rows_that_fail() -> None:
    by_call = {(row.call.function, row.expect.error == 0) for row in ROWS}
    assert by_call >= {(call, succeeds) for call in DOCUMENTED for succeeds in (True, False)}


def test_each_row_has_its_source() -> None:
    source = re.compile(r"\d(\.\d+)?( \[R\])?")
    assert [row for row in ROWS if not all(map(source.fullmatch, row.source.split(", ")))] == []
