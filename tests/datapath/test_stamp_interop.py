"""Our prober against reflectors of others, and their senders against our reflector, through a router, IPv4 and IPv6."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from ipaddress import ip_address

import pytest
from scapy.contrib.stamp import STAMPSessionReflectorTestUnauthenticated
from scapy.layers.inet import IP, UDP

import qos2
from demo.lab import Lab, Namespace, end
from demo.processes import environment
from harness.congested import PEER, CongestedLab, wait_until
from harness.stamp_peers import (
    EXTRA_PADDING,
    FROM_1900_TO_1970_S,
    UNRECOGNISED,
    ScapyReflector,
    TwampyReflector,
    needs_twampy,
    request,
    tlv,
    twampy_sends,
)
from harness.wire import eventually
from qos2.core import trains
from qos2.core.probes import ProbeKind, ProbeOutcome, ProbePlan
from qos2.model import Method, Quality, RemoteHost, TrafficType
from qos2.paths.prober import Prober
from qos2.paths.probesocket import ProbeSocket
from qos2.wire.stamp import pack_probe

pytestmark = pytest.mark.datapath

PORT = 20_001  # of the others' reflectors
CLASS_OF_SERVICE, NOT_ASSIGNED, PRIVATE = 4, 200, 252
SINGLE = ProbePlan(ProbeKind.SINGLE, 1, 92)
BURST = ProbePlan(ProbeKind.BURST, 20, 1400)
_IP_RECVTOS = 13

versions = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    """A lab without a daemon."""
    with Lab("qos2-test") as lab:
        yield lab


@pytest.fixture(params=["scapy", pytest.param("twampy", marks=needs_twampy)])
def reflector(request: pytest.FixtureRequest) -> type[ScapyReflector] | type[TwampyReflector]:
    return ScapyReflector if request.param == "scapy" else TwampyReflector


def known(flow: qos2.Flow) -> bool:
    """Whether both bandwidths are measured."""
    try:
        return flow.fundamentals().available is not None
    except qos2.NoData:
        return False


def address(namespace: Namespace, version: int) -> str:
    """Its first one. Reflectors of others are put there: at all addresses, they might answer from another one."""
    return (namespace.ipv4 if version == 4 else namespace.ipv6)[0]


class OurReflector:
    """The command, at the peer."""

    def __init__(self, lab: Lab, *networks: str) -> None:
        allowed = [word for each in networks for word in ("--allow", each)]
        self._process = lab.peer.popen(
            *(sys.executable, "-m", "qos2.cli", "reflector", *allowed), stdout=subprocess.PIPE, env=environment()
        )
        assert self._process.stdout is not None
        self._said = self._process.stdout
        assert self._said.readline().startswith(b"reflecting STAMP at 0.0.0.0 port 862, :: port 862")

    def close(self) -> None:
        end(self._process)

    def counted(self) -> dict[str, int]:
        """What became of packets so far."""
        self._process.send_signal(signal.SIGUSR1)
        words = self._said.readline().decode().split()
        return {name: int(number) for name, number in (word.split("=") for word in words)}


@pytest.fixture
def ours(own_lab: Lab) -> Iterator[OurReflector]:
    with closing(OurReflector(own_lab, "192.0.2.0/24", "198.51.100.0/24", "2001:db8:1::/64", "fe80::/10")) as made:
        yield made


class Probing:
    """The prober in the application's namespace, against one port of one host."""

    def __init__(self, lab: Lab, version: int, port: int = PORT) -> None:
        self.host = RemoteHost(ip_address(address(lab.peer, version)), 7)

        def enter(_cookie: int, work: Callable[[], ProbeSocket]) -> ProbeSocket:
            with lab.app.entered():
                return work()

        self.prober = Prober(enter, port)
        self.prober.open(self.host)
        wait_until(lambda: self.outcome(SINGLE).answered)  # the reflector is a process that starts

    def outcome(self, plan: ProbePlan) -> ProbeOutcome:
        assert self.prober.send(self.host, 46, plan)
        ends_s = time.monotonic() + 10
        while time.monotonic() < ends_s:
            for _host, found in self.prober.take():
                return found
            time.sleep(0.002)
        raise TimeoutError

    def close(self) -> None:
        self.prober.close()


