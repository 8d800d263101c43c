"""Programs that set rate contracts, call for call as their sources make them: marks and rates at the peer."""

import socket
import struct
import time
from collections.abc import Iterator

import numpy as np
import pytest

from demo.lab import Lab
from demo.processes import Sink
from harness.qos2_h import (
    ERROR_NOT_FOUND,
    QOS_NON_ADAPTIVE_FLOW,
    QOSFlowRateNotApplicable,
    QOSQueryOutgoingRate,
    QOSSetOutgoingDSCPValue,
    QOSSetOutgoingRate,
    QOSSetTrafficType,
    QOSShapeAndMark,
    QOSTrafficTypeAudioVideo,
    QOSTrafficTypeBackground,
    QOSTrafficTypeVoice,
    QOSUseNonConformantMarkings,
)
from harness.windows import BINDINGS, Program
from harness.wire import Wire, check_rate, marks, port_of
from qos2.core.bucket import bucket_depth_bytes

pytestmark = pytest.mark.datapath

V4, V6 = "198.51.100.2", "2001:db8:2::2"
PORT = 7200
DATAGRAM = b"the same datagram every time"
S = 1_000_000_000
#: How much TCP hands over at once: 45 segments, each with its headers.
LARGEST_SKB = 45 * 1500


@pytest.fixture(params=BINDINGS)
def program(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Program]:
    with Program(BINDINGS[request.param](), wire.daemon.socket) as program:
        yield program


@pytest.fixture(scope="module")
def sink(lab: Lab) -> Iterator[Sink]:
    with Sink(lab.peer, tcp=[PORT], udp=[]) as sink:
        yield sink


def set_rate(program: Program, handle: object, flow: int, bandwidth: int, shaping: int) -> None:
    contract = program.calls.QOS_FLOWRATE_OUTGOING(bandwidth, shaping, QOSFlowRateNotApplicable)
    program.calls.QOSSetFlow(handle, flow, QOSSetOutgoingRate, 16, contract)


@pytest.mark.parametrize("host", [V4, V6])
def test_ptlib_changes_the_type_of_its_flow_and_has_the_excess_remarked(
    wire: Wire, program: Program, host: str
) -> None:
    """Its RTP sockets: added once; on every further SetQoS the type, a maximum bandwidth and a DSCP are set again."""
    calls, handle, receiver = program.calls, program.create(), wire.receiver()
    peer = (host, receiver.port)
    sock = wire.sender(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    recording = wire.record()
    flow = program.add(handle, sock, peer, QOSTrafficTypeVoice)
    sock.sendto(DATAGRAM, peer)
    calls.QOSSetFlow(handle, flow, QOSSetTrafficType, 4, QOSTrafficTypeAudioVideo)
    sock.sendto(DATAGRAM, peer)
    bandwidth, size, count = 1_000_000, 1000, 60
    set_rate(program, handle, flow, bandwidth, QOSUseNonConformantMarkings)
    assert calls.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate) == bandwidth
    receiver.expect(2)
    began = time.monotonic()
    for _ in range(count):
        sock.sendto(bytes(size), peer)
    took_s = time.monotonic() - began
    receiver.expect(count)
    calls.QOSSetFlow(handle, flow, QOSSetOutgoingDSCPValue, 4, 46)
    time.sleep(bucket_depth_bytes(bandwidth) * 8 / bandwidth)  # the bucket is full again
    sock.sendto(DATAGRAM, peer)
    calls.QOSRemoveSocketFromFlow(handle, None, flow)
    sock.sendto(DATAGRAM, peer)
    receiver.expect(2)
    packets = recording.stop().select(sport=port_of(sock))
    small = packets.ip_bytes < size
    assert marks(packets.where(small)) == [56, 40, 46, 0]
    burst = marks(packets.where(~small))
    assert len(burst) == count, "nothing is held back or dropped"
    assert set(burst) == {0, 40}
    ip_bytes = int(packets.ip_bytes.max())
    credit = bucket_depth_bytes(bandwidth) + bandwidth / 8 * took_s
    # A full bucket at first, and what the burst earned while it lasted; the last may pass on debt.
    assert bucket_depth_bytes(bandwidth) // ip_bytes <= burst.count(40) <= credit / ip_bytes + 1


