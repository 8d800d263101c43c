"""The man pages: they say what the parsers and the configuration file say, and groff finds nothing wrong with them."""

import argparse
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from manual import configuration, pages, roff
from manual.__main__ import CONFIGURATION, commands, write
from manual.examples import EXAMPLES
from manual.grammar import Command, read
from qos2 import daemon
from qos2.cli import main
from qos2.config import KEYS
from unit.native import tool

GRAMMARS = {command.name: command for root in commands() for command in root.walk()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All that is generated."""
    made = tmp_path_factory.mktemp("manual")
    write(made)
    return made


#: Hyphen, minus, and quotation marks, as groff sets them, to what is typed.
_TYPED = str.maketrans({"\u2010": "-", "\u2212": "-", "\u2018": "`", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


def text_of(page: Path) -> str:
    """A page as a terminal shows it, without emphasis. Fails the test for whatever groff says."""
    command = [tool("groff"), "-k", "-man", "-Tutf8", "-P-cbou", "-rLL=100n", "-ww", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stderr == "", page.name
    return " ".join(done.stdout.translate(_TYPED).split())


def test_each_command_has_a_page_and_nothing_else_has(folder: Path) -> None:
    expected = {f"{name}.{8 if name == 'qos2d' else 1}" for name in GRAMMARS} | {"qos2d.toml.5"}
    assert {path.name for path in folder.iterdir() if path.suffix != ".bash"} == expected
    assert {"qos2.1", "qos2-status.1", "qos2-run.1", "qos2-reflector.1", "qos2d.8"} <= expected


@pytest.mark.parametrize("name", GRAMMARS)
def test_a_page_tells_every_option_with_its_help(folder: Path, name: str) -> None:
    command = GRAMMARS[name]
    text = text_of(folder / f"{name}.{pages.section_of(name)}")
    for option in (*command.options, *command.operands):
        for word in option.names:
            assert f"{word} {option.metavar}".strip() in text
        help_text = " ".join(option.help.replace("`", "").split())
        assert help_text[1:] in text
    for below in command.commands:
        assert f"{below.name}({pages.section_of(below.name)})" in text
    assert "Show this help" in text


def test_helps_of_a_parser_are_expanded_and_hidden_ones_left_out() -> None:
    parser = argparse.ArgumentParser(prog="tool", description="Does it.")
    parser.add_argument("--count", type=int, default=3, help="how often (default: %(default)s)")
    parser.add_argument("--secret", help=argparse.SUPPRESS)
    parser.add_subparsers(metavar="WHAT").add_parser("sub", help="a part").add_argument(
        "names", nargs="*", metavar="NAME"
    )
    grammar = read(parser)
    assert [(each.names, each.metavar, each.help) for each in grammar.options] == [
        (("-h", "--help"), "", "show this help message and exit"),
        (("--count",), "COUNT", "how often (default: 3)"),
    ]
    (sub,) = grammar.commands
    assert (sub.words, sub.name, sub.summary, sub.synopsis) == (
        ("tool", "sub"),
        "tool-sub",
        "a part",
        "[-h] [NAME ...]",
    )
    assert [each.metavar for each in sub.operands] == ["NAME"]


def test_the_configuration_page_tells_every_key_with_its_default(folder: Path) -> None:
    text = text_of(folder / "qos2d.toml.5")
    groups = configuration.groups(CONFIGURATION.read_text())
    told = {name: default for group in groups for name, default in group.keys}
    assert set(told) == set(KEYS)
    for name, default in told.items():
        assert f"{name} = {default}" in text
    for group in groups:
        assert group.text
        assert group.text.replace("`", "").split(".")[0] in text


def test_a_line_that_is_neither_comment_nor_key_is_refused() -> None:
    with pytest.raises(ValueError, match="neither comment nor key: '#What'"):
        configuration.groups("# A key.\n#What\n")


def test_nothing_of_a_text_is_taken_for_a_request() -> None:
    assert roff.plain(".so /etc/passwd") == "\\&.so /etc/passwd"
    assert roff.plain("a\\fBb") == "a\\efBb"
    assert roff.prose("see `qos2 run`, or 'it'") == "see \\fBqos2 run\\fR, or \\(aqit\\(aq"
    assert roff.synopsis("[--rate RATE] -- COMMAND") == "[\\fB\\-\\-rate\\fR \\fIRATE\\fR] \\-\\- \\fICOMMAND\\fR"


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_accepted_by_the_command_itself(name: str) -> None:
    parsers = {"qos2": main.parser(), "qos2d": daemon.arguments()}
    accepted = 0
    for _what, typed in EXAMPLES[name]:
        for part in re.split(r" \| ", typed):
            words = shlex.split(part)
            if words[0] in parsers:
                parsers[words[0]].parse_args(words[1:])
                accepted += 1
    assert accepted >= 1
    assert name in GRAMMARS


def test_whatis_finds_a_line_for_each_page(folder: Path) -> None:
    """lexgrog(1) of man-db reads what is behind .SH NAME: a name, a dash, and what it is."""
    for page in sorted(folder.glob("*.[158]")):
        lines = page.read_text().splitlines()
        assert re.fullmatch(r"[a-z0-9.\\-]+ \\- \S.*[^.]", lines[lines.index(".SH NAME") + 1]), page.name


def test_the_grammar_of_run_is_that_of_its_parser() -> None:
    run: Command = GRAMMARS["qos2-run"]
    assert run.synopsis.endswith("-- COMMAND [ARGUMENT ...]")
    assert [operand.rest for operand in run.operands] == [True]
