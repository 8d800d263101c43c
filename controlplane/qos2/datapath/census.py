"""What all flows do together, read in bulk from the arrays of the datapath: no loop over flows, no system call.

Sums by account and type, contracts beside what was achieved under them, and the busiest flows. Pure arithmetic over
the arrays that flowmaps.py maps; a look at 65,536 flows takes one or two milliseconds.
"""

from array import array
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from qos2.core.usage import Contracts
from qos2.model import FlowId, TrafficType

#: As in struct flow_policy: ns_per_byte_20 is in 2**-20 ns.
_BYTES_PER_S_OF_INVERSE = 1e9 * (1 << 20)


class Census:
    """A series of looks at the arrays `policy` and `hot`, about one second apart."""

    def __init__(self) -> None:
        self._ids: NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._bytes: NDArray[np.int64] = np.zeros(0, np.int64)
        self._accounts: NDArray[np.uint16] = np.zeros(0, np.uint16)
        self._rates: NDArray[np.float64] = np.zeros(0)
        self._at_s = 0.0
        self.contracts: Mapping[TrafficType, Contracts] = {}

    def look(
        self, policy: np.ndarray, hot: np.ndarray, type_of_slot: bytearray, account_of_slot: "array[int]", now_s: float
    ) -> None:
        """Read the slots that `policy` and `hot` (of one length) reach; afterwards everything else is about them."""
        count = min(len(policy), len(type_of_slot))
        ids = policy["flow_id"][:count].copy()
        sent = hot["bytes"][:count].astype(np.int64)
        stayed = min(len(self._ids), count)
        grown = np.zeros(count, np.int64)
        same = (ids[:stayed] == self._ids[:stayed]) & (ids[:stayed] != 0)
        grown[:stayed] = np.where(same, sent[:stayed] - self._bytes[:stayed], 0)
        seconds = now_s - self._at_s
        self._rates = grown / seconds if self._at_s and seconds > 0 else np.zeros(count)
        self._ids, self._bytes, self._at_s = ids, sent, now_s
        self._accounts = np.frombuffer(account_of_slot, np.uint16, count=count).copy()
        self.contracts = self._contracts(policy[:count], np.frombuffer(type_of_slot, np.uint8, count=count))

    def sent(self, accounts: int) -> NDArray[np.int64]:
        """Bytes that the living flows of each account below `accounts` have sent."""
        living = self._accounts < accounts
        # As floats: exact up to 9 petabytes of one account.
        sums = np.bincount(self._accounts[living], weights=self._bytes[living], minlength=accounts)
        return sums.astype(np.int64)

    def busiest(self, count: int) -> list[tuple[FlowId, float]]:
        """At most so many flows that sent anything between the last two looks, and bytes/s; the busiest first."""
        active = np.flatnonzero(self._rates > 0)
        if count < len(active):
            active = active[np.argpartition(self._rates[active], -count)[-count:]]
        ordered = active[np.argsort(-self._rates[active], kind="stable")]
        return [(FlowId(int(self._ids[slot])), float(self._rates[slot])) for slot in ordered]

    def _contracts(self, policy: np.ndarray, kinds: NDArray[np.uint8]) -> dict[TrafficType, Contracts]:
        inverse = policy["ns_per_byte_20"]
        agreed = np.flatnonzero((self._ids != 0) & (inverse != 0) & (kinds < len(TrafficType)))
        of, types = kinds[agreed], len(TrafficType)
        flows = np.bincount(of, minlength=types)
        rates = np.bincount(of, weights=_BYTES_PER_S_OF_INVERSE / inverse[agreed], minlength=types)
        achieved = np.bincount(of, weights=self._rates[agreed], minlength=types)
        return {kind: Contracts(int(flows[kind]), float(rates[kind]), float(achieved[kind])) for kind in TrafficType}
