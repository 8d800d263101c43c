"""The exporter: what it renders equals the snapshot, and its HTTP server stands bad clients."""

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from prometheus_client import CONTENT_TYPE_LATEST
from prometheus_client.parser import text_string_to_metric_families

from qos2.datapath.abi import Counter
from qos2.errors import BY_CODE
from qos2.exporter import Exporter
from qos2.metrics import LATENCY_BOUNDS, MAX_DEVICES, RequestMeter, Snapshot, render
from qos2.model import DatapathStatus, DeviceStatus, FlowStats, Shaper, TrafficType
from qos2.wire.protocol import AnyRequest
from unit.path_metrics import paths_known_in_every_way

OPERATIONS = [request.__struct_config__.tag for request in get_args(AnyRequest)]
SCRAPE = Path(__file__).parents[2] / "deploy" / "prometheus" / "prometheus.yml"


def meter() -> RequestMeter:
    return RequestMeter(OPERATIONS, ["ok", *BY_CODE])


def empty() -> Snapshot:
    return Snapshot(version="0.1.0", datapath=DatapathStatus(kernel="6.18.0"))


def stats(scale: int) -> FlowStats:
    return FlowStats(
        packets=100 * scale,
        bytes=15_000_000_000 * scale,
        non_conformant_packets=30 * scale,
        non_conformant_bytes=4_000_000_000 * scale,
        delayed_packets=20 * scale,
        delay_ns=1_500_000_000 * scale,
        dropped_packets={"horizon": 3 * scale, "police": 5 * scale},
        dropped_bytes={"horizon": 300 * scale, "police": 500 * scale},
    )


def full() -> Snapshot:
    requests = meter()
    for operation in OPERATIONS:
        requests.observe(operation, "ok", 75e-6)
    for code in ("no_such_flow", "invalid_request", "limit_exceeded", "not_supported", "internal"):
        requests.observe("add_socket", code, 75e-6)
    requests.observe("drop_table", "protocol_error", 2.0)
    counters = [*(each.label for each in Counter), "device_load_failed", "device_speed_failed"]
    return Snapshot(
        version="0.1.0",
        datapath=DatapathStatus(
            kernel='6.18.0-"odd"\\kernel\n',
            devices=tuple(
                replace(
                    DeviceStatus(f"eth{number}", number, 1, "tcx", Shaper.HTB, "no fq", number),
                    speed_bps=1_000_000_000,
                    backlog_bytes=3000,
                )
                for number in range(40)
            ),
            features={"tcx": True, "fq": False, "htb": True, "cgroup2": True, "netns_cookie": True},
            counters={name: 7 for name in counters},
            events={kind: 9 for kind in ("delayed", "dropped", "remarked", "loss", "ce")},
            map_entries={"policy": (12, 65_536), "destinations": (13, 65_536)},
        ),
        flows={kind: int(kind) for kind in TrafficType},
        totals={kind: stats(int(kind) + 1) for kind in TrafficType},
        begun={kind: 10 + kind for kind in TrafficType},
        ended={kind: 5 + kind for kind in TrafficType},
        handles=3,
        orphans=2,
        pending_requests=6,
        refused_connections={
            reason: 5 for reason in ("connections", "connections_per_uid", "resources", "credentials", "not_reading")
        },
        requests=requests,
        paths=paths_known_in_every_way(),
        device_sent_bytes={f"eth{number}": 15_000 for number in range(40)},
        device_dropped_packets={f"eth{number}": 4 for number in range(40)},
    )


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, /, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def test_values_parse_back_as_the_snapshot_has_them() -> None:
    text = render(full())
    for kind in TrafficType:
        label, scale = kind.label, int(kind) + 1
        assert value(text, "qos2_flows", traffic_type=label) == int(kind)
        assert value(text, "qos2_flows_begun_total", traffic_type=label) == 10 + kind
        assert value(text, "qos2_flows_ended_total", traffic_type=label) == 5 + kind
        assert value(text, "qos2_flow_packets_total", traffic_type=label, conformant="true") == 70 * scale
        assert value(text, "qos2_flow_packets_total", traffic_type=label, conformant="false") == 30 * scale
        assert value(text, "qos2_flow_bytes_total", traffic_type=label, conformant="true") == 11_000_000_000 * scale
        assert value(text, "qos2_flow_bytes_total", traffic_type=label, conformant="false") == 4_000_000_000 * scale
        assert value(text, "qos2_flow_delayed_packets_total", traffic_type=label) == 20 * scale
        assert value(text, "qos2_flow_delay_seconds_total", traffic_type=label) == 1.5 * scale
        assert value(text, "qos2_flow_dropped_packets_total", traffic_type=label, reason="police") == 5 * scale
        assert value(text, "qos2_flow_dropped_bytes_total", traffic_type=label, reason="horizon") == 300 * scale
    assert value(text, "qos2_build_info", version="0.1.0", kernel='6.18.0-"odd"\\kernel\n') == 1
    assert value(text, "qos2_handles") == 3
    assert value(text, "qos2_orphan_flows") == 2
    assert value(text, "qos2_pending_requests") == 6
    assert value(text, "qos2_connections_refused_total", reason="not_reading") == 5
    assert value(text, "qos2_map_entries", map="policy") == 12
    assert value(text, "qos2_map_size", map="policy") == 65_536
    assert value(text, "qos2_datapath_errors_total", name="not_ip") == 7
    assert value(text, "qos2_datapath_events_total", kind="ce") == 9
    assert value(text, "qos2_kernel_feature", feature="tcx") == 1
    assert value(text, "qos2_kernel_feature", feature="fq") == 0
    assert value(text, "qos2_device_info", device="eth39", hook="tcx", shaper="htb") == 1
    assert value(text, "qos2_device_shaped_flows", device="eth39") == 39


