"""The three arrays of a flow (policy, hot, cold) as memory: begin, change, end and read flows.

The daemon writes `policy` with plain stores; packets write `hot` and `cold`. The one exception: while
no flow is in a slot, its lines are zeroed for the next one, or that one would inherit a debt.
"""

import ctypes
import struct
import time
from array import array
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qos2.core.bucket import bucket_depth_bytes
from qos2.core.signals import SIGNALS, Signals, Slots
from qos2.datapath import abi
from qos2.datapath.census import Census
from qos2.datapath.maps import Map, MappedArray
from qos2.model import SLOT_BITS, SLOT_MASK, Action, FlowId, FlowPolicy, FlowStats

_POLICY = struct.Struct("=4BQQHBxI")  # struct flow_policy behind its flow_id
_FLOW_ID = struct.Struct("=I")
_POLICY_BYTES, _LINE_BYTES = 32, 64
_HOT = struct.Struct("=4Q8I")
_COLD = struct.Struct("=8Q")
_MARK = int(abi.PolicyFlag.MARK)
_PRIORITY = int(abi.PolicyFlag.PRIORITY)
_ZERO_LINE = bytes(_LINE_BYTES)
_ZERO_LINES = (_ZERO_LINE, _ZERO_LINE)
_SIGNALS_OF_HOT = (
    *("bytes", "packets", "srtt_us", "min_rtt_us"),
    *("retransmits", "lost", "delivered", "delivered_ce"),
)
Counts = NDArray[np.uint64]
_DROPS = tuple(reason.label for reason in abi.Drop)
#: Of a flow that has sent nothing: flows that end like that are the quick ones.
_NOTHING = FlowStats(dropped_packets=dict.fromkeys(_DROPS, 0), dropped_bytes=dict.fromkeys(_DROPS, 0))
#: Jiffies and CLOCK_MONOTONIC drift apart (NTP): the pair is read anew.
_REREAD_NS = 1_000_000_000
#: Slots that are mapped at first; they are given out from the lowest on.
_FIRST_REACH = 4096
ALL = 1 << SLOT_BITS
_NS_PER_BYTE_BIT = 8_000_000_000

_CLOCK_MONOTONIC_COARSE = 6  #: of linux/time.h: advances by jiffies

#: How late the datapath's cached clock may be: it could lend a flow this much more than its depth.
TICK_NS = round(time.clock_getres(_CLOCK_MONOTONIC_COARSE) * 1e9)


