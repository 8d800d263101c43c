"""The administrator's policy in force: what it says of applications' requests, and what its rules have in the datapath.

Puts the parts together: rulings.py judges, regrants.py changes applications' flows, policyflows.py those of the rules.
A policy comes into force as a whole or not at all.
"""

from itertools import islice

from qos2.core.accounts import Accounts
from qos2.core.endings import Endings
from qos2.core.flows import Flow, FlowTable
from qos2.core.policy import Connection, Policy
from qos2.core.policyflows import PolicyFlows, RuleFlow
from qos2.core.ports import Clock, Datapath, WayOut
from qos2.core.regrants import Regrants
from qos2.core.rule import Rule
from qos2.core.ruleviews import Decision, RuleView
from qos2.core.rulings import Rulings, connection_of
from qos2.core.slots import SlotPool
from qos2.model import Destination, FlowId, Peer, RemoteHost, SocketFacts

#: Of what has no one destination.
_NO_HOST = WayOut()


class Rulebook:
    """One policy at a time, none at first."""

    __slots__ = ("_clock", "_datapath", "_regrants", "_rulings", "_table", "flows")

    def __init__(
        self,
        datapath: Datapath,
        table: FlowTable,
        slots: SlotPool,
        accounts: Accounts,
        endings: Endings,
        clock: Clock,
    ) -> None:
        self._datapath = datapath
        self._table = table
        self._clock = clock
        self._rulings = Rulings(Policy(), datapath.namespace_name)
        self._regrants = Regrants(datapath, table, accounts, endings)
        self.flows = PolicyFlows(datapath, slots, accounts, endings, table.type_of_slot)

    @property
    def policy(self) -> Policy:
        """The one in force."""
        return self._rulings.policy

    @property
    def generation(self) -> int:
        """Of the ruleset in force, 0 before the first one."""
        return self.flows.generation

    def load(self, policy: Policy) -> list[Flow]:
        """Put a policy into force; returns the flows of applications that are treated in another way from now on.

        Raises LimitExceeded where its flows do not fit into the table, DatapathError where the kernel refuses: the
        policy so far stays in force, and nothing is left of the new one.
        """
        now_s = self._clock()
        self.flows.follow(now_s)
        prepared = self.flows.prepare(policy)
        rulings = Rulings(policy, self._datapath.namespace_name)
        try:
            self._regrants.carry_out(rulings)
            try:
                self.flows.install(prepared, now_s)
            except BaseException:
                self._regrants.take_back()
                raise
        except BaseException:
            self.flows.abandon(prepared)
            raise
        self._rulings = rulings
        return self._regrants.record()

    def find(self, peer: Peer, facts: SocketFacts | None, destination: Destination | None) -> Rule | None:
        """The rule that an application's socket meets, or (without `facts`) all that its process will open."""
        return self._rulings.find(peer, facts, destination)

    def follow(self) -> None:
        """About ten times a second."""
        self.flows.follow(self._clock())

    def tick(self) -> None:
        """Once a second."""
        self._regrants.settle()
        self.flows.tick(self._clock())

    # Questions

    def views(self, after: int, count: int, *, counters: bool) -> list[RuleView]:
        """At most `count` rules behind the first `after`, in order of decision. Raises DatapathError."""
        return [self._view(each, counters=counters) for each in islice(self.flows.rules, after, after + count)]

    def test(self, connection: Connection, netns_cookie: int, *, counters: bool) -> Decision:
        """What the rules say of a connection that is described, and by which device it would leave."""
        rule = self.policy.find(connection)
        return Decision(
            connection=connection,
            rule=None if rule is None else self._named(rule, counters=counters),
            reasons=self.policy.explain(connection),
            way=self._way(connection, netns_cookie),
        )

    def explain_socket(self, peer: Peer, facts: SocketFacts, *, counters: bool) -> Decision:
        """The same of a socket that is at hand, which `peer` has opened."""
        connection = connection_of(peer, facts, None, self._rulings.namespace(peer, facts))
        decision = self.test(connection, facts.netns_cookie, counters=counters)
        socket = self._table.sockets.get(facts.cookie)
        if socket is not None:
            decision.flows = tuple(dict.fromkeys(socket.flows.values()))
        return decision

    def explain_flow(self, flow: Flow, *, counters: bool) -> Decision:
        """The same of an application's flow, which its first socket stands for."""
        peer, facts = flow.owner.peer, flow.facts
        connection = connection_of(peer, facts, flow.destination, self._rulings.namespace(peer, facts))
        decision = self.test(connection, (facts or peer).netns_cookie, counters=counters)
        decision.flows = (flow.id,)
        return decision

    def explain_own(self, flow: FlowId, *, counters: bool) -> Decision | None:
        """The rule that a flow belongs to; None where it is no rule's."""
        found = self.flows.of(flow)
        if found is None:
            return None
        return Decision(Connection(), self._view(found, counters=counters), (), _NO_HOST)

    def _named(self, rule: Rule, *, counters: bool) -> RuleView | None:
        found = self.flows.named(rule.name)
        return None if found is None else self._view(found, counters=counters)

    def _view(self, each: RuleFlow, *, counters: bool) -> RuleView:
        return RuleView(
            rule=each.rule,
            flow=each.flow,
            stats=self.flows.stats(each) if counters else None,
            used=0 if each.pool is None else len(each.pool.used),
            ready=0 if each.pool is None else len(each.pool.ready),
            applications=self._table.ruled[each.rule.name],
            missing=self._datapath.missing(each.rule),
        )

    def _way(self, connection: Connection, netns_cookie: int) -> WayOut:
        if connection.remote is None:
            return _NO_HOST
        return self._datapath.way_out(RemoteHost(connection.remote, netns_cookie))
