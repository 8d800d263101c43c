"""Programs that ask for a DSCP of their own choice, call for call as their sources make them, judged at the peer.

On Windows only administrators may; every one of these programs goes on with the mark of its traffic type, or
without any, where the answer is 5. Both are played here, as root and as an ordinary user.
"""

import socket
from collections.abc import Iterator

import pytest

from harness.qos2_h import (
    ERROR_ACCESS_DENIED,
    ERROR_NOT_FOUND,
    QOSQueryOutgoingRate,
    QOSQueryPacketPriority,
    QOSSetOutgoingDSCPValue,
    QOSTrafficTypeBestEffort,
    QOSTrafficTypeControl,
    QOSTrafficTypeExcellentEffort,
    QOSTrafficTypeVoice,
)
from harness.windows import BINDINGS, Program
from harness.wire import Wire, marks, port_of, read

pytestmark = pytest.mark.datapath

V4, V4_SECOND, V6, V6_SECOND = "198.51.100.2", "198.51.100.3", "2001:db8:2::2", "2001:db8:2::3"
DATAGRAM = b"the same datagram every time"

RIGHTS = pytest.mark.parametrize("privileged", [True, False], ids=["root", "user"])


@pytest.fixture(params=BINDINGS)
def program(request: pytest.FixtureRequest, wire: Wire) -> Iterator[Program]:
    with Program(BINDINGS[request.param](), wire.daemon.socket) as program:
        yield program


@RIGHTS
def test_cyclonedds_marks_all_that_its_socket_sends_by_a_zeroed_address(
    wire: Wire, program: Program, privileged: bool
) -> None:
    """Its handle is deliberately never closed: the marks last as long as the program."""
    handle, receiver = program.create(privileged=privileged), wire.receiver()
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    recording = wire.record()
    hosts = (V4, V4_SECOND)
    for host in hosts:
        sock.sendto(DATAGRAM, (host, receiver.port))
    flow = program.add(handle, sock, ("0.0.0.0", 0), QOSTrafficTypeVoice)
    denied = program.failure(program.calls.QOSSetFlow, handle, flow, QOSSetOutgoingDSCPValue, 4, 46)
    for host in hosts * 2:
        sock.sendto(DATAGRAM, (host, receiver.port))
    receiver.expect(6)
    packets = recording.stop().select(sport=port_of(sock))
    dscp = 46 if privileged else 56
    for host in hosts:
        assert marks(packets.select(destination=host)) == [0, dscp, dscp]
    assert denied == (0 if privileged else ERROR_ACCESS_DENIED)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_siplib_names_a_family_alone_and_sets_the_dscp(
    wire: Wire, program: Program, family: socket.AddressFamily
) -> None:
    calls, handle, receiver = program.calls, program.create(), wire.receiver()
    sock = wire.sender(family, socket.SOCK_DGRAM)
    hosts = (V4, V4_SECOND) if family == socket.AF_INET else (V6, V6_SECOND)
    anywhere = "0.0.0.0" if family == socket.AF_INET else "::"
    recording = wire.record()
    flow = program.add(handle, sock, (anywhere, 0), QOSTrafficTypeBestEffort)
    for host in hosts:
        sock.sendto(DATAGRAM, (host, receiver.port))
    calls.QOSSetFlow(handle, flow, QOSSetOutgoingDSCPValue, 4, 46)
    for host in hosts:
        sock.sendto(DATAGRAM, (host, receiver.port))
    calls.QOSRemoveSocketFromFlow(handle, sock, flow)
    for host in hosts:
        sock.sendto(DATAGRAM, (host, receiver.port))
    assert program.failure(calls.QOSRemoveSocketFromFlow, handle, sock, flow) == ERROR_NOT_FOUND
    calls.QOSCloseHandle(handle)
    receiver.expect(6)
    packets = recording.stop().select(sport=port_of(sock))
    for host in hosts:
        assert marks(packets.select(destination=host)) == [0, 46, 0]


