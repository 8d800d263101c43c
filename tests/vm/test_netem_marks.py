"""Marks and contracts on a way that delays, wavers, loses and reorders (tc-netem(8)): they are made before it.

What netem dropped is added to what arrived: together they are what left the host. The signals of a connection are
compared with what `ss -ti` says of it; without a contract, tests/lab/test_netem.py does that.
"""

import json
import socket
import struct
import time
from collections.abc import Callable, Iterator
from statistics import median

import numpy as np
import pytest

from demo.capture import Recording
from demo.lab import Namespace
from demo.packets import Packets
from harness.congested import CongestedLab, has_netem
from harness.ss import told_by_ss
from harness.wire import UNPROBED, Wire, port_of
from qos2 import Shaping, TrafficType

pytestmark = pytest.mark.datapath

MBIT = 1_000_000
S = 1_000_000_000
VOICE = 56
DELAY_MS = 20
#: A bad way; a twentieth of the packets overtakes those that are delayed.
IMPAIRED = f"netem limit 10000 delay {DELAY_MS}ms 5ms loss 2% reorder 5%"
TOLERANCE = 0.05
SECONDS = 6.0
#: Of the connection's signals: fewer say nothing of a median.
SAMPLES = 7


@pytest.fixture(scope="module")
def impaired() -> Iterator[CongestedLab]:
    if not has_netem():
        pytest.skip("this kernel has no sch_netem: ./dev vm")
    with CongestedLab("qos2-test", **UNPROBED) as lab:
        # A queue drops whole skbs: of one segment each, so that drops are packets.
        lab.lab.app.run("ethtool", "-K", "eth0", "tso", "off", "gso", "off")
        only_ours(lab.lab.router, lab.lab.peer)
        only_ours(lab.lab.peer, lab.lab.router)
        yield lab
        assert "Traceback" not in lab.daemon.log, lab.daemon.log


def only_ours(here: Namespace, there: Namespace) -> None:
    """Nothing leaves here towards there by itself: else netem's drops would not be those of the tests' packets."""
    here.sysctl(f"ipv6/conf/{here.device}/disable_ipv6", 1)
    (link,) = json.loads(there.run("ip", "-j", "link", "show", "dev", there.device))
    to = ("to", there.ipv4[0], "lladdr", link["address"], "dev", here.device)
    here.run("ip", "neighbor", "replace", *to, "nud", "permanent")


@pytest.fixture
def wire(impaired: CongestedLab) -> Iterator[Wire]:
    """Of one test, behind a netem whose counters begin."""
    router = impaired.lab.router
    router.run(*f"tc qdisc replace dev {router.device} root".split(), *IMPAIRED.split())
    try:
        with Wire(impaired.lab, impaired.daemon) as made:
            yield made
    finally:
        router.run(*f"tc qdisc delete dev {router.device} root".split())


def dropped(wire: Wire) -> int:
    """Packets, by netem, since the test began."""
    router = wire.lab.router
    (found,) = json.loads(router.run("tc", "-s", "-j", "qdisc", "show", "dev", router.device))
    assert found["kind"] == "netem"
    return int(found["drops"])


def ended(wire: Wire, recording: Recording) -> Packets:
    """The packets of a recording; netem loses none any more, so that the one that ends the recording arrives."""
    router = wire.lab.router
    router.run(*f"tc qdisc change dev {router.device} root netem limit 10000 delay {DELAY_MS}ms".split())
    return recording.stop()


def seconds(packets: Packets) -> float:
    """From the first to the last."""
    return int(packets.time_ns[-1] - packets.time_ns[0]) / S


def overtaken(packets: Packets) -> int:
    """How many arrived after one that was sent later: a connected socket counts its packets (RFC 6864 allows it)."""
    seen = [struct.unpack_from("!H", packets.frame(at), 18)[0] for at in range(len(packets))]
    counts = np.unwrap(np.array(seen, np.float64), period=1 << 16)
    return int((counts < np.maximum.accumulate(counts)).sum())


