"""Presets IP_TOS / IPV6_TCLASS of a passed socket, so that the datapath has nothing left to correct.

A speed-up, never the enforcement: writing a packet costs more than the rest of the datapath. The
former value is kept in the socket's storage; the datapath puts it back on packets that no flow speaks
for any more, and a daemon that stops puts it back on the sockets themselves (ADR 0009). ECN bits, and
SO_PRIORITY, which IP_TOS would change, stay as they were.
"""

import socket

from qos2.model import Dscp

_ECN = 0x03


def _options(sock: socket.socket) -> list[tuple[int, int]]:
    tos = (socket.IPPROTO_IP, socket.IP_TOS)
    if sock.family == socket.AF_INET:
        return [tos]
    traffic_class = (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
    if sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        return [traffic_class]
    return [traffic_class, tos]


def read_dscp(sock: socket.socket) -> Dscp | None:
    """The DSCP that an IPv4 or IPv6 socket asks for by itself; None where its two families differ."""
    values = {sock.getsockopt(level, option) >> 2 for level, option in _options(sock)}
    return Dscp(values.pop()) if len(values) == 1 else None


def write_dscp(sock: socket.socket, dscp: Dscp) -> None:
    """Makes the socket ask for a DSCP. Raises OSError where the kernel refuses."""
    priority = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY)
    for level, option in _options(sock):
        before = sock.getsockopt(level, option)
        if before >> 2 != dscp:
            sock.setsockopt(level, option, dscp << 2 | before & _ECN)
    if sock.getsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY) != priority:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, priority)