@pytest.mark.parametrize("host", [V4, V6])
def test_siplibs_tcp_channel_is_marked_towards_its_peer(wire: Wire, program: Program, host: str) -> None:
    calls, handle, listener = program.calls, program.create(), wire.listener()
    sock = wire.sender(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    peer = (host, port_of(listener))
    sock.connect(peer)
    accepted = wire.accept(listener)

    def send() -> dict[int, int]:
        recording = wire.record()
        sock.sendall(bytes(20_000))
        read(accepted, 20_000)
        packets = recording.stop().select(sport=port_of(sock))
        assert packets.ip_bytes.sum() > 20_000
        assert packets.checksum_ok.all()
        return {dscp: 1 for dscp in packets.dscps()}

    assert send() == {0: 1}
    flow = program.add(handle, sock, peer, QOSTrafficTypeBestEffort)
    calls.QOSSetFlow(handle, flow, QOSSetOutgoingDSCPValue, 4, 26)
    assert send() == {26: 1}
    calls.QOSRemoveSocketFromFlow(handle, sock, flow)
    assert send() == {0: 1}


@RIGHTS
@pytest.mark.parametrize("host", [None, V4, V6])
def test_openppp2_gives_the_flow_up_where_the_dscp_is_refused(
    wire: Wire, program: Program, privileged: bool, host: str | None
) -> None:
    calls, handle, receiver = program.calls, program.create(privileged=privileged), wire.receiver()
    peer = (host or V6, receiver.port)
    sock = wire.sender(socket.AF_INET if host == V4 else socket.AF_INET6, socket.SOCK_DGRAM)
    if host is None:
        sock.connect(peer)
    recording = wire.record()
    sock.sendto(DATAGRAM, peer)
    flow = program.add(handle, sock, None if host is None else peer, QOSTrafficTypeControl)
    if program.failure(calls.QOSSetFlow, handle, flow, QOSSetOutgoingDSCPValue, 4, 26):
        calls.QOSRemoveSocketFromFlow(handle, None, flow)
    sock.sendto(DATAGRAM, peer)
    receiver.expect(2)
    assert marks(recording.stop().select(sport=port_of(sock))) == [0, 26 if privileged else 0]


def test_vanaras_test_enumerates_its_flow_and_asks_for_a_rate_that_nobody_set(wire: Wire, program: Program) -> None:
    calls, handle, receiver = program.calls, program.create(), wire.receiver()
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    before = calls.QOSEnumerateFlows(handle)
    recording = wire.record()
    flow = program.add(handle, sock, (V4, receiver.port), QOSTrafficTypeBestEffort)
    sock.sendto(DATAGRAM, (V4, receiver.port))
    calls.QOSSetFlow(handle, flow, QOSSetOutgoingDSCPValue, 4, 40)
    assert sorted(calls.QOSEnumerateFlows(handle)) == sorted([*before, flow])
    assert calls.QOSQueryFlow(handle, flow, QOSQueryOutgoingRate) == 0
    sock.sendto(DATAGRAM, (V4, receiver.port))
    calls.QOSRemoveSocketFromFlow(handle, sock, flow)
    assert calls.QOSEnumerateFlows(handle) == before
    sock.sendto(DATAGRAM, (V4, receiver.port))
    receiver.expect(3)
    assert marks(recording.stop().select(sport=port_of(sock))) == [0, 40, 0]


@RIGHTS
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_iperf_and_jacktrip_emulate_ip_tos_and_read_it_back(
    wire: Wire, program: Program, privileged: bool, kind: socket.SocketKind
) -> None:
    """setsockopt(IP_TOS) by a connected socket, a type and a DSCP; getsockopt by the priority that is in force."""
    calls, handle = program.calls, program.create(privileged=privileged)
    sock = wire.sender(socket.AF_INET, kind)
    receiver, listener = wire.receiver(), wire.listener()
    sock.connect((V4, port_of(listener) if kind == socket.SOCK_STREAM else receiver.port))
    accepted = wire.accept(listener) if kind == socket.SOCK_STREAM else None
    recording = wire.record()
    flow = program.add(handle, sock, None, QOSTrafficTypeExcellentEffort)
    seen = []
    for tos in (0xB8, 0x88, 0x20):
        program.failure(calls.QOSSetFlow, handle, flow, QOSSetOutgoingDSCPValue, 4, tos >> 2)
        priority = calls.QOSQueryFlow(handle, flow, QOSQueryPacketPriority)
        l2 = (priority.ConformantL2Value, priority.NonConformantL2Value)
        assert (priority.NonConformantDSCPValue, l2) == (0, (0, 0))
        seen.append(int(priority.ConformantDSCPValue))
        sock.send(DATAGRAM)
        if accepted is None:
            receiver.expect(1)
        else:
            # One segment each, and no acknowledgement of ours in between.
            read(accepted, len(DATAGRAM))
    packets = recording.stop().select(sport=port_of(sock))
    assert packets.checksum_ok.all()
    assert seen == ([46, 34, 8] if privileged else [40] * 3)
    assert packets.dscp.tolist() == seen
