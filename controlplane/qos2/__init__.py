"""QoS2 for Linux, the client's face: `with qos2.Handle() as qos: flow = qos.add_socket(sock, TrafficType.VOICE)`.

Everything an application needs is named here, and nothing of the daemon is imported: an application that
marks its sockets loads msgspec and the standard library.
"""

from qos2.channel import Operation as Operation
from qos2.client import Flow as Flow
from qos2.client import Handle as Handle
from qos2.errors import AlreadyExists as AlreadyExists
from qos2.errors import Cancelled as Cancelled
from qos2.errors import ConfigError as ConfigError
from qos2.errors import DatapathError as DatapathError
from qos2.errors import DeniedByPolicy as DeniedByPolicy
from qos2.errors import HostUnreachable as HostUnreachable
from qos2.errors import InternalError as InternalError
from qos2.errors import InvalidHandle as InvalidHandle
from qos2.errors import InvalidRequest as InvalidRequest
from qos2.errors import LimitExceeded as LimitExceeded
from qos2.errors import NetworkBusy as NetworkBusy
from qos2.errors import NoData as NoData
from qos2.errors import NoSuchFlow as NoSuchFlow
from qos2.errors import NotAdaptive as NotAdaptive
from qos2.errors import NotPermitted as NotPermitted
from qos2.errors import NotSupported as NotSupported
from qos2.errors import ProtocolError as ProtocolError
from qos2.errors import QosError as QosError
from qos2.errors import Retry as Retry
from qos2.errors import ServiceLost as ServiceLost
from qos2.errors import ServiceUnavailable as ServiceUnavailable
from qos2.errors import TimedOut as TimedOut
from qos2.model import ANY_DESTINATION as ANY_DESTINATION
from qos2.model import Bandwidth as Bandwidth
from qos2.model import Cause as Cause
from qos2.model import Condition as Condition
from qos2.model import Destination as Destination
from qos2.model import DeviceStatus as DeviceStatus
from qos2.model import Dscp as Dscp
from qos2.model import FlowFundamentals as FlowFundamentals
from qos2.model import FlowId as FlowId
from qos2.model import FlowRate as FlowRate
from qos2.model import FlowState as FlowState
from qos2.model import FlowStats as FlowStats
from qos2.model import Method as Method
from qos2.model import PacketPriority as PacketPriority
from qos2.model import Quality as Quality
from qos2.model import RateReason as RateReason
from qos2.model import Shaper as Shaper
from qos2.model import Shaping as Shaping
from qos2.model import Statement as Statement
from qos2.model import TrafficType as TrafficType
from qos2.wire.protocol import Explanation as Explanation
from qos2.wire.protocol import FlowDetails as FlowDetails
from qos2.wire.protocol import PolicyDecision as PolicyDecision
from qos2.wire.protocol import PolicyExplain as PolicyExplain
from qos2.wire.protocol import PolicyTest as PolicyTest
from qos2.wire.protocol import Reloaded as Reloaded
from qos2.wire.protocol import RuleDetails as RuleDetails
from qos2.wire.protocol import RuleReason as RuleReason
from qos2.wire.protocol import StateChange as StateChange
from qos2.wire.protocol import StatusReport as StatusReport

__all__ = [
    "ANY_DESTINATION",
    "AlreadyExists",
    "Bandwidth",
    "Cancelled",
    "Cause",
    "Condition",
    "ConfigError",
    "DatapathError",
    "DeniedByPolicy",
    "Destination",
    "DeviceStatus",
    "Dscp",
    "Explanation",
    "Flow",
    "FlowDetails",
    "FlowFundamentals",
    "FlowId",
    "FlowRate",
    "FlowState",
    "FlowStats",
    "Handle",
    "HostUnreachable",
    "InternalError",
    "InvalidHandle",
    "InvalidRequest",
    "LimitExceeded",
    "Method",
    "NetworkBusy",
    "NoData",
    "NoSuchFlow",
    "NotAdaptive",
    "NotPermitted",
    "NotSupported",
    "Operation",
    "PacketPriority",
    "PolicyDecision",
    "PolicyExplain",
    "PolicyTest",
    "ProtocolError",
    "QosError",
    "Quality",
    "RateReason",
    "Reloaded",
    "Retry",
    "RuleDetails",
    "RuleReason",
    "ServiceLost",
    "ServiceUnavailable",
    "Shaper",
    "Shaping",
    "StateChange",
    "Statement",
    "StatusReport",
    "TimedOut",
    "TrafficType",
]
