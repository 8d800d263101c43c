"""A datapath in memory, for tests of the service and of programs that embed it.

Same face as the real one (core.ports.Datapath) and stricter: it refuses what would be a mistake of the
control plane, such as binding a socket to a flow that was not put. No packet passes; `flow_of` tells
which flow one would find. Tests set counters and make it refuse.
"""

from collections import deque
from collections.abc import Mapping, Sequence

from qos2.core.ports import POOL_CAPACITY, InstalledRule, WayOut
from qos2.core.rule import Rule
from qos2.errors import DatapathError
from qos2.model import (
    ANY_DESTINATION,
    Action,
    DatapathStatus,
    Destination,
    DeviceStatus,
    FlowId,
    FlowPolicy,
    FlowStats,
    Peer,
    RemoteHost,
    Shaper,
    SocketFacts,
    slot_of,
)


class FakeDatapath:
    """Everything it was told is in public dicts.

    `bindings` holds what the kernel would: entries of ended flows stay on their socket until it is bound
    again, and do nothing. `occupied` are flows of an earlier daemon, `generations` those that slots had. `ruleset` is
    the one in force; `draw` is what a packet of a socket or host does that a rule with a pool meets first.
    """

    def __init__(
        self,
        max_flows: int = 1024,
        *,
        occupied: Mapping[int, FlowId] | None = None,
        generations: Mapping[int, int] | None = None,
    ) -> None:
        self._max_flows = max_flows
        self._occupied = dict(occupied or {})
        self._generations = dict(generations or {})
        self._refused: dict[str, int] = {}
        self.policies: dict[FlowId, FlowPolicy] = {}
        self.bindings: dict[int, dict[Destination, FlowId]] = {}
        self.programs: dict[FlowId, Peer] = {}
        self.counters: dict[FlowId, FlowStats] = {}
        self.ruleset: tuple[InstalledRule, ...] = ()
        self.ruleset_generation = 0
        self.pools: dict[FlowId, deque[FlowId]] = {}  #: by the own flow of their rule
        self.absent: dict[str, tuple[str, ...]] = {}  #: by the name of a rule, what `missing` says of it
        self.namespace_names: dict[int, str] = {}
        self.ways_out: dict[RemoteHost, WayOut] = {}
        self._drawn: dict[FlowId, int] = {}
        self.operations: list[str] = []  #: every call that changes something, by name, refused ones too

    def refuse(self, operation: str, times: int = 1) -> None:
        """The next so many calls of the method `operation` raise DatapathError and change nothing."""
        self._refused[operation] = times

    def accept(self) -> None:
        """Take back every `refuse`."""
        self._refused.clear()

    def set_stats(self, flow: FlowId, stats: FlowStats) -> None:
        """Counters of a living flow."""
        self._policy(flow)
        self.counters[flow] = stats

    def draw(self, flow: FlowId) -> FlowId:
        """The flow that a new socket or host gets by the rule whose own flow this is."""
        self._policy(flow)
        pool = self.pools[flow]
        if not pool:
            return flow
        self._drawn[flow] += 1
        return pool.popleft()

    def flow_of(self, cookie: int, destination: Destination) -> FlowId | None:
        """The flow of a packet that this socket sends there, looked up as the kernel does; None: untouched."""
        bound = self.bindings.get(cookie, {})
        for shape in (
            destination,
            Destination(destination.address, 0),
            Destination(None, destination.port),
            ANY_DESTINATION,
        ):
            if shape in bound:
                flow = bound[shape]
                return flow if flow in self.policies else None
        return None

    @property
    def max_flows(self) -> int:
        return self._max_flows

    def occupied_slots(self) -> Mapping[int, FlowId]:
        return dict(self._occupied)

    def generation(self, slot: int) -> int:
        return self._generations.get(slot, 0)

    def put(self, policy: FlowPolicy, *, fresh: bool) -> None:
        self._change("put")
        slot = slot_of(policy.flow)
        if not 1 <= slot <= self._max_flows:
            raise DatapathError(f"slot {slot} is outside 1..{self._max_flows}")
        if fresh:
            if slot in self._occupied:
                raise DatapathError(f"slot {slot} has flow {self._occupied[slot]}")
            self._occupied[slot] = policy.flow
            self.counters[policy.flow] = FlowStats()
        else:
            self._policy(policy.flow)
        self.policies[policy.flow] = policy

    def end(self, flow: FlowId) -> None:
        self._change("end")
        slot = slot_of(flow)
        if self._occupied.get(slot) != flow:
            raise DatapathError(f"no flow {flow}")
        del self._occupied[slot]
        self.policies.pop(flow, None)
        self.counters.pop(flow, None)

    def bind(self, fd: int, facts: SocketFacts, flows: Mapping[Destination, FlowId]) -> None:
        self._change("bind")
        for flow in flows.values():
            self._policy(flow)
        if flows:
            self.bindings[facts.cookie] = dict(flows)
        else:
            self.bindings.pop(facts.cookie, None)

    def unbind(self, cookie: int, destinations: tuple[Destination, ...]) -> None:
        self._change("unbind")
        bound = self.bindings.get(cookie, {})
        for destination in destinations:
            bound.pop(destination, None)
        if not bound:
            self.bindings.pop(cookie, None)

    def adopt_program(self, flow: FlowId, peer: Peer) -> None:
        self._change("adopt_program")
        self._policy(flow)
        self.programs[flow] = peer

    def release_program(self, flow: FlowId) -> None:
        self._change("release_program")
        if self.programs.pop(flow, None) is None:
            raise DatapathError(f"flow {flow} has no program")

    def stats(self, flow: FlowId) -> FlowStats:
        self._maybe_refuse("stats")
        self._policy(flow)
        return self.counters[flow]

    def shapers(self, flow: FlowId) -> Mapping[str, str]:
        self._maybe_refuse("shapers")
        return {"fake0": Shaper.FQ.value} if self._policy(flow).action is Action.DELAY else {}

    def status(self) -> DatapathStatus:
        shaped = sum(policy.action is Action.DELAY for policy in self.policies.values())
        device = DeviceStatus("fake0", 1, 0, "none", Shaper.FQ, "in memory, no packet passes", shaped)
        used = {"policy": (len(self._occupied), self._max_flows)}
        return DatapathStatus(kernel="fake", devices=(device,), map_entries=used)

    def install(self, rules: Sequence[InstalledRule]) -> int:
        self._change("install")
        pools: dict[FlowId, deque[FlowId]] = {}
        for each in rules:
            for flow in (*((each.flow,) if each.flow else ()), *each.pool):
                self._policy(flow)
            if each.flow is None or not each.pooled:
                if each.pool:
                    raise DatapathError(f"rule {each.rule.name} has a pool")
            elif each.flow not in self.pools:
                pools[each.flow] = deque(each.pool)
            elif each.pool:
                raise DatapathError(f"the pool of rule {each.rule.name} goes on")
            else:
                pools[each.flow] = self.pools[each.flow]
        self.ruleset, self.pools = tuple(rules), pools
        self._drawn = {flow: self._drawn.get(flow, 0) for flow in pools}
        self.ruleset_generation += 1
        return self.ruleset_generation

    def drawn(self) -> Mapping[FlowId, int]:
        return dict(self._drawn)

    def refill(self, flow: FlowId, prepared: Sequence[FlowId]) -> None:
        self._change("refill")
        for each in prepared:
            self._policy(each)
        if flow not in self.pools:
            raise DatapathError(f"flow {flow} has no pool")
        if len(self.pools[flow]) + len(prepared) > POOL_CAPACITY:
            raise DatapathError(f"the pool of flow {flow} is full")
        self.pools[flow].extend(prepared)

    def missing(self, rule: Rule) -> tuple[str, ...]:
        return self.absent.get(rule.name, ())

    def namespace_name(self, netns_cookie: int) -> str:
        return self.namespace_names.get(netns_cookie, "")

    def way_out(self, host: RemoteHost) -> WayOut:
        return self.ways_out.get(host, WayOut("fake0", attached=True))

    def _change(self, operation: str) -> None:
        self.operations.append(operation)
        self._maybe_refuse(operation)

    def _maybe_refuse(self, operation: str) -> None:
        times = self._refused.get(operation, 0)
        if times:
            self._refused[operation] = times - 1
            raise DatapathError(f"{operation} refused", "the test asked for it")

    def _policy(self, flow: FlowId) -> FlowPolicy:
        policy = self.policies.get(flow)
        if policy is None:
            raise DatapathError(f"no flow {flow}")
        return policy
