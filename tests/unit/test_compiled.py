"""A compiled datapath and the folder where it is kept: its file, its key, and whom it is believed from."""

import os
import re
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qos2.config import Config
from qos2.datapath import cache, loader
from qos2.datapath.cache import Key, compiler, keep, key_of, read
from qos2.datapath.compiled import Compiled, MapSpec, Program, Unusable, decode, encode, unlinked
from qos2.datapath.objects import storage_btf

UNIT = (Path(__file__).parents[2] / "deploy/systemd/qos2d.service").read_text()

MOVE, LOAD, EXIT = (0xB7, 0, 0, 0), (0x18, 0x11, 0, 0), (0x95, 0, 0, 0)
UPPER = (0, 0, 0, 0)  # second half of a 64-bit immediate


def instructions(*given: tuple[int, int, int, int]) -> bytes:
    return b"".join(struct.pack("=BBhi", *each) for each in given)


def loads(descriptor: int, register: int = 1) -> tuple[int, int, int, int]:
    """r<register> = the map of a descriptor."""
    return (0x18, 0x10 | register, 0, descriptor)


COMPILED = Compiled(
    [MapSpec("policy", 2, 4, 48, None, 1024), MapSpec("tick", 2, 4, 16, 1, 0)],
    [
        Program("qos_fq", 3, instructions(MOVE, LOAD, UPPER, LOAD, UPPER, EXIT), {1: "tick", 3: "policy"}, 0),
        Program("qos_sock_owner", 9, instructions(MOVE, EXIT), {}),
    ],
    "Dual MIT/GPL",
    {"tick": {"size": 16, "fields": {"jiffies": 0, "now_ns": 8}}},
)
KEY = Key("6.1.0-test-ethernet", "0123456789abcdef" * 4)


def test_a_file_has_all_that_was_compiled() -> None:
    assert decode(encode(COMPILED, "a key", "bcc 1"), "a key", "bcc 1") == COMPILED


def test_without_a_compiler_what_any_has_compiled_is_taken() -> None:
    assert decode(encode(COMPILED, "a key", "bcc 1"), "a key", None) == COMPILED


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda text: text[:-1], "damaged"),
        (lambda text: text[:40], "damaged"),
        (lambda text: text.replace(b'"qos_fq"', b'"qos_fx"'), "damaged"),
        (lambda text: text.replace(b"datapath 1 ", b"datapath 2 ", 1), "another version"),
        (lambda _: b"", "no compiled datapath"),
        (lambda _: b"\x7fELF and so on", "no compiled datapath"),
        (lambda _: encode(COMPILED, "another", "bcc 1"), "of other sources"),
        (lambda _: encode(COMPILED, "a key", "bcc 2"), "by another compiler"),
    ],
)
def test_a_file_that_is_not_whole_or_of_something_else_is_refused(change: Callable[[bytes], bytes], why: str) -> None:
    with pytest.raises(Unusable, match=why):
        decode(change(encode(COMPILED, "a key", "bcc 1")), "a key", "bcc 1")


def test_a_whole_file_of_other_contents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qos2.datapath.compiled.msgspec.json.encode", lambda _: b'{"key": "a key"}')
    text = encode(COMPILED, "a key", "bcc 1")
    monkeypatch.undo()
    with pytest.raises(Unusable, match="compiler"):
        decode(text, "a key", "bcc 1")


def test_maps_are_named_instead_of_numbered_and_numbered_again() -> None:
    code = instructions(loads(7, 1), UPPER, MOVE, loads(9, 2), UPPER, loads(7, 3), UPPER, EXIT)
    bare, maps = unlinked(code, {7: "tick", 9: "policy", 11: "unused"})
    assert maps == {0: "tick", 3: "policy", 5: "tick"}
    assert bare == instructions(loads(0, 1), UPPER, MOVE, loads(0, 2), UPPER, loads(0, 3), UPPER, EXIT)
    linked = Program("any", 3, bare, maps).linked({"tick": 21, "policy": 22})
    assert linked == instructions(loads(21, 1), UPPER, MOVE, loads(22, 2), UPPER, loads(21, 3), UPPER, EXIT)


