"""The flows of the administrator's rules: what applies to sockets that no application has registered.

One flow for each rule that does something, and where each socket or host has a contract of its own a pool of them.
A reload is whole or not at all: `prepare` makes what is new, `install` puts it into force, and where anything is
refused `abandon` gives every slot back. What a rule does that is in both policies goes on: counters, contract, pool.

Nothing here judges: datapath (the kernel) and core/policy.py do.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from qos2.core.accounts import Accounts, Sum
from qos2.core.endings import Endings
from qos2.core.policy import Policy
from qos2.core.pools import READY, Pool
from qos2.core.ports import Datapath, InstalledRule
from qos2.core.priorities import Treatment, type_of
from qos2.core.rule import Rule
from qos2.core.slots import SlotPool
from qos2.errors import DatapathError, LimitExceeded
from qos2.model import FlowId, FlowStats, slot_of

#: Packets that were decided by the old ruleset at the moment of the swap have left by then.
OLD_FLOWS_S = 1.0
#: A flow of a pool ends when nothing was sent by it for so long.
IDLE_S = 60.0
#: All pools together have at most this share of the table ready, one over it.
_SHARE = 4
#: Flows of pools that one tick looks at: 10 us each. With more, each has its turn in a later tick.
_LOOKED_AT = 2048


@dataclass(slots=True, eq=False)
class RuleFlow:
    """A rule, and what it has in the datapath. `flow` None: it denies or exempts."""

    rule: Rule
    flow: FlowId | None = None
    pool: Pool | None = None

    def flows(self) -> Iterator[FlowId]:
        """Its own one, those in use and those that are ready."""
        if self.flow is not None:
            yield self.flow
        if self.pool is not None:
            yield from self.pool.flows()


@dataclass(slots=True)
class Prepared:
    """A policy whose flows are all there, and not in force yet. `rules` in order of decision, `fresh` the new ones."""

    rules: list[RuleFlow] = field(default_factory=list)
    fresh: list[RuleFlow] = field(default_factory=list)


class PolicyFlows:
    """`rules`: those in force, in order of decision. `generation`: of the datapath's ruleset, 0 before there is one."""

    __slots__ = (
        "_accounts",
        "_datapath",
        "_endings",
        "_leaving",
        "_looked_at",
        "_most_ready",
        "_slots",
        "_types",
        "generation",
        "rules",
    )

    def __init__(
        self, datapath: Datapath, slots: SlotPool, accounts: Accounts, endings: Endings, type_of_slot: bytearray
    ) -> None:
        self._datapath = datapath
        self._slots = slots
        self._accounts = accounts
        self._endings = endings
        self._types = type_of_slot
        self._most_ready = datapath.max_flows // _SHARE
        self._leaving: deque[tuple[float, FlowId]] = deque()
        self._looked_at: deque[tuple[Pool, FlowId]] = deque()
        self.rules: list[RuleFlow] = []
        self.generation = 0

    def prepare(self, policy: Policy) -> Prepared:
        """Flows for what is new in a policy. Raises LimitExceeded, DatapathError: nothing is left of it then."""
        prepared = Prepared()
        former = {each.rule.name: each for each in self.rules}
        pools = sum(InstalledRule(rule, FlowId(1)).pooled for rule in policy.rules)
        ready = max(1, min(READY, self._most_ready // max(1, pools)))
        try:
            for rule in policy.rules:
                known = former.get(rule.name)
                if known is not None and known.rule.act == rule.act:
                    prepared.rules.append(RuleFlow(rule, known.flow, known.pool))
                    continue
                begun = RuleFlow(rule)
                prepared.rules.append(begun)
                prepared.fresh.append(begun)
                self._begin_all(begun, ready)
        except BaseException:
            self.abandon(prepared)
            raise
        return prepared

    def abandon(self, prepared: Prepared) -> None:
        """A prepared policy does not come into force."""
        for each in prepared.fresh:
            for flow in each.flows():
                self._endings.end_anyhow(flow)

    def install(self, prepared: Prepared, now_s: float) -> None:
        """Put a prepared policy into force in place of the one so far. Raises DatapathError: that one still is."""
        fresh = set(map(id, prepared.fresh))
        entries = [_entry(each, fresh=id(each) in fresh) for each in prepared.rules]
        self.generation = self._datapath.install(entries)
        kept = {each.flow for each in prepared.rules}
        for each in self.rules:
            if each.flow is not None and each.flow not in kept:
                self._leaving.extend((now_s + OLD_FLOWS_S, flow) for flow in each.flows())
        self.rules = prepared.rules
        for each in prepared.fresh:
            if each.flow is not None:
                self._account(each.rule, each.flow)

    def follow(self, now_s: float) -> None:
        """About ten times a second: old flows end, pools are filled up."""
        while self._leaving and self._leaving[0][0] <= now_s:
            self._endings.end_anyhow(self._leaving.popleft()[1])
        pooled = [each for each in self.rules if each.pool is not None]
        if not pooled:
            return
        drawn = self._datapath.drawn()
        for each in pooled:
            assert each.pool is not None
            assert each.flow is not None
            for flow in each.pool.follow(drawn.get(each.flow, 0), now_s):
                self._account(each.rule, flow)
                self._looked_at.append((each.pool, flow))
            if each.pool.missing:
                self._refill(each.rule, each.flow, each.pool)

    def tick(self, now_s: float) -> None:
        """Once a second: flows of pools that nobody has used for long end; their sockets draw others."""
        living = {each.pool for each in self.rules}
        for _ in range(min(len(self._looked_at), _LOOKED_AT)):
            pool, flow = self._looked_at.popleft()
            if pool not in living:
                continue  # its rule is gone, and its flows with it
            try:
                stats = self._datapath.stats(flow)
            except DatapathError:
                self._endings.refusals += 1
                self._looked_at.append((pool, flow))
                continue
            if now_s - max(stats.last_ns / 1e9, pool.used[flow]) < IDLE_S:
                self._looked_at.append((pool, flow))
            else:
                self._endings.end_anyhow(flow)
                pool.end(flow, stats)

    # Questions

    def named(self, name: str) -> RuleFlow | None:
        """The rule of this name."""
        return next((each for each in self.rules if each.rule.name == name), None)

    def of(self, flow: int) -> RuleFlow | None:
        """The rule that a flow in force is of; None for a flow of an application, and for one that has ended."""
        for each in self.rules:
            if each.flow == flow or (each.pool is not None and flow in each.pool.used):
                return each
        return None

    def stats(self, each: RuleFlow) -> FlowStats:
        """What all flows of a rule have sent, those of its pool that have ended included. Raises DatapathError."""
        total = Sum()
        if each.flow is not None:
            total.add(self._datapath.stats(each.flow))
        if each.pool is not None:
            for flow in each.pool.used:
                total.add(self._datapath.stats(flow))
            return each.pool.ended.plus(total.plus(FlowStats()))
        return total.plus(FlowStats())

    # Parts

    def _begin_all(self, begun: RuleFlow, ready: int) -> None:
        if begun.rule.act.deny or begun.rule.act.exempt:
            return
        begun.flow = self._begin(begun.rule)
        if InstalledRule(begun.rule, begun.flow).pooled:
            begun.pool = Pool(ready)
            for _ in range(ready):
                begun.pool.put_in([self._begin(begun.rule)])

    def _begin(self, rule: Rule) -> FlowId:
        flow = self._slots.take()
        try:
            self._datapath.put(Treatment.of_rule(rule.act).policy(flow, frozenset()), fresh=True)
        except BaseException:
            self._slots.give_back(flow)
            raise
        return flow

    def _refill(self, rule: Rule, own: FlowId, pool: Pool) -> None:
        """As many flows as there are slots; without them the rule's own flow has to serve."""
        made: list[FlowId] = []
        try:
            for _ in range(pool.missing):
                made.append(self._begin(rule))
        except LimitExceeded:
            pass  # said by the datapath's counter of draws that found the pool empty
        except DatapathError:
            self._endings.refusals += 1
        if not made:
            return
        try:
            self._datapath.refill(own, made)
        except DatapathError:
            self._endings.refusals += 1
            for flow in made:
                self._endings.end_anyhow(flow)
        else:
            pool.put_in(made)

    def _account(self, rule: Rule, flow: FlowId) -> None:
        kind = type_of(rule.act)
        self._accounts.begin(kind)
        self._accounts.usage.begin(slot_of(flow), f"rule {rule.name}", kind)
        self._types[slot_of(flow)] = kind


def _entry(each: RuleFlow, *, fresh: bool) -> InstalledRule:
    pool = tuple(each.pool.ready) if fresh and each.pool is not None else ()
    return InstalledRule(each.rule, each.flow, pool)
