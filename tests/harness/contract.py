"""Whether what arrived keeps a rate contract, on machines that may stand still while a test measures."""

import numpy as np

from demo.packets import Packets
from qos2.core.bucket import bucket_depth_bytes

#: Of a contract. An emulated processor that shared its host held 0.973 to 1.002 of it.
TOLERANCE = 0.05
#: What a sender begins with (a full bucket, TCP's start) is over after so long.
SETTLE_S = 1.0
#: The longest packet of a device.
MTU_BYTES = 1500
#: TCP hands over 64 KB at once: 45 segments, each with its headers.
LARGEST_SKB_BYTES = 45 * MTU_BYTES
_S = 1_000_000_000


def check_contract(packets: Packets, bandwidth: int, *, seconds: float, largest: int = MTU_BYTES) -> None:
    """What `seconds` of a flood brought, but for SETTLE_S, is `bandwidth`, to TOLERANCE. Raises AssertionError.

    A bucket keeps 10 ms of credit: where the machine stands still for longer, which shows as a silence longer than
    bucket and `largest` skb (bytes) last, the rest of that time is lost, as it has to be. So much less may arrive;
    never more. A machine that stood still for half of the time proves nothing, and fails.
    """
    assert len(packets) > 0
    steady = packets.select(begin_ns=int(packets.time_ns[0]) + round(SETTLE_S * _S))
    lasted_s = int(steady.time_ns[-1] - steady.time_ns[0]) / _S
    spare_s = (bucket_depth_bytes(bandwidth) + largest) * 8 / bandwidth
    lost_s = float(np.maximum(np.diff(steady.time_ns) / _S - spare_s, 0).sum())
    assert lasted_s > (seconds - SETTLE_S) / 2
    assert lost_s < lasted_s / 2
    # Without the first: it begins the time, and is not sent within it.
    sent_s = int(steady.ip_bytes[1:].sum()) * 8 / bandwidth
    assert (1 - TOLERANCE) * (lasted_s - lost_s) <= sent_s <= (1 + TOLERANCE) * lasted_s
