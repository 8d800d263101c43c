"""The bars of `qos2 top`: what links carry, and the shares that classes and rules of the policy have of it."""

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from qos2.cli import columns, render
from qos2.cli.snapshot import Link, Snapshot, TrafficClass
from qos2.model import FlowState

_BAR_COLUMNS = 10
_WIDEST_BAR = 60
#: Of links and classes, behind the bar, with the gaps before them.
_FIGURES = 44
#: From this width on there is room for the network namespaces of devices.
_WIDE_COLUMNS = 110


def _name_columns(out: Console) -> int:
    return 26 if out.width >= _WIDE_COLUMNS else 16


def _bar_columns(out: Console) -> int:
    return min(max(out.width - _name_columns(out) - _FIGURES - 1, _BAR_COLUMNS), _WIDEST_BAR)


def _barred(
    name: str | Text, bar: str | Text, figures: Sequence[str | Text], widths: Sequence[int], out: Console
) -> Text:
    """A line of a link or a class: its name, its bar, and the figures of it to the right."""
    first = [(name, _name_columns(out), False), (bar, _bar_columns(out), False)]
    return columns.line([*first, *((figure, width, True) for figure, width in zip(figures, widths, strict=True))])


def _head(names: str, widths: Sequence[int], out: Console) -> Text:
    name, bar, *figures = names.split()
    head = _barred(name, bar, figures, widths, out)
    head.stylize("bold")
    return head


_LINK_WIDTHS = (6, 10, 8, 8, 6)


def links(snapshot: Snapshot, out: Console, most: int) -> list[Text]:
    """A line each; of more than `most` those that have been the busiest."""
    if not snapshot.links:
        return [
            columns.one_line(Text("No device attached: nothing is marked or counted. See `qos2 status`.", "bold red"))
        ]
    shown = list(snapshot.links)
    if len(shown) > most:
        shown.sort(key=lambda link: -(link.peak_bps or 0.0))
    lines = [_head("LINK LOAD BIT/s SPEED USED QUEUE SHAPER", _LINK_WIDTHS, out)]
    lines += [_link(link, out) for link in shown[:most]]
    if len(shown) > most:
        lines[-1] = columns.one_line(Text(f"and {len(shown) - most + 1} more: qos2 status", "dim"))
    return lines


def _link(link: Link, out: Console) -> Text:
    device, width = link.device, _bar_columns(out)
    if device.load_bps is None:
        bar: Text | str = ""
    elif link.used is not None:
        bar = render.bar(link.used, width, "red" if link.used > 0.9 else "yellow" if link.used > 0.7 else "green", out)
    else:
        bar = render.bar(device.load_bps / link.peak_bps if link.peak_bps else 0.0, width, "cyan", out)
    speed = "-"
    if device.speed_bps:
        speed = render.bandwidth(device.speed_bps)
    elif link.peak_bps:
        speed = f"peak {render.bandwidth(link.peak_bps)}"
    figures = (
        "-" if device.load_bps is None else render.bandwidth(device.load_bps),
        speed,
        "-" if link.used is None else render.share(link.used),
        "-" if device.wait_us is None else render.milliseconds(device.wait_us),
        device.shaper.value,
    )
    return _barred(link.name, bar, figures, _LINK_WIDTHS, out)


_CLASS_WIDTHS = (6, 6, 6, 9, 12)


def classes(snapshot: Snapshot, out: Console) -> list[Text]:
    """A line each, and one for what is in none."""
    classes, rest = snapshot.classes(), snapshot.rest_bits
    if not classes and not snapshot.rules:
        return []
    total = _total(snapshot)
    lines = [_head("CLASS SHARE BIT/s % FLOWS CONGESTED RATE_LIMITED", _CLASS_WIDTHS, out)]
    lines += [_class(each, total, snapshot, out) for each in classes]
    if snapshot.rules:
        bits = sum(rule.rates.bits for rule in snapshot.rules) if snapshot.interval_s else None
        lines.append(_share(("by rules", ""), bits, total, "magenta", ("", "", ""), out))
    if rest is not None:
        name = "in no flow" if snapshot.privileged else "others"
        lines.append(_share((name, "dim"), rest, total, "bright_black", ("", "", ""), out))
    return lines


def _total(snapshot: Snapshot) -> float:
    """Bits/s of everything that is sent, as far as it is known."""
    return snapshot.bits + sum(rule.rates.bits for rule in snapshot.rules) + (snapshot.rest_bits or 0.0)


def _class(each: TrafficClass, total: float, snapshot: Snapshot, out: Console) -> Text:
    counts = (
        str(each.flows),
        render.alarming(str(each.states[FlowState.CONGESTED])),
        render.alarming(str(each.states[FlowState.RATE_LIMITED]), "yellow"),
    )
    bits = each.bits if snapshot.interval_s else None
    return _share((render.type_label(each.traffic_type), ""), bits, total, "blue", counts, out)


def _share(
    name: tuple[str, str], bits: float | None, total: float, style: str, counts: tuple[str | Text, ...], out: Console
) -> Text:
    share = bits / total if bits is not None and total else 0.0
    figures = (
        "-" if bits is None else render.bandwidth(bits),
        "-" if bits is None else _percent(share),
        *counts,
    )
    return _barred(Text(*name), render.bar(share, _bar_columns(out), style, out), figures, _CLASS_WIDTHS, out)


_RULE_WIDTHS = (6, 6, 8, 5, 5, 5)


def rules(snapshot: Snapshot, out: Console, most: int) -> list[Text]:
    """A line each, the busiest first: what they do with packets of programs that have asked for nothing."""
    if not snapshot.rules:
        return []
    shown = sorted(snapshot.rules, key=lambda rule: -rule.rates.bits)
    lines = [_head("RULE SHARE BIT/s % CONTRACT HELD RMRK DROP", _RULE_WIDTHS, out)]
    total = _total(snapshot)
    for rule in shown[:most]:
        share = rule.rates.bits / total if total else 0.0
        figures = (
            render.bandwidth(rule.rates.bits) if snapshot.interval_s else "-",
            _percent(share) if snapshot.interval_s else "-",
            "-" if (rate := rule.details.act.get("rate")) is None else render.bandwidth(float(rate)),
            render.scaled(rule.rates.delayed),
            render.alarming(render.scaled(rule.rates.remarked), "yellow"),
            render.alarming(render.scaled(rule.rates.dropped)),
        )
        bar = render.bar(share, _bar_columns(out), "magenta", out)
        lines.append(_barred(render.printable(rule.details.name), bar, figures, _RULE_WIDTHS, out))
    if len(shown) > most:
        lines[-1] = columns.one_line(Text(f"and {len(shown) - most + 1} more: qos2 policy list", "dim"))
    return lines


def _percent(share: float) -> str:
    return "<1" if 0 < share < 0.005 else f"{share * 100:.0f}"
