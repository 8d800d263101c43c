"""TCP_INFO by sock_diag, against what getsockopt(2) says of the same sockets."""

import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing

import pytest

from qos2.errors import DeviceGone
from qos2.model import Destination
from qos2.paths.tcp import TcpDiagnosis, TcpInfo, TcpSocket
from qos2.sockets import socket_facts

#: Offsets and formats in struct tcp_info (linux/tcp.h), written down once more.
FIELDS = {
    "state": (0, "B"),
    "mss": (16, "I"),
    "sacked": (28, "I"),
    "rtt_us": (68, "I"),
    "cwnd": (80, "I"),
    "retransmits": (100, "I"),
    "bytes_acked": (120, "Q"),
    "segs_out": (136, "I"),
    "min_rtt_us": (148, "I"),
    "busy_us": (168, "Q"),
    "rwnd_limited_us": (176, "Q"),
    "sndbuf_limited_us": (184, "Q"),
    "delivered": (192, "I"),
    "delivered_ce": (196, "I"),
    "bytes_sent": (200, "Q"),
    "bytes_retrans": (208, "Q"),
}


def entered(_cookie: int, work: Callable[[], socket.socket]) -> socket.socket:
    return work()


@pytest.fixture
def diagnosis() -> Iterator[TcpDiagnosis]:
    with closing(TcpDiagnosis(entered)) as made:
        yield made


def connected(stack: ExitStack, address: str, to: str | None = None) -> tuple[socket.socket, TcpSocket]:
    """A connection to this machine that has sent 5,000 bytes, and all of them acknowledged."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    if family == socket.AF_INET6:
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    listener.bind((address, 0))
    listener.listen()
    near = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
    near.connect((to or address, listener.getsockname()[1]))
    far = stack.enter_context(listener.accept()[0])
    near.sendall(bytes(5000))
    left = 5000
    while left:
        left -= len(far.recv(left))
    return near, asked(near)


def asked(sock: socket.socket) -> TcpSocket:
    facts = socket_facts(sock.fileno())
    assert facts.local is not None
    assert facts.peer is not None
    return TcpSocket(facts.cookie, facts.netns_cookie, facts.local, facts.peer)


def by_option(sock: socket.socket) -> dict[str, int]:
    raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)
    return {name: struct.unpack_from(f"={kind}", raw, at)[0] for name, (at, kind) in FIELDS.items()}


def by_diagnosis(info: TcpInfo) -> dict[str, int]:
    return {name: getattr(info, name) for name in FIELDS}


@pytest.mark.parametrize(("address", "to"), [("127.0.0.1", None), ("::1", None), ("::", "::ffff:127.0.0.1")])
def test_it_is_what_the_socket_itself_says(diagnosis: TcpDiagnosis, address: str, to: str | None) -> None:
    with ExitStack() as stack:
        sock, which = connected(stack, address, to)
        found = diagnosis.read([which])
        assert set(found) == {which.cookie}
        assert by_diagnosis(found[which.cookie]) == by_option(sock)
        assert found[which.cookie].bytes_sent == 5000


def test_many_are_asked_at_once(diagnosis: TcpDiagnosis) -> None:
    with ExitStack() as stack:
        pairs = [connected(stack, "127.0.0.1") for _ in range(150)]
        found = diagnosis.read([which for _sock, which in pairs])
        assert {cookie: info.bytes_sent for cookie, info in found.items()} == {
            which.cookie: 5000 for _sock, which in pairs
        }
        assert diagnosis.unanswered == 0


def test_one_that_is_gone_is_missing(diagnosis: TcpDiagnosis) -> None:
    with ExitStack() as stack:
        sock, which = connected(stack, "127.0.0.1")
        _other, left = connected(stack, "127.0.0.1")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # no TIME_WAIT
        sock.close()
        assert set(diagnosis.read([which, left])) == {left.cookie}


def test_another_socket_with_the_same_ends_is_not_taken_for_it(diagnosis: TcpDiagnosis) -> None:
    with ExitStack() as stack:
        _sock, which = connected(stack, "127.0.0.1")
        assert diagnosis.read([which._replace(cookie=which.cookie + 1)]) == {}


def test_each_namespace_is_entered_once_until_it_is_forgotten() -> None:
    cookies: list[int] = []

    def enter(cookie: int, work: Callable[[], socket.socket]) -> socket.socket:
        cookies.append(cookie)
        return work()

    with ExitStack() as stack, closing(TcpDiagnosis(enter)) as diagnosis:
        _sock, which = connected(stack, "127.0.0.1")
        for cookie in (1, 2, 1):
            assert set(diagnosis.read([which._replace(netns_cookie=cookie)])) == {which.cookie}
        diagnosis.forget(1)
        diagnosis.forget(3)
        diagnosis.read([which._replace(netns_cookie=1)])
    assert cookies == [1, 2, 1]


def test_a_namespace_that_is_gone_is_an_error() -> None:
    def gone(_cookie: int, _work: Callable[[], socket.socket]) -> socket.socket:
        raise DeviceGone("it has ended")

    with closing(TcpDiagnosis(gone)) as diagnosis, pytest.raises(DeviceGone):
        diagnosis.read([TcpSocket(1, 1, Destination.parse("127.0.0.1", 1), Destination.parse("127.0.0.1", 2))])
