"""What the core needs of the outside: the datapath and a clock. Edges implement them, fakes test them."""

from collections.abc import Mapping
from typing import Protocol

from qos2.model import DatapathStatus, Destination, FlowId, FlowPolicy, FlowStats, Peer, SocketFacts


class Clock(Protocol):
    """Seconds since some fixed point, never going backwards."""

    def __call__(self) -> float: ...


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
