"""A command line's grammar as plain values, read from its argparse parser.

argparse offers no public way to walk a parser; what is used of its inside is in this file alone.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One option, or one operand (which has no names)."""

    names: tuple[str, ...]
    metavar: str  #: empty: takes no value
    help: str
    choices: tuple[str, ...]
    convert: Callable[[str], object] | None  #: what argparse calls on a value
    rest: bool = False  #: an operand that takes all words that follow


@dataclass(frozen=True)
class Command:
    """A command, with those below it."""

    words: tuple[str, ...]  #: as typed: ("qos2", "run")
    summary: str  #: one line, as in the list of commands
    description: str
    epilog: str
    synopsis: str  #: all behind the words
    options: tuple[Option, ...]
    operands: tuple[Option, ...]
    commands: tuple["Command", ...]

    @property
    def name(self) -> str:
        """As a page is called: `qos2-run`."""
        return "-".join(self.words)

    def walk(self) -> Iterator["Command"]:
        """This one and all below."""
        yield self
        for command in self.commands:
            yield from command.walk()


def read(parser: argparse.ArgumentParser, words: Sequence[str] = (), summary: str = "") -> Command:
    """The grammar of `parser`, which is called by `words` (default: its own name)."""
    words = tuple(words) or (parser.prog,)
    options: list[Option] = []
    operands: list[Option] = []
    commands: list[Command] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            commands += [read(each, (*words, name), helps.get(name, "")) for name, each in action.choices.items()]
        elif action.help != argparse.SUPPRESS:
            (options if action.option_strings else operands).append(_option(parser, action))
    description = parser.description or summary
    return Command(
        words=words,
        summary=summary or description,
        description=description,
        epilog=parser.epilog or "",
        synopsis=_synopsis(parser, words),
        options=tuple(options),
        operands=tuple(operands),
        commands=tuple(commands),
    )


def _option(parser: argparse.ArgumentParser, action: argparse.Action) -> Option:
    formatter = parser._get_formatter()
    takes_value = action.nargs != 0
    metavar = formatter._metavar_formatter(action, formatter._get_default_metavar_for_optional(action))(1)[0]
    if not action.option_strings:
        metavar = formatter._metavar_formatter(action, action.dest)(1)[0]
    return Option(
        names=tuple(action.option_strings),
        metavar=metavar if takes_value else "",
        help=formatter._expand_help(action) if action.help else "",
        choices=tuple(str(choice) for choice in action.choices or ()),
        convert=action.type if callable(action.type) else None,
        rest=action.nargs == argparse.REMAINDER,
    )


def _synopsis(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    usage = " ".join(parser.format_usage().removeprefix("usage:").split())
    return usage.removeprefix(" ".join(words)).strip()
