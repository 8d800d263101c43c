"""The verdict: does what the peer captured agree with what was asked for? Pure, so that it is tested itself.

A Part says what one sender of the demonstration promises; `judge` compares it with what was seen of it and
gives one Finding per claim. Rates are bits per second at IP level.
"""

from collections.abc import Mapping
from dataclasses import dataclass

#: How far a rate may be from its contract, and a packet rate from its period.
RATE_TOLERANCE = 0.03
PACKET_TOLERANCE = 0.05

#: What is left out after the start and after a change of contract, in seconds.
SETTLE_S = 1.0


@dataclass(frozen=True, slots=True)
class Part:
    """One sender: what it asks for, and so what the peer must see."""

    name: str  #: also its role in senders.py
    protocol: int
    port: int
    dscp: int  #: 0 for one that asks for nothing
    traffic_type: str = ""  #: empty: not registered
    contract: int = 0  #: bits/s; 0: none
    changed: int = 0  #: contract of the second half; 0: as before
    offered: int = 0  #: bits/s that it sends without a contract
    packets_per_second: int = 0  #: 0: not paced

    @property
    def contracts(self) -> tuple[int, int]:
        """Before and after the change."""
        return self.contract, self.changed or self.contract


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was captured of one sender over the whole run."""

    packets: int
    dscps: Mapping[int, int]  #: packets by DSCP
    rate_before: float  #: bits/s, from SETTLE_S after the start until the change
    rate_after: float  #: from SETTLE_S after the change until the end
    packet_rate: float  #: packets/s over both together
    sent: int | None = None  #: packets that a datagram sender says it sent


@dataclass(frozen=True, slots=True)
class Finding:
    """One claim, whether it held, and the figures behind it."""

    good: bool
    text: str


def judge(part: Part, seen: Evidence) -> list[Finding]:
    """One finding for each promise of `part`."""
    findings = [_marks(part, seen)]
    before, after = part.contracts
    if before == after and before:
        findings.append(_rate("", seen.rate_before, before))
        findings.append(_rate("after the change", seen.rate_after, after))
    elif before:
        findings.append(_rate("before the change", seen.rate_before, before))
        findings.append(_rate("after it", seen.rate_after, after))
    elif part.offered:
        findings.append(_rate("", (seen.rate_before + seen.rate_after) / 2, part.offered, "offered"))
    if part.packets_per_second:
        error = abs(seen.packet_rate / part.packets_per_second - 1)
        findings.append(
            Finding(error <= PACKET_TOLERANCE, f"{seen.packet_rate:.1f} of {part.packets_per_second} packets/s")
        )
    if seen.sent is not None:
        lost = seen.sent - seen.packets
        findings.append(Finding(lost == 0, f"{lost:,} of {seen.sent:,} packets lost" if lost else "none lost"))
    return findings


def _marks(part: Part, seen: Evidence) -> Finding:
    right = seen.dscps.get(part.dscp, 0)
    if right == seen.packets > 0:
        return Finding(True, f"DSCP {part.dscp} on all {seen.packets:,} packets")
    others = ", ".join(f"{count:,} with {dscp}" for dscp, count in sorted(seen.dscps.items()) if dscp != part.dscp)
    return Finding(False, f"DSCP {part.dscp} on {right:,} of {seen.packets:,} packets; {others or 'none arrived'}")


def _rate(when: str, rate: float, contract: int, word: str = "contracted") -> Finding:
    error = rate / contract - 1
    off = f"{error:+.1%}".replace("-0.0%", "+0.0%")
    text = f"{rate / 1e6:.3f} of {contract / 1e6:g} Mbit/s {word}{' ' + when if when else ''} ({off})"
    return Finding(abs(error) <= RATE_TOLERANCE, text)
