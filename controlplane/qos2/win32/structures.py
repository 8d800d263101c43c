"""The structures of qos2.h for ctypes, laid out as on Windows.

Microsoft's ABI aligns UINT64 to 8 bytes also on 32-bit x86, where the System V ABI takes 4. The gaps are
fields here, so that sizes and offsets are the same everywhere.
"""

import ctypes

from qos2.model import FlowFundamentals, PacketPriority

#: ULONG of Windows: 32 bits, unlike C's `unsigned long` here.
QOS_FLOWID = ctypes.c_uint32

_RTT_MAX_US = 2**32 - 1


class _Structure(ctypes.Structure):
    """Shows its fields to people, the gaps left out."""

    def __repr__(self) -> str:
        names = [each[0] for each in self._fields_ if not each[0].startswith("_")]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)}' for name in names)})"


class QOS_VERSION(_Structure):
    """The version of the interface; there is 1.0 alone."""

    MajorVersion: int
    MinorVersion: int
    _fields_ = (("MajorVersion", ctypes.c_uint16), ("MinorVersion", ctypes.c_uint16))


class QOS_FLOW_FUNDAMENTALS(_Structure):
    """Estimates of a path: bits/s at IP level, RTT in microseconds. A value counts where its `...Set` is 1."""

    BottleneckBandwidthSet: int
    BottleneckBandwidth: int
    AvailableBandwidthSet: int
    AvailableBandwidth: int
    RTTSet: int
    RTT: int
    _fields_ = (
        ("BottleneckBandwidthSet", ctypes.c_int32),
        ("_gap4", ctypes.c_uint32),
        ("BottleneckBandwidth", ctypes.c_uint64),
        ("AvailableBandwidthSet", ctypes.c_int32),
        ("_gap20", ctypes.c_uint32),
        ("AvailableBandwidth", ctypes.c_uint64),
        ("RTTSet", ctypes.c_int32),
        ("RTT", ctypes.c_uint32),
    )

    @classmethod
    def of(cls, known: FlowFundamentals) -> "QOS_FLOW_FUNDAMENTALS":
        """From the package's own type; a round trip of more than 71 minutes is told as 2**32 - 1 us."""
        return cls(
            BottleneckBandwidthSet=known.bottleneck is not None,
            BottleneckBandwidth=known.bottleneck or 0,
            AvailableBandwidthSet=known.available is not None,
            AvailableBandwidth=known.available or 0,
            RTTSet=known.rtt_us is not None,
            RTT=min(known.rtt_us or 0, _RTT_MAX_US),
        )


class QOS_FLOWRATE_OUTGOING(_Structure):
    """A rate contract: Bandwidth in bits/s at IP level, a QOS_SHAPING and a QOS_FLOWRATE_REASON."""

    Bandwidth: int
    ShapingBehavior: int
    Reason: int
    _fields_ = (
        ("Bandwidth", ctypes.c_uint64),
        ("ShapingBehavior", ctypes.c_int32),
        ("Reason", ctypes.c_int32),
    )


class QOS_PACKET_PRIORITY(_Structure):
    """The markings in force: DSCPs 0..63 and 802.1p priorities 0..7."""

    ConformantDSCPValue: int
    NonConformantDSCPValue: int
    ConformantL2Value: int
    NonConformantL2Value: int
    _fields_ = (
        ("ConformantDSCPValue", ctypes.c_uint32),
        ("NonConformantDSCPValue", ctypes.c_uint32),
        ("ConformantL2Value", ctypes.c_uint32),
        ("NonConformantL2Value", ctypes.c_uint32),
    )

    @classmethod
    def of(cls, priority: PacketPriority) -> "QOS_PACKET_PRIORITY":
        """From the package's own type."""
        return cls(
            priority.conformant_dscp,
            priority.non_conformant_dscp,
            priority.conformant_l2,
            priority.non_conformant_l2,
        )
