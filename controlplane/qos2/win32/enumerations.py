"""The enumerations and constants of qos2.h, by their names there; members also at module level, as in C."""

from enum import IntEnum
from typing import Final


class QOS_TRAFFIC_TYPE(IntEnum):
    """What the traffic of a flow is; qos2.TrafficType."""

    QOSTrafficTypeBestEffort = 0
    QOSTrafficTypeBackground = 1
    QOSTrafficTypeExcellentEffort = 2
    QOSTrafficTypeAudioVideo = 3
    QOSTrafficTypeVoice = 4
    QOSTrafficTypeControl = 5


class QOS_SET_FLOW(IntEnum):
    """What QOSSetFlow changes."""

    QOSSetTrafficType = 0
    QOSSetOutgoingRate = 1
    QOSSetOutgoingDSCPValue = 2


class QOS_QUERY_FLOW(IntEnum):
    """What QOSQueryFlow reads."""

    QOSQueryFlowFundamentals = 0
    QOSQueryPacketPriority = 1
    QOSQueryOutgoingRate = 2


class QOS_NOTIFY_FLOW(IntEnum):
    """What QOSNotifyFlow waits for; qos2.Condition."""

    QOSNotifyCongested = 0
    QOSNotifyUncongested = 1
    QOSNotifyAvailable = 2


class QOS_SHAPING(IntEnum):
    """What becomes of packets above the rate; qos2.Shaping."""

    QOSShapeOnly = 0
    QOSShapeAndMark = 1
    QOSUseNonConformantMarkings = 2


class QOS_FLOWRATE_REASON(IntEnum):
    """Why a rate is asked for: without effect; qos2.RateReason."""

    QOSFlowRateNotApplicable = 0
    QOSFlowRateContentChange = 1
    QOSFlowRateCongestion = 2
    QOSFlowRateHigherContentEncoding = 3
    QOSFlowRateUserCaused = 4


QOSTrafficTypeBestEffort: Final = QOS_TRAFFIC_TYPE.QOSTrafficTypeBestEffort
QOSTrafficTypeBackground: Final = QOS_TRAFFIC_TYPE.QOSTrafficTypeBackground
QOSTrafficTypeExcellentEffort: Final = QOS_TRAFFIC_TYPE.QOSTrafficTypeExcellentEffort
QOSTrafficTypeAudioVideo: Final = QOS_TRAFFIC_TYPE.QOSTrafficTypeAudioVideo
QOSTrafficTypeVoice: Final = QOS_TRAFFIC_TYPE.QOSTrafficTypeVoice
QOSTrafficTypeControl: Final = QOS_TRAFFIC_TYPE.QOSTrafficTypeControl

QOSSetTrafficType: Final = QOS_SET_FLOW.QOSSetTrafficType
QOSSetOutgoingRate: Final = QOS_SET_FLOW.QOSSetOutgoingRate
QOSSetOutgoingDSCPValue: Final = QOS_SET_FLOW.QOSSetOutgoingDSCPValue

QOSQueryFlowFundamentals: Final = QOS_QUERY_FLOW.QOSQueryFlowFundamentals
QOSQueryPacketPriority: Final = QOS_QUERY_FLOW.QOSQueryPacketPriority
QOSQueryOutgoingRate: Final = QOS_QUERY_FLOW.QOSQueryOutgoingRate

QOSNotifyCongested: Final = QOS_NOTIFY_FLOW.QOSNotifyCongested
QOSNotifyUncongested: Final = QOS_NOTIFY_FLOW.QOSNotifyUncongested
QOSNotifyAvailable: Final = QOS_NOTIFY_FLOW.QOSNotifyAvailable

QOSShapeOnly: Final = QOS_SHAPING.QOSShapeOnly
QOSShapeAndMark: Final = QOS_SHAPING.QOSShapeAndMark
QOSUseNonConformantMarkings: Final = QOS_SHAPING.QOSUseNonConformantMarkings

QOSFlowRateNotApplicable: Final = QOS_FLOWRATE_REASON.QOSFlowRateNotApplicable
QOSFlowRateContentChange: Final = QOS_FLOWRATE_REASON.QOSFlowRateContentChange
QOSFlowRateCongestion: Final = QOS_FLOWRATE_REASON.QOSFlowRateCongestion
QOSFlowRateHigherContentEncoding: Final = QOS_FLOWRATE_REASON.QOSFlowRateHigherContentEncoding
QOSFlowRateUserCaused: Final = QOS_FLOWRATE_REASON.QOSFlowRateUserCaused

#: Flag of QOSQueryFlow: answer by a new measurement.
QOS_QUERYFLOW_FRESH: Final = 0x1
#: Flag of QOSAddSocketToFlow: mark and limit, without looking at the path.
QOS_NON_ADAPTIVE_FLOW: Final = 0x2
#: As Bandwidth of QOS_FLOWRATE_OUTGOING: a small rate of the system's choice, 64 kbit/s here.
QOS_OUTGOING_DEFAULT_MINIMUM_BANDWIDTH: Final = 0xFFFFFFFF
