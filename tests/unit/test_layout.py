"""bpf/types.h against abi.py: structures, enumerations and constants, as clang's debug information has them.

Needs no root and no kernel: the BTF comes from the object file. The loader repeats the comparison of
structures with what bcc compiled, on the machine where it counts.
"""

import ctypes
import functools
import json
import re
import subprocess
import tempfile
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qos2 import model
from qos2.datapath import abi
from unit.native import REPOSITORY, tool

TYPES_H = (REPOSITORY / "bpf" / "types.h").read_text()
QOS_BPF_C = (REPOSITORY / "bpf" / "qos.bpf.c").read_text()
STRUCTURES = re.findall(r"^struct (\w+) \{", TYPES_H, re.MULTILINE)
ENUMERATIONS = re.findall(r"^enum (\w+) \{", TYPES_H, re.MULTILINE)


class Twin(NamedTuple):
    """A C enumeration and its Python twin: `prefix` before every name; `counts` are no members but totals."""

    python: type[IntEnum] | type[IntFlag]
    prefix: str
    counts: dict[str, int]


TWINS = {
    "qos_action": Twin(model.Action, "QOS_ACTION_", {}),
    "qos_policy_flags": Twin(abi.PolicyFlag, "QOS_POLICY_", {}),
    "qos_drop": Twin(abi.Drop, "QOS_DROP_", {"QOS_DROP_REASONS": len(abi.Drop)}),
    "qos_socket_flags": Twin(abi.SocketFlag, "QOS_SOCKET_", {}),
    "qos_counter": Twin(abi.Counter, "QOS_COUNTER_", {"QOS_COUNTERS": abi.COUNTERS}),
    "qos_event_kind": Twin(abi.EventKind, "QOS_EVENT_", {}),
    "qos_ruleset_flags": Twin(abi.RulesetFlag, "QOS_RULESET_", {}),
    "qos_traffic": Twin(abi.Traffic, "QOS_TRAFFIC_", {}),
    "qos_bucket": Twin(abi.Bucket, "QOS_BUCKET_", {}),
}

CONSTANTS = {
    "QOS_ABI_VERSION": abi.ABI_VERSION,
    "QOS_SLOT_BITS": model.SLOT_BITS,
    "QOS_EVENT_INTERVAL_NS": abi.EVENT_INTERVAL_NS,
    "QOS_HORIZON_NS": abi.HORIZON_NS,
    "HTB_MAJOR": abi.HTB_MAJOR,
    "QOS_RULES": abi.RULES,
    "QOS_RULES_AT_ONCE": abi.RULES_AT_ONCE,
    "QOS_RULE_BLOCKS": abi.RULE_BLOCKS,
    "QOS_CGROUP_LEVELS": abi.CGROUP_LEVELS,
    "QOS_POOLS": abi.POOLS,
    "QOS_POOL_FLOWS": abi.POOL_FLOWS,
}


@functools.cache
def btf() -> list[dict[str, Any]]:
    """The types of an object file that uses everything in types.h; type n stands at index n - 1."""
    source = '#include "types.h"\n' + "".join(
        f"{kind} {name} use_{name};\n"
        for kind, names in (("struct", STRUCTURES), ("enum", ENUMERATIONS))
        for name in names
    )
    flags = ("-g", "-O2", "-target", "bpf", "-ffreestanding", "-Wall", "-Wextra", "-Werror", f"-I{REPOSITORY / 'bpf'}")
    with tempfile.TemporaryDirectory(prefix="qos2-layout-") as folder:
        built = Path(folder) / "types.o"
        command = [tool("clang"), *flags, "-c", "-x", "c", "-", "-o", str(built)]
        subprocess.run(command, input=source, text=True, check=True)
        dump = subprocess.run(
            [tool("bpftool"), "btf", "dump", "file", str(built), "-j"], capture_output=True, text=True, check=True
        )
    types: list[dict[str, Any]] = json.loads(dump.stdout)["types"]
    assert [found["id"] for found in types] == list(range(1, len(types) + 1))
    return types


def named(kind: str, name: str) -> dict[str, Any]:
    (found,) = (t for t in btf() if t["kind"] == kind and t["name"] == name)
    return found


def size_of(type_id: int) -> int:
    """Bytes of a member's type."""
    found = btf()[type_id - 1]
    match found["kind"]:
        case "ARRAY":
            return int(found["nr_elems"]) * size_of(found["type_id"])
        case "TYPEDEF":
            return size_of(found["type_id"])
        case _:
            return int(found["size"])


def test_every_structure_and_enumeration_of_types_h_has_a_twin() -> None:
    assert sorted(abi.STRUCTURES) == sorted(STRUCTURES)
    assert sorted(TWINS) == sorted(ENUMERATIONS)


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_has_the_same_fields_at_the_same_offsets(name: str) -> None:
    compiled, mirror = named("STRUCT", name), abi.STRUCTURES[name]
    assert compiled["size"] == ctypes.sizeof(mirror)
    in_c = [(m["name"], m["bits_offset"] / 8, size_of(m["type_id"])) for m in compiled["members"]]
    fields = [(field, getattr(mirror, field)) for field, *_ in mirror._fields_]
    assert in_c == [(field, place.offset, place.size) for field, place in fields]


@pytest.mark.parametrize("name", STRUCTURES)
def test_structure_has_no_padding(name: str) -> None:
    """Padding in a key is compared by the kernel, and nobody fills it."""
    members = named("STRUCT", name)["members"]
    assert sum(size_of(member["type_id"]) for member in members) == named("STRUCT", name)["size"]


@pytest.mark.parametrize("name", ENUMERATIONS)
def test_enumeration_has_the_same_names_and_numbers(name: str) -> None:
    twin = TWINS[name]
    in_c = {value["name"]: value["val"] for value in named("ENUM", name)["values"]}
    members = {twin.prefix + member: int(value) for member, value in twin.python.__members__.items()}
    assert in_c == members | twin.counts


@pytest.mark.parametrize("name", CONSTANTS)
def test_constant_is_the_same_number(name: str) -> None:
    (number,) = re.findall(rf"^#define {name}\s+(\w+?)u?l*(?: /\*.*)?$", TYPES_H + QOS_BPF_C, re.MULTILINE)
    assert int(number, 0) == CONSTANTS[name]
