"""Lines of keys in TOML texts: of texts made with their lines known, and in the odd corners of the language."""

import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.tomlpositions import Place, Positions

BRACKETS = '''\
# [[rule]] in a comment, "with a quotation mark
[[rule]]
name = "a # no comment, [[no]] table"   # but this is: ]]
match.remote = [  # ["
  "192.0.2.0/24", # first ]
  '2001:db8::/32'
  ,
  [ 1, { inner = 2, more = "}" },

    3 ],
]
act = { rate = "20M", "deny" = false, bucket.of.all = 1 }

  [[ rule . 'x"y' ]]
  "]]" = 1

[[rule]]
text = """
name = "no key"
[[rule]]
\\""" still """""
literal = \'\'\'
[[rule]]
it's '' said\'\'\'
when = 1979-05-27 07:32:00 # a space in a value
\t "sp ace" . b\t= true
[rule.act]
rate = 5
[other."quo\\u0074ed"]
last = \'\'\'\'\'\'
'''


@pytest.mark.parametrize(
    ("place", "line"),
    [
        (("rule",), 2),
        (("rule", 0), 2),
        (("rule", 0, "name"), 3),
        (("rule", 0, "match"), 4),
        (("rule", 0, "match", "remote"), 4),
        (("rule", 0, "match", "remote", 0), 5),
        (("rule", 0, "match", "remote", 1), 6),
        (("rule", 0, "match", "remote", 2), 8),
        (("rule", 0, "match", "remote", 2, 1, "inner"), 8),
        (("rule", 0, "match", "remote", 2, 2), 10),
        (("rule", 0, "act", "rate"), 12),
        (("rule", 0, "act", "deny"), 12),
        (("rule", 0, "act", "bucket", "of", "all"), 12),
        (("rule", 0, 'x"y', 0), 14),
        (("rule", 0, 'x"y', 0, "]]"), 15),
        (("rule", 1), 17),
        (("rule", 1, "text"), 18),
        (("rule", 1, "literal"), 22),
        (("rule", 1, "when"), 25),
        (("rule", 1, "sp ace"), 26),
        (("rule", 1, "sp ace", "b"), 26),
        (("rule", 1, "act"), 27),
        (("rule", 1, "act", "rate"), 28),
        (("other",), 29),
        (("other", "quoted"), 29),
        (("other", "quoted", "last"), 30),
        # What is not there is where it would be.
        (("rule", 0, "match", "local"), 4),
        (("rule", 1, "match"), 17),
        (("rule", 7), 2),
        (("nothing",), 1),
        ((), 1),
    ],
)
def test_each_place_has_its_line(place: Place, line: int) -> None:
    tomllib.loads(BRACKETS)  # the text is TOML
    assert Positions(BRACKETS).line(place) == line
    assert Positions(BRACKETS.replace("\n", "\r\n")).line(place) == line


# Texts with known lines. Keys and strings are full of what ends or begins something elsewhere.
CHARACTERS = st.sampled_from(list("ab.[]{}#=,'\"\\ \n")) | st.characters(codec="utf-8", categories=("L", "N"))
TEXTS = st.text(CHARACTERS, max_size=8)
KEYS = st.sampled_from(("rule", "name", "a-b", "7")) | st.text(CHARACTERS, min_size=1, max_size=4)


