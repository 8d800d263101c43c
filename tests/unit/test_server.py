"""The server and bad clients: each mistake is refused in words, and nothing is lost, leaked or harmed by it.

The server, the service and the sockets are real, the datapath is in memory. Every test also checks that
no descriptor is left open (see staged).
"""

import json
import os
import socket
import stat
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qos2.core.service import Limits
from qos2.errors import AlreadyRunning, ConfigError
from qos2.model import DatapathStatus, DeviceStatus, Shaper, TrafficType
from qos2.server import QUEUED_REPLIES, TURN_REQUESTS, WAITING_DESCRIPTORS, listen_at
from qos2.sockets import peer_of, socket_facts
from qos2.wire import protocol
from unit.server_stage import LINGER_ON, PEER, RawClient, Stage, staged, udp, unprivileged

VOICE = int(TrafficType.VOICE)


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged() as made:
        yield made


@pytest.fixture
def client(stage: Stage) -> Iterator[RawClient]:
    with stage.connection() as made:
        yield made


def add(client: RawClient, sock: socket.socket, **fields: Any) -> dict[str, Any]:
    return client.ask(sock.fileno(), **({"op": "add_socket", "traffic_type": VOICE} | fields))


def refusal(reply: dict[str, Any]) -> tuple[str, int]:
    assert reply["result"] == "error", reply
    assert reply["message"]
    return reply["code"], reply["win32"]


# Requests, right


def test_a_flow_lives_from_add_to_remove(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        reply = add(client, sock)
        flow = reply.pop("flow")
        assert reply == {"result": "added"}
        cookie = socket_facts(sock.fileno()).cookie
        assert list(stage.datapath.bindings) == [cookie]
        assert client.ask(op="set_rate", flow=flow, bandwidth=64_000) == {"result": "done"}
        assert client.ask(op="rate", flow=flow) == {"result": "rate", "bandwidth": 64_000, "shaping": 1, "reason": 0}
        assert client.ask(op="set_traffic_type", flow=flow, traffic_type=1) == {"result": "done"}
        assert client.ask(op="priority", flow=flow) == {
            "result": "priority",
            "conformant_dscp": 8,
            "non_conformant_dscp": 0,
            "conformant_l2": 0,
            "non_conformant_l2": 0,
        }
        assert client.ask(sock.fileno(), op="remove_socket", flow=flow) == {"result": "done"}
        assert stage.datapath.bindings == {}
        assert refusal(client.ask(op="remove_socket", flow=flow)) == ("no_such_flow", 1168)


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
    count = 3 * TURN_REQUESTS + 1
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


@pytest.mark.parametrize("operation", ["fundamentals", "notify", "cancel", "start_tracking", "stop_tracking"])
def test_calls_of_later_versions_are_refused_as_not_supported(client: RawClient, operation: str) -> None:
    with udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        fields: dict[str, dict[str, Any]] = {
            "fundamentals": {"flow": flow},
            "notify": {"flow": flow, "condition": 0},
            "cancel": {"request": 1},
        }
        reply = client.ask(op=operation, **fields.get(operation, {"address": "192.0.2.7"}))
    assert refusal(reply) == ("not_supported", 50)
    assert "not supported yet" in reply["message"]


# Sockets that cannot be in a flow


def regular_file() -> Any:
    return tempfile.TemporaryFile()


def unix_socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)


def raw_socket() -> socket.socket:
    if os.geteuid() != 0:
        pytest.skip("making a raw socket needs root")
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)


def netlink_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM)


def udp_lite_socket() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_UDPLITE)


def udp6_only() -> socket.socket:
    made = udp(family=socket.AF_INET6)
    made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return made


@pytest.mark.parametrize(
    ("make", "fields", "words"),
    [
        (regular_file, {}, "the descriptor is not a socket"),
        (unix_socket, {}, "a socket of family AF_UNIX cannot be in a flow"),
        (netlink_socket, {}, "a socket of family AF_NETLINK cannot be in a flow"),
        (raw_socket, {}, "a raw socket (SOCK_RAW) cannot be in a flow"),
        (udp_lite_socket, {}, "a socket of protocol UDP-Lite cannot be in a flow"),
        (udp, {}, ""),
        (udp, {"address": "2001:db8::7", "port": 5004}, ""),
        (udp6_only, {"address": "192.0.2.7", "port": 5004}, ""),
        (lambda: udp(PEER), {"address": "192.0.2.8", "port": 5004}, ""),
        (udp, {"port": 5004}, "port 5004 without an address"),
        (udp, {"address": "voice.example.net", "port": 5004}, "not a destination"),
        (udp, {"address": "192.0.2.7", "port": 65536}, "not a destination: port 65536"),
        (udp, {"address": "192.0.2.7", "port": -1}, "not a destination: port -1"),
        (lambda: udp(PEER), {"traffic_type": 6}, "unknown traffic type 6"),
        (lambda: udp(PEER), {"traffic_type": -1}, "unknown traffic type -1"),
    ],
)
def test_a_socket_that_cannot_be_in_a_flow_is_refused_and_closed(
    stage: Stage, client: RawClient, make: Callable[[], Any], fields: dict[str, Any], words: str
) -> None:
    with make() as sock:
        reply = add(client, sock, **fields)
    assert refusal(reply) == ("invalid_request", 87)
    assert words in reply["message"]
    assert stage.call(lambda: stage.service.flows) == 0
    assert stage.datapath.bindings == {}
    assert client.ask(op="status")["flows"] == 0


