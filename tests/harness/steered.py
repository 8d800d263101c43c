"""The real daemon over the real datapath, with paths and conditions that say what a test wants them to say.

Steered is the test's end. The same file is the program that it starts: `python -m harness.steered`, with the
arguments of qos2d. That obeys orders, lines of JSON on its standard input, and answers each with a line on its
standard output once the daemon has done and sent what follows from it; the first line says that it is ready.
"""

import asyncio
import contextlib
import json
import logging
import os
import select
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from demo.lab import LabError, end
from demo.processes import ANSWER_S, START_S, Daemon, environment
from qos2.config import load
from qos2.daemon import arguments
from qos2.datapath.pins import Pins
from qos2.errors import BY_CODE
from qos2.model import Bandwidth, FlowFundamentals
from qos2.paths.fake import FakeConditions, FakePaths
from qos2.runtime import assembled

_TESTS = Path(__file__).resolve().parents[1]


class Steered(Daemon):
    """A daemon as any other, and orders about what it believes of hosts (by address) and flows (by id).

    Until it is told more, every host is on-link and unmeasured, every rate admitted, every condition unknown.
    """

    def start(self) -> None:
        """Start it and wait until it answers. Raises LabError, with the end of its log, where it does not."""
        with open(self.directory / "log", "ab") as log:
            self.process = self._namespace.popen(
                *(sys.executable, "-m", "harness.steered", "--config", str(self.directory / "qos2d.toml")),
                *("--socket", self.socket, "--device", self._namespace.device),
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment() | {"PYTHONPATH": f"{environment()['PYTHONPATH']}:{_TESTS}"},
            )
        try:
            self._answer(START_S)
        except BaseException:
            end(self.process)
            raise

    def set_off_link(self, address: str, off_link: bool = True) -> None:
        """Nothing can be learnt about a host."""
        self._order("set_off_link", address=address, off_link=off_link)

    def set_estimate(
        self, address: str, *, bottleneck: int | None = None, available: int | None = None, rtt_us: int | None = None
    ) -> None:
        """What is known of the way to a host from now on: bits/s and microseconds; without any there is no estimate."""
        self._order("set_estimate", address=address, bottleneck=bottleneck, available=available, rtt_us=rtt_us)

    def set_admission(self, address: str, code: str | None) -> None:
        """Higher rates to a host are refused with this error, by its word in the protocol, or (None) admitted."""
        self._order("set_admission", address=address, code=code)

    def finish_refresh(self, address: str) -> None:
        """The measurements of a host that fresh queries wait for have ended."""
        self._order("finish_refresh", address=address)

    def set_condition(self, flow: int, *, congested: bool | None, free: int = 0) -> None:
        """From now on a flow is congested or not (None: unknown), and could have `free` bits/s beyond its rate."""
        self._order("set_condition", flow=flow, congested=congested, free=free)

    def watched(self) -> list[int]:
        """The flows for which somebody waits."""
        return list(self._order("tell")["watched"])

    def refreshing(self) -> list[str]:
        """The hosts whose new measurement somebody waits for."""
        return list(self._order("tell")["refreshing"])

    def _order(self, order: str, **arguments: Any) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"order": order, **arguments}).encode() + b"\n")
        return self._answer(ANSWER_S)

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        line = b""
        if select.select([self.process.stdout], [], [], timeout_s)[0]:
            line = self.process.stdout.readline()
        if not line:
            raise LabError(f"the steered daemon does not answer\n{self.log[-4000:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Helm:
    """Orders, read and carried out within the daemon's loop."""

    def __init__(self, paths: FakePaths, conditions: FakeConditions, follow: Callable[[], None]) -> None:
        self._paths = paths
        self._conditions = conditions
        self._follow = follow
        self._pending = b""

    def begin(self) -> None:
        """To be called within the loop, once clients can connect."""
        asyncio.get_running_loop().add_reader(0, self._read)
        self._tell()

    def _read(self) -> None:
        data = os.read(0, 65536)
        if not data:
            asyncio.get_running_loop().remove_reader(0)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            self._orders[order.pop("order")](self, **order)
            self._follow()
            self._tell()

    def _set_off_link(self, address: str, off_link: bool) -> None:
        self._paths.set_off_link(address, off_link)

    def _set_estimate(self, address: str, bottleneck: int | None, available: int | None, rtt_us: int | None) -> None:
        estimate = FlowFundamentals(
            None if bottleneck is None else Bandwidth(bottleneck),
            None if available is None else Bandwidth(available),
            rtt_us,
        )
        self._paths.set_estimate(address, None if estimate == FlowFundamentals() else estimate)

    def _set_admission(self, address: str, code: str | None) -> None:
        self._paths.set_admission(address, None if code is None else BY_CODE[code]("the test says so"))

    def _finish_refresh(self, address: str) -> None:
        self._paths.finish_refresh(address)

    def _set_condition(self, flow: int, congested: bool | None, free: int) -> None:
        self._conditions.set(flow, congested=congested, free=free)

    def _nothing(self) -> None:
        """Every order is answered with what `_tell` tells."""

    def _tell(self) -> None:
        told = {
            "watched": sorted(self._conditions.watched),
            "refreshing": [str(host) for host in self._paths.refreshing],
        }
        os.write(1, json.dumps(told).encode() + b"\n")

    _orders: ClassVar[dict[str, Callable[..., None]]] = {
        "set_off_link": _set_off_link,
        "set_estimate": _set_estimate,
        "set_admission": _set_admission,
        "finish_refresh": _finish_refresh,
        "set_condition": _set_condition,
        "tell": _nothing,
    }


def main() -> None:
    """As qos2d, until SIGTERM."""
    given = arguments().parse_args()
    config = load(given.config, {"socket": given.socket, "devices": given.device})
    logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
    paths, conditions = FakePaths(), FakeConditions()
    with contextlib.closing(Pins(config.pin_path, config.max_flows, config.cache)) as pins:
        pins.begin()
        with assembled(pins, config, paths=paths, conditions=conditions) as daemon:
            asyncio.run(daemon.run(_Helm(paths, conditions, daemon.follow).begin))


if __name__ == "__main__":
    main()
