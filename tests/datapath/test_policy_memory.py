"""Changes of a policy, as a packet on another CPU may meet them: by a process that reads the map all the while."""

import multiprocessing
from contextlib import closing
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from harness.program import Program
from qos2.datapath import abi
from qos2.datapath.flowmaps import FlowMaps
from qos2.datapath.maps import MappedArray
from qos2.model import Action, Bandwidth, Dscp, FlowId, FlowPolicy

pytestmark = pytest.mark.datapath

SLOT = 5
FLOW = FlowId(3 << 20 | SLOT)
CHANGES = 300_000


def watch(pins: Path, ready: Event, over: Event, found: "multiprocessing.SimpleQueue[set[bytes]]") -> None:
    """Every state of the policy that is seen until `over`, as flow id, DSCPs, action and flags."""
    begin = SLOT * 32
    with closing(MappedArray(pins / "policy", abi.FlowPolicy, writable=False, reach=SLOT + 1)) as policies:
        memory = policies.memory
        ready.set()
        seen = set()
        while not over.is_set():
            seen |= {memory[begin : begin + 8] for _ in range(20_000)}
        found.put(seen)


def test_a_packet_never_meets_half_of_a_change(bpf_fs: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, over, found = context.Event(), context.Event(), context.SimpleQueue()
    with closing(Program(bpf_fs / "watched", 1024)) as program, closing(FlowMaps(program.pins)) as flows:
        slow = FlowPolicy(FLOW, Dscp(56), Dscp(0), Action.DELAY, Bandwidth(1_000_000))
        fast = slow._replace(bandwidth=Bandwidth(10_000_000))
        flows.put(slow, htb_minor=7, fresh=True)
        watcher = context.Process(target=watch, args=(program.pins, ready, over, found))
        watcher.start()
        try:
            assert ready.wait(60)
            for change in range(CHANGES):
                flows.put(slow if change % 2 else fast, htb_minor=7, fresh=False)
            over.set()
            seen = found.get()
        finally:
            over.set()
            watcher.join(10)
    # Only the rate was changed: all else is always there.
    assert seen == {FLOW.to_bytes(4, "little") + bytes((56, 0, Action.DELAY, abi.PolicyFlag.MARK))}
