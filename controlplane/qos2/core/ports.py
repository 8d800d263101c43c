"""What the core needs of the outside: datapath, paths, conditions, a clock. Edges implement them, fakes test them."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from qos2.core.rule import Bucket, Rule
from qos2.model import (
    Bandwidth,
    Condition,
    DatapathStatus,
    Destination,
    Dscp,
    Explanation,
    FlowFundamentals,
    FlowId,
    FlowPolicy,
    FlowStats,
    PathReport,
    Peer,
    RemoteHost,
    SocketFacts,
)


class Clock(Protocol):
    """Seconds since some fixed point, never going backwards."""

    def __call__(self) -> float: ...


#: A pool never holds more flows that nobody has drawn.
POOL_CAPACITY = 1024


@dataclass(frozen=True, slots=True)
class InstalledRule:
    """A rule as the datapath is told of it. `flow` None: what it matches passes untouched (deny, exempt).

    `pool`: flows that were put and wait to be drawn, one for each socket or remote host, in this order; the rule's
    own flow serves where none is left. Of a rule whose `flow` was in the ruleset before it is empty: that pool goes on.
    """

    rule: Rule
    flow: FlowId | None
    pool: tuple[FlowId, ...] = ()

    @property
    def pooled(self) -> bool:
        """Whether it has a pool at all; one bucket for each is none without a rate."""
        act = self.rule.act
        return self.flow is not None and act.bucket is not Bucket.SHARED and act.rate > 0


class WayOut(NamedTuple):
    """By which device packets to a host leave now; empty: not known. `why`: why they are not seen when they leave."""

    device: str = ""
    attached: bool = False  #: whether the datapath sees what leaves by it
    why: str = ""


class Datapath(Protocol):
    """The kernel side. Each method raises DatapathError where the kernel refuses."""

    @property
    def max_flows(self) -> int:
        """How many slots the maps have; slots 1 .. max_flows are usable."""
        ...

    def occupied_slots(self) -> Mapping[int, FlowId]:
        """Slots in use since before this daemon began (flows taken over), with their ids."""
        ...

    def generation(self, slot: int) -> int:
        """The generation that this slot had last, or 0: the next flow in it must get another one."""
        ...

    def put(self, policy: FlowPolicy, *, fresh: bool) -> None:
        """Begin a flow (`fresh`: its counters start at 0) or change what it does. No packet is lost or unmarked."""
        ...

    def end(self, flow: FlowId) -> None:
        """End a flow: its sockets' packets pass untouched from now on."""
        ...

    def bind(self, fd: int, facts: SocketFacts, flows: Mapping[Destination, FlowId]) -> None:
        """Make `flows` the complete set of flows of this socket (empty: none). Does not keep `fd`."""
        ...

    def unbind(self, cookie: int, destinations: tuple[Destination, ...]) -> None:
        """Forget destinations of a socket whose descriptor is not at hand (its flow has ended)."""
        ...

    def adopt_program(self, flow: FlowId, peer: Peer) -> None:
        """Put the peer's process into a cgroup of its own, whose sockets join the flow when they are made."""
        ...

    def release_program(self, flow: FlowId) -> None:
        """End what adopt_program began; processes left in the cgroup go back to its parent."""
        ...

    def stats(self, flow: FlowId) -> FlowStats: ...

    def shapers(self, flow: FlowId) -> Mapping[str, str]:
        """Device name -> how it holds this flow back (empty without a delaying contract)."""
        ...

    def status(self) -> DatapathStatus: ...

    def install(self, rules: Sequence[InstalledRule]) -> int:
        """The complete ruleset, in order of decision, from one packet to the next; returns its generation, from 1.

        Refused, the ruleset before stays in force.
        """
        ...

    def drawn(self) -> Mapping[FlowId, int]:
        """By the own flow of a rule: how many flows of its pool packets have drawn since the pool began."""
        ...

    def refill(self, flow: FlowId, prepared: Sequence[FlowId]) -> None:
        """Further flows, already put, behind those in the pool of the rule with this flow. Refused, none is taken."""
        ...

    def missing(self, rule: Rule) -> tuple[str, ...]:
        """What the rule names and this host has not at the moment, as "unit asterisk.service". Never raises."""
        ...

    def namespace_name(self, netns_cookie: int) -> str:
        """As rules name it: "host" for the daemon's own, else that of ip-netns(8); empty where it has none."""
        ...

    def way_out(self, host: RemoteHost) -> WayOut:
        """By which device packets to this host leave now, and whether they are seen there. Never raises."""
        ...


class Paths(Protocol):
    """What is known of the ways to remote hosts. Estimates are shared by all flows to a host.

    Nothing but the errors named is raised: a host that cannot be measured after all is one without estimate.
    """

    def supports(self, host: RemoteHost) -> bool:
        """Whether anything can be learnt about the way to this host; asked anew each time, routes change.

        Raises HostUnreachable without a route.
        """
        ...

    def begin(self, host: RemoteHost) -> None:
        """Somebody uses this host from now on: gather. Called once until `end`, the others only in between."""
        ...

    def end(self, host: RemoteHost) -> None:
        """The last user of this host has left: nothing is sent to it any more. What is known is kept for a while."""
        ...

    def hold(self, flow: FlowId, host: RemoteHost, dscp: Dscp | None, bandwidth: Bandwidth) -> None:
        """An adaptive flow uses this host, is marked so, and holds this contract (0: none). Again when that changes."""
        ...

    def let_go(self, flow: FlowId, host: RemoteHost) -> None:
        """What `hold` said last is over."""
        ...

    def estimate(self, host: RemoteHost) -> FlowFundamentals | None:
        """What is known by now, None before the first measurement."""
        ...

    def refresh(self, host: RemoteHost) -> None:
        """Measure anew, even where one is under way; `measured` tells of its end. Raises Retry where it cannot be."""
        ...

    def admit(self, host: RemoteHost, held: Bandwidth, wanted: Bandwidth) -> None:
        """Whether a flow that holds `held` bits/s of this way may have `wanted`, which is more.

        Raises NetworkBusy or Retry.
        """
        ...

    def measured(self) -> Mapping[RemoteHost, bool]:
        """Hosts of which a `refresh` has ended since the last call, and whether it brought anything new."""
        ...


class Conditions(Protocol):
    """Whether flows meet congestion. The flows that `begin` names are judged until `end`."""

    def begin(self, flow: FlowId, facts: SocketFacts, host: RemoteHost | None) -> None:
        """A flow that has one socket alone. `host`: where an adaptive one sends."""
        ...

    def end(self, flow: FlowId) -> None:
        """It has ended, or has several sockets now. Of flows that never began too."""
        ...

    def report(self, flow: FlowId, report: PathReport) -> None:
        """What the application says. Raises NotSupported for a flow that is not judged."""
        ...

    def explain(self, flow: FlowId) -> Explanation | None:
        """What is said of this flow, and why; None for one that is not judged."""
        ...

    def watch(self, flow: FlowId, host: RemoteHost) -> None:
        """Somebody waits for a condition of this flow: judge it. Called once until `unwatch`."""
        ...

    def unwatch(self, flow: FlowId) -> None:
        """Nobody waits any longer, or the flow has ended."""
        ...

    def holds(self, flow: FlowId, condition: Condition, *, held: Bandwidth, wanted: Bandwidth) -> bool:
        """Whether the condition holds now; unknown is False.

        AVAILABLE: the flow, which holds `held` bits/s, could have `wanted` in total; both are 0 otherwise.
        Asked of watched flows only.
        """
        ...

    def changed(self) -> Collection[FlowId]:
        """Flows of which an answer may have changed since the last call."""
        ...
