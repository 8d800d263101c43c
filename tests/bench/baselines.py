"""Of group `paths`: the simpler estimators beside which the daemon's are judged."""

import select
import socket
import struct
import time
from ipaddress import ip_address

from harness.congested import PACKET_BYTES
from qos2.model import RemoteHost
from qos2.paths.probesocket import ProbeSocket

_PORT = 862
_WAIT_S = 0.1
_REST_S = 0.05
# linux/tcp.h: tcpi_delivery_rate of struct tcp_info, bytes of payload per second.
_TCP_INFO_BYTES = 232
_DELIVERY_RATE = struct.Struct("=160xQ")
#: IPv4 and TCP headers with time stamps.
_MTU_BYTES, _TCP_HEADER_BYTES = 1500, 52


class PacketPairs:
    """Four packets back to back, to the reflector at an address, by whoever is in the application's namespace."""

    NAMES = ("packet pair", "pair behind two packets")

    def __init__(self, address: str) -> None:
        self._socket = ProbeSocket(RemoteHost(ip_address(address), 0), _PORT, 0)

    def sample(self) -> tuple[float | None, float | None]:
        """The bottleneck by the first two, and by the other two, after a rest; None where one was lost."""
        time.sleep(_REST_S)
        first = self._socket.next_number
        self._socket.send(4, PACKET_BYTES)
        reached: dict[int, int] = {}
        end_s = time.monotonic() + _WAIT_S
        while len(reached) < 4 and (left_s := end_s - time.monotonic()) > 0:
            select.select([self._socket], [], [], left_s)
            arrivals = [each for each in self._socket.receive() if each is not None and each.number >= first]
            reached |= {each.number - first: each.reached_ns for each in arrivals}
        return pair_rate(reached.get(0), reached.get(1)), pair_rate(reached.get(2), reached.get(3))

    def close(self) -> None:
        self._socket.close()


def pair_rate(first_ns: int | None, second_ns: int | None) -> float | None:
    """Bits/s by the distance of two packets; None where one is missing, or they came in one moment."""
    if first_ns is None or second_ns is None or second_ns <= first_ns:
        return None
    return PACKET_BYTES * 8e9 / (second_ns - first_ns)


class DeliveryRate:
    """What TCP_INFO says of a connection, at IP level."""

    NAMES = ("delivery rate",)

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    def sample(self) -> tuple[float | None]:
        """None before the kernel has measured it."""
        info = self._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        payload: int = _DELIVERY_RATE.unpack_from(info)[0]
        return (payload * 8 * _MTU_BYTES / (_MTU_BYTES - _TCP_HEADER_BYTES) or None,)


BASELINES = {"TCP": DeliveryRate.NAMES, "UDP": PacketPairs.NAMES}