def test_a_request_without_its_socket_is_refused(client: RawClient) -> None:
    reply = client.ask(op="add_socket", traffic_type=VOICE)
    assert refusal(reply) == ("invalid_request", 87)
    assert reply["message"] == "add_socket without a socket"


# Values


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        ({"op": "set_rate", "bandwidth": -1}, ("invalid_request", 87)),
        ({"op": "set_rate", "bandwidth": 400_000_000_001}, ("invalid_request", 87)),
        ({"op": "set_rate", "bandwidth": 2**63}, ("protocol_error", 87)),
        ({"op": "set_rate", "bandwidth": 64_000.5}, ("protocol_error", 87)),
        ({"op": "set_rate", "bandwidth": 64_000, "shaping": 3}, ("invalid_request", 87)),
        ({"op": "set_rate", "bandwidth": 64_000, "reason": 5}, ("invalid_request", 87)),
        ({"op": "set_dscp", "dscp": 64}, ("invalid_request", 87)),
        ({"op": "set_dscp", "dscp": -1}, ("invalid_request", 87)),
        ({"op": "set_traffic_type", "traffic_type": 6}, ("invalid_request", 87)),
        ({"op": "notify", "condition": 3}, ("invalid_request", 87)),
        ({"op": "list_flows", "after": -1, "flow": 0}, ("invalid_request", 87)),
        ({"op": "stats", "flags": 1}, ("protocol_error", 87)),
        ({"op": "fly"}, ("protocol_error", 87)),
        ({"op": "status", "v": 2}, ("protocol_error", 87)),
        ({"op": "open_handle"}, ("protocol_error", 87)),
    ],
)
def test_a_wrong_value_is_refused_and_changes_nothing(
    stage: Stage, client: RawClient, request_: dict[str, Any], code: tuple[str, int]
) -> None:
    with udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        before = stage.call(lambda: dict(stage.datapath.policies))
        takes_flow = request_["op"] not in ("fly", "status", "open_handle")
        assert refusal(client.ask(**({"flow": flow} if takes_flow else {}) | request_)) == code
        assert stage.call(lambda: dict(stage.datapath.policies)) == before


