"""The server and bad clients: nothing is lost, leaked or harmed by what they do, and nobody else waits for it.

The server, the service and the sockets are real, the datapath is in memory. Every test also checks that
no descriptor is left open (see staged).
"""

import json
import os
import resource
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qos2.core.service import Limits
from qos2.errors import AlreadyRunning, ConfigError
from qos2.listener import listen_at
from qos2.server import QUEUED_REPLIES
from qos2.wire import protocol
from unit.server_stage import (
    PEER,
    RawClient,
    Stage,
    add,
    refusal,
    staged,
    udp,
    unprivileged,
)

# Connections


def test_every_request_is_observed_with_its_operation_and_result(stage: Stage, client: RawClient) -> None:
    client.ask(op="status")
    client.ask(op="stats", flow=5)
    client.ask(op="fly")
    stage.settle()
    assert [entry[:2] for entry in stage.observed] == [
        ("open_handle", "ok"),
        ("status", "ok"),
        ("stats", "no_such_flow"),
        ("invalid", "protocol_error"),
    ]
    assert all(seconds > 0 for _, _, seconds in stage.observed)


def test_requests_sent_ahead_are_answered_in_order(stage: Stage, client: RawClient) -> None:
    count = 100
    for number in range(100, 100 + count):
        client.send(json.dumps({"op": "stats", "id": number, "flow": 1}).encode())
    assert [client.receive()["id"] for _ in range(count)] == list(range(100, 100 + count))


def test_the_end_of_a_connection_ends_its_flows(stage: Stage) -> None:
    with udp(PEER) as sock:
        with stage.connection() as client:
            add(client, sock)
            assert stage.call(lambda: (stage.service.flows, stage.service.handles)) == (1, 1)
        stage.settle()
        assert stage.call(lambda: (stage.service.flows, stage.service.handles, stage.server.connections)) == (0, 0, 0)
        assert stage.datapath.policies == {}


def test_the_end_of_the_server_ends_all_flows_and_removes_its_file() -> None:
    with staged() as stage, stage.connection() as client, udp(PEER) as sock:
        add(client, sock)
        stage.call(stage.server.close)
        assert stage.service.flows == 0
        assert not os.path.exists(stage.path)
        assert client.socket.recv(100) == b""
        stage.call(stage.server.close)


# Packets that are no requests


@pytest.mark.parametrize(
    "data", [b"{", b"\xff", b"[]", b"null", b"{}", b"[" * 10_000, b'{"op":"status"', b"\0" * protocol.MAX_MESSAGE_BYTES]
)
def test_a_packet_that_is_no_request_is_refused(client: RawClient, data: bytes) -> None:
    client.send(data)
    reply = client.receive()
    assert reply["id"] == 0
    assert refusal(reply) == ("protocol_error", 87)
    assert client.ask(op="status")["result"] == "status"


def test_a_packet_that_is_too_long_is_refused_and_the_next_one_served(client: RawClient) -> None:
    client.send(json.dumps({"op": "status", "id": 7}).encode().ljust(protocol.MAX_MESSAGE_BYTES + 1))
    reply = client.receive()
    assert refusal(reply) == ("protocol_error", 87)
    assert reply["message"] == "the request is too long"
    client.send(json.dumps({"op": "status", "id": 7}).encode().ljust(protocol.MAX_MESSAGE_BYTES))
    assert client.receive()["id"] == 7


def test_a_descriptor_with_a_packet_that_is_too_long_is_closed(client: RawClient) -> None:
    with udp(PEER) as sock:
        client.send(b" " * (protocol.MAX_MESSAGE_BYTES + 1), (sock.fileno(),))
    assert refusal(client.receive()) == ("protocol_error", 87)


@pytest.mark.parametrize("count", [2, 3, 253])
def test_surplus_descriptors_are_refused_and_closed(stage: Stage, client: RawClient, count: int) -> None:
    with udp(PEER) as sock:
        client.send(b'{"op":"add_socket","id":3,"traffic_type":4}', (sock.fileno(),) * count)
        reply = client.receive()
        assert refusal(reply) == ("protocol_error", 87)
        assert (reply["id"], reply["message"]) == (3, "surplus descriptors")
        assert stage.call(lambda: stage.service.flows) == 0


