"""Paths and conditions in memory, for tests of the service and of programs that embed it.

Same faces as the real ones (core.ports.Paths and Conditions) and stricter: RuntimeError for what would be
a mistake of the control plane, such as ending what was not begun. Nothing is measured; tests say what
would have been. Every host can be learnt about until a test says otherwise.
"""

from collections.abc import Collection, Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TypeVar

from qos2.errors import HostUnreachable, NotSupported, QosError
from qos2.model import (
    Bandwidth,
    Condition,
    Dscp,
    Explanation,
    FlowFundamentals,
    FlowId,
    Judgement,
    PathReport,
    RemoteHost,
    SocketFacts,
)

Key = TypeVar("Key")
Value = TypeVar("Value")
Address = IPv4Address | IPv6Address | str
_UNKNOWN = Explanation(None, (Judgement(),), {})


class FakePaths:
    """Everything it was told is in public attributes. Tests name hosts by address, in whatever namespace."""

    def __init__(self) -> None:
        self._off_link: set[IPv4Address | IPv6Address] = set()
        self._unreachable: set[IPv4Address | IPv6Address] = set()
        self._estimates: dict[IPv4Address | IPv6Address, FlowFundamentals] = {}
        self._admission: dict[IPv4Address | IPv6Address, QosError] = {}
        self._no_refresh: dict[IPv4Address | IPv6Address, QosError] = {}
        self._measured: dict[RemoteHost, bool] = {}
        self.begun: set[RemoteHost] = set()  #: in use now
        #: What flows hold now: host, DSCP, contract.
        self.held: dict[FlowId, tuple[RemoteHost, Dscp | None, Bandwidth]] = {}
        self.refreshing: list[RemoteHost] = []  #: asked to be measured anew, in the order of asking
        self.asked: list[tuple[str, Bandwidth, Bandwidth]] = []  #: every `admit`: host, held, wanted
        self.operations: list[str] = []  #: as "begin 192.0.2.7", every call that changes something

    def set_off_link(self, address: Address, off_link: bool = True) -> None:
        """Nothing can be learnt about this host (or, False, it can again)."""
        (self._off_link.add if off_link else self._off_link.discard)(ip_address(address))

    def set_unreachable(self, address: Address, unreachable: bool = True) -> None:
        """There is no route to this host (or, False, there is one again)."""
        (self._unreachable.add if unreachable else self._unreachable.discard)(ip_address(address))

    def set_estimate(self, address: Address, estimate: FlowFundamentals | None) -> None:
        """What is known of the way to this host from now on; None: nothing yet."""
        _put(self._estimates, ip_address(address), estimate)

    def set_admission(self, address: Address, refusal: QosError | None) -> None:
        """`admit` raises this, NetworkBusy or Retry, for every rate to this host; None: all are admitted."""
        _put(self._admission, ip_address(address), refusal)

    def set_refresh(self, address: Address, refusal: QosError | None) -> None:
        """`refresh` raises this; None: it can be done."""
        _put(self._no_refresh, ip_address(address), refusal)

    def finish_refresh(self, address: Address, *, new: bool = True) -> None:
        """The measurements under way of this host are done; `measured` tells so, and whether anything is new."""
        ip = ip_address(address)
        done = {host for host in self.refreshing if host.address == ip}
        self.refreshing = [host for host in self.refreshing if host not in done]
        self._measured |= dict.fromkeys(done, new)

    def supports(self, host: RemoteHost) -> bool:
        if host.address in self._unreachable:
            raise HostUnreachable(f"no route to {host}", "the test says so")
        return host.address not in self._off_link

    def begin(self, host: RemoteHost) -> None:
        self.operations.append(f"begin {host}")
        if host in self.begun:
            raise RuntimeError(f"{host} has begun already")
        self.begun.add(host)

    def end(self, host: RemoteHost) -> None:
        self.operations.append(f"end {host}")
        if host not in self.begun:
            raise RuntimeError(f"{host} has not begun")
        if any(holder[0] == host for holder in self.held.values()):
            raise RuntimeError(f"flows still use {host}")
        self.begun.remove(host)

    def estimate(self, host: RemoteHost) -> FlowFundamentals | None:
        self._check_begun(host)
        return self._estimates.get(host.address)

    def hold(self, flow: FlowId, host: RemoteHost, dscp: Dscp | None, bandwidth: Bandwidth) -> None:
        self._check_begun(host)
        self.held[flow] = (host, dscp, bandwidth)

    def let_go(self, flow: FlowId, host: RemoteHost) -> None:
        self._check_begun(host)
        if self.held.pop(flow, (None,))[0] != host:
            raise RuntimeError(f"flow {flow} holds nothing of {host}")

    def refresh(self, host: RemoteHost) -> None:
        self.operations.append(f"refresh {host}")
        self._check_begun(host)
        if host.address in self._no_refresh:
            raise self._no_refresh[host.address]
        self.refreshing.append(host)

    def admit(self, host: RemoteHost, held: Bandwidth, wanted: Bandwidth) -> None:
        self._check_begun(host)
        if wanted <= held:
            raise RuntimeError(f"{wanted} bits/s is no more than the {held} that the flow holds")
        self.asked.append((str(host), held, wanted))
        if host.address in self._admission:
            raise self._admission[host.address]

    def measured(self) -> Mapping[RemoteHost, bool]:
        done, self._measured = self._measured, {}
        return done

    def _check_begun(self, host: RemoteHost) -> None:
        if host not in self.begun:
            raise RuntimeError(f"{host} is not in use")