class Writer:
    """Writes a document and notes the line of each place."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.text = ""
        self.lines: dict[Place, int] = {}

    @property
    def line(self) -> int:
        return self.text.count("\n") + 1

    def blank(self, *, newlines: bool) -> None:
        choices = ["", " ", "\t"] + (["\n", " # ]}\"'''[[x]]\n", "\n\n#\n"] if newlines else [])
        self.text += self.draw(st.sampled_from(choices))

    def quoted(self, text: str, *, multiline: bool) -> str:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"')
        forms = ['"' + escaped.replace("\n", "\\n") + '"']
        if "'" not in text and "\n" not in text:
            forms.append(f"'{text}'")
        if multiline:
            forms.append(f'"""\n{escaped}"""')
            # Up to two quotation marks may stand anywhere, also before the three that end it.
            runs = text.replace("\\", "\\\\")
            if '"""' not in runs:
                forms.append(f'"""\n{runs}"""')
            if "'''" not in text:
                forms.append(f"'''\n{text}'''")
        return self.draw(st.sampled_from(forms))

    def key(self, key: str) -> None:
        bare = key.isascii() and key.replace("-", "").replace("_", "").isalnum()
        plain = bare and self.draw(st.booleans())
        self.text += key if plain else self.quoted(key, multiline=False)

    def pair(self, place: Place, keys: tuple[str, ...], value: object, *, newlines: bool) -> None:
        for number, key in enumerate(keys):
            if number:
                self.blank(newlines=False)
                self.text += "."
                self.blank(newlines=False)
            place = (*place, key)
            self.lines.setdefault(place, self.line)
            self.key(key)
        self.blank(newlines=False)
        self.text += "="
        self.blank(newlines=False)
        self.value(place, value, newlines=newlines)

    def value(self, place: Place, value: Any, *, newlines: bool) -> None:
        if isinstance(value, dict):
            self.text += "{"
            for number, (key, inner) in enumerate(value.items()):
                self.text += "," if number else ""
                self.blank(newlines=False)
                self.pair(place, (key,), inner, newlines=newlines)
                self.blank(newlines=False)
            self.text += "}"
        elif isinstance(value, list):
            self.text += "["
            for index, inner in enumerate(value):
                self.text += "," if index else ""
                self.blank(newlines=newlines)
                self.lines[*place, index] = self.line
                self.value((*place, index), inner, newlines=newlines)
                self.blank(newlines=newlines)
            self.text += "]"
        elif isinstance(value, str):
            self.text += self.quoted(value, multiline=newlines)
        else:
            self.text += str(value).lower()


VALUES = st.recursive(
    TEXTS | st.integers() | st.booleans() | st.just("1979-05-27T07:32:00Z"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def documents(draw: st.DrawFn) -> tuple[str, dict[Place, int]]:
    writer = Writer(draw)
    for number in range(draw(st.integers(0, 4))):
        writer.blank(newlines=True)
        writer.text += "\n" if writer.text and not writer.text.endswith("\n") else ""
        table: Place = ("rule", number)
        writer.lines.setdefault(("rule",), writer.line)
        writer.lines[table] = writer.line
        writer.text += draw(st.sampled_from(["[[rule]]", "[[ rule ]] # ]]", "[['rule']]", '[["r\\u0075le"]]'])) + "\n"
        for first in draw(st.lists(KEYS, max_size=4, unique=True)):
            inner = draw(st.lists(KEYS, max_size=3, unique=True))
            dotted: list[tuple[str, ...]] = [(first, second) for second in inner]
            for keys in dotted or [(first,)]:
                writer.blank(newlines=True)
                writer.pair(table, keys, draw(VALUES), newlines=True)
                writer.text += draw(st.sampled_from(["\n", ' # "[[{\n']))
    return writer.text, writer.lines


@given(documents())
def test_lines_are_those_at_which_it_was_written(written: tuple[str, dict[Place, int]]) -> None:
    text, lines = written
    tomllib.loads(text)
    positions = Positions(text)
    assert positions.known == lines


def test_an_empty_text_has_no_places() -> None:
    assert Positions("").known == {}
    assert Positions("# nothing").known == {}


@pytest.mark.parametrize(
    "text",
    [
        BRACKETS,
        'x = 1\n\n[[rule]]\r\n[[ rule ]] # [[rule]]\n  [["rule"]]\nname = "[[rule]]"\n[rule.act]\n',
        "rule = [{ a = 1 },\n {}]\n",
        "[[rule]]\n[[rule.rule]]\n[[rule]]",
        "",
    ],
)
def test_headers_are_where_going_over_the_whole_text_finds_them(text: str) -> None:
    count = len(tomllib.loads(text).get("rule", []))
    assert Positions(text).headers("rule", count) == [Positions(text).line(("rule", n)) for n in range(count)]
