"""The layout of map values and events: bpf/types.h, mirrored in ctypes.

types.h is the source. `check()` compares this mirror with what bcc compiled, at every load; a
rootless test compares it with the debug information that clang writes. Enumerations carry the
numbers of their C twins; their labels are the words of `qos2 status` and of the metrics.
"""

import ctypes
from collections.abc import Mapping
from enum import IntEnum, IntFlag
from typing import Any

from qos2.errors import AbiMismatch

ABI_VERSION = 1
HTB_MAJOR = 0x5152
EVENT_INTERVAL_NS = 100_000_000
HORIZON_NS = 9_000_000_000


class _Label(IntEnum):
    @property
    def label(self) -> str:
        return self.name.lower()


class Drop(_Label):
    """enum qos_drop."""

    HORIZON = 0
    POLICE = 1


class Counter(_Label):
    """enum qos_counter."""

    STALE_FLOW = 0
    NO_DESTINATION = 1
    FRAGMENT_MISS = 2
    NOT_IP = 3
    TRUNCATED = 4
    EXTENSION_LIMIT = 5
    SLOT_RANGE = 6
    STORE_FAILED = 7
    CONTENTION = 8
    EVENT_LOST = 9
    FRAGMENT_STORE = 10
    CGROUP_SOCKETS = 11
    CGROUP_FAILED = 12
    RESTORED = 13


COUNTERS = 16  #: entries of the map `counters`


class EventKind(_Label):
    """enum qos_event_kind."""

    DELAYED = 1
    DROPPED = 2
    REMARKED = 3
    LOSS = 4
    CE = 5


class PolicyFlag(IntFlag):
    """enum qos_policy_flags."""

    MARK = 1


class SocketFlag(IntFlag):
    """enum qos_socket_flags."""

    EXACT = 1
    ANY_PORT = 2
    ANY_ADDRESS = 4
    DESTINATIONS = 7
    PRESET = 8


class FlowPolicy(ctypes.Structure):
    _fields_ = [
        ("flow_id", ctypes.c_uint32),
        ("dscp", ctypes.c_uint8),
        ("non_conformant_dscp", ctypes.c_uint8),
        ("action", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("ns_per_byte_20", ctypes.c_uint64),
        ("depth_ns", ctypes.c_uint64),
        ("htb_minor", ctypes.c_uint32),
        ("last_flow_id", ctypes.c_uint32),
    ]


class FlowHot(ctypes.Structure):
    _fields_ = [
        ("tat_ns", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("packets", ctypes.c_uint64),
        ("non_conformant_bytes", ctypes.c_uint64),
        ("non_conformant_packets", ctypes.c_uint32),
        ("last_jiffies", ctypes.c_uint32),
        ("srtt_us", ctypes.c_uint32),
        ("min_rtt_us", ctypes.c_uint32),
        ("retransmits", ctypes.c_uint32),
        ("lost", ctypes.c_uint32),
        ("delivered", ctypes.c_uint32),
        ("delivered_ce", ctypes.c_uint32),
    ]


class FlowCold(ctypes.Structure):
    _fields_ = [
        ("delayed_packets", ctypes.c_uint64),
        ("delay_ns", ctypes.c_uint64),
        ("dropped_packets", ctypes.c_uint64 * len(Drop)),
        ("dropped_bytes", ctypes.c_uint64 * len(Drop)),
        ("last_event_ns", ctypes.c_uint64),
        ("reserved", ctypes.c_uint64),
    ]


class SocketFlow(ctypes.Structure):
    _fields_ = [
        ("flow_id", ctypes.c_uint32),
        ("first_flow_id", ctypes.c_uint32),
        ("first_address_be", ctypes.c_uint32 * 4),
        ("first_port_be", ctypes.c_uint16),
        ("first_family", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("preset_dscp", ctypes.c_uint8),
        ("original_dscp", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 2),
    ]


class Destination(ctypes.Structure):
    _fields_ = [
        ("cookie", ctypes.c_uint64),
        ("address_be", ctypes.c_uint32 * 4),
        ("port_be", ctypes.c_uint16),
        ("family", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8 * 5),
    ]


class Fragment(ctypes.Structure):
    _fields_ = [
        ("cookie", ctypes.c_uint64),
        ("address_be", ctypes.c_uint32 * 4),
        ("id", ctypes.c_uint32),
        ("family", ctypes.c_uint32),
    ]


class Tick(ctypes.Structure):
    _fields_ = [("jiffies", ctypes.c_uint64), ("now_ns", ctypes.c_uint64)]


class Event(ctypes.Structure):
    _fields_ = [
        ("now_ns", ctypes.c_uint64),
        ("flow_id", ctypes.c_uint32),
        ("kind", ctypes.c_uint32),
        ("value", ctypes.c_uint64),
    ]


#: Every structure of types.h by its C name.
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "flow_policy": FlowPolicy,
    "flow_hot": FlowHot,
    "flow_cold": FlowCold,
    "socket_flow": SocketFlow,
    "destination": Destination,
    "fragment": Fragment,
    "tick": Tick,
    "qos_event": Event,
}


def layout_of(structure: type[ctypes.Structure]) -> dict[str, Any]:
    """{"size": bytes, "fields": {name: offset}} of a structure."""
    return {
        "size": ctypes.sizeof(structure),
        "fields": {name: getattr(structure, name).offset for name, *_ in structure._fields_},
    }


def check(report: Mapping[str, Mapping[str, Any]]) -> None:
    """Compares a loader's layout report with this mirror. Raises AbiMismatch naming the structure."""
    for name, found in report.items():
        expected = layout_of(STRUCTURES[name])
        if dict(found) != expected:
            raise AbiMismatch(
                f"struct {name} was compiled as {dict(found)}, abi.py says {expected}",
                "bpf/ and the Python package are of different versions: reinstall both",
            )
