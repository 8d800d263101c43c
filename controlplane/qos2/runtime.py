"""The running daemon: its parts put together, and their duties on one event loop.

    KernelDatapath, Paths, Conditions -> Service -> Server (clients) and Exporter (Prometheus)

Imported only once the compiler is at work (daemon.py): what this needs takes half a second to import.
"""

import asyncio
import contextlib
import functools
import logging
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from qos2.activation import ActivatedServer
from qos2.chronicle import Chronicle, Event, tell
from qos2.config import Config
from qos2.core.congestion import Detector
from qos2.core.ports import Conditions, Paths
from qos2.core.rules import Rules
from qos2.core.service import Limits, Service
from qos2.datapath.kernel import KernelDatapath
from qos2.datapath.pins import Pins
from qos2.errors import BY_CODE, QosError
from qos2.exporter import ExporterThread
from qos2.listener import clear_stale
from qos2.metrics import (
    BusyFlow,
    DeviceRanking,
    LagMeter,
    NotificationMeter,
    PathsSnapshot,
    ReloadStatus,
    RequestMeter,
    Snapshot,
    render,
    render_top,
)
from qos2.model import DatapathStatus, TrafficType
from qos2.paths.conditions import JudgedFlows
from qos2.paths.estimates import MeasuredPaths
from qos2.paths.observatory import Observatory
from qos2.paths.prober import Prober
from qos2.paths.tcp import TcpDiagnosis
from qos2.policies import Policies
from qos2.server import Server
from qos2.supervisor import Supervisor
from qos2.version import version
from qos2.wire import protocol

_LOG = logging.getLogger("qos2d")

#: HTB counts link headers: how soon a change of a flow's packet size is followed.
CORRECT_SECONDS = 0.2
#: How late a waiting request may hear of a change.
FOLLOW_SECONDS = 0.1
#: Metrics, idle qdiscs, orphans, lingering hosts.
HOUSEKEEPING_SECONDS = 1.0


