"""When marks begin and end, to the packet: calls through the C library and qos2.win32, judged at the peer.

A call that has returned is in force for the very next packet, without a pause. And what a program does not
do itself: forks, crashes, and a daemon that goes and comes back.
"""

import socket
from collections.abc import Callable, Iterator

import pytest

from demo.lab import Lab
from demo.processes import Daemon
from harness.forked import Forked
from harness.qos2_h import (
    ERROR_DEVICE_REINITIALIZATION_NEEDED,
    ERROR_INVALID_HANDLE,
    ERROR_INVALID_PARAMETER,
    ERROR_SERVICE_DEPENDENCY_FAIL,
    QOS_NON_ADAPTIVE_FLOW,
    QOSFlowRateNotApplicable,
    QOSSetOutgoingRate,
    QOSSetTrafficType,
    QOSShapeAndMark,
    QOSTrafficTypeAudioVideo,
    QOSTrafficTypeBackground,
    QOSTrafficTypeVoice,
)
from harness.windows import BINDINGS, Program
from harness.wire import Receiver, Wire, eventually, marks, port_of

pytestmark = pytest.mark.datapath

V4, V6 = "198.51.100.2", "2001:db8:2::2"
DATAGRAM = b"the same datagram every time"
#: So often each moment is tried: a race that is lost once in twenty is all but sure to be seen.
ROUNDS = 60
HOSTS = pytest.mark.parametrize("host", [V4, V6])


@pytest.fixture(params=BINDINGS)
def program(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Program]:
    with Program(BINDINGS[request.param](), wire.daemon.socket) as program:
        yield program


@pytest.fixture(scope="module")
def mortal() -> Iterator[tuple[Lab, Daemon]]:
    """A daemon that may be stopped without a loss to other tests, in a lab of its own."""
    with Lab("qos2-restart") as lab, Daemon(lab.app) as daemon:
        yield lab, daemon
        assert "Traceback" not in daemon.log, daemon.log


@pytest.fixture
def own_wire(mortal: tuple[Lab, Daemon]) -> Iterator[Wire]:
    """The daemon runs, whatever the test before did to it."""
    _, daemon = mortal
    if daemon.process is None or daemon.process.poll() is not None:
        daemon.start()
    with Wire(*mortal) as wire:
        yield wire


def connected(wire: Wire, host: str, receiver: Receiver) -> socket.socket:
    sock = wire.sender(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, receiver.port))
    return sock


@HOSTS
@pytest.mark.parametrize("connect", [True, False], ids=["connected", "unconnected"])
def test_the_packet_after_an_add_is_marked_and_the_one_after_a_removal_is_not(
    wire: Wire, program: Program, host: str, connect: bool
) -> None:
    calls, handle, receiver = program.calls, program.create(), wire.receiver()
    peer = (host, receiver.port)
    sock = wire.sender(socket.AF_INET6 if host == V6 else socket.AF_INET, socket.SOCK_DGRAM)
    if connect:
        sock.connect(peer)
    recording = wire.record()
    for number in range(ROUNDS):
        flow = program.add(handle, sock, None if connect else peer, QOSTrafficTypeVoice)
        sock.sendto(DATAGRAM, peer)
        calls.QOSRemoveSocketFromFlow(handle, sock if number % 2 else None, flow)
        sock.sendto(DATAGRAM, peer)
    receiver.expect(2 * ROUNDS)
    assert marks(recording.stop().select(sport=port_of(sock))) == [56, 0] * ROUNDS


@HOSTS
def test_the_packet_after_the_close_of_a_handle_is_not_marked(wire: Wire, program: Program, host: str) -> None:
    calls, receiver = program.calls, wire.receiver()
    sockets = [connected(wire, host, receiver) for _ in range(3)]
    recording = wire.record()
    for _ in range(ROUNDS):
        handle = program.create()
        for sock in sockets:
            program.add(handle, sock, None, QOSTrafficTypeAudioVideo)
        for sock in sockets:
            sock.send(DATAGRAM)
        calls.QOSCloseHandle(handle)
        for sock in sockets:
            sock.send(DATAGRAM)
        receiver.expect(2 * len(sockets))
    packets = recording.stop().select(dport=receiver.port)
    for sock in sockets:
        assert marks(packets.select(sport=port_of(sock))) == [40, 0] * ROUNDS


