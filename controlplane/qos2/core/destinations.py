"""Which packets of a socket a flow takes: the rules for the destination given with a socket.

Pure: facts of the socket and the caller's words in, the destination to be bound out. The rules are
those of QOSAddSocketToFlow, made wider where its dual-stack cases are known to fail: an IPv4 address,
mapped or not, serves on every socket that can send IPv4.
"""

from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AF_INET

from qos2.errors import InvalidRequest
from qos2.model import ANY_DESTINATION, Destination, RemoteHost, SocketFacts, Transport


def bound_destination(facts: SocketFacts, destination: Destination | None, *, adaptive: bool) -> Destination:
    """What the socket joins a flow with.

    A connected TCP socket can send to nobody else, so the whole socket joins. A connected UDP socket
    joins with its peer, so that the marks outlive a disconnect (Sunshine connects, adds and disconnects).
    A listening socket without destination joins whole: what it accepts inherits the flow.

    Raises InvalidRequest for a missing destination, for one that is not the peer, for one of a family
    that the socket cannot send, and for a wildcard where an adaptive flow needs one path.
    """
    if destination is not None and destination.address is not None:
        _check_family(facts, destination)
    if facts.peer is not None:
        if destination is not None and destination != facts.peer:
            raise InvalidRequest(
                f"the socket is connected to {facts.peer}, not to {destination}", "leave the destination out"
            )
        return ANY_DESTINATION if facts.transport is Transport.TCP else facts.peer
    if destination is None:
        if facts.listening and not adaptive:
            return ANY_DESTINATION
        raise InvalidRequest(
            f"the {facts.transport} socket is not connected and no destination is given",
            "connect it first or give a destination; 0.0.0.0 with port 0 means every destination",
        )
    if adaptive and (destination.address is None or destination.port == 0):
        raise InvalidRequest(f"an adaptive flow has one path, {destination} has many", "give address and port")
    return destination


def check_as_written(facts: SocketFacts, address: str) -> None:
    """The rule of Windows, where the administrator wants it: an address is of the socket's own family, and not mapped.

    `address` is the text that the client sent, which has been parsed before. Raises InvalidRequest.
    """
    ip = ip_address(address.partition("%")[0])
    mapped = isinstance(ip, IPv6Address) and ip.ipv4_mapped is not None
    if mapped or isinstance(ip, IPv4Address) is not (facts.family == AF_INET):
        raise InvalidRequest(
            f"{address} is not of the socket's own address family",
            "connect() and leave it out; or `strict = false` in the daemon's configuration",
        )


def remote_host(facts: SocketFacts, destination: Destination | None) -> RemoteHost:
    """The other end of an adaptive flow's path, `destination` being one that bound_destination has agreed to."""
    one = facts.peer or destination
    assert one is not None
    assert one.address is not None
    return RemoteHost(one.address, facts.netns_cookie)


def _check_family(facts: SocketFacts, destination: Destination) -> None:
    is_ipv4 = isinstance(destination.address, IPv4Address)
    if facts.family == AF_INET:
        if not is_ipv4:
            raise InvalidRequest(f"an IPv4 socket cannot send to {destination}", "use an IPv6 socket")
    elif is_ipv4 and facts.v6only:
        raise InvalidRequest(
            f"an IPv6-only socket cannot send to {destination}", "use an IPv4 socket, or clear IPV6_V6ONLY"
        )
