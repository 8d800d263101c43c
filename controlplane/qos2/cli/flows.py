"""`qos2 flows`: one line for each flow that the caller may see."""

from argparse import Namespace
from collections.abc import Sequence

from rich.console import Console

from qos2.cli import render
from qos2.cli.ports import Client
from qos2.cli.render import Grid
from qos2.wire.protocol import FlowDetails


def execute(qos: Client, arguments: Namespace, out: Console) -> int:
    """List the flows. Everybody's for root and the group `qos2`, otherwise the caller's own."""
    flows = qos.flows()
    if arguments.json:
        render.write_json(out, {"flows": [render.flow_document(flow) for flow in flows]})
    elif not flows:
        out.print("no flows")
    else:
        flow_grid(flows, out.width).print(out)
    return 0


def flow_grid(flows: Sequence[FlowDetails], width: int) -> Grid:
    """All that matters of each flow, abbreviated where the terminal is narrow."""
    if width >= render.WIDE_COLUMNS:
        return _wide(flows)
    return render.fitted(width, lambda program_width: _narrow(flows, program_width))


def _narrow(flows: Sequence[FlowDetails], program_width: int) -> Grid:
    made = render.grid("ID TYPE STAT DSCP CONTRACT N PROGRAM BYTE HELD RMRK DROP", figures="DSCP N BYTE HELD RMRK DROP")
    for flow in flows:
        stats = render.stats_of(flow)
        contract = f"{render.bandwidth(flow.bandwidth)} {render.shaping_label(flow.shaping, short=True)}"
        made.rows.append(
            (
                render.hex_id(flow.flow),
                render.short_type(flow.traffic_type),
                render.short_state(flow.state),
                render.marking(flow),
                contract if flow.bandwidth else "-",
                _members(flow),
                render.program(flow.program, flow.pid, program_width),
                render.scaled(stats.bytes),
                render.scaled(stats.delayed_packets),
                render.alarming(render.scaled(stats.non_conformant_packets), "yellow"),
                render.alarming(render.scaled(sum(stats.dropped_packets.values()))),
            )
        )
    return made


def _wide(flows: Sequence[FlowDetails]) -> Grid:
    made = render.grid(
        "ID TYPE STATE DSCP CONTRACT SHAPING SOCKETS PROGRAM PACKETS BYTES DELAYED REMARKED DROPPED",
        figures="DSCP CONTRACT SOCKETS PACKETS BYTES DELAYED REMARKED DROPPED",
    )
    for flow in flows:
        stats = render.stats_of(flow)
        made.rows.append(
            (
                render.hex_id(flow.flow),
                render.type_label(flow.traffic_type),
                render.state_text(flow.state, None),
                render.marking(flow),
                f"{render.bandwidth(flow.bandwidth)}bit/s" if flow.bandwidth else "-",
                render.shaping_label(flow.shaping) if flow.bandwidth else "",
                _members(flow),
                render.program(flow.program, flow.pid),
                f"{stats.packets}",
                f"{stats.bytes}",
                f"{stats.delayed_packets}",
                render.alarming(f"{stats.non_conformant_packets}", "yellow"),
                render.alarming(f"{sum(stats.dropped_packets.values())}"),
            )
        )
    return made


def _members(flow: FlowDetails) -> str:
    return "all" if flow.whole_program else render.scaled(render.socket_count(flow))