def test_types_parse_back_as_they_are_meant() -> None:
    kinds = {family.name: family.type for family in text_string_to_metric_families(render(full()).decode())}
    ours = {name: kind for name, kind in kinds.items() if name.startswith("qos2_")}
    assert ours == {
        "qos2_build_info": "gauge",
        "qos2_handles": "gauge",
        "qos2_orphan_flows": "gauge",
        "qos2_pending_requests": "gauge",
        "qos2_connections_refused": "counter",
        "qos2_flows": "gauge",
        "qos2_flows_begun": "counter",
        "qos2_flows_ended": "counter",
        "qos2_flow_packets": "counter",
        "qos2_flow_bytes": "counter",
        "qos2_flow_delayed_packets": "counter",
        "qos2_flow_delay_seconds": "counter",
        "qos2_flow_dropped_packets": "counter",
        "qos2_flow_dropped_bytes": "counter",
        "qos2_requests": "counter",
        "qos2_request_duration_seconds": "histogram",
        "qos2_flow_states": "gauge",
        "qos2_paths": "gauge",
        "qos2_reflectors": "gauge",
        "qos2_path_estimates": "gauge",
        "qos2_admissions": "counter",
        "qos2_probe_bytes": "counter",
        "qos2_probe_packets": "counter",
        "qos2_probe_results": "counter",
        "qos2_observation_failures": "counter",
        "qos2_notification_seconds": "histogram",
        "qos2_map_entries": "gauge",
        "qos2_map_size": "gauge",
        "qos2_datapath_errors": "counter",
        "qos2_datapath_events": "counter",
        "qos2_kernel_feature": "gauge",
        "qos2_device_info": "gauge",
        "qos2_device_shaped_flows": "gauge",
        "qos2_devices_omitted": "gauge",
        "qos2_device_speed_bytes": "gauge",
        "qos2_device_backlog_bytes": "gauge",
        "qos2_device_sent_bytes": "counter",
        "qos2_device_dropped_packets": "counter",
    }


def test_the_document_names_every_metric() -> None:
    document = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    families = [each for each in text_string_to_metric_families(render(full()).decode()) if each.name[:5] == "qos2_"]
    named = [each.name + "_total" * (each.type == "counter") for each in families]
    assert [name for name in named if f"`{name}`" not in document] == []


