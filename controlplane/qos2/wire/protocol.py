"""The protocol between clients and the daemon: typed requests and replies, and their bytes.

One JSON message per packet of an AF_UNIX SOCK_SEQPACKET connection, at most MAX_MESSAGE_BYTES long.
A connection is a handle. Each request carries a number `id` of the client's choice, which its one
reply repeats; replies may come in any order. Descriptors travel by SCM_RIGHTS with the request that
needs them, and only as many as it needs. Enumerations are the numbers of qos2.h.

No I/O here: client and server use the same types and the same two functions per direction. The messages
themselves, requests.py and results.py, are a part of what this module offers.
docs/protocol.md is the same for people who write a client in another language.
"""

import msgspec

from qos2.errors import BY_CODE, InternalError, ProtocolError, QosError
from qos2.wire.requests import VERSION as VERSION
from qos2.wire.requests import AddProgram as AddProgram
from qos2.wire.requests import AddressText as AddressText
from qos2.wire.requests import AddSocket as AddSocket
from qos2.wire.requests import AnyRequest as AnyRequest
from qos2.wire.requests import Cancel as Cancel
from qos2.wire.requests import CloseHandle as CloseHandle
from qos2.wire.requests import Enumerate as Enumerate
from qos2.wire.requests import Explain as Explain
from qos2.wire.requests import ListFlows as ListFlows
from qos2.wire.requests import NameText as NameText
from qos2.wire.requests import Notify as Notify
from qos2.wire.requests import Number as Number
from qos2.wire.requests import OpenHandle as OpenHandle
from qos2.wire.requests import PathText as PathText
from qos2.wire.requests import PolicyExplain as PolicyExplain
from qos2.wire.requests import PolicyList as PolicyList
from qos2.wire.requests import PolicyTest as PolicyTest
from qos2.wire.requests import QueryFundamentals as QueryFundamentals
from qos2.wire.requests import QueryPriority as QueryPriority
from qos2.wire.requests import QueryRate as QueryRate
from qos2.wire.requests import QueryStats as QueryStats
from qos2.wire.requests import Reload as Reload
from qos2.wire.requests import RemoveSocket as RemoveSocket
from qos2.wire.requests import Report as Report
from qos2.wire.requests import Request as Request
from qos2.wire.requests import RequestId as RequestId
from qos2.wire.requests import SetDscp as SetDscp
from qos2.wire.requests import SetRate as SetRate
from qos2.wire.requests import SetTrafficType as SetTrafficType
from qos2.wire.requests import StartTracking as StartTracking
from qos2.wire.requests import Status as Status
from qos2.wire.requests import StopTracking as StopTracking
from qos2.wire.results import Added as Added
from qos2.wire.results import Done as Done
from qos2.wire.results import Explanation as Explanation
from qos2.wire.results import FlowDetails as FlowDetails
from qos2.wire.results import FlowIds as FlowIds
from qos2.wire.results import Flows as Flows
from qos2.wire.results import Fundamentals as Fundamentals
from qos2.wire.results import Opened as Opened
from qos2.wire.results import PolicyDecision as PolicyDecision
from qos2.wire.results import PolicyRules as PolicyRules
from qos2.wire.results import Priority as Priority
from qos2.wire.results import Rate as Rate
from qos2.wire.results import Reloaded as Reloaded
from qos2.wire.results import Result as Result
from qos2.wire.results import RuleDetails as RuleDetails
from qos2.wire.results import RuleReason as RuleReason
from qos2.wire.results import StateChange as StateChange
from qos2.wire.results import Stats as Stats
from qos2.wire.results import StatusReport as StatusReport

MAX_MESSAGE_BYTES = 16 * 1024
MAX_DESCRIPTORS = 1

#: Longest text of an error on the wire, in characters; six bytes each at worst, so that a refusal always fits.
MAX_ERROR_TEXT = 1000

AnyResult = (
    Done
    | Opened
    | Added
    | Priority
    | Rate
    | Fundamentals
    | Explanation
    | Stats
    | FlowIds
    | Flows
    | StatusReport
    | Reloaded
    | PolicyRules
    | PolicyDecision
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