def test_a_descriptor_with_a_request_that_takes_none_is_refused_and_closed(client: RawClient) -> None:
    with udp(PEER) as sock:
        assert refusal(client.ask(sock.fileno(), op="status")) == ("protocol_error", 87)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=300), fds=st.integers(0, 3))
def test_random_packets_never_disturb_the_daemon(client: RawClient, data: bytes, fds: int) -> None:
    with udp(PEER) as sock:
        client.send(data, (sock.fileno(),) * fds)
    assert client.receive()["result"] == "error"


# Clients that behave badly


def test_a_client_that_never_reads_loses_its_connection_and_nobody_else_waits(stage: Stage, client: RawClient) -> None:
    with stage.connection() as silent:
        silent.socket.setblocking(False)
        request = json.dumps({"op": "status"}).encode()
        with pytest.raises(ConnectionError):  # noqa: PT012  which of many sends fails is not known
            while True:
                try:
                    silent.send(request)
                except BlockingIOError:
                    assert client.ask(op="status")["result"] == "status"
    stage.settle()
    assert stage.call(lambda: dict(stage.server.refused)) == {"not_reading": 1}
    assert stage.call(lambda: stage.server.connections) == 1


def test_a_client_that_reads_late_gets_every_reply(stage: Stage, client: RawClient) -> None:
    # Until the daemon has kept back some of its replies, but fewer than it keeps at most.
    sent = 0
    while not stage.call(lambda: any(each.replies for each in stage.server._clients)):
        for _ in range(QUEUED_REPLIES // 2):
            client.send(json.dumps({"op": "status", "id": sent}).encode())
            sent += 1
        stage.settle()
    assert [client.receive()["id"] for _ in range(sent)] == list(range(sent))
    assert client.ask(op="status")["result"] == "status"


def test_a_client_killed_in_the_middle_of_a_call_leaves_nothing(stage: Stage) -> None:
    code = (
        "import os, signal, socket, struct\n"
        "client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)\n"
        "client.connect(os.environ['QOS2_SOCKET'])\n"
        'client.send(b\'{"op":"open_handle"}\')\n'
        "client.recv(1000)\n"
        "sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
        "rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack('i', sock.fileno()))]\n"
        'request = b\'{"op":"add_socket","traffic_type":4,"address":"192.0.2.7","port":5004}\'\n'
        "client.sendmsg([request], rights)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    with stage.script(code) as process:
        assert process.wait() == -9
    stage.settle()
    stage.settle()
    assert stage.call(lambda: (stage.service.flows, stage.service.handles, stage.server.connections)) == (0, 0, 0)
    assert stage.datapath.policies == {}


# Limits


def test_handles_of_a_user_are_limited() -> None:
    with staged(limits=Limits(handles_per_uid=2)) as stage, stage.connection(), stage.connection():
        with stage.connection(opened=False) as third:
            assert refusal(third.ask(op="open_handle")) == ("limit_exceeded", 1450)
        stage.settle()
        assert stage.call(lambda: stage.server.connections) == 2


def test_connections_are_limited_and_the_refused_one_is_told() -> None:
    with staged(connections=2) as stage, stage.connection(), stage.connection():
        with stage.connection(opened=False) as third:
            reply = third.receive()
            assert reply["id"] == 0
            assert refusal(reply) == ("limit_exceeded", 1450)
            assert third.socket.recv(100) == b""
        assert stage.call(lambda: dict(stage.server.refused)) == {"connections": 1}


def test_connections_of_one_user_are_limited_and_others_get_in() -> None:
    with staged(connections_per_uid=1) as stage:
        with unprivileged(), stage.connection(), stage.connection(opened=False) as second:
            assert refusal(second.receive()) == ("limit_exceeded", 1450)
            assert stage.call(lambda: dict(stage.server.refused)) == {"connections_per_uid": 1}
        if os.geteuid() == 0:
            with stage.connection(), stage.connection():
                assert stage.call(lambda: stage.server.connections) == 2


def test_a_full_table_refuses_and_takes_flows_again_when_one_has_ended() -> None:
    with staged(max_flows=1) as stage, stage.connection() as client, udp(PEER) as one, udp(PEER) as two:
        flow = add(client, one)["flow"]
        assert refusal(add(client, two)) == ("limit_exceeded", 1450)
        client.ask(op="remove_socket", flow=flow)
        assert add(client, two)["result"] == "added"


def test_flows_of_a_user_are_limited() -> None:
    with (
        staged(limits=Limits(flows_per_uid=1)) as stage,
        unprivileged(),
        stage.connection() as client,
        udp(PEER) as one,
        udp(PEER) as two,
    ):
        add(client, one)
        assert refusal(add(client, two)) == ("limit_exceeded", 1450)


@contextmanager
def no_further_descriptors() -> Iterator[None]:
    """In this block the process cannot open anything."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_without_free_descriptors_clients_wait_and_are_served_later(
    stage: Stage, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qos2.server._PAUSE_S", 0.01)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as late:
        with no_further_descriptors():
            late.connect(stage.path)
            stage.settle()
            assert stage.call(lambda: stage.server.refused["resources"]) >= 1
            assert client.ask(op="status")["result"] == "status"
        assert RawClient(late).ask(op="open_handle")["result"] == "opened"


def test_without_free_descriptors_a_socket_is_refused_with_the_reason(client: RawClient) -> None:
    with udp(PEER) as sock:
        with no_further_descriptors():
            reply = add(client, sock)
            assert refusal(reply) == ("limit_exceeded", 1450)
            assert reply["message"] == "the daemon cannot take the descriptor"
        assert add(client, sock)["result"] == "added"


# Bugs below


def test_a_bug_is_answered_internal_and_logged_and_harms_nobody(
    stage: Stage, client: RawClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stats(*_: object) -> None:
        raise ZeroDivisionError("the bug")

    monkeypatch.setattr(stage.datapath, "stats", stats)
    with stage.connection() as other, udp(PEER) as sock:
        flow = add(other, sock)["flow"]
        reply = client.ask(op="stats", flow=flow)
        assert refusal(reply) == ("internal", 31)
        assert "the bug" not in reply["message"]
        assert client.ask(op="status")["flows"] == 1
        assert other.ask(op="rate", flow=flow)["bandwidth"] == 0
    assert "ZeroDivisionError: the bug" in caplog.text
    assert "request stats of Peer(" in caplog.text


def test_a_bug_at_the_end_of_a_handle_is_logged_and_harms_nobody(
    stage: Stage, client: RawClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def close_handle(_: int) -> None:
        raise ZeroDivisionError("the bug")

    with monkeypatch.context() as patched, stage.connection() as other:
        patched.setattr(stage.service, "close_handle", close_handle)
        other.socket.close()
        stage.settle()
    assert "ZeroDivisionError: the bug" in caplog.text
    assert client.ask(op="status")["result"] == "status"


# The socket's file


def test_a_second_daemon_is_refused_and_the_first_goes_on(stage: Stage, client: RawClient) -> None:
    with pytest.raises(AlreadyRunning, match="a daemon answers at"):
        listen_at(stage.path, 0o666)
    assert client.ask(op="status")["result"] == "status"


def test_the_file_of_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "run" / "qos2.sock")
    listen_at(path, 0o666).close()
    with listen_at(path, 0o600), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
        client.connect(path)


def test_a_file_that_is_no_socket_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "qos2.sock"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="exists and is no socket"):
        listen_at(str(path), 0o666)
    assert path.read_text() == "precious"


def test_a_path_that_cannot_be_a_socket_is_a_wrong_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot listen at"):
        listen_at(str(tmp_path / ("x" * 108)), 0o666)


def test_the_file_of_a_successor_is_left_alone() -> None:
    with staged() as stage:
        os.unlink(stage.path)
        with listen_at(stage.path, 0o666):
            stage.call(stage.server.close)
            assert os.path.exists(stage.path)
