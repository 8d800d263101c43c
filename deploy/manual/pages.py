"""Man pages of the commands: one each, `qos2-run` for `qos2 run`."""

from collections.abc import Mapping, Sequence

from manual import roff
from manual.grammar import Command, Option

#: Manual section by the first word of a command; all others are for every user.
SECTIONS = {"qos2d": 8}

_EXIT_STATUS = {
    "qos2": [
        ("0", "Done."),
        ("1", "Refused, or no daemon; the reason and a hint are on standard error."),
        ("2", "Wrong usage."),
    ],
    "qos2-run": [
        ("that of the command", "It ended by itself; 128 + n if signal n ended it."),
        ("126, 127", "The command cannot be executed; it is not there."),
        ("1", "The daemon refused the flow, or there is no daemon."),
        ("2", "Wrong usage."),
    ],
    "qos2d": [("0", "It was told to stop, and has taken everything off the host again."), ("1", "It could not start.")],
}
_SIGNALS = {
    "qos2-reflector": [("SIGUSR1", "Print what it has done so far."), ("SIGTERM, SIGINT", "Print that, and end.")],
    "qos2d": [
        ("SIGHUP", "Read the policy anew; where that has an error, the old one stays."),
        (
            "SIGTERM, SIGINT",
            "End all flows and take everything off the host: programs, qdiscs, pins. After any other end the kernel "
            "goes on marking and limiting, and the next daemon takes the flows over.",
        ),
    ],
}
_ENVIRONMENT = {"qos2": [("QOS2_SOCKET", "Socket of the daemon, where `--socket` names none.")]}
_SOCKET = ("/run/qos2/qos2.sock", "Where clients reach the daemon.")
_FILES = {
    "qos2": [_SOCKET],
    "qos2d": [
        ("/etc/qos2/qos2d.toml", "Configuration, see `qos2d.toml`(5)."),
        ("/etc/qos2/policy.d/*.toml", "The administrator's policy."),
        _SOCKET,
        ("/sys/fs/bpf/qos2", "Maps and programs, which outlive a daemon that was killed."),
    ],
}


def page(
    command: Command, examples: Mapping[str, Sequence[tuple[str, str]]], date: str, source: str, also: Sequence[str]
) -> str:
    """The page of one command; `also` are names of others. Texts that argparse has none of are in this module."""
    lines = roff.heading(command.name, section_of(command.name), date, source)
    lines += roff.section("NAME", f"{roff.plain(command.name)} \\- {roff.prose(_lowered(command.summary))}")
    lines += roff.section("SYNOPSIS", f"{roff.bold(' '.join(command.words))} {roff.synopsis(command.synopsis)}")
    lines += roff.section("DESCRIPTION", roff.prose(_sentence(command.description)), *_paragraph(command.epilog))
    lines += roff.section("COMMANDS", *(line for each in command.commands for line in _below(each)))
    lines += roff.section("ARGUMENTS", *(line for each in command.operands for line in _operand(each)))
    lines += roff.section("OPTIONS", *(line for each in command.options for line in _option(each)))
    root = command.words[0]
    exits = _EXIT_STATUS.get(command.name) or _EXIT_STATUS[root]
    lines += roff.section("EXIT STATUS", *_items(exits))
    lines += roff.section("SIGNALS", *_items(_SIGNALS.get(command.name, [])))
    lines += roff.section("ENVIRONMENT", *_items(_ENVIRONMENT.get(root, [])))
    lines += roff.section("FILES", *_items(_FILES.get(command.name, [])))
    shown = (line for what, typed in examples.get(command.name, []) for line in roff.example(what, typed))
    lines += roff.section("EXAMPLES", *shown)
    others = sorted({*also, *(each.name for each in command.commands)} - {command.name})
    lines += roff.section("SEE ALSO", roff.references((name, section_of(name)) for name in others))
    return "\n".join(lines) + "\n"


def section_of(name: str) -> int:
    """The manual's section in which a page is."""
    return 5 if name.endswith(".toml") else SECTIONS.get(name, 1)


def _below(command: Command) -> list[str]:
    return roff.item(roff.references([(command.name, section_of(command.name))]), _sentence(command.summary))


def _option(option: Option) -> list[str]:
    value = f" {roff.italic(option.metavar)}" if option.metavar else ""
    return roff.item(", ".join(roff.bold(name) + value for name in option.names), _sentence(option.help))


def _operand(option: Option) -> list[str]:
    return roff.item(roff.italic(option.metavar), _sentence(option.help)) if option.help else []


def _items(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [line for tag, text in pairs for line in roff.item(roff.bold(tag), text)]


def _paragraph(text: str) -> list[str]:
    return [".PP", roff.prose(text)] if text else []


def _sentence(text: str) -> str:
    """As a help text stands in a page: with a capital at its beginning and a stop at its end."""
    if not text:
        return ""
    if text.partition(" ")[0].isalpha():  # a word, not a name
        text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else f"{text}."


def _lowered(text: str) -> str:
    """As a summary stands behind a name, whatis(1); names in capitals stay."""
    first = text.partition(" ")[0]
    if first[1:].islower():
        text = text[:1].lower() + text[1:]
    return text.removesuffix(".")
