"""The keys of a rule in a policy file: for each what its values may be, and what they mean.

Each reader takes a value as tomllib gives it and returns it in the words of core/rule.py, or raises Unusable.
"""

import difflib
import os
import pwd
import re
from collections.abc import Callable, Collection
from enum import StrEnum
from ipaddress import IPv6Network, ip_network
from typing import Any, TypeVar

from qos2.config import MAX_DEVICE_NAME_BYTES
from qos2.core.bandwidth import parse_bandwidth
from qos2.core.rule import MAX_PRECEDENCE, Bucket, PortRange, Prefix, Traffic
from qos2.model import MAX_BANDWIDTH, MIN_BANDWIDTH, Bandwidth, Dscp, Shaping, TrafficType, Transport

Read = Callable[[Any], Any]
_Word = TypeVar("_Word", bound=StrEnum)
_Label = TypeVar("_Label", TrafficType, Shaping)

MAX_NAME_CHARACTERS = 64
#: (uid_t)-1 is nobody: the kernel's word for "unchanged".
_MAX_UID = (1 << 32) - 2
#: Types of units whose processes are in a cgroup of the unit's name.
_UNIT_TYPES = (".service", ".scope", ".slice", ".socket", ".mount", ".swap")
#: RFC 2474, 2597, 3246, 5865, 8622.
_DSCP_NAMES = (
    {f"CS{number}": 8 * number for number in range(8)}
    | {f"AF{group}{drop}": 8 * group + 2 * drop for group in range(1, 5) for drop in range(1, 4)}
    | {"EF": 46, "VA": 44, "LE": 1}
)


class Unusable(ValueError):
    """A value that its key cannot have."""

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint


def near(word: str, known: Collection[str]) -> str:
    """A hint at what was meant: the nearest known word, or all of them if they are few."""
    found = difflib.get_close_matches(word, known, n=1)
    if found:
        return f'did you mean "{found[0]}"?'
    return f"known: {', '.join(known)}" if len(known) <= 20 else ""


