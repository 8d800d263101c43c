"""One UDP socket that probes go out of and come back to: one host, one DSCP, in the application's network namespace.

What is sent at once leaves by one system call, as segments of one buffer (UDP_SEGMENT, udp(7)), so that a train is
back to back however busy this process is. The time of arrival is the kernel's (SO_TIMESTAMPNS); that of departure is
the clock before the call, which the device has the packets 10 to 30 us after.
"""

import errno
import secrets
import socket
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from qos2.model import RemoteHost
from qos2.wire import stamp

# linux/udp.h, asm-generic/socket.h, linux/in.h, linux/in6.h
_UDP_SEGMENT = 103
_SO_TIMESTAMPNS = 35
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE = 10, 23, 3

_TIMESPEC = struct.Struct("=qq")
_SEGMENT = struct.Struct("=H")

_UDP_AND_IP_BYTES = {4: 28, 6: 48}
_ANCILLARY = 256
_RECEIVE_BYTES = 2048


class Arrival(NamedTuple):
    """A reply: which probe it answers (a count since the first), and the reflector's two times and our last one.

    `at_arrival`: the reflector says that its first time is that of the arrival.
    """

    number: int
    reached_ns: int
    returned_ns: int
    received_ns: int
    at_arrival: bool


class ProbeSocket:
    """To be made inside the namespace. Raises OSError where there is no route, or no such address family."""

    def __init__(self, host: RemoteHost, port: int, dscp: int) -> None:
        version = host.address.version
        self.dscp = dscp
        self._overhead = _UDP_AND_IP_BYTES[version]
        self._first = secrets.randbits(32)  # so that nobody who cannot see the probes can answer them
        self._count = 0
        self._segments = True  # until the kernel refuses them
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        self._socket = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if version == 4:
                self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, dscp << 2)
                self._socket.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_PROBE)
            else:
                self._socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, dscp << 2)
                self._socket.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _PMTUDISC_PROBE)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            self._socket.connect((str(host.address), port))
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def next_number(self) -> int:
        """That of the next probe that is sent."""
        return self._count

    def send(self, count: int, ip_bytes: int) -> int:
        """Send so many probes back to back; the time of it. Raises OSError; what is refused is as good as lost."""
        size = ip_bytes - self._overhead
        now_ns = time.time_ns()
        packets = [stamp.pack_probe(self._first + self._count + each, now_ns, size) for each in range(count)]
        self._count += count
        if count > 1 and self._segments:
            try:
                segment = (socket.IPPROTO_UDP, _UDP_SEGMENT, _SEGMENT.pack(size))
                self._socket.sendmsg([b"".join(packets)], [segment])
                return now_ns
            except OSError as error:
                # EIO: the device cannot; EINVAL: too large for its path; ENOPROTOOPT: before Linux 4.18.
                if error.errno not in (errno.EIO, errno.EINVAL, errno.ENOPROTOOPT):
                    raise
                self._segments = False
        for packet in packets:
            self._socket.send(packet)
        return now_ns

    def receive(self) -> Iterator[Arrival | None]:
        """What has come since; None for what is no reply of a reflector. Raises OSError, as for a refused port."""
        while True:
            try:
                data, ancillary, _flags, _address = self._socket.recvmsg(_RECEIVE_BYTES, _ANCILLARY)
            except BlockingIOError:
                return
            received_ns = time.time_ns()
            for level, kind, content in ancillary:
                if level == socket.SOL_SOCKET and kind == _SO_TIMESTAMPNS:
                    seconds, ns = _TIMESPEC.unpack(content[: _TIMESPEC.size])
                    received_ns = seconds * 1_000_000_000 + ns
            try:
                reply = stamp.unpack_reflected(data)
            except ValueError:
                yield None
                continue
            number = (reply.sender_sequence - self._first) & 0xFFFF_FFFF
            yield Arrival(number, reply.reached_ns, reply.returned_ns, received_ns, reply.at_arrival)

    def close(self) -> None:
        self._socket.close()
