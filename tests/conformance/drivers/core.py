"""The core as a program would see it, without a socket, a server or a clock: rows that the daemon judges.

Rows about sizes, pointers and flags are the client library's and are not run here: what such arguments are
is not known behind the protocol.
"""

from collections.abc import Iterable
from socket import AF_INET, AF_INET6
from typing import Any

from conformance.calls import Rate
from conformance.drivers.base import Driver
from conformance.numbers import (
    AVAILABLE,
    ERROR_IO_INCOMPLETE,
    ERROR_IO_PENDING,
    ERROR_NETWORK_BUSY,
    FRESH,
    QUERY_FUNDAMENTALS,
    QUERY_PRIORITY,
    SET_RATE,
    SET_TRAFFIC_TYPE,
)
from conformance.table import Sending, Step
from conformance.vocabulary import (
    Address,
    Admission,
    CannotMeasure,
    CloseSocket,
    Congestion,
    Connect,
    Disconnect,
    Estimate,
    Fundamentals,
    Kind,
    Listening,
    Mark,
    Measured,
    Neighbour,
    Outcome,
    Passes,
    Priority,
    Privileged,
    Reach,
    Refuses,
    Socket,
    Steered,
    Way,
    World,
)
from qos2.core.notifications import Completion
from qos2.core.rules import Deniable, Rules
from qos2.core.service import Limits, Service
from qos2.datapath.fake import FakeDatapath
from qos2.errors import NetworkBusy, QosError, Retry
from qos2.model import (
    Action,
    Bandwidth,
    Destination,
    FlowFundamentals,
    FlowRate,
    PacketPriority,
    Peer,
    SocketFacts,
    TrafficType,
    Transport,
)
from qos2.paths.fake import FakeConditions, FakePaths

#: The hosts of the table, in networks for documentation (RFC 5737, RFC 3849) and of multicast (RFC 5771).
HOSTS = {
    "peer": "198.51.100.2",
    "second": "198.51.100.3",
    "peer6": "2001:db8:2::2",
    "second6": "2001:db8:2::3",
    "any": "0.0.0.0",
    "any6": "::",
    "multicast": "239.1.2.3",
}
PORTS = (0, 5004, 5006)
HERE = 1  #: netns cookie
FD = 3  #: nobody looks at it

USER = Peer(pid=100, uid=1000, program="program", netns_cookie=HERE)
ROOT = Peer(pid=100, uid=0, privileged=True, program="program", netns_cookie=HERE)
USERS_NEIGHBOUR = Peer(pid=200, uid=1000, program="neighbour", netns_cookie=HERE)
ROOTS_NEIGHBOUR = Peer(pid=200, uid=0, privileged=True, program="neighbour", netns_cookie=HERE)


def limits_and_rules(world: World) -> tuple[Limits, Rules]:
    """What a service is told of a world."""
    return Limits(**world.limits), Rules(world.strict, frozenset(map(Deniable, world.deny)))


def mark_of(datapath: FakeDatapath, cookie: int, destination: Destination) -> Mark:
    """What a datapath in memory would do to a packet of this socket."""
    flow = datapath.flow_of(cookie, destination)
    if flow is None:
        return Mark()
    policy = datapath.policies[flow]
    return Mark(policy.dscp, policy.bandwidth, policy.action is Action.DELAY)


def set_way(paths: FakePaths, address: str, way: Way) -> None:
    """How a host is reached from here on."""
    paths.set_off_link(address, way is Way.OFF_LINK)
    paths.set_unreachable(address, way is Way.NO_ROUTE)


def refusal(error: int) -> QosError | None:
    """What admission says for a word of the table."""
    if error == 0:
        return None
    return (NetworkBusy if error == ERROR_NETWORK_BUSY else Retry)("the row says so")


def estimated(word: Estimate) -> FlowFundamentals:
    """An estimate of the table in the package's own type."""
    bottleneck = None if word.bottleneck is None else Bandwidth(word.bottleneck)
    available = None if word.available is None else Bandwidth(word.available)
    return FlowFundamentals(bottleneck, available, word.rtt_us)


