"""Probes as values: what to send to a reflector, and what came of it. Sent by paths/prober.py."""

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

#: No train is longer.
MAX_TRAIN = 20


class ProbeKind(StrEnum):
    SINGLE = "single"  #: one packet, or two: round trip time, loss, and whether there is a reflector at all
    BURST = "burst"  #: back to back: the bottleneck spreads them out
    PACED = "paced"  #: at `rate`: what else the bottleneck carries spreads them out further


@dataclass(frozen=True, slots=True)
class ProbePlan:
    """`count` packets of `ip_bytes` each, headers included, in both directions."""

    kind: ProbeKind
    count: int
    ip_bytes: int
    rate: int = 0  #: bits/s at IP level, of PACED and of two SINGLE ones; 0: back to back

    @property
    def bytes(self) -> int:
        """What it sends in all, at IP level."""
        return self.count * self.ip_bytes


class ProbePacket(NamedTuple):
    """The four times of a probe that came back (RFC 8762), nanoseconds. The reflector's clock is not the sender's."""

    sent_ns: int  #: the sender's clock
    reached_ns: int  #: the reflector's, at reception
    returned_ns: int  #: the reflector's, at sending
    received_ns: int  #: the sender's


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """`packets` in the order of sending, None for each that did not come back in time."""

    plan: ProbePlan
    dscp: int
    begun_s: float  #: the daemon's clock
    ended_s: float
    packets: tuple[ProbePacket | None, ...]

    @property
    def answered(self) -> int:
        return sum(packet is not None for packet in self.packets)
