"""The conformance table against qos2.win32, over the real server and real sockets: all but NULL pointers of C."""

import os

import pytest

from conformance.drivers.scene import StageScene
from conformance.drivers.win32 import Win32Driver
from conformance.rows import ROWS
from conformance.table import Judge, Row

PLAYED = [row for row in ROWS if row.judge is not Judge.POINTER]


@pytest.mark.parametrize("row", PLAYED, ids=str)
def test_win32_answers_as_the_table_says(row: Row) -> None:
    if row.privileged and os.geteuid() != 0:
        pytest.skip("needs root, to be privileged")
    with StageScene(row.world) as scene, Win32Driver(scene) as driver:
        outcome = driver.play(row)
        assert outcome == driver.expected(row.expect)
        assert scene.marks(row.effects) == row.effects
