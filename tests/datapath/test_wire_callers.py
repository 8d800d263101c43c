"""Programs that mark by traffic type, each call for call as its source makes them, judged at the peer.

Every test plays one known program with both bindings. What the peer captures must be the same packet as before
but for the mark, and the mark what the program had asked for when it sent.
"""

import socket
from collections.abc import Iterator

import pytest

from harness.qos2_h import (
    ERROR_ACCESS_DENIED,
    ERROR_INVALID_PARAMETER,
    ERROR_NOT_FOUND,
    QOS_NON_ADAPTIVE_FLOW,
    QOSSetOutgoingDSCPValue,
    QOSTrafficTypeAudioVideo,
    QOSTrafficTypeBackground,
    QOSTrafficTypeBestEffort,
    QOSTrafficTypeControl,
    QOSTrafficTypeExcellentEffort,
    QOSTrafficTypeVoice,
)
from harness.windows import BINDINGS, Program
from harness.wire import Receiver, Wire, disconnect, marks, port_of, read

pytestmark = pytest.mark.datapath

V4, V4_SECOND, V6, V6_SECOND = "198.51.100.2", "198.51.100.3", "2001:db8:2::2", "2001:db8:2::3"
DATAGRAM = b"the same datagram every time"


@pytest.fixture(params=BINDINGS)
def program(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Program]:
    with Program(BINDINGS[request.param](), wire.daemon.socket) as program:
        yield program


