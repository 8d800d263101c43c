"""Changes of the table of flows together with the datapath: each one whole or not at all.

The datapath is told first (policy, then sockets), the table records after it agreed. Where it refuses
in the middle, what it was told before is taken back and its error goes to the caller. What cannot be
taken back because it refuses that as well is left to endings.py, so that no slot is ever lost.

No rule of QoS2 is here: the service has checked everything.
"""

from functools import lru_cache

from qos2.core.accounts import Accounts
from qos2.core.endings import Endings
from qos2.core.flows import Flow, FlowTable, Handle
from qos2.core.ports import Datapath
from qos2.core.priorities import Treatment, granted
from qos2.core.rule import Rule
from qos2.core.slots import SlotPool
from qos2.errors import DatapathError
from qos2.model import Destination, FlowId, SocketFacts, slot_of


@lru_cache(maxsize=1024)
def _alone(netns_cookie: int) -> frozenset[int]:
    """The set of one namespace, the same object for all flows in it: a set takes 216 bytes."""
    return frozenset((netns_cookie,))


class Changes:
    """Every method raises DatapathError where the kernel refuses; the table is then as before the call."""

    __slots__ = ("_accounts", "_datapath", "_endings", "_pool", "_table")

    def __init__(
        self, datapath: Datapath, table: FlowTable, pool: SlotPool, accounts: Accounts, endings: Endings
    ) -> None:
        self._datapath = datapath
        self._table = table
        self._pool = pool
        self._accounts = accounts
        self._endings = endings

    def begin_with_socket(
        self,
        owner: Handle,
        treatment: Treatment,
        rule: Rule | None,
        now_s: float,
        fd: int,
        facts: SocketFacts,
        member: Destination,
    ) -> FlowId:
        """A new flow with one member, under this rule. Raises LimitExceeded when every slot is in use."""
        flow = self._begin(owner, treatment, rule, now_s, _alone(facts.netns_cookie))
        flow.facts, flow.destination = facts, member
        try:
            self._bind(flow, fd, facts, member)
        except BaseException:
            self._endings.end_anyhow(flow.id)
            raise
        self._record(flow)
        return flow.id

    def begin_with_program(self, owner: Handle, treatment: Treatment, rule: Rule | None, now_s: float) -> FlowId:
        """A new flow for what the owner's process will open. Raises LimitExceeded when every slot is in use."""
        flow = self._begin(owner, treatment, rule, now_s, frozenset())
        flow.whole_program = True
        try:
            self._datapath.adopt_program(flow.id, owner.peer)
        except BaseException:
            self._endings.end_anyhow(flow.id)
            raise
        self._record(flow)
        return flow.id

    def join(self, flow: Flow, fd: int, facts: SocketFacts, member: Destination) -> None:
        """A further member of a flow; it leaves the flow that had it."""
        if facts.netns_cookie not in flow.policy.netns_cookies and not flow.whole_program:
            self._put(flow, flow.treatment, flow.policy.netns_cookies | {facts.netns_cookie})
        try:
            self._bind(flow, fd, facts, member)
        except BaseException:
            self._narrow(flow)
            raise

    def remove(self, flow: Flow, fd: int, facts: SocketFacts) -> None:
        """A socket leaves with all its destinations; the last one ends the flow, unless a program has it too."""
        socket = self._table.sockets[facts.cookie]
        leaving = flow.members[facts.cookie]
        if len(flow.members) == 1 and not flow.whole_program:
            # The flow ends first: that alone stops the marks, and taking its id off the socket can wait.
            self._endings.end(flow.id)
            self._table.remove(flow)
            self._endings.detach(fd, facts, socket.flows, leaving)
            return
        for destination in leaving:
            del socket.flows[destination]
        try:
            self._datapath.bind(fd, facts, socket.flows)
        except BaseException:
            socket.flows.update(dict.fromkeys(leaving, flow.id))
            raise
        self._endings.rebound(facts.cookie)
        for destination in leaving:
            self._table.leave(flow, socket, destination)
        self._narrow(flow)

    def treat(self, flow: Flow, treatment: Treatment) -> None:
        """Its owner asks for other marks, another contract, another traffic type."""
        before, after = flow.granted.traffic_type, granted(treatment, flow.rule).traffic_type
        if before is after:
            self._put(flow, treatment, self._table.namespaces(flow))
            return
        stats = self._datapath.stats(flow.id)
        self._put(flow, treatment, self._table.namespaces(flow))
        self._accounts.change(before, after, stats)
        self._accounts.usage.change(slot_of(flow.id), after, stats.bytes)
        self._table.type_of_slot[slot_of(flow.id)] = after

    def end(self, flow: Flow) -> None:
        """A flow ends with all its members."""
        self._endings.end(flow.id)
        self._drop(flow)

    def end_anyhow(self, flow: Flow) -> None:
        """As `end`, but never refused: what the datapath does not end now, a later tick ends."""
        self._endings.end_anyhow(flow.id)
        self._drop(flow)

    def _begin(
        self, owner: Handle, treatment: Treatment, rule: Rule | None, now_s: float, netns_cookies: frozenset[int]
    ) -> Flow:
        """A new flow, in force but not yet recorded."""
        flow = self._pool.take()
        policy = granted(treatment, rule).policy(flow, netns_cookies)
        try:
            self._datapath.put(policy, fresh=True)
        except BaseException:
            self._pool.give_back(flow)
            raise
        return Flow(flow, owner, treatment, policy, now_s, rule)

    def _record(self, flow: Flow) -> None:
        self._table.insert(flow)
        self._accounts.begin(flow.granted.traffic_type)
        self._accounts.usage.begin(slot_of(flow.id), flow.owner.peer.unit, flow.granted.traffic_type)

    def _drop(self, flow: Flow) -> None:
        for cookie, destinations in self._table.remove(flow):
            self._endings.forget(cookie, destinations)
        if flow.whole_program:
            self._endings.release(flow.id)

    def _bind(self, flow: Flow, fd: int, facts: SocketFacts, member: Destination) -> None:
        """Make a socket's destination a member of `flow`, wherever it was before."""
        socket = self._table.socket(facts)
        before = socket.flows.get(member)
        socket.flows[member] = flow.id
        try:
            self._datapath.bind(fd, facts, socket.flows)
        except BaseException:
            if before is None:
                del socket.flows[member]
            else:
                socket.flows[member] = before
            raise
        self._endings.rebound(facts.cookie)
        self._table.join(flow, socket, member)
        former = None if before is None else self._table.find(before)
        if former is not None:
            self._table.leave(former, socket, member)
            self._narrow(former)

    def _put(self, flow: Flow, treatment: Treatment, netns_cookies: frozenset[int]) -> None:
        policy = granted(treatment, flow.rule).policy(flow.id, netns_cookies)
        self._datapath.put(policy, fresh=False)
        flow.treatment, flow.policy = treatment, policy

    def _narrow(self, flow: Flow) -> None:
        """After sockets left: the policy names only the namespaces that are left.

        Refused, the wider policy stays in force, which marks and limits the same; the next change narrows it.
        """
        if len(flow.policy.netns_cookies) > 1 and flow.policy.netns_cookies != (left := self._table.namespaces(flow)):
            try:
                self._put(flow, flow.treatment, left)
            except DatapathError:
                self._endings.refusals += 1
