"""qos2.h as ctypes sees it: the structures and numbers of Microsoft's header, written down once more.

A second statement of them on purpose, made from the published pages and not from the project's own code: what
the tests call with must not come from what they test. Offsets and sizes are those of Windows on every processor.
"""

import ctypes
from ctypes import c_int, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p

# QOS_TRAFFIC_TYPE
QOSTrafficTypeBestEffort = 0
QOSTrafficTypeBackground = 1
QOSTrafficTypeExcellentEffort = 2
QOSTrafficTypeAudioVideo = 3
QOSTrafficTypeVoice = 4
QOSTrafficTypeControl = 5

# QOS_SET_FLOW
QOSSetTrafficType = 0
QOSSetOutgoingRate = 1
QOSSetOutgoingDSCPValue = 2

# QOS_QUERY_FLOW
QOSQueryFlowFundamentals = 0
QOSQueryPacketPriority = 1
QOSQueryOutgoingRate = 2

# QOS_NOTIFY_FLOW
QOSNotifyCongested = 0
QOSNotifyUncongested = 1
QOSNotifyAvailable = 2

# QOS_SHAPING
QOSShapeOnly = 0
QOSShapeAndMark = 1
QOSUseNonConformantMarkings = 2

# QOS_FLOWRATE_REASON
QOSFlowRateNotApplicable = 0
QOSFlowRateContentChange = 1
QOSFlowRateCongestion = 2
QOSFlowRateHigherContentEncoding = 3
QOSFlowRateUserCaused = 4

QOS_QUERYFLOW_FRESH = 0x1
QOS_NON_ADAPTIVE_FLOW = 0x2

# winerror.h
ERROR_ACCESS_DENIED = 5
ERROR_INVALID_HANDLE = 6
ERROR_NOT_SUPPORTED = 50
ERROR_NETWORK_BUSY = 54
ERROR_INVALID_PARAMETER = 87
ERROR_INSUFFICIENT_BUFFER = 122
ERROR_ALREADY_EXISTS = 183
ERROR_NO_DATA = 232
ERROR_OPERATION_ABORTED = 995
ERROR_IO_INCOMPLETE = 996
ERROR_IO_PENDING = 997
ERROR_SERVICE_DEPENDENCY_FAIL = 1068
ERROR_DEVICE_REINITIALIZATION_NEEDED = 1164
ERROR_NOT_FOUND = 1168

#: OVERLAPPED.Internal while the call is under way (ntstatus.h).
STATUS_PENDING = 0x103


class QOS_VERSION(ctypes.Structure):
    _fields_ = (("MajorVersion", c_uint16), ("MinorVersion", c_uint16))


class QOS_FLOWRATE_OUTGOING(ctypes.Structure):
    """A rate contract: Bandwidth in bits/s at IP level."""

    _fields_ = (("Bandwidth", c_uint64), ("ShapingBehavior", c_int), ("Reason", c_int))


class QOS_PACKET_PRIORITY(ctypes.Structure):
    _fields_ = (
        ("ConformantDSCPValue", c_uint32),
        ("NonConformantDSCPValue", c_uint32),
        ("ConformantL2Value", c_uint32),
        ("NonConformantL2Value", c_uint32),
    )


class QOS_FLOW_FUNDAMENTALS(ctypes.Structure):
    """Bandwidths in bits/s, RTT in microseconds, each valid only where its Set is not 0."""

    # The paddings are spelt out: an i386 compiler for Linux would leave them away.
    _fields_ = (
        ("BottleneckBandwidthSet", c_int),
        ("_padding0", c_uint32),
        ("BottleneckBandwidth", c_uint64),
        ("AvailableBandwidthSet", c_int),
        ("_padding1", c_uint32),
        ("AvailableBandwidth", c_uint64),
        ("RTTSet", c_int),
        ("RTT", c_uint32),
    )


class NativeOverlapped(ctypes.Structure):
    """OVERLAPPED: hEvent carries an eventfd."""

    _fields_ = (
        ("Internal", c_size_t),
        ("InternalHigh", c_size_t),
        ("Offset", c_uint32),
        ("OffsetHigh", c_uint32),
        ("hEvent", c_void_p),
    )


#: The eleven calls and their companions: return type, parameter types. A SOCKET is an int here.
PROTOTYPES = {
    "QOSCreateHandle": (c_int, (c_void_p, c_void_p)),
    "QOSCloseHandle": (c_int, (c_void_p,)),
    "QOSStartTrackingClient": (c_int, (c_void_p, c_void_p, c_uint32)),
    "QOSStopTrackingClient": (c_int, (c_void_p, c_void_p, c_uint32)),
    "QOSEnumerateFlows": (c_int, (c_void_p, c_void_p, c_void_p)),
    "QOSAddSocketToFlow": (c_int, (c_void_p, c_int, c_void_p, c_int, c_uint32, c_void_p)),
    "QOSRemoveSocketFromFlow": (c_int, (c_void_p, c_int, c_uint32, c_uint32)),
    "QOSSetFlow": (c_int, (c_void_p, c_uint32, c_int, c_uint32, c_void_p, c_uint32, c_void_p)),
    "QOSQueryFlow": (c_int, (c_void_p, c_uint32, c_int, c_void_p, c_void_p, c_uint32, c_void_p)),
    "QOSNotifyFlow": (c_int, (c_void_p, c_uint32, c_int, c_void_p, c_void_p, c_uint32, c_void_p)),
    "QOSCancel": (c_int, (c_void_p, c_void_p)),
    "GetOverlappedResult": (c_int, (c_void_p, c_void_p, c_void_p, c_int)),
    "GetLastError": (c_uint32, ()),
    "SetLastError": (None, (c_uint32,)),
    "qos2_last_error_message": (ctypes.c_char_p, ()),
}
