"""`qos2 explain FLOW`: in sentences, why a flow is in its state, what is known of its path, and what changed lately."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from qos2.cli import evidence, render, ruling, statements
from qos2.cli.ports import Client
from qos2.errors import NetworkBusy, Retry
from qos2.model import Cause, DeviceStatus, FlowFundamentals, FlowState, Method, Quality, Shaping
from qos2.wire.protocol import Explanation, FlowDetails

_STATES = {
    FlowState.UNKNOWN: "Nothing is known of how its packets fare.",
    FlowState.UNCONGESTED: "Nothing holds it back on its way.",
    FlowState.RATE_LIMITED: "The network is free; its own contract holds it back.",
    FlowState.CONGESTED: "The network holds it back.",
}
_CAUSES = {
    Cause.QUEUE_DELAY: "Its packets wait in a queue on their way.",
    Cause.LOSS: "Its packets are lost on their way.",
    Cause.CE: "Routers on its way mark its packets as having met congestion.",
    Cause.PROBE: "Probes of its path, which carry its mark, meet congestion.",
}
_SOURCES = {
    Method.TCP: "From TCP itself: round trips, retransmissions and congestion marks as the kernel counts them.",
    Method.REPORT: "From reports of its application.",
    Method.PROBE: "From probes to a reflector at its destination; they carry the flow's mark.",
    Method.TRAIN: "From trains of probes to a reflector at its destination; they carry the flow's mark.",
}
_METHODS = {
    Method.TCP: "on TCP flows to the host",
    Method.REPORT: "by the application's reports",
    Method.PROBE: "with probes",
    Method.TRAIN: "with trains of probes",
}
_QUANTITIES = {"bottleneck": "Bottleneck", "available": "Available", "rtt": "Round trip"}


def execute(qos: Client, arguments: Namespace, out: Console) -> int:
    """Explain one flow."""
    flow, explanation = qos.flow_details(arguments.id), qos.explain(arguments.id)
    if arguments.json:
        render.write_json(out, document(flow, explanation))
    else:
        out.print(sheet(flow, explanation))
    return 0


def document(flow: FlowDetails, explanation: Explanation) -> dict[str, Any]:
    """The JSON form. `admits` is the largest rate in bits/s that would be admitted, None where no number decides."""
    return {
        "id": render.hex_id(flow.flow),
        "program": flow.program,
        "pid": flow.pid,
        "state": explanation.state,
        "cause": explanation.cause,
        "for_s": explanation.for_s,
        "evidence": dict(explanation.evidence),
        "source": explanation.source,
        "signals": dict(explanation.signals),
        "bandwidth": flow.bandwidth or None,
        "rule": flow.rule or None,
        "estimates": None if explanation.estimates is None else asdict(explanation.estimates),
        "admits": admits(flow, explanation.estimates),
        "device": None if explanation.device is None else asdict(explanation.device),
        "changes": [
            {
                "state": change.state,
                "cause": change.cause,
                "ago_s": change.ago_s,
                "evidence": dict(change.evidence),
            }
            for change in explanation.changes
        ],
    }


def sheet(flow: FlowDetails, explanation: Explanation) -> Table:
    """Two columns: what it is about, and sentences."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    owner = render.program(flow.program, flow.pid)
    made.add_row("flow", f"{render.hex_id(flow.flow)} of {owner}: {render.sockets(flow)}")
    made.add_row(
        "state", render.state_text(explanation.state, explanation.cause) + f" for {render.duration(explanation.for_s)}"
    )
    made.add_row("why", _why(explanation))
    if flow.rule:
        made.add_row("rule", ruling.under(flow))
    made.add_row("contract", _contract(flow, explanation))
    made.add_row("signals", _signals(flow, explanation))
    if explanation.device is not None:
        made.add_row("device", _device(explanation.device))
    for number, sentence in enumerate(_path(flow, explanation.estimates)):
        made.add_row("" if number else "path", sentence)
    made.add_row("admission", _admission(flow, explanation.estimates))
    for number, change in enumerate(explanation.changes):
        line = Text(f"{render.duration(change.ago_s)} ago: ") + render.state_text(change.state, change.cause)
        numbers = evidence.phrase(change.evidence)
        made.add_row("" if number else "changes", line + (f"; {numbers}" if numbers else ""))
    return made


def admits(flow: FlowDetails, estimates: FlowFundamentals | None) -> int | None:
    """The largest rate that admission would grant this flow now; None where no measurement limits it."""
    if not flow.adaptive or estimates is None or estimates.available is None:
        return None
    return flow.bandwidth + estimates.available


def _why(explanation: Explanation) -> str:
    reason = _STATES[explanation.state]
    if explanation.cause in _CAUSES:
        reason = _CAUSES[explanation.cause]
    numbers = evidence.phrase(explanation.evidence)
    if numbers:
        reason += f" When that was found: {numbers}."
    if explanation.device is not None and waits_here(explanation, explanation.device):
        reason += f" Most of that wait is on this host, in the queue of {render.printable(explanation.device.name)}."
    return reason


