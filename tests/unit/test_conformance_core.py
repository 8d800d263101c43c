"""The conformance table against the core: every row that the daemon judges, without a socket and without root."""

import pytest

from conformance.drivers.core import CoreDriver
from conformance.rows import ROWS
from conformance.table import Judge, Row


@pytest.mark.parametrize("row", [row for row in ROWS if row.judge is Judge.DAEMON], ids=str)
def test_the_core_answers_as_the_table_says(row: Row) -> None:
    with CoreDriver(row.world) as driver:
        outcome = driver.play(row)
        assert outcome == driver.expected(row.expect)
        assert driver.marks(row.effects) == row.effects
