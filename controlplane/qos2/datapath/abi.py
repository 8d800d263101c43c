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

ABI_VERSION = 2
HTB_MAJOR = 0x5152
EVENT_INTERVAL_NS = 100_000_000
HORIZON_NS = 9_000_000_000
RULES = 4096  #: of one bank
RULES_AT_ONCE = 16
RULE_BLOCKS = 257  #: of one bank
CGROUP_LEVELS = 16
POOLS = 256
POOL_FLOWS = 1024


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
    POLICY_DECISIONS = 14
    POLICY_NONE = 15
    POOL_EMPTY = 16
    DECISION_FAILED = 17


COUNTERS = 24  #: entries of the map `counters`


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
    PRIORITY = 2


class SocketFlag(IntFlag):
    """enum qos_socket_flags."""

    EXACT = 1
    ANY_PORT = 2
    ANY_ADDRESS = 4
    DESTINATIONS = 7
    PRESET = 8


class RulesetFlag(IntFlag):
    """enum qos_ruleset_flags."""

    FORWARDED = 1
    PEERS = 2
    DEVICE = 4
    DSCP = 8
    EXECUTABLES = 16


class Traffic(IntFlag):
    """enum qos_traffic."""

    LOCAL = 1
    FORWARDED = 2


class Bucket(_Label):
    """enum qos_bucket."""

    SHARED = 1
    SOCKET = 2
    HOST = 3
    NONE = 4


class FlowPolicy(ctypes.Structure):
    _fields_ = [
        ("flow_id", ctypes.c_uint32),
        ("dscp", ctypes.c_uint8),
        ("non_conformant_dscp", ctypes.c_uint8),
        ("action", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
        ("ns_per_byte_20", ctypes.c_uint64),
        ("depth_ns", ctypes.c_uint64),
        ("htb_minor", ctypes.c_uint16),
        ("priority", ctypes.c_uint8),
        ("reserved", ctypes.c_uint8),
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


class Ruleset(ctypes.Structure):
    _fields_ = [
        ("generation", ctypes.c_uint32),
        ("count", ctypes.c_uint16),
        ("bank", ctypes.c_uint8),
        ("flags", ctypes.c_uint8),
    ]


class Rule(ctypes.Structure):
    """As ruleentries.py makes them: values have no bits outside of their masks."""

    _fields_ = [
        ("local_be", ctypes.c_uint32 * 4),
        ("local_mask_be", ctypes.c_uint32 * 4),
        ("remote_be", ctypes.c_uint32 * 4),
        ("remote_mask_be", ctypes.c_uint32 * 4),
        ("uid", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("uid_mask", ctypes.c_uint32),
        ("ifindex_mask", ctypes.c_uint32),
        ("executable", ctypes.c_uint32),
        ("protocol", ctypes.c_uint8),
        ("family", ctypes.c_uint8),
        ("dscp", ctypes.c_uint8),
        ("traffic", ctypes.c_uint8),
        ("executable_mask", ctypes.c_uint32),
        ("protocol_mask", ctypes.c_uint8),
        ("family_mask", ctypes.c_uint8),
        ("dscp_mask", ctypes.c_uint8),
        ("traffic_mask", ctypes.c_uint8),
        ("netns_cookie", ctypes.c_uint64),
        ("cgroup_id", ctypes.c_uint64),
        ("local_port_first", ctypes.c_uint16),
        ("local_port_last", ctypes.c_uint16),
        ("remote_port_first", ctypes.c_uint16),
        ("remote_port_last", ctypes.c_uint16),
        ("flow_id", ctypes.c_uint32),
        ("pool", ctypes.c_uint16),
        ("bucket", ctypes.c_uint8),
        ("cgroup_level", ctypes.c_uint8),
    ]


class RuleBlock(ctypes.Structure):
    _fields_ = [("rules", Rule * RULES_AT_ONCE)]


class Connection(ctypes.Structure):
    _fields_ = [
        ("cookie", ctypes.c_uint64),
        ("local_be", ctypes.c_uint32 * 4),
        ("remote_be", ctypes.c_uint32 * 4),
        ("local_port", ctypes.c_uint16),
        ("remote_port", ctypes.c_uint16),
        ("ifindex", ctypes.c_uint32),
        ("protocol", ctypes.c_uint8),
        ("family", ctypes.c_uint8),
        ("dscp", ctypes.c_uint8),
        ("traffic", ctypes.c_uint8),
        ("reserved", ctypes.c_uint32),
    ]


class Decided(ctypes.Structure):
    _fields_ = [("generation", ctypes.c_uint32), ("flow_id", ctypes.c_uint32)]


class Decision(ctypes.Structure):
    _fields_ = [("of", Connection), ("decided", Decided)]


class Facts(ctypes.Structure):
    _fields_ = [
        ("of", Connection),
        ("netns_cookie", ctypes.c_uint64),
        ("cgroup_ids", ctypes.c_uint64 * CGROUP_LEVELS),
        ("uid", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("executable", ctypes.c_uint32),
        ("protocol", ctypes.c_uint8),
        ("family", ctypes.c_uint8),
        ("dscp", ctypes.c_uint8),
        ("traffic", ctypes.c_uint8),
        ("shaper", ctypes.c_uint32),
        ("reserved", ctypes.c_uint32),
    ]


class Pool(ctypes.Structure):
    _fields_ = [("prepared", ctypes.c_uint64), ("flow_ids", ctypes.c_uint32 * POOL_FLOWS)]


class Drawn(ctypes.Structure):
    _fields_ = [("flows", ctypes.c_uint64)]


class BucketOwner(ctypes.Structure):
    _fields_ = [("pool", ctypes.c_uint32), ("kind", ctypes.c_uint32), ("who", ctypes.c_uint32 * 4)]


class Owner(ctypes.Structure):
    _fields_ = [("tgid", ctypes.c_uint32), ("executable", ctypes.c_uint32)]


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
    "ruleset": Ruleset,
    "rule": Rule,
    "rule_block": RuleBlock,
    "connection": Connection,
    "decided": Decided,
    "decision": Decision,
    "facts": Facts,
    "pool": Pool,
    "drawn": Drawn,
    "bucket_owner": BucketOwner,
    "owner": Owner,
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
