"""Completion in a real bash, of the words that somebody has typed so far."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from manual import completion
from manual.__main__ import KINDS, commands

#: Stands in for the command: it lists two flows, and says which socket it was asked to use.
QOS2 = """#!/bin/sh
if [ "$1" = --socket ]; then id=0x00300003; else id=0x00100001; fi
printf '{\\n  "flows": [\\n    {\\n      "id": "%s",\\n      "dscp": 40\\n    },\\n' "$id"
printf '    {\\n      "id": "0x00200002",\\n      "socket": "0x0badf00d"\\n    }\\n  ]\\n}\\n'
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts, a command to be asked for flows, and files to be named."""
    made = tmp_path_factory.mktemp("completion")
    for command in commands():
        (made / f"{command.name}.bash").write_text(completion.script(command, KINDS))
    (made / "qos2").write_text(QOS2)
    (made / "qos2").chmod(0o755)
    (made / "here.sock").touch()
    (made / "here folder").mkdir()
    return made


def complete(folder: Path, line: str, extra: str = "") -> list[str]:
    """What bash would offer behind `line`, of which the last word is being typed (a space: a new one)."""
    words = [*shlex.split(line), *([""] if line.endswith(" ") else [])]
    command = words[0]
    code = f"""
{extra}
source {folder}/{command}.bash
COMP_WORDS=({shlex.join(words)})
COMP_CWORD={len(words) - 1}
_{command}
((${{#COMPREPLY[@]}} == 0)) || printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", "LC_ALL": "C"}
    done = subprocess.run(
        ["bash", "--norc", "-u", "-c", code], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return sorted(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("qos2 st", ["status"]),
        ("qos2 --socket /x flo", ["flow", "flows"]),
        ("qos2 --socket status flo", ["flow", "flows"]),  # the value of an option is no command
        ("qos2 --vers", ["--version"]),
        ("qos2 flows --", ["--help", "--json", "--socket"]),
        ("qos2 flows ", []),
        ("qos2 flow ", ["0x00100001", "0x00200002"]),
        ("qos2 explain 0x002", ["0x00200002"]),
        ("qos2 --socket here.sock watch ", ["0x00200002", "0x00300003"]),
        ("qos2 --socket here", ["here folder", "here.sock"]),
        ("qos2 run --type v", ["voice"]),
        ("qos2 run --shaping shape", ["shape_and_mark", "shape_only"]),
        ("qos2 run --rate ", []),
        ("qos2d --config here.", ["here.sock"]),
        ("qos2d --pin-path here", ["here folder"]),
        ("qos2d --device lo", ["lo"]),
        ("qos2d --de", ["--device"]),
    ],
)
def test_what_is_offered(folder: Path, line: str, offered: list[str]) -> None:
    assert complete(folder, line) == offered


def test_every_command_is_offered(folder: Path) -> None:
    (qos2, _qos2d) = commands()
    assert complete(folder, "qos2 ") == sorted(command.words[-1] for command in qos2.commands)


def test_values_of_a_choice_are_offered(folder: Path) -> None:
    (top,) = (each for each in commands()[0].commands if each.words[-1] == "top")
    (sort,) = (option for option in top.options if "--sort" in option.names)
    assert complete(folder, "qos2 top --sort ") == sorted(sort.choices)
    assert "rate" in sort.choices


@pytest.mark.parametrize("line", ["qos2 run --type voice -- ba", "qos2 run --type voice ba"])
def test_the_command_to_run_is_completed(folder: Path, line: str) -> None:
    assert "bash" in complete(folder, line)


def test_the_line_behind_is_completed_as_that_commands_own(folder: Path) -> None:
    own = '_command_offset() { COMPREPLY=("$1"); }'
    assert complete(folder, "qos2 run --type voice -- rsync --ar", own) == ["5"]
    assert complete(folder, "qos2 run --type voice -- rsync here.") == ["here.sock"]


def test_without_a_daemon_no_flow_is_offered(folder: Path) -> None:
    assert complete(folder, "qos2 flow ", "qos2() { echo 'qos2: no daemon' >&2; return 1; }") == []
