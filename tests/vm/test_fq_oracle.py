"""The method by which the kernel's own selftests judge departure times (test_tc_edt), with this datapath under test.

One TCP stream that a program limits to 5 MB/s by departure times and fq, a transfer of 1 MB, timed where it arrives: an
error of up to 2 percent is right. Two things are this datapath's own. A contract counts whole IP packets, so bytes
at IP level are what is divided by the time; and it begins with a full bucket, which is 5 percent of such a transfer,
so the time that the bucket saves is part of what is expected. Of that bucket one tick is given back, as the datapath's
clock may be a tick old (flowmaps.contract): with 250 ticks a second that is 2 percent more, or not.

Whatever else a machine is busy with makes a transfer longer, never shorter, and some percent of 0.2 s is a single
late wake-up on an emulated processor. So no transfer may be faster than the contract says, and the fastest of several
tells how exact it is; on a machine that is busy elsewhere there are more of them. The clock is that of the capture:
by the interpreter's, which also has to start a thread and to wake up, the fastest of 25 were 3 percent too slow.
"""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

from demo.lab import Lab
from harness.wire import PATIENCE_S, Wire, port_of
from qos2 import TrafficType
from qos2.datapath.flowmaps import TICK_NS, contract

pytestmark = [pytest.mark.datapath, pytest.mark.usefixtures("few_segments")]

BYTES_PER_S = 5_000_000
TRANSFER_BYTES = 1_000_000
LEAST, MOST = 5, 25  # transfers
TOLERANCE = 0.02
S = 1_000_000_000
HOSTS = {socket.AF_INET: "198.51.100.2", socket.AF_INET6: "2001:db8:2::2"}


@pytest.fixture(scope="module")
def few_segments(lab: Lab) -> Iterator[None]:
    """TCP hands over four packets at once, not up to 64 KB: the last ones leave as a whole, early by that much."""
    lab.app.run("ip", "link", "set", "dev", lab.app.device, "gso_max_segs", "4")
    yield
    lab.app.run("ip", "link", "set", "dev", lab.app.device, "gso_max_segs", "65535")


class Transfer(NamedTuple):
    """IP level bytes that arrived, and nanoseconds from the first packet to the last."""

    octets: int
    took_ns: int

    def error(self, depth_ns: int) -> float:
        """Of its rate, relative, where the bucket lent so much time."""
        return self.octets * S / (self.took_ns + depth_ns) / BYTES_PER_S - 1


def transfer(wire: Wire, family: socket.AddressFamily) -> Transfer:
    """One on a new connection."""
    listener = wire.listener()
    sock = wire.sender(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
    sock.connect((HOSTS[family], port_of(listener)))
    receiving = wire.accept(listener)
    # The kernel waits for all of it, so that no interpreter has to be in time for every packet.
    receiving.setblocking(True)
    receiving.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", int(PATIENCE_S), 0))
    with wire.handle() as qos:
        qos.add_socket(sock, TrafficType.VOICE).set_rate(BYTES_PER_S * 8)
        recording = wire.record()
        sending = threading.Thread(target=sock.sendall, args=[bytes(TRANSFER_BYTES)])
        sending.start()
        received = receiving.recv(TRANSFER_BYTES, socket.MSG_WAITALL)
        sending.join()
        packets = recording.stop().select(sport=port_of(sock), dport=port_of(listener))
    assert len(received) == TRANSFER_BYTES
    return Transfer(int(packets.ip_bytes.sum()), int(packets.time_ns[-1] - packets.time_ns[0]))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["ipv4", "ipv6"])
def test_a_stream_takes_as_long_as_its_contract_says(
    wire: Wire, family: socket.AddressFamily, figure: Callable[[str, object], None]
) -> None:
    _, depth_ns = contract(BYTES_PER_S * 8)
    errors: list[float] = []
    while len(errors) < LEAST or (len(errors) < MOST and max(errors) < -TOLERANCE):
        each = transfer(wire, family)
        assert each.error(depth_ns + TICK_NS) <= TOLERANCE
        errors.append(each.error(depth_ns))
    figure("errors_percent", " ".join(f"{each * 100:.2f}" for each in sorted(errors)))
    assert max(errors) >= -TOLERANCE
