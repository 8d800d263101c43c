"""The public datapath in memory: it behaves like the kernel's, and stricter."""

import pytest

from qos2.core.ports import Datapath
from qos2.datapath.fake import FakeDatapath
from qos2.errors import DatapathError
from qos2.model import ANY_DESTINATION, Action, Bandwidth, Destination, Dscp, FlowPolicy, FlowStats, Peer, flow_id
from unit.core_stage import FD, OTHER_PEER, PEER, at, udp

FLOW = flow_id(1, 1)
OTHER = flow_id(2, 1)
VOICE = FlowPolicy(FLOW, Dscp(56))


def living(*flows: int) -> FakeDatapath:
    fake = FakeDatapath(4)
    for slot in flows:
        fake.put(FlowPolicy(flow_id(slot, 1), Dscp(56)), fresh=True)
    return fake


def test_it_is_a_datapath() -> None:
    port: Datapath = FakeDatapath(7)
    assert port.max_flows == 7


def test_the_most_special_destination_wins() -> None:
    fake = living(1, 2, 3, 4)
    one, two, three, four = (flow_id(slot, 1) for slot in (1, 2, 3, 4))
    flows = {PEER: one, Destination(PEER.address, 0): two, Destination(None, PEER.port): three, ANY_DESTINATION: four}
    fake.bind(FD, udp(1), flows)
    assert fake.bindings == {1: flows}
    assert fake.flow_of(1, PEER) == one
    assert fake.flow_of(1, at("192.0.2.7", 1)) == two
    assert fake.flow_of(1, OTHER_PEER) == three
    assert fake.flow_of(1, at("192.0.2.8", 1)) == four
    assert fake.flow_of(2, PEER) is None


def test_packets_of_an_ended_flow_find_none() -> None:
    fake = living(1)
    fake.bind(FD, udp(1), {ANY_DESTINATION: FLOW})
    fake.end(FLOW)
    assert fake.flow_of(1, PEER) is None
    assert fake.occupied_slots() == {}


def test_what_is_unbound_is_gone() -> None:
    fake = living(1)
    fake.bind(FD, udp(1), {PEER: FLOW, ANY_DESTINATION: FLOW})
    fake.unbind(1, (PEER, OTHER_PEER))
    assert fake.bindings == {1: {ANY_DESTINATION: FLOW}}
    fake.bind(FD, udp(1), {})
    assert fake.bindings == {}


def test_a_refusal_counts_down_and_changes_nothing() -> None:
    fake = living(1)
    fake.refuse("end", times=2)
    for _ in range(2):
        with pytest.raises(DatapathError, match="end refused"):
            fake.end(FLOW)
    assert fake.policies == {FLOW: VOICE}
    fake.end(FLOW)
    fake.refuse("put", times=1000)
    fake.accept()
    fake.put(VOICE, fresh=True)
    assert fake.operations == ["put", "end", "end", "end", "put"]


def test_mistakes_of_a_control_plane_are_refused() -> None:
    fake = living(1)
    with pytest.raises(DatapathError, match=f"slot 1 has flow {FLOW}"):
        fake.put(FlowPolicy(flow_id(1, 2), None), fresh=True)
    with pytest.raises(DatapathError, match=f"no flow {OTHER}"):
        fake.put(FlowPolicy(OTHER, None), fresh=False)
    with pytest.raises(DatapathError, match=f"no flow {OTHER}"):
        fake.bind(FD, udp(1), {PEER: OTHER})
    with pytest.raises(DatapathError, match=f"no flow {OTHER}"):
        fake.end(OTHER)
    with pytest.raises(DatapathError, match=f"no flow {OTHER}"):
        fake.stats(OTHER)
    with pytest.raises(DatapathError, match=f"no flow {OTHER}"):
        fake.adopt_program(OTHER, Peer(1, 1))
    with pytest.raises(DatapathError, match="has no program"):
        fake.release_program(FLOW)
    with pytest.raises(DatapathError, match=r"slot 5 is outside 1\.\.4"):
        fake.put(FlowPolicy(flow_id(5, 1), None), fresh=True)
    assert (fake.policies, fake.bindings, fake.programs) == ({FLOW: VOICE}, {}, {})


def test_counters_begin_at_0_and_are_what_the_test_sets() -> None:
    fake = living(1)
    assert fake.stats(FLOW) == FlowStats()
    fake.set_stats(FLOW, FlowStats(packets=3, bytes=180))
    assert fake.stats(FLOW) == FlowStats(packets=3, bytes=180)
    fake.put(FlowPolicy(FLOW, None), fresh=False)
    assert fake.stats(FLOW) == FlowStats(packets=3, bytes=180)
    fake.end(FLOW)
    fake.put(VOICE, fresh=True)
    assert fake.stats(FLOW) == FlowStats()


def test_only_a_delaying_contract_has_a_shaper() -> None:
    fake = living(1)
    assert fake.shapers(FLOW) == {}
    fake.put(FlowPolicy(FLOW, None, action=Action.REMARK, bandwidth=Bandwidth(8_000)), fresh=False)
    assert fake.shapers(FLOW) == {}
    fake.put(FlowPolicy(FLOW, None, action=Action.DELAY, bandwidth=Bandwidth(8_000)), fresh=False)
    assert fake.shapers(FLOW) == {"fake0": "fq"}
    status = fake.status()
    assert (status.devices[0].shaped_flows, status.map_entries) == (1, {"policy": (1, 4)})
