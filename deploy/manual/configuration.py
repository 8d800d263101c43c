"""The page of the configuration file, from the comments of the file that is installed."""

import re
from dataclasses import dataclass
from pathlib import Path

from manual import roff

_KEY = re.compile(r"#?([a-z_]+|\[+[a-z_.]+\]+)(?:\s*=\s*(.+))?$")


@dataclass(frozen=True)
class Group:
    """Keys that one comment explains; without keys it is about the file as a whole."""

    text: str
    keys: tuple[tuple[str, str], ...]  #: name and default, as written in TOML


def groups(text: str) -> list[Group]:
    """The blocks of the file, in its order. Raises ValueError for a line that is neither comment nor key."""
    found = []
    for block in re.split(r"\n\s*\n", text.strip()):
        comments, keys = [], []
        for line in block.splitlines():
            key = _KEY.fullmatch(line)
            if line == "#" or line.startswith("# "):
                comments.append(line[2:])
            elif key:
                keys.append((key[1], key[2] or ""))
            else:
                raise ValueError(f"neither comment nor key: {line!r}")
        found.append(Group(" ".join(comments), tuple(keys)))
    return found


def page(path: Path, date: str, source: str) -> str:
    """qos2d.toml(5) out of the file at `path`."""
    lines = roff.heading("qos2d.toml", 5, date, source)
    lines += roff.section("NAME", "qos2d.toml \\- configuration of the QoS2 daemon")
    lines += roff.section("SYNOPSIS", roff.bold("/etc/qos2/qos2d.toml"))
    about, keys = [], []
    for group in groups(path.read_text()):
        if not group.keys:
            about += [".PP", roff.prose(group.text)]
            continue
        for number, (name, default) in enumerate(group.keys):
            keys += [".TQ" if number else ".TP", _tag(name, default)]
        keys.append(roff.prose(group.text))
    lines += roff.section("DESCRIPTION", *about[1:])
    lines += roff.section("KEYS", *keys)
    lines += roff.section("SEE ALSO", roff.references([("qos2", 1), ("qos2d", 8)]))
    return "\n".join(lines) + "\n"


def _tag(name: str, default: str) -> str:
    return f"{roff.bold(name)} = {roff.plain(default)}" if default else roff.bold(name)
