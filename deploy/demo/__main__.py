"""The live demonstration: `python -m demo [--json FILE] [--seconds 20]` (needs root; touches no real network).

The real daemon marks and limits three senders in a lab, a fourth is not registered, and the peer at the far
end says what it saw. Exit status: 0 when the wire agrees with every contract, 1 when it does not, 2 when the
demonstration could not run, 130 after Ctrl-C. Whatever it made is removed in all cases.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.live import Live

import qos2
from demo import table
from demo.capture import FlowKey, LiveCapture
from demo.lab import Lab, LabError
from demo.packets import TCP, UDP, CaptureError
from demo.processes import Daemon, Sender, Sink
from demo.senders import ROLES
from demo.verdict import SETTLE_S, Evidence, Finding, Part, judge

_IPV4_UDP_HEADERS = 28
_MIN_SECONDS = 8.0
_ARRIVAL_S = 2.0
_S = 1_000_000_000

PARTS = (
    Part("voice", UDP, 5004, dscp=56, traffic_type="voice", packets_per_second=ROLES["voice"].per_second),
    Part("video", TCP, 7001, dscp=40, traffic_type="audio_video", contract=8_000_000, changed=3_000_000),
    Part("backup", TCP, 7002, dscp=8, traffic_type="background", contract=4_000_000),
    Part("plain", UDP, 5005, dscp=0, offered=ROLES["plain"].ip_rate(_IPV4_UDP_HEADERS)),
)

INTRODUCTION = """\
Four programs send from a namespace over a router to a peer; qos2d rules three.
"DSCP seen" and "at peer" are what the peer captured, not what anybody claims."""


class Show:
    """One run: the cast in the lab, the rows on the screen, and at the end the evidence."""

    def __init__(self, console: Console, stack: ExitStack, seconds: float) -> None:
        self._console = console
        self._seconds = seconds
        self._news = ""
        lab = stack.enter_context(Lab("qos2-demo"))
        console.print("Starting qos2d: it compiles and loads the datapath ...", highlight=False)
        # At the lab's tiny round trips TCP would hand over 64 KB at once; the setting is documented for just that.
        self._daemon = stack.enter_context(Daemon(lab.app, tcp_tso_rtt_log=0))
        self._qos = stack.enter_context(qos2.Handle(self._daemon.socket))
        ports = {kind: [part.port for part in PARTS if part.protocol == kind] for kind in (TCP, UDP)}
        stack.enter_context(Sink(lab.peer, tcp=ports[TCP], udp=ports[UDP]))
        self._capture = stack.enter_context(LiveCapture(lab.peer))
        # Contracts first: the device gets another qdisc with the first of them, and the kernel drops what is
        # just passing through the old one.
        self._senders = {
            part.name: stack.enter_context(
                Sender(lab.app, part.name, lab.peer.ipv4[0], part.port, self._daemon.socket, part.contract)
            )
            for part in sorted(PARTS, key=lambda part: not part.contract)
        }
        self._keys = {part.name: FlowKey(part.protocol, self._senders[part.name].sport, part.port) for part in PARTS}
        self.rows = {part.name: table.Row(part, part.contract) for part in PARTS}

    def run(self) -> dict[str, Evidence]:
        """Play both halves; what the peer captured of each sender."""
        begin = time.monotonic_ns()
        middle = begin + round(self._seconds / 2 * _S)
        end = begin + round(self._seconds * _S)
        live = Live(console=self._console, auto_refresh=False, transient=True) if self._console.is_terminal else None
        with live or ExitStack():
            self._watch(begin, middle, live)
            changing = time.monotonic_ns()
            self._change()
            changed = time.monotonic_ns()
            self._watch(begin, end, live, middle)
        frozen = time.monotonic_ns()
        sent = self._stop_datagrams()
        settle = round(SETTLE_S * _S)
        evidence = {}
        for part in PARTS:
            seen = self._capture.flow(self._keys[part.name])
            spans = ((begin + settle, changing), (changed + settle, frozen))
            counts = sum(sum(first <= time_ns < last for time_ns in seen.times_ns) for first, last in spans)
            evidence[part.name] = Evidence(
                packets=seen.packets,
                dscps=dict(seen.dscps),
                rate_before=seen.rate(*spans[0]),
                rate_after=seen.rate(*spans[1]),
                packet_rate=counts * _S / sum(last - first for first, last in spans),
                sent=sent.get(part.name),
            )
        return evidence

    def lost(self) -> Finding:
        """Whether the capture itself can be trusted."""
        lost = self._capture.lost()
        return Finding(lost == 0, f"the capture lost {lost:,} packets" if lost else "no packet missed")

    def _watch(self, begin: int, until: int, live: Live | None, since: int | None = None) -> None:
        """Show each second from `since` (the begin) until `until`."""
        second = (since or begin) + _S
        while second <= until:
            time.sleep(max(0, second - time.monotonic_ns()) / _S)
            self._measure(second)
            elapsed = (second - begin) / _S
            rows = list(self.rows.values())
            if live is None:
                self._console.print(table.line(rows, elapsed), highlight=False, soft_wrap=True)
            else:
                live.update(table.screen(rows, elapsed, self._seconds, self._news, self._console.width), refresh=True)
            second += _S

    def _measure(self, now_ns: int) -> None:
        details = {flow.flow: flow.stats for flow in self._qos.flows()}
        for name, row in self.rows.items():
            seen = self._capture.flow(self._keys[name])
            row.dscps = dict(seen.dscps)
            row.rates.append(seen.rate(now_ns - _S, now_ns))
            if (flow := self._senders[name].flow) is not None:
                stats = details[flow]
                row.delayed = stats["delayed_packets"]
                row.remarked = stats["non_conformant_packets"]
                row.dropped = sum(stats["dropped_packets"].values())

    def _change(self) -> None:
        for part in PARTS:
            if part.changed:
                self._senders[part.name].set_rate(part.changed)
                self.rows[part.name].contract = part.changed
                self._news = (
                    f"{part.name}'s contract has changed: "
                    f"{part.contract / 1e6:g} -> {part.changed / 1e6:g} Mbit/s, without a new connection"
                )
                if not self._console.is_terminal:
                    self._console.print(self._news, highlight=False)

    def _stop_datagrams(self) -> dict[str, int]:
        """End the UDP senders and wait for their last packets; how many each sent."""
        sent = {part.name: self._senders[part.name].stop() for part in PARTS if part.protocol == UDP}
        deadline = time.monotonic() + _ARRIVAL_S
        while time.monotonic() < deadline and any(
            self._capture.flow(self._keys[name]).packets < count for name, count in sent.items()
        ):
            time.sleep(0.02)
        return sent


def main(argv: list[str] | None = None) -> int:
    """Run the demonstration; its exit status."""
    parser = argparse.ArgumentParser(prog="demo", description="QoS2 for Linux, live, judged by the receiving end.")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to send (default 20)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(argv)
    if options.seconds < _MIN_SECONDS:
        parser.error(f"--seconds must be at least {_MIN_SECONDS:g}, or there is nothing to average over")
    console = Console(highlight=False, soft_wrap=False)
    if os.geteuid() != 0:
        console.print("demo: needs root, for its network namespaces and to load the datapath", style="red")
        return 2
    signal.signal(signal.SIGTERM, _terminated)
    signal.signal(signal.SIGHUP, _terminated)
    console.print(INTRODUCTION)
    try:
        with ExitStack() as stack:
            show = Show(console, stack, options.seconds)
            evidence = show.run()
            findings = {part.name: judge(part, evidence[part.name]) for part in PARTS}
            findings["capture"] = [show.lost()]
            rows = list(show.rows.values())
    except KeyboardInterrupt:
        console.print("Interrupted. Everything was removed.")
        return 130
    except (LabError, CaptureError, qos2.QosError, OSError) as error:
        console.print(f"demo: {error}", style="red", markup=False)
        return 2
    good = all(finding.good for found in findings.values() for finding in found)
    console.print(table.table(rows, console.width))
    console.print(table.verdict(findings))
    console.print(
        "The wire agrees with every contract." if good else "The wire does NOT agree with the contracts.",
        style="bold green" if good else "bold red",
    )
    if options.json:
        document = _document(options.seconds, good, rows, evidence, findings)
        options.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if good else 1


def _document(
    seconds: float,
    good: bool,
    rows: list[table.Row],
    evidence: dict[str, Evidence],
    findings: dict[str, list[Finding]],
) -> dict[str, Any]:
    flows = [
        {
            **asdict(row.part),
            **{f"seen_{key}": value for key, value in asdict(evidence[row.part.name]).items()},
            "seen_rate_per_second": row.rates,
            "delayed": row.delayed,
            "remarked": row.remarked,
            "dropped": row.dropped,
            "findings": [asdict(finding) for finding in findings[row.part.name]],
        }
        for row in rows
    ]
    capture = [asdict(finding) for finding in findings["capture"]]
    return {"good": good, "seconds": seconds, "kernel": platform.release(), "flows": flows, "capture": capture}


def _terminated(number: int, _: object) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