@pytest.fixture
def bottleneck(own_lab: Lab) -> Iterator[Callable[[str, str], None]]:
    """Puts one on the router's device towards the peer: its rate, and the bytes that may wait."""
    router = own_lab.router

    def put(rate: str, limit: str) -> None:
        shaper = ("tbf", "rate", rate, "burst", "3000", "limit", limit)
        router.run("tc", "qdisc", "replace", "dev", router.device, "root", *shaper)

    yield put
    router.run("tc", "qdisc", "del", "dev", router.device, "root")


@versions
class TestOurProber:
    """Their reflectors count replies by themselves, repeat the sender's number, and send shorter packets (twampy)."""

    def test_it_has_round_trips(self, own_lab: Lab, reflector: type[ScapyReflector], version: int) -> None:
        with ExitStack() as stack:
            stack.enter_context(closing(reflector(own_lab.peer, address(own_lab.peer, version), PORT)))
            probing = stack.enter_context(closing(Probing(own_lab, version)))
            for _ in range(5):
                found = probing.outcome(SINGLE)
                (packet,) = found.packets
                assert packet is not None
                # One machine, one clock. Theirs is a float, which is good for a microsecond here.
                times = [
                    packet.sent_ns,
                    packet.reached_ns + 1_000,
                    packet.returned_ns + 2_000,
                    packet.received_ns + 3_000,
                ]
                assert times == sorted(times)
                rtt_us = trains.rtt_us(found)
                assert rtt_us is not None
                assert 5 < rtt_us < 100_000
            counters = probing.prober.counters
            assert {name: counters[name] for name in ("unreadable", "late", "odd_times", "clock_set")} == {
                "unreadable": 0,
                "late": 0,
                "odd_times": 0,
                "clock_set": 0,
            }

    def test_it_misses_what_was_dropped(
        self,
        own_lab: Lab,
        reflector: type[ScapyReflector],
        version: int,
        bottleneck: Callable[[str, str], None],
    ) -> None:
        """A queue of 12 packets: the router counts those of 20 that had no room."""
        with ExitStack() as stack:
            stack.enter_context(closing(reflector(own_lab.peer, address(own_lab.peer, version), PORT)))
            probing = stack.enter_context(closing(Probing(own_lab, version)))
            bottleneck("5mbit", "17000")
            found = probing.outcome(BURST)
            (shaper,) = json.loads(own_lab.router.run("tc", "-j", "-s", "qdisc", "show", "dev", own_lab.router.device))
            assert 0 < shaper["drops"] < BURST.count
            assert BURST.count - found.answered == shaper["drops"]