def test_this_process_is_among_the_metrics() -> None:
    assert value(render(empty()), "process_resident_memory_bytes") > 1e6


def test_a_full_snapshot_makes_at_most_420_series() -> None:
    assert len(samples(render(full()))) <= 420


def test_too_many_devices_are_left_out_and_counted() -> None:
    text = render(full())
    told = [dict(labels)["device"] for name, labels in samples(text) if name == "qos2_device_info"]
    assert sorted(told) == sorted(f"eth{number}" for number in range(40 - MAX_DEVICES, 40))
    assert value(text, "qos2_devices_omitted") == 40 - MAX_DEVICES


def test_devices_of_one_name_in_two_namespaces_are_one_series() -> None:
    snapshot = empty()
    snapshot.datapath = DatapathStatus(
        kernel="6.18.0",
        devices=tuple(DeviceStatus("eth0", 2, cookie, "tcx", Shaper.FQ, "", 3) for cookie in (1, 2)),
    )
    lines = render(snapshot).decode().splitlines()
    assert [line for line in lines if line.startswith("qos2_device_")] == [
        'qos2_device_info{device="eth0",hook="tcx",shaper="fq"} 1.0',
        'qos2_device_shaped_flows{device="eth0"} 6.0',
    ]


def test_requests_are_counted_by_operation_and_result() -> None:
    text = render(full())
    assert value(text, "qos2_requests_total", op="status", result="ok") == 1
    assert value(text, "qos2_requests_total", op="add_socket", result="no_such_flow") == 1
    assert value(text, "qos2_requests_total", op="invalid", result="protocol_error") == 1


def test_unknown_operations_and_results_make_one_series_only() -> None:
    requests = meter()
    for number in range(1000):
        requests.observe(f"op{number}", f"result{number}", 0.0)
    assert requests.requests == {("invalid", "invalid"): 1000}


def test_latencies_fall_into_the_bucket_whose_bound_they_do_not_exceed() -> None:
    requests = meter()
    for seconds in (0.0, 50e-6, 51e-6, 1.0, 1.5):
        requests.observe("status", "ok", seconds)
    snapshot = empty()
    snapshot.requests = requests
    text = render(snapshot)
    bucket = "qos2_request_duration_seconds_bucket"
    by_bound = {float(dict(labels)["le"]): number for (name, labels), number in samples(text).items() if name == bucket}
    assert by_bound == {**dict.fromkeys(LATENCY_BOUNDS, 3.0), 50e-6: 2.0, 1.0: 4.0, float("inf"): 5.0}
    assert value(text, "qos2_request_duration_seconds_count", op="status") == 5
    assert value(text, "qos2_request_duration_seconds_sum", op="status") == pytest.approx(2.500101)


