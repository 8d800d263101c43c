"""The conformance table against libqwave by its C ABI, over the real server and real sockets: every row."""

import os

import pytest

from conformance.drivers.libqwave import QwaveDriver
from conformance.drivers.scene import StageScene
from conformance.rows import ROWS
from conformance.table import Row


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_libqwave_answers_as_the_table_says(row: Row) -> None:
    if row.privileged and os.geteuid() != 0:
        pytest.skip("needs root, to be privileged")
    with StageScene(row.world) as scene, QwaveDriver(scene) as driver:
        outcome = driver.play(row)
        assert outcome == driver.expected(row.expect)
        assert scene.marks(row.effects) == row.effects
