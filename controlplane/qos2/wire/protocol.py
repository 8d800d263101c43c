"""The protocol between clients and the daemon: typed requests and replies, and their bytes.

One JSON message per packet of an AF_UNIX SOCK_SEQPACKET connection, at most MAX_MESSAGE_BYTES long.
A connection is a handle. Each request carries a number `id` of the client's choice, which its one
reply repeats; replies may come in any order. Descriptors travel by SCM_RIGHTS with the request that
needs them, and only as many as it needs. Enumerations are the numbers of qos2.h.

No I/O here: client and server use the same types and the same two functions per direction.
docs/protocol.md is the same for people who write a client in another language.
"""

from typing import Annotated

import msgspec

from qos2.errors import BY_CODE, InternalError, ProtocolError, QosError
from qos2.wire.results import (  # its results are a part of what this module offers
    Added as Added,
)
from qos2.wire.results import (
    Done as Done,
)
from qos2.wire.results import (
    Explanation as Explanation,
)
from qos2.wire.results import (
    FlowDetails as FlowDetails,
)
from qos2.wire.results import (
    FlowIds as FlowIds,
)
from qos2.wire.results import (
    Flows as Flows,
)
from qos2.wire.results import (
    Fundamentals as Fundamentals,
)
from qos2.wire.results import (
    Opened as Opened,
)
from qos2.wire.results import (
    Priority as Priority,
)
from qos2.wire.results import (
    Rate as Rate,
)
from qos2.wire.results import (
    Result as Result,
)
from qos2.wire.results import (
    StateChange as StateChange,
)
from qos2.wire.results import (
    Stats as Stats,
)
from qos2.wire.results import (
    StatusReport as StatusReport,
)

VERSION = 1
MAX_MESSAGE_BYTES = 16 * 1024
MAX_DESCRIPTORS = 1

#: Longest text of an error on the wire, in characters; six bytes each at worst, so that a refusal always fits.
MAX_ERROR_TEXT = 1000

#: Every number fits a C int64_t; what a number may be beyond that is the service's to judge.
Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
#: Numbers of requests are exact in every JSON library, also where numbers are doubles.
RequestId = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
#: An address as text, with room for a scope (RFC 4007).
AddressText = Annotated[str, msgspec.Meta(max_length=64)]


class Request(msgspec.Struct, kw_only=True, tag_field="op", forbid_unknown_fields=True):
    """What every request has: the protocol's version and the client's number for it."""

    v: Number = VERSION
    id: RequestId = 0


class OpenHandle(Request, tag="open_handle"):
    """QOSCreateHandle: the first request of a connection. Result: Opened."""

    version: tuple[Number, Number] = (1, 0)


class CloseHandle(Request, tag="close_handle"):
    """QOSCloseHandle: when the reply comes its flows have ended, and what was pending is cancelled. Result: Done.

    It is the last request of a connection. One that just ends closes its handle too, only later by a moment.
    """


class AddSocket(Request, tag="add_socket"):
    """QOSAddSocketToFlow, with the socket as descriptor. `flow` 0 begins a flow. Result: Added."""

    traffic_type: Number = 0
    flow: Number = 0
    address: AddressText | None = None
    port: Number = 0
    adaptive: bool = False


class RemoveSocket(Request, tag="remove_socket"):
    """QOSRemoveSocketFromFlow: without a descriptor the whole flow ends. Result: Done."""

    flow: Number


class SetTrafficType(Request, tag="set_traffic_type"):
    """QOSSetFlow(QOSSetTrafficType). Result: Done."""

    flow: Number
    traffic_type: Number


class SetRate(Request, tag="set_rate"):
    """QOSSetFlow(QOSSetOutgoingRate), bandwidth in bits/s at IP level; 0 removes it. Result: Done."""

    flow: Number
    bandwidth: Number
    shaping: Number = 1
    reason: Number = 0


class SetDscp(Request, tag="set_dscp"):
    """QOSSetFlow(QOSSetOutgoingDSCPValue). Result: Done."""

    flow: Number
    dscp: Number


class QueryPriority(Request, tag="priority"):
    """QOSQueryFlow(QOSQueryPacketPriority). Result: Priority."""

    flow: Number


class QueryRate(Request, tag="rate"):
    """QOSQueryFlow(QOSQueryOutgoingRate). Result: Rate."""

    flow: Number


class QueryFundamentals(Request, tag="fundamentals"):
    """QOSQueryFlow(QOSQueryFlowFundamentals). Result: Fundamentals; with `fresh` once there is a new measurement."""

    flow: Number
    fresh: bool = False


class QueryStats(Request, tag="stats"):
    """Counters of a flow of one's own (an extension). Result: Stats."""

    flow: Number


class Notify(Request, tag="notify"):
    """QOSNotifyFlow; the reply comes when the condition holds. Result: Done.

    `bandwidth` counts for AVAILABLE alone: the total in bits/s that the flow wants to have.
    """

    flow: Number
    condition: Number
    bandwidth: Number = 0


