"""What is known of the ways to remote hosts: the port Paths over models, probes and what flows were carried at."""

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import NamedTuple

from qos2.core.admission import decide
from qos2.core.pathmodel import PathModel
from qos2.core.probing import Probing
from qos2.errors import NetworkBusy, Retry
from qos2.model import (
    Bandwidth,
    Dscp,
    FlowFundamentals,
    FlowId,
    Quality,
    Reach,
    RemoteHost,
)
from qos2.paths.way import Holder, Way

#: (netns cookie, address) -> how the host is reached from there. Raises HostUnreachable without a route.
AskReach = Callable[[int, IPv4Address | IPv6Address], Reach]

#: What is known of a host is kept for so long after its last user.
KEPT_S = 60.0
#: Of so many hosts, some 10 kB each: who comes and goes quickly must not fill the memory.
MOST_KEPT = 4096


class _Kept(NamedTuple):
    """What is known of a host that nobody uses since then."""

    left_s: float
    model: PathModel


class MeasuredPaths:
    """Implements core.ports.Paths. What it wants sent is asked for by `plans`, what is seen is told to the ways."""

    def __init__(self, reach: AskReach, clock: Callable[[], float], *, probe_share: float, beyond_link: bool) -> None:
        """`probe_share` of a path's capacity is for probes, 0: none; `beyond_link`: hosts behind a router too."""
        self._reach = reach
        self._clock = clock
        self._probe_share = probe_share
        self._beyond_link = beyond_link
        self._ways: dict[RemoteHost, Way] = {}
        self._kept: OrderedDict[RemoteHost, _Kept] = OrderedDict()  # longest unused first
        self._measured: dict[RemoteHost, bool] = {}
        self._news: set[RemoteHost] = set()
        self.admissions: Counter[str] = Counter()  #: by result: admitted, network_busy, retry

    def supports(self, host: RemoteHost) -> bool:
        reach = self._reach(host.netns_cookie, host.address)
        return reach is Reach.ON_LINK or (reach is Reach.ROUTED and self._beyond_link)

    def begin(self, host: RemoteHost) -> None:
        kept = self._kept.pop(host, None)
        model = PathModel() if kept is None else kept.model
        # What a reflector was like is found out anew: it may have come or gone.
        self._ways[host] = Way(model, Probing(self._probe_share) if self._probe_share else None)

    def end(self, host: RemoteHost) -> None:
        self._kept[host] = _Kept(self._clock(), self._ways.pop(host).model)
        if len(self._kept) > MOST_KEPT:
            self._kept.popitem(last=False)
        self._measured.pop(host, None)

    def hold(self, flow: FlowId, host: RemoteHost, dscp: Dscp | None, bandwidth: Bandwidth) -> None:
        holders = self._ways[host].holders
        holder = holders.get(flow)
        mark = Dscp(0) if dscp is None else dscp
        if holder is None:
            holders[flow] = Holder(mark, bandwidth)
        else:
            holder.dscp, holder.bandwidth = mark, bandwidth
        self._news.add(host)

    def let_go(self, flow: FlowId, host: RemoteHost) -> None:
        del self._ways[host].holders[flow]
        self._news.add(host)

    def estimate(self, host: RemoteHost) -> FlowFundamentals | None:
        way, now_s = self._ways[host], self._clock()
        way.ask(now_s)
        return way.estimate(now_s)

    def refresh(self, host: RemoteHost) -> None:
        way = self._ways[host]
        if not way.hopeful:
            raise Retry(
                f"the way to {host} cannot be measured now", "no reflector answers there, and no TCP flow sends"
            )
        way.refresh(self._clock())

    def admit(self, host: RemoteHost, held: Bandwidth, wanted: Bandwidth) -> None:
        way, now_s = self._ways[host], self._clock()
        way.ask(now_s)
        try:
            decide(way.estimate(now_s), way.settled, held, wanted)
        except (NetworkBusy, Retry) as refusal:
            self.admissions[refusal.code] += 1
            raise
        self.admissions["admitted"] += 1

    def measured(self) -> Mapping[RemoteHost, bool]:
        done, self._measured = self._measured, {}
        return done

    # For conditions

    def carries(self, host: RemoteHost, held: Bandwidth, wanted: Bandwidth, since_s: float) -> bool:
        """Whether a flow that holds `held` could have `wanted` in total, as far as was measured since then."""
        now_s = self._clock()
        self._ways[host].awaits(now_s)
        estimate = self._ways[host].estimate(now_s)
        available = None if estimate is None else estimate.statements.get("available")
        if available is None or now_s - available.age_s < since_s:
            return False
        return available.value + held >= wanted

    def watched(self, host: RemoteHost, watchers: int) -> None:
        """For conditions of so many flows to this host somebody waits."""
        self._ways[host].watchers = watchers

    def changed(self, host: RemoteHost) -> None:
        """More, or something else, is known of this host now."""
        self._news.add(host)

    def finished(self, host: RemoteHost, new: bool) -> None:
        """A refresh of this host has ended."""
        self._measured[host] = new

    def news(self) -> Collection[RemoteHost]:
        """Hosts of which more, or other things, are known than at the last call."""
        news, self._news = self._news, set()
        return news

    # For the daemon: ten times a second

    def ways(self) -> Iterator[tuple[RemoteHost, Way]]:
        """Those in use."""
        yield from self._ways.items()

    @property
    def hosts(self) -> int:
        """How many are in use."""
        return len(self._ways)

    @property
    def reflectors(self) -> int:
        """How many of these have a reflector that answers."""
        return sum(way.probing is not None and way.probing.reflector is True for way in self._ways.values())

    def census(self) -> Counter[tuple[str, Quality]]:
        """Of how many hosts in use a quantity is known, by its quality."""
        now_s = self._clock()
        known = [way.estimate(now_s) for way in self._ways.values()]
        return Counter(
            (quantity, statement.quality)
            for estimate in known
            if estimate is not None
            for quantity, statement in estimate.statements.items()
        )

    def expire(self, now_s: float) -> None:
        """Forget what nobody has used for KEPT_S."""
        while self._kept:
            host, kept = next(iter(self._kept.items()))
            if now_s - kept.left_s < KEPT_S:
                return
            del self._kept[host]

    def way(self, host: RemoteHost) -> Way | None:
        """That of one host in use."""
        return self._ways.get(host)
