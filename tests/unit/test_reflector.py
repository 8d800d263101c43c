"""The reflector over loopback: what it answers, to whom, and what leaves it."""

import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address, ip_network

import pytest

from demo.lab import end
from demo.processes import environment
from qos2.errors import ConfigError
from qos2.paths.reflector import PACKETS_AT_ONCE, Reflector
from qos2.wire.stamp import pack_probe, unpack_reflected

_IP_RECVTOS = 13
LOOPBACK = ip_network("127.0.0.0/8")


@pytest.fixture
def reflector() -> Iterator[Reflector]:
    with closing(Reflector(ip_address("0.0.0.0"), 0, allowed=[LOOPBACK])) as made:
        yield made


def client(version: int = 4) -> socket.socket:
    made = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
    made.settimeout(5)
    return made


def asked(reflector: Reflector, sock: socket.socket, request: bytes, to: str = "127.0.0.1") -> bytes:
    """The reply to one packet."""
    sock.sendto(request, (to, reflector.port))
    reflector.reflect()
    return sock.recv(65_535)


def refused(reflector: Reflector, sock: socket.socket, request: bytes) -> None:
    """One packet has no reply."""
    sock.sendto(request, ("127.0.0.1", reflector.port))
    reflector.reflect()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(100)


@pytest.mark.parametrize("size", [44, 46, 48, 1372, 9000])
def test_a_reply_has_the_kernels_time_and_is_as_long_as_its_request(reflector: Reflector, size: int) -> None:
    with client() as sock:
        before_ns = time.time_ns()
        reply = asked(reflector, sock, pack_probe(5, before_ns, size))
        found = unpack_reflected(reply)
        assert (len(reply), found.sender_sequence, found.sent_ns) == (size, 5, before_ns)
        assert before_ns <= found.reached_ns <= found.returned_ns <= time.time_ns()
    assert reflector.counters == {"reflected": 1}


def test_a_reply_leaves_from_the_address_that_was_asked_with_the_same_mark(reflector: Reflector) -> None:
    with client() as sock:
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2)
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
        sock.sendto(pack_probe(1, 1, 44), ("127.0.0.7", reflector.port))
        reflector.reflect()
        _data, ancillary, _flags, source = sock.recvmsg(100, 100)
        assert (source, ancillary) == (
            ("127.0.0.7", reflector.port),
            [(socket.IPPROTO_IP, socket.IP_TOS, bytes([46 << 2]))],
        )


def test_ipv6_is_answered_alike() -> None:
    with closing(Reflector(ip_address("::1"), 0)) as reflector, client(6) as sock:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, 34 << 2)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVTCLASS, 1)
        sock.sendto(pack_probe(9, 1, 100), ("::1", reflector.port))
        reflector.reflect()
        data, ancillary, _flags, source = sock.recvmsg(200, 100)
        assert (len(data), unpack_reflected(data).sender_sequence, source[:2]) == (100, 9, ("::1", reflector.port))
        assert ancillary == [(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, struct.pack("=i", 34 << 2))]


def test_strangers_have_no_answer() -> None:
    with closing(Reflector(ip_address("127.0.0.1"), 0, allowed=[ip_network("192.0.2.0/24")])) as reflector:
        with client() as sock:
            refused(reflector, sock, pack_probe(1, 1, 44))
        assert reflector.counters == {"not_allowed": 1}


def test_what_is_too_short_has_no_answer(reflector: Reflector) -> None:
    with client() as sock:
        refused(reflector, sock, bytes(40))
    assert reflector.counters == {"too_short": 1}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: sudo ./dev test (a port below 1024)")
def test_a_service_port_has_no_answer_for_a_reflector_may_be_there(reflector: Reflector) -> None:
    with client() as sock:
        sock.bind(("127.0.0.1", 862))
        refused(reflector, sock, pack_probe(1, 1, 44))
    assert reflector.counters == {"service_port": 1}


