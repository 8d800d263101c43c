"""What the kernel says of passed descriptors and of clients, and how passed descriptors are closed."""

import os
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from qos2.model import Destination
from qos2.server import WAITING_DESCRIPTORS
from qos2.sockets import peer_of, socket_facts
from unit.server_stage import (
    CONTROLPLANE,
    LINGER_ON,
    PEER,
    VOICE,
    RawClient,
    Stage,
    add,
    refusal,
    regular_file,
    udp,
    udp6_only,
    unprivileged,
)

# Facts


def test_the_facts_of_a_socket_are_those_of_the_kernel() -> None:
    with udp(PEER) as sock:
        facts = socket_facts(sock.fileno())
        assert facts.cookie == struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, 57, 8))[0]
        assert facts.netns_cookie == struct.unpack("Q", sock.getsockopt(socket.SOL_SOCKET, 71, 8))[0]
        assert (facts.transport, facts.family, facts.v6only, facts.listening) == ("udp", socket.AF_INET, False, False)
        assert str(facts.peer) == "192.0.2.7:5004"
        assert sock.getpeername() == PEER


def test_the_facts_of_listening_and_accepted_sockets() -> None:
    with socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True) as listener:
        facts = socket_facts(listener.fileno())
        assert (facts.transport, facts.family, facts.v6only, facts.listening) == ("tcp", socket.AF_INET6, False, True)
        assert facts.peer is None
        with socket.create_connection(("127.0.0.1", listener.getsockname()[1])) as sock:
            accepted, _ = listener.accept()
            with accepted:
                facts = socket_facts(accepted.fileno())
                assert (facts.listening, str(facts.peer)) == (False, f"127.0.0.1:{sock.getsockname()[1]}")
    with udp6_only() as sock:
        assert socket_facts(sock.fileno()).v6only is True


def ends(sock: socket.socket) -> tuple[Destination | None, Destination | None]:
    """Its own end and the other one, as the daemon knows them."""
    facts = socket_facts(sock.fileno())
    return facts.local, facts.peer


@pytest.mark.parametrize(
    ("family", "at", "client_family", "to", "address"),
    [
        (socket.AF_INET, "127.0.0.1", socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", socket.AF_INET6, "::ffff:127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::", socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::", socket.AF_INET6, "::1", "::1"),
    ],
    ids=["v4", "mapped client", "mapped server", "v6"],
)
def test_both_ends_of_a_tcp_connection_are_known(
    family: int, at: str, client_family: int, to: str, address: str
) -> None:
    dual = family == socket.AF_INET6
    if address == "::1" and not Path("/proc/net/if_inet6").exists():
        pytest.skip("the kernel has no IPv6")
    with (
        socket.create_server((at, 0), family=family, dualstack_ipv6=dual) as listener,
        socket.socket(client_family, socket.SOCK_STREAM) as sock,
    ):
        port = listener.getsockname()[1]
        assert ends(sock) == (None, None)
        assert ends(listener) == (Destination.parse(at, port), None)
        sock.connect((to, port))
        accepted, _ = listener.accept()
        with accepted:
            own = Destination.parse(address, sock.getsockname()[1])
            other = Destination.parse(address, port)
            assert ends(sock) == (own, other)
            assert ends(accepted) == (other, own)
            # Of a connection that the other side has reset, the own port is left.
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        assert ends(sock) == (own, None)


def test_the_own_end_is_known_once_it_has_a_port() -> None:
    with udp() as unbound, udp(PEER) as connected, udp() as anywhere:
        assert ends(unbound) == (None, None)
        assert ends(connected) == (Destination.parse(*connected.getsockname()), Destination.parse(*PEER))
        anywhere.bind(("0.0.0.0", 0))
        assert ends(anywhere) == (Destination(None, anywhere.getsockname()[1]), None)


def test_the_peer_of_a_connection_is_told_by_the_kernel() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        peer = peer_of(one, privileged_gid=None, stranger=-1)
        assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
        assert peer.gids == {os.getegid(), *os.getgroups()}
        assert peer.privileged is (os.geteuid() == 0)
        assert peer.program == Path("/proc/self/comm").read_text().strip()
        assert peer_of(one, privileged_gid=os.getegid(), stranger=-1).privileged is True


def test_a_peer_outside_of_the_pid_namespace_is_a_stranger_of_its_own() -> None:
    if os.geteuid() != 0:
        pytest.skip("making a pid namespace needs root")
    code = (
        "import socket, sys; from qos2.sockets import peer_of\n"
        "with socket.socket(fileno=int(sys.argv[1])) as one:\n"
        "    print(peer_of(one, None, -7))\n"
    )
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        told = subprocess.run(
            ["unshare", "--pid", "--fork", sys.executable, "-c", code, str(one.fileno())],
            pass_fds=[one.fileno()],
            env=os.environ | {"PYTHONPATH": str(CONTROLPLANE)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    assert told.startswith("Peer(pid=-7, uid=0, ")
    assert "program='', " in told


# Descriptors whose close() waits


@contextmanager
def lingering_in(stage: Stage, client: RawClient) -> Iterator[None]:
    """In this block the daemon has the last descriptor of a TCP connection whose close() waits for an idle peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):  # noqa: PT012  which of many sends fails is not known
                while True:
                    sock.send(bytes(65536))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_ON)
            with stage.paused():
                client.send(b'{"op":"add_socket","id":1,"traffic_type":4,"flow":1}', (sock.fileno(),))
                sock.close()
            assert refusal(client.receive()) == ("no_such_flow", 1168)
            yield


def test_a_socket_that_lingers_does_not_make_the_daemon_wait(stage: Stage, client: RawClient) -> None:
    with lingering_in(stage, client):
        assert client.ask(op="status")["result"] == "status"


def test_a_user_whose_descriptors_cannot_be_closed_is_taken_no_further_ones_from(stage: Stage) -> None:
    with unprivileged(), stage.connection() as bad:
        pass_file = partial(bad.ask, op="add_socket", traffic_type=VOICE)
        with lingering_in(stage, bad), regular_file() as file:
            for _ in range(WAITING_DESCRIPTORS - 1):
                assert refusal(pass_file(file.fileno())) == ("invalid_request", 87)
            assert refusal(pass_file(file.fileno())) == ("limit_exceeded", 1450)
            assert bad.ask(op="status")["result"] == "status"
        # The peer has gone, so that close() returns, and soon descriptors are taken again.
        with udp(PEER) as sock:
            while (reply := add(bad, sock))["result"] == "error":
                assert refusal(reply) == ("limit_exceeded", 1450)
