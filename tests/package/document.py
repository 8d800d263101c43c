"""What a document says to type, in its order, and what it says that comes of it.

A fenced block without a language, or of `sh`, is a step, and so is an indented block; `text` right below a step is what
that shows. `<!-- not run: REASON -->` above a block leaves it out. Commands within a sentence are steps too. In what is
shown any number stands for any other, `...` for anything, and a line of it for lines.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

#: With one of these a command within a sentence begins. A single word there names a program, and is none.
PROGRAMS = {
    *("bpftool", "cat", "curl", "dmesg", "free", "ip", "journalctl", "kill", "promtool", "qos2", "qos2d", "rm", "ss"),
    *("systemctl", "systemd-analyze", "tc", "top"),
}

_MARK = re.compile(r"<!-- not run: (.+) -->$")
_FENCE = re.compile(r"```(\w*)$")
_SPAN = re.compile(r"`([^`]+)`")
_NUMBER = re.compile(r"0x[0-9a-f]+|\d[\d.,]*(?:e[+-]?\d+)?[kMGT]?")
_BAR = re.compile("[█░]+")


@dataclass(frozen=True)
class Step:
    """One thing to type; in a sentence, or in a block of its own."""

    line: int
    section: str
    script: str
    shown: tuple[str, ...] = ()
    in_sentence: bool = False
    left_out: str = ""  #: the reason; what is only shown, without a command, is always left out

    @property
    def name(self) -> str:
        """For a person: the section, and how the script begins."""
        return f"{self.section}: {self.script.splitlines()[0]}"


def steps(text: str) -> list[Step]:
    """Of a document in Markdown. Raises ValueError for a block of which it is not said what it is."""
    found: list[Step] = []
    for step in _blocks(text):
        is_below = bool(found) and not found[-1].in_sentence and not found[-1].shown
        if step.script:
            found.append(step)
        elif is_below and not found[-1].left_out and not step.left_out:
            found[-1] = replace(found[-1], shown=step.shown)
        elif step.left_out:
            found.append(replace(step, script=step.shown[0]))
        else:
            raise ValueError(f"line {step.line}: nothing to type is right above this")
    return found


def sentences_without_commands(text: str) -> set[str]:
    """Of several words, in a sentence, and taken for none: for a person to look whether that is so."""
    spans = {span for _, _, span in _spans(text)}
    return {span for span in spans if " " in span and span.split()[0] not in PROGRAMS}


def first_missing(shown: tuple[str, ...], output: str) -> str:
    """The first line of what shall be shown that the output does not have, in this order; empty: it has all."""
    lines = iter([" ".join(line.split()) for line in output.splitlines()])
    for line in shown:
        pattern = re.compile(_pattern(line))
        if not any(pattern.search(each) for each in lines):
            return line
    return ""


def _pattern(line: str) -> str:
    parts = re.split(r" ?\.\.\. ?", " ".join(line.split()))
    return ".*".join(_BAR.sub("[█░]+", _numbers(part)) for part in parts)


def _numbers(text: str) -> str:
    at, parts = 0, []
    for number in _NUMBER.finditer(text):
        parts += [re.escape(text[at : number.start()]), f"(?:{_NUMBER.pattern})"]
        at = number.end()
    return "".join(parts) + re.escape(text[at:])


def _blocks(text: str) -> Iterator[Step]:
    """Steps, and what is shown as a step without a script; in_sentence ones in between."""
    for line, section, paragraph, reason in _paragraphs(text):
        fence = _FENCE.match(paragraph[0])
        if fence is None and not paragraph[0].startswith("    "):
            yield from _commands(line, section, "\n".join(paragraph))
            continue
        language, body = ("", paragraph) if fence is None else (fence[1], paragraph[1:-1])
        if language == "text":
            yield Step(line, section, "", tuple(filter(str.strip, body)), left_out=reason)
        elif language in ("", "sh"):
            yield Step(line, section, "\n".join(each.removeprefix("    ") for each in body), left_out=reason)
        else:
            raise ValueError(f"line {line}: is {language} to be typed?")


def _commands(line: int, section: str, paragraph: str) -> Iterator[Step]:
    for span in _SPAN.finditer(paragraph):
        words = span[1].split()
        if len(words) > 1 and words[0] in PROGRAMS:
            at = line + paragraph[: span.start()].count("\n")
            yield Step(at, section, " ".join(words), in_sentence=True)


def _spans(text: str) -> Iterator[tuple[int, str, str]]:
    for line, section, paragraph, _ in _paragraphs(text):
        if not paragraph[0].startswith(("```", "    ")):
            for span in _SPAN.finditer("\n".join(paragraph)):
                yield line, section, " ".join(span[1].split())


def _paragraphs(text: str) -> Iterator[tuple[int, str, list[str], str]]:
    """First line, section, lines, and the reason of a mark above; a block is one, whatever is in it."""
    section, reason = "", ""
    gathered: list[str] = []
    fenced = False
    for number, line in enumerate([*text.splitlines(), ""], 1):
        fenced_before, fenced = fenced, fenced != line.startswith("```")
        if fenced or fenced_before:
            if fenced and not fenced_before and gathered:
                yield number - len(gathered), section, gathered, reason
                gathered, reason = [], ""
            gathered.append(line)
            if fenced:
                continue
        elif mark := _MARK.match(line):
            reason = mark[1]
            continue
        elif line.startswith("#"):
            section = line.lstrip("# ")
        elif line.strip():
            gathered.append(line)
            continue
        if gathered:
            yield number - len(gathered) + 1 - (not fenced_before), section, gathered, reason
            gathered, reason = [], ""
