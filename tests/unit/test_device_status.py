"""What devices carry, on its way to people: in replies, in `qos2 status` and `explain`, and among the metrics."""

import json
from dataclasses import asdict, replace

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qos2.cli.explain import sheet
from qos2.cli.main import main
from qos2.cli.status import status_page
from qos2.metrics import MAX_DEVICES, Snapshot, render
from qos2.model import Cause, DatapathStatus, DeviceStatus, Shaper
from qos2.wire.protocol import StatusReport
from unit.cli_stage import StandIn, details, explanation, printed, report
from unit.server_stage import RawClient, Stage

ETH0 = DeviceStatus("eth0", 2, 1, "tcx", Shaper.FQ, "", 3, 10_000_000_000, 351_000_000, 151_400, 100, 12)
WG0 = DeviceStatus("wg0", 3, 1, "tcx", Shaper.FQ, "", 0, None, None, 0, 0, 0)
DOWN = DeviceStatus("eth1", 4, 1, "tcx", Shaper.FQ, "")


def status(*devices: DeviceStatus) -> DatapathStatus:
    return DatapathStatus(kernel="6.18.0", devices=devices)


def page(*devices: DeviceStatus) -> list[str]:
    return printed(status_page(report(datapath=json.loads(json.dumps(asdict(status(*devices)))))), 80)


def load_lines(lines: list[str]) -> list[str]:
    return lines[next(at for at, line in enumerate(lines) if line.startswith("Load of the devices")) :]


def device_samples(snapshot: Snapshot) -> dict[tuple[str, str], float]:
    """Those of what devices carry, by name and device."""
    return {
        (sample.name.removeprefix("qos2_device_"), sample.labels["device"]): sample.value
        for family in text_string_to_metric_families(render(snapshot).decode())
        if family.name.startswith("qos2_device_")
        and family.name not in ("qos2_device_info", "qos2_device_programs", "qos2_device_shaped_flows")
        for sample in family.samples
    }


def test_a_status_reply_tells_what_each_device_carries(
    stage: Stage, client: RawClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage.datapath, "status", lambda: status(ETH0, DOWN))
    eth0, eth1 = client.ask(op="status")["datapath"]["devices"]
    assert eth0 == {
        "name": "eth0",
        "index": 2,
        "netns_cookie": 1,
        "hook": "tcx",
        "shaper": "fq",
        "why": "",
        "shaped_flows": 3,
        "speed_bps": 10_000_000_000,
        "load_bps": 351_000_000,
        "backlog_bytes": 151_400,
        "backlog_packets": 100,
        "qdisc_drops": 12,
    }
    unknown = ("speed_bps", "load_bps", "backlog_bytes", "backlog_packets", "qdisc_drops")
    assert [eth1[name] for name in unknown] == [None] * 5


def test_status_shows_what_devices_carry_in_80_columns() -> None:
    assert load_lines(page(ETH0, WG0, DOWN)) == [
        "Load of the devices: bit/s; bytes and packets that wait; packets dropped",
        "DEVICE SPEED LOAD  USED BACKLOG PACKETS DROPPED",
        "───────────────────────────────────────────────",
        "eth0     10G 351M 3.5 %    151k     100      12",
        "wg0        -    -     -       0       0       0",
    ]


def test_devices_of_several_namespaces_are_told_apart_by_their_loads_too() -> None:
    lines = load_lines(page(ETH0, replace(ETH0, netns_cookie=4097)))
    assert [line.split("  ")[0] for line in lines[3:]] == ["eth0 (netns 1)", "eth0 (netns 4097)"]


def test_a_load_without_a_known_speed_has_no_share_and_an_idle_device_has_none_in_use() -> None:
    rows = load_lines(page(replace(ETH0, speed_bps=None), replace(ETH0, load_bps=0)))[3:]
    assert [row.split()[1:4] for row in rows] == [["-", "351M", "-"], ["10G", "0", "0"]]


def test_status_as_json_has_the_numbers_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    class Carrying(StandIn):
        def status(self) -> StatusReport:
            return report(datapath=json.loads(json.dumps(asdict(status(ETH0)))))

    assert main(["status", "--json"], connect=Carrying().connect) == 0
    assert json.loads(capsys.readouterr().out)["datapath"]["devices"] == [asdict(ETH0)]


def test_metrics_tell_what_devices_carry_in_base_units() -> None:
    snapshot = Snapshot(
        version="0.1.0",
        datapath=status(ETH0, WG0, DOWN),
        device_sent_bytes={"eth0": 5_000_000_000, "wg0": 0},
        device_dropped_packets={"eth0": 7},
    )
    assert device_samples(snapshot) == {
        ("speed_bytes", "eth0"): 1_250_000_000,
        ("backlog_bytes", "eth0"): 151_400,
        ("backlog_bytes", "wg0"): 0,
        ("sent_bytes_total", "eth0"): 5_000_000_000,
        ("sent_bytes_total", "wg0"): 0,
        ("dropped_packets_total", "eth0"): 7,
    }


