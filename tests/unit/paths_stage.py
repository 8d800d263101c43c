"""The stage of the tests of paths and conditions: the real classes in virtual time, over what the test says was seen.

Counters are those that the test writes, probes pass a simulated bottleneck, and the kernel's word on TCP is the
test's too.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from socket import AF_INET
from typing import cast

import numpy as np

from qos2.core.congestion import Detector
from qos2.core.notifications import Completion
from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePacket, ProbePlan
from qos2.core.probing import HELLOS, SINGLE_BYTES
from qos2.core.service import Limits, Service
from qos2.core.signals import SIGNALS, Signals, Slots
from qos2.core.thresholds import Thresholds
from qos2.datapath.fake import FakeDatapath
from qos2.errors import DeviceGone, HostUnreachable
from qos2.model import (
    Bandwidth,
    Cause,
    Condition,
    Destination,
    Dscp,
    FlowFundamentals,
    FlowId,
    FlowState,
    Judgement,
    Peer,
    Quality,
    RateReason,
    Reach,
    RemoteHost,
    Shaping,
    SocketFacts,
    TrafficType,
    Transport,
    flow_id,
    slot_of,
)
from qos2.paths.carriage import Carried
from qos2.paths.conditions import JudgedFlows
from qos2.paths.estimates import MeasuredPaths
from qos2.paths.observatory import Observatory
from qos2.paths.prober import Prober
from qos2.paths.tcp import TcpDiagnosis, TcpInfo, TcpSocket
from qos2.paths.way import Way
from unit.bottleneck import Bottleneck

MBIT = 1_000_000
HERE = 4026531840  #: netns cookie
ELSEWHERE = 5
SLOTS = 64
HOST = RemoteHost(ip_address("192.0.2.7"), HERE)
OTHER_HOST = RemoteHost(ip_address("192.0.2.8"), HERE)
A, B, C = (flow_id(slot, 1) for slot in (1, 2, 3))
VOICE, VIDEO = Dscp(46), Dscp(34)
NOTHING = Bandwidth(0)
ALICE = Peer(pid=100, uid=1000, program="voip", netns_cookie=HERE)
BOB = Peer(pid=200, uid=1001, program="game", netns_cookie=HERE)
#: Is there a reflector?
HELLO = ProbePlan(ProbeKind.SINGLE, HELLOS, SINGLE_BYTES)


def rate(mbit: float) -> Bandwidth:
    return Bandwidth(round(mbit * MBIT))


def udp(cookie: int, *, host: RemoteHost = HOST) -> SocketFacts:
    return SocketFacts(
        cookie, Transport.UDP, AF_INET, False, False, Destination(host.address, 5004), host.netns_cookie, _near(cookie)
    )


def tcp(cookie: int, *, host: RemoteHost = HOST) -> SocketFacts:
    return udp(cookie, host=host)._replace(transport=Transport.TCP)


def _near(cookie: int) -> Destination:
    return Destination.parse("192.0.2.1", 40_000 + cookie % 10_000)


def numbers(estimate: FlowFundamentals | None) -> tuple[int | None, int | None, int | None] | None:
    return None if estimate is None else (estimate.bottleneck, estimate.available, estimate.rtt_us)


def qualities(estimate: FlowFundamentals | None) -> dict[str, tuple[int, Quality]]:
    """Of all statements."""
    return {} if estimate is None else {name: (each.value, each.quality) for name, each in estimate.statements.items()}


def outcome(
    plan: ProbePlan, begun_s: float, *, seconds: float = 0.02, answered: int = 0, dscp: int = 0
) -> ProbeOutcome:
    """The first `answered` came back, after as many seconds."""
    sent_ns, took_ns = round(begun_s * 1e9), round(seconds * 1e9)
    packet = ProbePacket(sent_ns, 5, 5, sent_ns + took_ns)
    packets = (packet,) * answered + (None,) * (plan.count - answered)
    return ProbeOutcome(plan, dscp, begun_s, begun_s + seconds, packets)


class StandInProber:
    """Carries plans out over the bottlenecks in `ways`; hosts without one never answer. `refusing`: takes no plan."""

    def __init__(self, clock: Callable[[], float], log: list[str]) -> None:
        self._clock = clock
        self._log = log
        self.ways: dict[RemoteHost, Bottleneck] = {}
        self.ways_by_mark: dict[tuple[RemoteHost, int], Bottleneck] = {}  #: for those that have another one
        self.refusing = False
        self.refused = 0
        self.broken = False
        self.open_hosts: set[RemoteHost] = set()
        self.sent: list[tuple[RemoteHost, int, ProbePlan]] = []
        self.counters: Counter[str] = Counter()
        self._under_way: list[tuple[RemoteHost, ProbeOutcome]] = []

    def open(self, host: RemoteHost) -> None:
        self._log.append(f"open {host}")
        self.open_hosts.add(host)

    def shut(self, host: RemoteHost) -> None:
        self._log.append(f"shut {host}")
        self.open_hosts.remove(host)
        self._under_way = [each for each in self._under_way if each[0] != host]

    def busy(self, host: RemoteHost) -> bool:
        return any(each == host and outcome.plan.kind is not ProbeKind.SINGLE for each, outcome in self._under_way)

    def send(self, host: RemoteHost, dscp: int, plan: ProbePlan) -> bool:
        if self.refusing or host not in self.open_hosts:
            self.refused += 1
            return False
        now_s = self._clock()
        self._log.append(f"send {plan.kind}")
        self.sent.append((host, dscp, plan))
        way = self.ways_by_mark.get((host, dscp), self.ways.get(host))
        if way is None:
            outcome = ProbeOutcome(plan, dscp, now_s, now_s + 0.5, (None,) * plan.count)
        else:
            # What is under way at the same time as a train: the bottleneck takes one plan after another.
            way = copy.deepcopy(way) if plan.kind is ProbeKind.SINGLE else way
            outcome = replace(way.execute(plan, now_s), dscp=dscp)
        self._under_way.append((host, outcome))
        return True

    def take(self) -> list[tuple[RemoteHost, ProbeOutcome]]:
        self._log.append("take")
        if self.broken:
            raise OSError("the test says so")
        now_s = self._clock()
        done = [each for each in self._under_way if each[1].ended_s <= now_s]
        self._under_way = [each for each in self._under_way if each[1].ended_s > now_s]
        return done

    def close(self) -> None:
        self.open_hosts.clear()


class StandInDiagnosis:
    """The kernel's word on the sockets in `infos`; namespaces in `gone` cannot be entered."""

    def __init__(self, log: list[str]) -> None:
        self._log = log
        self.infos: dict[int, TcpInfo] = {}
        self.gone: set[int] = set()
        self.held: set[int] = set()  #: namespaces entered and not forgotten

    def read(self, sockets: Sequence[TcpSocket]) -> dict[int, TcpInfo]:
        self._log.append("tcp")
        for each in sockets:
            if each.netns_cookie in self.gone:
                raise DeviceGone("it has ended")
            self.held.add(each.netns_cookie)
        return {each.cookie: self.infos[each.cookie] for each in sockets if each.cookie in self.infos}

    def forget(self, netns_cookie: int) -> None:
        self._log.append("forget")
        self.held.discard(netns_cookie)

    def close(self) -> None:
        self.held.clear()