class TestTrains:
    """A train tells of the path only what the reflector's clock can tell."""

    @needs_twampy
    def test_twampy_shows_a_bottleneck(self, own_lab: Lab, bottleneck: Callable[[str, str], None]) -> None:
        with ExitStack() as stack:
            stack.enter_context(closing(TwampyReflector(own_lab.peer, own_lab.peer.ipv4[0], PORT)))
            probing = stack.enter_context(closing(Probing(own_lab, 4)))
            bottleneck("10mbit", "100000")
            found = [trains.burst(probing.outcome(BURST)) for _ in range(5)]
            assert probing.prober.counters["untimed"] == 0
        capacities = sorted(burst.capacity for burst in found if burst is not None)
        assert capacities[len(capacities) // 2] == pytest.approx(10e6 * 1400 / 1414, rel=0.05)

    @needs_twampy
    def test_of_a_fast_path_twampy_shows_none(self, own_lab: Lab) -> None:
        """It reads the clock once, when it gets to a packet: at once, one after the other, whatever the path's rate."""
        with ExitStack() as stack:
            stack.enter_context(closing(TwampyReflector(own_lab.peer, own_lab.peer.ipv4[0], PORT)))
            probing = stack.enter_context(closing(Probing(own_lab, 4)))
            found = [trains.burst(probing.outcome(BURST)) for _ in range(5)]
            assert (found, probing.prober.counters["untimed"]) == ([None] * 5, 5)

    def test_a_reflector_that_is_slower_than_the_path_shows_none(self, own_lab: Lab) -> None:
        """Scapy takes longer for a packet than the path does, and sees the next when it is done."""
        with ExitStack() as stack:
            stack.enter_context(closing(ScapyReflector(own_lab.peer, own_lab.peer.ipv4[0], PORT)))
            probing = stack.enter_context(closing(Probing(own_lab, 4)))
            outcomes = [probing.outcome(BURST) for _ in range(5)]
            assert [outcome.answered for outcome in outcomes] == [BURST.count] * 5
            assert [trains.burst(outcome) for outcome in outcomes] == [None] * 5
            assert probing.prober.counters["untimed"] == 5

    def test_the_daemon_says_only_what_it_can_know(
        self, reflector: type[ScapyReflector] | type[TwampyReflector]
    ) -> None:
        """On a fast path: the round trip is told, and no bandwidth."""
        with CongestedLab() as lab, closing(reflector(lab.lab.peer, PEER, 862)), lab.handle() as qos:
            flow = qos.add_socket(lab.udp(), TrafficType.AUDIO_VIDEO, adaptive=True)
            time.sleep(8)  # longer than it waits for bandwidths
            found = flow.fundamentals()
            assert "Traceback" not in lab.daemon.log
        assert (found.bottleneck, found.available) == (None, None)
        assert {name: (each.quality, each.method) for name, each in found.statements.items()} == {
            "rtt": (Quality.MEASURED, Method.PROBE)
        }

    @needs_twampy
    def test_the_daemon_measures_with_twampy_at_the_other_end(self) -> None:
        with CongestedLab() as lab, closing(TwampyReflector(lab.lab.peer, PEER, 862)), lab.handle() as qos:
            capacity = lab.bottleneck(20e6)
            flow = qos.add_socket(lab.udp(), TrafficType.AUDIO_VIDEO, adaptive=True)
            wait_until(lambda: known(flow))
            time.sleep(2)
            found = flow.fundamentals()
            assert "Traceback" not in lab.daemon.log
        assert found.bottleneck == pytest.approx(capacity, rel=0.1)
        assert found.available == pytest.approx(capacity, rel=0.3)
        assert {name: (each.quality, each.method) for name, each in found.statements.items()} == {
            "bottleneck": (Quality.MEASURED, Method.TRAIN),
            "available": (Quality.MEASURED, Method.TRAIN),
            "rtt": (Quality.MEASURED, Method.PROBE),
        }


@versions
class TestOurReflector:
    def test_scapy_is_answered_with_its_tlvs(self, own_lab: Lab, ours: OurReflector, version: int) -> None:
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        sent_s = 1_800_000_000.25
        tlvs = (
            tlv(EXTRA_PADDING, bytes(range(40))),
            tlv(NOT_ASSIGNED, b"not known to anybody"),
            tlv(CLASS_OF_SERVICE, bytes([46 << 2, 0, 0, 0])),
            tlv(PRIVATE, b"\0\0\x7e\xd9 its owner knows"),
            tlv(CLASS_OF_SERVICE, bytes([10 << 2, 0, 0, 0])),
        )
        asked = request(77, 0xABCD, sent_s, *tlvs)
        with own_lab.app.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            if version == 4:
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2)
                sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
            else:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 46 << 2)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
            sock.connect((own_lab.peer.ipv4[1] if version == 4 else own_lab.peer.ipv6[1], 862))
            before = time.time()
            sock.send(asked)
            data, ancillary, _flags, _source = sock.recvmsg(2000, 100)
            after = time.time()
        assert [content[0] for _level, _kind, content in ancillary] == [46 << 2]
        reply = STAMPSessionReflectorTestUnauthenticated(data)
        assert (len(data), reply.seq, reply.ssid, reply.seq_sender, reply.ttl_sender) == (
            len(asked),
            77,
            0xABCD,
            77,
            63,
        )
        assert data[24:38] == asked[:14]  # what the sender said of itself
        times = [float(each) - FROM_1900_TO_1970_S for each in (reply.ts_rx, reply.ts)]
        assert before - 1e-6 <= times[0] <= times[1] <= after + 1e-6
        assert (reply.err_estimate.Z, reply.err_estimate.multiplier > 0) == (0, True)
        assert [(int(each.flags), each.type, each.len, each.value) for each in reply.tlv_objects] == [
            (0, EXTRA_PADDING, 40, bytes(range(40))),
            (UNRECOGNISED, NOT_ASSIGNED, 20, b"not known to anybody"),
            # DSCP1, DSCP2, ECN, RP: what it asked for and what arrived are the same; then they are not.
            (0, CLASS_OF_SERVICE, 4, (46 << 26 | 46 << 20).to_bytes(4)),
            (UNRECOGNISED, PRIVATE, 20, b"\0\0\x7e\xd9 its owner knows"),
            (0, CLASS_OF_SERVICE, 4, (10 << 26 | 46 << 20 | 1 << 16).to_bytes(4)),
        ]
        assert ours.counted() == {"reflected": 1}

    @needs_twampy
    @pytest.mark.parametrize("padding", [27, 30, 1358])
    def test_twampy_finds_a_path_without_loss(
        self, own_lab: Lab, ours: OurReflector, version: int, padding: int
    ) -> None:
        far, near = (f"{own_lab.peer.ipv4[0]}:862", f"{own_lab.app.ipv4[0]}:20000")
        if version == 6:
            far, near = (f"[{own_lab.peer.ipv6[0]}]:862", f"[{own_lab.app.ipv6[0]}]:20000")
        rows = twampy_sends(own_lab.app, far, near, 20, padding)
        assert {name: row.loss for name, row in rows.items()} == {"Outbound": 0, "Inbound": 0, "Roundtrip": 0}
        for row in rows.values():
            assert 0 <= row.least <= row.mean <= row.most < 100_000
            assert row.jitter <= row.most - row.least + 1
        # Both ends have the same clock here: the ways add up but for what is printed of each, and what is in between.
        assert rows["Outbound"].mean + rows["Inbound"].mean == pytest.approx(rows["Roundtrip"].mean, rel=0.02, abs=5)
        assert ours.counted() == {"reflected": 20}

    @needs_twampy
    def test_what_twampy_sends_without_padding_has_no_answer(
        self, own_lab: Lab, ours: OurReflector, version: int
    ) -> None:
        """An answer would be three times as long as the 14 bytes that ask for it."""
        far, near = (f"{own_lab.peer.ipv4[0]}:862", f"{own_lab.app.ipv4[0]}:20000")
        if version == 6:
            far, near = (f"[{own_lab.peer.ipv6[0]}]:862", f"[{own_lab.app.ipv6[0]}]:20000")
        assert twampy_sends(own_lab.app, far, near, 5, 0) == {}
        assert ours.counted() == {"too_short": 5}

    def test_what_goes_to_many_has_no_answer(self, own_lab: Lab, ours: OurReflector, version: int) -> None:
        router = own_lab.router
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        with router.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
            sock.settimeout(0.5)
            for address in ("198.51.100.255", "255.255.255.255") if version == 4 else ("ff02::1",):
                with router.entered():
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, router.device.encode())
                sock.sendto(pack_probe(1, time.time_ns(), 44), (address, 862))
                with pytest.raises(TimeoutError):
                    sock.recv(100)
        assert ours.counted() == {"not_unicast": 2 if version == 4 else 1}


def test_two_reflectors_do_not_answer_each_other(
    own_lab: Lab, ours: OurReflector, reflector: type[ScapyReflector]
) -> None:
    """One forged packet, as if another's reflector had asked ours: that answers our answer, and there it ends."""
    with (
        closing(reflector(own_lab.app, own_lab.app.ipv4[0], PORT)),
        own_lab.app.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw,
    ):
        time.sleep(1)  # twampy says nothing when it listens
        forged = IP(src=own_lab.app.ipv4[0], dst=own_lab.peer.ipv4[0]) / UDP(sport=PORT, dport=862)
        raw.sendto(bytes(forged / pack_probe(1, time.time_ns(), 44)), (own_lab.peer.ipv4[0], 0))
        assert eventually(lambda: sum(ours.counted().values()) == 2)
        time.sleep(0.5)  # for what should not come
        assert ours.counted() == {"reflected": 1, "is_reply": 1}
