"""Messages over the real judge of congestion and the real estimates: what they say can be sent, and is what was seen.

Sessions, service, paths and conditions are real, time is virtual; the datapath's counters are written by the test.
"""

import socket
from collections.abc import Iterator
from contextlib import ExitStack

import numpy as np
import pytest

from qos2.core.congestion import Detector
from qos2.core.service import Limits, Service
from qos2.core.signals import SIGNALS
from qos2.core.thresholds import Thresholds
from qos2.datapath.fake import FakeDatapath
from qos2.model import Cause, Condition, FlowId, FlowState, Method, Peer, Quality, Reach, slot_of
from qos2.paths.conditions import JudgedFlows
from qos2.paths.estimates import MeasuredPaths
from qos2.session import Session, reply_of
from qos2.sockets import Passed
from qos2.wire import protocol
from unit.server_stage import PEER, VOICE

SLOTS = 16
STEP_S = 0.1
PACKETS, PACKET_BYTES = 40, 1200  #: sent per step
RATE = PACKETS * PACKET_BYTES * 8 / STEP_S


class Play:
    """One application with an adaptive UDP flow, which sends all the time and reports at each step."""

    def __init__(self, sock: socket.socket) -> None:
        self.now_s = 500.0
        self.counted = np.zeros(SLOTS, SIGNALS)
        paths = MeasuredPaths(lambda _cookie, _address: Reach.ON_LINK, self._clock, probe_share=0.0, beyond_link=True)
        self.judge = JudgedFlows(Detector(Thresholds(), SLOTS), lambda slots: self.counted[slots], paths, self._clock)
        self.service = Service(
            FakeDatapath(SLOTS - 1), self._clock, Limits(), "play", paths=paths, conditions=self.judge
        )
        self._session = Session(self.service, Peer(pid=1, uid=0, privileged=True))
        self.ask(protocol.OpenHandle())
        added = self._session.answer(protocol.AddSocket(traffic_type=VOICE, adaptive=True), Passed(sock.fileno()))
        assert isinstance(added, protocol.Added)
        self.flow = FlowId(added.flow)

    def _clock(self) -> float:
        return self.now_s

    def ask(self, request: protocol.AnyRequest) -> protocol.AnyResult | protocol.Failure | None:
        """The reply as it comes out of its bytes; None: the request waits."""
        result = self._session.answer(request, None)
        return None if result is None else protocol.decode_reply(protocol.encode(result))

    def explain(self) -> protocol.Explanation:
        told = self.ask(protocol.Explain(id=9, flow=self.flow))
        assert isinstance(told, protocol.Explanation)
        return told

    def run(self, seconds: float, *, rtt_us: int, loss: float) -> list[tuple[int, float]]:
        """Replies that came meanwhile to requests that waited: their numbers, and after how many seconds."""
        heard = []
        begun_s = self.now_s
        for _ in range(round(seconds / STEP_S)):
            self.now_s += STEP_S
            counters = self.counted[slot_of(self.flow) : slot_of(self.flow) + 1]
            counters["packets"] += np.uint64(PACKETS)
            counters["bytes"] += np.uint64(PACKETS * PACKET_BYTES)
            arrived = round(PACKETS * PACKET_BYTES * (1 - loss))
            report = protocol.Report(flow=self.flow, rtt_us=rtt_us, loss=loss, delivered_bytes=arrived)
            assert self.ask(report) == protocol.Done()
            self.judge.step(self.now_s)
            self.service.follow(self.now_s)
            for each in self.service.take_completed():
                assert each.signal_s == self.now_s
                reply = protocol.decode_reply(protocol.encode(reply_of(each)))
                assert reply == protocol.Done(id=each.request)
                heard.append((each.request, self.now_s - begun_s))
        return heard

    def wait(self, number: int, condition: Condition) -> None:
        assert self.ask(protocol.Notify(id=number, flow=self.flow, condition=condition)) is None


