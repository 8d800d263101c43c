"""The QoS2 interface of Windows by its own names: the eleven calls, their enumerations, structures and errors.

    import qos2.win32 as qwave

    handle = qwave.QOSCreateHandle()
    flow = qwave.QOSAddSocketToFlow(handle, sock, peer, qwave.QOSTrafficTypeVoice, qwave.QOS_NON_ADAPTIVE_FLOW)
    qwave.QOSRemoveSocketFromFlow(handle, None, flow)
    qwave.QOSCloseHandle(handle)

For programs that come from Windows, and for people who know it from there. A program that is new on Linux
has it shorter with qos2.Handle and qos2.Flow. What is done differently here is in docs/api.md.
"""

from qos2.win32.calls import GetOverlappedResult as GetOverlappedResult
from qos2.win32.calls import QOSAddSocketToFlow as QOSAddSocketToFlow
from qos2.win32.calls import QOSCancel as QOSCancel
from qos2.win32.calls import QOSCloseHandle as QOSCloseHandle
from qos2.win32.calls import QOSCreateHandle as QOSCreateHandle
from qos2.win32.calls import QOSEnumerateFlows as QOSEnumerateFlows
from qos2.win32.calls import QOSNotifyFlow as QOSNotifyFlow
from qos2.win32.calls import QOSQueryFlow as QOSQueryFlow
from qos2.win32.calls import QOSRemoveSocketFromFlow as QOSRemoveSocketFromFlow
from qos2.win32.calls import QOSSetFlow as QOSSetFlow
from qos2.win32.calls import QOSStartTrackingClient as QOSStartTrackingClient
from qos2.win32.calls import QOSStopTrackingClient as QOSStopTrackingClient
from qos2.win32.enumerations import QOS_FLOWRATE_REASON as QOS_FLOWRATE_REASON
from qos2.win32.enumerations import QOS_NON_ADAPTIVE_FLOW as QOS_NON_ADAPTIVE_FLOW
from qos2.win32.enumerations import QOS_NOTIFY_FLOW as QOS_NOTIFY_FLOW
from qos2.win32.enumerations import QOS_OUTGOING_DEFAULT_MINIMUM_BANDWIDTH as QOS_OUTGOING_DEFAULT_MINIMUM_BANDWIDTH
from qos2.win32.enumerations import QOS_QUERY_FLOW as QOS_QUERY_FLOW
from qos2.win32.enumerations import QOS_QUERYFLOW_FRESH as QOS_QUERYFLOW_FRESH
from qos2.win32.enumerations import QOS_SET_FLOW as QOS_SET_FLOW
from qos2.win32.enumerations import QOS_SHAPING as QOS_SHAPING
from qos2.win32.enumerations import QOS_TRAFFIC_TYPE as QOS_TRAFFIC_TYPE
from qos2.win32.enumerations import QOSFlowRateCongestion as QOSFlowRateCongestion
from qos2.win32.enumerations import QOSFlowRateContentChange as QOSFlowRateContentChange
from qos2.win32.enumerations import QOSFlowRateHigherContentEncoding as QOSFlowRateHigherContentEncoding
from qos2.win32.enumerations import QOSFlowRateNotApplicable as QOSFlowRateNotApplicable
from qos2.win32.enumerations import QOSFlowRateUserCaused as QOSFlowRateUserCaused
from qos2.win32.enumerations import QOSNotifyAvailable as QOSNotifyAvailable
from qos2.win32.enumerations import QOSNotifyCongested as QOSNotifyCongested
from qos2.win32.enumerations import QOSNotifyUncongested as QOSNotifyUncongested
from qos2.win32.enumerations import QOSQueryFlowFundamentals as QOSQueryFlowFundamentals
from qos2.win32.enumerations import QOSQueryOutgoingRate as QOSQueryOutgoingRate
from qos2.win32.enumerations import QOSQueryPacketPriority as QOSQueryPacketPriority
from qos2.win32.enumerations import QOSSetOutgoingDSCPValue as QOSSetOutgoingDSCPValue
from qos2.win32.enumerations import QOSSetOutgoingRate as QOSSetOutgoingRate
from qos2.win32.enumerations import QOSSetTrafficType as QOSSetTrafficType
from qos2.win32.enumerations import QOSShapeAndMark as QOSShapeAndMark
from qos2.win32.enumerations import QOSShapeOnly as QOSShapeOnly
from qos2.win32.enumerations import QOSTrafficTypeAudioVideo as QOSTrafficTypeAudioVideo
from qos2.win32.enumerations import QOSTrafficTypeBackground as QOSTrafficTypeBackground
from qos2.win32.enumerations import QOSTrafficTypeBestEffort as QOSTrafficTypeBestEffort
from qos2.win32.enumerations import QOSTrafficTypeControl as QOSTrafficTypeControl
from qos2.win32.enumerations import QOSTrafficTypeExcellentEffort as QOSTrafficTypeExcellentEffort
from qos2.win32.enumerations import QOSTrafficTypeVoice as QOSTrafficTypeVoice
from qos2.win32.enumerations import QOSUseNonConformantMarkings as QOSUseNonConformantMarkings
from qos2.win32.errors import ERROR_ACCESS_DENIED as ERROR_ACCESS_DENIED
from qos2.win32.errors import ERROR_ACCESS_DISABLED_BY_POLICY as ERROR_ACCESS_DISABLED_BY_POLICY
from qos2.win32.errors import ERROR_ADAP_HDW_ERR as ERROR_ADAP_HDW_ERR
from qos2.win32.errors import ERROR_ALREADY_EXISTS as ERROR_ALREADY_EXISTS
from qos2.win32.errors import ERROR_BAD_NET_NAME as ERROR_BAD_NET_NAME
from qos2.win32.errors import ERROR_BUSY as ERROR_BUSY
from qos2.win32.errors import ERROR_CONNECTION_REFUSED as ERROR_CONNECTION_REFUSED
from qos2.win32.errors import ERROR_DEVICE_REINITIALIZATION_NEEDED as ERROR_DEVICE_REINITIALIZATION_NEEDED
from qos2.win32.errors import ERROR_GEN_FAILURE as ERROR_GEN_FAILURE
from qos2.win32.errors import ERROR_HOST_UNREACHABLE as ERROR_HOST_UNREACHABLE
from qos2.win32.errors import ERROR_INSUFFICIENT_BUFFER as ERROR_INSUFFICIENT_BUFFER
from qos2.win32.errors import ERROR_INVALID_HANDLE as ERROR_INVALID_HANDLE
from qos2.win32.errors import ERROR_INVALID_PARAMETER as ERROR_INVALID_PARAMETER
from qos2.win32.errors import ERROR_IO_DEVICE as ERROR_IO_DEVICE
from qos2.win32.errors import ERROR_IO_INCOMPLETE as ERROR_IO_INCOMPLETE
from qos2.win32.errors import ERROR_IO_PENDING as ERROR_IO_PENDING
from qos2.win32.errors import ERROR_NAMES as ERROR_NAMES
from qos2.win32.errors import ERROR_NETWORK_BUSY as ERROR_NETWORK_BUSY
from qos2.win32.errors import ERROR_NO_DATA as ERROR_NO_DATA
from qos2.win32.errors import ERROR_NO_SYSTEM_RESOURCES as ERROR_NO_SYSTEM_RESOURCES
from qos2.win32.errors import ERROR_NOT_ENOUGH_MEMORY as ERROR_NOT_ENOUGH_MEMORY
from qos2.win32.errors import ERROR_NOT_FOUND as ERROR_NOT_FOUND
from qos2.win32.errors import ERROR_NOT_SUPPORTED as ERROR_NOT_SUPPORTED
from qos2.win32.errors import ERROR_OPERATION_ABORTED as ERROR_OPERATION_ABORTED
from qos2.win32.errors import ERROR_RESOURCE_DISABLED as ERROR_RESOURCE_DISABLED
from qos2.win32.errors import ERROR_RETRY as ERROR_RETRY
from qos2.win32.errors import ERROR_SERVICE_ALREADY_RUNNING as ERROR_SERVICE_ALREADY_RUNNING
from qos2.win32.errors import ERROR_SERVICE_DEPENDENCY_FAIL as ERROR_SERVICE_DEPENDENCY_FAIL
from qos2.win32.errors import ERROR_SUCCESS as ERROR_SUCCESS
from qos2.win32.errors import ERROR_SYSTEM_POWERSTATE_COMPLEX_TRANSITION as ERROR_SYSTEM_POWERSTATE_COMPLEX_TRANSITION
from qos2.win32.errors import ERROR_SYSTEM_POWERSTATE_TRANSITION as ERROR_SYSTEM_POWERSTATE_TRANSITION
from qos2.win32.errors import ERROR_TIMEOUT as ERROR_TIMEOUT
from qos2.win32.errors import ERROR_UNEXP_NET_ERR as ERROR_UNEXP_NET_ERR
from qos2.win32.errors import WinError as WinError
from qos2.win32.handle import HANDLE as HANDLE
from qos2.win32.overhead import QOS_ADD_OVERHEAD as QOS_ADD_OVERHEAD
from qos2.win32.overhead import QOS_HEADER_OVERHEAD as QOS_HEADER_OVERHEAD
from qos2.win32.overhead import QOS_SUBTRACT_OVERHEAD as QOS_SUBTRACT_OVERHEAD
from qos2.win32.overlapped import OVERLAPPED as OVERLAPPED
from qos2.win32.overlapped import STATUS_PENDING as STATUS_PENDING
from qos2.win32.structures import QOS_FLOW_FUNDAMENTALS as QOS_FLOW_FUNDAMENTALS
from qos2.win32.structures import QOS_FLOWID as QOS_FLOWID
from qos2.win32.structures import QOS_FLOWRATE_OUTGOING as QOS_FLOWRATE_OUTGOING
from qos2.win32.structures import QOS_PACKET_PRIORITY as QOS_PACKET_PRIORITY
from qos2.win32.structures import QOS_VERSION as QOS_VERSION

