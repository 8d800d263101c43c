"""The prober over loopback, against the real reflector and against none: what it sends, hears and counts."""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from ipaddress import ip_address

import pytest

from qos2.core import trains
from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePlan
from qos2.errors import DeviceGone
from qos2.model import RemoteHost
from qos2.paths.prober import FIRST_WAIT_S, MOST_SINGLES, Prober
from qos2.paths.probesocket import ProbeSocket
from qos2.paths.reflector import Reflector
from qos2.wire import stamp

HOST = RemoteHost(ip_address("127.0.0.1"), 7)
HOST6 = RemoteHost(ip_address("::1"), 7)
SINGLE = ProbePlan(ProbeKind.SINGLE, 1, 92)
BURST = ProbePlan(ProbeKind.BURST, 20, 1400)
_IP_RECVTOS = 13


def here(cookie: int, work: Callable[[], ProbeSocket]) -> ProbeSocket:
    """Stands for the namespace 7, which is this one."""
    assert cookie == 7
    return work()


class Answering:
    """A reflector in a thread."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.reflector = Reflector(ip_address(address), 0)
        self._ended = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended:
            select.select([self.reflector], [], [], 0.05)
            self.reflector.reflect()

    def close(self) -> None:
        self._ended = True
        self._thread.join()
        self.reflector.close()


@pytest.fixture
def answering() -> Iterator[Answering]:
    with closing(Answering()) as made:
        yield made


@pytest.fixture
def prober(answering: Answering) -> Iterator[Prober]:
    with closing(Prober(here, answering.reflector.port)) as made:
        made.open(HOST)
        yield made


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A port that answers nothing, and tells the mark of what comes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        sock.settimeout(5)
        yield sock


def outcome(prober: Prober, host: RemoteHost = HOST) -> ProbeOutcome:
    """What came of the plan under way. Raises TimeoutError."""
    ends_s = time.monotonic() + 10
    while time.monotonic() < ends_s:
        for found, what in prober.take():
            assert found == host
            return what
        time.sleep(0.002)
    raise TimeoutError


@pytest.mark.parametrize("plan", [SINGLE, BURST, ProbePlan(ProbeKind.PACED, 12, 1400, 20_000_000)])
def test_every_packet_comes_back_in_its_order(prober: Prober, plan: ProbePlan) -> None:
    before_ns = time.time_ns()
    assert prober.send(HOST, 46, plan)
    found = outcome(prober)
    assert (found.plan, found.dscp, found.answered) == (plan, 46, plan.count)
    times = [packet for packet in found.packets if packet is not None]
    assert [packet.sent_ns for packet in times] == sorted(packet.sent_ns for packet in times)
    for packet in times:
        assert before_ns <= packet.sent_ns <= packet.reached_ns <= packet.returned_ns <= time.time_ns()
        assert packet.reached_ns <= packet.received_ns
    assert prober.counters == {
        "sent_packets": plan.count,
        "sent_bytes": plan.bytes,
        "answered": plan.count,
        "lost": 0,
    }


def test_a_paced_train_takes_its_time(prober: Prober) -> None:
    plan = ProbePlan(ProbeKind.PACED, 20, 1400, 5_000_000)  # a packet each 2.24 ms
    assert prober.send(HOST, 0, plan)
    packets = [packet for packet in outcome(prober).packets if packet is not None]
    took_ns = packets[-1].sent_ns - packets[0].sent_ns
    assert took_ns == pytest.approx(19 * 2_240_000, rel=0.3)  # a busy machine wakes late


def test_over_ipv6_too() -> None:
    with closing(Answering("::1")) as answering, closing(Prober(here, answering.reflector.port)) as prober:
        prober.open(HOST6)
        assert prober.send(HOST6, 0, BURST)
        assert outcome(prober, HOST6).answered == 20


def test_probes_have_their_mark_and_their_size(silent: socket.socket) -> None:
    with closing(Prober(here, silent.getsockname()[1])) as prober:
        prober.open(HOST)
        for plan in (SINGLE, BURST):
            assert prober.send(HOST, 34, plan)
            for _ in range(plan.count):
                data, ancillary, _flags, _source = silent.recvmsg(2000, 100)
                assert len(data) + 28 == plan.ip_bytes
                assert ancillary == [(socket.IPPROTO_IP, socket.IP_TOS, bytes([34 << 2]))]
            assert outcome(prober).answered == 0
        assert prober.counters["lost"] == 21


def test_without_an_answer_a_plan_ends_in_its_time(silent: socket.socket) -> None:
    with closing(Prober(here, silent.getsockname()[1])) as prober:
        prober.open(HOST)
        assert prober.send(HOST, 0, SINGLE)
        found = outcome(prober)
        assert found.packets == (None,)
        assert FIRST_WAIT_S <= found.ended_s - found.begun_s < FIRST_WAIT_S + 2


def test_of_trains_there_is_one_at_a_time_and_of_singles_there_are_some(silent: socket.socket) -> None:
    with closing(Prober(here, silent.getsockname()[1])) as prober:
        prober.open(HOST)
        assert prober.send(HOST, 0, BURST)
        assert prober.busy(HOST)
        assert not prober.send(HOST, 0, BURST)
        sent = sum(prober.send(HOST, 0, SINGLE) for _ in range(2 * MOST_SINGLES))
        assert sent == MOST_SINGLES
        ends_s, found = time.monotonic() + 10, 0
        while found < 1 + sent and time.monotonic() < ends_s:
            found += len(prober.take())
            time.sleep(0.01)
        assert (found, prober.busy(HOST)) == (1 + sent, False)


def answer(silent: socket.socket, data: bytes, source: tuple[str, int]) -> None:
    now_ns = time.time_ns()
    reply = stamp.reflect(data, reached_ns=now_ns, returned_ns=now_ns, ttl=64)
    assert reply is not None
    silent.sendto(reply, source)


def test_single_probes_in_a_queue_that_has_just_filled_are_waited_for(silent: socket.socket) -> None:
    with closing(Prober(here, silent.getsockname()[1])) as prober:
        prober.open(HOST)
        prober.send(HOST, 0, SINGLE)
        answer(silent, *silent.recvfrom(2000))
        assert outcome(prober).answered == 1  # on an idle path, in next to no time
        prober.send(HOST, 0, SINGLE)
        probe = silent.recvfrom(2000)
        time.sleep(0.7)
        assert prober.take() == []
        answer(silent, *probe)
        found = outcome(prober)
        assert found.answered == 1
        assert trains.rtt_us(found) == pytest.approx(700_000, rel=0.3)


def test_a_single_probe_that_was_overtaken_is_lost(silent: socket.socket) -> None:
    with closing(Prober(here, silent.getsockname()[1])) as prober:
        prober.open(HOST)
        for _ in range(2):
            prober.send(HOST, 0, SINGLE)
            lost = silent.recvfrom(2000)
            prober.send(HOST, 0, SINGLE)
            later = silent.recvfrom(2000)
            assert lost[0][:4] < later[0][:4]
            answer(silent, *later)
            began_s = time.monotonic()
            assert [outcome(prober).answered, outcome(prober).answered] == [1, 0]
            assert time.monotonic() - began_s < FIRST_WAIT_S  # no round trip was known at first; then SINGLE_WAIT_S


def test_of_two_spaced_single_probes_each_is_told_of_when_it_is_back(silent: socket.socket) -> None:
    pair = ProbePlan(ProbeKind.SINGLE, 2, 92, round(92 * 8 / 0.2))  # 200 ms apart
    with closing(Prober(here, silent.getsockname()[1])) as prober:
        prober.open(HOST)
        assert prober.send(HOST, 0, pair)
        answer(silent, *silent.recvfrom(2000))
        first = outcome(prober)
        assert (first.plan, first.answered) == (SINGLE, 1)
        silent.setblocking(False)
        with pytest.raises(BlockingIOError):
            silent.recvfrom(2000)
        silent.settimeout(5)
        answer(silent, *silent.recvfrom(2000))
        second = outcome(prober)
        assert (second.plan, second.answered) == (SINGLE, 1)
        assert second.begun_s - first.begun_s == pytest.approx(0.2)
        assert prober.counters["sent_packets"] == 2


def test_where_nobody_listens_it_ends_at_once(silent: socket.socket) -> None:
    port = silent.getsockname()[1]
    silent.close()
    with closing(Prober(here, port)) as prober:
        prober.open(HOST)
        for _ in range(3):
            assert prober.send(HOST, 0, SINGLE)
            found = outcome(prober)
            assert found.packets == (None,)
            assert found.ended_s - found.begun_s < FIRST_WAIT_S
        assert prober.counters["refused"] == 3


def test_a_namespace_that_is_gone_is_no_answer() -> None:
    def gone(_cookie: int, _work: Callable[[], ProbeSocket]) -> ProbeSocket:
        raise DeviceGone("it has ended")

    with closing(Prober(gone)) as prober:
        prober.open(HOST)
        assert prober.send(HOST, 0, BURST)
        assert outcome(prober).packets == (None,) * 20
        assert prober.counters["failed"] == 1


def test_a_host_that_is_shut_gets_nothing_more(silent: socket.socket) -> None:
    with closing(Prober(here, silent.getsockname()[1])) as prober:
        prober.open(HOST)
        assert prober.send(HOST, 0, ProbePlan(ProbeKind.PACED, 20, 1400, 500_000))  # 22 ms apart
        silent.recv(2000)
        prober.shut(HOST)
        assert not prober.busy(HOST)
        assert not prober.send(HOST, 0, SINGLE)
        silent.settimeout(0.3)
        came = 0
        with contextlib.suppress(TimeoutError):
            while came < 20:
                silent.recv(2000)
                came += 1
        assert came <= 1
        assert prober.take() == []


def test_it_ends_whatever_is_under_way(silent: socket.socket) -> None:
    prober = Prober(here, silent.getsockname()[1])
    prober.open(HOST)
    prober.send(HOST, 0, ProbePlan(ProbeKind.PACED, 20, 1400, 50_000))
    silent.recv(2000)
    began_s = time.monotonic()
    prober.close()
    assert time.monotonic() - began_s < 1
    assert not any(thread.name == "qos2-prober" for thread in threading.enumerate())


def test_replies_that_come_too_late_are_counted_and_not_mixed_in(silent: socket.socket) -> None:
    with closing(Prober(here, silent.getsockname()[1])) as prober:
        prober.open(HOST)
        assert prober.send(HOST, 0, SINGLE)
        data, source = silent.recvfrom(2000)
        assert outcome(prober).answered == 0
        assert prober.send(HOST, 0, SINGLE)
        silent.sendto(data, source)  # a stateless reflector's reply has the sender's number at the same places ...
        silent.sendto(data[:24] + data[:4] + bytes(16), source)  # ... and this is one
        silent.sendto(b"short", source)
        assert outcome(prober).answered == 0
        assert prober.counters["late"] >= 1
        assert prober.counters["unreadable"] == 1