def test_kmule_limits_the_upload_of_all_its_connections_together_by_one_flow(
    wire: Wire, program: Program, sink: Sink
) -> None:
    calls, handle = program.calls, program.create()
    sockets = []
    flow = 0
    for index in range(3):
        sock = wire.sender(socket.AF_INET, socket.SOCK_STREAM)
        # Closed by reset: what is still queued must not leave into the next test.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        if index == 0:  # one is added while it is not connected yet
            flow = program.add(handle, sock, (V4, PORT), QOSTrafficTypeBackground, flow)
        sock.connect((V4, PORT))
        if index:
            flow = program.add(handle, sock, None, QOSTrafficTypeBackground, flow)
        sockets.append(sock)
    phases: list[tuple[int, int, int]] = []
    recording = wire.record()
    floods = [wire.flood(sock, 16_384) for sock in sockets]
    for kilobytes in (1000, 400):
        bandwidth = kilobytes * 1000 * 8 * 11 // 10
        calls.QOSSetFlow(handle, flow, QOSSetTrafficType, 4, QOSTrafficTypeBackground)
        set_rate(program, handle, flow, bandwidth, QOSShapeAndMark)
        assert calls.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate) == bandwidth
        if not phases:
            for flood in floods:
                flood.begin()
        time.sleep(0.4)  # slow start; then what was queued by the contract before
        began = time.time_ns()
        time.sleep(1.3)
        phases.append((bandwidth, began, time.time_ns()))
    packets = recording.stop()
    for flood in floods:
        flood.stop()
    packets = packets.where(np.isin(packets.sport, [port_of(sock) for sock in sockets]))
    assert packets.dscps() == {8: len(packets)}
    for bandwidth, began, ended in phases:
        check_rate(packets, bandwidth, began, ended, LARGEST_SKB)
    # All three had a part of it.
    assert {port_of(sock) for sock in sockets} == set(packets.select(begin_ns=phases[0][1]).sport.tolist())


def test_kmule_drops_dead_sockets_and_begins_anew_once_its_flow_is_empty(wire: Wire, program: Program) -> None:
    calls, handle, receiver = program.calls, program.create(), wire.receiver()
    sockets = []
    for _ in range(4):
        sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((V4, receiver.port))
        sockets.append(sock)
    dead, *live = sockets
    ports = [port_of(sock) for sock in sockets]
    recording = wire.record()

    def send() -> None:
        for sock in live:
            sock.send(DATAGRAM)
        receiver.expect(len(live))

    flow = 0
    for sock in sockets:
        flow = program.add(handle, sock, None, QOSTrafficTypeBackground, flow)
    dead.close()
    assert program.failure(calls.QOSRemoveSocketFromFlow, handle, dead, flow) == ERROR_NOT_FOUND
    send()
    calls.QOSRemoveSocketFromFlow(handle, live[0], flow)
    send()
    calls.QOSRemoveSocketFromFlow(handle, None, flow)
    send()
    # Its id is 0 now; had it kept the old one:
    arguments = (handle, live[0], None, QOSTrafficTypeBackground, QOS_NON_ADAPTIVE_FLOW, flow)
    assert program.failure(calls.QOSAddSocketToFlow, *arguments) == ERROR_NOT_FOUND
    contract = calls.QOS_FLOWRATE_OUTGOING(8_000_000, QOSShapeAndMark, QOSFlowRateNotApplicable)
    assert program.failure(calls.QOSSetFlow, handle, flow, QOSSetOutgoingRate, 16, contract) == ERROR_NOT_FOUND
    again = 0
    for sock in live:
        again = program.add(handle, sock, None, QOSTrafficTypeBackground, again)
    assert again != flow
    send()
    for sock in live:
        calls.QOSRemoveSocketFromFlow(handle, sock, again)
    arguments = (*arguments[:-1], again)
    assert program.failure(calls.QOSAddSocketToFlow, *arguments) == ERROR_NOT_FOUND
    send()
    packets = recording.stop().select(dport=receiver.port)
    assert [marks(packets.select(sport=port)) for port in ports] == [
        [],
        [8, 0, 0, 8, 0],
        [8, 8, 0, 8, 0],
        [8, 8, 0, 8, 0],
    ]
