"""What flows were carried at since the last look: their rate, and whether the network was what limited them.

Arithmetic over two readings of the same flow: the datapath's counters, and for TCP the kernel's TCP_INFO. A flow
that could have sent more and was let tells what the path can carry; any other tells only that it carries this much.
"""

from dataclasses import dataclass
from typing import NamedTuple

from qos2.model import Transport
from qos2.paths.tcp import TcpInfo

#: Share of an interval for which TCP must have had data under way to be called busy all the time.
BUSY_SHARE = 0.9
#: Share of an interval for which something else may have held TCP back.
HELD_SHARE = 0.1
#: IP and TCP headers of a segment with timestamps, in bytes.
TCP_HEADERS = {4: 52, 6: 72}


class Counters(NamedTuple):
    """What the datapath has counted of a flow: bytes and packets at IP level, and those its contract did not let go.

    A contract delays what comes too early, or where nothing can be delayed drops it.
    """

    bytes: int
    packets: int
    held_packets: int


@dataclass(frozen=True, slots=True)
class Carried:
    """Bits/s at IP level over an interval. `sent`: handed to the network; `rate`: arrived, None where nobody knows.

    `limited`: the network alone kept the flow from more.
    """

    sent: float
    rate: float | None
    limited: bool


class Carriage:
    """One flow. Not for intervals that begin before the flow did."""

    __slots__ = ("_counters", "_info", "_ip_version", "_transport")

    def __init__(self, transport: Transport, ip_version: int) -> None:
        self._transport = transport
        self._ip_version = ip_version
        self._counters: Counters | None = None
        self._info: TcpInfo | None = None

    def since(self, interval_s: float, counters: Counters, info: TcpInfo | None) -> Carried | None:
        """What happened in the interval that ends with these readings; None for the first ones."""
        before, self._counters = self._counters, counters
        info_before, self._info = self._info, info
        if before is None or interval_s <= 0 or counters.bytes < before.bytes:
            return None
        sent = (counters.bytes - before.bytes) * 8 / interval_s
        if self._transport is not Transport.TCP or info is None or info_before is None:
            return Carried(sent, None, False)
        if info.bytes_acked < info_before.bytes_acked or info.mss <= 0:
            return Carried(sent, None, False)
        # A path MTU that has shrunk meanwhile may have it go back by a little.
        arrived = max(0, _arrived(info) - _arrived(info_before))
        whole = (info.mss + TCP_HEADERS[self._ip_version]) / info.mss
        held_by_contract = counters.held_packets > before.held_packets
        limited = not held_by_contract and _network_limited(info_before, info, interval_s * 1e6)
        return Carried(sent, arrived * whole * 8 / interval_s, limited)


def _arrived(info: TcpInfo) -> int:
    """Bytes of payload at the receiver by now.

    What was acknowledged alone stands still behind a hole, and when that is filled grows by all at once: in one
    interval that would be many times what the path can carry.
    """
    return info.bytes_acked + info.sacked * info.mss


def _network_limited(before: TcpInfo, now: TcpInfo, interval_us: float) -> bool:
    """Whether TCP had data and leave to send all the time (tcp_info's busy and limited times, Linux 4.10)."""
    held_us = now.rwnd_limited_us - before.rwnd_limited_us + now.sndbuf_limited_us - before.sndbuf_limited_us
    busy_us = now.busy_us - before.busy_us
    return busy_us >= BUSY_SHARE * interval_us and held_us <= HELD_SHARE * interval_us and not now.app_limited
