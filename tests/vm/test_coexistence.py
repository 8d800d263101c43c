"""Other people's programs at the same egress: filters under clsact before and after ours, tcx programs (Linux 6.6).

They see what they saw, ours sees what it has to, and each is as it was when the daemon has gone: judged by what
arrives at the peer, by how often the kernel ran each program, and by dumps.
"""

import contextlib
import ctypes
import json
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

import qos2
from demo.lab import Lab, LabError
from demo.processes import Daemon
from harness.device_state import device_state
from harness.tcx import tcx_programs
from harness.veth_pair import DEVICE, HAS_TCX, Program, VethPair, bpf_file_system, counting, loaded_program
from harness.wire import UNPROBED, Wire, eventually
from qos2 import TrafficType
from qos2.datapath import hook, links
from qos2.datapath.maps import LIBBPF, open_pin

pytestmark = pytest.mark.datapath

needs_tcx = pytest.mark.skipif(not HAS_TCX, reason="this kernel has no tcx (it came with 6.6)")

#: How many datagrams a test sends, and the DSCP of their flow.
SENT, VOICE = 23, 56
#: A number of our own place, and the largest that tc(8) gives a filter whose priority nobody chose.
SAME_PRIORITY, LATE_PRIORITY = hook.FILTER_PRIORITY, 49152
_BPF_PROG_TYPE_SCHED_CLS, _BPF_TCX_EGRESS, _BPF_F_BEFORE = 3, 47, 1 << 3
_GO_ON, _ACCEPT, _DROP = -1, 0, 2


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("qos2-test") as made:
        # What the kernel sends by itself would be counted.
        made.app.sysctl("ipv6/conf/eth0/disable_ipv6", 1)
        ends = (made.app, made.app.device, made.app.ipv4[0]), (made.router, "to-app", "192.0.2.1")
        for (here, device, _), (there, their_device, address) in (ends, ends[::-1]):
            (link,) = json.loads(there.run("ip", "-j", "link", "show", "dev", their_device))
            to = ("to", address, "lladdr", link["address"], "dev", device)
            here.run("ip", "neighbor", "replace", *to, "nud", "permanent")
        yield made


@pytest.fixture(scope="module")
def distant(lab: Lab) -> Iterator[Daemon]:
    """A daemon in the router, which presets nothing on sockets: a mark on the wire is the program's."""
    with Daemon(lab.router, preset_tos=False, orphan_grace_s=1, **UNPROBED) as daemon:
        yield daemon
        assert "Traceback" not in daemon.log, daemon.log


@pytest.fixture
def wire(lab: Lab, distant: Daemon) -> Iterator[Wire]:
    """Of one test; the application's namespace is let go of and its device bare again afterwards."""
    before = device_state(lab.app)
    with Wire(lab, distant) as made:
        yield made
        egress = Egress(made)
    assert eventually(lambda: "qos_egress" not in device_state(lab.app) and egress.tcx() == [])
    if "clsact" in device_state(lab.app):
        with contextlib.suppress(LabError):  # the daemon's may just have gone
            lab.app.run("tc", "qdisc", "delete", "dev", lab.app.device, "clsact")
    assert device_state(lab.app) == before


def _instruction(code: int, registers: int, offset: int, value: int) -> bytes:
    return struct.pack("<BBhi", code, registers, offset, value)


