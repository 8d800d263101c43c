"""The datapath as it was compiled, free of the process that compiled it, and its form in a file.

A program that bcc has compiled names maps by descriptors of that process. Here they are named by their names, so that
the same instructions serve any later process (objects.py), which needs no compiler. Layouts and sizes of the maps are
beside them, as the kernel described those that were made for compiling.
"""

import hashlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

#: Changes with the meaning of a field below.
FORMAT = 1
_MAGIC = b"qos2 datapath"

#: struct bpf_insn: opcode, source register << 4 | destination register, offset, immediate.
_INSTRUCTION = struct.Struct("=BBhi")
_LOAD_IMMEDIATE_64 = 0x18  # BPF_LD | BPF_DW | BPF_IMM: takes two instructions
_CALL = 0x85  # BPF_JMP | BPF_CALL
_PSEUDO_MAP_FD = 1  # source register: the immediate is the descriptor of a map
_PSEUDO_CALL = 1  # source register: of another function of the program


class Unusable(ValueError):
    """What was read is no compiled datapath, or not a whole one."""


@dataclass(frozen=True)
class MapSpec:
    """What a map is made of. `flags` of BPF_MAP_CREATE."""

    name: str
    type: int  #: enum bpf_map_type
    key_bytes: int
    value_bytes: int
    max_entries: int | None  #: None: as many as the flow table has slots
    flags: int


@dataclass(frozen=True)
class Program:
    """Instructions in the machine's byte order. `maps`: name of the map that the instruction of an index refers to."""

    name: str
    type: int  #: enum bpf_prog_type
    code: bytes
    maps: dict[int, str]
    stage: int | None = None  #: its place in the map `stages`

    def linked(self, descriptors: Mapping[str, int]) -> bytes:
        """The instructions with descriptors of maps, by name, in their places."""
        code = bytearray(self.code)
        for index, name in self.maps.items():
            opcode, registers, offset, _ = _INSTRUCTION.unpack_from(code, index * _INSTRUCTION.size)
            _INSTRUCTION.pack_into(code, index * _INSTRUCTION.size, opcode, registers, offset, descriptors[name])
        return bytes(code)


@dataclass(frozen=True)
class Compiled:
    """All maps and programs of one compilation. Raises Unusable where they do not fit together."""

    maps: list[MapSpec]
    programs: list[Program]
    license: str  #: that the programs declare
    layout: dict[str, dict[str, Any]]  #: sizes and offsets of structures, as loader.layout_of() reports them

    def __post_init__(self) -> None:
        names = {spec.name for spec in self.maps}
        for program in self.programs:
            if not program.code or len(program.code) % _INSTRUCTION.size:
                raise Unusable(f"program {program.name} has {len(program.code)} bytes")
            if _references(program.code) != program.maps.keys() or not names.issuperset(program.maps.values()):
                raise Unusable(f"program {program.name} refers to maps that are not there")

    def program(self, name: str) -> Program:
        """Raises KeyError."""
        for program in self.programs:
            if program.name == name:
                return program
        raise KeyError(name)


def unlinked(code: bytes, names: Mapping[int, str]) -> tuple[bytes, dict[int, str]]:
    """Instructions without descriptors, and the map that each index refers to. `names`: of maps, by descriptor.

    Raises Unusable for a descriptor that is no map's, and for references of other kinds.
    """
    bare, maps = bytearray(code), {}
    for index in _references(code):
        opcode, registers, offset, descriptor = _INSTRUCTION.unpack_from(code, index * _INSTRUCTION.size)
        if descriptor not in names:
            raise Unusable(f"instruction {index} refers to descriptor {descriptor}, which is no map's")
        maps[index] = names[descriptor]
        _INSTRUCTION.pack_into(bare, index * _INSTRUCTION.size, opcode, registers, offset, 0)
    return bytes(bare), maps


def _references(code: bytes) -> set[int]:
    """Indices of the instructions that load a map. Raises Unusable for references to anything else."""
    found = set()
    second_half = False
    for index, (opcode, registers, _, _) in enumerate(_INSTRUCTION.iter_unpack(code)):
        source = registers >> 4
        if second_half:
            second_half = False
        elif opcode == _LOAD_IMMEDIATE_64:
            second_half = True
            if source == _PSEUDO_MAP_FD:
                found.add(index)
            elif source:
                raise Unusable(f"instruction {index} refers to something that is no map (kind {source})")
        elif opcode == _CALL and source == _PSEUDO_CALL:
            raise Unusable(f"instruction {index} calls another function")
    return found


class _File(msgspec.Struct):
    key: str
    compiler: str
    compiled: Compiled


def encode(compiled: Compiled, key: str, compiler: str) -> bytes:
    """A file: a line with format and digest, and JSON. `key` says what was compiled, `compiler` by what."""
    body = msgspec.json.encode(_File(key, compiler, compiled))
    return b"%s %d %s\n%s" % (_MAGIC, FORMAT, hashlib.sha256(body).hexdigest().encode(), body)


def decode(text: bytes, key: str, compiler: str | None) -> Compiled:
    """What a file has. Raises Unusable unless it is whole, and of this key and compiler (None: of any)."""
    head, _, body = text.partition(b"\n")
    if not head.startswith(_MAGIC + b" "):
        raise Unusable("it is no compiled datapath")
    if head != b"%s %d %s" % (_MAGIC, FORMAT, hashlib.sha256(body).hexdigest().encode()):
        raise Unusable("it is damaged, or of another version")
    try:
        found = msgspec.json.decode(body, type=_File)
    except msgspec.DecodeError as error:
        raise Unusable(str(error)) from error
    if found.key != key:
        raise Unusable("it is of other sources")
    if compiler is not None and found.compiler != compiler:
        raise Unusable(f"it is by another compiler ({found.compiler}; here is {compiler})")
    return found.compiled
