"""The conformance table against libqwave by its C ABI, over the real server and real sockets: every row."""

import os
from dataclasses import replace

import pytest

from conformance.drivers import scene as scenes
from conformance.drivers.core import estimated
from conformance.drivers.libqwave import QwaveDriver
from conformance.drivers.scene import StageScene
from conformance.rows import ROWS
from conformance.table import Row
from conformance.vocabulary import Estimate
from qos2.model import FlowFundamentals, Method, Quality, Statement

WITH_ESTIMATES = [row for row in ROWS if any(isinstance(step, Estimate) for step in row.given)]


def answers_as_the_table_says(row: Row) -> None:
    if row.privileged and os.geteuid() != 0:
        pytest.skip("needs root, to be privileged")
    with StageScene(row.world) as scene, QwaveDriver(scene) as driver:
        outcome = driver.play(row)
        assert outcome == driver.expected(row.expect)
        assert scene.marks(row.effects) == row.effects


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_libqwave_answers_as_the_table_says(row: Row) -> None:
    answers_as_the_table_says(row)


def stated(word: Estimate) -> FlowFundamentals:
    """An estimate with a statement for each number: of what is not known there is a lower bound."""
    numbers = {"bottleneck": word.bottleneck, "available": word.available, "rtt": word.rtt_us}
    statements = {
        name: Statement(123_456, Quality.LOWER_BOUND, Method.TCP, 61.25)
        if value is None
        else Statement(value, Quality.MEASURED, Method.TRAIN, 1e-05)
        for name, value in numbers.items()
    }
    return replace(estimated(word), statements=statements)


@pytest.mark.parametrize("row", WITH_ESTIMATES, ids=str)
def test_statements_change_nothing_for_libqwave(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replies of a daemon that says how each number is known; a lower bound stays "not known" to C."""
    monkeypatch.setattr(scenes, "estimated", stated)
    answers_as_the_table_says(row)
