"""The conformance table on the wire: every row with an effect, over the real daemon, judged by what the peer gets.

The next packet of each socket after the call carries the DSCP of the table, or the application's own; where
the row has a rate, a train of packets shows that it is in force.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from conformance.drivers.binding import BindingDriver
from conformance.drivers.lab import JUDGED_RATES, OWN_DSCP, Field, LabScene
from conformance.drivers.libqwave import QwaveDriver
from conformance.drivers.win32 import Win32Driver
from conformance.rows import ROWS
from conformance.table import Judge, Row
from conformance.vocabulary import PLAIN, World
from demo.lab import Lab
from demo.processes import Daemon
from harness.wire import UNPROBED

pytestmark = pytest.mark.datapath

PLAYED = [row for row in ROWS if row.on_the_wire]
Fields = Callable[[World], Field]


@pytest.fixture(scope="module")
def fields(lab: Lab, daemon: Daemon) -> Iterator[Fields]:
    """A field for each world, made when the first row needs it: its daemon is configured as the world says."""
    made: dict[str, Field] = {}
    with ExitStack() as stack:

        def field(world: World) -> Field:
            if str(world) not in made:
                its_lab, its_daemon = lab, daemon
                if world != PLAIN:
                    its_lab = stack.enter_context(Lab("qos2-test"))
                    its_daemon = stack.enter_context(
                        Daemon(its_lab.app, strict=world.strict, deny=list(world.deny), **UNPROBED)
                    )
                made[str(world)] = stack.enter_context(Field(its_lab, its_daemon))
            return made[str(world)]

        yield field
        for each in made.values():
            assert "Traceback" not in each.daemon.log, each.daemon.log


def play(row: Row, scene: LabScene, driver: BindingDriver) -> None:
    assert driver.play(row) == driver.expected(row.expect)
    dscps = {sending: OWN_DSCP if mark.dscp is None else mark.dscp for sending, mark in row.effects.items()}
    assert scene.dscps(row.effects) == dscps
    for sending, mark in row.effects.items():
        assert mark.bandwidth not in JUDGED_RATES or scene.obeys(sending, mark)


@pytest.mark.parametrize("row", [row for row in PLAYED if row.judge is not Judge.POINTER], ids=str)
def test_win32_has_the_effect_that_the_table_says(row: Row, fields: Fields) -> None:
    with LabScene(fields(row.world)) as scene, Win32Driver(scene) as driver:
        play(row, scene, driver)


@pytest.mark.parametrize("row", PLAYED, ids=str)
def test_libqwave_has_the_effect_that_the_table_says(row: Row, fields: Fields) -> None:
    with LabScene(fields(row.world)) as scene, QwaveDriver(scene) as driver:
        play(row, scene, driver)