@dataclass
class Daemon:
    """The running parts."""

    datapath: KernelDatapath
    service: Service
    server: Server
    observatory: Observatory | None  #: none where a test steers paths and conditions
    exporter: ExporterThread | None
    meter: RequestMeter
    notifications: NotificationMeter
    policies: Policies
    supervisor: Supervisor = field(default_factory=lambda: Supervisor({}))

    def __post_init__(self) -> None:
        self._watched: set[int] = set()
        self._lag = LagMeter()
        self._device_ranking = DeviceRanking()
        self._chronicle = Chronicle()

    async def run(self, ready: Callable[[], None]) -> None:
        """Serves until SIGTERM or SIGINT; SIGHUP reloads. `ready` is called once clients can connect."""
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, self.reload)
        self.server.start()
        if self.exporter is not None:
            await self.exporter.start()
        loop.add_reader(self.datapath.event_fd(), self._guarded, self.datapath.events)
        # An exec changes nothing of the other identities.
        followed = {
            self.datapath.identities.fileno(): self.datapath.follow_identities,
            self.datapath.executables.fileno(): self.datapath.executables.look,
        }
        for descriptor, look in followed.items():
            loop.add_reader(descriptor, self._guarded, look)
        self._housekeeping()
        async with asyncio.TaskGroup() as tasks:
            periodic = [
                tasks.create_task(self._every(CORRECT_SECONDS, self._correct)),
                tasks.create_task(self._every(FOLLOW_SECONDS, self.follow)),
                tasks.create_task(self._every(HOUSEKEEPING_SECONDS, self._housekeeping)),
            ]
            if self.supervisor.feed_s is not None:
                # From this loop and no thread: where it is stuck, nobody is served.
                periodic.append(tasks.create_task(self._every(self.supervisor.feed_s, self.supervisor.alive)))
            ready()
            await stop.wait()
            for task in periodic:
                task.cancel()
        loop.remove_reader(self.datapath.event_fd())
        for descriptor in (*self._watched, *followed):
            loop.remove_reader(descriptor)
        self.server.close()
        if self.exporter is not None:
            await self.exporter.close()

    def reload(self) -> None:
        """Read the policy again; where that fails, all stays as it was."""
        self.supervisor.reloading()
        try:
            came_of_it = self.policies.reread()
        except QosError as error:
            came_of_it = f"not reloaded, all is as it was: {error}"
            tell(Event.RELOAD_FAILED, came_of_it, {"error": error.code}, level=logging.ERROR)
        except Exception:  # a bug in reading must not end the daemon; flows and policy are as they were
            came_of_it = "not reloaded: a bug, see the log"
            _LOG.exception("a bug: the policy cannot be read again")
        else:
            came_of_it = f"reloaded: {came_of_it}"
            tell(Event.RELOADED, came_of_it)
        self.supervisor.ready(came_of_it)

    async def _every(self, seconds: float, work: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due_s = loop.time() + seconds
            await asyncio.sleep(seconds)
            self._lag.observe(loop.time() - due_s)
            self._guarded(work)

    def _guarded(self, work: Callable[[], None]) -> None:
        """One failure of a periodic duty must not end the daemon; the next turn tries again."""
        try:
            work()
        except Exception:  # logged with its traceback; see above
            _LOG.exception("%s failed", getattr(work, "__name__", work))

    def _correct(self) -> None:
        self.datapath.correct_shapers()
        self._follow_namespaces()

    def follow(self) -> None:
        """Signals are read, and whoever waited for what they mean is told so; on the daemon's loop."""
        signal_s = None if self.observatory is None else self.observatory.step()
        self.service.follow(signal_s)
        self.server.deliver()

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
        self.service.tick()
        self.datapath.idle()
        status = self.datapath.status()
        self._chronicle.look(status)
        if self.exporter is not None:
            self.exporter.publish(render(self._snapshot(status)))

    def _snapshot(self, status: DatapathStatus) -> Snapshot:
        accounts = self.service.accounts
        census, usage = self.datapath.census, accounts.usage
        self.datapath.look(self.service.type_of_slot, usage.account_of_slot)
        usage.look(census.sent(usage.accounts))
        live = self.datapath.totals(self.service.type_of_slot, len(TrafficType))
        return Snapshot(
            version=version(),
            datapath=status,
            flows=accounts.live,
            totals=self.service.totals(live),
            begun=accounts.begun,
            ended=accounts.ended,
            contracts=census.contracts,
            units=usage.told(),
            units_truncated=usage.truncated,
            reload=ReloadStatus(
                generation=self.policies.generation,
                succeeded=self.policies.successful,
                at_s=self.policies.loaded_at,
            ),
            lag=self._lag,
            program_runs=self.datapath.program_runs(),
            device_ranking=self._device_ranking,
            handles=self.service.handles,
            orphans=self.service.orphans,
            pending_requests=self.service.pending,
            refused_connections=self.server.refused,
            requests=self.meter,
            paths=self._paths_snapshot(),
            device_sent_bytes=self.datapath.devices.loads.sent_bytes,
            device_dropped_packets=self.datapath.devices.loads.dropped_packets,
        )

    def busiest(self, count: int) -> bytes:
        """The flows of applications that sent most in the last second, for Prometheus."""
        rates = dict(self.datapath.census.busiest(count))
        return render_top(BusyFlow(view, rates[view.flow]) for view in self.service.views(rates))

    def _paths_snapshot(self) -> PathsSnapshot | None:
        if self.observatory is None:
            return None
        paths, conditions = self.observatory.paths, self.observatory.conditions
        return PathsSnapshot(
            states=conditions.census(),
            hosts=paths.hosts,
            reflectors=paths.reflectors,
            estimates=paths.census(),
            admissions=paths.admissions,
            probes=self.observatory.prober.counters.copy(),
            failures=self.observatory.counters.copy(),
            notifications=self.notifications,
        )


@contextlib.contextmanager
def assembled(
    pins: Pins,
    config: Config,
    *,
    supervisor: Supervisor | None = None,
    listener: socket.socket | None = None,
    paths: Paths | None = None,
    conditions: Conditions | None = None,
) -> Iterator[Daemon]:
    """The daemon over the host's kernel; everything is off the host again afterwards.

    `listener` was passed by the service manager and takes the place of a socket at the configured path. `paths` and
    `conditions` take the place of its own, for tests that steer them. Raises QosError where it cannot start:
    AlreadyRunning, MissingKernelFeature, DeviceGone, ConfigError for the policy ...
    """
    if listener is None:
        clear_stale(str(config.socket))  # before any device is touched
    with contextlib.ExitStack() as undo:
        datapath = KernelDatapath(
            pins, device_names=config.devices, preset_tos=config.preset_tos, tcp_tso_rtt_log=config.tcp_tso_rtt_log
        )
        undo.callback(datapath.close)
        limits = Limits(
            flows_per_uid=config.flows_per_uid,
            flows_per_privileged_uid=max(config.flows_per_uid, config.max_flows),
            handles_per_uid=config.handles_per_uid,
            members_per_flow=config.members_per_flow,
            orphan_grace_s=config.orphan_grace_s,
            pending_per_handle=config.pending_per_handle,
            tracked_per_uid=config.tracked_per_uid,
        )
        observatory = None
        if paths is None or conditions is None:
            observatory = _observatory(datapath, config)
            paths, conditions = observatory.paths, observatory.conditions
            undo.callback(observatory.close)
        service = Service(
            datapath,
            time.monotonic,
            limits,
            version(),
            paths=paths,
            conditions=conditions,
            rules=Rules(config.strict, frozenset(config.deny)),
        )
        meter = RequestMeter(protocol.OPERATIONS, ("ok", *BY_CODE))
        notifications = NotificationMeter()
        if service.orphans:
            told = f"took over {service.orphans} flows that a daemon which is gone left in force"
            tell(Event.TAKE_OVER, told, {"flows": service.orphans})
        policies = Policies(config.policy, service)
        tell(Event.RELOADED, f"policy: {policies.reread()}")
        serving: Callable[..., Server] = Server if listener is None else functools.partial(ActivatedServer, listener)
        server = serving(
            service,
            str(config.socket),
            observe=meter.observe,
            notified=notifications.observe,
            load_policy=policies.load,
            mode=config.socket_mode,
            logger=logging.getLogger("qos2d.server"),
            connections=config.connections,
            connections_per_uid=config.handles_per_uid,
        )
        daemon = Daemon(
            datapath,
            service,
            server,
            observatory,
            None,
            meter,
            notifications,
            policies,
            supervisor or Supervisor({}),
        )
        if config.metrics_address:
            top = config.metrics_flows_top
            daemon.exporter = ExporterThread(config.metrics_address, flows_top=top, render_top=daemon.busiest)
        yield daemon


def _observatory(datapath: KernelDatapath, config: Config) -> Observatory:
    clock = time.monotonic
    enter = datapath.devices.enter
    paths = MeasuredPaths(
        datapath.devices.reach,
        clock,
        probe_share=config.probe_share_percent / 100 if config.probing else 0.0,
        beyond_link=config.off_link == "default",
    )
    detector = Detector(config.thresholds, datapath.max_flows + 1)
    conditions = JudgedFlows(detector, datapath.signals, paths, clock, datapath.devices.way_out)
    return Observatory(paths, conditions, Prober(enter, config.probe_port, clock), TcpDiagnosis(enter), clock)
