"""The calls of the table: each constructor writes one call down, by the names that Windows gives its parameters.

Defaults are what most rows want: the handle "h", the flow "f", the socket "s" of a non-adaptive flow, no
flags, buffers of the right size. The sizes are those of qos2.h, in bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from conformance.numbers import (
    AVAILABLE,
    NON_ADAPTIVE,
    NOT_APPLICABLE,
    SET_DSCP,
    SET_RATE,
    SET_TRAFFIC_TYPE,
    SHAPE_AND_MARK,
    VOICE,
)
from conformance.vocabulary import NULL, PEER, Address, Named, Pointer

#: What an operation writes or reads, in bytes.
SET_BYTES = (4, 16, 4)
QUERY_BYTES = (40, 16, 8)
AVAILABLE_BYTES = 8
FLOW_ID_BYTES = 4

Handle: TypeAlias = str | Pointer | Named
Flow: TypeAlias = str | int
Size: TypeAlias = int | Pointer | None
"""In bytes; None: exactly what is needed."""


@dataclass(frozen=True, slots=True)
class Rate:
    """QOS_FLOWRATE_OUTGOING."""

    bandwidth: int
    shaping: int = SHAPE_AND_MARK
    reason: int = NOT_APPLICABLE


@dataclass(frozen=True, slots=True)
class Call:
    """One call. `into` names what it gives: a handle or a flow id."""

    function: str
    arguments: Mapping[str, object] = field(default_factory=dict)
    into: str = ""

    def __str__(self) -> str:
        return f"{self.function}({', '.join(f'{name}={value}' for name, value in self.arguments.items())})"


def create(into: str = "h", version: tuple[int, int] | Pointer = (1, 0), out: Pointer | None = None) -> Call:
    """QOSCreateHandle; `out` NULL: the pointer QOSHandle is."""
    pointer = {} if out is None else {"QOSHandle": out}
    return Call("QOSCreateHandle", {"Version": version, **pointer}, into)


def close(handle: Handle = "h") -> Call:
    return Call("QOSCloseHandle", {"QOSHandle": handle})


def start(address: Address | Pointer = PEER, *, flags: int = 0, handle: Handle = "h") -> Call:
    return Call("QOSStartTrackingClient", {"QOSHandle": handle, "DestAddr": address, "Flags": flags})


def stop(address: Address | Pointer = PEER, *, flags: int = 0, handle: Handle = "h") -> Call:
    return Call("QOSStopTrackingClient", {"QOSHandle": handle, "DestAddr": address, "Flags": flags})


def enumerate_flows(size: Size = None, *, buffer: Pointer | None = None, handle: Handle = "h") -> Call:
    """QOSEnumerateFlows; without `size` as often as it takes until the buffer is large enough."""
    return Call("QOSEnumerateFlows", {"QOSHandle": handle, "Size": size, "Buffer": buffer})


def add(
    socket: str = "s",
    to: Address | None = PEER,
    traffic_type: int = VOICE,
    *,
    flags: int = NON_ADAPTIVE,
    flow: Flow | Pointer = 0,
    into: str = "f",
    handle: Handle = "h",
) -> Call:
    """QOSAddSocketToFlow; `flow` is what FlowId points to before the call, `into` names what it points to then."""
    arguments = {"QOSHandle": handle, "Socket": socket, "DestAddr": to, "TrafficType": traffic_type}
    return Call("QOSAddSocketToFlow", arguments | {"Flags": flags, "FlowId": flow}, into if flow == 0 else "")


def remove(socket: str | None = None, flow: Flow = "f", *, flags: int = 0, handle: Handle = "h") -> Call:
    """QOSRemoveSocketFromFlow; without a socket the whole flow."""
    return Call("QOSRemoveSocketFromFlow", {"QOSHandle": handle, "Socket": socket, "FlowId": flow, "Flags": flags})


def set_flow(
    operation: int,
    buffer: object,
    *,
    size: Size = None,
    flow: Flow = "f",
    flags: int = 0,
    overlapped: str | None = None,
    handle: Handle = "h",
) -> Call:
    """QOSSetFlow; `buffer` is an integer, a Rate or NULL."""
    if size is None:
        size = SET_BYTES[operation]
    arguments = {"QOSHandle": handle, "FlowId": flow, "Operation": operation, "Size": size, "Buffer": buffer}
    return Call("QOSSetFlow", arguments | {"Flags": flags, "Overlapped": overlapped})


def set_type(traffic_type: int, *, flow: Flow = "f", handle: Handle = "h", overlapped: str | None = None) -> Call:
    return set_flow(SET_TRAFFIC_TYPE, traffic_type, flow=flow, handle=handle, overlapped=overlapped)


def set_rate(
    bandwidth: int,
    shaping: int = SHAPE_AND_MARK,
    reason: int = NOT_APPLICABLE,
    *,
    flow: Flow = "f",
    handle: Handle = "h",
    overlapped: str | None = None,
) -> Call:
    """Bits/s at IP level."""
    return set_flow(SET_RATE, Rate(bandwidth, shaping, reason), flow=flow, handle=handle, overlapped=overlapped)


def set_dscp(dscp: int, *, flow: Flow = "f", handle: Handle = "h", overlapped: str | None = None) -> Call:
    return set_flow(SET_DSCP, dscp, flow=flow, handle=handle, overlapped=overlapped)


def query(
    operation: int,
    flow: Flow = "f",
    *,
    size: Size = None,
    buffer: Pointer | None = None,
    flags: int = 0,
    overlapped: str | None = None,
    handle: Handle = "h",
) -> Call:
    """QOSQueryFlow into a buffer of `size` bytes."""
    if size is None:
        size = QUERY_BYTES[operation]
    arguments = {"QOSHandle": handle, "FlowId": flow, "Operation": operation, "Size": size, "Buffer": buffer}
    return Call("QOSQueryFlow", arguments | {"Flags": flags, "Overlapped": overlapped})


def notify(
    operation: int,
    bandwidth: int | Pointer | None = None,
    *,
    size: Size = None,
    flow: Flow = "f",
    flags: int = 0,
    overlapped: str | None = None,
    handle: Handle = "h",
) -> Call:
    """QOSNotifyFlow; without a bandwidth both Size and Buffer are NULL, unless `size` is given."""
    buffer = NULL if bandwidth is None else bandwidth
    if size is None:
        size = AVAILABLE_BYTES if operation == AVAILABLE else NULL
    arguments = {"QOSHandle": handle, "FlowId": flow, "Operation": operation, "Size": size, "Buffer": buffer}
    return Call("QOSNotifyFlow", arguments | {"Flags": flags, "Overlapped": overlapped})


def cancel(overlapped: str | Pointer = "o", *, handle: Handle = "h") -> Call:
    return Call("QOSCancel", {"QOSHandle": handle, "Overlapped": overlapped})


def result(overlapped: str = "o", *, wait: bool = True, handle: Handle = "h") -> Call:
    """GetOverlappedResult; waiting, it first waits for the event of the operation."""
    return Call("GetOverlappedResult", {"QOSHandle": handle, "Overlapped": overlapped, "Wait": wait})
