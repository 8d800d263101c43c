"""Requests that wait: for a condition of a flow, or for a new measurement of its path.

Pure bookkeeping: who waits for what, and what has become of it. A flow has at most one wait per
condition, and any number for measurements. What is over is in `completed` until somebody takes it, so
that nothing here calls back into whoever caused it.
"""

from dataclasses import dataclass
from typing import TypeVar

from qos2.errors import AlreadyExists, Cancelled, InvalidRequest, LimitExceeded, QosError
from qos2.model import Bandwidth, Condition, FlowFundamentals, FlowId

NOTHING = Bandwidth(0)
Outer = TypeVar("Outer")
Inner = TypeVar("Inner")


@dataclass(frozen=True, slots=True)
class Completion:
    """What a request that waited has come to: `error`, else `result`, which a condition has none of.

    `condition` is what it waited for (None: a measurement). `signal_s` is the time of the signals that ended the
    wait, by the daemon's clock; None where something else did.
    """

    handle: int
    request: int
    result: FlowFundamentals | None = None
    error: QosError | None = None
    condition: Condition | None = None
    signal_s: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Wait:
    """A request of a handle, by the number that the client gave it."""

    handle: int
    request: int
    flow: FlowId
    condition: Condition | None  #: None: a new measurement
    wanted: Bandwidth = NOTHING  #: of AVAILABLE, in bits/s


class Notifications:
    """The table of pending requests, at most `per_handle` of each handle."""

    __slots__ = ("_by_handle", "_conditions", "_measurements", "_per_handle", "completed")

    def __init__(self, per_handle: int) -> None:
        self._per_handle = per_handle
        self._by_handle: dict[int, dict[int, Wait]] = {}
        self._conditions: dict[FlowId, dict[Condition, Wait]] = {}
        self._measurements: dict[FlowId, dict[tuple[int, int], Wait]] = {}
        self.completed: list[Completion] = []  #: in the order of their ends; the same list all the time

    @property
    def pending(self) -> int:
        """How many requests wait."""
        return sum(map(len, self._by_handle.values()))

    def check_number(self, handle: int, request: int) -> None:
        """Raises InvalidRequest for the number of a request that waits: its answer could not be told apart."""
        if request in self._by_handle.get(handle, ()):
            raise InvalidRequest(f"request {request} is pending", "give each request a number of its own")

    def check_free(self, flow: FlowId, condition: Condition) -> None:
        """Raises AlreadyExists where somebody waits for this condition of this flow."""
        if condition in self._conditions.get(flow, ()):
            raise AlreadyExists(
                f"a wait for {condition.name.lower()} of flow {flow} is pending", "cancel it first, or wait for it"
            )

    def check_share(self, handle: int) -> None:
        """Raises LimitExceeded where this handle has no room for another request that waits."""
        if len(self._by_handle.get(handle, ())) >= self._per_handle:
            raise LimitExceeded(
                f"{self._per_handle} requests of this handle are pending", "cancel some, or raise pending_per_handle"
            )

    def add(self, wait: Wait) -> None:
        """The checks above have passed."""
        self._by_handle.setdefault(wait.handle, {})[wait.request] = wait
        if wait.condition is None:
            self._measurements.setdefault(wait.flow, {})[wait.handle, wait.request] = wait
        else:
            self._conditions.setdefault(wait.flow, {})[wait.condition] = wait

    def find(self, handle: int, request: int) -> Wait:
        """Raises InvalidRequest where this request does not wait (any more)."""
        wait = self._by_handle.get(handle, {}).get(request)
        if wait is None:
            raise InvalidRequest(f"request {request} is not pending", "it has been answered, or never waited")
        return wait

    def of_handle(self, handle: int) -> tuple[Wait, ...]:
        """In the order in which they began."""
        return tuple(self._by_handle.get(handle, {}).values())

    def for_conditions(self, flow: FlowId) -> tuple[Wait, ...]:
        return tuple(self._conditions.get(flow, {}).values())

    def for_measurements(self, flow: FlowId) -> tuple[Wait, ...]:
        return tuple(self._measurements.get(flow, {}).values())

    def complete(
        self,
        wait: Wait,
        result: FlowFundamentals | None = None,
        error: QosError | None = None,
        signal_s: float | None = None,
    ) -> None:
        """The wait is over."""
        _take(self._by_handle, wait.handle, wait.request)
        if wait.condition is None:
            _take(self._measurements, wait.flow, (wait.handle, wait.request))
        else:
            _take(self._conditions, wait.flow, wait.condition)
        self.completed.append(Completion(wait.handle, wait.request, result, error, wait.condition, signal_s))

    def cancel(self, wait: Wait, why: str) -> None:
        """The wait is over without having come to anything."""
        self.complete(wait, error=Cancelled(why))


def _take(table: dict[Outer, dict[Inner, Wait]], outer: Outer, inner: Inner) -> None:
    """Take one entry out, and what held it where it was the last."""
    entries = table[outer]
    del entries[inner]
    if not entries:
        del table[outer]
