"""The half of the service that changes nothing: questions about flows, rules, handles and the daemon itself.

It also puts the parts of the service together; service.py goes on with what changes them.
"""

from collections.abc import Iterable
from itertools import islice

from qos2.core.accounts import Accounts
from qos2.core.changes import Changes
from qos2.core.endings import Endings
from qos2.core.estimates import Estimates
from qos2.core.flows import Flow, FlowTable, Handle
from qos2.core.handles import Handles
from qos2.core.notifications import Completion
from qos2.core.policy import Connection, Policy
from qos2.core.ports import Clock, Conditions, Datapath, Paths
from qos2.core.rulebook import Rulebook
from qos2.core.rules import Deniable, Limits, Rules
from qos2.core.ruleviews import Decision, RuleView
from qos2.core.slots import SlotPool
from qos2.core.views import Explained, FlowView, ServiceStatus, view_of
from qos2.errors import NoSuchFlow, NotPermitted
from qos2.model import FlowId, FlowRate, FlowStats, PacketPriority, Peer, SocketFacts, slot_of


class Questions:
    """Everything that is asked. What its methods raise is said in service.py."""

    def __init__(
        self,
        datapath: Datapath,
        clock: Clock,
        limits: Limits,
        version: str,
        *,
        paths: Paths,
        conditions: Conditions,
        rules: Rules = Rules(),  # noqa: B008  immutable
    ) -> None:
        self._datapath = datapath
        self._clock = clock
        self.limits = limits
        self._rules = rules
        self.version = version
        self._started_s = clock()
        occupied = datapath.occupied_slots()
        self.max_flows = datapath.max_flows
        self._table = FlowTable(self.max_flows)
        #: Per slot the traffic type of its flow, 255 without one. The same object all the time.
        self.type_of_slot = self._table.type_of_slot
        pool = SlotPool(self.max_flows, occupied.keys(), datapath.generation)
        self.accounts = Accounts(self.max_flows)  #: flows now, begun and ended, by type
        self._endings = Endings(datapath, pool, self.accounts, self.type_of_slot)
        self._endings.take_over(occupied.values(), self._started_s + limits.orphan_grace_s)
        self._changes = Changes(datapath, self._table, pool, self.accounts, self._endings)
        self._rulebook = Rulebook(datapath, self._table, pool, self.accounts, self._endings, clock)
        self._estimates = Estimates(paths, conditions, self._table, clock, limits)
        self.completed: list[Completion] = self._estimates.waits.completed
        self._handles = Handles(limits)

    # Questions

    def priority(self, handle: int, flow: int) -> PacketPriority:
        """QOSQueryFlow(QOSQueryPacketPriority): what is in force, also of foreign flows that one may see."""
        return self._visible(self._handles.find(handle), flow).granted.priority

    def rate(self, handle: int, flow: int) -> FlowRate | None:
        """QOSQueryFlow(QOSQueryOutgoingRate): the contract in force, or None."""
        return self._visible(self._handles.find(handle), flow).granted.rate

    def stats(self, handle: int, flow: int) -> FlowStats:
        """Counters since the flow began."""
        return self._datapath.stats(self._visible(self._handles.find(handle), flow).id)

    def enumerate(self, handle: int) -> list[FlowId]:
        """QOSEnumerateFlows: the ids of all flows, in no order. Raises NotPermitted."""
        if not self._handles.find(handle).peer.privileged:
            raise NotPermitted("listing everybody's flows needs root or the group qos2", "list your own: qos2 flows")
        return [flow.id for flow in self._table.flows.values()]

    def details(self, handle: int, flow: int) -> FlowView:
        """Everything about one flow: any for privileged peers, of the same user for others."""
        return self._view(self._visible(self._handles.find(handle), flow))

    def views(self, flows: Iterable[FlowId]) -> list[FlowView]:
        """Everything about those of these flows that have an owner, in their order, for the daemon itself."""
        return [self._view(flow) for flow in map(self._table.find, flows) if flow is not None]

    def list_flows(self, handle: int, after: int, count: int) -> list[FlowView]:
        """At most `count` of the flows that the caller may see, in the order of slots, behind that of `after`."""
        owner = self._handles.find(handle)
        slot = slot_of(FlowId(after))
        if owner.peer.privileged:
            return [self._view(flow) for flow in islice(self._table.behind(slot), count)]
        slots = sorted(each for each in owner.share.slots if each > slot)
        return [self._view(self._table.flows[each]) for each in slots[:count]]

    def status(self, handle: int) -> ServiceStatus:
        """The daemon and the datapath, for everybody."""
        self._handles.find(handle)
        return ServiceStatus(
            server=self.version,
            uptime_s=self._clock() - self._started_s,
            handles=self.handles,
            flows=self.flows,
            max_flows=self.max_flows,
            orphans=self.orphans,
            datapath=self._datapath.status(),
        )

    def explain(self, handle: int, flow: int) -> Explained:
        """Everything about one flow, and why it is said to be congested or not, as `details`."""
        found = self._visible(self._handles.find(handle), flow)
        explanation, estimate = self._estimates.explain(found, path=Deniable.ESTIMATES not in self._rules.deny)
        return Explained(now_s=self._clock(), explanation=explanation, estimate=estimate, view=self._view(found))

    # The administrator's policy

    def policy_rules(self, handle: int, after: int, count: int) -> list[RuleView]:
        """At most `count` rules behind the first `after`, in order of decision; counters for the privileged alone."""
        owner = self._handles.find(handle)
        return self._rulebook.views(max(0, after), count, counters=owner.peer.privileged)

    def policy_test(self, handle: int, connection: Connection) -> Decision:
        """What the rules say of a connection as the caller describes it, in the namespace that he connected from."""
        peer = self._handles.find(handle).peer
        return self._rulebook.test(connection, peer.netns_cookie, counters=peer.privileged)

    def policy_of_flow(self, handle: int, flow: int) -> Decision:
        """What the rules say of a flow: an application's, as `details`, or one of a rule."""
        owner = self._handles.find(handle)
        own = self._rulebook.explain_own(FlowId(flow), counters=owner.peer.privileged)
        if own is not None:
            return own
        return self._rulebook.explain_flow(self._visible(owner, flow), counters=owner.peer.privileged)

    def policy_of_socket(self, handle: int, facts: SocketFacts, opener: Peer) -> Decision:
        """What the rules say of a socket at hand that `opener` has opened."""
        owner = self._handles.find(handle)
        return self._rulebook.explain_socket(opener, facts, counters=owner.peer.privileged)

    @property
    def policy_generation(self) -> int:
        """Of the policy in force, 0 before the first one is."""
        return self._rulebook.generation

    @property
    def policy(self) -> Policy:
        """The one in force."""
        return self._rulebook.policy

    @property
    def handles(self) -> int:
        return len(self._handles)

    @property
    def flows(self) -> int:
        """Flows that have an owner."""
        return len(self._table.flows)

    @property
    def orphans(self) -> int:
        """Flows that the datapath serves for nobody: taken over, or ended here and refused there."""
        return self._endings.unended

    @property
    def refusals(self) -> int:
        """How often the datapath refused a clean-up, so that no caller was told; each is tried again."""
        return self._endings.refusals

    @property
    def pending(self) -> int:
        """Requests that wait."""
        return self._estimates.waits.pending

    # Checks

    def _visible(self, handle: Handle, flow: int) -> Flow:
        found = self._table.find(flow)
        if found is not None and (handle.owns(found) or handle.sees(found)):
            return found
        ruled = self._rulebook.flows.of(flow)
        if ruled is not None:
            raise NoSuchFlow(f"flow {flow} is no application's but of the rule {ruled.rule.name}", "qos2 policy list")
        raise NoSuchFlow(f"no flow {flow}", "it has ended, or belongs to another user")

    def _view(self, flow: Flow) -> FlowView:
        shapers, stats = self._datapath.shapers(flow.id), self._datapath.stats(flow.id)
        return view_of(flow, self._table, self._clock(), shapers, stats, self._estimates.judgement(flow))
