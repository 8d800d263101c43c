"""What the policy says of a connection, in plain words: why its packets are marked and limited as they are, or not.

Made of answers of the daemon; nothing is asked here.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from qos2.cli import render
from qos2.errors import DeniedByPolicy
from qos2.model import FlowStats
from qos2.wire.calls import flow_stats
from qos2.wire.protocol import FlowDetails, PolicyDecision, RuleDetails, RuleReason

#: So many reasons are told unless all are asked for.
REASONS_TOLD = 12
_SHAPINGS = {
    "shape_only": "what exceeds it waits",
    "shape_and_mark": "what exceeds it waits",
    "use_non_conformant_markings": "what exceeds it is sent at once with DSCP 0",
}
_BUCKETS = {"socket": "for each socket", "host": "for each remote host"}


def place(rule: RuleDetails) -> str:
    """Where it is written."""
    return f"{render.printable(rule.file)}:{rule.line}" if rule.file else ""


def match(rule: RuleDetails) -> str:
    """Its conditions, as `unit asterisk.service; remote_port 443 or 8443`."""
    told = [f"{key} {render.printable(' or '.join(values))}" for key, values in rule.match.items()]
    return "; ".join(told) or "everything"


def act(rule: RuleDetails) -> str:
    """What it does, as `marks voice; at most 2Mbit/s in all, what exceeds it waits`."""
    told = dict(rule.act)
    if "deny" in told:
        return f"refuses applications' requests ({DeniedByPolicy.win32}); packets pass untouched"
    if "exempt" in told:
        return "nothing; no later rule applies"
    parts = []
    if "dscp" in told:
        parts.append(f"marks DSCP {told['dscp']}")
    elif "traffic_type" in told:
        parts.append(f"marks {told['traffic_type']}")
    if "priority" in told:
        parts.append(f"802.1p priority {told['priority']}")
    if "rate" in told:
        parts.append(f"at most {_rate(told)}, {_SHAPINGS.get(told.get('shaping', ''), told.get('shaping', ''))}")
    return "; ".join(parts) or "counts its packets"


def _rate(told: Mapping[str, str]) -> str:
    rate = f"{render.bandwidth(int(told['rate']))}bit/s {_BUCKETS.get(told.get('bucket', ''), 'in all')}"
    return rate + (", a ceiling for applications that ask themselves" if "ceiling" in told else "")


def counters(stats: FlowStats) -> str:
    """As `12 packets, 3.4kB, 5 delayed, 0 dropped`."""
    remarked = f", {stats.non_conformant_packets} remarked" if stats.non_conformant_packets else ""
    return (
        f"{stats.packets} packets, {render.scaled(stats.bytes)}B, {stats.delayed_packets} delayed{remarked}, "
        f"{sum(stats.dropped_packets.values())} dropped"
    )


def use(rule: RuleDetails) -> str:
    """Its flow, what it has carried, and for whom."""
    if rule.flow is None:
        text = "no flow"
    else:
        text = f"flow {render.hex_id(rule.flow)}"
        if rule.stats is not None:
            text += f": {counters(flow_stats(rule.stats))}"
    if rule.used or rule.ready:
        one = "remote host" if rule.act.get("bucket") == "host" else "socket"
        text += f"; {_number(rule.used, one)} with a flow each"
    if rule.applications:
        text += f"; applies to {_number(rule.applications, 'flow')} of applications"
    return text


def _number(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def verdict(decision: PolicyDecision, flows: Sequence[FlowDetails] = (), *, connected: bool = True) -> Iterator[str]:
    """In sentences: who decides about this connection, and what that means for its packets.

    `flows`: those of applications that it is in, as far as the caller may see them. A socket that is not `connected`
    sends to several places.
    """
    rule = decision.rule
    if decision.flows:
        yield from _registered(decision, flows)
        return
    if not connected:
        yield "It is not connected: each place that it sends to is decided by itself."
    if rule is None:
        what = "it" if connected else "all that it may send"
        yield f"No rule matches {what}: such packets keep the DSCP that the program sets, CS0 where it sets none."
        if not decision.reasons:
            yield "There are no rules at all."
        return
    name = f"The rule {render.printable(rule.name)} applies: "
    if "deny" in rule.act:
        yield name + "an application that asks for something is refused, and packets pass untouched: CS0 as a rule."
    elif "exempt" in rule.act:
        yield name + "it exempts this connection from all later rules, so that its packets pass untouched."
    else:
        kept = "" if {"dscp", "traffic_type"} & rule.act.keys() else " It sets no DSCP: that of the program stays."
        yield f"{name}{act(rule)}.{kept}"


def _registered(decision: PolicyDecision, flows: Sequence[FlowDetails]) -> Iterator[str]:
    known = {flow.flow: flow for flow in flows}
    for each in decision.flows:
        flow = known.get(each)
        if flow is None:
            yield f"An application has registered it: it is in flow {render.hex_id(each)}, which decides, not a rule's."
            continue
        owner = render.program(flow.program, flow.pid)
        yield f"{owner} has registered it: it is in flow {render.hex_id(each)}, {granted(flow)}."
        yield under(flow)


def granted(flow: FlowDetails) -> str:
    """What a flow has, as `DSCP 56, at most 2Mbit/s`."""
    mark = "which leaves the DSCP alone" if flow.dscp is None else f"which marks DSCP {flow.dscp}"
    return mark + (f", at most {render.bandwidth(flow.bandwidth)}bit/s" if flow.bandwidth else ", without a rate")


def under(flow: FlowDetails) -> str:
    """Which rule applies to an application's flow, and what that changes of what was asked for."""
    if not flow.rule:
        return "No rule applies to it: it has what its application asks for."
    name = render.printable(flow.rule)
    if flow.denied:
        return f"The rule {name} denies it: it does nothing, and its application's requests are refused."
    changed = []
    if flow.asked_dscp != flow.dscp:
        asked = "no mark" if flow.asked_dscp is None else f"DSCP {flow.asked_dscp}"
        changed.append(f"{asked} became {'no mark' if flow.dscp is None else f'DSCP {flow.dscp}'}")
    if flow.asked_bandwidth != flow.bandwidth:
        asked = f"{render.bandwidth(flow.asked_bandwidth)}bit/s" if flow.asked_bandwidth else "no rate"
        changed.append(f"{asked} became {render.bandwidth(flow.bandwidth)}bit/s")
    if not changed:
        return f"The rule {name} applies to it, and changes nothing of what its application asks for."
    return f"The rule {name} applies to it: {', and '.join(changed)}."


