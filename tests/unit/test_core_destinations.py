"""Which packets of a socket join a flow."""

from socket import AF_INET6

import pytest

from qos2.core.destinations import bound_destination
from qos2.errors import InvalidRequest
from qos2.model import ANY_DESTINATION, Destination, SocketFacts
from unit.core_stage import OTHER_PEER, PEER, PEER6, tcp, udp, udp6

LOOPBACK = Destination.parse("127.0.0.1", 9)
MULTICAST = Destination.parse("239.1.1.1", 5004)
MAPPED = Destination.parse("::ffff:192.0.2.7", 5004)


@pytest.mark.parametrize(
    ("facts", "destination", "bound"),
    [
        pytest.param(tcp(1, peer=PEER), None, ANY_DESTINATION, id="connected TCP joins whole"),
        pytest.param(tcp(1, peer=PEER), PEER, ANY_DESTINATION, id="connected TCP with its peer joins whole"),
        pytest.param(tcp(1), PEER, PEER, id="TCP before connect joins with the destination"),
        pytest.param(tcp(1, listening=True), None, ANY_DESTINATION, id="listening TCP joins whole"),
        pytest.param(tcp(1, listening=True), PEER, PEER, id="listening TCP for one client"),
        pytest.param(udp(1, peer=PEER), None, PEER, id="connected UDP joins with its peer"),
        pytest.param(udp(1, peer=PEER), PEER, PEER, id="connected UDP with its peer named"),
        pytest.param(udp(1), PEER, PEER, id="unconnected UDP"),
        pytest.param(udp(1), ANY_DESTINATION, ANY_DESTINATION, id="the zero address means every destination"),
        pytest.param(tcp(1), ANY_DESTINATION, ANY_DESTINATION, id="the zero address on TCP"),
        pytest.param(udp(1), Destination(PEER.address, 0), Destination(PEER.address, 0), id="any port"),
        pytest.param(udp(1), Destination(None, 53), Destination(None, 53), id="any address"),
        pytest.param(udp(1), LOOPBACK, LOOPBACK, id="loopback"),
        pytest.param(udp(1), MULTICAST, MULTICAST, id="multicast"),
        pytest.param(udp6(1), PEER6, PEER6, id="IPv6"),
        pytest.param(udp6(1), PEER, PEER, id="IPv4 on a dual-stack socket"),
        pytest.param(udp6(1), MAPPED, PEER, id="IPv4-mapped on a dual-stack socket"),
        pytest.param(udp6(1, v6only=True), PEER6, PEER6, id="IPv6 on an IPv6-only socket"),
        pytest.param(udp6(1, v6only=True), ANY_DESTINATION, ANY_DESTINATION, id="every one on an IPv6-only socket"),
        pytest.param(udp(1, peer=PEER, family=AF_INET6), MAPPED, PEER, id="dual-stack connected to IPv4"),
    ],
)
def test_a_socket_joins_with(facts: SocketFacts, destination: Destination | None, bound: Destination) -> None:
    assert bound_destination(facts, destination, adaptive=False) == bound


@pytest.mark.parametrize(
    ("facts", "destination", "message"),
    [
        (udp(1), None, "the udp socket is not connected and no destination is given"),
        (tcp(1), None, "the tcp socket is not connected and no destination is given"),
        (udp(1, peer=PEER), OTHER_PEER, "the socket is connected to 192.0.2.7:5004, not to 192.0.2.8:5004"),
        (tcp(1, peer=PEER), OTHER_PEER, "the socket is connected to 192.0.2.7:5004, not to 192.0.2.8:5004"),
        (udp(1, peer=PEER), ANY_DESTINATION, "the socket is connected to 192.0.2.7:5004, not to *:*"),
        (udp(1), PEER6, "an IPv4 socket cannot send to [2001:db8::7]:5004"),
        (udp(1, peer=PEER), PEER6, "an IPv4 socket cannot send to [2001:db8::7]:5004"),
        (udp6(1, v6only=True), PEER, "an IPv6-only socket cannot send to 192.0.2.7:5004"),
        (udp6(1, v6only=True), MAPPED, "an IPv6-only socket cannot send to 192.0.2.7:5004"),
    ],
)
def test_a_socket_is_refused_with_what_would_serve(
    facts: SocketFacts, destination: Destination | None, message: str
) -> None:
    with pytest.raises(InvalidRequest) as refused:
        bound_destination(facts, destination, adaptive=False)
    assert refused.value.message == message
    assert refused.value.hint


@pytest.mark.parametrize(
    ("facts", "destination"),
    [
        (udp(1), ANY_DESTINATION),
        (udp(1), Destination(None, 53)),
        (udp(1), Destination(PEER.address, 0)),
        (tcp(1, listening=True), None),
    ],
)
def test_an_adaptive_flow_needs_one_path(facts: SocketFacts, destination: Destination | None) -> None:
    with pytest.raises(InvalidRequest):
        bound_destination(facts, destination, adaptive=True)


@pytest.mark.parametrize(
    ("facts", "destination", "bound"),
    [(tcp(1, peer=PEER), None, ANY_DESTINATION), (udp(1, peer=PEER), None, PEER), (udp(1), PEER, PEER)],
)
def test_an_adaptive_flow_takes_a_socket_with_one_path(
    facts: SocketFacts, destination: Destination | None, bound: Destination
) -> None:
    assert bound_destination(facts, destination, adaptive=True) == bound