__all__ = [
    "ERROR_ACCESS_DENIED",
    "ERROR_ACCESS_DISABLED_BY_POLICY",
    "ERROR_ADAP_HDW_ERR",
    "ERROR_ALREADY_EXISTS",
    "ERROR_BAD_NET_NAME",
    "ERROR_BUSY",
    "ERROR_CONNECTION_REFUSED",
    "ERROR_DEVICE_REINITIALIZATION_NEEDED",
    "ERROR_GEN_FAILURE",
    "ERROR_HOST_UNREACHABLE",
    "ERROR_INSUFFICIENT_BUFFER",
    "ERROR_INVALID_HANDLE",
    "ERROR_INVALID_PARAMETER",
    "ERROR_IO_DEVICE",
    "ERROR_IO_INCOMPLETE",
    "ERROR_IO_PENDING",
    "ERROR_NAMES",
    "ERROR_NETWORK_BUSY",
    "ERROR_NOT_ENOUGH_MEMORY",
    "ERROR_NOT_FOUND",
    "ERROR_NOT_SUPPORTED",
    "ERROR_NO_DATA",
    "ERROR_NO_SYSTEM_RESOURCES",
    "ERROR_OPERATION_ABORTED",
    "ERROR_RESOURCE_DISABLED",
    "ERROR_RETRY",
    "ERROR_SERVICE_ALREADY_RUNNING",
    "ERROR_SERVICE_DEPENDENCY_FAIL",
    "ERROR_SUCCESS",
    "ERROR_SYSTEM_POWERSTATE_COMPLEX_TRANSITION",
    "ERROR_SYSTEM_POWERSTATE_TRANSITION",
    "ERROR_TIMEOUT",
    "ERROR_UNEXP_NET_ERR",
    "HANDLE",
    "OVERLAPPED",
    "QOS_ADD_OVERHEAD",
    "QOS_FLOWID",
    "QOS_FLOWRATE_OUTGOING",
    "QOS_FLOWRATE_REASON",
    "QOS_FLOW_FUNDAMENTALS",
    "QOS_HEADER_OVERHEAD",
    "QOS_NON_ADAPTIVE_FLOW",
    "QOS_NOTIFY_FLOW",
    "QOS_OUTGOING_DEFAULT_MINIMUM_BANDWIDTH",
    "QOS_PACKET_PRIORITY",
    "QOS_QUERYFLOW_FRESH",
    "QOS_QUERY_FLOW",
    "QOS_SET_FLOW",
    "QOS_SHAPING",
    "QOS_SUBTRACT_OVERHEAD",
    "QOS_TRAFFIC_TYPE",
    "QOS_VERSION",
    "STATUS_PENDING",
    "GetOverlappedResult",
    "QOSAddSocketToFlow",
    "QOSCancel",
    "QOSCloseHandle",
    "QOSCreateHandle",
    "QOSEnumerateFlows",
    "QOSFlowRateCongestion",
    "QOSFlowRateContentChange",
    "QOSFlowRateHigherContentEncoding",
    "QOSFlowRateNotApplicable",
    "QOSFlowRateUserCaused",
    "QOSNotifyAvailable",
    "QOSNotifyCongested",
    "QOSNotifyFlow",
    "QOSNotifyUncongested",
    "QOSQueryFlow",
    "QOSQueryFlowFundamentals",
    "QOSQueryOutgoingRate",
    "QOSQueryPacketPriority",
    "QOSRemoveSocketFromFlow",
    "QOSSetFlow",
    "QOSSetOutgoingDSCPValue",
    "QOSSetOutgoingRate",
    "QOSSetTrafficType",
    "QOSShapeAndMark",
    "QOSShapeOnly",
    "QOSStartTrackingClient",
    "QOSStopTrackingClient",
    "QOSTrafficTypeAudioVideo",
    "QOSTrafficTypeBackground",
    "QOSTrafficTypeBestEffort",
    "QOSTrafficTypeControl",
    "QOSTrafficTypeExcellentEffort",
    "QOSTrafficTypeVoice",
    "QOSUseNonConformantMarkings",
    "WinError",
]
