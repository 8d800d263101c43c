"""One congested lab for all tests of this folder: its daemon probes, and a reflector answers at the peer."""

from collections.abc import Iterator

import pytest

from harness.congested import CongestedLab


@pytest.fixture(scope="package")
def congested() -> Iterator[CongestedLab]:
    with CongestedLab() as lab:
        lab.reflector()
        yield lab
        assert "Traceback" not in lab.daemon.log, lab.daemon.log
