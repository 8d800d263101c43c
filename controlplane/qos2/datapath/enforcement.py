"""The policy in the kernel: rules with the numbers that their names have now, installed anew when these change.

Composes what rules need below the port: identities, entries, the ruleset, pools and owners.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from pathlib import Path

from qos2.core.ports import InstalledRule
from qos2.core.rule import Rule
from qos2.datapath import abi, ruleentries
from qos2.datapath.devices import Devices
from qos2.datapath.executables import Executables
from qos2.datapath.flowpools import FlowPools
from qos2.datapath.identities import Identities
from qos2.datapath.instructions import has_netns_cookie
from qos2.datapath.owners import Owners
from qos2.datapath.ruleset import Ruleset
from qos2.errors import DatapathError, MissingKernelFeature, QosError
from qos2.model import DeviceStatus, FlowId

_LOG = logging.getLogger(__name__)


class Enforcement:
    """What KernelDatapath knows of rules. Open until close(), which leaves the ruleset in force."""

    def __init__(
        self,
        pins: Path,
        owner_link: Path,
        owner_program_fd: int,
        devices: Callable[[], Iterable[DeviceStatus]],
        own_netns_cookie: int,
    ) -> None:
        """`pins` is the folder of the maps, `owner_link` where owners.py pins its link. Raises DatapathError."""
        self._ruleset = Ruleset(pins)
        self._pools = FlowPools(pins, self._ruleset.pools_in_use())
        self._owners = Owners(pins, owner_link, owner_program_fd)
        self.executables = Executables(self._owners.record, self._owners.forget)
        self.identities = Identities(devices, own_netns_cookie=own_netns_cookie, executables=self.executables)
        self._installed: tuple[InstalledRule, ...] = ()
        self._in_force = b""
        self._found_empty = 0
        self._refilled_empty = False
        self._problem = ""
        self._unopened: list[str] = []

    @property
    def problems(self) -> tuple[str, ...]:
        """What a person must be told."""
        return (*self.identities.problems.values(), *self._unopened, *([self._problem] if self._problem else []))

    @property
    def failures(self) -> dict[str, int]:
        """Counted, by name."""
        return dict(self.identities.counters + self.executables.counters)

    def install(self, rules: Sequence[InstalledRule]) -> int:
        """As core.ports.Datapath says it."""
        self._require(rules)
        self.identities.follow(each.rule.match for each in rules)
        opened: list[FlowId] = []
        try:
            self._follow_owners(rules)
            for each in rules:
                if each.pooled and each.flow not in self._pools:
                    assert each.flow is not None
                    self._pools.open(each.flow, each.pool)
                    opened.append(each.flow)
            generation = self._put(rules, self._entries(rules))
        except QosError:
            for flow in opened:
                self._pools.forget(flow)
            self.identities.follow(each.rule.match for each in self._installed)
            raise
        self._installed = tuple(rules)
        self._pools.keep({each.flow for each in rules if each.pooled and each.flow is not None})
        if not _executables(rules):
            self._owners.unlink()
        self._problem = ""
        return generation

    def drawn(self) -> Mapping[FlowId, int]:
        return self._pools.drawn()

    def refill(self, flow: FlowId, prepared: Sequence[FlowId]) -> None:
        if flow not in self._pools:
            raise DatapathError(f"no rule in force draws from the pool of flow {flow}")
        self._refilled_empty |= self._pools.is_empty(flow)
        self._pools.refill(flow, prepared)

    def missing(self, rule: Rule) -> tuple[str, ...]:
        return self.identities.missing(rule.match)

    def follow_identities(self) -> None:
        """Installs the rules anew where what they name has come, gone or changed.

        A failure is a problem, not the end.
        """
        self.executables.look()
        if not self.identities.look():
            return
        try:
            entries = self._entries(self._installed)
            if _octets(entries) != self._in_force:  # or every socket would be decided anew for nothing
                self._put(self._installed, entries)
            self._problem = ""
        except QosError as error:
            self._tell(f"the policy is not followed as units, devices and namespaces come and go: {error}")

    def open_namespaces(self, devices: Devices) -> Set[int]:
        """Has `devices` attach the network namespaces that rules name; their cookies. A failure is a problem."""
        named = self.identities.named_namespaces()
        self._unopened = []
        for path, cookie in named.items():
            if cookie not in devices.namespaces():
                try:
                    devices.open_of_file(path)
                except (OSError, QosError) as error:
                    self._unopened.append(
                        f"network namespace {path.name}, which a rule names, is not attached: {error}"
                    )
        return set(named.values())

    def idle(self, found_empty: int) -> None:
        """Once a second; `found_empty` is the datapath's counter POOL_EMPTY.

        Whoever found a pool empty has the rule's shared flow; now that there are others, it is decided anew.
        """
        if self._refilled_empty and found_empty != self._found_empty:
            self._ruleset.renew()
        self._refilled_empty = False
        self._found_empty = found_empty
        self.follow_identities()

    def close(self) -> None:
        self.identities.close()  # and the executables
        self._owners.close()
        self._pools.close()
        self._ruleset.close()

    def remove(self) -> None:
        """Nothing is in force any more."""
        self._ruleset.install((), abi.RulesetFlag(0))
        self._owners.unlink()

    def _put(self, rules: Sequence[InstalledRule], entries: Sequence[abi.Rule]) -> int:
        generation = self._ruleset.install(entries, ruleentries.flags(rules))
        self._in_force = _octets(entries)
        return generation

    def _entries(self, rules: Sequence[InstalledRule]) -> list[abi.Rule]:
        entries = []
        for each in rules:
            pool = self._pools.index(each.flow) if each.pooled and each.flow is not None else 0
            resolved = self.identities.resolve(each.rule.match)
            entries += ruleentries.entries(each, resolved, pool, with_namespaces=has_netns_cookie())
        return entries

    def _follow_owners(self, rules: Sequence[InstalledRule]) -> None:
        new = _executables(rules) - _executables(self._installed)
        if new:
            self._owners.follow({self.executables.index(path) for path in new})

    def _require(self, rules: Sequence[InstalledRule]) -> None:
        for each in rules:
            if each.rule.match.namespaces and not has_netns_cookie():
                raise MissingKernelFeature(
                    f"rule {each.rule.name} names a network namespace, which this kernel does not tell of a packet",
                    "Linux 6.15 does; `match.device` may serve",
                )

    def _tell(self, problem: str) -> None:
        """Once, however often it is met."""
        if problem != self._problem:
            _LOG.warning("%s", problem)
            self._problem = problem


def _octets(entries: Sequence[abi.Rule]) -> bytes:
    return b"".join(map(bytes, entries))


def _executables(rules: Sequence[InstalledRule]) -> set[str]:
    return {path for each in rules for path in each.rule.match.executables}
