"""The loop of the SDK sample against a way that halves and recovers: lower on congestion, raise when there is room."""

import math
import threading
import time
from contextlib import ExitStack

import pytest

import qos2
from harness.congested import CongestedLab
from qos2.model import Condition, RateReason, Shaping, TrafficType

pytestmark = pytest.mark.datapath

MBIT = 1e6
FULL, LOW = round(8 * MBIT), round(2 * MBIT)
#: A minute in all.
TIMES = 3


class Loop(threading.Thread):
    """An application that sends at its contract; `rates`: when it had which."""

    def __init__(self, flow: qos2.Flow) -> None:
        super().__init__()
        self._flow = flow
        self.rates: list[tuple[float, int]] = []
        self.error: qos2.QosError | None = None

    def run(self) -> None:
        try:
            self._set(FULL, RateReason.NOT_APPLICABLE)
            while True:
                self._flow.notify(Condition.CONGESTED)
                self._set(LOW, RateReason.CONGESTION)
                while True:
                    self._flow.notify(Condition.AVAILABLE, FULL)
                    try:
                        self._set(FULL, RateReason.HIGHER_CONTENT_ENCODING)
                        break
                    except (qos2.NetworkBusy, qos2.Retry):
                        time.sleep(0.1)  # somebody else was quicker
        except (qos2.Cancelled, qos2.InvalidHandle, qos2.NoSuchFlow):
            return  # the test is over
        except qos2.QosError as error:
            self.error = error

    def _set(self, rate: int, reason: RateReason) -> None:
        self._flow.set_rate(rate, Shaping.SHAPE_AND_MARK, reason)
        self.rates.append((time.monotonic(), rate))

    def waited(self, since_s: float, rate: int) -> float:
        """Seconds from a time until it had this rate for the first time since."""
        return next((at_s for at_s, each in self.rates if at_s >= since_s and each == rate), math.inf) - since_s


def test_the_stream_follows_the_way_down_and_up_again(congested: CongestedLab) -> None:
    congested.bottleneck(10 * MBIT)
    with congested.handle() as qos, ExitStack() as stack:
        sock = congested.udp()
        flow = qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=True)
        deadline_s = time.monotonic() + 10
        while True:  # until the way is known, 1237
            try:
                flow.set_rate(FULL)
                break
            except (qos2.Retry, qos2.NetworkBusy):  # what another test did to the way may be remembered
                assert time.monotonic() < deadline_s
                time.sleep(0.2)
        stack.enter_context(congested.sending(sock, 1.5 * FULL)).begin()  # its contract holds it back
        loop = Loop(flow)
        loop.start()
        halved, recovered = [], []
        try:
            time.sleep(3)
            for _ in range(TIMES):
                halved.append(time.monotonic())
                congested.bottleneck(5 * MBIT)
                time.sleep(8)
                recovered.append(time.monotonic())
                congested.bottleneck(10 * MBIT)
                time.sleep(11)
        finally:
            flow.close()
            loop.join(10)
    assert loop.error is None
    rates = [rate for _at_s, rate in loop.rates]
    assert rates == [FULL, *[LOW, FULL] * TIMES], loop.rates
    # Goals: 1 s and 3 s; 6.2 s was measured with two emulated machines at work on the same two processors.
    assert max(loop.waited(at_s, LOW) for at_s in halved) <= 2.0, (halved, loop.rates)
    assert max(loop.waited(at_s, FULL) for at_s in recovered) <= 9.0, (recovered, loop.rates)
