"""Text into the macros of man(7): pages are lists of lines, and nothing of a text is taken for a request."""

import re
from collections.abc import Iterable

_ESCAPES = str.maketrans(
    {"\\": "\\e", "-": "\\-", "'": "\\(aq", "`": "\\(ga", "^": "\\(ha", "~": "\\(ti", '"': "\\(dq"}
)
_CODE = re.compile(r"`([^`]+)`")
_OPTION = re.compile(r"(?<![\w-])(--[a-z][a-z-]*|-[a-zA-Z])(?![\w-])")
#: What a value is called, in a synopsis or before the text of an option.
_VALUE = re.compile(r"(?<![A-Za-z_-])([A-Z][A-Z0-9_:|.]*[A-Z0-9])(?![A-Za-z])")


def plain(text: str) -> str:
    """The text as it is, in one line; a leading dot is no request."""
    escaped = " ".join(text.split()).translate(_ESCAPES)
    return f"\\&{escaped}" if escaped.startswith(".") else escaped


def bold(text: str) -> str:
    return f"\\fB{plain(text)}\\fR"


def italic(text: str) -> str:
    return f"\\fI{plain(text)}\\fR"


def prose(text: str) -> str:
    """As plain(); what stands in backquotes becomes bold."""
    parts = _CODE.split(" ".join(text.split()))
    line = "".join(bold(part) if number % 2 else part.translate(_ESCAPES) for number, part in enumerate(parts))
    return f"\\&{line}" if line.startswith(".") else line


def synopsis(text: str) -> str:
    """A synopsis: options bold, values italic."""
    marked = _VALUE.sub("\0I\\1\0R", _OPTION.sub("\0B\\1\0R", text))
    return marked.translate(_ESCAPES).replace("\0", "\\f")


def heading(name: str, section: int, date: str, source: str) -> list[str]:
    """The beginning of a page."""
    manual = {1: "User Commands", 5: "File Formats", 8: "System Administration"}[section]
    return [f'.TH "{plain(name.upper())}" {section} "{date}" "{plain(source)}" "{manual}"', ".nh", ".ad l"]


def section(title: str, *lines: str) -> list[str]:
    """A section, or nothing where it would be empty."""
    return [f".SH {title}", *lines] if lines else []


def item(tag: str, text: str) -> list[str]:
    """A tag with a text below it; the tag is roff already."""
    return [".TP", tag, *([prose(text)] if text else ["\\&"])]


def example(what: str, command: str) -> list[str]:
    """A command line to type, below what it does."""
    return [".PP", prose(what), ".PP", ".RS 4", ".nf", bold(command), ".fi", ".RE"]


def references(pages: Iterable[tuple[str, int]]) -> str:
    """Names of other pages."""
    return ", ".join(f"{bold(name)}({section})" for name, section in pages)
