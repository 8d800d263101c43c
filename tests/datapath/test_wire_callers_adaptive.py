"""Adaptive flows: the cycle of Microsoft's SDK sample, the only known user of them, judged at the peer.

What the path is like, the test says (harness/steered.py); what comes of it is real: marks, rates and events.
"""

import select
import socket
import time
from collections.abc import Iterator

import pytest

from demo.lab import Lab
from demo.packets import Packets
from harness.qos2_h import (
    ERROR_ALREADY_EXISTS,
    ERROR_INVALID_PARAMETER,
    ERROR_IO_INCOMPLETE,
    ERROR_NETWORK_BUSY,
    ERROR_NO_DATA,
    ERROR_NOT_FOUND,
    ERROR_NOT_SUPPORTED,
    ERROR_OPERATION_ABORTED,
    QOS_QUERYFLOW_FRESH,
    QOSFlowRateCongestion,
    QOSFlowRateHigherContentEncoding,
    QOSFlowRateNotApplicable,
    QOSNotifyAvailable,
    QOSNotifyCongested,
    QOSNotifyUncongested,
    QOSQueryFlowFundamentals,
    QOSQueryOutgoingRate,
    QOSQueryPacketPriority,
    QOSSetOutgoingDSCPValue,
    QOSSetOutgoingRate,
    QOSShapeAndMark,
    QOSTrafficTypeAudioVideo,
    QOSTrafficTypeExcellentEffort,
)
from harness.steered import Steered
from harness.windows import BINDINGS, Program
from harness.wire import PATIENCE_S, Receiver, Wire, check_rate, eventually, marks, port_of

pytestmark = pytest.mark.datapath

V4, ROUTER = "198.51.100.2", "192.0.2.1"
DATAGRAM = b"the same datagram every time"
#: MTU-sized UDP payload over IPv4, and the packet that it makes.
BLOCK, PACKET = 1472, 1500
PHASE_S = 1.0
#: What a sender has queued at most: until half of a socket's default buffer is used it may send more, 2304 bytes
#: a packet (sock_writeable() in the kernel's include/net/sock.h). It leaves at the rate that was agreed on then.
QUEUED_BITS = 50 * PACKET * 8


@pytest.fixture(scope="module")
def steered() -> Iterator[tuple[Lab, Steered]]:
    with Lab("qos2-steered") as lab, Steered(lab.app) as daemon:
        yield lab, daemon
        assert "Traceback" not in daemon.log, daemon.log


@pytest.fixture
def path(steered: tuple[Lab, Steered]) -> Steered:
    """A daemon that knows nothing yet, for one test."""
    _, daemon = steered
    daemon.set_admission(V4, None)
    daemon.set_estimate(V4)
    return daemon


@pytest.fixture
def on_link(steered: tuple[Lab, Steered]) -> Iterator[Wire]:
    with Wire(*steered) as wire:
        yield wire


@pytest.fixture(params=BINDINGS)
def sample(request: pytest.FixtureRequest, on_link: Wire) -> Iterator[Program]:
    with Program(BINDINGS[request.param](), on_link.daemon.socket) as program:
        yield program


@pytest.fixture(params=BINDINGS)
def program(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Program]:
    """With the daemon as everybody starts it."""
    with Program(BINDINGS[request.param](), wire.daemon.socket) as program:
        yield program


def settle(before: int) -> None:
    """Wait until nothing of the time of another contract (bits/s) is under way."""
    time.sleep(0.1 + QUEUED_BITS / before)


