"""Requests and their answers, right and wrong, as a client meets them: over the real server and service.

The datapath is in memory. Every test also checks that no descriptor is left open (see staged).
"""

import json
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest

from qos2.model import DatapathStatus, DeviceStatus, Shaper
from qos2.sockets import socket_facts
from qos2.wire import protocol
from unit.server_stage import (
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


def test_a_refusal_of_the_kernel_reaches_the_client_and_leaves_nothing(stage: Stage, client: RawClient) -> None:
    with udp(PEER) as sock:
        stage.datapath.refuse("bind")
        assert refusal(add(client, sock)) == ("datapath_error", 1117)
        assert stage.datapath.policies == {}
        assert add(client, sock)["result"] == "added"


# Sockets that cannot be in a flow


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


@pytest.mark.parametrize("op", ["remove_socket", "priority", "rate", "stats", "fundamentals", "report", "explain"])
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
        assert refusal(client.ask(op="report", flow=flow, rtt_us=900)) == ("no_such_flow", 1168)
        assert client.ask(op="rate", flow=flow)["bandwidth"] == 0
        unknown: dict[str, Any] = {"state": "unknown", "cause": None, "ago_s": 0.0, "evidence": {}}
        assert client.ask(op="explain", flow=flow)["changes"] == [unknown]
        other.communicate()
        assert other.returncode == 0
    stage.settle()
    for op in ("rate", "report", "explain"):
        assert refusal(client.ask(op=op, flow=flow)) == ("no_such_flow", 1168)


def test_a_raw_dscp_and_everybodys_flows_need_a_right(stage: Stage) -> None:
    with unprivileged(), stage.connection() as client, udp(PEER) as sock:
        flow = add(client, sock)["flow"]
        assert refusal(client.ask(op="set_dscp", flow=flow, dscp=46)) == ("not_permitted", 5)
        assert refusal(client.ask(op="enumerate")) == ("not_permitted", 5)


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