def promtool(*arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    tool = shutil.which("promtool")
    if tool is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is missing: apt-get install prometheus")
        pytest.skip("promtool is missing: apt-get install prometheus")
    return subprocess.run([tool, *arguments], input=text, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("snapshot", [empty, full])
def test_promtool_finds_nothing_to_complain_of(snapshot: Callable[[], Snapshot]) -> None:
    checked = promtool("check", "metrics", text=render(snapshot()))
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_the_shipped_scrape_configuration_is_valid() -> None:
    checked = promtool("check", "config", str(SCRAPE))
    assert checked.returncode == 0, checked.stdout + checked.stderr


@asynccontextmanager
async def exporter(timeout_s: float = 5.0) -> AsyncIterator[Exporter]:
    served = Exporter(("127.0.0.1", 0), timeout_s=timeout_s)
    await served.start()
    try:
        yield served
    finally:
        await served.close()


@asynccontextmanager
async def connected(served: Exporter) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection(*served.address)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def ask(served: Exporter, request: bytes) -> bytes:
    async with connected(served) as (reader, writer):
        writer.write(request)
        return await reader.read()


def in_loop(test: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(20):
            return await test()

    return asyncio.run(bounded())


def test_a_scrape_gets_the_bytes_published_last() -> None:
    async def scrape() -> bytes:
        async with exporter() as served:
            served.publish(b"old 1\n")
            served.publish(b"new 2\n")
            return await ask(served, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")

    assert in_loop(scrape) == (
        b"HTTP/1.1 200 OK\r\nContent-Type: " + CONTENT_TYPE_LATEST.encode() + b"\r\n"
        b"Content-Length: 6\r\nConnection: close\r\n\r\nnew 2\n"
    )


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (b"HEAD /metrics HTTP/1.1", b"200 OK", b""),
        (b"GET /metrics?debug=1 HTTP/1.0", b"200 OK", b"a 1\n"),
        (b"GET / HTTP/1.1", b"404 Not Found", b"see /metrics\n"),
        (b"POST /metrics HTTP/1.1", b"405 Method Not Allowed", b"GET or HEAD\n"),
        (b"hello", b"400 Bad Request", b"not an HTTP/1 request\n"),
        (b"GET /metrics HTTP/2", b"400 Bad Request", b"not an HTTP/1 request\n"),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1", b"431 Request Header Fields Too Large", b"request too long\n"),
    ],
)
def test_each_request_gets_its_status(request_line: bytes, status: bytes, body: bytes) -> None:
    async def scrape() -> bytes:
        async with exporter() as served:
            served.publish(b"a 1\n")
            return await ask(served, request_line + b"\r\n\r\n")

    answer: bytes = in_loop(scrape)
    assert answer.partition(b"\r\n")[0] == b"HTTP/1.1 " + status
    assert answer.partition(b"\r\n\r\n")[2] == body


def test_before_the_first_snapshot_a_scrape_is_told_to_come_again() -> None:
    async def scrape() -> bytes:
        async with exporter() as served:
            return await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")

    assert in_loop(scrape).startswith(b"HTTP/1.1 503 ")


def test_a_client_that_says_nothing_is_disconnected() -> None:
    async def silent() -> bytes:
        async with exporter(timeout_s=0.05) as served:
            return await ask(served, b"GET /metr")

    assert in_loop(silent) == b""


def test_a_client_that_reads_nothing_is_disconnected_and_harms_no_other() -> None:
    async def stuck() -> tuple[bytes, int]:
        async with exporter(timeout_s=0.05) as served:
            served.publish(b"x" * 50_000_000)
            with socket.create_connection(served.address) as deaf:
                deaf.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                # Accepted in their order: after this answer the deaf one is being served, or is over already.
                await ask(served, b"GET / HTTP/1.1\r\n\r\n")
                serving = asyncio.all_tasks() - {asyncio.current_task()}
                if serving:
                    await asyncio.wait(serving)
                connections = served.connections
                served.publish(b"a 1\n")
                return await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n"), connections

    answer, connections = in_loop(stuck)
    assert answer.endswith(b"\r\n\r\na 1\n")
    assert connections == 0


def test_more_than_the_allowed_connections_are_turned_away_at_once() -> None:
    async def crowd() -> int:
        async with exporter() as served, AsyncExitStack() as idle:
            served.publish(b"a 1\n")
            for _ in range(Exporter.MAX_CONNECTIONS):
                await idle.enter_async_context(connected(served))
            # Connections are accepted in their order, so this one comes after all of those.
            with pytest.raises(ConnectionResetError):
                await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")
            return served.connections

    assert in_loop(crowd) == Exporter.MAX_CONNECTIONS


def test_closing_ends_connections_that_are_being_served() -> None:
    async def closing() -> tuple[bool, int, bytes]:
        async with exporter() as served, connected(served) as (reader, _):
            await ask(served, b"GET /metrics HTTP/1.1\r\n\r\n")
            before = served.connections > 0
            await served.close()
            with suppress(ConnectionError):
                return before, served.connections, await reader.read()
            return before, served.connections, b""

    assert in_loop(closing) == (True, 0, b"")