def test_devices_of_one_name_are_summed_and_have_a_speed_where_all_of_them_have() -> None:
    twins = (ETH0, replace(ETH0, netns_cookie=4097, speed_bps=1_000_000_000, backlog_bytes=600))
    snapshot = Snapshot(version="0.1.0", datapath=status(*twins), device_sent_bytes={"eth0": 10})
    assert device_samples(snapshot) == {
        ("speed_bytes", "eth0"): 1_375_000_000,
        ("backlog_bytes", "eth0"): 152_000,
        ("sent_bytes_total", "eth0"): 10,
    }
    unknown = Snapshot(version="0.1.0", datapath=status(ETH0, replace(twins[1], speed_bps=None, backlog_bytes=None)))
    assert device_samples(unknown) == {("backlog_bytes", "eth0"): 151_400}


def busy_devices() -> Snapshot:
    """Forty devices of which everything is known."""
    names = [f"eth{number}" for number in range(40)]
    return Snapshot(
        version="0.1.0",
        datapath=status(*(replace(ETH0, name=name, index=2 + at) for at, name in enumerate(names))),
        device_sent_bytes=dict.fromkeys(names, 1),
        device_dropped_packets=dict.fromkeys(names, 1),
    )


def test_however_many_devices_there_are_the_series_are_bounded() -> None:
    samples = device_samples(busy_devices())
    assert len(samples) == 4 * (MAX_DEVICES + 1)
    families = text_string_to_metric_families(render(busy_devices()).decode())
    of_devices = [sample for family in families if family.name.startswith("qos2_device") for sample in family.samples]
    assert len(of_devices) == MAX_DEVICES + 6 * (MAX_DEVICES + 1)  # the names alone are not told of others


@pytest.mark.parametrize(
    ("device", "sentence"),
    [
        (
            ETH0,
            "eth0. It sends 351Mbit/s of 10Gbit/s. In its queue wait 100 packets, 151kB, 3.5 ms at that load. "
            "That queue has dropped 12 packets of whoever sent them.",
        ),
        (
            replace(ETH0, speed_bps=None, qdisc_drops=0),
            "eth0. It sends 351Mbit/s. In its queue wait 100 packets, 151kB, 3.5 ms at that load.",
        ),
        (replace(ETH0, load_bps=None, qdisc_drops=0), "eth0. In its queue wait 100 packets, 151kB."),
        (replace(ETH0, load_bps=0, backlog_packets=0, qdisc_drops=None), "eth0. It sends 0bit/s of 10Gbit/s."),
        (replace(DOWN, name="e\x1b[2J"), "e?[2J."),
    ],
)  # fmt: skip
def test_explain_tells_by_which_device_a_flow_leaves(device: DeviceStatus, sentence: str) -> None:
    lines = printed(sheet(details(), explanation(device=device)), 400)
    assert [line.removeprefix("device     ") for line in lines if line.startswith("device")] == [sentence]


#: Of the 91.7 ms that the flow of the stage waits in queues now.
FULL = replace(ETH0, shaped_flows=0, load_bps=8_000_000, backlog_bytes=60_000)


@pytest.mark.parametrize(
    ("device", "cause", "here"),
    [
        (FULL, Cause.QUEUE_DELAY, True),
        (FULL, Cause.PROBE, True),
        (replace(FULL, backlog_bytes=45_900), Cause.QUEUE_DELAY, True),
        (replace(FULL, backlog_bytes=45_800), Cause.QUEUE_DELAY, False),
        (replace(FULL, load_bps=0), Cause.QUEUE_DELAY, False),
        (replace(FULL, load_bps=None), Cause.QUEUE_DELAY, False),
        (replace(FULL, shaped_flows=1), Cause.QUEUE_DELAY, False),  # contracts may hold back what waits
        (FULL, Cause.LOSS, False),
        (FULL, Cause.CONTRACT, False),
        (FULL, None, False),
        (None, Cause.QUEUE_DELAY, False),
    ],
)
def test_a_flow_whose_queue_is_on_this_host_is_told_so(
    device: DeviceStatus | None, cause: Cause | None, here: bool
) -> None:
    told = explanation(device=device)
    told.changes[0] = msgspec.structs.replace(told.changes[0], cause=cause)
    (why,) = (line for line in printed(sheet(details(), told), 400) if line.startswith("why"))
    assert why.endswith(" Most of that wait is on this host, in the queue of eth0.") is here


def test_what_waits_leaves_in_the_time_that_its_load_takes() -> None:
    assert (FULL.wait_us, replace(FULL, load_bps=0).wait_us, DOWN.wait_us) == (60_000, None, None)