class Report(Request, tag="report"):
    """What an application knows of a flow of its own since the last report (an extension). Result: Done.

    Round trip time in microseconds, share 0..1 of its packets that was lost, bytes at IP level that have arrived; at
    least one of them.
    """

    flow: Number
    rtt_us: Number | None = None
    loss: float | None = None
    delivered_bytes: Number | None = None


class Explain(Request, tag="explain"):
    """Why a flow is in its state, and what is known of its path (an extension). Result: Explanation."""

    flow: Number


class Cancel(Request, tag="cancel"):
    """QOSCancel of the pending request number `request`, which is answered `cancelled`. Result: Done."""

    request: RequestId


class StartTracking(Request, tag="start_tracking"):
    """QOSStartTrackingClient. Result: Done."""

    address: AddressText


class StopTracking(Request, tag="stop_tracking"):
    """QOSStopTrackingClient. Result: Done."""

    address: AddressText


class Enumerate(Request, tag="enumerate"):
    """QOSEnumerateFlows: the ids of all flows of the machine; privileged. Result: FlowIds.

    `after` 0 takes a new list; any other number goes on in the same list behind that many ids.
    """

    after: Number = 0


class AddProgram(Request, tag="add_program"):
    """All sockets of the calling process and its children, from now on, in one new flow. Result: Added."""

    traffic_type: Number = 0


class ListFlows(Request, tag="list_flows"):
    """Details of all flows (privileged) or of those of the caller's user. Result: Flows.

    `flow` asks for one alone; `after` for those behind this id, in the order of slots.
    """

    flow: Number = 0
    after: Number = 0


class Status(Request, tag="status"):
    """The daemon and the datapath, for everybody. Result: StatusReport, its devices behind the first `after`."""

    after: Number = 0


AnyRequest = (
    OpenHandle
    | CloseHandle
    | AddSocket
    | RemoveSocket
    | SetTrafficType
    | SetRate
    | SetDscp
    | QueryPriority
    | QueryRate
    | QueryFundamentals
    | QueryStats
    | Notify
    | Report
    | Explain
    | Cancel
    | StartTracking
    | StopTracking
    | Enumerate
    | AddProgram
    | ListFlows
    | Status
)


AnyResult = (
    Done | Opened | Added | Priority | Rate | Fundamentals | Explanation | Stats | FlowIds | Flows | StatusReport
)


class Failure(msgspec.Struct, kw_only=True, tag_field="result", tag="error"):
    """A request that was refused: an error of qos2.errors by its code."""

    id: int
    code: str
    win32: int
    message: str
    hint: str = ""


class _Envelope(msgspec.Struct):
    """What can be told even of a message that is wrong otherwise."""

    v: Number = VERSION
    id: RequestId = 0


_ENCODER = msgspec.json.Encoder()
_REQUEST: msgspec.json.Decoder[AnyRequest] = msgspec.json.Decoder(AnyRequest)
_REPLY: msgspec.json.Decoder[AnyResult | Failure] = msgspec.json.Decoder(AnyResult | Failure)
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_UNDECODABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def encode(message: Request | Result | Failure | FlowDetails) -> bytes:
    """The bytes of one message (or of one entry of a Flows message)."""
    return _ENCODER.encode(message)


def decode_request(data: bytes) -> AnyRequest:
    """A request from its bytes.

    Raises ProtocolError (saying what is wrong and where) for anything that is not JSON, is no known
    operation, has unknown or ill-typed fields, or another version; the version is judged first.
    """
    try:
        request = _REQUEST.decode(data)
    except _UNDECODABLE as error:
        _check_version(_envelope(data).v)
        raise ProtocolError(f"not a request: {error}", "see docs/protocol.md") from error
    _check_version(request.v)
    return request


def _check_version(version: int) -> None:
    if version != VERSION:
        raise ProtocolError(f"protocol version {version}", f"this daemon speaks version {VERSION}")


def _envelope(data: bytes) -> _Envelope:
    try:
        return _ENVELOPE.decode(data)
    except _UNDECODABLE:
        return _Envelope()


def request_id(data: bytes) -> int:
    """The `id` of a message that may be malformed otherwise, so that even its refusal finds its caller; else 0."""
    return _envelope(data).id


def decode_reply(data: bytes) -> AnyResult | Failure:
    """A reply from its bytes; ProtocolError where it is none."""
    try:
        return _REPLY.decode(data)
    except _UNDECODABLE as error:
        raise ProtocolError(f"not a reply: {error}", "client and daemon of different versions?") from error


def failure(request: int, error: QosError) -> Failure:
    """The reply that carries `error`, its text cut to MAX_ERROR_TEXT characters."""
    return Failure(
        id=request,
        code=error.code,
        win32=error.win32,
        message=error.message[:MAX_ERROR_TEXT],
        hint=error.hint[:MAX_ERROR_TEXT],
    )


def error_of(reply: Failure) -> QosError:
    """The error that a reply carries, as its class; an unknown code becomes InternalError."""
    return BY_CODE.get(reply.code, InternalError)(reply.message, reply.hint)


#: The word of every operation, in the order of their definition.
OPERATIONS: tuple[str, ...] = tuple(str(each.__struct_config__.tag) for each in Request.__subclasses__())
