"""Presets IP_TOS / IPV6_TCLASS of a passed socket, so that the datapath has nothing left to correct.

A speed-up, never the enforcement: writing a packet costs more than the rest of the datapath. The
former value is kept in the socket's storage; the datapath puts it back on packets that no flow speaks
for any more, and a daemon that stops puts it back on the sockets themselves (ADR 0009). ECN bits, and
SO_PRIORITY, which IP_TOS would change, stay as they were.
"""

import socket

from qos2.model import Dscp

_ECN = 0x03
# Plain numbers: this runs for each socket that is added, and the members of enumerations are slow.
_INET, _INET6 = int(socket.AF_INET), int(socket.AF_INET6)
_TOS = (int(socket.IPPROTO_IP), int(socket.IP_TOS))
_TRAFFIC_CLASS = (int(socket.IPPROTO_IPV6), int(socket.IPV6_TCLASS))
_SOCKET, _PRIORITY = int(socket.SOL_SOCKET), int(socket.SO_PRIORITY)


def _options(sock: socket.SocketType) -> tuple[tuple[int, int], ...]:
    if sock.family == _INET:
        return (_TOS,)
    if sock.getsockopt(_TRAFFIC_CLASS[0], socket.IPV6_V6ONLY):
        return (_TRAFFIC_CLASS,)
    return (_TRAFFIC_CLASS, _TOS)


def read_dscp(sock: socket.SocketType) -> Dscp | None:
    """The DSCP that an IPv4 or IPv6 socket asks for by itself; None where its two families differ."""
    found = None
    for level, option in _options(sock):
        value = sock.getsockopt(level, option) >> 2
        if found is not None and value != found:
            return None
        found = value
    return None if found is None else Dscp(found)


def write_dscp(sock: socket.SocketType, dscp: Dscp) -> None:
    """Makes the socket ask for a DSCP. Raises OSError where the kernel refuses."""
    priority = sock.getsockopt(_SOCKET, _PRIORITY)
    for level, option in _options(sock):
        before = sock.getsockopt(level, option)
        if before >> 2 != dscp:
            sock.setsockopt(level, option, dscp << 2 | before & _ECN)
    if sock.getsockopt(_SOCKET, _PRIORITY) != priority:
        sock.setsockopt(_SOCKET, _PRIORITY, priority)
