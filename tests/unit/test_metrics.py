"""What Prometheus is told equals the snapshot, in the types that are meant, and in few series."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qos2.core.usage import Usage
from qos2.core.views import FlowView
from qos2.metrics import LATENCY_BOUNDS, MAX_DEVICES, BusyFlow, DeviceRanking, LagMeter, render, render_top
from qos2.model import (
    Bandwidth,
    DatapathStatus,
    DeviceStatus,
    Dscp,
    FlowId,
    FlowState,
    FlowStats,
    Judgement,
    Shaper,
    Shaping,
    TrafficType,
)
from unit.full_snapshot import DEVICES, PLACES, device, empty, full, meter

ROOT = Path(__file__).parents[2]
#: However many flows, devices, units and conditions there are.
MOST_SERIES = 400


def samples(text: bytes) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(text: bytes, name: str, /, **labels: str) -> float:
    return samples(text)[name, frozenset(labels.items())]


def lines(text: bytes, prefix: str) -> list[str]:
    return [line for line in text.decode().splitlines() if line.startswith(prefix)]


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
        assert value(text, "qos2_flow_dropped_packets_total", traffic_type=label, reason="queue") == 5 * scale
        assert value(text, "qos2_flow_dropped_bytes_total", traffic_type=label, reason="police") == 301 * scale
        assert value(text, "qos2_contract_flows", traffic_type=label) == 2 + kind
        assert value(text, "qos2_contract_bytes_per_second", traffic_type=label) == 1e6 * kind
        assert value(text, "qos2_contract_achieved_bytes_per_second", traffic_type=label) == 5e5 * kind
        assert value(text, "qos2_unit_bytes_total", unit="other", traffic_type=label) == 70 + kind
    assert value(text, "qos2_unit_bytes_total", unit="8.service", traffic_type="excellent_effort") == 1008
    assert value(text, "qos2_series_truncated_total", label="unit") == 11
    assert value(text, "qos2_build_info", version="0.1.0", kernel='6.18.0-"odd"\\kernel\n') == 1
    assert value(text, "qos2_config_generation") == 3
    assert value(text, "qos2_config_last_reload_success") == 0
    assert value(text, "qos2_config_last_reload_timestamp_seconds") == 1_795_255_200.5
    assert value(text, "qos2_handles") == 3
    assert value(text, "qos2_orphan_flows") == 2
    assert value(text, "qos2_pending_requests") == 6
    assert value(text, "qos2_connections_refused_total", reason="not_reading") == 5
    assert value(text, "qos2_map_entries", map="policy") == 12
    assert value(text, "qos2_map_size", map="policy") == 65_536
    assert value(text, "qos2_datapath_errors_total", name="not_ip") == 7
    assert value(text, "qos2_datapath_events_total", kind="ce") == 9
    assert value(text, "qos2_datapath_problems") == 2
    assert value(text, "qos2_kernel_feature", feature="tcx") == 1
    assert value(text, "qos2_kernel_feature", feature="fq") == 0
    assert value(text, "qos2_device_info", device="eth39", hook="tcx", shaper="htb") == 1
    assert value(text, "qos2_device_shaped_flows", device="eth39") == 39
    assert value(text, "qos2_device_programs", device="eth39") == 1
    assert value(text, "qos2_program_runs_total", program="qos_fq") == 1000
    assert value(text, "qos2_program_run_seconds_total", program="qos_fq") == 0.25


def test_types_parse_back_as_they_are_meant() -> None:
    kinds = {family.name: family.type for family in text_string_to_metric_families(render(full()).decode())}
    ours = {name: kind for name, kind in kinds.items() if name.startswith("qos2_")}
    gauges = (
        *("build_info", "config_generation", "config_last_reload_success", "config_last_reload_timestamp_seconds"),
        *("handles", "orphan_flows", "pending_requests", "flows"),
        *("contract_flows", "contract_bytes_per_second", "contract_achieved_bytes_per_second"),
        *("flow_states", "paths", "reflectors", "path_estimates"),
        *("map_entries", "map_size", "datapath_problems", "kernel_feature"),
        *("device_info", "device_programs", "device_shaped_flows", "device_speed_bytes", "device_backlog_bytes"),
    )
    counters = (
        *("connections_refused", "requests", "request_errors", "series_truncated"),
        *("flows_begun", "flows_ended", "flow_packets", "flow_bytes", "unit_bytes"),
        *("flow_delayed_packets", "flow_delay_seconds", "flow_dropped_packets", "flow_dropped_bytes"),
        *("admissions", "probe_bytes", "probe_packets", "probe_results", "observation_failures"),
        *("datapath_errors", "datapath_events", "program_runs", "program_run_seconds"),
        *("device_sent_bytes", "device_dropped_packets"),
    )
    histograms = ("request_duration_seconds", "event_loop_lag_seconds", "notification_seconds")
    assert ours == {
        f"qos2_{name}": kind
        for kind, names in (("gauge", gauges), ("counter", counters), ("histogram", histograms))
        for name in names
    }


def test_the_document_names_every_metric() -> None:
    document = (ROOT / "docs" / "operations.md").read_text()
    families = [
        family
        for text in (render(full()), render_top([busy(1)]))
        for family in text_string_to_metric_families(text.decode())
        if family.name.startswith("qos2_")
    ]
    named = [each.name + "_total" * (each.type == "counter") for each in families]
    assert [name for name in named if f"`{name}`" not in document] == []


def test_what_this_daemon_does_not_know_is_not_told() -> None:
    text = render(empty()).decode()
    unknown = ("contract", "unit", "config", "program", "event_loop", "requests", "request_duration", "flow_states")
    assert [line for line in text.splitlines() if line.startswith(tuple(f"qos2_{each}" for each in unknown))] == []


def test_this_process_is_among_the_metrics() -> None:
    assert value(render(empty()), "process_resident_memory_bytes") > 1e6


def test_a_snapshot_of_everything_makes_at_most_400_series() -> None:
    # Python's own collector has six of this process where the kernel tells all of them.
    assert len(samples(render(full()))) <= MOST_SERIES


def test_the_snapshot_of_everything_has_as_many_units_as_there_can_be() -> None:
    usage = Usage(100)
    for slot in range(1, 100):
        usage.begin(slot, f"{slot}.service", TrafficType.VOICE)
    living = np.zeros(usage.accounts, np.int64)
    living[list(usage.account_of_slot[1:100])] = 1000
    usage.look(living)
    assert len(usage.told()) == PLACES + len(TrafficType) == len(full().units or ())


def test_too_many_devices_are_told_together_and_counted() -> None:
    text = render(full())
    told = [dict(labels)["device"] for name, labels in samples(text) if name == "qos2_device_info"]
    omitted = DEVICES - MAX_DEVICES
    assert sorted(told) == sorted(f"eth{number}" for number in range(omitted, DEVICES))
    assert value(text, "qos2_series_truncated_total", label="device") == omitted
    assert value(text, "qos2_device_programs", device="other") == omitted
    assert value(text, "qos2_device_shaped_flows", device="other") == sum(range(omitted))
    assert value(text, "qos2_device_speed_bytes", device="other") == omitted * 125_000_000
    assert value(text, "qos2_device_backlog_bytes", device="other") == omitted * 3000


def ranked(ranking: DeviceRanking, flows: dict[str, int], sent: dict[str, int]) -> tuple[str, ...]:
    devices = [replace(device(0), name=name, shaped_flows=number) for name, number in flows.items()]
    return ranking.look(devices, sent, {name: number // 100 for name, number in sent.items()})


def test_a_device_keeps_its_name_while_it_is_attached() -> None:
    ranking = DeviceRanking(places=2)
    assert ranked(ranking, {"a": 1, "b": 2, "c": 0}, {}) == ("a", "b")
    assert ranked(ranking, {"a": 1, "b": 2, "c": 9}, {}) == ("a", "b")
    assert ranked(ranking, {"a": 1, "c": 9}, {}) == ("a", "c")
    assert ranked(ranking, {"a": 1, "b": 20, "c": 9}, {}) == ("a", "c")
    assert ranking.truncated == 2


def test_what_other_devices_sent_grows_and_never_jumps() -> None:
    ranking = DeviceRanking(places=1)
    ranked(ranking, {"a": 1, "b": 0, "c": 0}, {"a": 1000, "b": 500, "c": 7000})
    assert (ranking.other_sent_bytes, ranking.other_dropped_packets) == (0, 0)
    ranked(ranking, {"a": 1, "b": 0, "c": 0}, {"a": 9000, "b": 700, "c": 7100})
    assert (ranking.other_sent_bytes, ranking.other_dropped_packets) == (300, 3)
    ranked(ranking, {"b": 0, "c": 0}, {"b": 800, "c": 7200})  # c gets the name of a
    assert ranking.other_sent_bytes == 400
    ranked(ranking, {"c": 0}, {"c": 9000})
    assert ranking.other_sent_bytes == 400


def test_devices_of_one_name_in_two_namespaces_are_one_series() -> None:
    snapshot = empty()
    twins = tuple(
        DeviceStatus("eth0", 2, cookie, "tcx", shaper, "", 3)
        for cookie, shaper in ((1, Shaper.FQ), (2, Shaper.POLICE), (3, Shaper.FQ))
    )
    snapshot.datapath = DatapathStatus(kernel="6.18.0", devices=twins)
    assert lines(render(snapshot), "qos2_device_") == [
        'qos2_device_info{device="eth0",hook="tcx",shaper="police"} 1.0',
        'qos2_device_programs{device="eth0"} 3.0',
        'qos2_device_shaped_flows{device="eth0"} 9.0',
    ]


def test_requests_are_counted_by_operation_and_errors_by_code() -> None:
    text = render(full())
    assert value(text, "qos2_requests_total", op="add_socket", result="ok") == 1
    assert value(text, "qos2_requests_total", op="status", result="error") == 2
    assert value(text, "qos2_requests_total", op="invalid", result="error") == 1
    assert value(text, "qos2_request_errors_total", code="no_such_flow") == 1
    assert value(text, "qos2_request_errors_total", code="invalid") == 1


def test_unknown_operations_and_results_make_one_series_only() -> None:
    requests = meter()
    for number in range(1000):
        requests.observe(f"op{number}", f"result{number}", 0.0)
    assert (requests.requests, requests.errors) == ({("invalid", "error"): 1000}, {"internal": 0, "invalid": 1000})


def test_latencies_fall_into_the_bucket_whose_bound_they_do_not_exceed() -> None:
    requests = meter()
    for seconds in (0.0, 50e-6, 51e-6, 1.0, 1.5):
        requests.observe("status", "ok", seconds)
    requests.observe("notify", "ok", 60.0)
    snapshot = empty()
    snapshot.requests = requests
    text = render(snapshot)
    bucket = "qos2_request_duration_seconds_bucket"
    answered = {
        float(dict(labels)["le"]): number
        for (name, labels), number in samples(text).items()
        if name == bucket and dict(labels)["kind"] == "answered"
    }
    assert answered == {**dict.fromkeys(LATENCY_BOUNDS, 3.0), 50e-6: 2.0, 1.0: 4.0, float("inf"): 5.0}
    assert value(text, "qos2_request_duration_seconds_count", kind="answered") == 5
    assert value(text, "qos2_request_duration_seconds_sum", kind="answered") == pytest.approx(2.500101)
    assert value(text, "qos2_request_duration_seconds_count", kind="waiting") == 1


def test_a_loop_that_is_in_time_has_no_lag() -> None:
    snapshot = empty()
    snapshot.lag = LagMeter()
    for seconds in (-1e-6, 0.0009, 0.02, 3.0):
        snapshot.lag.observe(seconds)
    assert lines(render(snapshot), "qos2_event_loop_lag_seconds") == [
        'qos2_event_loop_lag_seconds_bucket{le="0.001"} 2.0',
        'qos2_event_loop_lag_seconds_bucket{le="0.005"} 2.0',
        'qos2_event_loop_lag_seconds_bucket{le="0.025"} 3.0',
        'qos2_event_loop_lag_seconds_bucket{le="0.1"} 3.0',
        'qos2_event_loop_lag_seconds_bucket{le="1.0"} 3.0',
        'qos2_event_loop_lag_seconds_bucket{le="+Inf"} 4.0',
        "qos2_event_loop_lag_seconds_count 4.0",
        "qos2_event_loop_lag_seconds_sum 3.0209",
    ]


def busy(number: int, bandwidth: int = 8_000_000) -> BusyFlow:
    view = FlowView(
        flow=FlowId(0x0010_0000 + number),
        traffic_type=TrafficType.VOICE,
        adaptive=False,
        dscp=Dscp(56),
        dscp_override=False,
        non_conformant_dscp=Dscp(0),
        bandwidth=Bandwidth(bandwidth),
        shaping=Shaping.SHAPE_AND_MARK,
        pid=4321,
        uid=1000,
        program="phone",
        age_s=5.0,
        members=("udp 192.0.2.7:5004", "udp 192.0.2.8:5004"),
        whole_program=False,
        shapers={},
        stats=FlowStats(bytes=5000, dropped_packets={"horizon": 2, "police": 1}),
        judgement=Judgement(FlowState.UNCONGESTED),
        judged_for_s=1.0,
        unit="phone.service",
    )
    return BusyFlow(view, 125.5)


def test_single_flows_are_told_with_owner_and_numbers() -> None:
    text = render_top([busy(1), busy(2, bandwidth=0)])
    assert [line for line in text.decode().splitlines() if not line.startswith("#") and "00002" not in line] == [
        'qos2_top_flow_info{flow="0x00100001",member="udp 192.0.2.7:5004",program="phone",state="uncongested",'
        'traffic_type="voice",unit="phone.service"} 1.0',
        'qos2_top_flow_bytes_per_second{flow="0x00100001"} 125.5',
        'qos2_top_flow_bytes_total{flow="0x00100001"} 5000.0',
        'qos2_top_flow_dropped_packets_total{flow="0x00100001"} 3.0',
        'qos2_top_flow_contract_bytes_per_second{flow="0x00100001"} 1e+06',
    ]
    assert [line for line in lines(text, "qos2_top_flow_contract") if "00002" in line] == []


def promtool(*arguments: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    tool = shutil.which("promtool")
    if tool is None:
        if os.environ.get("CI"):
            pytest.fail("promtool is missing: apt-get install prometheus")
        pytest.skip("promtool is missing: apt-get install prometheus")
    return subprocess.run([tool, *arguments], input=text, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize(
    "text",
    [lambda: render(empty()), lambda: render(full()), lambda: render_top([busy(1)])],
    ids=["empty", "full", "flows"],
)
def test_promtool_finds_nothing_to_complain_of(text: Callable[[], bytes]) -> None:
    checked = promtool("check", "metrics", text=text())
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
