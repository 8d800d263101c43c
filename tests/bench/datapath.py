"""The datapath as the benchmarks load it: with the programs of programs.c beside it, its maps written directly.

No daemon and no shaper: what a packet costs is measured with the limit that changes nothing but the mark.
"""

import ctypes
import socket
import struct
from pathlib import Path

import numpy as np

from harness.program import Program
from qos2.datapath import abi
from qos2.datapath.maps import MappedArray
from qos2.model import Action

#: What all flows are marked with, and what presets it.
DSCP = 46
#: As 400 Gbit/s: nothing here exceeds it.
_NS_PER_BYTE_20 = (8 << 20) // 400
_DEPTH_NS = 10_000_000


class Tuple(ctypes.Structure):
    """struct bench_tuple of programs.c."""

    _pack_ = 1
    _fields_ = (
        ("saddr", ctypes.c_uint32),
        ("daddr", ctypes.c_uint32),
        ("sport", ctypes.c_uint16),
        ("dport", ctypes.c_uint16),
        ("protocol", ctypes.c_uint8),
    )


class Random(ctypes.Structure):
    """struct bench_random of programs.c."""

    _fields_ = (("state", ctypes.c_uint64), ("flows", ctypes.c_uint64))


def load(folder: Path, flows: int) -> Program:
    """The programs, with room for the flows 1 .. `flows`, pinned in a new folder below `folder`, on bpffs."""
    extra = Path(__file__).with_name("programs.c").read_text()
    return Program(folder / "maps", flows + 1, given=False, extra="\n" + extra)


def tuple_key(protocol: int, source: tuple[str, int], destination: tuple[str, int]) -> Tuple:
    """The key of the reference program for a connected socket."""
    (saddr,), (daddr,) = (struct.unpack("=I", socket.inet_aton(address)) for address, _ in (source, destination))
    return Tuple(saddr, daddr, socket.htons(source[1]), socket.htons(destination[1]), protocol)


def set_policies(policy: MappedArray, count: int, *, limit: bool = False, mark: bool = False, dscp: int = DSCP) -> None:
    """The same policy for the flows 1 .. count, whose ids are their slots. `limit` has a rate that nobody exceeds."""
    policies = policy.view[1 : count + 1]
    policies["dscp"] = dscp
    policies["non_conformant_dscp"] = 8
    policies["flags"] = abi.PolicyFlag.MARK if mark else 0
    policies["ns_per_byte_20"] = _NS_PER_BYTE_20 if limit else 0
    policies["depth_ns"] = _DEPTH_NS if limit else 0
    policies["action"] = Action.REMARK if limit else Action.NONE
    policies["flow_id"] = np.arange(1, count + 1)
