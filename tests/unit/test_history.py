"""The rings of changes: what is remembered of each flow, and that slots are used again."""

import numpy as np

from qos2.core.history import CAUSES, HISTORY, STATES, History
from qos2.model import Cause, FlowState, Judgement

LIMITS = {"limit_loss": 0.01}
CONGESTED, UNCONGESTED = STATES.index(FlowState.CONGESTED), STATES.index(FlowState.UNCONGESTED)
LOSS = CAUSES.index(Cause.LOSS)


def add(history: History, slots: list[int], now_s: float, state: int, cause: int, loss: float) -> None:
    number = len(slots)
    states, causes = np.full(number, state, np.uint8), np.full(number, cause, np.uint8)
    history.add(np.array(slots), now_s, states, causes, {"loss": np.full(number, loss)})


def test_at_first_there_is_one_change_without_evidence() -> None:
    history = History(4, ("loss",))
    history.begin(2, 5.0)
    assert history.of(2, LIMITS) == (Judgement(since_s=5.0),)


def test_flows_that_change_together_are_remembered_each() -> None:
    history = History(4, ("loss",))
    for slot in (1, 3):
        history.begin(slot, 5.0)
    add(history, [1, 3], 6.0, UNCONGESTED, 0, 0.0)
    add(history, [3], 7.5, CONGESTED, LOSS, 0.25)
    before = (
        Judgement(FlowState.UNCONGESTED, None, 6.0, {"loss": 0.0, "limit_loss": 0.01}),
        Judgement(since_s=5.0),
    )
    assert history.of(1, LIMITS) == before
    assert history.of(3, LIMITS) == (
        Judgement(FlowState.CONGESTED, Cause.LOSS, 7.5, {"loss": 0.25, "limit_loss": 0.01}),
        *before,
    )


def test_the_oldest_are_forgotten() -> None:
    history = History(2, ("loss",))
    history.begin(1, 0.0)
    for number in range(1, 2 * HISTORY + 4):
        add(history, [1], float(number), CONGESTED if number % 2 else UNCONGESTED, 0, number / 100)
    told = history.of(1, {})
    assert [(each.since_s, each.evidence) for each in told] == [
        (float(number), {"loss": number / 100}) for number in range(2 * HISTORY + 3, HISTORY + 3, -1)
    ]


def test_a_slot_that_is_used_again_remembers_nothing() -> None:
    history = History(2, ("loss",))
    history.begin(1, 0.0)
    for number in range(HISTORY + 2):
        add(history, [1], float(number), CONGESTED, LOSS, 0.5)
    history.begin(1, 90.0)
    assert history.of(1, LIMITS) == (Judgement(since_s=90.0),)
