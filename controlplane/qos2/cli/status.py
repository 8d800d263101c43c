"""`qos2 status`: the daemon, its devices, how they shape and why, what they carry, the kernel, and what is wrong."""

from argparse import Namespace
from typing import Any

import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from qos2.cli import render
from qos2.cli.ports import Client
from qos2.model import DatapathStatus, DeviceStatus
from qos2.wire.protocol import StatusReport


def execute(qos: Client, arguments: Namespace, out: Console) -> int:
    """Show the daemon's state. Everybody may ask."""
    report = qos.status()
    if arguments.json:
        render.write_json(out, status_document(report))
    else:
        out.print(status_page(report))
    return 0


def status_document(report: StatusReport) -> dict[str, Any]:
    """The JSON form: as the daemon tells it."""
    return {
        "server": report.server,
        "uptime_s": report.uptime_s,
        "handles": report.handles,
        "flows": report.flows,
        "max_flows": report.max_flows,
        "orphans": report.orphans,
        "datapath": report.datapath,
    }


def status_page(report: StatusReport) -> Group:
    """All sections; those with nothing to tell are left out."""
    datapath = msgspec.convert(report.datapath, DatapathStatus)
    parts: list[RenderableType] = [
        Text.assemble((f"qos2d {report.server}", "bold"), f", up {render.duration(report.uptime_s)}")
        + Text(f", kernel {datapath.kernel}"),
        Text(f"flows {report.flows} of {report.max_flows}, handles {report.handles}, orphaned flows {report.orphans}"),
        Text(),
        _devices(datapath),
        *_loads(datapath),
        *_features(datapath),
        *_counters(datapath),
        *_problems(datapath),
    ]
    return Group(*parts)


def _devices(datapath: DatapathStatus) -> RenderableType:
    if not datapath.devices:
        return Text("no devices attached: no packet is marked or counted", style="red")
    names = render.device_names(datapath.devices)
    made = render.grid("DEVICE HOOK SHAPER SHAPED", figures="SHAPED").table()
    made.add_column("WHY THIS SHAPER", overflow="fold")
    for name, device in zip(names, datapath.devices, strict=True):
        made.add_row(name, device.hook, device.shaper.value, str(device.shaped_flows), device.why)
    return made


def _loads(datapath: DatapathStatus) -> list[RenderableType]:
    """What the devices carry, of those of which something is known."""
    rows = [
        (name, *_load(device))
        for name, device in zip(render.device_names(datapath.devices), datapath.devices, strict=True)
        if (device.speed_bps, device.load_bps, device.backlog_bytes, device.qdisc_drops) != (None,) * 4
    ]
    if not rows:
        return []
    columns = "SPEED LOAD USED BACKLOG PACKETS DROPPED"
    made = render.grid(f"DEVICE {columns}", figures=columns)
    made.rows.extend(rows)
    return [
        Text("\nLoad of the devices: bit/s; bytes and packets that wait; packets dropped", style="bold"),
        made.table(),
    ]


def _load(device: DeviceStatus) -> tuple[str | Text, ...]:
    used = device.load_bps / device.speed_bps if device.speed_bps and device.load_bps is not None else None
    return (
        "-" if device.speed_bps is None else render.bandwidth(device.speed_bps),
        "-" if device.load_bps is None else render.bandwidth(device.load_bps),
        "-" if used is None else render.share(used),
        "-" if device.backlog_bytes is None else render.scaled(device.backlog_bytes),
        "-" if device.backlog_packets is None else render.scaled(device.backlog_packets),
        "-" if device.qdisc_drops is None else render.alarming(str(device.qdisc_drops), "yellow"),
    )


def _features(datapath: DatapathStatus) -> list[RenderableType]:
    if not datapath.features:
        return []
    sheet = _sheet()
    for heading, wanted in (("present", True), ("missing", False)):
        names = sorted(name for name, present in datapath.features.items() if present is wanted)
        sheet.add_row(heading, ", ".join(names) or "none")
    return [Text("\nKernel features", style="bold"), sheet]


def _counters(datapath: DatapathStatus) -> list[RenderableType]:
    happened = {name: number for name, number in sorted(datapath.counters.items()) if number}
    if not happened:
        return []
    sheet = _sheet()
    for name, number in happened.items():
        sheet.add_row(name, str(number))
    return [Text("\nDatapath counters that are not zero", style="bold"), sheet]


def _problems(datapath: DatapathStatus) -> list[RenderableType]:
    if not datapath.problems:
        return []
    return [Text("\nProblems", style="bold red"), *(Text(f"  {problem}") for problem in datapath.problems)]


def _sheet() -> Table:
    sheet = Table(box=None, show_header=False, padding=(0, 0, 0, 2))
    sheet.add_column(no_wrap=True)
    sheet.add_column(overflow="fold")
    return sheet