def test_numbers_that_look_like_maps_are_left_alone() -> None:
    # A plain 64-bit immediate, whose upper half has the bytes of an instruction that loads a map.
    code = instructions((0x18, 0x01, 0, 7), (0, 0, 0, 0x1118), EXIT)
    assert unlinked(code, {7: "tick"}) == (code, {})


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (instructions(loads(8), UPPER, EXIT), "descriptor 8"),
        (instructions((0x18, 0x21, 0, 7), UPPER, EXIT), "no map"),  # BPF_PSEUDO_MAP_VALUE
        (instructions((0x85, 0x10, 0, 5), EXIT), "another function"),
    ],
)
def test_references_of_other_kinds_are_refused(code: bytes, why: str) -> None:
    with pytest.raises(Unusable, match=why):
        unlinked(code, {7: "tick"})


@pytest.mark.parametrize(
    "program",
    [
        Program("cut", 3, b"\0" * 7, {}),
        Program("empty", 3, b"", {}),
        Program("forgotten", 3, instructions(LOAD, UPPER, EXIT), {}),
        Program("elsewhere", 3, instructions(LOAD, UPPER, EXIT), {2: "tick"}),
        Program("unknown", 3, instructions(LOAD, UPPER, EXIT), {0: "nowhere"}),
    ],
    ids=lambda program: str(program.name),
)
def test_a_program_has_whole_instructions_and_maps_that_are_there(program: Program) -> None:
    with pytest.raises(Unusable):
        replace(COMPILED, programs=[program])


def test_the_key_changes_with_each_input() -> None:
    given: dict[str, Any] = {
        "text": "int main;",
        "headers": (b"one", b"two"),
        "definitions": ("-DA=1", "-DB"),
        "link": "ethernet",
        "release": "6.1.0",
        "machine": "x86_64",
    }
    other: dict[str, Any] = {
        "text": "int main; ",
        "headers": (b"onet", b"wo"),
        "definitions": ("-DA=1",),
        "release": "6.1.1",
        "machine": "aarch64",
    }
    digests = {key_of(**(given | {name: value})).digest for name, value in other.items()}
    assert len(digests | {key_of(**given).digest}) == 1 + len(other)
    assert key_of(**given).file_name == f"6.1.0-ethernet-{key_of(**given).digest[:16]}.compiled"


def test_the_key_changes_with_the_layout_of_the_maps(monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of("", (), (), "none")
    monkeypatch.setattr("qos2.datapath.abi.ABI_VERSION", 77)
    assert key_of("", (), (), "none").digest != before.digest


def test_the_datapaths_key_changes_with_its_link_layer_its_headers_and_what_the_kernel_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "types.h").write_text("one")
    (tmp_path / "README.md").write_text("not compiled")
    found = [loader.key_of("text", "ethernet", "6.1", tmp_path)]
    (tmp_path / "README.md").write_text("still not")
    assert loader.key_of("text", "ethernet", "6.1", tmp_path) == found[0]
    found.append(loader.key_of("text", "none", "6.1", tmp_path))
    for feature in ("has_compare_and_swap", "has_netns_cookie"):
        known = getattr(loader, feature)()
        monkeypatch.setattr(loader, feature, lambda known=known: not known)
        found.append(loader.key_of("text", "ethernet", "6.1", tmp_path))
    (tmp_path / "types.h").write_text("two")
    found.append(loader.key_of("text", "ethernet", "6.1", tmp_path))
    assert len({key.digest for key in found}) == 5


def test_the_compiler_is_told_by_its_library(tmp_path: Path) -> None:
    compiler.cache_clear()
    assert compiler(tmp_path) is None
    compiler.cache_clear()
    (tmp_path / "any-linux-gnu").mkdir()
    library = tmp_path / "any-linux-gnu" / "libbcc.so.0.26.0"
    library.write_bytes(b"12345")
    os.utime(library, (1, 1_700_000_000))
    (tmp_path / "any-linux-gnu" / "libbcc.so.0").symlink_to(library.name)
    assert compiler(tmp_path) == "libbcc.so.0.26.0 5 1700000000"
    compiler.cache_clear()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made" / "cache"


def test_what_is_kept_is_read_and_nobody_else_can_read_or_write_it(folder: Path) -> None:
    assert read(folder, KEY) is None
    keep(folder, KEY, COMPILED)
    assert read(folder, KEY) == COMPILED
    assert [path.name for path in folder.iterdir()] == [KEY.file_name]
    assert [oct(path.stat().st_mode & 0o777) for path in (folder, folder / KEY.file_name)] == ["0o700", "0o600"]
    assert read(folder, Key(KEY.label, "f" * 64)) is None


def test_a_later_one_takes_the_place_of_an_earlier_one(folder: Path) -> None:
    later = replace(COMPILED, license="GPL")
    keep(folder, KEY, COMPILED)
    keep(folder, KEY, later)
    assert read(folder, KEY) == later
    assert [path.name for path in folder.iterdir()] == [KEY.file_name]


