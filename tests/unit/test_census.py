"""What all flows do together: sums by account, contracts and what was achieved, the busiest, over arrays as mapped."""

from array import array
from ctypes import Structure

import numpy as np

from qos2.core.usage import NO_ACCOUNT, Contracts
from qos2.datapath import abi
from qos2.datapath.census import Census
from qos2.datapath.flowmaps import contract
from qos2.model import TrafficType, flow_id

SLOTS = 9
NO_TYPE = 255


def records(structure: type[Structure]) -> np.ndarray:
    return np.zeros(SLOTS, np.dtype(structure))


class Stage:
    """The arrays of a datapath with eight slots."""

    def __init__(self) -> None:
        self.policy, self.hot = records(abi.FlowPolicy), records(abi.FlowHot)
        self.types = bytearray([NO_TYPE]) * SLOTS
        self.accounts = array("H", [NO_ACCOUNT]) * SLOTS
        self.census = Census()

    def flow(self, slot: int, kind: TrafficType, *, bandwidth: int = 0, generation: int = 1, account: int = 0) -> None:
        self.policy[slot]["flow_id"] = flow_id(slot, generation)
        self.policy[slot]["ns_per_byte_20"] = contract(bandwidth)[0]
        self.hot[slot]["bytes"] = 0
        self.types[slot], self.accounts[slot] = kind, account

    def look(self, now_s: float) -> Census:
        self.census.look(self.policy, self.hot, self.types, self.accounts, now_s)
        return self.census


def test_contracts_stand_beside_what_was_achieved_under_them() -> None:
    stage = Stage()
    stage.flow(1, TrafficType.VOICE, bandwidth=8_000_000)
    stage.flow(2, TrafficType.VOICE, bandwidth=800_000)
    stage.flow(3, TrafficType.VOICE)
    stage.flow(4, TrafficType.CONTROL, bandwidth=8_000)
    first = stage.look(100.0).contracts
    assert first[TrafficType.VOICE] == Contracts(2, 1_100_000.0, 0.0)
    stage.hot["bytes"][1:5] = [1000, 300, 77_777, 9]
    second = stage.look(102.0).contracts
    assert second == {
        **{kind: Contracts() for kind in TrafficType},
        TrafficType.VOICE: Contracts(2, 1_100_000.0, 650.0),
        TrafficType.CONTROL: Contracts(1, 1_000.0, 4.5),
    }


def test_a_flow_that_is_new_in_a_slot_has_achieved_nothing_yet() -> None:
    stage = Stage()
    stage.flow(1, TrafficType.VOICE, bandwidth=8_000_000)
    stage.hot["bytes"][1] = 50_000
    stage.look(1.0)
    stage.flow(1, TrafficType.VOICE, bandwidth=8_000_000, generation=2)
    stage.hot["bytes"][1] = 60_000
    assert stage.look(2.0).contracts[TrafficType.VOICE].achieved_bytes_per_s == 0.0
    stage.hot["bytes"][1] = 60_500
    assert stage.look(3.0).contracts[TrafficType.VOICE].achieved_bytes_per_s == 500.0


def test_a_flow_that_ended_counts_no_more() -> None:
    stage = Stage()
    stage.flow(1, TrafficType.VOICE, bandwidth=8_000_000)
    stage.look(1.0)
    stage.policy[1]["flow_id"] = 0
    stage.types[1], stage.accounts[1] = NO_TYPE, NO_ACCOUNT
    stage.hot["bytes"][1] = 500
    census = stage.look(2.0)
    assert census.contracts[TrafficType.VOICE] == Contracts()
    assert census.busiest(5) == []
    assert census.sent(3).tolist() == [0, 0, 0]


def test_bytes_are_summed_by_account() -> None:
    stage = Stage()
    for slot, account in ((1, 0), (2, 5), (3, 5), (4, 11)):
        stage.flow(slot, TrafficType.VOICE, account=account)
    stage.hot["bytes"][1:5] = [1, 20, 300, 2**40]
    assert stage.look(1.0).sent(12).tolist() == [1, 0, 0, 0, 0, 320, 0, 0, 0, 0, 0, 2**40]


def test_the_busiest_are_those_of_the_last_second_and_not_of_all_time() -> None:
    stage = Stage()
    for slot in range(1, 6):
        stage.flow(slot, TrafficType.VOICE)
    stage.hot["bytes"][1:6] = [10**9, 0, 0, 0, 0]
    assert stage.look(10.0).busiest(3) == []
    stage.hot["bytes"][2:6] = [40, 400, 4000, 400]
    expected = [(flow_id(4, 1), 2000.0), (flow_id(3, 1), 200.0), (flow_id(5, 1), 200.0), (flow_id(2, 1), 20.0)]
    assert stage.look(12.0).busiest(10) == expected
    assert stage.census.busiest(1) == expected[:1]


def test_arrays_that_were_extended_in_between_are_looked_at_whole() -> None:
    stage = Stage()
    stage.flow(1, TrafficType.VOICE)
    stage.flow(8, TrafficType.VOICE)
    census, kinds, accounts = stage.census, stage.types, stage.accounts
    census.look(stage.policy[:4], stage.hot[:4], kinds, accounts, 1.0)
    stage.hot["bytes"][[1, 8]] = [70, 80]
    census.look(stage.policy, stage.hot, kinds, accounts, 2.0)
    assert census.busiest(9) == [(flow_id(1, 1), 70.0)]
    assert census.sent(1).tolist() == [150]