class FakeConditions:
    """Tells what `set` was told last. A flow that was never set is unknown: no condition holds."""

    def __init__(self) -> None:
        self._congested: dict[FlowId, bool] = {}
        self._free: dict[FlowId, int] = {}
        self._changed: dict[FlowId, None] = {}
        #: Flows that are judged now: what they were begun with.
        self.judged: dict[FlowId, tuple[SocketFacts, RemoteHost | None]] = {}
        self.reports: list[tuple[FlowId, PathReport]] = []  #: in their order
        self.explanations: dict[FlowId, Explanation] = {}  #: what `explain` tells of judged flows
        self.watched: dict[FlowId, RemoteHost] = {}
        self.operations: list[str] = []  #: as "watch 1048577", every call that changes something

    def set(self, flow: int, *, congested: bool | None, free: int = 0) -> None:
        """From now on: None is unknown; `free` bits/s could be had beyond what the flow holds."""
        _put(self._congested, FlowId(flow), congested)
        self._free[FlowId(flow)] = free
        self._changed[FlowId(flow)] = None

    def begin(self, flow: FlowId, facts: SocketFacts, host: RemoteHost | None) -> None:
        if flow in self.judged:
            raise RuntimeError(f"flow {flow} is judged already")
        self.judged[flow] = (facts, host)

    def end(self, flow: FlowId) -> None:
        if flow in self.watched:
            raise RuntimeError(f"flow {flow} is still watched")
        self.judged.pop(flow, None)

    def report(self, flow: FlowId, report: PathReport) -> None:
        if flow not in self.judged:
            raise NotSupported(f"flow {flow} is not judged", "the test says so")
        self.reports.append((flow, report))

    def explain(self, flow: FlowId) -> Explanation | None:
        return self.explanations.get(flow, _UNKNOWN) if flow in self.judged else None

    def watch(self, flow: FlowId, host: RemoteHost) -> None:
        self.operations.append(f"watch {flow}")
        if flow in self.watched:
            raise RuntimeError(f"flow {flow} is watched already")
        self.watched[flow] = host

    def unwatch(self, flow: FlowId) -> None:
        self.operations.append(f"unwatch {flow}")
        if flow not in self.watched:
            raise RuntimeError(f"flow {flow} is not watched")
        del self.watched[flow]

    def holds(self, flow: FlowId, condition: Condition, *, held: Bandwidth, wanted: Bandwidth) -> bool:
        if flow not in self.watched:
            raise RuntimeError(f"flow {flow} is not watched")
        if (held != 0 or wanted != 0) and condition is not Condition.AVAILABLE:
            raise RuntimeError(f"{condition.name} has no bandwidth")
        congested = self._congested.get(flow)
        if congested is None:
            return False
        if condition is Condition.AVAILABLE:
            return not congested and wanted - held <= self._free[flow]
        return congested is (condition is Condition.CONGESTED)

    def changed(self) -> Collection[FlowId]:
        changed, self._changed = self._changed, {}
        return tuple(changed)


def _put(table: dict[Key, Value], key: Key, value: Value | None) -> None:
    """Set an entry; None takes it out."""
    if value is None:
        table.pop(key, None)
    else:
        table[key] = value
