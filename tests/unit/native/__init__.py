"""The pure C headers of bpf/ as Python functions: compiled once per test run, wrapped by ctypes.

Not a test and not a model: every result is what the C computed. Packets are placed so that they end
where readable memory ends, so a read beyond `data_end` kills the run instead of passing unnoticed.
Built with gcc's undefined behaviour checks, which trap; unaligned loads are allowed, as in the kernel.
"""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import settings

from qos2.datapath import abi

#: For property tests: a busy machine is no failure.
untimed = settings(deadline=None)

REPOSITORY = Path(__file__).parents[3]
SOURCE = Path(__file__).with_name("qos_native.c")
WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{REPOSITORY / 'bpf'}")
GUARDED_PAGES = 32
GUARDED_BYTES = GUARDED_PAGES * 4096  #: the longest packet that can be placed

WHOLE, FIRST, LATER = range(3)  #: enum packet_fragment


class CPacket(ctypes.Structure):
    """struct packet of packet.h."""

    _fields_ = [
        ("family", ctypes.c_uint8),
        ("dsfield", ctypes.c_uint8),
        ("protocol", ctypes.c_uint8),
        ("fragment", ctypes.c_uint8),
        ("l3_offset", ctypes.c_uint16),
        ("port_be", ctypes.c_uint8 * 2),
        ("address_be", ctypes.c_uint8 * 16),
        ("fragment_id", ctypes.c_uint8 * 4),
        ("source_port_be", ctypes.c_uint8 * 2),
        ("reserved", ctypes.c_uint8 * 2),
    ]


class Network(NamedTuple):
    """What packet_network() says. `error`: 0, or a negative number of enum qos_counter; the rest is then 0."""

    error: int
    family: int = 0
    dsfield: int = 0
    l3_offset: int = 0


class Destination(NamedTuple):
    """What packet_destination() says; addresses and ids are the bytes of the packet."""

    error: int
    protocol: int
    fragment: int
    port: int
    address: bytes
    fragment_id: bytes


class Source(NamedTuple):
    """What packet_source() says, with the port of packet_destination()."""

    error: int
    port: int
    address: bytes


class Act(NamedTuple):
    """What the datapath takes from a rule. Bucket 0: no rule matched."""

    flow: int
    pool: int
    bucket: int


