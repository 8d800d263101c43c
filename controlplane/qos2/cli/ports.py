"""What the commands need of a client: qos2.Handle has it, and so have the tests' stand-ins."""

from collections.abc import Sequence
from typing import Any, Protocol, Self

from qos2.model import FlowStats, RateReason, Shaping, TrafficType
from qos2.wire.protocol import Explanation, FlowDetails, StatusReport


class ProgramFlow(Protocol):
    """A flow that holds this process and its children."""

    @property
    def id(self) -> int: ...

    def set_rate(self, bandwidth: int, shaping: Shaping = ..., reason: RateReason = ...) -> None: ...

    def stats(self) -> FlowStats: ...

    def close(self) -> None: ...


class Client(Protocol):
    """A handle on the daemon. Each method raises errors of qos2.errors."""

    def status(self) -> StatusReport: ...

    def flows(self) -> Sequence[FlowDetails]: ...

    def flow_details(self, flow: int) -> FlowDetails: ...

    def explain(self, flow: int) -> Explanation: ...

    def add_program(self, traffic_type: TrafficType) -> ProgramFlow: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: Any) -> None: ...
