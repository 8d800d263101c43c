"""`qos2 flow ID`: everything about one flow."""

from argparse import ArgumentTypeError, Namespace

from rich.console import Console
from rich.table import Table

from qos2.cli import evidence, render, ruling
from qos2.cli.ports import Client
from qos2.model import Shaping
from qos2.wire.protocol import FlowDetails


def flow_id(text: str) -> int:
    """A flow id as `0x00100001` or in decimal. Raises ArgumentTypeError."""
    try:
        value = int(text, 16) if text.lower().startswith("0x") else int(text)
    except ValueError:
        value = 0
    if not 0 < value < 1 << 32:
        raise ArgumentTypeError(f"{text!r} is no flow id such as 0x00100001 (see `qos2 flows`)")
    return value


def execute(qos: Client, arguments: Namespace, out: Console) -> int:
    """Show one flow."""
    flow = qos.flow_details(arguments.id)
    if arguments.json:
        render.write_json(out, render.flow_document(flow))
    else:
        out.print(flow_sheet(flow))
    return 0


def flow_sheet(flow: FlowDetails) -> Table:
    """Two columns: what, and its value in words."""
    sheet = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    sheet.add_column(style="bold", no_wrap=True)
    sheet.add_column(overflow="fold")
    sheet.add_row("flow", f"{render.hex_id(flow.flow)} ({flow.flow})")
    sheet.add_row("type", render.type_label(flow.traffic_type) + (", adaptive" if flow.adaptive else ""))
    owner = f"{render.program(flow.program, flow.pid)}, uid {flow.uid}"
    sheet.add_row("owner", f"{owner}, {render.printable(flow.unit)}" if flow.unit else owner)
    sheet.add_row("age", render.duration(flow.age_s))
    sheet.add_row("state", render.state_text(flow.state, flow.cause) + f" for {render.duration(flow.state_s)}")
    if flow.evidence:
        sheet.add_row("", evidence.phrase(flow.evidence))
    sheet.add_row("DSCP", _marking(flow))
    sheet.add_row("contract", _contract(flow))
    if flow.rule:
        sheet.add_row("rule", ruling.under(flow))
    for device, how in sorted(flow.shapers.items()):
        sheet.add_row(f"on {device}", how)
    if flow.whole_program:
        sheet.add_row("sockets", "all of the program and its children, from when each is made")
    for number, member in enumerate(flow.members):
        sheet.add_row("sockets" if number == 0 and not flow.whole_program else "", member)
    _add_counters(sheet, flow)
    return sheet


def _marking(flow: FlowDetails) -> str:
    if flow.dscp is None:
        return "left as the application sets it"
    why = "set by hand" if flow.dscp_override else f"of {render.type_label(flow.traffic_type)}"
    if flow.rule and flow.dscp != flow.asked_dscp:
        why = f"of the rule {render.printable(flow.rule)}"
    return f"{flow.dscp} ({why})"


def _contract(flow: FlowDetails) -> str:
    if not flow.bandwidth:
        return "none"
    exact = f"{flow.bandwidth} bit/s ({render.bandwidth(flow.bandwidth)}bit/s) at IP level"
    over = {
        Shaping.SHAPE_ONLY: "excess is delayed, nothing is marked",
        Shaping.SHAPE_AND_MARK: "excess is delayed",
        Shaping.USE_NON_CONFORMANT_MARKINGS: f"excess is sent at once with DSCP {flow.non_conformant_dscp}",
    }
    known = {int(kind): text for kind, text in over.items()}
    return f"{exact}, {known.get(flow.shaping if flow.shaping is not None else -1, render.shaping_label(flow.shaping))}"


def _add_counters(sheet: Table, flow: FlowDetails) -> None:
    stats = render.stats_of(flow)
    sheet.add_row("sent", f"{stats.packets} packets, {stats.bytes} bytes")
    sheet.add_row("remarked", f"{stats.non_conformant_packets} packets, {stats.non_conformant_bytes} bytes")
    mean_ms = stats.delay_ns / stats.delayed_packets / 1e6 if stats.delayed_packets else 0.0
    sheet.add_row("delayed", f"{stats.delayed_packets} packets, by {mean_ms:.3f} ms on average")
    lost = sum(stats.dropped_packets.values())
    sheet.add_row("dropped", f"{lost} packets, {sum(stats.dropped_bytes.values())} bytes")
    for reason, number in sorted(stats.dropped_packets.items()):
        if number:
            sheet.add_row(f"  {reason}", f"{number} packets, {stats.dropped_bytes.get(reason, 0)} bytes")
    if stats.srtt_us or stats.delivered:
        least = f", least {stats.min_rtt_us / 1e3:.3f} ms" if stats.min_rtt_us else ""
        sheet.add_row("TCP", f"round trip {stats.srtt_us / 1e3:.3f} ms{least}")
        sheet.add_row(
            "",
            f"{stats.delivered} segments delivered, {stats.delivered_ce} of them congestion-marked, "
            f"{stats.retransmits} retransmitted, {stats.lost} now thought lost",
        )