def contract(bandwidth: int) -> tuple[int, int]:
    """(ns_per_byte_20, depth_ns) of struct flow_policy for a rate in bits/s; (0, 0) for none.

    The inverse rate is rounded up. A depth of two ticks or more gives one tick back, which the cached
    clock may add: the bucket never exceeds what the contract grants.
    """
    if not bandwidth:
        return 0, 0
    ns_per_byte_20 = -(-(_NS_PER_BYTE_BIT << 20) // bandwidth)
    depth_ns = bucket_depth_bytes(bandwidth) * _NS_PER_BYTE_BIT // bandwidth
    return ns_per_byte_20, depth_ns - TICK_NS if depth_ns >= 2 * TICK_NS else depth_ns


class JiffyClock:
    """Jiffies of the datapath as CLOCK_MONOTONIC, by the pair of both that packets keep in `tick`."""

    def __init__(self, pins: Path) -> None:
        self._tick = Map(pins / "tick", ctypes.c_uint32, abi.Tick)
        self._jiffies = self._now_ns = self._read_ns = 0

    def time_ns(self, jiffies: int) -> int:
        """The time of a jiffy given by its low 32 bits, which must be within half of their range of now."""
        if time.monotonic_ns() - self._read_ns > _REREAD_NS:
            pair = self._tick.get(ctypes.c_uint32(0)) or abi.Tick()
            self._jiffies, self._now_ns, self._read_ns = pair.jiffies, pair.now_ns, time.monotonic_ns()
        behind = (self._jiffies - jiffies) & 0xFFFFFFFF
        if behind >= 1 << 31:
            behind -= 1 << 32
        return max(0, int(self._now_ns - behind * TICK_NS))

    def close(self) -> None:
        self._tick.close()


class FlowMaps:
    """Slots 1 .. max_flows of the arrays pinned below `pins`. `found`: flows that were there at first, by slot."""

    def __init__(self, pins: Path) -> None:
        with closing(MappedArray(pins / "policy", abi.FlowPolicy, writable=False, reach=ALL)) as whole:
            self.max_flows = whole.entries - 1
            self.found = _occupied(whole.view)
        self._highest_slot = max(self.found, default=0)
        self.used = len(self.found)
        reach = max(_FIRST_REACH, self._highest_slot + 1)
        self._policy = MappedArray(pins / "policy", abi.FlowPolicy, writable=True, reach=reach)
        self._hot = MappedArray(pins / "hot", abi.FlowHot, writable=True, reach=reach)
        self._cold = MappedArray(pins / "cold", abi.FlowCold, writable=True, reach=reach)
        self._clock = JiffyClock(pins)

    def delayed(self) -> list[tuple[FlowId, int, int]]:
        """(flow, htb minor, bits/s) of every flow with a delaying contract."""
        view = self._policy.view
        found = np.flatnonzero((view["flow_id"] != 0) & (view["htb_minor"] != 0) & (view["ns_per_byte_20"] != 0))
        return [
            (
                FlowId(int(view["flow_id"][slot])),
                int(view["htb_minor"][slot]),
                (_NS_PER_BYTE_BIT << 20) // int(view["ns_per_byte_20"][slot]),
            )
            for slot in found
        ]

    def generation(self, slot: int) -> int:
        """The generation that the slot had last, 0 if none."""
        self._extend(slot)
        return int(self._policy.view["last_flow_id"][slot]) >> SLOT_BITS

    def put(self, policy: FlowPolicy, *, htb_minor: int, fresh: bool) -> None:
        """Begins or changes a flow; one that begins counts from 0."""
        slot = policy.flow & SLOT_MASK
        memory, at = self._policy.memory, slot * _POLICY_BYTES
        if fresh:
            self._extend(slot)
            memory, line = self._policy.memory, slot * _LINE_BYTES
            self._hot.memory[line : line + _LINE_BYTES] = _ZERO_LINE
            self._cold.memory[line : line + _LINE_BYTES] = _ZERO_LINE
            self._highest_slot = max(self._highest_slot, slot)
            self.used += 1
        flags = (0 if policy.dscp is None else _MARK) | (0 if policy.priority is None else _PRIORITY)
        ns_per_byte_20, depth_ns = contract(policy.bandwidth)
        # Not pack_into(), which writes zeros first: a packet in between would find no flow, no mark and no rate.
        memory[at + _FLOW_ID.size : at + _POLICY_BYTES] = _POLICY.pack(
            policy.dscp or 0,
            policy.non_conformant_dscp,
            policy.action if ns_per_byte_20 else Action.NONE,
            flags,
            ns_per_byte_20,
            depth_ns,
            htb_minor,
            policy.priority or 0,
            policy.flow,
        )
        if fresh:
            memory[at : at + _FLOW_ID.size] = _FLOW_ID.pack(policy.flow)

    def end(self, flow: FlowId) -> None:
        """From now on packets of the flow's sockets pass untouched."""
        memory, at = self._policy.memory, (flow & SLOT_MASK) * _POLICY_BYTES
        if _FLOW_ID.unpack_from(memory, at)[0] == flow:
            _FLOW_ID.pack_into(memory, at, 0)
            self.used -= 1

    def dscp(self, flow: FlowId) -> int | None:
        """The DSCP that a live flow's policy writes, None if it writes none."""
        fields = _POLICY.unpack_from(self._policy.memory, (flow & SLOT_MASK) * _POLICY_BYTES + _FLOW_ID.size)
        return fields[0] if fields[3] & _MARK else None

    def traffic(self, flow: FlowId) -> tuple[int, int]:
        """(bytes at IP level, packets) so far."""
        hot = _HOT.unpack_from(self._hot.memory, (flow & SLOT_MASK) * _LINE_BYTES)
        return hot[1], hot[2]

    def stats(self, flow: FlowId, queue_drops: int) -> FlowStats:
        """All counters; `queue_drops` are packets that a device's queue of this flow dropped."""
        line = (flow & SLOT_MASK) * _LINE_BYTES
        lines = self._hot.memory[line : line + _LINE_BYTES], self._cold.memory[line : line + _LINE_BYTES]
        if lines == _ZERO_LINES and not queue_drops:
            return _NOTHING
        hot, cold = _HOT.unpack(lines[0]), _COLD.unpack(lines[1])
        dropped_packets = dict(zip(_DROPS, cold[2:4], strict=True))
        if queue_drops:
            dropped_packets["queue"] = queue_drops
        return FlowStats(
            bytes=hot[1],
            packets=hot[2],
            non_conformant_bytes=hot[3],
            non_conformant_packets=hot[4],
            srtt_us=hot[6],
            min_rtt_us=hot[7],
            retransmits=hot[8],
            lost=hot[9],
            delivered=hot[10],
            delivered_ce=hot[11],
            delayed_packets=cold[0],
            delay_ns=cold[1],
            dropped_packets=dropped_packets,
            dropped_bytes=dict(zip(_DROPS, cold[4:6], strict=True)),
            last_ns=self._clock.time_ns(hot[5]) if hot[2] else 0,
            debt_ns=max(0, hot[0] - time.monotonic_ns()),
        )

    def signals(self, slots: Slots, queue_drops: Counts) -> Signals:
        """Counters of the flows in these slots, in their order; `queue_drops` are packets by htb minor."""
        if len(slots):
            self._extend(int(slots.max()))
        hot, cold, minors = self._hot.view[slots], self._cold.view[slots], self._policy.view["htb_minor"][slots]
        found = np.empty(len(slots), SIGNALS)
        for name in _SIGNALS_OF_HOT:
            found[name] = hot[name]
        found["delayed_packets"], found["delay_ns"] = cold["delayed_packets"], cold["delay_ns"]
        found["dropped_packets"] = cold["dropped_packets"].sum(axis=1, dtype=np.uint64) + queue_drops[minors]
        return found

    def totals(self, type_of_slot: bytearray, types: int) -> list[FlowStats]:
        """Sums over the live flows of each type 0 .. types-1; other values in `type_of_slot` are left out."""
        end = min(self._highest_slot + 1, len(type_of_slot))
        kinds = np.frombuffer(type_of_slot, np.uint8, count=end)
        hot, cold = self._hot.view[:end], self._cold.view[:end]
        return [_sum(hot[chosen], cold[chosen]) for chosen in (np.flatnonzero(kinds == kind) for kind in range(types))]

    def look(self, census: Census, type_of_slot: bytearray, account_of_slot: "array[int]", now_s: float) -> None:
        """Let a census look at the slots that were ever used."""
        end = self._highest_slot + 1
        census.look(self._policy.view[:end], self._hot.view[:end], type_of_slot, account_of_slot, now_s)

    def close(self) -> None:
        for mapped in (self._policy, self._hot, self._cold):
            mapped.close()
        self._clock.close()

    def _extend(self, slot: int) -> None:
        if slot >= self._policy.reach:
            for mapped in (self._policy, self._hot, self._cold):
                mapped.extend(2 * slot)


def _occupied(policies: np.ndarray) -> dict[int, FlowId]:
    ids = policies["flow_id"]
    return {int(slot): FlowId(int(ids[slot])) for slot in np.flatnonzero(ids)}


def _sum(hot: np.ndarray, cold: np.ndarray) -> FlowStats:
    def total(name: str) -> int:
        return int(hot[name].sum(dtype=np.uint64))

    def dropped(name: str) -> Mapping[str, int]:
        sums = cold[name].sum(axis=0, dtype=np.uint64)
        return {reason.label: int(sums[reason]) for reason in abi.Drop}

    return FlowStats(
        bytes=total("bytes"),
        packets=total("packets"),
        non_conformant_bytes=total("non_conformant_bytes"),
        non_conformant_packets=total("non_conformant_packets"),
        delayed_packets=int(cold["delayed_packets"].sum(dtype=np.uint64)),
        delay_ns=int(cold["delay_ns"].sum(dtype=np.uint64)),
        dropped_packets=dropped("dropped_packets"),
        dropped_bytes=dropped("dropped_bytes"),
    )
