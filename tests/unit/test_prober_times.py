"""The prober and the times that reflectors tell: not always true, and not always what they seem."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address

import pytest

from qos2.core import trains
from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePlan
from qos2.model import RemoteHost
from qos2.paths.prober import UNTIMED_S, Prober
from qos2.paths.probesocket import ProbeSocket
from qos2.wire import stamp

HOST = RemoteHost(ip_address("127.0.0.1"), 7)
SINGLE = ProbePlan(ProbeKind.SINGLE, 1, 92)
BURST = ProbePlan(ProbeKind.BURST, 20, 1400)
BEGIN_NS = 1_800_000_000_000_000_000  #: on the reflector's clock


class ToldReflector:
    """Replies with the times that it is told, as short as those of TWAMP-Light can be."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.settimeout(5)
        self.counters: dict[str, int] = {}
        self.at_arrival = False  #: whether it says that it knows when packets arrive

    def prober(self, clock: Callable[[], float] = time.monotonic) -> Prober:
        def here(_cookie: int, work: Callable[[], ProbeSocket]) -> ProbeSocket:
            return work()

        made = Prober(here, self.socket.getsockname()[1], clock)
        made.open(HOST)
        return made

    def reply(self, request: bytes, source: tuple[str, int], reached_ns: int, returned_ns: int) -> None:
        reply = stamp.reflect(
            request, reached_ns=reached_ns, returned_ns=returned_ns, ttl=64, at_arrival=self.at_arrival
        )
        assert reply is not None
        self.socket.sendto(reply if self.at_arrival else reply[:38], source)

    def outcome(self, plan: ProbePlan, times: Callable[[int], tuple[int, int]]) -> ProbeOutcome:
        """What comes of replies with these times, since BEGIN_NS, by their number; all are 20 ms late."""
        with closing(self.prober()) as prober:
            assert prober.send(HOST, 0, plan)
            requests = [self.socket.recvfrom(2000) for _ in range(plan.count)]
            time.sleep(0.02)
            for number, (request, source) in enumerate(requests):
                reached_ns, returned_ns = times(number)
                self.reply(request, source, BEGIN_NS + reached_ns, BEGIN_NS + returned_ns)
            ends_s = time.monotonic() + 10
            while time.monotonic() < ends_s:
                for _host, found in prober.take():
                    self.counters = {name: prober.counters[name] for name in ("answered", "odd_times", "untimed")}
                    return found
                time.sleep(0.002)
            raise TimeoutError


@pytest.fixture
def reflector() -> Iterator[ToldReflector]:
    made = ToldReflector()
    yield made
    made.socket.close()


@pytest.mark.parametrize("stay_ns", [-1, 1_000_000_000])
def test_its_own_time_is_not_believed_where_it_cannot_be(reflector: ToldReflector, stay_ns: int) -> None:
    (packet,) = reflector.outcome(SINGLE, lambda _number: (0, stay_ns)).packets
    assert packet is not None
    assert (packet.reached_ns, packet.returned_ns) == (BEGIN_NS, BEGIN_NS)
    assert reflector.counters == {"answered": 1, "odd_times": 1, "untimed": 0}


@pytest.mark.parametrize(
    ("gap_ns", "stay_ns", "capacity"),
    [
        (20_000, 0, None),  # one time for both, when the process came to it
        (112_000, 0, 100e6),  # of a train that takes long enough, it will do
        (500_000, 400_000, None),  # busy most of the time, and nothing ever came meanwhile
        (500_000, 200_000, 22.4e6),  # not so busy
        (500_000, 700_000, 22.4e6),  # busy, but it knows better: packets came meanwhile
    ],
)
def test_times_that_tell_of_the_reflector_do_not_tell_of_the_path(
    reflector: ToldReflector, gap_ns: int, stay_ns: int, capacity: float | None
) -> None:
    found = reflector.outcome(BURST, lambda number: (number * gap_ns, number * gap_ns + stay_ns))
    assert reflector.counters == {"answered": 20, "odd_times": 0, "untimed": int(capacity is None)}
    burst = trains.burst(found)
    assert (None if burst is None else burst.capacity) == (None if capacity is None else pytest.approx(capacity))
    rtt_us = trains.rtt_us(found)
    assert rtt_us is not None
    assert 19_000 < rtt_us < 2_000_000


