"""Free slots and the ids that come from them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.core.slots import SlotPool
from qos2.errors import DatapathError, LimitExceeded
from qos2.model import FlowId, flow_id, slot_of


def test_slots_never_used_go_first_with_the_generation_behind_their_last() -> None:
    pool = SlotPool(3, (), {1: 0, 2: 41, 3: 4095}.__getitem__)
    assert [pool.take(), pool.take(), pool.take()] == [flow_id(1, 1), flow_id(2, 42), flow_id(3, 0)]


def test_freed_slots_come_back_oldest_first_after_all_unused_ones_with_the_next_generation() -> None:
    pool = SlotPool(3, (), lambda slot: 0)
    first, second = pool.take(), pool.take()
    pool.give_back(second)
    pool.give_back(first)
    assert [pool.take(), pool.take(), pool.take()] == [flow_id(3, 1), flow_id(2, 2), flow_id(1, 2)]


def test_a_generation_wraps_without_touching_the_slot() -> None:
    pool = SlotPool(1, (), lambda slot: 4094)
    flow = pool.take()
    assert flow == flow_id(1, 4095)
    pool.give_back(flow)
    assert pool.take() == flow_id(1, 0) == 1


def test_occupied_slots_are_given_out_only_after_they_were_given_back() -> None:
    pool = SlotPool(3, {1, 3}, lambda slot: 0)
    assert pool.take() == flow_id(2, 1)
    with pytest.raises(LimitExceeded):
        pool.take()
    pool.give_back(flow_id(3, 9))
    assert pool.take() == flow_id(3, 10)


def test_an_exhausted_pool_names_the_key_that_makes_it_larger() -> None:
    pool = SlotPool(1, (), lambda slot: 0)
    pool.take()
    with pytest.raises(LimitExceeded) as refused:
        pool.take()
    assert refused.value.message == "all 1 flows are in use"
    assert "max_flows" in refused.value.hint


def test_a_generation_that_cannot_be_read_loses_no_slot() -> None:
    answers: list[int | DatapathError] = [DatapathError("no"), 6]

    def last_generation(slot: int) -> int:
        answer = answers.pop(0)
        if isinstance(answer, DatapathError):
            raise answer
        return answer

    pool = SlotPool(1, (), last_generation)
    with pytest.raises(DatapathError):
        pool.take()
    assert pool.take() == flow_id(1, 7)


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 8))
def test_a_slot_is_in_one_flow_at_most_and_none_is_lost(takes: list[bool], size: int) -> None:
    pool = SlotPool(size, (), lambda slot: 0)
    taken: list[FlowId] = []
    seen: set[FlowId] = set()
    for take in takes:
        if take and len(taken) < size:
            flow = pool.take()
            assert slot_of(flow) not in map(slot_of, taken)
            assert flow not in seen
            seen.add(flow)
            taken.append(flow)
        elif take:
            with pytest.raises(LimitExceeded):
                pool.take()
        elif taken:
            pool.give_back(taken.pop(0))
    assert {slot_of(pool.take()) for _ in range(size - len(taken))} | {slot_of(flow) for flow in taken} == set(
        range(1, size + 1)
    )
