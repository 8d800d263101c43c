"""What the commands need of a client: qos2.Handle has it, and so have the tests' stand-ins."""

import socket
from collections.abc import Sequence
from typing import Any, Protocol, Self

from qos2.model import FlowStats, RateReason, Shaping, TrafficType
from qos2.wire.protocol import (
    Explanation,
    FlowDetails,
    PolicyDecision,
    PolicyExplain,
    PolicyTest,
    Reloaded,
    RuleDetails,
    StatusReport,
)


class ProgramFlow(Protocol):
    """A flow that holds this process and its children."""

    @property
    def id(self) -> int: ...

    def set_rate(self, bandwidth: int, shaping: Shaping = ..., reason: RateReason = ...) -> None: ...

    def stats(self) -> FlowStats: ...

    def close(self) -> None: ...


class Client(Protocol):
    """A handle on the daemon. Each method raises errors of qos2.errors.

    `privileged`: the flows of everybody are seen, else the caller's own.
    """

    privileged: bool

    def status(self) -> StatusReport: ...

    def flows(self) -> Sequence[FlowDetails]: ...

    def flow_details(self, flow: int) -> FlowDetails: ...

    def explain(self, flow: int) -> Explanation: ...

    def add_program(self, traffic_type: TrafficType) -> ProgramFlow: ...

    def reload(self) -> Reloaded: ...

    def policy(self) -> Sequence[RuleDetails]: ...

    def policy_decision(
        self, question: PolicyTest | PolicyExplain, sock: socket.socket | None = None
    ) -> PolicyDecision: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: Any) -> None: ...
