"""What libqwave reads from the daemon, under fire: against Python's own JSON, and by libFuzzer.

The seeds in corpus/reply are replies of every kind; what the fuzzer once found wrong is added there, with a name.
"""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from unit.native import REPOSITORY, tool

LIBRARY = REPOSITORY / "clients" / "c"
CORPUS = Path(__file__).with_name("corpus") / "reply"
DOCUMENTS = 20_000
RUNS = 300_000
#: The fuzzer ends itself by then, however slow the machine is.
MOST_S = 30
DEPTH = 32  #: JSON_DEPTH


def make(*targets: str) -> None:
    command = [tool("make"), "-s", "-C", str(LIBRARY), *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)


# Against Python


def written(value: Any) -> str:
    """A value in the form in which clients/c/tests/check_json.c writes it."""
    match value:
        case None | bool():
            return json.dumps(value)
        case int():
            return str(value) if -(2**63) <= value < 2**63 else "#"
        case float():
            return "#"
        case str():
            return f'"{value.replace(chr(0), "").encode().hex()}"'
        case list():
            return f"[{''.join(f'{written(each)},' for each in value)}]"
    # Pairs, so that a name may come twice.
    return "{" + "".join(f"{written(name)}:{written(each)}," for name, each in value) + "}"


class Pairs(tuple[tuple[str, Any], ...]):
    """An object as its members in their order."""


def refuse(word: str) -> None:
    raise ValueError(f"{word} is none of JSON")


def depth(value: Any) -> int:
    if isinstance(value, Pairs):
        return 1 + max((depth(each) for _, each in value), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def reference(document: bytes) -> str:
    """What Python reads, as `written`; or "refused"."""
    try:
        # Python takes UTF-16, and marks of byte order, for JSON too.
        value = json.loads(document.decode(), object_pairs_hook=Pairs, parse_constant=refuse)
        if depth(value) > DEPTH:
            return "refused"
        return written(value)  # half a surrogate pair cannot be encoded
    except (ValueError, RecursionError):
        return "refused"


STRINGS = [
    "",
    "id",
    "result",
    "\u20ac",
    "\U0001f600",
    '"\\/\b\f\n\r\t',
    "\x00",
    "\x7f",
    "e\u0301",
    "\ud7ff\ue000\uffff",
]
NUMBERS = [0, -1, 7, 2**63 - 1, 2**63, -(2**63), -(2**63) - 1, 1e300, -0.5, 10**40, 1.5e-7]
PIECES = [b"\\ud800", b"\\udc00", b"\\u00", b"\\x", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\x1f"]
PIECES += [b"-", b"01", b"1.", b".5", b"1e", b"1e+5", b"+1", b"NaN", b"nul", b"[", b"]", b"{", b"}", b",", b":", b'"']
PIECES += [
    b" ",
    b"\t",
    b"\n",
    b"\x0b",
    b"\xef\xbb\xbf",
    b"\xc2\xa0",
    b"\x00",
    b"//",
    b"'a'",
    b"[,]",
    b"[1,]",
    b'{"a":1,}',
]


def random_value(choice: random.Random, levels: int) -> Any:
    kind = choice.randrange(6 if levels else 4)
    if kind == 0:
        return choice.choice([None, True, False])
    if kind == 1:
        return choice.choice([*NUMBERS, choice.randrange(-(2**65), 2**65)])
    if kind <= 3:
        return "".join(choice.choice(STRINGS) for _ in range(choice.randrange(3)))
    if kind == 4:
        return [random_value(choice, levels - 1) for _ in range(choice.randrange(4))]
    return {choice.choice(STRINGS): random_value(choice, levels - 1) for _ in range(choice.randrange(4))}


def documents() -> Iterator[bytes]:
    """The seeds, nesting at its limit, random documents: sound, or with a piece put in, cut out or doubled."""
    yield from (each.read_bytes() for each in sorted(CORPUS.iterdir()))
    for levels in (DEPTH - 1, DEPTH, DEPTH + 1, 5000):
        yield b"[" * levels + b"]" * levels
        yield b'{"a":' * levels + b"1" + b"}" * levels
    yield from PIECES
    choice = random.Random(1)
    for _ in range(DOCUMENTS):
        data = json.dumps(
            random_value(choice, 3),
            ensure_ascii=choice.random() < 0.5,
            indent=choice.choice([None, None, 1]),
            separators=choice.choice([None, (",", ":")]),
        ).encode()
        change, place, end = choice.randrange(5), choice.randrange(len(data) + 1), choice.randrange(len(data) + 1)
        if change == 1:
            data = data[:place] + choice.choice(PIECES) + data[place:]
        elif change == 2:
            data = data[: min(place, end)] + data[max(place, end) :]
        elif change == 3:
            data = data[:place] + bytes([choice.randrange(256)]) + data[place + 1 :]
        elif change == 4:
            data = data[: max(place, end)] + data[min(place, end) :]
        yield data


def test_json_is_read_as_python_reads_it() -> None:
    make("asan")
    every = list(documents())
    asked = b"".join(b"%d\n%b" % (len(each), each) for each in every)
    program = LIBRARY / "build/asan/tests/check_json"
    done = subprocess.run([program], input=asked, capture_output=True, check=False)
    assert (done.returncode, done.stderr.decode()) == (0, "")
    read = done.stdout.decode().splitlines()
    expected = [reference(each) for each in every]
    wrong = [(each, was, is_) for each, was, is_ in zip(every, expected, read, strict=True) if was != is_]
    assert wrong == []
    # Both kinds were there in numbers.
    refused = expected.count("refused")
    assert len(every) // 10 < refused < len(every) // 10 * 9


# By libFuzzer


def test_fuzzer_finds_nothing(tmp_path: Path) -> None:
    runtime = subprocess.run([tool("clang"), "--print-runtime-dir"], capture_output=True, text=True, check=True)
    if not list(Path(runtime.stdout.strip()).glob("libclang_rt.fuzzer*")):
        if os.environ.get("CI"):
            pytest.fail("clang has no libFuzzer: install libclang-rt-dev", pytrace=False)
        pytest.skip("clang has no libFuzzer: install libclang-rt-dev")
    make("fuzz")
    found = tmp_path / "found"
    found.mkdir()
    command = [str(LIBRARY / "build/fuzz/reply_fuzzer"), f"-runs={RUNS}", f"-max_total_time={MOST_S}", "-seed=1"]
    command += ["-max_len=16384", "-timeout=10", f"-artifact_prefix={tmp_path}/", str(found), str(CORPUS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # It did run, and from the seeds on.
    assert f"INFO: seed corpus: files: {len(list(CORPUS.iterdir()))}" in done.stderr
