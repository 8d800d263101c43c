"""Questions to a namespace's routing tables: is there a way to a host, is it on the same link, by which device?

The kernel is asked for each (RTM_GETROUTE, rtnetlink(7)), so that the answer is what a packet would get
now. It is that of an unbound socket without mark: rules for sources, marks and devices are passed over.
"""

import errno
import struct
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6

from qos2.datapath.netlink import Conversation, Message, NetlinkRefused, Request, attribute, attributes
from qos2.errors import HostUnreachable
from qos2.model import Reach

# linux/rtnetlink.h
RTM_GETROUTE = 26
RTN_UNICAST = 1
RTN_LOCAL = 2
RTA_DST = 1
RTA_OIF = 4
RTA_GATEWAY = 5
RTA_VIA = 18

#: struct rtmsg: family, lengths of destination and source in bits, tos, table, protocol, scope, type, flags.
_ROUTE = struct.Struct("=8BI")
_INDEX = struct.Struct("=I")

#: What the kernel says where it has no route, or one that forbids, or no such address family.
_NO_ROUTE = frozenset(
    {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EOPNOTSUPP, errno.EAFNOSUPPORT}
)


def reach(conversation: Conversation, address: IPv4Address | IPv6Address) -> Reach:
    """How packets to this address travel; this machine's own addresses are on the link too.

    Raises HostUnreachable without a route, DatapathError where the kernel does not answer.
    """
    answer = _route(conversation, address)
    if _ROUTE.unpack_from(answer.body)[7] not in (RTN_UNICAST, RTN_LOCAL):
        return Reach.NO_HOST
    told = {each for each, _payload in attributes(answer.body[_ROUTE.size :])}
    return Reach.ROUTED if told & {RTA_GATEWAY, RTA_VIA} else Reach.ON_LINK


def device_index(conversation: Conversation, address: IPv4Address | IPv6Address) -> int | None:
    """The device by which packets to this address leave; None where the route names none. Raises as reach()."""
    for kind, payload in attributes(_route(conversation, address).body[_ROUTE.size :]):
        if kind == RTA_OIF:
            return int(_INDEX.unpack(payload)[0])
    return None


def _route(conversation: Conversation, address: IPv4Address | IPv6Address) -> Message:
    family = AF_INET if isinstance(address, IPv4Address) else AF_INET6
    body = _ROUTE.pack(family, address.max_prefixlen, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, address.packed)
    try:
        return conversation.get(Request(RTM_GETROUTE, 0, body, f"looking for a route to {address}"))
    except NetlinkRefused as refused:
        if refused.number in _NO_ROUTE:
            raise HostUnreachable(f"no route to {address}", "see: ip route get") from refused
        raise