class PathsStage:
    """`now_s` is what the clock shows, `counted` the counters by slot. Everything is on-link but what `reach` names."""

    def __init__(self, *, probe_share: float = 0.01, beyond_link: bool = True) -> None:
        self.now_s = 1000.0
        self.log: list[str] = []  #: what the observatory did, in its order
        self.counted = np.zeros(SLOTS, SIGNALS)
        self.readable = True
        self.reach: dict[IPv4Address | IPv6Address, Reach | None] = {}  #: None: no route
        self.paths = MeasuredPaths(self._ask_reach, self.clock, probe_share=probe_share, beyond_link=beyond_link)
        self.detector = Detector(Thresholds(), SLOTS)
        self.conditions = JudgedFlows(self.detector, self._read, self.paths, self.clock)
        self.prober = StandInProber(self.clock, self.log)
        self.diagnosis = StandInDiagnosis(self.log)
        # They have the same methods; the real ones need threads and namespaces.
        prober, diagnosis = cast(Prober, self.prober), cast(TcpDiagnosis, self.diagnosis)
        self.observatory = Observatory(self.paths, self.conditions, prober, diagnosis, self.clock)
        self.traffic: list[Callable[[], None]] = []  #: called before each step of `run`

    def clock(self) -> float:
        return self.now_s

    def way(self, host: RemoteHost = HOST) -> Way:
        way = self.paths.way(host)
        assert way is not None
        return way

    def use(self, *flows: FlowId, host: RemoteHost = HOST, contract: Bandwidth = NOTHING) -> None:
        """These adaptive flows use the host."""
        if self.paths.way(host) is None:
            self.paths.begin(host)
        for flow in flows:
            self.paths.hold(flow, host, None, contract)

    def carry(
        self, rates: Mapping[FlowId, float], *, seconds: float = 2.0, limited: bool = True, host: RemoteHost = HOST
    ) -> None:
        """TCP flows are carried at these rates; looked at ten times a second."""
        for _ in range(round(seconds * 10)):
            seen = {flow: Carried(each, each, limited) for flow, each in rates.items()}
            self.way(host).look(self.now_s, seen)
            self.now_s += 0.1
        self.now_s -= 0.1  # that of the last look

    def send(self, flow: FlowId, packets: int, *, ip_bytes: int = 1250) -> None:
        """The datapath has let so many packets of the flow pass."""
        counted = self.counted[slot_of(flow)]
        counted["packets"] += packets
        counted["bytes"] += packets * ip_bytes

    def acknowledge(self, flow: FlowId, segments: int, *, rtt_us: int, lost: int = 0) -> None:
        """What the datapath has seen of a TCP flow: so many segments delivered, of a path of 10 ms."""
        self.send(flow, segments + lost)
        counted = self.counted[slot_of(flow)]
        counted["delivered"] += segments
        counted["retransmits"] += lost
        counted["srtt_us"], counted["min_rtt_us"] = rtt_us, 10_000

    def judgement(self, flow: FlowId = A) -> Judgement:
        """What is said of a judged flow."""
        explanation = self.conditions.explain(flow)
        assert explanation is not None
        return explanation.judgement

    def state(self, flow: FlowId = A) -> tuple[FlowState, Cause | None]:
        return self.judgement(flow).state, self.judgement(flow).cause

    def holding(self, flow: FlowId = A) -> set[Condition]:
        """Which of the two that need no rate hold."""
        both = Condition.CONGESTED, Condition.UNCONGESTED
        return {each for each in both if self.conditions.holds(flow, each, held=NOTHING, wanted=NOTHING)}

    def judge(self, steps: int, window: Callable[[], None] = lambda: None) -> list[FlowId]:
        """So many steps of conditions alone, each after this window; the flows that have news by then."""
        for _ in range(steps):
            self.now_s += 0.1
            window()
            self.conditions.step(self.now_s)
        return list(self.conditions.changed())

    def run(self, seconds: float) -> None:
        """The observatory's duty, ten times a second."""
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            for each in self.traffic:
                each()
            self.observatory.step()

    def _read(self, slots: Slots) -> Signals:
        self.log.append("signals")
        if not self.readable:
            raise OSError("the test says so")
        return self.counted[slots]

    def _ask_reach(self, _netns_cookie: int, address: IPv4Address | IPv6Address) -> Reach:
        reach = self.reach.get(address, Reach.ON_LINK)
        if reach is None:
            raise HostUnreachable(f"no route to {address}", "the test says so")
        return reach


