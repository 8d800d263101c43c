"""A way that delays, wavers and loses (tc-netem(8)): what the network does by itself is no congestion, more of it is.

Truth is what `ss -ti` says of the same connection and what the router's queue counts. Development kernels often have
no netem; stock kernels do, so `./dev vm` runs this in a virtual machine. Its processor may be emulated: to run `ss`
takes 0.2 to 1 s there, a program in Python 2 to 4 s, and what the daemon does ten times a second has to wait for that.
So bounds of time are twice what was measured on an emulated processor whose host had three times more to do than
processors; beside each is what that was.
"""

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

import pytest

import qos2
from harness.congested import OTHER_PEER, CongestedLab, has_netem, wait_until
from harness.ss import told_by_ss
from harness.wire import port_of
from qos2.model import Cause, Condition, FlowState, Method, TrafficType

pytestmark = pytest.mark.datapath

MBIT = 1e6
DELAY_MS, JITTER_MS = 20.0, 5.0
#: What a good radio link does: no congestion.
MILD_LOSS, HARD_LOSS = 0.002, 0.06
APPLICATION = 4 * MBIT
STEPS = 2
#: For so long it is compared what is said, and at least so many times.
SECONDS, SAMPLES = 12.0, 15
#: In netem at 10 Mbit/s: 17 full packets are under way by the delay alone, and 50 ms of queue make 42 more; where
#: there is less than a quarter of that, the queue is gone.
QUEUED_PACKETS, FREE_PACKETS = 60, 28


@pytest.fixture(scope="module")
def impaired() -> Iterator[CongestedLab]:
    """A lab of its own: where there is no netem, not even a daemon is started."""
    if not has_netem():
        pytest.skip("this kernel has no sch_netem: ./dev vm")
    with CongestedLab() as lab:
        lab.reflector(OTHER_PEER)  # so that of connections to PEER only the kernel tells the round trip
        yield lab
        assert "Traceback" not in lab.daemon.log, lab.daemon.log


def router(lab: CongestedLab) -> dict[str, int]:
    """What netem counts towards the peer, as `drops` and `qlen`: packets under way in it, and those that wait."""
    (found,) = json.loads(lab.lab.router.run("tc", "-s", "-j", "qdisc", "show", "dev", lab.lab.router.device))
    assert found["kind"] == "netem"
    return {name: int(found[name]) for name in ("drops", "qlen")}


def states(qos: qos2.Handle, flow: qos2.Flow) -> list[tuple[FlowState, Cause | None]]:
    """Of the last changes, oldest first."""
    return [(change.state, change.cause) for change in reversed(qos.explain(flow.id).changes)]


class Echo:
    """An application that measures its own way: a datagram to the peer and back, one at a time."""

    def __init__(self, lab: CongestedLab, stack: ExitStack) -> None:
        self._far = stack.enter_context(lab.lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self._far.bind((OTHER_PEER, 0))
        self.sock = stack.enter_context(lab.lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
        self.sock.connect(self._far.getsockname())
        self._number = 0
        for each in (self._far, self.sock):
            each.settimeout(1.0)

    def round_trip_s(self) -> float | None:
        """None: it was lost."""
        self._number += 1
        sent = self._number.to_bytes(4)
        begin = time.monotonic()
        self.sock.send(sent)
        try:
            while (received := self._far.recvfrom(64))[0] != sent:
                pass  # late
            self._far.sendto(*received)
            while self.sock.recv(64) != sent:
                pass
        except TimeoutError:
            return None
        return time.monotonic() - begin


def test_a_way_that_wavers_and_loses_a_little_is_not_congested(impaired: CongestedLab) -> None:
    impaired.netem(delay_ms=DELAY_MS, jitter_ms=JITTER_MS, loss=MILD_LOSS)
    told: list[float] = []
    stated: dict[Method, list[int]] = {Method.TCP: [], Method.PROBE: []}
    with impaired.handle() as qos, ExitStack() as stack:
        sock, probed, echo = impaired.tcp(), impaired.udp(OTHER_PEER), Echo(impaired, stack)
        flows = {
            Method.TCP: qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=True),
            Method.PROBE: qos.add_socket(probed, TrafficType.AUDIO_VIDEO, adaptive=True),
            Method.REPORT: qos.add_socket(echo.sock, TrafficType.VOICE),
        }
        waits = [flow.begin_notify(Condition.CONGESTED) for flow in (flows[method] for method in stated)]
        stack.enter_context(impaired.sending(sock, APPLICATION)).begin()
        stack.enter_context(impaired.sending(probed, APPLICATION / 4)).begin()
        for method in stated:
            flows[method].notify(Condition.UNCONGESTED, timeout=20)
        begin_s = time.monotonic()
        while time.monotonic() - begin_s < SECONDS or len(told) < SAMPLES:
            rtt_s = echo.round_trip_s()
            flows[Method.REPORT].report(rtt=rtt_s, loss=float(rtt_s is None))
            told.append(told_by_ss(impaired.lab.app, port_of(sock)).srtt_us)
            for method, rtts in stated.items():
                rtts.append(flows[method].fundamentals().rtt_us or 0)
        assert not any(wait.done for wait in waits)
        assert {method: qos.explain(flow.id).source for method, flow in flows.items()} == {each: each for each in flows}
        seen = {method: states(qos, flow) for method, flow in flows.items()}
    assert seen == {method: [(FlowState.UNKNOWN, None), (FlowState.UNCONGESTED, None)] for method in flows}
    srtt_us, probed_us = median(told), median(stated[Method.PROBE])
    assert median(stated[Method.TCP]) == pytest.approx(srtt_us, rel=0.1, abs=2000)
    # Probes pass the same queue, but nobody waits with an answer to them, nor is the reflector's own time counted.
    assert DELAY_MS * 1e3 - 2000 <= probed_us <= srtt_us + max(0.1 * srtt_us, 2000)


def test_loss_is_the_cause_while_there_is_much_of_it(impaired: CongestedLab) -> None:
    begins, ends = [], []
    impaired.netem(delay_ms=DELAY_MS, jitter_ms=JITTER_MS, loss=MILD_LOSS)
    with impaired.handle() as qos:
        sock = impaired.tcp()
        flow = qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=True)
        with impaired.sending(sock, APPLICATION) as application:
            application.begin()
            flow.notify(Condition.UNCONGESTED, timeout=20)
            time.sleep(2)
            for _ in range(STEPS):
                told = flow.begin_notify(Condition.CONGESTED)
                assert not told.done
                impaired.netem(delay_ms=DELAY_MS, jitter_ms=JITTER_MS, loss=HARD_LOSS)
                begin_s = time.monotonic()
                told.result(timeout=30)
                begins.append(time.monotonic() - begin_s)
                time.sleep(1)
                impaired.netem(delay_ms=DELAY_MS, jitter_ms=JITTER_MS, loss=MILD_LOSS)
                begin_s = time.monotonic()
                flow.notify(Condition.UNCONGESTED, timeout=30)
                ends.append(time.monotonic() - begin_s)
                time.sleep(2)  # what the application could not send meanwhile
            seen = states(qos, flow)
    episode = [(FlowState.CONGESTED, Cause.LOSS), (FlowState.UNCONGESTED, None)]
    assert seen == [(FlowState.UNKNOWN, None), (FlowState.UNCONGESTED, None), *episode * STEPS]
    # 0.8 to 3.1 s: TCP halves its window by each loss until it sends some 100 segments in six windows, and of so few
    # it takes seven lost ones to be sure that more than 1 % is lost. The end: 1.8 to 4.1 s, of which the dwell is 2 s
    # from the beginning; what was lost last is sent again after a timeout that has doubled, which is not yet good.
    assert max(begins) <= 6.0, begins
    assert max(ends) <= 8.0, ends


