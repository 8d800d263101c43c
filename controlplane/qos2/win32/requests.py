"""What QOSSetFlow, QOSQueryFlow and QOSNotifyFlow ask of the daemon, and what its answers are for a Windows program.

The same request serves a call that waits and one that an OVERLAPPED completes. Here is what the caller's
side judges: operations, sizes and buffers, InvalidRequest for what is wrong with them. A buffer that is too
small for a result is told only when the daemon has found nothing worse, as in the order of checks on Windows.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from qos2.errors import InvalidRequest, NoData, QosError, Retry
from qos2.model import FlowRate
from qos2.win32.buffers import (
    DWORD_BYTES,
    UINT64_BYTES,
    Buffer,
    check_input_size,
    checked_size,
    flow_rate,
    number,
)
from qos2.win32.enumerations import QOS_NOTIFY_FLOW, QOS_QUERY_FLOW, QOS_SET_FLOW
from qos2.win32.errors import WinError, insufficient, win_error
from qos2.win32.structures import QOS_FLOW_FUNDAMENTALS, QOS_FLOWID, QOS_FLOWRATE_OUTGOING, QOS_PACKET_PRIORITY
from qos2.wire import calls
from qos2.wire.calls import Call

T = TypeVar("T")
V = TypeVar("V")

#: The protocol's numbers are signed. Beyond this, bits/s are as impossible as at it.
_MOST = 2**63 - 1

#: A flow's id as a number, or in a variable of C's type.
FlowNumber = int | QOS_FLOWID


@dataclass(frozen=True, slots=True)
class Request(Generic[T, V]):
    """A call of the package, and what its outcome is for a Windows program."""

    call: Call[T]
    #: The result of the call to its value, and the bytes that this has in C. May raise WinError.
    value: Callable[[T], tuple[V, int]]
    #: The error of the call to the one that the program gets.
    error: Callable[[QosError], WinError] = win_error

    def outcome(self, run: Callable[[], T]) -> tuple[V, int]:
        """What `run`, which has the call's result or raises its error, gives the program. Raises WinError."""
        try:
            return self.value(run())
        except QosError as error:
            raise self.error(error) from error


def flow_number(flow: FlowNumber) -> int:
    """The id as a plain number; whether it is one, the daemon says."""
    return flow.value if isinstance(flow, QOS_FLOWID) else flow


def setting(flow: FlowNumber, operation: int, size: int | None, buffer: Buffer) -> Request[None, None]:
    """QOSSetFlow."""
    number_of_flow = flow_number(flow)
    match operation:
        case QOS_SET_FLOW.QOSSetTrafficType:
            check_input_size(size, DWORD_BYTES)
            return Request(calls.set_traffic_type(number_of_flow, number(buffer, DWORD_BYTES)), _nothing)
        case QOS_SET_FLOW.QOSSetOutgoingRate:
            check_input_size(size, ctypes.sizeof(QOS_FLOWRATE_OUTGOING))
            rate = flow_rate(buffer)
            bandwidth = min(rate.Bandwidth, _MOST)
            return Request(calls.set_rate(number_of_flow, bandwidth, rate.ShapingBehavior, rate.Reason), _nothing)
        case QOS_SET_FLOW.QOSSetOutgoingDSCPValue:
            check_input_size(size, DWORD_BYTES)
            return Request(calls.set_dscp(number_of_flow, number(buffer, DWORD_BYTES)), _nothing)
    raise _unknown(operation, QOS_SET_FLOW)


def question(flow: FlowNumber, operation: int, size: int | None, *, fresh: bool) -> Request[Any, Any]:
    """QOSQueryFlow. `fresh` counts for fundamentals alone."""
    number_of_flow = flow_number(flow)
    match operation:
        case QOS_QUERY_FLOW.QOSQueryFlowFundamentals:
            needed = ctypes.sizeof(QOS_FLOW_FUNDAMENTALS)
            # For a measurement that finds no room at its end nobody has to wait.
            fits = checked_size(size, needed) >= needed
            return _answered(calls.fundamentals(number_of_flow, fresh and fits), size, needed, QOS_FLOW_FUNDAMENTALS.of)
        case QOS_QUERY_FLOW.QOSQueryPacketPriority:
            needed = ctypes.sizeof(QOS_PACKET_PRIORITY)
            return _answered(calls.priority(number_of_flow), size, needed, QOS_PACKET_PRIORITY.of)
        case QOS_QUERY_FLOW.QOSQueryOutgoingRate:
            return _answered(calls.rate(number_of_flow), size, UINT64_BYTES, _bandwidth)
    raise _unknown(operation, QOS_QUERY_FLOW)


def wait(flow: FlowNumber, operation: int, size: int | None, buffer: Buffer) -> Request[None, None]:
    """QOSNotifyFlow."""
    number_of_flow = flow_number(flow)
    match operation:
        case QOS_NOTIFY_FLOW.QOSNotifyCongested | QOS_NOTIFY_FLOW.QOSNotifyUncongested:
            if size is not None or buffer is not None:
                raise InvalidRequest("Size and Buffer are given", "this operation has none")
            return Request(calls.notify(number_of_flow, operation, 0), _nothing)
        case QOS_NOTIFY_FLOW.QOSNotifyAvailable:
            given = checked_size(size, UINT64_BYTES)
            if given >= UINT64_BYTES:
                wanted = min(number(buffer, UINT64_BYTES), _MOST)
                return Request(calls.notify(number_of_flow, operation, wanted), _nothing)
            if buffer is None:
                raise InvalidRequest("no Buffer", "it holds the total in bits/s that the flow is to have")
            return _too_small_wait(number_of_flow, operation, given)
    raise _unknown(operation, QOS_NOTIFY_FLOW)


def _answered(call: Call[T], size: int | None, needed: int, read: Callable[[T], Any]) -> Request[T, Any]:
    """A question whose answer has `needed` bytes, into a buffer of `size`."""
    given = checked_size(size, needed)
    if given >= needed:
        return Request(call, lambda result: (read(result), needed))

    def value(result: T) -> tuple[Any, int]:
        del result
        raise insufficient(given, needed)

    def error(found: QosError) -> WinError:
        # No data yet is no worse than no room for them.
        return insufficient(given, needed) if isinstance(found, NoData | Retry) else win_error(found)

    return Request(call, value, error)


def _too_small_wait(flow: int, condition: int, given: int) -> Request[None, None]:
    """A wait that cannot say what for: the daemon refuses no bandwidth last of all, and then the buffer is to blame."""

    def value(result: None) -> tuple[None, int]:
        del result
        raise insufficient(given, UINT64_BYTES)

    def error(found: QosError) -> WinError:
        return insufficient(given, UINT64_BYTES) if type(found) is InvalidRequest else win_error(found)

    return Request(calls.notify(flow, condition, 0), value, error)


def _nothing(result: None) -> tuple[None, int]:
    return result, 0


def _bandwidth(rate: FlowRate | None) -> int:
    return 0 if rate is None else rate.bandwidth


def _unknown(operation: object, kind: type[QOS_SET_FLOW | QOS_QUERY_FLOW | QOS_NOTIFY_FLOW]) -> InvalidRequest:
    return InvalidRequest(f"unknown operation {operation!r}", f"0 ({kind(0).name}) .. {len(kind) - 1} ({kind(2).name})")
