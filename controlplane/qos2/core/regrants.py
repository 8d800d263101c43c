"""What applications' flows are granted, judged anew under another policy: all of them or none.

The datapath is told first, the table records after the policy is in force. What cannot be taken back because the
datapath refuses that as well is tried again by each tick.
"""

from qos2.core.accounts import Accounts
from qos2.core.endings import Endings
from qos2.core.flows import Flow, FlowTable
from qos2.core.ports import Datapath
from qos2.core.priorities import granted
from qos2.core.rule import Rule
from qos2.core.rulings import Rulings
from qos2.errors import DatapathError
from qos2.model import FlowId, FlowPolicy, FlowStats, slot_of


class Regrants:
    """`carry_out`, then either `record` or `take_back`."""

    __slots__ = ("_accounts", "_datapath", "_endings", "_judged", "_retyped", "_table", "_told", "_untold")

    def __init__(self, datapath: Datapath, table: FlowTable, accounts: Accounts, endings: Endings) -> None:
        self._datapath = datapath
        self._table = table
        self._accounts = accounts
        self._endings = endings
        self._judged: list[tuple[Flow, Rule | None]] = []
        self._told: list[tuple[Flow, FlowPolicy]] = []
        self._retyped: list[tuple[Flow, FlowStats]] = []
        self._untold: set[FlowId] = set()

    def carry_out(self, rulings: Rulings) -> None:
        """Tell the datapath what changes. Raises DatapathError: everything is as before, or will be soon."""
        try:
            for flow in self._table.flows.values():
                self._judge(flow, rulings.find(flow.owner.peer, flow.facts, flow.destination))
        except BaseException:
            self.take_back()
            raise

    def take_back(self) -> None:
        """The policy does not come into force."""
        told = self._told
        self._clear()
        for flow, _policy in told:
            self._tell_anyhow(flow)

    def record(self) -> list[Flow]:
        """The policy is in force; returns the flows that are treated in another way from now on."""
        before = {id(flow): flow.granted.traffic_type for flow, _stats in self._retyped}
        for flow, rule in self._judged:
            self._table.judge(flow, rule)
        for flow, policy in self._told:
            flow.policy = policy
        for flow, stats in self._retyped:
            after = flow.granted.traffic_type
            self._accounts.change(before[id(flow)], after, stats)
            self._accounts.usage.change(slot_of(flow.id), after, stats.bytes)
            self._table.type_of_slot[slot_of(flow.id)] = after
        changed = [flow for flow, _policy in self._told]
        self._clear()
        return changed

    def settle(self) -> None:
        """Try again what could not be taken back."""
        untold, self._untold = self._untold, set()
        for each in untold:
            flow = self._table.find(each)
            if flow is not None:
                self._tell_anyhow(flow)

    def _judge(self, flow: Flow, rule: Rule | None) -> None:
        if rule is None and flow.rule is None:
            return
        self._judged.append((flow, rule))
        treatment = granted(flow.treatment, rule)
        if treatment.traffic_type is not flow.granted.traffic_type:
            self._retyped.append((flow, self._datapath.stats(flow.id)))
        policy = treatment.policy(flow.id, flow.policy.netns_cookies)
        if policy != flow.policy:
            self._datapath.put(policy, fresh=False)
            self._told.append((flow, policy))

    def _tell_anyhow(self, flow: Flow) -> None:
        try:
            self._datapath.put(flow.policy, fresh=False)
        except DatapathError:
            self._endings.refusals += 1
            self._untold.add(flow.id)

    def _clear(self) -> None:
        self._judged, self._told, self._retyped = [], [], []
