"""The inline functions of qos2.h: between a rate of payload and the rate at IP level that a contract means.

They reckon in double precision as the header does, so that both give the same number for the same input.
"""

import math
import socket

from qos2.errors import InvalidRequest
from qos2.win32.errors import windows

_IPV4_BYTES = 20  # RFC 791, without options
_IPV6_BYTES = 40  # RFC 8200
_TCP_BYTES = 20  # RFC 9293, without options
_UDP_BYTES = 8  # RFC 768


def QOS_HEADER_OVERHEAD(addressFamily: int, protocol: int) -> int:
    """Bytes of headers in a packet: whatever is not AF_INET is IPv6, whatever is not IPPROTO_TCP is UDP."""
    network = _IPV4_BYTES if addressFamily == socket.AF_INET else _IPV6_BYTES
    return network + (_TCP_BYTES if protocol == socket.IPPROTO_TCP else _UDP_BYTES)


@windows
def QOS_ADD_OVERHEAD(addressFamily: int, protocol: int, targetDataPacketSize: int, dataRate: int) -> int:
    """The rate at IP level of `dataRate` bits/s of payload in packets of `targetDataPacketSize` bytes of payload.

    Raises ERROR_INVALID_PARAMETER for packets without payload.
    """
    size, overhead = _size(targetDataPacketSize), QOS_HEADER_OVERHEAD(addressFamily, protocol)
    return dataRate + math.floor(overhead / size * dataRate)


@windows
def QOS_SUBTRACT_OVERHEAD(addressFamily: int, protocol: int, targetDataPacketSize: int, dataRate: int) -> int:
    """The bits/s of payload in `dataRate` bits/s at IP level: the way back of QOS_ADD_OVERHEAD, up to rounding."""
    size, overhead = _size(targetDataPacketSize), QOS_HEADER_OVERHEAD(addressFamily, protocol)
    return dataRate - math.floor(overhead / (size + overhead) * dataRate)


def _size(payload_bytes: int) -> int:
    if payload_bytes <= 0:
        raise InvalidRequest(f"packets of {payload_bytes} bytes of payload", "give the usual size of a packet's data")
    return payload_bytes