class Native:
    """The functions of the headers. One instance per test run: `native()`."""

    def __init__(self, library: ctypes.CDLL) -> None:
        u8, u32, u64, pointer = ctypes.c_uint8, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p
        signatures: dict[str, tuple[type | None, list[type]]] = {
            "guarded_end": (pointer, [u32]),
            "packet_network": (ctypes.c_int, [pointer, pointer, u32, pointer]),
            "packet_destination": (ctypes.c_int, [pointer, pointer, pointer]),
            "packet_source": (ctypes.c_int, [pointer, pointer, pointer, pointer]),
            "packet_ip_bytes": (u32, [u32, u32, u32]),
            "dsfield_dscp": (u8, [u8]),
            "dsfield_with": (u8, [u8, u8]),
            "dsfield_rewrite": (u32, [pointer, pointer, u8, u8, pointer]),
            "bucket_cost_ns": (u64, [u32, u64]),
            "bucket_wait_ns": (u64, [u64, u64, u64, u64]),
            "bucket_charge": (ctypes.c_int, [pointer, u64, u64, u64]),
            "bucket_charge_many": (None, [pointer, u64, u64, u32]),
            "match_first": (u64, [pointer, u32, pointer]),
            "match_flow_id": (u32, [u64]),
            "match_pool": (u32, [u64]),
            "match_bucket": (u32, [u64]),
            "match_same": (ctypes.c_int, [pointer, pointer]),
        }
        self._c = {}
        for name, (result, arguments) in signatures.items():
            function = library[f"native_{name}"]
            function.restype, function.argtypes = result, arguments
            self._c[name] = function
        self._packet = CPacket()
        self._packet_address = ctypes.addressof(self._packet)
        end = self._c["guarded_end"](GUARDED_PAGES)
        if not end:
            raise MemoryError("no guarded memory")
        self._end: int = end

    def _place(self, data: bytes) -> int:
        """Where `data` begins, its end being the end of readable memory."""
        if len(data) > GUARDED_BYTES:
            raise ValueError(f"{len(data)} bytes do not fit into {GUARDED_BYTES}")
        start = self._end - len(data)
        ctypes.memmove(start, data, len(data))
        return start

    def parse(self, data: bytes, link_bytes: int) -> tuple[Network, Destination | None]:
        """packet_network(), and packet_destination() where the first found an IP header."""
        start, packet = self._place(data), self._packet
        ctypes.memset(self._packet_address, 0xA5, ctypes.sizeof(packet))
        error = self._c["packet_network"](start, self._end, link_bytes, self._packet_address)
        if error:
            return Network(error), None
        network = Network(0, packet.family, packet.dsfield, packet.l3_offset)
        error = self._c["packet_destination"](start, self._end, self._packet_address)
        address = bytes(packet.address_be)
        if packet.family == 4:
            assert address[4:] == bytes(12)
            address = address[:4]
        return network, Destination(
            error,
            packet.protocol,
            packet.fragment,
            int.from_bytes(bytes(packet.port_be), "big"),
            address,
            bytes(packet.fragment_id),
        )

    def source(self, data: bytes, link_bytes: int) -> Source:
        """packet_source() of a packet whose destination was read."""
        network, destination = self.parse(data, link_bytes)
        assert network.error == 0
        assert destination is not None
        address = (ctypes.c_uint8 * 16)(*b"\xa5" * 16)
        error = self._c["packet_source"](
            self._end - len(data), self._end, self._packet_address, ctypes.addressof(address)
        )
        found = bytes(address)
        if network.family == 4:
            assert found[4:] == bytes(12)
            found = found[:4]
        return Source(error, int.from_bytes(bytes(self._packet.source_port_be), "big"), found)

    def first(self, rules: ctypes.Array[abi.Rule], facts: abi.Facts) -> Act:
        """match_take() of all rules in turn."""
        act = self._c["match_first"](ctypes.addressof(rules), len(rules), ctypes.addressof(facts))
        return Act(*(int(self._c[f"match_{part}"](act)) for part in ("flow_id", "pool", "bucket")))

    def same(self, a: abi.Connection, b: abi.Connection) -> bool:
        """match_same()."""
        return bool(self._c["match_same"](ctypes.addressof(a), ctypes.addressof(b)))

    def ip_bytes(self, wire_len: int, gso_segs: int, l3_offset: int) -> int:
        """packet_ip_bytes()."""
        return int(self._c["packet_ip_bytes"](wire_len, gso_segs, l3_offset))

    def dscp(self, dsfield: int) -> int:
        """dsfield_dscp()."""
        return int(self._c["dsfield_dscp"](dsfield))

    def with_dscp(self, dsfield: int, dscp: int) -> int:
        """dsfield_with()."""
        return int(self._c["dsfield_with"](dsfield, dscp))

    def rewrite(self, header: bytes, family: int, dscp: int) -> bytes:
        """The header as it is after storing what dsfield_rewrite() says; b"" when it says 0 bytes."""
        out = (ctypes.c_uint32 * 3)()
        start = self._place(header)
        count = int(self._c["dsfield_rewrite"](start, self._end, family, dscp, ctypes.addressof(out)))
        assert ctypes.string_at(start, len(header)) == header, "dsfield_rewrite() wrote to the packet"
        return bytes(out)[:count] + header[count:] if count else b""

    def cost_ns(self, size: int, ns_per_byte_20: int) -> int:
        """bucket_cost_ns()."""
        return int(self._c["bucket_cost_ns"](size, ns_per_byte_20))

    def wait_ns(self, tat_ns: int, now_ns: int, need_ns: int, depth_ns: int) -> int:
        """bucket_wait_ns()."""
        return int(self._c["bucket_wait_ns"](tat_ns, now_ns, need_ns, depth_ns))

    def charge(self, tat: ctypes.c_uint64, seen_ns: int, now_ns: int, cost_ns: int) -> bool:
        """bucket_charge() on `tat`."""
        return bool(self._c["bucket_charge"](ctypes.addressof(tat), seen_ns, now_ns, cost_ns))

    def charge_many(self, tat: ctypes.c_uint64, now_ns: int, cost_ns: int, times: int) -> None:
        """`times` successful bucket_charge()s, without Python's lock: threads really meet."""
        self._c["bucket_charge_many"](ctypes.addressof(tat), now_ns, cost_ns, times)


def tool(name: str) -> str:
    """Path of a program, of this Python's environment first. Missing: the test fails in CI, else skips."""
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin"))
    found = shutil.which(name, path=path)
    if found is None:
        missing = f"{name} is not installed"
        if os.environ.get("CI"):
            pytest.fail(missing, pytrace=False)
        pytest.skip(missing, allow_module_level=True)
    return found


@functools.cache
def native() -> Native:
    """The library, built by gcc on first use."""
    traps = ("-fsanitize=undefined", "-fsanitize-undefined-trap-on-error", "-fno-sanitize=alignment")
    with tempfile.TemporaryDirectory(prefix="qos2-native-") as folder:
        library = Path(folder) / "qos_native.so"
        command = [tool("gcc"), "-O2", "-shared", "-fPIC", *WARNINGS, "-Wno-unknown-pragmas", *traps]
        subprocess.run([*command, "-o", str(library), str(SOURCE)], check=True)
        return Native(ctypes.CDLL(str(library)))
