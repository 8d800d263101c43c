"""A STAMP reflector: answers test packets (RFC 8762) at once, and no more than it was asked.

Replies are never longer than requests and leave from the address that was asked, with the DSCP of the request, so that
the way back is the same class. Only sources in the allowed networks are answered, each at a limited rate. A reply is
itself a packet that a reflector would answer, and two of them would never stop: replies are not answered, and nothing
is sent to the ports of services, the small ones (echo, chargen) least of all. What went to many hosts at once
(broadcast, multicast) is not answered either, for all of them together would send more than was asked.
"""

import errno
import logging
import socket
import struct
import time
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

from qos2.errors import ConfigError
from qos2.wire import stamp

_LOG = logging.getLogger(__name__)

Network = IPv4Network | IPv6Network

#: The networks of links, and the private ones: what is usually one's own (RFC 1918, 3927, 4193, 4291), and loopback.
LOCAL_NETWORKS = tuple(
    ip_network(each)
    for each in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16"),
        *("::1/128", "fe80::/10", "fc00::/7"),
    )
)
#: Packets of one source per second on average, and at once: some trains of 20 follow each other quickly.
PACKETS_PER_S = 1_000.0
PACKETS_AT_ONCE = 200.0
#: Sources remembered; the one heard of least recently is forgotten first.
MOST_SOURCES = 4_096
#: Below this, ports belong to services.
FIRST_CLIENT_PORT = 1_024

# asm-generic/socket.h, linux/in.h, linux/in6.h
_SO_TIMESTAMPNS = 35
_IP_PKTINFO, _IP_RECVTTL, _IP_RECVTOS, _IP_TTL = 8, 12, 13, 2
_IPV6_HOPLIMIT = 52
_IPV6_MULTICAST = 0xFF  # the first byte (RFC 4291, 2.7)
_TIMESPEC = struct.Struct("=qq")
_IN_PKTINFO = struct.Struct("=I4s4s")  # device, source for the reply, destination of the packet
_NUMBER = struct.Struct("=i")
_ANCILLARY = 256
_RECEIVE_BYTES = 65_535
#: Packets taken in one turn before time is looked at again.
_TURN = 256


@dataclass(slots=True)
class _Source:
    """The rate of one address: what it may send now, as of `at_s`."""

    tokens: float
    at_s: float