def waits_here(explanation: Explanation, device: DeviceStatus) -> bool:
    """Whether a flow waits in queues, at least half of its queue delay in that of its own device.

    Not where contracts hold packets back at that device: its backlog is theirs then, whose delay is not congestion.
    """
    if explanation.cause not in (Cause.QUEUE_DELAY, Cause.PROBE) or device.shaped_flows:
        return False
    queue_delay_us = explanation.signals.get("queue_delay_us", 0.0)
    return 0.0 < queue_delay_us / 2 <= (device.wait_us or 0.0)


def _device(device: DeviceStatus) -> str:
    text = f"{render.printable(device.name)}. "
    if device.load_bps is not None:
        of = "" if device.speed_bps is None else f" of {render.bandwidth(device.speed_bps)}bit/s"
        text += f"It sends {render.bandwidth(device.load_bps)}bit/s{of}. "
    if device.backlog_packets:
        wait = "" if device.wait_us is None else f", {render.milliseconds(device.wait_us)} at that load"
        text += (
            f"In its queue wait {device.backlog_packets} packets, {render.scaled(device.backlog_bytes or 0)}B{wait}. "
        )
    if device.qdisc_drops:
        text += f"That queue has dropped {device.qdisc_drops} packets of whoever sent them."
    return text.rstrip()


def _contract(flow: FlowDetails, explanation: Explanation) -> str:
    if not flow.bandwidth:
        return "None: nothing on this host holds it back."
    stats = render.stats_of(flow)
    text = f"{render.bandwidth(flow.bandwidth)}bit/s at IP level. "
    if flow.shaping == Shaping.USE_NON_CONFORMANT_MARKINGS:
        text += (
            f"What exceeds it is sent at once, marked down: {stats.non_conformant_packets} of {stats.packets} packets."
        )
    else:
        mean_ms = stats.delay_ns / stats.delayed_packets / 1e6 if stats.delayed_packets else 0.0
        text += (
            f"What exceeds it waits on this host: {stats.delayed_packets} of {stats.packets} packets, "
            f"by {mean_ms:.1f} ms on average."
        )
    dropped = sum(stats.dropped_packets.values())
    if dropped:
        text += f" It dropped {dropped} packets."
    own_delay_us = explanation.signals.get("own_delay_us", 0.0)
    if own_delay_us:
        text += f" Now it delays by {render.milliseconds(own_delay_us)}."
    return text


def _signals(flow: FlowDetails, explanation: Explanation) -> str:
    if explanation.source is None:
        return _no_signals(flow)
    source = _SOURCES[explanation.source]
    numbers = evidence.phrase(explanation.signals)
    return f"{source} Now: {numbers}." if numbers else source


def _no_signals(flow: FlowDetails) -> str:
    """Why there are none, and what helps."""
    if flow.whole_program or len(flow.members) > 1:
        return "None: of several sockets no signal can be told apart. Give each socket a flow of its own."
    if any(member.startswith("tcp") for member in flow.members):
        return "None yet: TCP tells as soon as it sends data and the other end acknowledges it."
    text = "None: nothing comes back through its socket. Let its application report what it knows (`Flow.report`)"
    if flow.adaptive:
        text += ", or run `qos2 reflector` at its destination, which is probed while somebody waits for a condition"
    return text + "."


def _path(flow: FlowDetails, estimates: FlowFundamentals | None) -> Iterator[str]:
    if not flow.adaptive:
        yield "Not estimated: the flow is not adaptive."
    elif estimates is None or not estimates.statements:
        yield "Nothing is known of it yet, or it cannot be learnt about."
    else:
        for quantity, title in _QUANTITIES.items():
            yield f"{title}: {_statement(quantity, estimates)}."


def _statement(quantity: str, estimates: FlowFundamentals) -> str:
    statement = estimates.statements.get(quantity)
    if statement is None:
        return "unknown"
    value = statements.QUANTITIES[quantity](statement.value)
    known = f"at least {value}, a lower bound" if statement.quality == Quality.LOWER_BOUND else f"{value}, measured"
    return f"{known} {_METHODS[statement.method]}, {statements.age(statement)} ago"


def _admission(flow: FlowDetails, estimates: FlowFundamentals | None) -> str:
    if not flow.adaptive:
        return "Its rates are not compared with the path: the flow is not adaptive."
    most = admits(flow, estimates)
    if most is None:
        return (
            f"A higher rate is admitted where the path cannot be measured, and refused for the moment ({Retry.code}, "
            f"{Retry.win32}) while it is being measured. A lower one is always admitted."
        )
    held = f"the {render.bandwidth(flow.bandwidth)}bit/s that it holds and " if flow.bandwidth else ""
    refusal = f"({NetworkBusy.code}, {NetworkBusy.win32})"
    return (
        f"Up to {render.bandwidth(most)}bit/s: {held}what is available. More is refused {refusal}, and what it holds "
        "stays in force."
    )
