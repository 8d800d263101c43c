"""The daemon, with everything that its detector is given written down: `python -m harness.recorded_daemon FILE ...`.

All arguments after FILE are those of qos2d. FILE gets one line of JSON per flow and step, in the order of the calls:
`[now_s, slot, [SIGNALS ...], [[method, rtt_us, round_trips, sent, lost] ...]]`.
"""

import json
import sys
from pathlib import Path
from typing import TextIO
from unittest import mock

from qos2 import daemon, runtime
from qos2.core.congestion import Detector
from qos2.core.signals import Signals, Slots
from qos2.core.thresholds import Thresholds
from qos2.model import Method


def main() -> int:
    """Run the daemon until it is told to stop; its exit status."""
    with Path(sys.argv.pop(1)).open("w") as journal:

        class Recorded(Detector):
            def __init__(self, thresholds: Thresholds, slots: int) -> None:
                super().__init__(thresholds, slots)
                self._offers: dict[int, list[list[str | int | None]]] = {}

            def offer(
                self,
                slot: int,
                *,
                method: Method,
                rtt_us: int | None = None,
                round_trips: int = 1,
                sent: int = 0,
                lost: int = 0,
            ) -> None:
                self._offers.setdefault(slot, []).append([method.value, rtt_us, round_trips, sent, lost])
                super().offer(slot, method=method, rtt_us=rtt_us, round_trips=round_trips, sent=sent, lost=lost)

            def step(self, now_s: float, slots: Slots, signals: Signals) -> Slots:
                for slot, found in zip(slots.tolist(), signals.tolist(), strict=True):
                    _write(journal, [now_s, slot, found, self._offers.pop(slot, [])])
                return super().step(now_s, slots, signals)

        with mock.patch.object(runtime, "Detector", Recorded):  # the same judge, with somebody who takes notes
            return daemon.main()


def _write(journal: TextIO, line: object) -> None:
    journal.write(json.dumps(line) + "\n")
    journal.flush()


if __name__ == "__main__":
    sys.exit(main())