def test_rate_0_takes_the_contract_and_the_marking_away(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        client.ask(op="set_rate", flow=flow, bandwidth=64_000)
        assert client.ask(op="set_rate", flow=flow, bandwidth=0) == {"result": "done"}
        assert client.ask(op="rate", flow=flow)["bandwidth"] == 0
        assert stage.call(lambda: stage.datapath.policies[flow].dscp) is None


@pytest.mark.parametrize("op", ["remove_socket", "priority", "rate", "stats", "fundamentals"])
@pytest.mark.parametrize("flow", [0, 1, 2**40, -1])
def test_an_unknown_flow_is_not_found(client: RawClient, op: str, flow: int) -> None:
    assert refusal(client.ask(op=op, flow=flow)) == ("no_such_flow", 1168)


def test_a_flow_of_another_process_can_be_seen_but_not_changed(stage: Stage, client: RawClient) -> None:
    code = (
        "import qos2, socket, sys\n"
        "with qos2.Handle() as qos, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:\n"
        f"    print(qos.add_socket(sock, qos2.TrafficType.VOICE, {PEER!r}).id, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with stage.script(code) as other:
        assert other.stdout is not None
        flow = int(other.stdout.readline())
        assert refusal(client.ask(op="set_rate", flow=flow, bandwidth=64_000)) == ("no_such_flow", 1168)
        assert refusal(client.ask(op="remove_socket", flow=flow)) == ("no_such_flow", 1168)
        assert client.ask(op="rate", flow=flow)["bandwidth"] == 0
        other.communicate()
        assert other.returncode == 0
    stage.settle()
    assert refusal(client.ask(op="rate", flow=flow)) == ("no_such_flow", 1168)


def test_a_raw_dscp_and_everybodys_flows_need_a_right(stage: Stage) -> None:
    with unprivileged(), stage.connection() as client, udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        assert refusal(client.ask(op="set_dscp", flow=flow, dscp=46)) == ("not_permitted", 5)
        assert refusal(client.ask(op="enumerate")) == ("not_permitted", 5)


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


def test_a_handle_is_opened_once_and_before_anything_else(stage: Stage) -> None:
    with stage.connection(opened=False) as client:
        assert refusal(client.ask(op="status")) == ("protocol_error", 87)
        assert refusal(client.ask(op="open_handle", version=[2, 0])) == ("invalid_request", 87)
        assert client.ask(op="open_handle") == {
            "result": "opened",
            "server": "stage",
            "privileged": os.geteuid() == 0,
        }
        assert refusal(client.ask(op="open_handle")) == ("protocol_error", 87)


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
        with pytest.raises(ConnectionError):  # noqa: PT012
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


@contextmanager
def lingering_in(stage: Stage, client: RawClient) -> Iterator[None]:
    """In this block the daemon has the last descriptor of a TCP connection whose close() waits for an idle peer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        sock = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
        with accepted:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):  # noqa: PT012
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


# Refusals and bugs below


def test_a_refusal_of_the_kernel_reaches_the_client_and_leaves_nothing(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        stage.datapath.refuse("bind")
        assert refusal(add(client, sock)) == ("datapath_error", 1117)
        assert stage.datapath.policies == {}
        assert add(client, sock)["result"] == "added"


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


# Long answers


def test_the_list_of_flows_comes_in_pages_that_fit(stage: Stage, client: RawClient) -> None:
    with ExitStack() as sockets:
        expected = []
        for port in range(1, 101):
            sock = sockets.enter_context(udp())
            expected.append(add(client, sock, address="192.0.2.7", port=port)["flow"])
            for host in range(20):
                add(client, sock, flow=expected[-1], address=f"192.0.2.{host + 8}", port=port)
        found: list[int] = []
        more = True
        while more:
            client.send(json.dumps({"op": "list_flows", "after": found[-1] if found else 0}).encode())
            data = client.socket.recv(65536)
            assert len(data) <= protocol.MAX_MESSAGE_BYTES
            page = json.loads(data)
            found += [each["flow"] for each in page["flows"]]
            more = page["more"]
        assert found == expected


def test_all_ids_come_in_pages_of_one_list(stage: Stage, client: RawClient, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [2**32 - 1 - each for each in range(4000)]
    monkeypatch.setattr(stage.service, "enumerate", lambda handle: list(ids))
    found: list[int] = []
    while True:
        client.send(json.dumps({"op": "enumerate", "after": len(found)}).encode())
        data = client.socket.recv(65536)
        assert len(data) <= protocol.MAX_MESSAGE_BYTES
        page = json.loads(data)
        found += page["flows"]
        if not page["more"]:
            break
        # A flow that begins meanwhile is not in this list, and moves no other.
        ids.insert(0, 5)
    assert found == [2**32 - 1 - each for each in range(4000)]
    assert refusal(client.ask(op="enumerate", after=3)) == ("invalid_request", 87)


def test_a_status_of_many_devices_comes_in_pages_that_fit(
    stage: Stage, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = tuple(
        DeviceStatus(f"veth{number:010}", number, 2**63, "clsact", Shaper.HTB, "the kernel has no fq " * 4)
        for number in range(300)
    )
    status = DatapathStatus("6.1", devices=devices, problems=("a device is gone " * 100,) * 100)
    monkeypatch.setattr(stage.datapath, "status", lambda: status)
    found: list[str] = []
    while True:
        client.send(json.dumps({"op": "status", "after": len(found)}).encode())
        data = client.socket.recv(65536)
        assert len(data) <= protocol.MAX_MESSAGE_BYTES
        page = json.loads(data)
        found += [each["name"] for each in page["datapath"]["devices"]]
        if not page["more"]:
            break
    assert found == [device.name for device in devices]


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


def test_the_peer_of_a_connection_is_told_by_the_kernel() -> None:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        peer = peer_of(one, privileged_gid=None, stranger=-1)
        assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
        assert peer.gids == {os.getegid(), *os.getgroups()}
        assert peer.privileged is (os.geteuid() == 0)
        assert peer.program == Path("/proc/self/comm").read_text().strip()
        assert peer_of(one, privileged_gid=os.getegid(), stranger=-1).privileged is True
