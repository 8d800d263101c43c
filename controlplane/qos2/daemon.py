"""qos2d: puts the pieces together and runs them on one event loop.

    Pins -> KernelDatapath -> Service -> Server (clients) and Exporter (Prometheus)

Stays in the foreground, says READY=1 to a service manager, and on SIGTERM or SIGINT takes everything
off the host again. After kill -9 the datapath goes on; the next start takes it over.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from qos2 import errors
from qos2.config import Config, load
from qos2.core.service import Limits, Service
from qos2.datapath.kernel import KernelDatapath
from qos2.datapath.pins import Pins
from qos2.exporter import Exporter, RequestMeter, Snapshot, render
from qos2.model import TrafficType
from qos2.server import Server
from qos2.wire import protocol

_LOG = logging.getLogger("qos2d")

#: HTB counts link headers: how soon a change of a flow's packet size is followed.
CORRECT_SECONDS = 0.2
#: Metrics, idle qdiscs, orphans.
HOUSEKEEPING_SECONDS = 1.0


def version() -> str:
    """Of the installed package; "dev" where it runs from a source tree."""
    try:
        return metadata.version("qos2")
    except metadata.PackageNotFoundError:
        return "dev"


@dataclass
class Daemon:
    """The running parts."""

    datapath: KernelDatapath
    service: Service
    server: Server
    exporter: Exporter | None
    meter: RequestMeter

    def __post_init__(self) -> None:
        self._watched: set[int] = set()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT. `ready` is called once clients can connect."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        self.server.start()
        if self.exporter is not None:
            await self.exporter.start()
        loop.add_reader(self.datapath.event_fd(), self._guarded, self.datapath.events)
        self._housekeeping()
        async with asyncio.TaskGroup() as tasks:
            periodic = [
                tasks.create_task(self._every(CORRECT_SECONDS, self._correct)),
                tasks.create_task(self._every(HOUSEKEEPING_SECONDS, self._housekeeping)),
            ]
            ready()
            await stop.wait()
            for task in periodic:
                task.cancel()
        loop.remove_reader(self.datapath.event_fd())
        for descriptor in self._watched:
            loop.remove_reader(descriptor)
        self.server.close()
        if self.exporter is not None:
            await self.exporter.close()

    async def _every(self, seconds: float, work: Callable[[], None]) -> None:
        while True:
            await asyncio.sleep(seconds)
            self._guarded(work)

    def _guarded(self, work: Callable[[], None]) -> None:
        """One failure of a periodic duty must not end the daemon; the next turn tries again."""
        try:
            work()
        except Exception:
            _LOG.exception("%s failed", getattr(work, "__name__", work))

    def _correct(self) -> None:
        self.datapath.correct_shapers()
        self._follow_namespaces()

    def _follow_namespaces(self) -> None:
        loop = asyncio.get_running_loop()
        watches = {watch.fileno(): cookie for cookie, watch in self.datapath.devices.watches()}
        for descriptor in self._watched - watches.keys():
            loop.remove_reader(descriptor)
        for descriptor in watches.keys() - self._watched:
            loop.add_reader(descriptor, self._guarded, self._follower(watches[descriptor]))
        self._watched = set(watches)

    def _follower(self, cookie: int) -> Callable[[], None]:
        return lambda: self.datapath.devices.follow(cookie)

    def _housekeeping(self) -> None:
        self.service.end_orphans()
        self.datapath.idle()
        if self.exporter is not None:
            self.exporter.publish(render(self._snapshot()))

    def _snapshot(self) -> Snapshot:
        live = self.datapath.totals(self.service.type_of_slot, len(TrafficType))
        accounts = self.service.accounts
        return Snapshot(
            version=version(),
            datapath=self.datapath.status(),
            flows=accounts.live,
            totals=self.service.totals(live),
            begun=accounts.begun,
            ended=accounts.ended,
            handles=self.service.handles,
            orphans=self.service.orphans,
            refused_connections=self.server.refused,
            requests=self.meter,
        )


@contextlib.contextmanager
def assembled(config: Config) -> Iterator[Daemon]:
    """The daemon over the host's kernel; everything is off the host again afterwards.

    Raises QosError where it cannot start: AlreadyRunning, MissingKernelFeature, DeviceGone ...
    """
    pins = Pins(config.pin_path, config.max_flows)
    with contextlib.closing(pins):
        try:
            datapath = _open_datapath(pins, config)
        except errors.QosError:
            pins.give_up()
            raise
        with contextlib.closing(datapath):
            limits = Limits(
                flows_per_uid=config.flows_per_uid,
                flows_per_privileged_uid=max(config.flows_per_uid, config.max_flows),
                handles_per_uid=config.handles_per_uid,
                members_per_flow=config.members_per_flow,
                orphan_grace_s=config.orphan_grace_s,
            )
            service = Service(datapath, time.monotonic, limits, version())
            meter = RequestMeter(protocol.OPERATIONS, ("ok", *errors.BY_CODE))
            server = Server(
                service,
                str(config.socket),
                observe=meter.observe,
                mode=config.socket_mode,
                logger=logging.getLogger("qos2d.server"),
                connections=config.connections,
            )
            exporter = Exporter(config.metrics_address) if config.metrics_address else None
            yield Daemon(datapath, service, server, exporter, meter)


def _open_datapath(pins: Pins, config: Config) -> KernelDatapath:
    began = time.monotonic()
    pins.fill()
    _LOG.info("datapath %s in %.2f s", "compiled" if pins.compiled else "taken over", time.monotonic() - began)
    return KernelDatapath(
        pins, device_names=config.devices, preset_tos=config.preset_tos, tcp_tso_rtt_log=config.tcp_tso_rtt_log
    )


def notify(state: str) -> None:
    """Tells the service manager (sd_notify(3)); silent where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qos2d", description="The QoS2 daemon.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (TOML)")
    parser.add_argument("--socket", metavar="PATH", help="where clients connect")
    parser.add_argument("--device", action="append", metavar="DEV", help="repeatable; default: all bottom devices")
    parser.add_argument("--metrics", metavar="ADDR:PORT", help="Prometheus endpoint; empty: none")
    parser.add_argument("--pin-path", metavar="DIR", help="folder on bpffs for what outlives the daemon")
    parser.add_argument("--version", action="version", version=f"qos2d {version()}")
    return parser


def main() -> int:
    """Entry point: 0 after a clean stop, 1 where it could not start."""
    given = arguments().parse_args()
    overrides = {
        "socket": given.socket,
        "devices": given.device,
        "metrics": given.metrics,
        "pin_path": given.pin_path,
    }
    try:
        config = load(given.config, {key: value for key, value in overrides.items() if value is not None})
        logging.basicConfig(
            level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        with assembled(config) as daemon:
            asyncio.run(daemon.run(lambda: _announce(config)))
            notify("STOPPING=1")
    except errors.QosError as error:
        sys.stderr.write(f"qos2d: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"       {error.hint}\n")
        return 1
    return 0


def _announce(config: Config) -> None:
    _LOG.info("ready: %s", config.socket)
    notify("READY=1")


if __name__ == "__main__":
    sys.exit(main())
