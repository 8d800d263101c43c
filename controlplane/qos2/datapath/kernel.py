"""The datapath port over the real kernel: policies into maps, sockets into their storage, rates onto devices.

Composes the other modules of this package; the only one that the daemon makes. Decides nothing about
QoS2: the core does.
"""

import ctypes
import logging
import os
import platform
import socket
import time
from array import array
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from qos2.core.ports import InstalledRule, WayOut
from qos2.core.rule import Rule
from qos2.core.signals import Signals, Slots
from qos2.datapath import abi, binding, preset, shapers
from qos2.datapath.census import Census
from qos2.datapath.devices import Devices, degraded
from qos2.datapath.enforcement import Enforcement
from qos2.datapath.flowmaps import FlowMaps
from qos2.datapath.hostsockets import HostSockets
from qos2.datapath.instructions import has_compare_and_swap, has_netns_cookie
from qos2.datapath.maps import Map, PerCpuCounters, RingBuffer
from qos2.datapath.minors import Minors
from qos2.datapath.pins import Pins
from qos2.datapath.programruns import runs_by_name
from qos2.datapath.programs import Programs, cgroup_mount
from qos2.errors import DatapathError, NoSuchFlow
from qos2.model import (
    Action,
    DatapathStatus,
    Destination,
    Dscp,
    FlowId,
    FlowPolicy,
    FlowStats,
    Peer,
    RemoteHost,
    SocketFacts,
    Transport,
)

_LOG = logging.getLogger(__name__)
_MINORS = 1 << 16
_PRESET = int(abi.SocketFlag.PRESET)
_KINDS = {Transport.TCP: int(socket.SOCK_STREAM), Transport.UDP: int(socket.SOCK_DGRAM)}


@dataclass(slots=True)
class _Shaped:
    """A flow with a delaying contract."""

    minor: int
    bandwidth: int
    namespaces: frozenset[int]
    bytes: int = 0
    packets: int = 0


