"""What all drivers have in common: names, the order of a row's steps, and when an overlapped call counts as pending."""

from abc import ABC, abstractmethod
from typing import Any, Self

from conformance.calls import Call
from conformance.numbers import ERROR_IO_INCOMPLETE, ERROR_IO_PENDING
from conformance.table import Row, Step
from conformance.vocabulary import Outcome, Steered

#: How long what is expected may take, in seconds.
PATIENCE_S = 10.0


class Driver(ABC):
    """One program in one world, for one row; a context manager that tidies up after it.

    The calls take what a Windows program passes: values, NULL, and objects for handles; sockets and OVERLAPPED
    structures by name. They return an Outcome, whose value is an id or a handle where the call gives one.
    """

    def __init__(self) -> None:
        self.handles: dict[str, Any] = {}
        self.flows: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def play(self, row: Row) -> Outcome:
        """The outcome of the row's call, after all its steps. Raises AssertionError for a step that fails."""
        for step in row.given:
            self._take(step)
        return self._made(row.call)

    def _take(self, step: Step) -> None:
        if not isinstance(step, Call):
            self.reach(step)
            return
        outcome = self._made(step)
        # What a step waits for may be its failure: the end of a cancelled call, say.
        waited = step.function == "GetOverlappedResult"
        assert waited or outcome.error in (0, ERROR_IO_PENDING), f"a step of the row failed: {step}: {outcome}"

    def _made(self, call: Call) -> Outcome:
        """Make a call, with names for what has names."""
        arguments = dict(call.arguments)
        handle = arguments.get("QOSHandle")
        if isinstance(handle, str):
            arguments["QOSHandle"] = handle = self.handles[handle]
        flow = arguments.get("FlowId")
        if isinstance(flow, str):
            arguments["FlowId"] = self.flows[flow]
        if call.function == "GetOverlappedResult" and not arguments["Wait"]:
            self.settle(handle)
        outcome: Outcome = getattr(self, call.function)(**arguments)
        if outcome.error == ERROR_IO_PENDING:
            outcome = self._settled(handle, arguments["Overlapped"])
        if outcome.error == 0 and call.function == "QOSCreateHandle":
            self.handles[call.into] = outcome.value
            return Outcome(0, call.into)
        if outcome.error == 0 and call.function in ("QOSAddSocketToFlow", "QOSEnumerateFlows"):
            return self._named(call, outcome)
        return outcome

    def _named(self, call: Call, outcome: Outcome) -> Outcome:
        """Ids become the names that they have in the row; an unknown one remains a number."""
        value: Any = outcome.value
        if call.into and value not in [flow for name, flow in self.flows.items() if name != call.into]:
            self.flows[call.into] = value
        names = {flow: name for name, flow in self.flows.items()}
        if isinstance(value, list):
            assert len(set(value)) == len(value)
            return Outcome(0, frozenset(names.get(each, each) for each in value), outcome.size)
        return Outcome(0, names.get(value, value), outcome.size)

    def _settled(self, handle: Any, overlapped: Any) -> Outcome:
        """Whether an overlapped call is really under way: its refusal, or its result, may only come a little later."""
        self.settle(handle)
        outcome = self.GetOverlappedResult(handle, overlapped, False)
        return Outcome(ERROR_IO_PENDING) if outcome.error == ERROR_IO_INCOMPLETE else outcome

    @abstractmethod
    def close(self) -> None:
        """End what the row began."""

    @abstractmethod
    def expected(self, outcome: Outcome) -> Outcome:
        """What of an outcome in the table this driver's program can see."""

    @abstractmethod
    def reach(self, state: Step | Steered) -> None:
        """Bring about a state of the world."""

    @abstractmethod
    def settle(self, handle: Any) -> None:
        """Return when everything that the daemon has sent to this handle by now has been received."""

    # The calls, by Windows' names

    @abstractmethod
    def QOSCreateHandle(self, Version: Any, QOSHandle: Any = None) -> Outcome: ...

    @abstractmethod
    def QOSCloseHandle(self, QOSHandle: Any) -> Outcome: ...

    @abstractmethod
    def QOSStartTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int) -> Outcome: ...

    @abstractmethod
    def QOSStopTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int) -> Outcome: ...

    @abstractmethod
    def QOSEnumerateFlows(self, QOSHandle: Any, Size: Any, Buffer: Any) -> Outcome: ...

    @abstractmethod
    def QOSAddSocketToFlow(
        self, QOSHandle: Any, Socket: str, DestAddr: Any, TrafficType: int, Flags: int, FlowId: Any
    ) -> Outcome: ...

    @abstractmethod
    def QOSRemoveSocketFromFlow(self, QOSHandle: Any, Socket: str | None, FlowId: int, Flags: int) -> Outcome: ...

    @abstractmethod
    def QOSSetFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome: ...

    @abstractmethod
    def QOSQueryFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome: ...

    @abstractmethod
    def QOSNotifyFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome: ...

    @abstractmethod
    def QOSCancel(self, QOSHandle: Any, Overlapped: Any) -> Outcome: ...

    @abstractmethod
    def GetOverlappedResult(self, QOSHandle: Any, Overlapped: str, Wait: bool) -> Outcome: ...