def test_a_packet_that_came_as_if_it_had_been_waited_for_had_waited(reflector: ToldReflector) -> None:
    """A busy reflector that others keep waiting seems idle most of the time."""
    found = reflector.outcome(
        BURST, lambda number: (number * 500_000, number * 500_000 + (480_000 if number == 9 else 200_000))
    )
    assert (trains.burst(found), reflector.counters["untimed"]) == (None, 1)


def test_who_was_not_believed_once_is_not_for_a_while(reflector: ToldReflector) -> None:
    now_s = 1000.0

    def train(prober: Prober, gap_ns: int) -> ProbeOutcome:
        assert prober.send(HOST, 0, BURST)
        for number in range(BURST.count):
            request, source = reflector.socket.recvfrom(2000)
            reflector.reply(request, source, BEGIN_NS + number * gap_ns, BEGIN_NS + number * gap_ns)
        ends_s = time.monotonic() + 10
        while time.monotonic() < ends_s:
            for _host, found in prober.take():
                return found
            time.sleep(0.002)
        raise TimeoutError

    with closing(reflector.prober(lambda: now_s)) as prober:
        assert trains.burst(train(prober, 112_000)) is not None
        assert trains.burst(train(prober, 20_000)) is None
        now_s += UNTIMED_S - 1
        assert trains.burst(train(prober, 112_000)) is None
        now_s += 2
        assert trains.burst(train(prober, 112_000)) is not None
        assert prober.counters["untimed"] == 2


def test_who_says_that_he_knows_when_packets_arrive_is_believed(reflector: ToldReflector) -> None:
    """However late its process comes to them."""
    reflector.at_arrival = True
    found = reflector.outcome(BURST, lambda number: (number * 500_000, number * 500_000 + 450_000))
    burst = trains.burst(found)
    assert burst is not None
    assert burst.capacity == pytest.approx(22.4e6)
    assert reflector.counters["untimed"] == 0


def test_a_pause_of_its_process_does_not_make_a_fast_burst_a_slow_one(reflector: ToldReflector) -> None:
    found = reflector.outcome(BURST, lambda number: (number * 20_000 + (number > 9) * 5_000_000,) * 2)
    assert (trains.burst(found), reflector.counters["untimed"]) == (None, 1)


def test_of_a_paced_train_all_of_its_time_counts(reflector: ToldReflector) -> None:
    """Where packets leave in pairs, most gaps are short."""
    plan = ProbePlan(ProbeKind.PACED, 20, 1400, 50_000_000)
    reflector.outcome(plan, lambda number: (number // 2 * 448_000 + number % 2 * 10_000,) * 2)
    assert reflector.counters == {"answered": 20, "odd_times": 0, "untimed": 0}


def test_no_round_trip_is_taken_from_a_clock_that_was_set(reflector: ToldReflector) -> None:
    """The daemon's clock stands still here: as if the wall clock had leapt ahead meanwhile."""
    with closing(reflector.prober(clock=lambda: 5.0)) as prober:
        assert prober.send(HOST, 0, SINGLE)
        request, source = reflector.socket.recvfrom(2000)
        time.sleep(0.01)
        reflector.reply(request, source, BEGIN_NS, BEGIN_NS)
        ends_s = time.monotonic() + 5
        while not prober.counters["clock_set"] and time.monotonic() < ends_s:
            time.sleep(0.002)
        assert prober.counters["clock_set"] == 1
        assert prober.take() == []
