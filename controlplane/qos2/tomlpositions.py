"""At which line of a TOML text each key and each element stands, for messages that lead there.

The parser of the standard library tells no places. This goes over a text that it has accepted, so it needs to know
only where strings, comments, tables and values begin and end (TOML 1.0), not what they mean.
"""

import re
import tomllib
from bisect import bisect
from collections.abc import Mapping

#: Keys and indexes from the outermost table inwards, as ("rule", 0, "match", "remote", 2).
Place = tuple[str | int, ...]

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACES = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
#: The text of a multi-line string may end with one or two quotation marks of its own.
_STRING = re.compile(
    r'''"""(?:[^"\\]|\\.|"{1,2}(?!"))*"{3,5}'''
    r"""|'''(?:[^']|'{1,2}(?!'))*'{3,5}"""
    r"""|"(?:[^"\\\n]|\\.)*\""""
    r"""|'[^'\n]*'""",
    re.DOTALL,
)
#: Quotation marks of a multi-line string, in which a line may look like anything.
_MULTI_LINE = re.compile(r'''"""|\'\'\'''')
#: A number, a date or a boolean.
_WORD = re.compile(r"[^,\]}\n#]+")


class Positions:
    """The lines of one text, from 1."""

    def __init__(self, text: str) -> None:
        """`text` has been accepted by tomllib."""
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._ends = [found.start() for found in re.finditer("\n", self._text)]
        self._lines: dict[Place, int] = {}
        self._arrays: dict[Place, int] = {}  # of tables: how many there are so far

    @property
    def known(self) -> Mapping[Place, int]:
        """Every place in the text."""
        if not self._lines:
            self._document()
        return self._lines

    def headers(self, name: str, count: int) -> list[int]:
        """The lines of the `count` headers `[[name]]`, a bare key: known without going over the whole text.

        That takes as long as to parse it, for places that nobody may ask for.
        """
        if _MULTI_LINE.search(self._text) is None:
            found = re.finditer(rf"^[ \t]*\[\[[ \t]*{re.escape(name)}[ \t]*\]\]", self._text, re.MULTILINE)
            lines = [bisect(self._ends, header.start()) + 1 for header in found]
            if len(lines) == count:
                return lines
        return [self.line((name, number)) for number in range(count)]

    def line(self, place: Place) -> int:
        """Of a key or an element: where it stands first. Of what is not in the text: that of what would hold it."""
        if not self._lines:
            self._document()
        while place not in self._lines:
            if not place:
                return 1
            place = place[:-1]
        return self._lines[place]

    def _document(self) -> None:
        table: Place = ()
        while self._skip(_BLANK):
            if self._take("[["):
                table = self._header(array=True)
                self._take("]]")
            elif self._take("["):
                table = self._header(array=False)
                self._take("]")
            else:
                self._pair(table)

    def _header(self, *, array: bool) -> Place:
        """The table that a header opens, each array of tables on the way standing for its latest element."""
        line = self._line()
        *outer, last = self._keys()
        place: Place = ()
        for key in outer:
            place = self._latest((*place, key))
            self._lines.setdefault(place, line)
        place = (*place, last)
        self._lines.setdefault(place, line)
        if array:
            self._arrays[place] = self._arrays.get(place, 0) + 1
            place = self._latest(place)
            self._lines[place] = line
        return place

    def _latest(self, place: Place) -> Place:
        return (*place, self._arrays[place] - 1) if place in self._arrays else place

    def _pair(self, table: Place) -> None:
        line, place = self._line(), table
        for key in self._keys():
            place = (*place, key)
            self._lines.setdefault(place, line)
        self._take("=")
        self._skip(_SPACES)
        self._value(place)

    def _keys(self) -> list[str]:
        """The parts of a dotted key."""
        keys = [self._key()]
        while self._take("."):
            keys.append(self._key())
        return keys

    def _key(self) -> str:
        self._skip(_SPACES)
        key = self._read(_KEY)
        self._skip(_SPACES)
        if key[0] not in "\"'":
            return key
        unquoted = tomllib.loads(f"key = {key}")["key"]
        assert isinstance(unquoted, str)  # it begins with a quotation mark
        return unquoted

    def _value(self, place: Place) -> None:
        if self._take("["):
            index = 0
            self._skip(_BLANK)
            while not self._take("]"):
                self._lines[*place, index] = self._line()
                self._value((*place, index))
                index += 1
                self._separator()
        elif self._take("{"):
            self._skip(_BLANK)
            while not self._take("}"):
                self._pair(place)
                self._separator()
        elif self._text[self._at] in "\"'":
            self._read(_STRING)
        else:
            self._read(_WORD)

    def _separator(self) -> None:
        self._skip(_BLANK)
        self._take(",")
        self._skip(_BLANK)

    def _line(self) -> int:
        return bisect(self._ends, self._at) + 1

    def _read(self, token: re.Pattern[str]) -> str:
        found = token.match(self._text, self._at)
        assert found is not None  # tomllib has accepted the text
        self._at = found.end()
        return found[0]

    def _skip(self, blanks: re.Pattern[str]) -> bool:
        """Whether there is more behind them."""
        self._read(blanks)
        return self._at < len(self._text)

    def _take(self, word: str) -> bool:
        if not self._text.startswith(word, self._at):
            return False
        self._at += len(word)
        return True
