"""One window of many flows: what their counters say since the last look, and what was offered for it.

Part of core/congestion.py, which remembers and judges it.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qos2.core.signals import Signals
from qos2.model import Method

#: What the own contract dropped is sent again, or reported missing, later: it is expected so far, per window.
OWN_DROPS_KEPT = 0.998
#: With up to so many segments a window a delayed acknowledgement is no small part of TCP's round trip.
THIN_SEGMENTS = 10

#: Where signals come from, by number; 0 is nowhere.
METHODS: tuple[Method | None, ...] = (None, *Method)
TCP, PROBE, REPORT = (METHODS.index(each) for each in (Method.TCP, Method.PROBE, Method.REPORT))

Flags = NDArray[np.bool_]
#: What is remembered of flows, by name: one entry per slot, or per flow of a step, or those of one flow.
Memory = dict[str, NDArray[Any]]


class Window:
    """What the counters of one window say, and what was offered for it; one entry per flow each."""

    def __init__(self, memory: Memory, signals: Signals) -> None:
        before = memory["before"]

        def grown(name: str) -> NDArray[np.int64]:
            return signals[name].astype(np.int64) - before[name].astype(np.int64)

        delivered, retransmitted, ce = grown("delivered"), grown("retransmits"), grown("delivered_ce")
        #: Counters that go back are those of another socket, or of the slot's first look.
        self.restarted: Flags = (delivered < 0) | (retransmitted < 0) | (ce < 0) | (grown("bytes") < 0)
        known = memory["seen"] & ~self.restarted
        dropped, delayed = np.where(known, grown("dropped_packets"), 0), np.where(known, grown("delayed_packets"), 0)
        self.held: Flags = (dropped > 0) | (delayed > 0)
        delay_us = np.where(known, grown("delay_ns"), 0) / 1e3
        self.own_us = delay_us / np.maximum(delayed, 1)

        tcp = known & ((delivered > 0) | (retransmitted > 0)) & (signals["srtt_us"] > 0)
        offered_us = memory["offered_rtt_us"]
        # A single round trip wavers more than TCP's smoothed one: a queue shows in two of them.
        alone = (memory["offered_round_trips"] < 2) & (memory["offered_before_us"] > 0)
        calm_us = np.where(alone, np.minimum(offered_us, memory["offered_before_us"]), offered_us)
        memory["offered_before_us"] = np.where(offered_us > 0, offered_us, memory["offered_before_us"])
        self.rtt_us = np.where(tcp, signals["srtt_us"], calm_us).astype(np.float64)
        self.least_us = np.where(tcp, signals["min_rtt_us"], 0).astype(np.float64)
        self.has_rtt: Flags = self.rtt_us > 0
        #: Segments of TCP where there were few, else 0.
        self.thin = np.where(tcp & (delivered <= THIN_SEGMENTS), np.maximum(delivered, 1), 0)
        self.source = np.where(tcp, TCP, memory["offered_method"])
        self.lost = self._lost(memory, np.where(tcp, retransmitted, memory["offered_lost"]), dropped)
        self.ce = np.where(tcp, ce, 0)
        arrived = np.where(tcp, delivered, memory["offered_sent"].astype(np.int64) - memory["offered_lost"])
        self.heard = arrived + self.lost
        self.told: Flags = tcp | (memory["offered_rtt_us"] > 0) | (memory["offered_sent"] > 0)

    def _lost(self, memory: Memory, missing: NDArray[np.int64], dropped: NDArray[np.int64]) -> NDArray[np.int64]:
        """Of what was sent again or is said to be missing, that which the own contract did not drop."""
        if not (dropped.any() or memory["own_dropped"].any() or memory["own_rest"].any()):
            return missing
        lately = memory["own_dropped"] * OWN_DROPS_KEPT + dropped
        due = lately + memory["own_rest"]
        own = np.where(self.source == PROBE, 0, np.minimum(missing, due))  # probes have no contract
        # Whoever reports does not know of the latest yet; but what nobody misses is not expected for ever.
        reported = (self.source == REPORT) & (memory["offered_sent"] > 0)
        rest = np.where(reported, np.minimum(due - own, lately), np.maximum(memory["own_rest"] - own, 0))
        kept = np.where(reported, 0, due - own - rest)
        memory["own_dropped"] = np.where(kept < 0.01, 0, kept)  # of a packet
        memory["own_rest"] = rest
        lost: NDArray[np.int64] = np.rint(missing - own).astype(np.int64)
        return lost