class KernelDatapath:
    """Implements core.ports.Datapath. Open it with `with`; close() takes everything off the host again."""

    def __init__(
        self,
        pins: Pins,
        *,
        device_names: tuple[str, ...] = (),
        preset_tos: bool = True,
        tcp_tso_rtt_log: int | None = None,
    ) -> None:
        """`pins` have begun; `device_names` empty means every bottom device. Raises DatapathError."""
        with ExitStack() as undo:
            self._pins = pins
            pins.programs("ethernet")
            self._preset = preset_tos
            self._flows = FlowMaps(pins.maps)
            undo.callback(self._flows.close)
            self._sockets = Map(pins.maps / "sockets", ctypes.c_int, abi.SocketFlow)
            undo.callback(self._sockets.close)
            self._destinations = Map(pins.maps / "destinations", abi.Destination, ctypes.c_uint32)
            undo.callback(self._destinations.close)
            self._counters = PerCpuCounters(pins.maps / "counters", abi.COUNTERS)
            undo.callback(self._counters.close)
            self._events = dict.fromkeys(abi.EventKind, 0)
            self._ring = RingBuffer(pins.maps / "events", abi.Event, self._receive)
            undo.callback(self._ring.close)
            self.devices = Devices(pins.programs, pins.links, names=device_names, tcp_tso_rtt_log=tcp_tso_rtt_log)
            undo.callback(self.devices.close)
            cgroups = Map(pins.maps / "cgroups", ctypes.c_uint64, ctypes.c_uint32)
            self._programs = Programs(cgroups, os.dup(self.devices.program("qos_sock_create")))
            undo.callback(self._programs.close)
            self.census = Census()
            self._further: dict[int, dict[Destination, FlowId]] = {}
            self._shaped: dict[FlowId, _Shaped] = {}
            self._namespaces: dict[FlowId, frozenset[int]] = {}
            self._program_namespaces: dict[FlowId, int] = {}
            self._drops: dict[int, int] = {}
            self._queue_drops = np.zeros(_MINORS, np.uint64)  # the same by minor
            self._orphans = self._flows.found
            self._taken_over = set(self._orphans.values())
            self._take_over()
            self.own_netns_cookie = self.devices.open_own()
            self.devices.take_over()
            owner_program = os.dup(self.devices.program("qos_sock_owner"))
            self.enforcement = Enforcement(
                pins.maps, pins.path / "owner", owner_program, self.devices.status, self.own_netns_cookie
            )
            undo.callback(self.enforcement.close)
            #: Watched for follow_identities().
            self.identities, self.executables = self.enforcement.identities, self.enforcement.executables
            self._undo = undo.pop_all()

    @property
    def max_flows(self) -> int:
        return self._flows.max_flows

    def occupied_slots(self) -> Mapping[int, FlowId]:
        return self._orphans

    def generation(self, slot: int) -> int:
        return self._flows.generation(slot)

    def put(self, policy: FlowPolicy, *, fresh: bool) -> None:
        delayed = policy.action is Action.DELAY and policy.bandwidth > 0
        shaped = self._shaped.get(policy.flow)
        if not delayed and shaped is None:
            self._flows.put(policy, htb_minor=0, fresh=fresh)
            self._namespaces[policy.flow] = policy.netns_cookies
            return
        minor = 0
        if delayed:
            minor = shaped.minor if shaped else self._minors.take()
        try:
            if delayed:
                self.devices.shape(minor, policy.bandwidth, policy.netns_cookies)
            self._flows.put(policy, htb_minor=minor, fresh=fresh)
        except DatapathError:
            if shaped is not None:
                self.devices.shape(shaped.minor, shaped.bandwidth, shaped.namespaces)
            elif delayed:
                self._release(minor)
            raise
        self._namespaces[policy.flow] = policy.netns_cookies
        if delayed:
            traffic = self._flows.traffic(policy.flow)
            self._shaped[policy.flow] = _Shaped(minor, policy.bandwidth, policy.netns_cookies, *traffic)
        elif shaped is not None:
            del self._shaped[policy.flow]
            self._release(shaped.minor)

    def end(self, flow: FlowId) -> None:
        self._flows.end(flow)
        self._taken_over.discard(flow)
        self._namespaces.pop(flow, None)
        shaped = self._shaped.pop(flow, None)
        if shaped:
            self._release(shaped.minor)

    def bind(self, fd: int, facts: SocketFacts, flows: Mapping[Destination, FlowId]) -> None:
        self.devices.open_of_socket(fd, facts.netns_cookie)
        key = ctypes.c_int(fd)
        current = self._sockets.get(key)
        value, further = binding.plan(flows, current)
        if self._preset:
            self._preset_dscp(fd, facts, value, flows)
        if further or facts.cookie in self._further:
            self._bind_further(facts.cookie, key, value, further)
        else:
            self._store(key, value)

    def unbind(self, cookie: int, destinations: tuple[Destination, ...]) -> None:
        known = self._further.get(cookie)
        if known is None:
            return
        for destination in destinations:
            if known.pop(destination, None) is not None:
                self._destinations.delete(binding.destination_key(cookie, destination))
        if not known:
            del self._further[cookie]

    def adopt_program(self, flow: FlowId, peer: Peer) -> None:
        try:
            self._program_namespaces[flow] = self.devices.open_of_process(peer.pid)
        except OSError as error:
            raise NoSuchFlow(f"process {peer.pid} is gone: {error.strerror}") from error
        self._programs.adopt(flow, peer)

    def release_program(self, flow: FlowId) -> None:
        self._program_namespaces.pop(flow, None)
        self._programs.release(flow)

    def install(self, rules: Sequence[InstalledRule]) -> int:
        generation = self.enforcement.install(rules)
        self.enforcement.open_namespaces(self.devices)
        return generation

    def drawn(self) -> Mapping[FlowId, int]:
        return self.enforcement.drawn()

    def refill(self, flow: FlowId, prepared: Sequence[FlowId]) -> None:
        self.enforcement.refill(flow, prepared)

    def missing(self, rule: Rule) -> tuple[str, ...]:
        return self.enforcement.missing(rule)

    def namespace_name(self, netns_cookie: int) -> str:
        return self.enforcement.identities.name_of(netns_cookie)

    def way_out(self, host: RemoteHost) -> WayOut:
        device = self.devices.way_out(host)
        if device is not None:
            return WayOut(device.name, attached=True)
        if host.netns_cookie not in self.devices.namespaces():
            return WayOut(why="its network namespace is not watched")
        return WayOut(why="there is no route, or it leads out by a device that is not watched")

    def stats(self, flow: FlowId) -> FlowStats:
        shaped = self._shaped.get(flow)
        return self._flows.stats(flow, self._drops.get(shaped.minor, 0) if shaped else 0)

    def signals(self, slots: Slots) -> Signals:
        """Counters of many flows at once, without a system call; drops in queues are those of the last second."""
        return self._flows.signals(slots, self._queue_drops)

    def totals(self, type_of_slot: bytearray, types: int) -> list[FlowStats]:
        """Sums over live flows by type (flowmaps.FlowMaps.totals)."""
        return self._flows.totals(type_of_slot, types)

    def look(self, type_of_slot: bytearray, account_of_slot: "array[int]") -> None:
        """Once a second: `census` is about now."""
        self._flows.look(self.census, type_of_slot, account_of_slot, time.monotonic())

    def program_runs(self) -> Mapping[str, tuple[int, float]]:
        """Runs and seconds by program, as far as the kernel counted them (programruns.py)."""
        return runs_by_name(self.devices.programs())

    def shapers(self, flow: FlowId) -> Mapping[str, str]:
        shaped = self._shaped.get(flow)
        return self.devices.shapers(shaped.namespaces) if shaped else {}

    def status(self) -> DatapathStatus:
        devices = self.devices.status()
        kinds = shapers.available_kinds()
        counters = self._counters.read()
        return DatapathStatus(
            kernel=platform.release(),
            devices=devices,
            features={
                "tcx": any(device.hook == "tcx" for device in devices),
                "fq": "fq" in kinds,
                "htb": "htb" in kinds,
                "cgroup2": cgroup_mount() is not None,
                "netns_cookie": self.own_netns_cookie != 0,
                "compare_and_swap": has_compare_and_swap(),
                "netns_match": has_netns_cookie(),
            },
            counters={name.label: counters[name] for name in abi.Counter}
            | self.devices.loads.failures
            | self.enforcement.failures,
            events={kind.label: number for kind, number in self._events.items()},
            map_entries={
                "policy": (self._flows.used, self.max_flows),
                "destinations": (sum(map(len, self._further.values())), self._destinations.max_entries),
            },
            problems=(
                *self.devices.problems.values(),
                *degraded(devices),
                *self.enforcement.problems,
            ),
        )

    def event_fd(self) -> int:
        """Readable when events() has something."""
        return self._ring.fileno()

    def events(self) -> None:
        """Takes what the ring buffer holds."""
        self._ring.consume()

    def correct_shapers(self) -> None:
        """About five times a second: shapers that count link headers learn the flows' packet sizes."""
        for flow, shaped in self._shaped.items():
            octets, packets = self._flows.traffic(flow)
            if octets != shaped.bytes:
                self.devices.correct(shaped.minor, octets - shaped.bytes, packets - shaped.packets)
                shaped.bytes, shaped.packets = octets, packets

    def idle(self) -> None:
        """Once a second: devices and queues' drops are read, qdiscs and namespaces that nobody needs go."""
        self.devices.sample()
        if self._shaped:
            self._drops = self.devices.drops()
            self._queue_drops[list(self._drops)] = list(self._drops.values())
        used = set(self._program_namespaces.values()).union(*self._namespaces.values())
        if self._taken_over:  # nobody knows where their sockets are
            used |= self.devices.namespaces()
        self.devices.idle(used | self.enforcement.open_namespaces(self.devices), time.monotonic())
        self.enforcement.idle(self._counters.read()[abi.Counter.POOL_EMPTY])

    def follow_identities(self) -> None:
        """When identities or executables are readable: rules go by what their names stand for now."""
        self.enforcement.follow_identities()

    def close(self) -> None:
        """Filters, qdiscs, cgroups and pins of this daemon go; maps with them, and what it preset on sockets."""
        self.enforcement.remove()
        if self._preset:
            self._undo_presets()
        self._undo.close()
        self._pins.remove()

    def _receive(self, event: abi.Event) -> None:
        kind = abi.EventKind(event.kind)
        self._events[kind] += 1

    def _store(self, key: ctypes.c_int, value: abi.SocketFlow) -> None:
        if value.flow_id or value.first_flow_id or value.flags:
            self._sockets.put(key, value)
        else:
            self._sockets.delete(key)

    def _bind_further(
        self, cookie: int, key: ctypes.c_int, value: abi.SocketFlow, further: dict[Destination, FlowId]
    ) -> None:
        """The storage of a socket, and the entries of its further destinations: new ones first, stale ones last."""
        known = self._further.get(cookie, {})
        changed = {each: flow for each, flow in further.items() if known.get(each) != flow}
        try:
            for destination, flow in changed.items():
                self._destinations.put(binding.destination_key(cookie, destination), ctypes.c_uint32(flow))
            self._store(key, value)
        except DatapathError:
            for destination in changed.keys() - known.keys():
                self._destinations.delete(binding.destination_key(cookie, destination))
            raise
        for stale in known.keys() - further.keys():
            self._destinations.delete(binding.destination_key(cookie, stale))
        if further:
            self._further[cookie] = further
        else:
            del self._further[cookie]

    def _release(self, minor: int) -> None:
        self.devices.release(minor)
        self._minors.give(minor)
        self._drops.pop(minor, None)
        self._queue_drops[minor] = 0

    def _preset_dscp(
        self, fd: int, facts: SocketFacts, value: abi.SocketFlow, flows: Mapping[Destination, FlowId]
    ) -> None:
        """Presets the socket's DSCP where one flow speaks for all of its packets, else puts the old one back."""
        dscp = None
        if len(flows) == 1:
            ((destination, flow),) = flows.items()
            if destination.is_any or destination == facts.peer:
                dscp = self._flows.dscp(flow)
        if dscp is None and not value.flags & _PRESET:
            return
        sock = socket.SocketType(facts.family, _KINDS[facts.transport], 0, fd)
        try:
            before = now = preset.read_dscp(sock)
            if before is None or now is None:
                return
            if value.flags & _PRESET and now == value.preset_dscp:
                before = Dscp(value.original_dscp)  # ours, not the application's
            value.flags &= ~_PRESET
            if dscp is not None and dscp != before:
                value.flags |= _PRESET
                value.preset_dscp, value.original_dscp = dscp, before
            wanted = before if dscp is None else Dscp(dscp)
            if wanted != now:
                preset.write_dscp(sock, wanted)
        except OSError as error:
            raise DatapathError(f"the socket refuses its DSCP: {error.strerror}") from error
        finally:
            sock.detach()

    def _undo_presets(self) -> None:
        """On every socket of the host that still has a preset; the datapath is there until it is done."""
        sockets = HostSockets()
        for sock in sockets:
            key = ctypes.c_int(sock.fileno())
            value = self._sockets.get(key)
            if value is None or not value.flags & _PRESET:
                continue
            try:
                if preset.read_dscp(sock) == value.preset_dscp:
                    preset.write_dscp(sock, Dscp(value.original_dscp))
            except OSError as error:
                _LOG.warning("a socket keeps the DSCP %d that was preset: %s", value.preset_dscp, error.strerror)
        if sockets.refused:
            _LOG.warning("%d sockets could not be looked at: a preset DSCP may be left on them", sockets.refused)

    def _take_over(self) -> None:
        """Flows of a daemon that was killed go on as they are: their contracts are set on the devices anew."""
        minors: set[int] = set()
        for flow, minor, bandwidth in self._flows.delayed():
            self.devices.shape(minor, bandwidth, frozenset())
            self._shaped[flow] = _Shaped(minor, bandwidth, frozenset(), *self._flows.traffic(flow))
            minors.add(minor)
        self._minors = Minors(minors)
        self._programs.take_over(self._taken_over)
        for key in list(self._destinations.keys()):
            entry = self._destinations.get(key)
            if entry is not None and FlowId(entry.value) not in self._taken_over:
                self._destinations.delete(key)