class TcpTraffic:
    """What counters and kernel say of a TCP flow that is carried at `mbit`.

    `busy`: it always had more to send; `hole`: of all that arrives something before it is missing.
    """

    def __init__(self, stage: PathsStage, flow: FlowId, mbit: float, *, busy: bool = True) -> None:
        self.mbit = mbit
        self.busy = busy
        self.hole = False
        self._stage = stage
        self._flow = flow
        stage.diagnosis.infos[slot_of(flow)] = TcpInfo(1, False, 1448, 0, 12_000, *(0,) * 13)
        stage.traffic.append(self._pass)

    def _pass(self) -> None:
        """The tenth of a second that ends now."""
        segments = round(self.mbit * MBIT / 80 / 1500)
        if segments:
            self._stage.acknowledge(self._flow, segments, rtt_us=12_000)
        info = self._stage.diagnosis.infos[slot_of(self._flow)]
        sacked = info.sacked + segments
        self._stage.diagnosis.infos[slot_of(self._flow)] = info._replace(
            sacked=sacked if self.hole else 0,
            bytes_acked=info.bytes_acked + (0 if self.hole else sacked * 1448),
            busy_us=info.busy_us + (100_000 if self.busy else 20_000),
        )


class ServiceStage(PathsStage):
    """With the service over it, which hears of news after each step as the daemon has it."""

    def __init__(self, *, beyond_link: bool = True) -> None:
        super().__init__(beyond_link=beyond_link)
        self.service = Service(
            FakeDatapath(), self.clock, Limits(), "1.2.3", paths=self.paths, conditions=self.conditions
        )
        self.handle = self.service.open_handle(ALICE)
        self.others = self.service.open_handle(BOB)

    def adaptive(self, facts: SocketFacts, *, handle: int | None = None) -> FlowId:
        return self.service.add_socket(
            self.handle if handle is None else handle,
            3,  # the datapath in memory never looks at it
            facts,
            traffic_type=TrafficType.AUDIO_VIDEO,
            flow=0,
            destination=None,
            adaptive=True,
        )

    def set_rate(self, flow: FlowId, mbit: float, *, handle: int | None = None) -> None:
        reason = RateReason.NOT_APPLICABLE
        handle = self.handle if handle is None else handle
        self.service.set_rate(handle, flow, rate(mbit), Shaping.SHAPE_AND_MARK, reason)

    def follow(self, seconds: float) -> list[Completion]:
        """What requests have come to by then."""
        for _ in range(round(seconds * 10)):
            self.run(0.1)
            self.service.follow(self.now_s)
        return self.service.take_completed()
