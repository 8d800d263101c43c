"""How far the benchmarks are: what is told on a terminal and in a pipe, and how the time left is estimated."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench.progress import Durations, Progress


class Clock:
    """Seconds that the test lets pass."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def made(path: Path, mode: str = "full", terminal: bool = False) -> tuple[Progress, Clock, io.StringIO]:
    clock, file = Clock(), io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=100)
    return Progress(console, ["wire", "rate", "paths"], Durations(path, mode), clock), clock, file


def known(path: Path) -> Path:
    path.write_text(json.dumps({"full": {"wire": 100.0, "rate": 200.0, "paths": 300.0}}))
    return path


def test_what_is_left_is_what_the_groups_took_last_time(tmp_path: Path) -> None:
    progress, clock, _ = made(known(tmp_path / "durations"))
    assert progress.left_s() == 600.0
    with progress.group() as name:
        assert name == "wire"
        clock.now_s += 40.0
        assert progress.left_s() == 560.0
        clock.now_s += 100.0  # longer than last time
        assert progress.left_s() == 500.0
        clock.now_s += 60.0
    # The machine is half as fast as it was.
    assert progress.left_s() == 1_000.0


def test_a_first_run_does_not_guess_and_the_next_one_knows(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "durations"
    progress, clock, _ = made(path)
    assert progress.left_s() is None
    for seconds in (10.0, 20.0, 30.04):
        with progress.group():
            clock.now_s += seconds
    assert json.loads(path.read_text()) == {"full": {"wire": 10.0, "rate": 20.0, "paths": 30.0}}
    assert made(path)[0].left_s() == 60.0
    assert made(path, "quick")[0].left_s() is None


def test_a_group_that_fails_is_not_remembered(tmp_path: Path) -> None:
    path = tmp_path / "durations"
    progress, _, _ = made(path)
    with pytest.raises(OSError, match="no space"), progress.group():
        raise OSError("no space")
    assert not path.exists()


@pytest.mark.parametrize("text", ["", "{"])
def test_a_file_that_cannot_be_read_is_no_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "durations"
    path.write_text(text)
    assert made(path)[0].left_s() is None


def test_in_a_pipe_there_is_a_line_per_group_and_one_each_half_minute(tmp_path: Path) -> None:
    progress, clock, file = made(known(tmp_path / "durations"))
    with progress.group():
        for number in range(1, 8):
            clock.now_s += 10.0
            progress.tell(f"round {number} of 7")
    with progress.group():
        clock.now_s += 95.0
        progress.tell("starting the daemon")
    assert file.getvalue().splitlines() == [
        "bench: group 1 of 3, wire: begins; 0 s; about 10 min left",
        "bench: group 1 of 3, wire: round 3 of 7; 30 s; about 10 min left",
        "bench: group 1 of 3, wire: round 6 of 7; 60 s; about 9 min left",
        "bench: group 2 of 3, rate: begins; 0 s; about 6 min left",
        "bench: group 2 of 3, rate: starting the daemon; 2 min; about 4 min left",
    ]


def test_on_a_terminal_one_line_is_renewed(tmp_path: Path) -> None:
    progress, clock, file = made(tmp_path / "durations", terminal=True)
    with progress.group():
        progress.tell("compiling")
        clock.now_s += 5.0
    shown = file.getvalue()
    assert "group 1 of 3, wire: compiling; 5 s; time left not known: first run here" in shown
    assert "bench:" not in shown
    assert shown.endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the line is taken away again