def test_the_packet_after_a_change_has_the_new_mark(wire: Wire, program: Program) -> None:
    calls, handle, receiver = program.calls, program.create(), wire.receiver()
    sock = connected(wire, V4, receiver)
    recording = wire.record()
    flow = program.add(handle, sock, None, QOSTrafficTypeVoice)
    for _ in range(ROUNDS):
        for kind in (QOSTrafficTypeBackground, QOSTrafficTypeVoice):
            calls.QOSSetFlow(handle, flow, QOSSetTrafficType, 4, kind)
            sock.send(DATAGRAM)
    receiver.expect(2 * ROUNDS)
    assert marks(recording.stop().select(sport=port_of(sock))) == [8, 56] * ROUNDS


@pytest.mark.parametrize("binding", BINDINGS)
def test_a_forked_child_can_do_nothing_to_its_parents_flows_nor_keep_them_alive(wire: Wire, binding: str) -> None:
    recording, receiver, watch = wire.record(), wire.receiver(), wire.handle()
    before = watch.enumerate()
    parents, childs = (connected(wire, V4, receiver) for _ in range(2))

    def send() -> None:
        for sock in (parents, childs):
            sock.send(DATAGRAM)

    send()
    forked = Forked(wire.daemon.socket, binding, parents, childs)
    try:
        assert forked.verdict == {
            "add": ERROR_INVALID_HANDLE,
            "enumerate": ERROR_INVALID_HANDLE,
            "remove": ERROR_INVALID_HANDLE,
            "close": 0,
            "close again": ERROR_INVALID_PARAMETER,
        }
        send()
        forked.kill_parent()
        assert eventually(lambda: len(watch.enumerate()) == len(before) + 1)
        send()
        forked.end_child()
        assert eventually(lambda: watch.enumerate() == before)
        send()
    finally:
        forked.close()
    receiver.expect(8)
    packets = recording.stop().select(dport=receiver.port)
    assert marks(packets.select(sport=port_of(parents))) == [0, 56, 0, 0]
    assert marks(packets.select(sport=port_of(childs))) == [0, 8, 8, 0]


@pytest.mark.parametrize("binding", BINDINGS)
def test_programs_make_their_handle_anew_after_the_daemon_was_gone(own_wire: Wire, binding: str) -> None:
    """As Chromium and kMule do on 1164: close, create, and add everything again."""
    wire, daemon, receiver = own_wire, own_wire.daemon, own_wire.receiver()
    with Program(BINDINGS[binding](), daemon.socket) as program:
        calls, handle = program.calls, program.create()
        sock = connected(wire, V4, receiver)
        recording = wire.record()
        flow = program.add(handle, sock, None, QOSTrafficTypeVoice)
        sock.send(DATAGRAM)
        assert daemon.stop() == 0
        sock.send(DATAGRAM)
        contract = calls.QOS_FLOWRATE_OUTGOING(1_000_000, QOSShapeAndMark, QOSFlowRateNotApplicable)
        on_the_old_handle: list[Callable[[], int]] = [
            lambda: program.failure(
                calls.QOSAddSocketToFlow, handle, sock, None, QOSTrafficTypeVoice, QOS_NON_ADAPTIVE_FLOW
            ),
            lambda: program.failure(calls.QOSSetFlow, handle, flow, QOSSetOutgoingRate, 16, contract),
            lambda: program.failure(calls.QOSEnumerateFlows, handle),
        ]
        lost = ERROR_DEVICE_REINITIALIZATION_NEEDED
        assert [call() for call in on_the_old_handle] == [lost] * 3
        assert program.failure(program.create) == ERROR_SERVICE_DEPENDENCY_FAIL
        daemon.start()
        assert [call() for call in on_the_old_handle] == [lost] * 3
        again = program.create()
        program.add(again, sock, None, QOSTrafficTypeVoice)
        sock.send(DATAGRAM)
        calls.QOSCloseHandle(handle)
        sock.send(DATAGRAM)
        calls.QOSCloseHandle(again)
        sock.send(DATAGRAM)
        receiver.expect(5)
        assert marks(recording.stop().select(sport=port_of(sock))) == [56, 0, 56, 56, 0]