def shown(value: object) -> str:
    """A value as the file may have it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return "a table" if isinstance(value, dict) else "a list" if isinstance(value, list) else str(value)


def _text(value: object, example: str) -> str:
    if not isinstance(value, str):
        raise Unusable(f"expected text, not {shown(value)}", f"as in {example}")
    if not value or not value.isprintable() or value != value.strip():
        raise Unusable(f"{shown(value)} is empty, begins or ends with a space, or has unprintable characters")
    return value


def _number(value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise Unusable(f"expected a number from {low} to {high}, not {shown(value)}")
    if not low <= value <= high:
        raise Unusable(f"{value} is not between {low} and {high}")
    return value


def flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise Unusable(f"expected true or false, not {shown(value)}")
    return value


def name(value: object) -> str:
    text = _text(value, 'name = "calls"')
    if len(text) > MAX_NAME_CHARACTERS:
        raise Unusable(f"a name has at most {MAX_NAME_CHARACTERS} characters, this one {len(text)}")
    return text


def precedence(value: object) -> int:
    return _number(value, 0, MAX_PRECEDENCE)


def _unit(value: object) -> str:
    text = _text(value, 'unit = "asterisk.service"')
    if re.search(r"[*?\[\]]", text):
        raise Unusable(f"{shown(text)}: patterns are not understood", "a slice stands for all units in it")
    for unit in text.split("/"):
        if not unit.endswith(_UNIT_TYPES) or unit.startswith("."):
            raise Unusable(
                f"{shown(text)} is no unit that has processes: its name ends with {', '.join(_UNIT_TYPES)}",
                f'did you mean "{text}.service"?' if "." not in text else "",
            )
        if unit.partition("@")[2].startswith("."):
            prefix = unit.partition("@")[0].replace("-", r"\x2d")
            raise Unusable(
                f"{shown(text)} is a template, which has no processes itself",
                f"name one instance, or for all of them their slice 'system-{prefix}.slice'",
            )
    return text


def _cgroup(value: object) -> str:
    text = _text(value, 'cgroup = "/user.slice/user-1000.slice"')
    mount = next((each for each in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup") if text.startswith(each)), None)
    if mount is not None:
        hint = f'did you mean "{text.removeprefix(mount) or "/"}"?'
        raise Unusable(f"{shown(text)}: a cgroup's path begins below the mount", hint)
    if not text.startswith("/") or os.path.normpath(text) != (text.rstrip("/") or "/"):
        raise Unusable(f'{shown(text)} is no path of a cgroup: it begins with "/", without "." and ".." in it')
    return text.rstrip("/") or "/"


def _user(value: object) -> int:
    if not isinstance(value, str):
        return _number(value, 0, _MAX_UID)
    try:
        return pwd.getpwnam(_text(value, 'user = "alice"')).pw_uid
    except KeyError:
        if value.isascii() and value.isdigit():
            raise Unusable(f"there is no user {shown(value)}", f"a uid is a number: {int(value)}") from None
        known = [user.pw_name for user in pwd.getpwall()]
        found = difflib.get_close_matches(value, known, n=1)
        hint = f'did you mean "{found[0]}"?' if found else "a uid does where the name is not known on this host"
        raise Unusable(f"there is no user {shown(value)}", hint) from None


def _executable(value: object) -> str:
    text = _text(value, 'executable = "/usr/bin/rsync"')
    if not text.startswith("/") or text.endswith("/"):
        raise Unusable(f"{shown(text)} is no absolute path of a file", "as in /usr/bin/rsync")
    return os.path.realpath(text)  # as the kernel names it, where the path is a symbolic link


def _prefix(value: object) -> Prefix:
    text = _text(value, 'remote = "192.0.2.0/24"')
    try:
        found = ip_network(text)
    except ValueError:
        raise _no_prefix(text) from None
    if isinstance(found, IPv6Network):
        if found.network_address.scope_id is not None:
            raise Unusable(f"{shown(text)} has a device in it", "name that with match.device")
        mapped = found.network_address.ipv4_mapped
        if mapped is not None and found.prefixlen >= 96:
            four = _plain(ip_network((mapped, found.prefixlen - 96)))
            raise Unusable(f"{shown(text)} is an IPv4 address in IPv6 clothes", f'did you mean "{four}"?')
    return found


def _no_prefix(text: str) -> Unusable:
    try:
        wider = ip_network(text, strict=False)
    except ValueError:
        return Unusable(
            f"{shown(text)} is no address and no prefix such as 192.0.2.0/24 or 2001:db8::/32",
            "names are not looked up: what they mean would change" if re.search(r"[g-zG-Z]", text) else "",
        )
    return Unusable(f"{shown(text)} has host bits set", f'"{wider}" or the one address "{text.partition("/")[0]}"')


def _plain(prefix: Prefix) -> str:
    return str(prefix.network_address if prefix.prefixlen == prefix.max_prefixlen else prefix)


def _ports(value: object) -> PortRange:
    if not isinstance(value, str):
        port = _number(value, 1, 0xFFFF)
        return PortRange(port, port)
    told = re.fullmatch(r"([0-9]{1,5})(?:(\s*[-:]\s*)([0-9]{1,5}))?", value, re.ASCII)
    if told is None:
        raise Unusable(f'{shown(value)} is no port and no range such as "16384-32767"')
    first = _number(int(told[1]), 1, 0xFFFF)
    last = first if told[3] is None else _number(int(told[3]), 1, 0xFFFF)
    if told[2] not in (None, "-") or last < first:
        low, high = sorted((first, last))
        raise Unusable(f"{shown(value)} is no range of ports", f'did you mean "{low}-{high}"?')
    return PortRange(first, last)


def _device(value: object) -> str:
    text = _text(value, 'device = "eth0"')
    # The kernel's own rule: dev_valid_name() in net/core/dev.c.
    if text in {".", ".."} or any(c in "/:" or c.isspace() for c in text) or len(text.encode()) > MAX_DEVICE_NAME_BYTES:
        raise Unusable(f"{shown(text)} cannot be the name of a network device")
    return text


def _namespace(value: object) -> str:
    text = _text(value, 'namespace = "blue"')
    if "/" in text or text in {".", ".."}:
        raise Unusable(f"{shown(text)} is no name of ip-netns(8)", 'a name in /run/netns, or "host"')
    return text


def dscp(value: object) -> Dscp:
    if isinstance(value, str):
        if value.upper() not in _DSCP_NAMES:
            raise Unusable(f"{shown(value)} is no DSCP", "a number from 0 to 63, or a name such as AF31, CS5, EF")
        return Dscp(_DSCP_NAMES[value.upper()])
    return Dscp(_number(value, 0, 63))


def _word(kind: type[_Word]) -> Callable[[object], _Word]:
    def read(value: object) -> _Word:
        words = [each.value for each in kind]
        if value not in words:
            text = value if isinstance(value, str) else ""
            raise Unusable(f"{shown(value)} is none of {', '.join(words)}", _meant(text, words))
        return kind(value)

    return read


def _labelled(kind: type[_Label]) -> Callable[[object], _Label]:
    def read(value: object) -> _Label:
        words = {each.label: each for each in kind}
        text = value.lower().replace("-", "_") if isinstance(value, str) else ""
        if text not in words:
            raise Unusable(f"{shown(value)} is none of {', '.join(words)}", _meant(text, words))
        return words[text]

    return read


def _meant(word: str, known: Collection[str]) -> str:
    """Only the nearest: the message has them all."""
    found = difflib.get_close_matches(word.lower(), known, n=1)
    return f'did you mean "{found[0]}"?' if found else ""


def _rate(value: object) -> Bandwidth:
    if not isinstance(value, str):
        return Bandwidth(_number(value, MIN_BANDWIDTH, MAX_BANDWIDTH))
    try:
        return parse_bandwidth(value)
    except ValueError as error:
        told = re.fullmatch(r"([0-9.]+)\s*([kKmMgGtT])i?(?:bit|bps|b)(?:/s|ps)?", value)
        raise Unusable(str(error), f'did you mean "{told[1]}{told[2]}"?' if told else "") from None


def _priority(value: object) -> int:
    return _number(value, 0, 7)


#: Key in the file: (field of core.rule.Match, reader of each of the alternatives).
MATCH: dict[str, tuple[str, Read]] = {
    "unit": ("units", _unit),
    "cgroup": ("cgroups", _cgroup),
    "user": ("users", _user),
    "executable": ("executables", _executable),
    "protocol": ("protocols", _word(Transport)),
    "local": ("local", _prefix),
    "remote": ("remote", _prefix),
    "local_port": ("local_ports", _ports),
    "remote_port": ("remote_ports", _ports),
    "device": ("devices", _device),
    "namespace": ("namespaces", _namespace),
    "dscp": ("dscps", dscp),
}

traffic: Callable[[object], Traffic] = _word(Traffic)

#: Key in the file, and field of core.rule.Act: reader.
ACT: dict[str, Read] = {
    "traffic_type": _labelled(TrafficType),
    "dscp": dscp,
    "rate": _rate,
    "shaping": _labelled(Shaping),
    "bucket": _word(Bucket),
    "priority": _priority,
    "ceiling": flag,
    "deny": flag,
    "exempt": flag,
}
