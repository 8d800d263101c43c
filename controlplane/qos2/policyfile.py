"""The policy as an administrator writes it: a folder of TOML files, read in the order of their names.

All or nothing: whatever is wrong anywhere is collected, each with file, line, key and what would be right, and no
policy comes of it. docs/policy.md is the reference for those who write such files.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, cast

from qos2.core.policy import Policy
from qos2.core.rule import DEFAULT_PRECEDENCE, Act, Bucket, Match, Rule, Traffic
from qos2.core.shadowing import shadows, ties
from qos2.errors import ConfigError
from qos2.policykeys import ACT, MATCH, Read, Unusable, name, near, precedence, shown, traffic
from qos2.tomlpositions import Place, Positions

FOLDER = Path("/etc/qos2/policy.d")
MAX_RULES = 1_024
#: What the rules take in the kernel: each combination of the alternatives of a rule's conditions is an entry.
MAX_ENTRIES = 4_096
#: Rules with a bucket for each socket or host, of which the kernel keeps as many pools.
MAX_POOLS = 256

_RULE_KEYS = ("name", "precedence", "match", "act")
#: Conditions about who owns a socket.
_OWNER = ("unit", "cgroup", "user", "executable")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong. `line` 0: the whole file; `key` as in the file, with the table that it is in."""

    file: str
    line: int
    key: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return (
            f"{where}: " + (f"{self.key}: " if self.key else "") + self.what + (f" ({self.hint})" if self.hint else "")
        )


