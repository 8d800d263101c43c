"""The duty of ten times a second: signals are read, flows judged, ways learnt about, probes sent.

Joins what the other modules of this package do; decides nothing about congestion or bandwidth. What it costs
grows with the flows that are judged (arrays) and with the adaptive flows to hosts in use (one by one; in one step
those of at most LOOKS_PER_STEP hosts, in turn).

A part that fails is counted and the others go on: flows are judged while nothing can be probed, and the other
way round.
"""

import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import numpy as np

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
    """What the daemon runs. `paths` and `conditions` are the ports that the service is given.

    `counters` by name: failures of the parts of a step (hear, judge, follow, look, tcp, plan, expire), and
    outdated (probes of hosts that nobody uses any more) and unsent (plans that the prober did not take).
    """

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
        self._failing: set[str] = set()  # parts, at the last step
        self._failed: set[str] = set()  # at this one
        self.counters: Counter[str] = Counter()

    def step(self) -> float:
        """Look at everything once; the time of the signals."""
        now_s = self._clock()
        self._failing, self._failed = self._failed, set()
        with self._part("hear"):
            self._hear()
        with self._part("judge"):
            self.conditions.step(now_s)
        with self._part("follow"):
            self._follow_hosts()
        ways = self._in_turn()
        with self._part("look"):
            self._look(now_s, ways)
        for host, way in ways:
            with self._part("plan"):
                self._plan(now_s, host, way)
            new = way.refreshed(now_s)
            if new is not None:
                self.paths.finished(host, new)
        with self._part("expire"):
            self.paths.expire(now_s)
        return now_s

    def close(self) -> None:
        """Nothing is probed or asked any more."""
        self.prober.close()
        self._tcp.close()

    @contextlib.contextmanager
    def _part(self, name: str) -> Iterator[None]:
        """What fails in here is counted, and told of when it begins to fail: ten times a second is too often."""
        try:
            yield
        except Exception:  # whatever it is, the other parts must go on; see above
            self.counters[name] += 1
            if name not in self._failing | self._failed:
                _LOG.exception("%s failed; nothing more is said until it has worked again", name)
            self._failed.add(name)

    def _in_turn(self) -> list[tuple[RemoteHost, Way]]:
        """The ways to look at in this step."""
        ways = list(self.paths.ways())
        if len(ways) <= LOOKS_PER_STEP:
            return ways
        begin = self._turn % len(ways)  # there may have been more of them
        self._turn = begin + LOOKS_PER_STEP
        return (ways + ways)[begin : begin + LOOKS_PER_STEP]

    def _follow_hosts(self) -> None:
        """Leave hosts that nobody uses any more, and begin with those that are new."""
        used = {host for host, _way in self.paths.ways()}
        gone = self._open - used
        for host in gone:
            self._open.discard(host)
            self.prober.shut(host)
        for cookie in {host.netns_cookie for host in gone} - {host.netns_cookie for host in used}:
            self._tcp.forget(cookie)
        for host in used - self._open:
            self.prober.open(host)
            self._open.add(host)

    def _hear(self) -> None:
        """What has come of probes."""
        for host, outcome in self.prober.take():
            way = self.paths.way(host)
            if way is None:
                self.counters["outdated"] += 1
                continue
            with self._part("hear"):  # one by one: they come but once
                sighting = way.outcome(outcome)
                self.paths.changed(host)
                if sighting is not None:
                    self._offer(way, Dscp(outcome.dscp), sighting)

    def _offer(self, way: Way, dscp: Dscp, sighting: Sighting) -> None:
        """What probes saw concerns the flows that are marked as they were, and hear of nothing themselves."""
        for flow, holder in way.holders.items():
            facts = self.conditions.facts(flow)
            if holder.dscp == dscp and facts is not None and facts.transport is Transport.UDP:
                rtt_us, round_trips, sent, lost = sighting
                self.conditions.offer(
                    flow, method=Method.PROBE, rtt_us=rtt_us, round_trips=round_trips, sent=sent, lost=lost
                )

    def _look(self, now_s: float, ways: list[tuple[RemoteHost, Way]]) -> None:
        """What the flows on these ways were carried at."""
        facts = {flow: found for _host, way in ways for flow in way.holders if (found := self.conditions.facts(flow))}
        infos = self._ask_tcp(facts.values())
        counters = dict(zip(facts, map(_counters, self.conditions.signals(list(facts))), strict=True))
        for host, way in ways:
            seen: dict[FlowId, Carried | None] = {}
            for flow in way.holders.keys() & facts.keys():
                holder, fact = way.holders[flow], facts[flow]
                if holder.carriage is None:
                    holder.carriage = Carriage(fact.transport, host.address.version)
                info = infos.get(fact.cookie)
                carried = holder.carriage.since(way.interval_s(now_s), counters[flow], info)
                seen[flow] = carried
                # Of a connection on which nothing has arrived the kernel remembers the round trip of long ago.
                if info is not None and info.rtt_us and carried is not None and carried.rate:
                    way.model.rtt(now_s, info.rtt_us, Method.TCP)
            # Without any flow too: then nothing is carried.
            way.look(now_s, seen)
            if seen:
                self.paths.changed(host)

    def _ask_tcp(self, facts: Iterable[SocketFacts]) -> dict[int, TcpInfo]:
        sockets: dict[int, list[TcpSocket]] = {}
        for each in facts:
            if each.transport is Transport.TCP and each.local is not None and each.peer is not None:
                there = sockets.setdefault(each.netns_cookie, [])
                there.append(TcpSocket(each.cookie, each.netns_cookie, each.local, each.peer))
        found: dict[int, TcpInfo] = {}
        for there in sockets.values():
            with self._part("tcp"):  # of one namespace: it may just have ended
                found |= self._tcp.read(there)
        return found

    def _plan(self, now_s: float, host: RemoteHost, way: Way) -> None:
        # Single probes first and whatever else goes: the detector has a window for each.
        for train in (False, True) if not self.prober.busy(host) else (False,):
            planned = way.plan(now_s, train=train)
            if planned is not None:
                dscp, plan = planned
                if not self.prober.send(host, dscp, plan):
                    way.unsent(plan)
                    self.counters["unsent"] += 1


def _counters(counted: np.void) -> Counters:
    held = int(counted["delayed_packets"]) + int(counted["dropped_packets"])
    return Counters(int(counted["bytes"]), int(counted["packets"]), held)
