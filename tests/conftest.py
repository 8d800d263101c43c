"""What holds for all tests: those that need root say so where they cannot run, instead of failing.

Without root the unit tests run, and the summary at the end names what was left out and how to run it.
Property tests have no deadline: machines are shared, and a slow example proves nothing.
"""

import os

import pytest
from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    left_out = pytest.mark.skip(reason="needs root: sudo ./dev test")
    for item in items:
        if item.get_closest_marker("datapath"):
            item.add_marker(left_out)
