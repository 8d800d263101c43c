"""Who uses the links: nothing is lost, nothing goes back, and the busiest are told by name."""

import random
from itertools import pairwise

import numpy as np
import pytest

from qos2.core.usage import NO_ACCOUNT, OTHER, UNKNOWN, Usage
from qos2.model import TrafficType

VOICE, CONTROL = TrafficType.VOICE, TrafficType.CONTROL


class Stage:
    """A usage and its flows, whose counters are here as they would be in the datapath."""

    def __init__(self, **bounds: int) -> None:
        self.usage = Usage(100, **bounds)
        self.sent: dict[int, int] = {}

    def begin(self, slot: int, unit: str, kind: TrafficType = VOICE) -> None:
        self.usage.begin(slot, unit, kind)
        self.sent[slot] = 0

    def end(self, slot: int) -> None:
        self.usage.end(slot, self.sent.pop(slot))

    def look(self) -> dict[tuple[str, TrafficType], int]:
        living = np.zeros(self.usage.accounts, np.int64)
        for slot, sent in self.sent.items():
            living[self.usage.account_of_slot[slot]] += sent
        self.usage.look(living)
        return {pair: number for pair, number in self.usage.told().items() if number}


def test_a_flow_counts_for_the_unit_of_its_owner_and_for_its_type() -> None:
    stage = Stage()
    stage.begin(1, "a.service")
    stage.begin(2, "a.service")
    stage.begin(3, "a.service", CONTROL)
    stage.begin(4, "b.service")
    stage.begin(5, "")
    stage.sent |= {1: 10, 2: 20, 3: 300, 4: 4000, 5: 50_000}
    assert stage.look() == {
        ("a.service", VOICE): 30,
        ("a.service", CONTROL): 300,
        ("b.service", VOICE): 4000,
        (UNKNOWN, VOICE): 50_000,
    }


def test_without_traffic_every_type_is_told_as_zero_of_others() -> None:
    usage = Usage(4)
    usage.look(np.zeros(usage.accounts, np.int64))
    assert usage.told() == {(OTHER, kind): 0 for kind in TrafficType}


def test_what_an_ended_flow_sent_stays_also_when_it_was_shorter_than_a_look() -> None:
    stage = Stage()
    stage.begin(1, "a.service")
    stage.sent[1] = 10
    stage.end(1)
    assert stage.usage.account_of_slot[1] == NO_ACCOUNT
    stage.begin(1, "a.service")
    stage.sent[1] = 5
    assert stage.look() == {("a.service", VOICE): 15}


def test_what_was_sent_before_a_change_of_type_stays_with_the_old_one() -> None:
    stage = Stage()
    stage.begin(1, "a.service")
    stage.sent[1] = 100
    stage.usage.change(1, CONTROL, 100)
    stage.sent[1] = 107
    assert stage.look() == {("a.service", VOICE): 100, ("a.service", CONTROL): 7}


def test_more_pairs_than_places_are_told_together_and_counted() -> None:
    stage = Stage(places=2)
    for slot in range(1, 6):
        stage.begin(slot, f"{slot}.service")
        stage.sent[slot] = slot * 100
    assert stage.look() == {("5.service", VOICE): 500, ("4.service", VOICE): 400, (OTHER, VOICE): 600}
    assert stage.usage.truncated == 3
    stage.look()
    assert stage.usage.truncated == 3


def test_a_place_is_kept_until_somebody_is_twice_as_busy_and_nothing_jumps() -> None:
    stage = Stage(places=1)
    stage.begin(1, "old.service")
    stage.begin(2, "new.service")
    stage.sent |= {1: 1000, 2: 900}
    assert stage.look() == {("old.service", VOICE): 1000, (OTHER, VOICE): 900}
    stage.sent[2] += 900  # 1.8 times as busy
    assert stage.look() == {("old.service", VOICE): 1000, (OTHER, VOICE): 1800}
    stage.sent[2] += 900
    assert stage.look() == {("new.service", VOICE): 900, (OTHER, VOICE): 1800}
    stage.sent |= {1: 1005, 2: 2710}
    assert stage.look() == {("new.service", VOICE): 910, (OTHER, VOICE): 1805}
    assert stage.usage.truncated == 2  # each of them once, for the time that it was without a place
    stage.sent[1] += 100_000
    assert stage.look() == {("old.service", VOICE): 100_000, (OTHER, VOICE): 1805}
    stage.sent[2] += 10
    assert stage.look() == {("old.service", VOICE): 100_000, (OTHER, VOICE): 1815}
    assert stage.usage.truncated == 3


def test_units_beyond_those_that_have_an_account_are_others() -> None:
    stage = Stage(units=2)
    for slot in (1, 2, 3):
        stage.begin(slot, f"{slot}.service")
        stage.sent[slot] = slot
    assert stage.look() == {("1.service", VOICE): 1, ("2.service", VOICE): 2, (OTHER, VOICE): 3}


def test_a_unit_without_flows_keeps_its_counters_until_its_account_is_needed() -> None:
    stage = Stage(units=2)
    stage.begin(1, "first.service")
    stage.begin(2, "second.service")
    stage.sent |= {1: 100, 2: 200}
    stage.look()
    stage.sent[1] = 101
    stage.end(1)
    assert stage.look() == {("first.service", VOICE): 101, ("second.service", VOICE): 200}
    stage.begin(1, "first.service")
    stage.sent[1] = 9
    stage.end(1)
    stage.begin(3, "third.service")  # in the account of the first, whose last nine bytes are nobody's by name
    stage.sent[3] = 50
    assert stage.look() == {("third.service", VOICE): 50, ("second.service", VOICE): 200, (OTHER, VOICE): 9}


@pytest.mark.parametrize("seed", range(10))
def test_every_byte_is_told_once_and_no_counter_goes_back(seed: int) -> None:
    chance = random.Random(seed)
    stage = Stage(units=6, places=4)
    sent = dict.fromkeys(TrafficType, 0)
    looks: list[dict[tuple[str, TrafficType], int]] = [{}]
    increments = dict.fromkeys(TrafficType, 0)
    for _ in range(60):
        for _ in range(12):
            slot = chance.randrange(1, 30)
            if slot not in stage.sent:
                stage.begin(slot, f"{chance.randrange(10)}.service", chance.choice((VOICE, CONTROL)))
            elif chance.random() < 0.3:
                stage.end(slot)
            elif chance.random() < 0.2:
                stage.usage.change(slot, chance.choice((VOICE, CONTROL)), stage.sent[slot])
            else:
                number = chance.randrange(10_000)
                stage.sent[slot] += number
                sent[TrafficType(stage.usage.account_of_slot[slot] % len(TrafficType))] += number
        looks.append(stage.look())
        assert len(looks[-1]) <= 4 + len(TrafficType)
    for before, after in pairwise(looks):
        for (unit, kind), number in after.items():
            # A name that got a place anew counts from 0: as Prometheus sees it, a counter that was reset.
            earlier = before.get((unit, kind), 0)
            assert unit != OTHER or number >= earlier
            increments[kind] += number - earlier if number >= earlier else number
    assert increments == sent
