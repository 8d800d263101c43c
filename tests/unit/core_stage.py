"""The stage of the core's tests: the service over a datapath in memory, with a clock that the test turns."""

from ipaddress import ip_address
from socket import AF_INET, AF_INET6

from qos2.core.notifications import Completion
from qos2.core.rules import Rules
from qos2.core.service import Limits, Service
from qos2.datapath.fake import FakeDatapath
from qos2.model import Destination, FlowFundamentals, FlowId, Peer, SocketFacts, TrafficType, Transport
from qos2.paths.fake import FakeConditions, FakePaths

HERE = 4026531840  #: netns cookie
ELSEWHERE = 5
FD = 3  #: the fake never looks at it

ALICE = Peer(pid=100, uid=1000, program="voip", netns_cookie=HERE)
ALICE_TOO = Peer(pid=101, uid=1000, program="backup", netns_cookie=HERE)
BOB = Peer(pid=200, uid=1001, program="game", netns_cookie=HERE)
ROOT = Peer(pid=1, uid=0, privileged=True, program="qos2", netns_cookie=HERE)


def at(address: str, port: int = 5004) -> Destination:
    return Destination(ip_address(address), port)


PEER = at("192.0.2.7")
OTHER_PEER = at("192.0.2.8")
PEER6 = at("2001:db8::7")


def udp(
    cookie: int,
    *,
    peer: Destination | None = None,
    family: int = AF_INET,
    v6only: bool = False,
    netns: int = HERE,
) -> SocketFacts:
    return SocketFacts(cookie, Transport.UDP, family, v6only, False, peer, netns)


def tcp(
    cookie: int,
    *,
    peer: Destination | None = None,
    family: int = AF_INET,
    v6only: bool = False,
    listening: bool = False,
    netns: int = HERE,
) -> SocketFacts:
    return SocketFacts(cookie, Transport.TCP, family, v6only, listening, peer, netns)


def udp6(cookie: int, *, v6only: bool = False) -> SocketFacts:
    return udp(cookie, family=AF_INET6, v6only=v6only)


class Stage:
    """A service with one open handle of ALICE; `now_s` is what its clock shows.

    Every host is on-link and unmeasured, no condition is known, until a test says more to `paths` and `conditions`.
    """

    def __init__(
        self, fake: FakeDatapath | None = None, limits: Limits | None = None, rules: Rules | None = None
    ) -> None:
        self.now_s = 1000.0
        self.fake = fake if fake is not None else FakeDatapath()
        self.paths = FakePaths()
        self.conditions = FakeConditions()
        self.service = Service(
            self.fake,
            lambda: self.now_s,
            limits if limits is not None else Limits(),
            "1.2.3",
            paths=self.paths,
            conditions=self.conditions,
            rules=rules if rules is not None else Rules(),
        )
        self.handle = self.service.open_handle(ALICE)

    def set_condition(self, flow: int, *, congested: bool | None, free: int = 0) -> list[Completion]:
        """The condition of a flow from now on; what that completes."""
        self.conditions.set(flow, congested=congested, free=free)
        self.service.follow()
        return self.service.take_completed()

    def measure(self, address: str, estimate: FlowFundamentals | None) -> list[Completion]:
        """The measurements under way of a host end with this; what that completes."""
        self.paths.set_estimate(address, estimate)
        self.paths.finish_refresh(address)
        self.service.follow()
        return self.service.take_completed()

    def add(
        self,
        facts: SocketFacts,
        destination: Destination | None = None,
        *,
        traffic_type: int = TrafficType.VOICE,
        flow: int = 0,
        adaptive: bool = False,
        handle: int | None = None,
    ) -> FlowId:
        return self.service.add_socket(
            self.handle if handle is None else handle,
            FD,
            facts,
            traffic_type=traffic_type,
            flow=flow,
            destination=destination,
            adaptive=adaptive,
        )

    def remove(self, flow: int, facts: SocketFacts | None = None, *, handle: int | None = None) -> None:
        fd = None if facts is None else FD
        self.service.remove_socket(self.handle if handle is None else handle, flow, fd, facts)

    def dscp(self, flow: FlowId) -> int | None:
        """What the datapath was told to write."""
        return self.fake.policies[flow].dscp

    def bound(self) -> dict[int, dict[Destination, FlowId]]:
        """Bindings in the datapath that do something: those of flows that have not ended."""
        living = {
            cookie: {where: flow for where, flow in flows.items() if flow in self.fake.policies}
            for cookie, flows in self.fake.bindings.items()
        }
        return {cookie: flows for cookie, flows in living.items() if flows}