def _program(name: str, *code: bytes) -> Program:
    """The caller closes its descriptor."""
    text = b"".join(code)
    length = ctypes.c_size_t(len(text) // 8)
    descriptor = LIBBPF.bpf_prog_load(_BPF_PROG_TYPE_SCHED_CLS, name.encode(), b"GPL", text, length, None)
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    return Program(descriptor)


@contextmanager
def answering(verdict: int) -> Iterator[Program]:
    """A program with this verdict on every packet."""
    program = _program("foreign", _instruction(0xB7, 0, 0, verdict), _instruction(0x95, 0, 0, 0))
    yield program
    os.close(program.fd)


@contextmanager
def dropping_marked() -> Iterator[Program]:
    """A program that drops IPv4 packets with the DSCP of voice, and lets all others go on: it tells what it sees."""
    program = _program(
        "foreign_drop",
        _instruction(0xBF, 0x16, 0, 0),  # r6 = context
        _instruction(0x30, 0, 0, 15),  # r0 = the second byte behind the Ethernet header
        _instruction(0x57, 0, 0, 0xFC),
        _instruction(0x55, 0, 2, VOICE << 2),  # other than voice: two further
        _instruction(0xB7, 0, 0, _DROP),
        _instruction(0x95, 0, 0, 0),
        _instruction(0xB7, 0, 0, _GO_ON),
        _instruction(0x95, 0, 0, 0),
    )
    yield program
    os.close(program.fd)


class Egress:
    """Places foreign programs at the egress of the application's device."""

    def __init__(self, wire: Wire) -> None:
        self._lab = wire.lab
        self._pins = wire.daemon.directory / "bpf"
        self._number = 0

    def add_filter(self, program: Program, priority: int, side: str = "egress") -> None:
        """Below clsact, which is made if it is not there."""
        app = self._lab.app
        if "clsact" not in app.run("tc", "qdisc", "show", "dev", app.device):
            app.run("tc", "qdisc", "add", "dev", app.device, "clsact")
        self._number += 1
        pin = self._pins / f"foreign{self._number}"
        program.pin(pin)
        place = ("dev", app.device, side, "prio", str(priority), "handle", "9")
        app.run("tc", "filter", "add", *place, "bpf", "da", "object-pinned", str(pin))
        pin.unlink()

    def add_tcx(self, program: Program, *, first: bool) -> None:
        """A tcx program without a link, behind all others or before them."""
        with open(self._lab.app.path) as descriptor, links.Namespace(descriptor.fileno()) as namespace:
            index, flags = self._index(namespace), _BPF_F_BEFORE if first else 0
            assert not namespace.run(lambda: LIBBPF.bpf_prog_attach(program.fd, index, _BPF_TCX_EGRESS, flags))

    def remove_tcx(self, program: Program) -> None:
        with open(self._lab.app.path) as descriptor, links.Namespace(descriptor.fileno()) as namespace:
            index = self._index(namespace)
            assert not namespace.run(lambda: LIBBPF.bpf_prog_detach2(program.fd, index, _BPF_TCX_EGRESS))

    def tcx(self) -> list[int]:
        """Ids of the tcx programs in the order in which they run."""
        with open(self._lab.app.path) as descriptor, links.Namespace(descriptor.fileno()) as namespace:
            return tcx_programs(namespace, self._index(namespace))

    def foreign_filters(self) -> list[str]:
        """As tc(8) shows them; without ours."""
        app = self._lab.app
        shown = [app.run("tc", "filter", "show", "dev", app.device, side) for side in ("ingress", "egress")]
        return [line for text in shown for line in text.splitlines() if "handle 0x9 " in line]

    def root(self) -> str:
        """The device's root qdisc. While it changes, the kernel loses packets."""
        return self._lab.app.run("tc", "qdisc", "show", "dev", self._lab.app.device, "root")

    def _index(self, namespace: links.Namespace) -> int:
        return next(each.index for each in namespace.devices() if each.name == self._lab.app.device)


def flow(wire: Wire) -> tuple[qos2.Flow, socket.socket]:
    """A flow of voice in the application's namespace, and its socket."""
    sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect((wire.lab.peer.ipv4[0], wire.receiver().port))
    return wire.handle().add_socket(sock, TrafficType.VOICE), sock


def arrived(wire: Wire, sock: socket.socket) -> dict[int, int]:
    """How many of SENT datagrams arrived with each DSCP."""
    recording = wire.record()
    for _ in range(SENT):
        sock.send(bytes(100))
    return recording.stop().select(sport=sock.getsockname()[1]).dscps()


@pytest.mark.parametrize("when", ["before the daemon", "after the daemon"])
def test_filters_of_every_priority_and_ours_all_see_every_packet(wire: Wire, when: str) -> None:
    egress = Egress(wire)
    at_first = egress.root()
    with ExitStack() as stack:
        programs = [stack.enter_context(answering(_GO_ON)) for _ in range(4)]

        def add() -> None:
            for program, priority in zip(programs, (1, SAME_PRIORITY, LATE_PRIORITY), strict=False):
                egress.add_filter(program, priority)
            egress.add_filter(programs[3], 1, side="ingress")

        if when == "before the daemon":
            add()
        before = egress.foreign_filters()
        marked, sock = flow(wire)
        if when == "after the daemon":
            add()
            before = egress.foreign_filters()
        assert len(before) == 4
        assert arrived(wire, sock) == {VOICE: SENT}
        with counting():
            assert arrived(wire, sock) == {VOICE: SENT}
            assert [program.runs for program in programs[:3]] == [SENT] * 3
        assert marked.stats().packets == 2 * SENT
        assert egress.foreign_filters() == before
        marked.close()
        assert eventually(lambda: "qos_egress" not in device_state(wire.lab.app) and egress.tcx() == [])
        assert eventually(lambda: egress.root() == at_first)
        assert egress.foreign_filters() == before
        assert arrived(wire, sock) == {0: SENT}


def test_a_filter_behind_ours_sees_the_mark_and_one_before_it_only_where_there_is_tcx(wire: Wire) -> None:
    _, sock = flow(wire)
    egress = Egress(wire)
    with dropping_marked() as program:
        egress.add_filter(program, SAME_PRIORITY - 1)
        # tcx programs come before every filter.
        assert arrived(wire, sock) == ({} if HAS_TCX else {VOICE: SENT})
        egress.add_filter(program, SAME_PRIORITY + 1)
        assert arrived(wire, sock) == {}


def test_a_filter_that_ends_the_walk_hides_packets_from_those_behind_it_ours_too(wire: Wire) -> None:
    """What it accepts before ours is its administrator's will; ours ends no walk."""
    _, sock = flow(wire)
    egress = Egress(wire)
    with answering(_ACCEPT) as program:
        egress.add_filter(program, LATE_PRIORITY)
        assert arrived(wire, sock) == {VOICE: SENT}
        egress.add_filter(program, 1)
        assert arrived(wire, sock) == ({VOICE: SENT} if HAS_TCX else {0: SENT})


@needs_tcx
def test_tcx_programs_before_and_after_ours_run_and_stay_as_they_were(wire: Wire) -> None:
    egress = Egress(wire)
    with ExitStack() as stack:
        early, late, first = [stack.enter_context(answering(_GO_ON)) for _ in range(3)]
        egress.add_tcx(early, first=False)
        _, sock = flow(wire)
        egress.add_tcx(late, first=False)
        egress.add_tcx(first, first=True)
        ours = [number for number in egress.tcx() if number not in (early.id, late.id, first.id)]
        assert len(ours) == 1
        order = [first.id, ours[0], early.id, late.id]
        assert egress.tcx() == order
        arrived(wire, sock)
        with counting():
            assert arrived(wire, sock) == {VOICE: SENT}
            assert [program.runs for program in (first, early, late)] == [SENT] * 3
        wire.daemon.kill()
        assert egress.tcx() == order
        wire.daemon.start()
        assert egress.tcx() == [first.id, ours[0], early.id, late.id]
        assert arrived(wire, sock) == {VOICE: SENT}
        assert eventually(lambda: egress.tcx() == [first.id, early.id, late.id])  # the orphan has ended
        for program in (first, early, late):
            egress.remove_tcx(program)


@needs_tcx
@pytest.mark.parametrize("first", [True, False])
def test_a_tcx_program_sees_the_mark_if_it_is_behind_ours(wire: Wire, first: bool) -> None:
    _, sock = flow(wire)
    egress = Egress(wire)
    with dropping_marked() as program:
        egress.add_tcx(program, first=first)
        assert arrived(wire, sock) == ({VOICE: SENT} if first else {})
        egress.remove_tcx(program)


@needs_tcx
def test_a_tcx_program_that_accepts_before_ours_hides_packets_from_it(wire: Wire) -> None:
    _, sock = flow(wire)
    egress = Egress(wire)
    with answering(_ACCEPT) as program:
        egress.add_tcx(program, first=False)
        assert arrived(wire, sock) == {VOICE: SENT}
        egress.remove_tcx(program)
        egress.add_tcx(program, first=True)
        assert arrived(wire, sock) == {0: SENT}
        egress.remove_tcx(program)


def test_a_program_of_ours_that_somebody_removed_is_attached_again(wire: Wire) -> None:
    """As other agents do on kernels without tcx, which delete a device's clsact before they make theirs."""
    _, sock = flow(wire)
    app, egress = wire.lab.app, Egress(wire)
    assert arrived(wire, sock) == {VOICE: SENT}
    if HAS_TCX:
        (pin,) = [pin for pin in (wire.daemon.pins / "links").iterdir() if pin.name.startswith(f"{cookie(wire)}-")]
        link = open_pin(pin)
        assert not LIBBPF.bpf_link_detach(link)
        os.close(link)
        assert arrived(wire, sock) == {0: SENT}
        assert eventually(lambda: len(egress.tcx()) == 1)
    else:
        app.run("tc", "qdisc", "delete", "dev", app.device, "clsact")
        with contextlib.suppress(LabError):  # the daemon may have been faster
            app.run("tc", "qdisc", "add", "dev", app.device, "clsact")
        assert eventually(lambda: "qos_egress" in device_state(app))
    assert arrived(wire, sock) == {VOICE: SENT}


@pytest.mark.skipif(HAS_TCX, reason="this kernel has tcx, where nobody can have our place")
def test_a_device_where_a_filter_has_our_place_is_attached_as_soon_as_it_has_gone(wire: Wire) -> None:
    app = wire.lab.app
    place = (app.device, "egress", "prio", str(SAME_PRIORITY), "handle", hex(hook.FILTER_HANDLE))
    app.run("tc", "qdisc", "add", "dev", app.device, "clsact")
    app.run("tc", "filter", "add", "dev", *place, "protocol", "all", "bpf", "bytecode", "1,6 0 0 0,")
    marked, sock = flow(wire)
    (problem,) = wire.handle().status().datapath["problems"]
    assert f"device {app.device} is not attached" in problem
    assert arrived(wire, sock) == {0: SENT}
    app.run("tc", "filter", "delete", "dev", *place, "protocol", "all", "bpf")
    assert eventually(lambda: "qos_egress" in device_state(app))
    assert arrived(wire, sock) == {VOICE: SENT}
    assert marked.stats().packets == SENT
    assert wire.handle().status().datapath["problems"] == []


def cookie(wire: Wire) -> int:
    """Of the application's namespace."""
    with open(wire.lab.app.path) as descriptor, links.Namespace(descriptor.fileno()) as namespace:
        return namespace.cookie


def test_a_killed_daemon_finds_its_filter_under_a_clsact_of_others_in_another_namespace(wire: Wire) -> None:
    egress = Egress(wire)
    with answering(_GO_ON) as program:
        egress.add_filter(program, 1)
        before = device_state(wire.lab.app)
        marked, sock = flow(wire)
        marked.set_rate(100_000_000)  # so that none of the few waits
        wire.daemon.kill()
        assert arrived(wire, sock) == {VOICE: SENT}
        wire.daemon.start()
        assert arrived(wire, sock) == {VOICE: SENT}
        assert eventually(lambda: device_state(wire.lab.app) == before)  # the orphan has ended
        assert arrived(wire, sock) == {0: SENT}


def test_a_filter_under_a_clsact_of_others_leaves_a_pin_while_it_is_there(tmp_path: Path) -> None:
    """The same in parts, on kernels with tcx too."""
    with VethPair() as pair, bpf_file_system(tmp_path) as pins, loaded_program("qos_one") as program:
        pair.command("tc", "qdisc", "add", "dev", DEVICE, "clsact")
        before = pair.qdiscs(), pair.filters()
        attached = hook.attach(pair.near, pair.device.index, program.fd, pins / "dev", "clsact")
        assert [pin.name for pin in pins.iterdir()] == ["dev"]
        assert hook.in_place(attached)
        assert hook.adopt(pair.near, pair.device.index, pins / "dev") == attached
        hook.detach(attached)
        assert not hook.in_place(attached)
        assert list(pins.iterdir()) == []
        assert (pair.qdiscs(), pair.filters()) == before