class Stream:
    """The sample's client: one connected UDP socket in one adaptive flow, its rate and what it waits for."""

    def __init__(self, wire: Wire, program: Program, receiver: Receiver) -> None:
        self._calls, self._program = program.calls, program
        with wire.lab.app.entered():  # where a program is when it asks for hosts by address alone
            self.handle = program.create()
        self.socket = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.connect((V4, receiver.port))
        self.flow = self._calls.QOSAddSocketToFlow(self.handle, self.socket, None, QOSTrafficTypeExcellentEffort)
        self.event = self._calls.OVERLAPPED()

    def fundamentals(self) -> tuple[int, tuple[int | None, int | None, int | None]]:
        """Error, and what is known: bottleneck, available (bits/s), round trip time (us)."""
        try:
            found = self._calls.QOSQueryFlow(self.handle, self.flow, QOSQueryFlowFundamentals)
        except self._calls.WinError as error:
            return error.winerror, (None, None, None)
        return 0, known(found)

    def set_rate(self, bandwidth: int, reason: int) -> int:
        contract = self._calls.QOS_FLOWRATE_OUTGOING(bandwidth, QOSShapeAndMark, reason)
        arguments = (self.handle, self.flow, QOSSetOutgoingRate, 16, contract)
        return self._program.failure(self._calls.QOSSetFlow, *arguments)

    def rate(self) -> int:
        return int(self._calls.QOSQueryFlow(self.handle, self.flow, QOSQueryOutgoingRate))

    def notify_congested(self) -> None:
        self._calls.QOSNotifyFlow(self.handle, self.flow, QOSNotifyCongested, None, None, 0, self.event)

    def signalled(self) -> None:
        """Wait for the event as the sample does: it never asks for a result."""
        assert select.select([self.event], [], [], PATIENCE_S)[0], "the event came in time"
        assert self.event.Internal == 0

    def silent(self) -> bool:
        """Whether the event stays away, also a moment after the daemon could have sent it."""
        return not self.event.done and not select.select([self.event], [], [], 0.1)[0]

    def failure(self) -> int:
        """The error with which what it waits for ends, 0 for none."""
        return self._program.failure(self.event.wait, PATIENCE_S)

    def notify_available(self, bandwidth: int) -> None:
        self._calls.QOSNotifyFlow(self.handle, self.flow, QOSNotifyAvailable, 8, bandwidth, 0, self.event)


def known(fundamentals: object) -> tuple[int | None, int | None, int | None]:
    """A QOS_FLOW_FUNDAMENTALS, None where its flag is not set."""
    pairs = (
        ("BottleneckBandwidthSet", "BottleneckBandwidth"),
        ("AvailableBandwidthSet", "AvailableBandwidth"),
        ("RTTSet", "RTT"),
    )
    bottleneck, available, rtt = (
        int(getattr(fundamentals, value)) if getattr(fundamentals, flag) else None for flag, value in pairs
    )
    return bottleneck, available, rtt