def test_datagrams_keep_mark_and_contract(wire: Wire) -> None:
    bandwidth = 5 * MBIT
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((wire.lab.peer.ipv4[0], wire.receiver().port))
    flow = wire.handle().add_socket(sock, TrafficType.VOICE)
    flow.set_rate(bandwidth)
    flood = wire.flood(sock, 1472)
    recording = wire.record()
    flood.begin()
    time.sleep(SECONDS)
    flood.stop()
    time.sleep(1.0)  # what waits on this host, and on the way
    packets = ended(wire, recording).select(sport=port_of(sock))
    stats, lost = flow.stats(), dropped(wire)
    assert packets.dscps() == {VOICE: len(packets)}
    assert len(packets) + lost == stats.packets  # none came to anything else than to the peer or to netem
    assert lost > 0
    assert overtaken(packets) > 0
    assert (len(packets) + lost) * 1500 * 8 / seconds(packets) == pytest.approx(bandwidth, rel=TOLERANCE)


def test_the_excess_of_a_contract_that_remarks_is_told_from_the_rest(wire: Wire) -> None:
    bandwidth, offered = 4 * MBIT, 7 * MBIT
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((wire.lab.peer.ipv4[0], wire.receiver().port))
    flow = wire.handle().add_socket(sock, TrafficType.VOICE)
    flow.set_rate(bandwidth, shaping=Shaping.USE_NON_CONFORMANT_MARKINGS)
    flood = wire.flood(sock, 1472, offered)
    recording = wire.record()
    flood.begin()
    time.sleep(SECONDS)
    sent = flood.stop()
    time.sleep(0.5)
    packets = ended(wire, recording).select(sport=port_of(sock))
    stats, lost = flow.stats(), dropped(wire)
    assert set(packets.dscps()) == {0, VOICE}
    assert len(packets) + lost == stats.packets == sent
    conformant = stats.packets - stats.non_conformant_packets
    assert conformant * 1500 * 8 / seconds(packets) == pytest.approx(bandwidth, rel=TOLERANCE)
    # What netem drops, it drops of both alike: one mark that is wrong is one too many or one too few.
    marked = packets.dscps()[VOICE]
    assert conformant - lost <= marked <= conformant


@pytest.mark.parametrize("congestion", ["cubic", "bbr"])
def test_a_connection_keeps_mark_and_contract_and_its_signals_are_what_its_kernel_says(
    impaired: CongestedLab, wire: Wire, congestion: str, figure: Callable[[str, object], None]
) -> None:
    bandwidth = 2 * MBIT
    told: list[float] = []
    counted: list[int] = []
    sock = impaired.tcp()
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, congestion.encode())
    except FileNotFoundError:
        pytest.skip(f"this kernel has no {congestion}")
    flow = wire.handle().add_socket(sock, TrafficType.VOICE)
    flow.set_rate(bandwidth)
    flood = wire.flood(sock, 16384)
    recording = wire.record()
    flood.begin()
    begin_s = time.monotonic()
    while time.monotonic() - begin_s < SECONDS + 2 or len(told) < SAMPLES:
        told.append(told_by_ss(wire.lab.app, port_of(sock)).srtt_us)
        counted.append(flow.stats().srtt_us)
    packets, lost = ended(wire, recording).select(sport=port_of(sock)), dropped(wire)
    flood.stop()
    time.sleep(3.0)  # until what was queued has left, and what was lost last has been sent again
    stats, last = flow.stats(), told_by_ss(wire.lab.app, port_of(sock))
    assert packets.dscps() == {VOICE: len(packets)}  # what is sent again too
    octets = int(packets.ip_bytes.sum()) + lost * 1500
    figure("Mbit/s", f"{octets * 8 / seconds(packets) / MBIT:.3f} of {bandwidth / MBIT:.0f}")
    assert octets * 8 / seconds(packets) == pytest.approx(bandwidth, rel=TOLERANCE)
    figure("srtt", f"{median(counted):.0f} us (ss {median(told):.0f})")
    figure("min_rtt", f"{stats.min_rtt_us} us (ss {last.min_rtt_us:.0f})")
    figure("retransmits", f"{stats.retransmits} (ss {last.retransmits})")
    assert median(counted) == pytest.approx(median(told), rel=0.1)
    assert stats.min_rtt_us == pytest.approx(last.min_rtt_us, rel=0.1)
    assert last.retransmits >= 20  # else 10 % of it says nothing
    assert stats.retransmits == pytest.approx(last.retransmits, rel=0.1)
