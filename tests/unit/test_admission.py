"""Admission by what is known of a path."""

import pytest

from qos2.core.admission import decide
from qos2.errors import NetworkBusy, Retry
from qos2.model import Bandwidth, FlowFundamentals, Method, Quality, Statement

MBIT = 1_000_000


def known(available: int | None, *, quality: Quality = Quality.MEASURED) -> FlowFundamentals:
    statements = {"bottleneck": Statement(20 * MBIT, Quality.MEASURED, Method.TRAIN, 0.5)}
    if available is not None:
        statements["available"] = Statement(available, quality, Method.TRAIN, 0.5)
    measured = available if quality is Quality.MEASURED else None
    return FlowFundamentals(Bandwidth(20 * MBIT), None if measured is None else Bandwidth(measured), 10_000, statements)


@pytest.mark.parametrize(
    ("available", "held", "wanted"),
    [(5 * MBIT, 0, 5 * MBIT), (5 * MBIT, 3 * MBIT, 8 * MBIT), (0, 3 * MBIT, 3 * MBIT)],
)
def test_what_is_available_and_what_the_flow_holds_is_its_to_have(available: int, held: int, wanted: int) -> None:
    decide(known(available), False, held, wanted)
    with pytest.raises(NetworkBusy):
        decide(known(available), False, held, wanted + 1)


def test_a_refusal_says_what_could_be_had_and_how_that_is_known() -> None:
    with pytest.raises(NetworkBusy) as refusal:
        decide(known(5 * MBIT), True, 3 * MBIT, 9 * MBIT)
    assert refusal.value.code == "network_busy"
    assert refusal.value.message == "the path cannot carry 9000000 bits/s"
    assert refusal.value.hint == (
        "5000000 bits/s are available beside the 3000000 that the flow holds, measured by train 0.5 s ago: "
        "ask for at most 8000000, or wait until they are available"
    )


@pytest.mark.parametrize("estimate", [None, FlowFundamentals(), known(None), known(MBIT, quality=Quality.LOWER_BOUND)])
def test_without_a_measurement_nothing_is_refused_once_none_is_to_be_expected(
    estimate: FlowFundamentals | None,
) -> None:
    decide(estimate, True, 0, 100 * MBIT)


@pytest.mark.parametrize("estimate", [None, FlowFundamentals(), known(None), known(MBIT, quality=Quality.LOWER_BOUND)])
def test_while_a_measurement_is_to_be_expected_the_answer_is_to_come_again(estimate: FlowFundamentals | None) -> None:
    with pytest.raises(Retry) as refusal:
        decide(estimate, False, 0, MBIT)
    assert refusal.value.hint == "ask again in a second"