@pytest.fixture
def play() -> Iterator[Play]:
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect(PEER)
        yield Play(sock)


def test_before_anything_was_heard_a_flow_is_unknown(play: Play) -> None:
    told = play.explain()
    assert (told.state, told.cause, told.for_s, told.source, told.estimates) == (
        FlowState.UNKNOWN,
        None,
        0.0,
        None,
        None,
    )
    play.now_s += 2.5
    assert play.explain().for_s == 2.5


def test_an_application_that_reports_loss_hears_of_congestion_and_of_its_end(play: Play) -> None:
    assert play.run(3, rtt_us=20_000, loss=0.0) == []
    assert play.explain().state is FlowState.UNCONGESTED
    play.wait(70, Condition.CONGESTED)
    ((number, after_s),) = play.run(3, rtt_us=20_000, loss=0.25)
    # Three windows of six must be bad.
    assert (number, after_s <= 0.6) == (70, True)
    told = play.explain()
    assert (told.id, told.state, told.cause, told.source) == (9, FlowState.CONGESTED, Cause.LOSS, Method.REPORT)
    assert told.for_s == pytest.approx(3 - after_s)
    assert told.signals["loss"] == 0.25
    assert [each.state for each in told.changes] == ["congested", "uncongested", "unknown"]
    assert told.evidence["loss"] > told.evidence["limit_loss"] == Thresholds.congested_loss
    play.wait(71, Condition.UNCONGESTED)
    ((number, after_s),) = play.run(5, rtt_us=20_000, loss=0.0)
    assert (number, after_s <= 3) == (71, True)
    assert play.explain().state is FlowState.UNCONGESTED


def test_an_application_that_reports_delay_hears_of_its_cause(play: Play) -> None:
    play.run(3, rtt_us=20_000, loss=0.0)
    play.run(2, rtt_us=120_000, loss=0.0)
    told = play.explain()
    assert (told.state, told.cause) == (FlowState.CONGESTED, Cause.QUEUE_DELAY)
    assert told.signals["queue_delay_us"] == pytest.approx(100_000, rel=0.1)


def test_what_is_reported_becomes_estimates_with_their_statements(play: Play) -> None:
    play.run(2, rtt_us=20_000, loss=0.0)
    play.run(2, rtt_us=60_000, loss=0.1)
    told = play.ask(protocol.QueryFundamentals(id=3, flow=play.flow))
    assert isinstance(told, protocol.Fundamentals)
    # The network was full: what arrived is what it can carry.
    assert told.bottleneck == pytest.approx(0.9 * RATE, rel=0.1)
    assert told.rtt_us == 60_000
    assert {name: (each.method, each.quality) for name, each in told.statements.items() if name != "available"} == {
        "bottleneck": (Method.REPORT, Quality.MEASURED),
        "rtt": (Method.REPORT, Quality.MEASURED),
    }
    assert told.statements["rtt"].age_s == 0.0
    estimates = play.explain().estimates
    assert estimates is not None
    assert (estimates.bottleneck, estimates.available, estimates.rtt_us, estimates.statements) == (
        told.bottleneck,
        told.available,
        told.rtt_us,
        told.statements,
    )


def test_the_greatest_numbers_that_a_report_can_have_are_taken(play: Play) -> None:
    """A flow that sent for a long time before its first report, and an application that is beside itself."""
    play.counted["packets"] = 2**40
    play.counted["bytes"] = 2**42
    for _ in range(20):
        play.now_s += STEP_S
        report = protocol.Report(flow=play.flow, rtt_us=3_599_999_999, loss=1.0, delivered_bytes=2**63 - 1)
        assert play.ask(report) == protocol.Done()
        play.judge.step(play.now_s)
        play.service.follow(play.now_s)
    assert play.explain().source is Method.REPORT
    assert isinstance(play.ask(protocol.QueryFundamentals(flow=play.flow)), protocol.Fundamentals)
