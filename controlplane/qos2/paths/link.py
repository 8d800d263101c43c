"""Paths as far as the routing tables tell: which hosts are on the same link. Nothing is measured here yet.

So adaptive flows behave as on Windows before the first measurement: to a host on the link estimates are
"not yet" (ERROR_NO_DATA) and every rate is admitted; to others nothing can be learnt (ERROR_NOT_SUPPORTED).
"""

from collections.abc import Callable, Collection
from ipaddress import IPv4Address, IPv6Address

from qos2.errors import Retry
from qos2.model import Bandwidth, Condition, FlowFundamentals, FlowId, RemoteHost

#: (netns cookie, address) -> whether the host is on the link there. Raises HostUnreachable without a route.
OnLink = Callable[[int, IPv4Address | IPv6Address], bool]


class LinkPaths:
    """Implements core.ports.Paths without measuring. `in_use` are the hosts that a measurement would be for.

    Of a namespace that the datapath is not attached to no routes are known: until the first socket of it is
    in a flow, its hosts are not supported.
    """

    def __init__(self, on_link: OnLink) -> None:
        self._on_link = on_link
        self.in_use: set[RemoteHost] = set()

    def supports(self, host: RemoteHost) -> bool:
        return self._on_link(host.netns_cookie, host.address)

    def begin(self, host: RemoteHost) -> None:
        self.in_use.add(host)

    def end(self, host: RemoteHost) -> None:
        self.in_use.remove(host)

    def estimate(self, host: RemoteHost) -> FlowFundamentals | None:
        """None: nothing has been measured."""
        return None

    def refresh(self, host: RemoteHost) -> None:
        """Raises Retry: nothing here measures."""
        raise Retry(f"the way to {host} cannot be measured now", "this version knows of links, and measures no paths")

    def admit(self, host: RemoteHost, held: Bandwidth, wanted: Bandwidth) -> None:
        """Admits: nothing is known that would speak against it."""

    def measured(self) -> Collection[RemoteHost]:
        return ()


class UnknownConditions:
    """Implements core.ports.Conditions without judging: every answer is unknown, and never changes."""

    def __init__(self) -> None:
        self.watched: dict[FlowId, RemoteHost] = {}

    def watch(self, flow: FlowId, host: RemoteHost) -> None:
        self.watched[flow] = host

    def unwatch(self, flow: FlowId) -> None:
        del self.watched[flow]

    def holds(self, flow: FlowId, condition: Condition, *, held: Bandwidth, wanted: Bandwidth) -> bool:
        """False: unknown."""
        return False

    def changed(self) -> Collection[FlowId]:
        return ()