def connected(wire: Wire, host: str, receiver: Receiver) -> socket.socket:
    sock = wire.sender(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((host, receiver.port))
    return sock


class Chromium:
    """Its DscpManager: one flow for all remote addresses of a socket, made again where the DSCP changes."""

    TYPES = ((56, QOSTrafficTypeControl), (46, QOSTrafficTypeVoice), (34, QOSTrafficTypeAudioVideo))

    def __init__(self, program: Program, handle: object, sock: socket.socket) -> None:
        self._calls, self._program, self._handle, self._socket = program.calls, program, handle, sock
        self._dscp = self._flow = 0
        self._configured: set[tuple[str, int]] = set()
        self.overrides: list[int] = []

    def set_dscp(self, dscp: int) -> None:
        if self._flow:
            self._calls.QOSRemoveSocketFromFlow(self._handle, None, self._flow)
        self._dscp, self._flow, self._configured = dscp, 0, set()

    def prepare(self, remote: tuple[str, int]) -> None:
        """Before each datagram; only the first one to an address makes calls."""
        if remote in self._configured:
            return
        self._configured.add(remote)
        kind = next(kind for least, kind in self.TYPES if self._dscp >= least)
        is_new = self._flow == 0
        self._flow = self._program.add(self._handle, self._socket, remote, kind, self._flow)
        if is_new:
            # Only administrators may: the outcome is not looked at, the type's own mark will do.
            arguments = (self._handle, self._flow, QOSSetOutgoingDSCPValue, 4, self._dscp)
            self.overrides.append(self._program.failure(self._calls.QOSSetFlow, *arguments))


@pytest.mark.parametrize("privileged", [True, False])
def test_chromium_has_one_flow_for_all_remote_addresses_and_another_after_a_change_of_dscp(
    wire: Wire, program: Program, privileged: bool
) -> None:
    receivers = [wire.receiver(), wire.receiver()]
    remotes = [(host, receiver.port) for host in (V4, V4_SECOND) for receiver in receivers]
    handle = program.create(privileged=privileged)
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    chromium = Chromium(program, handle, sock)
    recording = wire.record()

    def send(prepared: bool) -> None:
        for remote in remotes:
            if prepared:
                chromium.prepare(remote)
            sock.sendto(DATAGRAM, remote)

    send(prepared=False)
    chromium.set_dscp(34)
    send(prepared=True)
    send(prepared=True)
    chromium.set_dscp(46)
    send(prepared=False)
    send(prepared=True)
    chromium.set_dscp(0)
    program.calls.QOSCloseHandle(handle)
    send(prepared=False)
    for receiver in receivers:
        receiver.expect(12)
    packets = recording.stop().select(sport=port_of(sock))
    video, voice = (34, 46) if privileged else (40, 56)
    for host, port in remotes:
        assert marks(packets.select(destination=host, dport=port)) == [0, video, video, 0, voice, 0]
    assert chromium.overrides == [0 if privileged else ERROR_ACCESS_DENIED] * 2


def test_sunshine_keeps_its_marks_over_the_disconnect_of_a_dual_stack_socket(wire: Wire, program: Program) -> None:
    """Its peers are IPv4-mapped: connect, add without an address, connect to nowhere; a flow per client and stream."""
    calls, handle = program.calls, program.create()
    first, second = wire.receiver(), wire.receiver()
    clients = [(f"::ffff:{V4}", first.port), (f"::ffff:{V4_SECOND}", second.port), (V6, first.port)]
    streams = {}
    recording = wire.record()
    for name, kind in (("video", QOSTrafficTypeAudioVideo), ("audio", QOSTrafficTypeVoice)):
        sock = wire.sender(socket.AF_INET6, socket.SOCK_DGRAM)
        sock.bind(("::", 0))
        flows = []
        for client in clients:
            if client[0].startswith("::ffff:"):
                sock.connect(client)
                flows.append(program.add(handle, sock, None, kind))
                disconnect(sock)
            else:
                flows.append(program.add(handle, sock, client, kind))
        streams[name] = sock, flows
        assert len(set(flows)) == len(clients)
    stranger = (f"::ffff:{V4}", second.port)
    for left in range(len(clients) + 1):
        for sock, flows in streams.values():
            for client in [*clients, stranger]:
                sock.sendto(DATAGRAM, client)
            if left < len(clients):
                calls.QOSRemoveSocketFromFlow(handle, None, flows[left])
    first.expect(16)
    second.expect(16)
    packets = recording.stop()
    for name, dscp in (("video", 40), ("audio", 56)):
        sent = packets.select(sport=port_of(streams[name][0]))
        for index, (host, port) in enumerate(clients):
            expected = [dscp] * (index + 1) + [0] * (len(clients) - index)
            assert marks(sent.select(destination=host, dport=port)) == expected
        assert marks(sent.select(destination=stranger[0], dport=stranger[1])) == [0] * 4


@pytest.mark.parametrize("host", [V4, V6])
def test_enet_adds_once_at_its_first_datagram_and_never_removes(wire: Wire, program: Program, host: str) -> None:
    receiver, other = wire.receiver(), wire.receiver()
    handle = program.create()
    sock = wire.sender(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    recording = wire.record()
    sock.sendto(DATAGRAM, (host, receiver.port))
    program.add(handle, sock, (host, receiver.port), QOSTrafficTypeControl)
    for _ in range(20):
        sock.sendto(DATAGRAM, (host, receiver.port))
        sock.sendto(DATAGRAM, (host, other.port))
    program.calls.QOSCloseHandle(handle)
    sock.sendto(DATAGRAM, (host, receiver.port))
    receiver.expect(22)
    other.expect(20)
    packets = recording.stop().select(sport=port_of(sock))
    assert marks(packets.select(dport=receiver.port)) == [0] + [56] * 20 + [0]
    assert marks(packets.select(dport=other.port)) == [0] * 20


def test_mumbles_client_marks_its_control_connection_and_its_voice(wire: Wire, program: Program) -> None:
    calls, handle = program.calls, program.create()
    listener, receiver = wire.listener(), wire.receiver()
    stream = wire.sender(socket.AF_INET6, socket.SOCK_STREAM)
    stream.connect((f"::ffff:{V4}", port_of(listener)))
    accepted = wire.accept(listener)
    # Of both families, as Qt makes it: where the server has an IPv4 address, Windows answers the add with 87.
    datagrams = wire.sender(socket.AF_INET6, socket.SOCK_DGRAM)
    server = (f"::ffff:{V4}", receiver.port)

    def send() -> list[int]:
        recording = wire.record()
        datagrams.sendto(DATAGRAM, server)
        stream.sendall(bytes(50_000))
        read(accepted, 50_000)
        receiver.expect(1)
        packets = recording.stop()
        segments = packets.select(sport=port_of(stream))
        assert segments.ip_bytes.sum() > 50_000
        assert segments.checksum_ok.all()
        (dscp,) = segments.dscps()
        return [dscp, *marks(packets.select(sport=port_of(datagrams)))]

    assert send() == [0, 0]
    control = program.add(handle, stream, None, QOSTrafficTypeAudioVideo)
    voice = program.add(handle, datagrams, (V4, receiver.port), QOSTrafficTypeVoice)
    assert send() == [40, 56]
    calls.QOSRemoveSocketFromFlow(handle, None, voice)
    assert send() == [40, 0]
    calls.QOSRemoveSocketFromFlow(handle, None, control)
    # What it does where the add had failed, too; the error goes to its log alone.
    assert program.failure(calls.QOSRemoveSocketFromFlow, handle, None, 0) == ERROR_NOT_FOUND
    assert send() == [0, 0]
    calls.QOSCloseHandle(handle)


def test_murmur_adds_and_removes_around_every_single_datagram(wire: Wire, program: Program) -> None:
    calls, handle = program.calls, program.create()
    before = calls.QOSEnumerateFlows(handle)
    receivers = [wire.receiver(), wire.receiver()]
    users = [
        (host, receiver.port)
        for host in (f"::ffff:{V4}", f"::ffff:{V4_SECOND}", V6, V6_SECOND)
        for receiver in receivers
    ]
    sock = wire.sender(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.bind(("::", 0))
    recording = wire.record()
    for _ in range(25):
        for user in users:
            flow = program.add(handle, sock, user, QOSTrafficTypeVoice)
            sock.sendto(DATAGRAM, user)
            calls.QOSRemoveSocketFromFlow(handle, None, flow)
        for user in users:
            sock.sendto(DATAGRAM, user)
    for receiver in receivers:
        receiver.expect(200)
    packets = recording.stop().select(sport=port_of(sock))
    for host, port in users:
        assert marks(packets.select(destination=host, dport=port)) == [56, 0] * 25
    assert calls.QOSEnumerateFlows(handle) == before


def test_baresip_marks_connected_sockets_and_hears_87_of_others(wire: Wire, program: Program) -> None:
    """libre's udp_settos: no address at all, a type for each range of the TOS byte."""
    calls, handle, receiver = program.calls, program.create(), wire.receiver()
    ranges = (
        (0, QOSTrafficTypeBestEffort, 0),
        (32, QOSTrafficTypeBackground, 8),
        (40, QOSTrafficTypeExcellentEffort, 40),
        (136, QOSTrafficTypeAudioVideo, 40),
        (184, QOSTrafficTypeVoice, 56),
        (224, QOSTrafficTypeControl, 56),
    )
    recording = wire.record()
    unconnected = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    arguments = (handle, unconnected, None, QOSTrafficTypeVoice, QOS_NON_ADAPTIVE_FLOW)
    assert program.failure(calls.QOSAddSocketToFlow, *arguments) == ERROR_INVALID_PARAMETER
    unconnected.sendto(DATAGRAM, (V4, receiver.port))
    sockets = [connected(wire, host, receiver) for host in (V4, V6) for _ in ranges]
    flows = []
    for sock, (_, kind, _) in zip(sockets, ranges * 2, strict=True):
        sock.send(DATAGRAM)
        flows.append(program.add(handle, sock, None, kind))
        sock.send(DATAGRAM)
    for sock, flow in zip(sockets, flows, strict=True):
        calls.QOSRemoveSocketFromFlow(handle, None, flow)
        sock.send(DATAGRAM)
    calls.QOSCloseHandle(handle)
    receiver.expect(1 + 3 * len(sockets))
    packets = recording.stop().select(dport=receiver.port)
    assert marks(packets.select(sport=port_of(unconnected))) == [0]
    for index, (sock, (_, _, dscp)) in enumerate(zip(sockets, ranges * 2, strict=True)):
        family = 4 if index < len(ranges) else 6
        assert marks(packets.select(sport=port_of(sock), family=family)) == [0, dscp, 0]