def test_a_queue_is_the_cause_while_there_is_one(impaired: CongestedLab) -> None:
    begins, ends = [], []
    capacity = impaired.netem(delay_ms=DELAY_MS, rate=10 * MBIT, packets=250)
    with impaired.handle() as qos:
        sock = impaired.tcp()
        flow = qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=True)
        with impaired.sending(sock, APPLICATION) as application:
            application.begin()
            flow.notify(Condition.UNCONGESTED, timeout=20)
            time.sleep(2)
            for _ in range(STEPS):
                told = flow.begin_notify(Condition.CONGESTED)
                with impaired.cross(0.9 * capacity) as cross:
                    assert not told.done
                    cross.begin()
                    wait_until(lambda: router(impaired)["qlen"] >= QUEUED_PACKETS, 20)
                    begin_s = time.monotonic()
                    told.result(timeout=30)
                    begins.append(time.monotonic() - begin_s)
                    time.sleep(1)
                wait_until(lambda: router(impaired)["qlen"] <= FREE_PACKETS, 20)
                begin_s = time.monotonic()
                flow.notify(Condition.UNCONGESTED, timeout=30)
                ends.append(time.monotonic() - begin_s)
                time.sleep(2)
            seen = states(qos, flow)
    episode = [(FlowState.CONGESTED, Cause.QUEUE_DELAY), (FlowState.UNCONGESTED, None)]
    assert seen == [(FlowState.UNKNOWN, None), (FlowState.UNCONGESTED, None), *episode * STEPS]
    # At once to 0.4 s after a look at the router had found a queue; each look takes up to a second. The end: 1.3 to
    # 2.2 s, as good windows have to follow each other, and TCP's round trip is smoothed.
    assert max(begins) <= 2.0, begins
    assert max(ends) <= 5.0, ends


def test_signals_of_a_connection_are_what_its_kernel_says(impaired: CongestedLab) -> None:
    impaired.netem(delay_ms=DELAY_MS, loss=0.02)
    told: list[float] = []
    counted: list[int] = []
    judged: list[float] = []
    with impaired.handle() as qos:
        sock = impaired.tcp()
        flow = qos.add_socket(sock, TrafficType.AUDIO_VIDEO)  # not adaptive, so that nothing is probed
        dropped = router(impaired)["drops"]
        with impaired.sending(sock, APPLICATION / 2) as application:
            application.begin()
            time.sleep(3)
            begin_s = time.monotonic()
            while time.monotonic() - begin_s < SECONDS or len(told) < SAMPLES:
                told.append(told_by_ss(impaired.lab.app, port_of(sock)).srtt_us)
                counted.append(flow.stats().srtt_us)
                judged.append(qos.explain(flow.id).signals["rtt_us"])
        time.sleep(2)  # until what was lost last has been sent again
        stats, last = flow.stats(), told_by_ss(impaired.lab.app, port_of(sock))
        dropped = router(impaired)["drops"] - dropped
    assert median(counted) == pytest.approx(median(told), rel=0.1)
    assert median(judged) == pytest.approx(median(told), rel=0.1)
    assert stats.min_rtt_us == pytest.approx(last.min_rtt_us, rel=0.1)
    assert last.retransmits >= 20  # else 10 % of it says nothing
    assert stats.retransmits == pytest.approx(last.retransmits, rel=0.1)
    # All that the way lost was sent again; little else was: TCP probes for a loss at the tail (RFC 8985).
    assert 0.5 * last.retransmits <= dropped <= last.retransmits
