"""The duty of ten times a second: signals are read, flows judged, ways learnt about, probes sent.

Joins what the other modules of this package do; decides nothing about congestion or bandwidth. What it costs
grows with the flows that are judged (arrays) and with the adaptive flows to hosts in use (one by one, at most
LOOKS_PER_STEP of them asked about in one step, in turn).
"""

import logging
from collections.abc import Callable, Iterable

import numpy as np

from qos2.errors import QosError
from qos2.model import Dscp, FlowId, Method, RemoteHost, SocketFacts, Transport
from qos2.paths.carriage import Carriage, Carried, Counters
from qos2.paths.conditions import JudgedFlows
from qos2.paths.estimates import MeasuredPaths
from qos2.paths.prober import Prober
from qos2.paths.tcp import TcpDiagnosis, TcpInfo, TcpSocket
from qos2.paths.way import Sighting, Way

_LOG = logging.getLogger(__name__)

#: Hosts looked at in one step; more are taken in turn.
LOOKS_PER_STEP = 128


class Observatory:
    """What the daemon runs. `paths` and `conditions` are the ports that the service is given."""

    def __init__(
        self,
        paths: MeasuredPaths,
        conditions: JudgedFlows,
        prober: Prober,
        tcp: TcpDiagnosis,
        clock: Callable[[], float],
    ) -> None:
        self.paths = paths
        self.conditions = conditions
        self.prober = prober
        self._tcp = tcp
        self._clock = clock
        self._open: set[RemoteHost] = set()
        self._turn = 0

    def step(self) -> float:
        """Look at everything once; the time of the signals."""
        now_s = self._clock()
        self._hear()
        self.conditions.step(now_s)
        self._follow_hosts()
        ways = list(self.paths.ways())
        if len(ways) > LOOKS_PER_STEP:
            begin, self._turn = self._turn, (self._turn + LOOKS_PER_STEP) % len(ways)
            ways = (ways + ways)[begin : begin + LOOKS_PER_STEP]
        self._look(now_s, ways)
        for host, way in ways:
            self._plan(now_s, host, way)
            new = way.refreshed(now_s)
            if new is not None:
                self.paths.finished(host, new)
        self.paths.expire(now_s)
        return now_s

    def close(self) -> None:
        """Nothing is probed or asked any more."""
        self.prober.close()
        self._tcp.close()

    def _follow_hosts(self) -> None:
        """Begin with hosts that are new, and leave those that nobody uses any more."""
        used = {host for host, _way in self.paths.ways()}
        for host in self._open - used:
            self.prober.shut(host)
        for host in used - self._open:
            self.prober.open(host)
        gone = {host.netns_cookie for host in self._open} - {host.netns_cookie for host in used}
        for cookie in gone:
            self._tcp.forget(cookie)
        self._open = used

    def _hear(self) -> None:
        """What has come of probes."""
        for host, outcome in self.prober.take():
            way = self.paths.way(host)
            if way is None or way.probing is None:
                continue
            sighting = way.outcome(outcome)
            self.paths.changed(host)
            if sighting is not None:
                self._offer(way, Dscp(outcome.dscp), sighting)

    def _offer(self, way: Way, dscp: Dscp, sighting: Sighting) -> None:
        """What probes saw concerns the flows that are marked as they were, and hear of nothing themselves."""
        for flow, holder in way.holders.items():
            facts = self.conditions.facts(flow)
            if holder.dscp == dscp and facts is not None and facts.transport is Transport.UDP:
                rtt_us, sent, lost = sighting
                self.conditions.offer(flow, method=Method.PROBE, rtt_us=rtt_us, sent=sent, lost=lost)

    def _look(self, now_s: float, ways: list[tuple[RemoteHost, Way]]) -> None:
        """What the flows on these ways were carried at."""
        facts = {flow: found for _host, way in ways for flow in way.holders if (found := self.conditions.facts(flow))}
        if not facts:
            return
        infos = self._ask_tcp(facts.values())
        counters = dict(zip(facts, map(_counters, self.conditions.signals(list(facts))), strict=True))
        for host, way in ways:
            seen: dict[FlowId, Carried | None] = {}
            for flow in way.holders.keys() & facts.keys():
                holder, fact = way.holders[flow], facts[flow]
                if holder.carriage is None:
                    holder.carriage = Carriage(fact.transport, host.address.version)
                info = infos.get(fact.cookie)
                seen[flow] = holder.carriage.since(way.interval_s(now_s), counters[flow], info)
                if info is not None and info.rtt_us:
                    way.model.rtt(now_s, info.rtt_us, Method.TCP)
            if seen:
                way.look(now_s, seen)
                self.paths.changed(host)

    def _ask_tcp(self, facts: Iterable[SocketFacts]) -> dict[int, TcpInfo]:
        sockets = [
            TcpSocket(each.cookie, each.netns_cookie, each.local, each.peer)
            for each in facts
            if each.transport is Transport.TCP and each.local is not None and each.peer is not None
        ]
        try:
            return self._tcp.read(sockets) if sockets else {}
        except QosError as error:
            _LOG.warning("the kernel tells nothing of TCP sockets: %s", error)
            return {}

    def _plan(self, now_s: float, host: RemoteHost, way: Way) -> None:
        planned = way.plan(now_s, train=not self.prober.busy(host))
        if planned is not None:
            dscp, plan = planned
            self.prober.send(host, dscp, plan)


def _counters(counted: np.void) -> Counters:
    return Counters(int(counted["bytes"]), int(counted["packets"]), int(counted["delayed_packets"]))
