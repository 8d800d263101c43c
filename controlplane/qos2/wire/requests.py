"""What clients can ask the daemon: the requests of wire/protocol.py, each with its fields."""

from typing import Annotated

import msgspec

VERSION = 1

#: Every number fits a C int64_t; what a number may be beyond that is the service's to judge.
Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
#: Numbers of requests are exact in every JSON library, also where numbers are doubles.
RequestId = Annotated[int, msgspec.Meta(ge=0, le=2**53 - 1)]
#: An address as text, with room for a scope (RFC 4007).
AddressText = Annotated[str, msgspec.Meta(max_length=64)]
#: Names of units, devices, namespaces and protocols.
NameText = Annotated[str, msgspec.Meta(max_length=255)]
#: PATH_MAX, less the terminating zero.
PathText = Annotated[str, msgspec.Meta(max_length=4095)]


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


class Reload(Request, tag="reload"):
    """The administrator's policy is read anew; privileged. Result: Reloaded, or a Failure that tells each error."""


class PolicyList(Request, tag="policy_list"):
    """The rules in order of decision, those behind the first `after`. Result: PolicyRules."""

    after: Number = 0


class PolicyTest(Request, tag="policy_test"):
    """Which rule a connection would meet that is described here, and why the others do not. Result: PolicyDecision.

    What is left out is not known, and fails every condition about it. Reasons behind the first `after`.
    """

    unit: NameText = ""
    cgroup: PathText = ""
    uid: Number | None = None
    executable: PathText = ""
    protocol: NameText = ""
    local: AddressText = ""
    local_port: Number = 0
    remote: AddressText = ""
    remote_port: Number = 0
    device: NameText = ""
    namespace: NameText = ""
    dscp: Number | None = None
    forwarded: bool = False
    after: Number = 0


class PolicyExplain(Request, tag="policy_explain"):
    """The same of `flow`, or of a socket that is passed as descriptor. Result: PolicyDecision.

    `pid` is who has opened the socket, 0 for the caller; another user's process needs a privileged caller.
    """

    flow: Number = 0
    pid: Number = 0
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
    | Reload
    | PolicyList
    | PolicyTest
    | PolicyExplain
)