def test_a_file_under_the_name_of_another_is_refused(folder: Path) -> None:
    keep(folder, KEY, COMPILED)
    other = Key(KEY.label, KEY.digest[:-1] + "0")  # same beginning, same name
    with pytest.raises(Unusable, match="of other sources"):
        read(folder, other)


@pytest.mark.parametrize("which", ["", KEY.file_name], ids=["folder", "file"])
@pytest.mark.parametrize("mode", [0o720, 0o702])
def test_what_others_can_write_is_not_believed(folder: Path, which: str, mode: int) -> None:
    keep(folder, KEY, COMPILED)
    (folder / which).chmod(mode)
    with pytest.raises(Unusable, match=f"can be written by others .mode {mode:o}"):
        read(folder, KEY)


@pytest.mark.parametrize("which", ["", KEY.file_name], ids=["folder", "file"])
def test_what_belongs_to_somebody_else_is_not_believed(folder: Path, which: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to give a file away")
    keep(folder, KEY, COMPILED)
    os.chown(folder / which, 54321, 54321)
    with pytest.raises(Unusable, match="belongs to user 54321, who is neither root nor 0"):
        read(folder, KEY)


def test_what_root_keeps_in_the_folder_of_the_daemons_user_belongs_to_that_user(folder: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root: to give a folder away")
    folder.mkdir(mode=0o700, parents=True)
    os.chown(folder, 54321, 54322)
    keep(folder, KEY, COMPILED)
    about = (folder / KEY.file_name).stat()
    assert (about.st_uid, about.st_gid, about.st_mode & 0o777) == (54321, 54322, 0o600)


def test_links_and_pipes_are_not_followed_and_not_waited_for(folder: Path) -> None:
    keep(folder, KEY, COMPILED)
    file = folder / KEY.file_name
    file.rename(folder / "elsewhere")
    file.symlink_to("elsewhere")
    with pytest.raises(Unusable, match="symbolic links"):
        read(folder, KEY)
    file.unlink()
    os.mkfifo(file, 0o600)
    with pytest.raises(Unusable, match="no file"):
        read(folder, KEY)


def test_a_damaged_file_is_told_by_its_name(folder: Path) -> None:
    keep(folder, KEY, COMPILED)
    os.truncate(folder / KEY.file_name, 200)
    with pytest.raises(Unusable, match=f"^{re.escape(str(folder / KEY.file_name))}: it is damaged"):
        read(folder, KEY)


def test_a_folder_that_cannot_be_made_leaves_nothing_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"exists|Not a directory"):
        keep(tmp_path / "file", KEY, COMPILED)
    assert read(tmp_path / "file", KEY) is None


def test_the_oldest_are_forgotten(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qos2.datapath.cache._MOST_FILES", 3)
    keys = [Key(str(number), f"{number:064x}") for number in range(5)]
    for age, key in enumerate(keys):
        keep(folder, key, COMPILED)
        os.utime(folder / key.file_name, (age, age))
    (folder / "somebody's notes").touch()
    keep(folder, KEY, COMPILED)
    expected = {key.file_name for key in (*keys[3:], KEY)} | {"somebody's notes"}
    assert {path.name for path in folder.iterdir()} == expected


def test_types_of_socket_storage_are_an_int_and_as_many_bytes_as_the_value_has() -> None:
    text = storage_btf(40)
    magic, version, _, header, types_at, types, strings_at, strings = struct.unpack_from("=HBBIIIII", text)
    assert (magic, version, header, types_at, strings_at) == (0xEB9F, 1, 24, 0, types)
    assert len(text) == header + types + strings
    name, kind, size, encoding = struct.unpack_from("=IIII", text, header)
    names = text[header + types :]
    assert (names[name:].partition(b"\0")[0], kind >> 24, size, encoding & 0xFF) == (b"int", 1, 4, 32)
    _, kind, _, element, index, count = struct.unpack_from("=IIIIII", text, header + 32)
    assert (kind >> 24, element, index, count) == (3, 2, 1, 40)


def test_configuration_unit_and_package_mean_the_same_folder() -> None:
    assert Config().cache == cache.DEFAULT
    (name,) = re.findall(r"^CacheDirectory=(\S+)$", UNIT, re.MULTILINE)
    assert Path("/var/cache", name) == cache.DEFAULT
    purge = (Path(__file__).parents[2] / "deploy/debian/debian/qos2.postrm").read_text()
    assert f" {cache.DEFAULT}\n" in purge