def test_replies_have_no_answer_from_whatever_port(reflector: Reflector) -> None:
    """Two reflectors would never stop, and one that nobody here wrote may be at any port."""
    with client() as sock, closing(Reflector(ip_address("127.0.0.1"), 0)) as other:
        reply = asked(other, sock, pack_probe(1, time.time_ns(), 44))
        refused(reflector, sock, reply)
    assert reflector.counters == {"is_reply": 1}


def test_what_went_to_many_has_no_answer(reflector: Reflector) -> None:
    with client() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        sock.sendto(pack_probe(1, 1, 44), ("127.255.255.255", reflector.port))
        refused(reflector, sock, b"")  # and nothing of this has one
    assert reflector.counters == {"not_unicast": 1, "too_short": 1}


def test_a_source_has_a_rate_and_others_their_own() -> None:
    with closing(Reflector(ip_address("127.0.0.1"), 0, allowed=[LOOPBACK], packets_per_s=1.0)) as reflector:
        with client() as sock, client() as other:
            other.bind(("127.0.0.9", 0))
            for _ in range(int(PACKETS_AT_ONCE)):
                asked(reflector, sock, pack_probe(1, 1, 44))
            refused(reflector, sock, pack_probe(1, 1, 44))
            asked(reflector, other, pack_probe(1, 1, 44))
        assert reflector.counters == {"reflected": PACKETS_AT_ONCE + 1, "too_many": 1}


def test_a_port_in_use_is_told(reflector: Reflector) -> None:
    with pytest.raises(ConfigError, match=f"cannot reflect at 0.0.0.0 port {reflector.port}"):
        Reflector(ip_address("0.0.0.0"), reflector.port)


class TestCommand:
    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "qos2.cli", "reflector", "--listen", "127.0.0.1", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def test_it_answers_until_it_is_told_to_stop(self) -> None:
        process = self.start("--port", "0", "--allow", "127.0.0.0/8")
        try:
            assert process.stdout is not None
            words = process.stdout.readline().split()
            assert words[:4] == ["reflecting", "STAMP", "at", "127.0.0.1"]
            assert words[-2:] == ["for", "127.0.0.0/8"]
            with client() as sock:
                sock.sendto(pack_probe(3, 1, 60), ("127.0.0.1", int(words[5])))
                assert unpack_reflected(sock.recv(100)).sender_sequence == 3
            process.send_signal(signal.SIGUSR1)
            assert process.stdout.readline() == "reflected=1\n"
            process.terminate()
            assert process.stdout.readline() == "reflected=1\n"
            assert process.wait(10) == 0
        finally:
            end(process)

    def test_it_bears_being_asked_all_the_time(self) -> None:
        """On one processor it is asked again before it has done answering."""
        processors = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {min(processors)})
        process = self.start("--port", "0")
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("reflecting")
            for _ in range(5_000):
                process.send_signal(signal.SIGUSR1)
                assert process.stdout.readline() == "nothing yet\n"
            process.terminate()
            assert (*process.communicate(timeout=20), process.returncode) == ("nothing yet\n", "", 0)
        finally:
            os.sched_setaffinity(0, processors)
            end(process)

    def test_where_it_cannot_listen_it_says_so(self, reflector: Reflector) -> None:
        process = self.start("--port", str(reflector.port))
        assert process.communicate(timeout=20) == (
            "",
            f"qos2: cannot reflect at 127.0.0.1 port {reflector.port}: Address already in use\n"
            "  hint: choose another --port\n",
        )
        assert process.returncode == 1

    @pytest.mark.parametrize(
        "wrong", [("--listen", "localhost"), ("--port", "65536"), ("--allow", "10.0.0.1/8"), ("--rate", "0")]
    )
    def test_wrong_words_are_refused(self, wrong: tuple[str, str]) -> None:
        process = self.start(*wrong)
        _out, err = process.communicate(timeout=20)
        assert (process.returncode, repr(wrong[1]) in err) == (2, True)
