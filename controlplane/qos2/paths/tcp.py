"""What only the kernel's TCP_INFO knows of a connection, asked of sock_diag(7) without holding its descriptor.

One message per socket, by tuple and cookie: a socket that is gone, or whose tuple another one has by now, is not
found. Packed and parsed here, in bulk: 2 us each, where a library that decodes every attribute takes 70.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from qos2.errors import QosError
from qos2.model import Destination

# linux/netlink.h, linux/sock_diag.h, linux/inet_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_INET_DIAG_INFO = 2
_ALL_STATES = 0xFFFFFFFF

_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr
_ATTRIBUTE = struct.Struct("=HH")  # struct nlattr
_REQUEST = struct.Struct("=BBBxI")  # struct inet_diag_req_v2 before its id
_PORTS = struct.Struct("!HH")  # struct inet_diag_sockid: ports, addresses, device, cookie
_ANY_DEVICE_AND_COOKIE = struct.Struct("=IQ")
_ERROR = struct.Struct("=i")
#: struct inet_diag_msg.
_ANSWER_BYTES = 72

# struct tcp_info of linux/tcp.h as of Linux 4.19: newer kernels add behind it.
_TCP_INFO = struct.Struct("=B6xB8xI8xI36xI8xI16xI16xQ8xI8xI8xQQQQIIQQ")
assert _TCP_INFO.size == 216
_APP_LIMITED = 1 if sys.byteorder == "little" else 0x80

#: So many answers surely fit the socket's receive buffer.
_AT_ONCE = 64
_RECEIVE_BYTES = 4096
_ADDRESS_BYTES = 16


class TcpSocket(NamedTuple):
    """A connected TCP socket; an IPv4 peer of a dual-stack socket is IPv4."""

    cookie: int
    netns_cookie: int
    local: Destination
    peer: Destination


class TcpInfo(NamedTuple):
    """Of struct tcp_info (tcp(7)); times and bytes are since the connection began."""

    state: int
    app_limited: bool  #: the last delivery sample was taken while the application sent less than it might
    mss: int  #: bytes of payload in a full segment
    sacked: int  #: segments that have arrived behind a hole, in which case bytes_acked stands still (RFC 2018)
    rtt_us: int
    cwnd: int  #: segments
    retransmits: int  #: segments
    bytes_acked: int
    segs_out: int
    min_rtt_us: int
    delivery_rate: int  #: bits/s of payload, as the kernel last measured, which may have been long ago
    busy_us: int  #: data was under way or waiting
    rwnd_limited_us: int  #: the receiver's window held it back
    sndbuf_limited_us: int  #: the socket's own buffer did
    delivered: int  #: segments
    delivered_ce: int
    bytes_sent: int
    bytes_retrans: int


class TcpDiagnosis:
    """Sockets of any network namespace that `enter` can enter, by a netlink socket in each, held until `forget`."""

    def __init__(self, enter: Callable[[int, Callable[[], socket.socket]], socket.socket]) -> None:
        """`enter(netns_cookie, work)` does the work in that namespace. Raises QosError, as `read` then does."""
        self._enter = enter
        self._sockets: dict[int, socket.socket] = {}
        self._sequence = 0
        self.unanswered = 0  #: questions that the kernel did not answer at all

    def read(self, sockets: Sequence[TcpSocket]) -> dict[int, TcpInfo]:
        """By cookie; those that are gone are missing. Raises QosError for a namespace that cannot be entered."""
        found: dict[int, TcpInfo] = {}
        by_namespace: dict[int, list[TcpSocket]] = {}
        for each in sockets:
            by_namespace.setdefault(each.netns_cookie, []).append(each)
        for cookie, there in by_namespace.items():
            for begin in range(0, len(there), _AT_ONCE):
                found |= self._ask(self._socket(cookie), there[begin : begin + _AT_ONCE])
        return found

    def forget(self, netns_cookie: int) -> None:
        """Let go of a namespace: a socket in it would keep it alive."""
        held = self._sockets.pop(netns_cookie, None)
        if held is not None:
            held.close()

    def close(self) -> None:
        for cookie in tuple(self._sockets):
            self.forget(cookie)

    def _socket(self, netns_cookie: int) -> socket.socket:
        if netns_cookie not in self._sockets:
            self._sockets[netns_cookie] = self._enter(netns_cookie, _open)
        return self._sockets[netns_cookie]

    def _ask(self, diag: socket.socket, sockets: Sequence[TcpSocket]) -> dict[int, TcpInfo]:
        """One send for all; the kernel has answered all of them when it returns."""
        first = self._sequence + 1
        self._sequence += len(sockets)
        asked = b"".join(_question(first + number, each) for number, each in enumerate(sockets))
        found: dict[int, TcpInfo] = {}
        unheard = len(sockets)
        try:
            diag.send(asked)
            while unheard:
                for sequence, info in _answers(memoryview(diag.recv(_RECEIVE_BYTES))):
                    number = (sequence - first) & 0xFFFFFFFF
                    if number < len(sockets):
                        unheard -= 1
                        if info is not None:
                            found[sockets[number].cookie] = info
        except BlockingIOError:
            self.unanswered += unheard
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise QosError(f"sock_diag: {error.strerror}", "the kernel needs CONFIG_INET_DIAG") from error
            self.unanswered += unheard
        return found


def _open() -> socket.socket:
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    return socket.socket(socket.AF_NETLINK, kind, _NETLINK_SOCK_DIAG)


def _question(sequence: int, each: TcpSocket) -> bytes:
    assert each.local.address is not None
    assert each.peer.address is not None
    family = socket.AF_INET if each.peer.address.version == 4 else socket.AF_INET6
    body = (
        _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INET_DIAG_INFO - 1), _ALL_STATES)
        + _PORTS.pack(each.local.port, each.peer.port)
        + each.local.address.packed.ljust(_ADDRESS_BYTES, b"\0")
        + each.peer.address.packed.ljust(_ADDRESS_BYTES, b"\0")
        + _ANY_DEVICE_AND_COOKIE.pack(0, each.cookie)
    )
    return _HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, sequence & 0xFFFFFFFF, 0) + body


def _answers(datagram: memoryview) -> Iterator[tuple[int, TcpInfo | None]]:
    """Sequence number and content of each message; None: there is no such socket."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, _flags, sequence, _port = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size:
            return
        if kind == _NLMSG_ERROR:
            yield sequence, None
        elif kind == _SOCK_DIAG_BY_FAMILY:
            yield sequence, _info(datagram[at + _HEADER.size + _ANSWER_BYTES : at + length])
        at += (length + 3) & ~3


def _info(attributes: memoryview) -> TcpInfo | None:
    """From the attributes of an answer; None where the kernel told none, or too little of it."""
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if length < _ATTRIBUTE.size:
            return None
        if kind == _INET_DIAG_INFO and length - _ATTRIBUTE.size >= _TCP_INFO.size:
            state, limited, mss, sacked, rtt_us, cwnd, retransmits, acked, out, min_rtt_us, rate, *rest = (
                _TCP_INFO.unpack_from(attributes, at + _ATTRIBUTE.size)
            )
            return TcpInfo(
                state,
                limited & _APP_LIMITED != 0,
                mss,
                sacked,
                rtt_us,
                cwnd,
                retransmits,
                acked,
                out,
                min_rtt_us,
                rate * 8,
                *rest,
            )
        at += (length + 3) & ~3
    return None