def way(decision: PolicyDecision) -> str:
    """By which device packets leave, and whether that matters."""
    if decision.attached:
        return f"Its packets leave by {render.printable(decision.device)}, where they are seen."
    if not decision.device and not decision.why:
        return "By which device its packets leave depends on where they go."
    out = f"leave by {render.printable(decision.device)} unseen" if decision.device else "are not seen when they leave"
    why = f": {render.printable(decision.why)}" if decision.why else ""
    return f"Its packets {out}{why}. Whatever the rules say, they are not marked."


def sheet(
    decision: PolicyDecision,
    title: str = "",
    flows: Sequence[FlowDetails] = (),
    notes: Sequence[str] = (),
    *,
    connected: bool = True,
    every: bool = False,
) -> Table:
    """Two columns: what it is about, and sentences. `every` reason, or those that people need."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    if title:
        made.add_row("socket", title)
    if decision.connection:
        facts = (f"{key} {render.printable(value)}" for key, value in decision.connection.items())
        made.add_row("known", ", ".join(facts))
    for number, sentence in enumerate((*verdict(decision, flows, connected=connected), *notes)):
        made.add_row("" if number else "verdict", sentence)
    rule = decision.rule
    if rule is not None:
        where = place(rule)
        made.add_row("rule", f"{render.printable(rule.name)}{f' ({where})' if where else ''}: {use(rule)}")
        for each in rule.missing:
            made.add_row("", f"Not there at the moment: {render.printable(each)}.")
    if decision.connection:
        made.add_row("device", way(decision))
    for number, line in enumerate(_reasons(decision.reasons, every=every)):
        made.add_row("" if number else "rules", line)
    return made


def _reasons(reasons: Sequence[RuleReason], *, every: bool) -> Iterator[str]:
    """The first ones, in which the one that matches always is."""
    told = reasons if every else reasons[:REASONS_TOLD]
    met = next((each for each in reasons if each.verdict == "matches"), None)
    for each in told:
        yield _reason(each)
    if met is not None and met not in told:
        yield f"... {_reason(met)}"
    if len(told) < len(reasons):
        yield f"{len(reasons)} rules in all; --all tells each"


def _reason(reason: RuleReason) -> str:
    return f"{render.printable(reason.rule)}: {render.printable(reason.text)}"


def document(decision: PolicyDecision, *, connected: bool = True) -> dict[str, Any]:
    """The JSON form."""
    return {
        "connection": dict(decision.connection),
        "rule": None if decision.rule is None else rule_document(decision.rule),
        "flows": [render.hex_id(flow) for flow in decision.flows],
        "device": decision.device or None,
        "attached": decision.attached,
        "why_not_attached": decision.why or None,
        "verdict": list(verdict(decision, connected=connected)),
        "reasons": [
            {"rule": each.rule, "verdict": each.verdict, "condition": each.condition or None, "text": each.text}
            for each in decision.reasons
        ],
    }


def rule_document(rule: RuleDetails) -> dict[str, Any]:
    """One rule; `stats` None where the caller may not know them."""
    return {
        "name": rule.name,
        "precedence": rule.precedence,
        "file": rule.file or None,
        "line": rule.line or None,
        "match": rule.match,
        "act": rule.act,
        "flow": None if rule.flow is None else render.hex_id(rule.flow),
        "stats": None if rule.stats is None else render.stats_document(flow_stats(rule.stats)),
        "flows_in_use": rule.used,
        "flows_ready": rule.ready,
        "flows_of_applications": rule.applications,
        "missing": rule.missing,
    }
