"""Flows over time, look by look: rates of all of them, and the signals of those that are shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qos2.cli import evidence
from qos2.cli.ports import Client
from qos2.cli.sampling import Row, Sample, rows
from qos2.cli.trace import Trace
from qos2.errors import NoSuchFlow
from qos2.model import FlowState
from qos2.wire.protocol import Explanation, FlowDetails

#: Asks for the flows that are watched.
Look = Callable[[], Sequence[FlowDetails]]

#: Worst first.
SEVERITY = (FlowState.CONGESTED, FlowState.RATE_LIMITED, FlowState.UNCONGESTED, FlowState.UNKNOWN)

#: How the flows can be ordered: worst first, latest change first, ...
ORDERS: dict[str, Callable[[Row], Any]] = {
    "state": lambda row: (SEVERITY.index(row.flow.state), row.flow.state_s),
    "since": lambda row: row.flow.state_s,
    "rate": lambda row: -row.bits,
    "name": lambda row: row.flow.program,
    "id": lambda row: 0,
}


@dataclass(frozen=True, slots=True)
class Observation:
    """One flow as it was seen last. `explanation` None: it has just ended."""

    flow: FlowDetails
    trace: Trace
    explanation: Explanation | None


class Observations:
    """Every flow that is watched, and its last samples. The first look is taken at once."""

    def __init__(self, qos: Client, look: Look) -> None:
        self._qos = qos
        self._look = look
        self._traces: dict[int, Trace] = {}
        self._explanations: dict[int, Explanation | None] = {}
        self._sample = Sample.of(look())
        self._note([(row, None) for row in rows(self._sample, self._sample)])

    @property
    def at_s(self) -> float:
        """When the last look was, by time.monotonic()."""
        return self._sample.at_s

    @property
    def flows(self) -> Sequence[FlowDetails]:
        """All of the last look."""
        return [row.flow for row in self._rows]

    def look(self) -> None:
        """Once more; of flows that have ended nothing is kept."""
        before, self._sample = self._sample, Sample.of(self._look())
        self._note([(row, row.bits) for row in rows(before, self._sample)])

    def shown(self, order: str, first: int, count: int) -> list[Observation]:
        """`count` flows from number `first` on in one of ORDERS. Only of these the signals are asked for."""
        ordered = sorted(self._rows, key=lambda row: (ORDERS[order](row), row.flow.flow))
        return [self._observed(row.flow) for row in ordered[first : first + count]]

    def _note(self, rated: Sequence[tuple[Row, float | None]]) -> None:
        self._rows = [row for row, _ in rated]
        self._explanations.clear()
        self._traces = {row.flow.flow: self._traces.get(row.flow.flow) or Trace() for row in self._rows}
        for row, rate in rated:
            self._traces[row.flow.flow].add(rate)

    def _observed(self, flow: FlowDetails) -> Observation:
        number, trace = flow.flow, self._traces[flow.flow]
        if number not in self._explanations:
            try:
                explanation = self._explanations[number] = self._qos.explain(number)
                trace.learn({} if explanation.source is None else evidence.known(explanation.signals))
            except NoSuchFlow:
                self._explanations[number] = None
        return Observation(flow, trace, self._explanations[number])