def test_the_samples_stream_follows_congestion_down_and_up_again(path: Steered, on_link: Wire, sample: Program) -> None:
    wire, receiver = on_link, on_link.receiver()
    recording = wire.record()
    stream = Stream(wire, sample, receiver)
    target = 10_000_000
    stream.socket.send(DATAGRAM)
    receiver.expect(1)

    # It asks until everything is there.
    assert stream.fundamentals() == (ERROR_NO_DATA, (None, None, None))
    path.set_estimate(V4, bottleneck=100_000_000)
    assert stream.fundamentals() == (0, (100_000_000, None, None))
    path.set_estimate(V4, bottleneck=100_000_000, available=40_000_000, rtt_us=350)
    assert stream.fundamentals() == (0, (100_000_000, 40_000_000, 350))

    assert stream.set_rate(target, QOSFlowRateNotApplicable) == 0
    stream.notify_congested()
    phases: list[tuple[int, int, int]] = []

    def stay(bandwidth: int) -> None:
        assert stream.rate() == bandwidth
        settle(phases[-1][0] if phases else bandwidth)
        began = time.time_ns()
        time.sleep(PHASE_S)
        phases.append((bandwidth, began, time.time_ns()))

    flood = wire.flood(stream.socket, BLOCK)
    flood.begin()
    stay(target)
    assert stream.silent()
    path.set_condition(stream.flow, congested=True)
    stream.signalled()

    assert stream.set_rate(target // 10, QOSFlowRateCongestion) == 0
    stream.notify_available(target)
    path.set_condition(stream.flow, congested=True, free=target)
    stay(target // 10)
    assert stream.silent()
    path.set_condition(stream.flow, congested=False, free=target - target // 10 - 1)
    assert stream.silent()
    path.set_condition(stream.flow, congested=False, free=target - target // 10)
    stream.signalled()

    assert stream.set_rate(target, QOSFlowRateHigherContentEncoding) == 0
    stream.notify_congested()
    stay(target)
    flood.stop()
    assert path.watched() == [stream.flow]
    sample.calls.QOSCloseHandle(stream.handle)
    assert stream.failure() == ERROR_OPERATION_ABORTED
    assert path.watched() == []
    packets = recording.stop().select(sport=port_of(stream.socket), dport=receiver.port)
    assert packets.dscp[0] == 0, "before its first rate contract it is not marked"
    shaped = packets.select(end_ns=phases[-1][2])
    assert shaped.dscp[1:].tolist() == [40] * (len(shaped) - 1)
    for bandwidth, began, ended in phases:
        check_rate(shaped, bandwidth, began, ended, PACKET)


def test_a_refused_rate_leaves_the_contract_and_the_marks_as_they_were(
    path: Steered, on_link: Wire, sample: Program
) -> None:
    wire, receiver = on_link, on_link.receiver()
    recording = wire.record()
    stream = Stream(wire, sample, receiver)
    path.set_admission(V4, "network_busy")
    assert stream.set_rate(5_000_000, QOSFlowRateNotApplicable) == ERROR_NETWORK_BUSY
    assert stream.rate() == 0
    stream.socket.send(DATAGRAM)
    receiver.expect(1)
    path.set_admission(V4, None)
    assert stream.set_rate(5_000_000, QOSFlowRateNotApplicable) == 0
    path.set_admission(V4, "network_busy")
    assert stream.set_rate(20_000_000, QOSFlowRateHigherContentEncoding) == ERROR_NETWORK_BUSY
    assert stream.rate() == 5_000_000
    flood = wire.flood(stream.socket, BLOCK)
    flood.begin()
    settle(5_000_000)
    began = time.time_ns()
    time.sleep(PHASE_S)
    kept = time.time_ns()
    # Less is never refused.
    assert stream.set_rate(2_000_000, QOSFlowRateCongestion) == 0
    settle(5_000_000)
    lowered = time.time_ns()
    time.sleep(PHASE_S)
    ended = time.time_ns()
    flood.stop()
    packets = recording.stop().select(sport=port_of(stream.socket), dport=receiver.port, end_ns=ended)
    assert packets.dscp.tolist() == [0] + [40] * (len(packets) - 1)
    check_rate(packets, 5_000_000, began, kept, PACKET)
    check_rate(packets, 2_000_000, lowered, ended, PACKET)


def test_a_second_wait_is_refused_and_a_cancelled_one_leaves_marks_and_rate_alone(
    path: Steered, on_link: Wire, sample: Program
) -> None:
    wire, receiver, calls = on_link, on_link.receiver(), sample.calls
    recording = wire.record()
    stream = Stream(wire, sample, receiver)
    assert stream.set_rate(8_000_000, QOSFlowRateNotApplicable) == 0
    stream.notify_congested()
    assert eventually(lambda: path.watched() == [stream.flow])
    arguments = (stream.handle, stream.flow, QOSNotifyCongested)
    assert sample.failure(calls.QOSNotifyFlow, *arguments) == ERROR_ALREADY_EXISTS
    calls.QOSCancel(stream.handle, stream.event)
    assert stream.failure() == ERROR_OPERATION_ABORTED
    assert sample.failure(calls.QOSCancel, stream.handle, stream.event) == ERROR_INVALID_PARAMETER
    assert path.watched() == []
    stream.socket.send(DATAGRAM)
    assert stream.rate() == 8_000_000
    # The event serves again; the end of the flow ends the wait.
    stream.notify_available(9_000_000)
    assert eventually(lambda: path.watched() == [stream.flow])
    calls.QOSRemoveSocketFromFlow(stream.handle, stream.socket, stream.flow)
    assert stream.failure() == ERROR_OPERATION_ABORTED
    stream.socket.send(DATAGRAM)
    receiver.expect(2)
    assert marks(recording.stop().select(sport=port_of(stream.socket))) == [40, 0]


def test_a_fresh_query_waits_for_the_new_measurement(path: Steered, on_link: Wire, sample: Program) -> None:
    wire, calls = on_link, sample.calls
    stream = Stream(wire, sample, wire.receiver())
    path.set_estimate(V4, bottleneck=50_000_000)
    arguments = (stream.handle, stream.flow, QOSQueryFlowFundamentals, None, QOS_QUERYFLOW_FRESH, stream.event)
    calls.QOSQueryFlow(*arguments)
    assert eventually(lambda: path.refreshing() == [V4])
    path.set_estimate(V4, bottleneck=60_000_000, rtt_us=1200)
    asked = (stream.handle, stream.event, False)
    assert sample.failure(calls.GetOverlappedResult, *asked) == ERROR_IO_INCOMPLETE
    path.finish_refresh(V4)
    stream.signalled()
    assert known(calls.GetOverlappedResult(*asked)) == (60_000_000, None, 1200)
    assert stream.event.InternalHigh == 40


def test_an_adaptive_flow_to_an_off_link_peer_is_shaped_and_marked_but_never_told_anything(
    wire: Wire, program: Program
) -> None:
    calls, receiver = program.calls, wire.receiver()
    recording = wire.record()
    stream = Stream(wire, program, receiver)
    stream.socket.send(DATAGRAM)
    receiver.expect(1)
    assert stream.fundamentals() == (ERROR_NOT_SUPPORTED, (None, None, None))
    for condition, wanted in (
        (QOSNotifyCongested, ()),
        (QOSNotifyUncongested, ()),
        (QOSNotifyAvailable, (8, 9_000_000)),
    ):
        arguments = (stream.handle, stream.flow, condition, *wanted)
        assert program.failure(calls.QOSNotifyFlow, *arguments) == ERROR_NOT_SUPPORTED
    assert program.failure(calls.QOSStartTrackingClient, stream.handle, (V4, 0)) == ERROR_NOT_SUPPORTED
    bandwidth = 4_000_000
    assert stream.set_rate(bandwidth, QOSFlowRateNotApplicable) == 0
    # Of its own choice only where the flow is non-adaptive.
    arguments = (stream.handle, stream.flow, QOSSetOutgoingDSCPValue, 4, 46)
    assert program.failure(calls.QOSSetFlow, *arguments) == ERROR_NOT_SUPPORTED
    priority = calls.QOSQueryFlow(stream.handle, stream.flow, QOSQueryPacketPriority)
    assert int(priority.ConformantDSCPValue) == 40
    flood = wire.flood(stream.socket, BLOCK)
    flood.begin()
    settle(bandwidth)
    began = time.time_ns()
    time.sleep(PHASE_S)
    ended = time.time_ns()
    flood.stop()
    packets: Packets = recording.stop().select(sport=port_of(stream.socket), dport=receiver.port)
    assert packets.dscp.tolist() == [0] + [40] * (len(packets) - 1)
    check_rate(packets, bandwidth, began, ended, PACKET)


def test_a_host_on_the_link_can_be_tracked_and_has_no_estimate_yet(wire: Wire, program: Program) -> None:
    calls = program.calls
    with wire.lab.app.entered():
        handle = program.create()
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    calls.QOSStartTrackingClient(handle, (ROUTER, 0))
    flow = calls.QOSAddSocketToFlow(handle, sock, (ROUTER, 9), QOSTrafficTypeAudioVideo)
    assert program.failure(calls.QOSQueryFlow, handle, flow, QOSQueryFlowFundamentals) == ERROR_NO_DATA
    calls.QOSStopTrackingClient(handle, (ROUTER, 4711))
    assert program.failure(calls.QOSStopTrackingClient, handle, (ROUTER, 0)) == ERROR_NOT_FOUND