class PolicyError(ConfigError):
    """The policy is wrong; the message has a line for each problem."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        super().__init__("\n".join(map(str, problems)))
        self.problems = problems


def read_policy(folder: Path) -> Policy:
    """The policy of all `*.toml` files in a folder; empty where there is no such folder.

    Raises PolicyError.
    """
    found: list[Rule] = []
    problems: list[Problem] = []
    for path in _files(folder, problems):
        document = _Document(str(path), path, problems)
        found += document.rules
    _check_together(found, problems)
    if problems:
        raise PolicyError(tuple(sorted(problems, key=lambda problem: (problem.file, problem.line))))
    return Policy(found)


def warnings(policy: Policy) -> tuple[str, ...]:
    """What is allowed and yet hardly meant, a line each: rules that can never act, ties, executables that are none."""
    found = [
        (shadow.rule, f"can never act: all that it matches meets {_named(shadow.by)} before")
        for shadow in shadows(policy)
    ]
    for first, second in ties(policy):
        what = f"decides after {_named(first)} only by where it stands: both may match, and neither is more specific"
        found.append((second, f"{what} (give one a precedence)"))
    for rule in policy.rules:
        found += [(rule, f"match.executable: {odd}") for path in rule.match.executables if (odd := _odd(path))]
    found.sort(key=lambda each: (each[0].file, each[0].line))
    return tuple(f"{rule.file}:{rule.line}: rule {rule.name}: {what}" for rule, what in found)


def _named(rule: Rule) -> str:
    return f"{rule.name} ({Path(rule.file).name}:{rule.line})"


def _odd(executable: str) -> str:
    """Why no process can run an executable; empty if one can."""
    try:
        with open(executable, "rb") as file:
            begin = file.read(128)
    except FileNotFoundError:
        return f"there is no {executable} on this host"
    except OSError as error:
        return f"{executable} cannot be read: {error.strerror}"
    script = re.match(rb"#![ \t]*(\S+)", begin)
    return f"{executable} is a script: its processes run {os.fsdecode(script[1])} (name its unit)" if script else ""


def entries_of(match: Match) -> int:
    """How many entries a rule takes in the kernel, each name counted as one cgroup, device or process."""
    lists = (
        match.units, match.cgroups, match.users, match.executables, match.protocols, match.local_ports,
        match.remote_ports, match.devices, match.namespaces, match.dscps,
    )  # fmt: skip
    families = [
        [sum(prefix.version == version for prefix in prefixes) if prefixes else 1 for version in (4, 6)]
        for prefixes in (match.local, match.remote)
    ]
    pairs = sum(prod(pair) for pair in zip(*families, strict=True)) if match.local or match.remote else 1
    return prod(max(len(each), 1) for each in lists) * pairs


def _files(folder: Path, problems: list[Problem]) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == ".toml" and not path.name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        problems.append(Problem(str(folder), 0, "", f"cannot be read: {error.strerror}"))
        return []


def _check_together(rules: Iterable[Rule], problems: list[Problem]) -> None:
    """What no file can know of itself: names that are taken, and limits."""
    by_name: dict[str, Rule] = {}
    entries = pools = 0
    for number, rule in enumerate(rules, 1):
        other = by_name.setdefault(rule.name, rule)
        if other is not rule:
            taken = f'"{rule.name}" is the name of the rule at {other.file}:{other.line} too'
            problems.append(Problem(rule.file, rule.line, "name", taken, "names are unique over all files"))
        if number == MAX_RULES + 1:
            problems.append(Problem(rule.file, rule.line, "rule", f"there are more than {MAX_RULES} rules"))
        pools += rule.act.bucket is not Bucket.SHARED
        if rule.act.bucket is not Bucket.SHARED and pools == MAX_POOLS + 1:
            what = f"more than {MAX_POOLS} rules have a bucket for each socket or host"
            problems.append(Problem(rule.file, rule.line, "act.bucket", what))
        before, entries = entries, entries + entries_of(rule.match)
        if before <= MAX_ENTRIES < entries:
            what = f"up to this rule, {entries} combinations of alternatives are matched; {MAX_ENTRIES} are possible"
            problems.append(Problem(rule.file, rule.line, "match", what, "use wider prefixes, ranges and slices"))


@dataclass
class _Document:
    """One file: its rules that are right, and what is wrong with the others."""

    file: str
    path: Path
    problems: list[Problem]
    rules: list[Rule] = field(default_factory=list)

    def __post_init__(self) -> None:
        try:
            text = self.path.read_text(encoding="utf-8")
            content = tomllib.loads(text)
        except OSError as error:
            self._tell(0, "", f"cannot be read: {error.strerror}")
        except UnicodeDecodeError as error:
            self._tell(0, "", f"is not UTF-8: {error.reason} at byte {error.start}")
        except RecursionError:
            self._tell(0, "", "is nested too deeply")
        except tomllib.TOMLDecodeError as error:
            # The parser has the place in its message alone, and none at the end of the text.
            told = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
            line = text.count("\n") + 1 if told is None or told[2] is None else int(told[2])
            self._tell(line, "", f"not TOML: {str(error) if told is None else told[1]}")
        else:
            self._positions = Positions(text)
            self._read(content)

    def _tell(self, line: int, key: str, what: str, hint: str = "") -> None:
        self.problems.append(Problem(self.file, line, key, what, hint))

    def _wrong(self, place: Place, what: str, hint: str = "") -> None:
        """`place` begins with "rule" and its number, which are no part of the key that is told."""
        keys = [key for key in place[2:] if isinstance(key, str)] or ["rule"]
        self._tell(self._positions.line(place), ".".join(keys), what, hint)

    def _read(self, content: Mapping[str, Any]) -> None:
        for key in content.keys() - {"rule"}:
            self._tell(self._positions.line((key,)), key, "unknown key", "a file has nothing but [[rule]] tables")
        rules = content.get("rule", [])
        if not isinstance(rules, list) or not all(isinstance(rule, dict) for rule in rules):
            self._tell(self._positions.line(("rule",)), "rule", "a rule begins with [[rule]], in two pairs of brackets")
            return
        for number, line in enumerate(self._positions.headers("rule", len(rules))):
            self._rule(("rule", number), rules[number], line)

    def _rule(self, place: Place, content: Mapping[str, Any], line: int) -> None:
        count = len(self.problems)
        self._unknown(place, content, _RULE_KEYS)
        if "name" not in content:
            self._wrong(place, "has no name", 'as in name = "calls"')
        own_name = self._value((*place, "name"), content, name, "")
        own_precedence = self._value((*place, "precedence"), content, precedence, DEFAULT_PRECEDENCE)
        match = self._match((*place, "match"), content.get("match", {}))
        act = self._act((*place, "act"), content.get("act", {}))
        if match is not None and act is not None:
            self._contradictions(place, content, match, act)
        if len(self.problems) == count:
            assert match is not None  # else there is a problem
            assert act is not None
            self.rules.append(Rule(own_name, match, act, own_precedence, self.file, line))

    def _value(self, place: Place, content: Mapping[str, Any], read: Read, default: Any) -> Any:
        key = cast(str, place[-1])
        if key not in content:
            return default
        try:
            return read(content[key])
        except Unusable as wrong:
            self._wrong(place, wrong.what, wrong.hint)
            return default

    def _alternatives(self, place: Place, value: object, read: Read) -> tuple[Any, ...]:
        """Of one value or a list of them. What is wrong with any of them is told."""
        if value == []:
            self._wrong(place, "an empty list would match nothing", "without the key, anything matches")
        found: dict[Any, None] = {}
        for index, each in enumerate(value if isinstance(value, list) else [value]):
            try:
                one = read(each)
            except Unusable as wrong:
                self._wrong((*place, index), wrong.what, wrong.hint)
                continue
            if one in found:
                self._wrong((*place, index), f"{shown(each)} is named twice")
            found[one] = None
        return tuple(found)

    def _unknown(self, place: Place, content: Mapping[str, Any], known: Iterable[str]) -> None:
        for key in content:
            if key not in known:
                self._wrong((*place, key), "unknown key", self._placed(place, key) or near(key, tuple(known)))

    def _placed(self, place: Place, key: str) -> str:
        """A hint at the table that a key belongs into."""
        if len(place) == 2 or place[-1] in ("match", "act"):
            tables = {"match.": (*MATCH, "traffic"), "act.": ACT, "": _RULE_KEYS}
            meant = [f"{table}{key}" for table, keys in tables.items() if key in keys]
            if meant:
                return f"did you mean {' or '.join(meant)}?" if meant != [key] else "it belongs to the rule itself"
        return "did you mean local_port or remote_port?" if key in ("port", "ports") else ""

    def _table(self, place: Place, content: object, known: Iterable[str]) -> Mapping[str, Any] | None:
        if not isinstance(content, dict):
            self._wrong(place, "expected keys below it", f"as in {place[-1]}.{next(iter(known))} = ...")
            return None
        self._unknown(place, content, known)
        return content

    def _match(self, place: Place, content: object) -> Match | None:
        table = self._table(place, content, (*MATCH, "traffic"))
        if table is None:
            return None
        conditions = {
            condition: self._alternatives((*place, key), table[key], read)
            for key, (condition, read) in MATCH.items()
            if key in table
        }
        return Match(**conditions, traffic=self._value((*place, "traffic"), table, traffic, Traffic.LOCAL))

    def _act(self, place: Place, content: object) -> Act | None:
        table = self._table(place, content, ACT)
        if table is None:
            return None
        values = {key: self._value((*place, key), table, read, None) for key, read in ACT.items() if key in table}
        return Act(**{key: value for key, value in values.items() if value is not None})

    def _contradictions(self, place: Place, content: Mapping[str, Any], match: Match, act: Act) -> None:
        """What each key may be by itself, but not together with others."""
        self._within_act((*place, "act"), content.get("act", {}), act)
        self._within_match((*place, "match"), content.get("match", {}), match)
        if match.traffic is Traffic.FORWARDED:
            about_sockets = {"deny": act.deny, "ceiling": act.ceiling, "bucket": act.bucket is Bucket.SOCKET}
            for key in (key for key, asked in about_sockets.items() if asked):
                self._wrong((*place, "act", key), "is about sockets of this host, and forwarded packets have none")

    def _within_act(self, place: Place, content: Mapping[str, Any], act: Act) -> None:
        asked = [key for key, value in content.items() if value is not False]
        if not asked:
            self._wrong(place if content else place[:-1], "does nothing", "act.exempt = true keeps later rules away")
        if act.deny or act.exempt:
            alone = "deny" if act.deny else "exempt"
            for key in asked:
                if key != alone:
                    self._wrong((*place, key), f"has no place beside act.{alone}", f"act.{alone} stands alone")
        elif "rate" not in asked:
            for key in ("ceiling", "bucket", "shaping"):
                if key in asked:
                    self._wrong((*place, key), "says nothing without act.rate")
        if "traffic_type" in asked and "dscp" in asked:
            self._wrong(
                (*place, "dscp"), "has no place beside act.traffic_type", "a traffic type has a DSCP of its own"
            )

    def _within_match(self, place: Place, content: Mapping[str, Any], match: Match) -> None:
        local, remote = ({prefix.version for prefix in prefixes} for prefixes in (match.local, match.remote))
        if local and remote and not local & remote:
            self._wrong((*place, "remote"), "has no address of the family of match.local, so nothing matches")
        if match.traffic is not Traffic.LOCAL:
            for key in _OWNER:
                if key in content:
                    what = "forwarded packets have no owner on this host"
                    self._wrong((*place, key), what, "leave match.traffic out, or make two rules of it")