class Reflector:
    """One socket at one address and port. `counters` by name: reflected, and why the others were not."""

    def __init__(
        self,
        address: IPv4Address | IPv6Address,
        port: int = stamp.PORT,
        *,
        allowed: Sequence[Network] = LOCAL_NETWORKS,
        packets_per_s: float = PACKETS_PER_S,
    ) -> None:
        """Port 0 lets the kernel choose. Raises ConfigError where it cannot listen there."""
        self.address = address
        self._allowed = tuple(allowed)
        self._rate = packets_per_s
        self._sources: OrderedDict[str, _Source] = OrderedDict()
        self.counters: Counter[str] = Counter()
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self._prepare(address)
            self._socket.bind((str(address), port))
        except OSError as error:
            self._socket.close()
            hint = (
                "ports below 1024 need CAP_NET_BIND_SERVICE" if error.errno == errno.EACCES else "choose another --port"
            )
            raise ConfigError(f"cannot reflect at {address} port {port}: {error.strerror}", hint) from error
        self.port: int = self._socket.getsockname()[1]

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def reflect(self) -> None:
        """Answer what has arrived, as many packets as one turn allows."""
        now_s = time.monotonic()
        for _ in range(_TURN):
            try:
                data, ancillary, flags, source = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY)
            except BlockingIOError:
                return
            except OSError as error:
                # What an earlier reply met (a port that is closed by now): it concerns no other.
                self.counters["unreachable"] += 1
                _LOG.debug("a reply came to nothing: %s", error)
                continue
            result = "too_long" if flags & socket.MSG_TRUNC else self._answer(data, ancillary, source, now_s)
            self.counters[result] += 1

    def _prepare(self, address: IPv4Address | IPv6Address) -> None:
        option = self._socket.setsockopt
        option(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        option(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        if address.version == 6:
            # IPv4 in a socket of its own, where it is listened to at all.
            option(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            for name in (socket.IPV6_RECVPKTINFO, socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPLIMIT):
                option(socket.IPPROTO_IPV6, name, 1)
        else:
            for number in (_IP_PKTINFO, _IP_RECVTTL, _IP_RECVTOS):
                option(socket.IPPROTO_IP, number, 1)

    def _answer(self, data: bytes, ancillary: list[tuple[int, int, bytes]], source: Any, now_s: float) -> str:
        """What became of one packet, by name."""
        if source[1] < FIRST_CLIENT_PORT:
            return "service_port"
        if stamp.is_reflected(data):
            return "is_reply"
        if not self._is_allowed(source[0]):
            return "not_allowed"
        if not self._has_tokens(source[0], now_s):
            return "too_many"
        reached_ns, ttl, tos, info = _read(ancillary)
        if not info:
            return "not_unicast"
        reply = stamp.reflect(
            data,
            reached_ns=reached_ns or time.time_ns(),
            returned_ns=time.time_ns(),
            ttl=ttl,
            dscp=tos >> 2,
            ecn=tos & 3,
            at_arrival=reached_ns != 0,
        )
        if reply is None:
            return "too_short"
        try:
            self._socket.sendmsg([reply], [*info, _tos(tos & ~3, self._socket.family)], 0, source)
        except OSError as error:
            _LOG.debug("a reply to %s cannot be sent: %s", source[0], error)
            return "not_sent"
        return "reflected"

    def _is_allowed(self, text: str) -> bool:
        address = ip_address(text.partition("%")[0])
        return any(address in network for network in self._allowed if network.version == address.version)

    def _has_tokens(self, address: str, now_s: float) -> bool:
        source = self._sources.get(address)
        if source is None:
            source = self._sources[address] = _Source(PACKETS_AT_ONCE, now_s)
            if len(self._sources) > MOST_SOURCES:
                self._sources.popitem(last=False)
        else:
            self._sources.move_to_end(address)
            source.tokens = min(PACKETS_AT_ONCE, source.tokens + (now_s - source.at_s) * self._rate)
            source.at_s = now_s
        if source.tokens < 1:
            return False
        source.tokens -= 1
        return True


def _read(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int, int, list[tuple[int, int, bytes]]]:
    """Time of arrival (0: not told), TTL, DS field, and the control message that makes a reply leave from there.

    The last is missing for what was sent to no address of this host's own.
    """
    reached_ns = ttl = tos = 0
    info: list[tuple[int, int, bytes]] = []
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
            seconds, ns = _TIMESPEC.unpack(content[: _TIMESPEC.size])
            reached_ns = seconds * 1_000_000_000 + ns
        elif level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            _device, source, destination = _IN_PKTINFO.unpack(content)
            if source == destination:  # else a broadcast or multicast, and the source is that of its device
                info = [(level, kind, _IN_PKTINFO.pack(0, source, bytes(4)))]
        elif level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            if content[0] != _IPV6_MULTICAST:
                info = [(level, kind, content)]
        elif (level, kind) in ((socket.IPPROTO_IP, _IP_TTL), (socket.IPPROTO_IPV6, _IPV6_HOPLIMIT)):
            ttl = _NUMBER.unpack(content)[0]
        elif (level, kind) in ((socket.IPPROTO_IP, socket.IP_TOS), (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)):
            tos = content[0] if len(content) == 1 else _NUMBER.unpack(content)[0]
    return reached_ns, ttl, tos, info


def _tos(tos: int, family: int) -> tuple[int, int, bytes]:
    """The control message that gives one packet this DS field."""
    if family == socket.AF_INET:
        return socket.IPPROTO_IP, socket.IP_TOS, _NUMBER.pack(tos)
    return socket.IPPROTO_IPV6, socket.IPV6_TCLASS, _NUMBER.pack(tos)