class CoreDriver(Driver):
    """A service over fakes, with sockets that are facts alone."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._now_s = 1000.0
        self._datapath = FakeDatapath()
        self._paths = FakePaths()
        self._conditions = FakeConditions()
        limits, rules = limits_and_rules(world)
        self._service = Service(
            self._datapath,
            lambda: self._now_s,
            limits,
            "conformance",
            paths=self._paths,
            conditions=self._conditions,
            rules=rules,
        )
        self._peer = USER
        self._sockets: dict[str, SocketFacts] = {}
        self._requests: dict[str, int] = {}
        self._completions: dict[tuple[int, int], Completion] = {}
        self._last_request = 0
        for host in HOSTS.values():
            self._paths.set_off_link(host)

    def close(self) -> None:
        """Nothing of it is outside of this process."""

    def expected(self, outcome: Outcome) -> Outcome:
        """There are no buffers."""
        return Outcome(outcome.error, outcome.value)

    def settle(self, handle: Any) -> None:
        """Nothing is under way: what completes is in a list."""
        for each in self._service.take_completed():
            self._completions[each.handle, each.request] = each

    def marks(self, sendings: Iterable[Sending]) -> dict[Sending, Mark]:
        """What would happen now to a packet of each of these."""
        return {
            (name, address): mark_of(self._datapath, self._sockets[name].cookie, _destination(address))
            for name, address in sendings
        }

    def reach(self, state: Step | Steered) -> None:
        match state:
            case Privileged():
                self._peer = ROOT
            case Socket(name, kind, to):
                transport = Transport.TCP if kind in (Kind.TCP, Kind.TCP6) else Transport.UDP
                family = AF_INET if kind in (Kind.UDP, Kind.TCP) else AF_INET6
                peer = None if to is None else _destination(to)
                cookie = len(self._sockets) + 1
                only = kind is Kind.UDP6_ONLY
                self._sockets[name] = SocketFacts(cookie, transport, family, only, False, peer, HERE)
            case Listening(name):
                cookie = len(self._sockets) + 1
                self._sockets[name] = SocketFacts(cookie, Transport.TCP, AF_INET, False, True, None, HERE)
            case Connect(name, to):
                self._reconnect(name, _destination(to))
            case Disconnect(name):
                self._reconnect(name, None)
            case CloseSocket():
                pass  # nobody is told that a socket closes
            case Neighbour(flow, root):
                self._begin_neighbour(flow, ROOTS_NEIGHBOUR if root else USERS_NEIGHBOUR)
            case Steered():
                self._steer(state)
            case _:
                raise NotImplementedError(f"not a state of the core: {state}")

    def _reconnect(self, name: str, peer: Destination | None) -> None:
        was = self._sockets[name]
        self._sockets[name] = SocketFacts(was.cookie, was.transport, was.family, was.v6only, False, peer, HERE)

    def _begin_neighbour(self, flow: str, peer: Peer) -> None:
        self.flows[flow] = self._service.add_socket(
            self._service.open_handle(peer),
            FD,
            SocketFacts(1 << 32, Transport.UDP, AF_INET, False, False, Destination.parse(HOSTS["peer"], 1), HERE),
            traffic_type=TrafficType.VOICE,
            flow=0,
            destination=None,
            adaptive=False,
        )

    def _steer(self, state: Steered) -> None:
        match state:
            case Refuses(operation):
                self._datapath.refuse(operation)
            case Reach(host, way):
                set_way(self._paths, HOSTS[host.host], way)
            case Estimate(host):
                self._paths.set_estimate(HOSTS[host.host], estimated(state))
            case Measured(host):
                self._paths.finish_refresh(HOSTS[host.host])
            case CannotMeasure(host):
                self._paths.set_refresh(HOSTS[host.host], Retry("the row says so"))
            case Admission(error):
                for host_address in HOSTS.values():
                    self._paths.set_admission(host_address, refusal(error))
            case Congestion(flow, congested, free):
                self._conditions.set(self.flows[flow], congested=congested, free=free)
            case Passes(seconds):
                self._now_s += seconds
                self._service.tick()
            case _:
                raise NotImplementedError(f"not a state of the core: {state}")
        self._service.follow()

    # The calls

    def QOSCreateHandle(self, Version: Any, QOSHandle: Any = None) -> Outcome:
        return _outcome(lambda: self._service.open_handle(self._peer, Version))

    def QOSCloseHandle(self, QOSHandle: Any) -> Outcome:
        return _outcome(lambda: self._service.close_handle(QOSHandle))

    def QOSStartTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int) -> Outcome:
        return _outcome(lambda: self._service.start_tracking(QOSHandle, _written(DestAddr)))

    def QOSStopTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int) -> Outcome:
        return _outcome(lambda: self._service.stop_tracking(QOSHandle, _written(DestAddr)))

    def QOSEnumerateFlows(self, QOSHandle: Any, Size: Any, Buffer: Any) -> Outcome:
        return _outcome(lambda: list(self._service.enumerate(QOSHandle)))

    def QOSAddSocketToFlow(
        self, QOSHandle: Any, Socket: str, DestAddr: Any, TrafficType: int, Flags: int, FlowId: Any
    ) -> Outcome:
        return _outcome(
            lambda: self._service.add_socket(
                QOSHandle,
                FD,
                self._sockets[Socket],
                traffic_type=TrafficType,
                flow=FlowId,
                destination=None if DestAddr is None else _destination(DestAddr),
                adaptive=Flags == 0,
                written=None if DestAddr is None else _written(DestAddr),
            )
        )

    def QOSRemoveSocketFromFlow(self, QOSHandle: Any, Socket: str | None, FlowId: int, Flags: int) -> Outcome:
        facts = None if Socket is None else self._sockets[Socket]
        fd = None if Socket is None else FD
        return _outcome(lambda: self._service.remove_socket(QOSHandle, FlowId, fd, facts))

    def QOSSetFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        service = self._service
        if Operation == SET_TRAFFIC_TYPE:
            return _outcome(lambda: service.set_traffic_type(QOSHandle, FlowId, Buffer))
        if Operation == SET_RATE:
            rate: Rate = Buffer
            return _outcome(lambda: service.set_rate(QOSHandle, FlowId, rate.bandwidth, rate.shaping, rate.reason))
        return _outcome(lambda: service.set_dscp(QOSHandle, FlowId, Buffer))

    def QOSQueryFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        if Operation == QUERY_PRIORITY:
            return _outcome(lambda: self._service.priority(QOSHandle, FlowId))
        if Operation == QUERY_FUNDAMENTALS:
            request = self._numbered(Overlapped)
            outcome = _outcome(
                lambda: self._service.fundamentals(QOSHandle, FlowId, fresh=Flags == FRESH, request=request)
            )
            return Outcome(ERROR_IO_PENDING) if outcome == Outcome() else outcome
        rate = _outcome(lambda: self._service.rate(QOSHandle, FlowId))
        return Outcome(0, 0) if rate == Outcome() else rate

    def QOSNotifyFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        bandwidth: int = Buffer if Operation == AVAILABLE else 0
        request = self._numbered(Overlapped)
        outcome = _outcome(lambda: self._service.notify(QOSHandle, FlowId, Operation, bandwidth, request=request))
        if outcome.error:
            return outcome
        return Outcome() if outcome.value else Outcome(ERROR_IO_PENDING)

    def QOSCancel(self, QOSHandle: Any, Overlapped: Any) -> Outcome:
        return _outcome(lambda: self._service.cancel(QOSHandle, self._requests[Overlapped]))

    def GetOverlappedResult(self, QOSHandle: Any, Overlapped: str, Wait: bool) -> Outcome:
        self.settle(QOSHandle)
        completion = self._completions.get((QOSHandle, self._requests[Overlapped]))
        if completion is None:
            assert not Wait, f"{Overlapped} did not complete"
            return Outcome(ERROR_IO_INCOMPLETE)
        if completion.error is not None:
            return Outcome(completion.error.win32)
        return Outcome() if completion.result is None else Outcome(0, _value(completion.result))

    def _numbered(self, overlapped: str | None) -> int:
        """A new number for a request that may wait."""
        self._last_request += 1
        if overlapped is not None:
            self._requests[overlapped] = self._last_request
        return self._last_request


def _outcome(call: Any) -> Outcome:
    try:
        value = call()
    except QosError as error:
        return Outcome(error.win32)
    return Outcome(0, _value(value))


def _value(value: Any) -> object:
    """A result in the words of the table."""
    match value:
        case PacketPriority():
            return Priority(
                value.conformant_dscp, value.non_conformant_dscp, value.conformant_l2, value.non_conformant_l2
            )
        case FlowFundamentals():
            return Fundamentals(value.bottleneck, value.available, value.rtt_us)
        case FlowRate():
            return value.bandwidth
    return value


def _written(address: Address) -> str:
    """The address as a client writes it."""
    host = HOSTS[address.host]
    return f"::ffff:{host}" if address.mapped else host


def _destination(address: Address) -> Destination:
    """As the session reads it."""
    return Destination.parse(_written(address), PORTS[address.port])
