"""Fixtures of the tests over the real server: a stage, and one raw client on it."""

from collections.abc import Iterator

import pytest

from unit.server_stage import RawClient, Stage, staged


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


@pytest.fixture
def client(stage: Stage) -> Iterator[RawClient]:
    with stage.connection() as made:
        yield made
