"""What must hold on every kernel that is supported, from the oldest to the newest: `./dev vm all` runs it on each.

Judged by what arrives at the peer, and by what is left on the host. It runs on the host's own kernel as well, and
leaves out there what that kernel lacks; in a virtual machine, whose kernel has everything, nothing may be left out.
"""

import itertools
import json
import os
import platform
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from demo.lab import Lab, command
from demo.packets import TCP, UDP
from demo.processes import Daemon, environment
from harness.contract import check_contract
from harness.device_state import device_state
from harness.guest import RELEASE as GUEST
from harness.routes import PLAIN, ROUTES, Route, add_vlans
from harness.wire import PATIENCE_S, UNPROBED, Wire, eventually, marks, port_of, read_to_end
from qos2 import Handle, TrafficType
from qos2.datapath import abi, loader

pytestmark = pytest.mark.datapath

VERSION = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
CONTRACT = 5_000_000
# packet(7), whose names Python lacks: struct tpacket_auxdata, of which the sixth is the tag.
ETH_P_ALL, SOL_PACKET, PACKET_AUXDATA = 3, 263, 8
AUXDATA = struct.Struct("=IIIHHHH")
SECONDS = 4.0


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """Overrides the package's: one without fq will do."""
    with Lab("qos2-test-smoke") as made:
        for address in ("198.51.100.4/24", "2001:db8:2::4/64"):
            nodad = ["nodad"] if ":" in address else []
            made.peer.run("ip", "address", "add", address, "dev", made.peer.device, *nodad)
        yield made


@pytest.fixture(scope="module")
def missing_vlans(lab: Lab) -> str:
    """Why there are no VLANs, or "". Before the daemon, so that it finds the lab as it has to leave it."""
    return add_vlans(lab, required=bool(GUEST))


@pytest.fixture(scope="module")
def before(lab: Lab, missing_vlans: str) -> str:
    """What traffic control had before there was a daemon."""
    return device_state(lab.app)


@pytest.fixture(scope="module")
def daemon(lab: Lab, before: str) -> Iterator[Daemon]:
    """Without presets: every mark is the datapath's own. One for all tests, of which the last two end it.

    To compile takes an emulated processor half a minute; from the start of the daemon to a test's next question 4 s.
    """
    with Daemon(lab.app, preset_tos=False, orphan_grace_s=8, **UNPROBED) as started:
        yield started
        assert "Traceback" not in started.log, started.log


@pytest.fixture
def route(request: pytest.FixtureRequest, missing_vlans: str) -> Route:
    """The route of a test's parameter."""
    chosen: Route = request.param
    if missing_vlans and chosen.device != PLAIN:
        pytest.skip(missing_vlans)
    return chosen


@pytest.fixture
def wire(lab: Lab, daemon: Daemon) -> Iterator[Wire]:
    """Sockets, captures and senders of one test."""
    with Wire(lab, daemon) as made:
        yield made


@pytest.fixture(scope="module")
def bpf_fs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bpf file system of this module's own."""
    mount = tmp_path_factory.mktemp("bpf")
    command("mount", "-t", "bpf", "bpf", str(mount))
    yield mount
    command("umount", str(mount))


def pinned(daemon: Daemon) -> dict[str, tuple[str, int]]:
    """("map" or "prog", the kernel's id) of everything that a daemon has pinned, by path."""
    return {
        str(pin): (kind, int(json.loads(command("bpftool", "-j", kind, "show", "pinned", str(pin)))["id"]))
        for kind, folder in (("map", "maps-*"), ("prog", "programs-*"))
        for pin in daemon.pins.glob(f"{folder}/*")
    }


def in_kernel() -> set[tuple[str, int]]:
    """("map" or "prog", id) of everything that the kernel has."""
    found = {kind: json.loads(command("bpftool", "-j", kind, "show")) for kind in ("map", "prog")}
    return {(kind, int(each["id"])) for kind, all_of_kind in found.items() for each in all_of_kind}


def cgroups() -> set[str]:
    """Those of `qos2 run`; others come and go meanwhile, which os.walk does not mind."""
    found = ((folder, name) for folder, names, _ in os.walk("/sys/fs/cgroup") for name in names)
    return {f"{folder}/{name}" for folder, name in found if name.startswith("qos2-")}


@contextmanager
def policy(wire: Wire, daemon: Daemon, rules: str) -> Iterator[None]:
    """These rules are in force; afterwards none, and the flows that they had end."""
    file, qos = daemon.policy / "rules.toml", wire.handle()
    before = flows_in_datapath(qos)
    file.write_text(rules)
    try:
        qos.reload()
        yield
    finally:
        file.unlink()
        qos.reload()
    assert eventually(lambda: flows_in_datapath(qos) == before)


def flows_in_datapath(qos: Handle) -> int:
    (occupied, _) = qos.status().datapath["map_entries"]["policy"]
    return int(occupied)


def test_the_kernels_own_headers_are_compiled_against() -> None:
    if not GUEST:
        pytest.skip("any kernel's headers serve on the host; in a virtual machine there are the kernel's own")
    headers = Path("/lib/modules", GUEST, "build", "include", "generated", "utsrelease.h").read_text()
    assert platform.release() == GUEST
    assert f'"{GUEST}"' in headers
    assert loader.find_headers() == loader.Headers(None)


def test_the_loader_compiles_and_the_kernel_takes_every_program(bpf_fs: Path) -> None:
    """For devices without Ethernet; the daemon of the other tests does it for those with."""
    maps, programs, link = bpf_fs / "maps", bpf_fs / "programs", "none"
    maps.mkdir()
    done = subprocess.run(
        (sys.executable, "-m", "qos2.datapath.loader", str(maps), str(programs), "1024", link),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    report = json.loads(done.stdout)
    assert (done.returncode, sorted(report)) == (0, ["layout"]), report
    abi.check(report["layout"])
    assert {pin.name for pin in maps.iterdir()} == set(loader.MAPS)
    assert {pin.name for pin in programs.iterdir()} == {*loader.STAGES, *loader.SOCKET_PROGRAMS}


def test_the_daemon_is_attached_by_the_newest_hook_that_the_kernel_has(lab: Lab, wire: Wire) -> None:
    (device,) = wire.handle().status().datapath["devices"]
    attached, tcx = device_state(lab.app), VERSION >= (6, 6)
    assert (device["name"], device["hook"]) == (lab.app.device, "tcx" if tcx else "clsact")
    assert (re.search(rf"^tcx {lab.app.device} \[\d+\]$", attached, re.MULTILINE) is not None) == tcx
    assert ("qdisc clsact" in attached) == ("qos_egress" in attached) == (not tcx)


def sent_over(lab: Lab, device: str) -> int:
    """Packets that a device of the application has sent so far."""
    (link,) = json.loads(lab.app.run("ip", "-j", "-s", "link", "show", "dev", device))
    return int(link["stats64"]["tx"]["packets"])


@pytest.mark.parametrize("route", ROUTES, ids=str, indirect=True)
def test_udp_is_marked_on_the_wire(wire: Wire, route: Route) -> None:
    recording, receiver, qos = wire.record(), wire.receiver(), wire.handle()
    sock = wire.sender(route.family, socket.SOCK_DGRAM)
    sock.connect((route.host, receiver.port))
    before = sent_over(wire.lab, route.device)
    for _ in range(2):
        sock.send(b"datagram")
    with_flow = qos.add_socket(sock, TrafficType.VOICE)
    for _ in range(5):
        sock.send(b"datagram")
    with_flow.close()
    for _ in range(3):
        sock.send(b"datagram")
    receiver.expect(10)
    assert marks(recording.stop().select(protocol=UDP, dport=receiver.port)) == [0] * 2 + [56] * 5 + [0] * 3
    assert sent_over(wire.lab, route.device) >= before + 10


@pytest.mark.parametrize("route", ROUTES, ids=str, indirect=True)
def test_tcp_is_marked_on_the_wire_from_syn_to_fin(wire: Wire, route: Route) -> None:
    recording, listener = wire.record(), wire.listener()
    sock = wire.sender(route.family, socket.SOCK_STREAM)
    wire.handle().add_socket(sock, TrafficType.AUDIO_VIDEO, dest=(route.host, port_of(listener)))
    sock.connect((route.host, port_of(listener)))
    accepted = wire.accept(listener)
    sock.sendall(bytes(100_000))
    sock.shutdown(socket.SHUT_WR)
    assert read_to_end(accepted) == 100_000
    accepted.close()
    assert read_to_end(sock) == 0
    packets = recording.stop().select(protocol=TCP, sport=port_of(sock))
    assert packets.dscps() == {40: len(packets)}
    assert packets.ip_bytes.sum() > 100_000
    assert packets.checksum_ok.all()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_accepted_sockets_inherit_the_flow(wire: Wire, family: socket.AddressFamily) -> None:
    recording, listener = wire.record(), wire.listener("app")
    wire.handle().add_socket(listener, TrafficType.AUDIO_VIDEO)
    own = wire.lab.app.ipv4[0] if family == socket.AF_INET else wire.lab.app.ipv6[0]
    with wire.lab.peer.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(PATIENCE_S)
        client.connect((own, port_of(listener)))
        accepted = wire.accept(listener)
        accepted.sendall(bytes(50_000))
        accepted.close()
        assert read_to_end(client) == 50_000
    packets = recording.stop().select(protocol=TCP, sport=port_of(listener))
    # The SYN-ACK and the last ACK are the kernel's own: no socket is there yet, or any more.
    data = packets.where(packets.ip_bytes > 100)
    assert data.dscps() == {40: len(data)}
    assert data.ip_bytes.sum() > 50_000


def test_two_processors_that_send_in_one_flow_keep_its_rate(wire: Wire) -> None:
    qos, port = wire.handle(), wire.receiver().port
    sockets = [wire.sender(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in sockets:
        sock.connect((ROUTES[0].host, port))
    flow = qos.add_socket(sockets[0], TrafficType.VOICE)
    flow.add_socket(sockets[1])
    flow.set_rate(CONTRACT)
    (device,) = qos.status().datapath["devices"]
    if GUEST:
        assert device["shaper"] == "fq"
    processors = sorted(os.sched_getaffinity(0))
    floods = [wire.flood(sock, 1472, cpu=cpu) for sock, cpu in zip(sockets, itertools.cycle(processors), strict=False)]
    recording = wire.record()
    for flood in floods:
        flood.begin()
    time.sleep(SECONDS)
    packets = recording.stop().select(protocol=UDP, dport=port)
    for flood in floods:
        flood.stop()
    check_contract(packets, CONTRACT, seconds=SECONDS)
    assert set(packets.sport.tolist()) == {port_of(sock) for sock in sockets}
    assert packets.dscps() == {56: len(packets)}
    assert sum(flow.stats().dropped_packets.values()) == 0


def test_an_unchanged_program_joins_a_flow_by_its_cgroup(wire: Wire) -> None:
    before, receiver, recording = cgroups(), wire.receiver(), wire.record()
    program = (
        "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); "
        "[s.sendto(b'x', (sys.argv[1], int(sys.argv[2]))) for _ in range(3)]"
    )
    argv = ("-m", "qos2.cli", "--socket", wire.daemon.socket, "run", "--type", "background", "--")
    wire.lab.app.popen(
        *(sys.executable, *argv, sys.executable, "-c", program, ROUTES[0].host, str(receiver.port)), env=environment()
    )
    receiver.expect(3)
    assert marks(recording.stop().select(dport=receiver.port)) == [8] * 3
    assert eventually(lambda: cgroups() == before)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
def test_rules_mark_what_nobody_registered(wire: Wire, daemon: Daemon, family: socket.AddressFamily) -> None:
    """From the reload on, also of sockets that were there before; by what a packet says of itself, and by host."""
    recording, receiver = wire.record(), wire.receiver()
    marked = '[[rule]]\nname = "marked"\nprecedence = 200\nmatch.dscp = 46\nact.traffic_type = "voice"\n'
    match = f'[[rule]]\nname = "rest"\nmatch.remote_port = {receiver.port}\n'
    host = ROUTES[0].host if family == socket.AF_INET else ROUTES[1].host
    early, late = (wire.sender(family, socket.SOCK_DGRAM) for _ in range(2))
    early.connect((host, receiver.port))
    early.send(b"datagram")
    with policy(wire, daemon, marked + match + 'act = { dscp = 8, rate = "100M", bucket = "host" }\n'):
        early.send(b"datagram")
        late.connect((host, receiver.port))
        late.send(b"datagram")
        ip = family == socket.AF_INET
        level, option = (socket.IPPROTO_IP, socket.IP_TOS) if ip else (socket.IPPROTO_IPV6, socket.IPV6_TCLASS)
        late.setsockopt(level, option, 46 << 2)
        for _ in range(2):
            late.send(b"datagram")
    early.send(b"datagram")
    receiver.expect(6)
    packets = recording.stop().select(protocol=UDP, dport=receiver.port)
    assert marks(packets) == [0, 8, 8, 56, 56, 0]


@pytest.mark.parametrize("route", [each for each in ROUTES if each.device != PLAIN], ids=str, indirect=True)
def test_a_rule_gives_tagged_frames_their_802_1p_priority(wire: Wire, daemon: Daemon, route: Route) -> None:
    """The outer tag: a switch looks at no other."""
    receiver, payload = wire.receiver(), b"a tagged frame"
    sock = wire.sender(route.family, socket.SOCK_DGRAM)
    sock.connect((route.host, receiver.port))
    rule = f'[[rule]]\nname = "tagged"\nmatch.remote_port = {receiver.port}\nact.priority = 5\n'
    with wire.lab.router.entered():
        tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    with tap:
        tap.bind(("to-app", ETH_P_ALL))
        tap.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        tap.settimeout(PATIENCE_S)
        sock.send(payload)
        with policy(wire, daemon, rule):
            for _ in range(2):
                sock.send(payload)
        sock.send(payload)
        tags: list[int] = []
        while len(tags) < 4:
            frame, told, _, _ = tap.recvmsg(2048, 128)
            if frame.endswith(payload):
                tags.append(AUXDATA.unpack(told[0][2])[5])
    assert tags == [5, 5 | 5 << 13, 5 | 5 << 13, 5]


def test_status_names_what_the_kernel_lacks(wire: Wire) -> None:
    features = dict(wire.handle().status().datapath["features"])
    expected = {
        "tcx": VERSION >= (6, 6),
        "netns_cookie": VERSION >= (5, 14),
        "netns_match": VERSION >= (6, 15),
        "compare_and_swap": VERSION >= (5, 12),
        "fq": True,
        "htb": True,
        "cgroup2": True,
    }
    if not GUEST:
        for name in ("fq", "htb", "cgroup2"):
            expected[name] = features[name]  # as the host's kernel was built
    assert features == expected
    said = wire.lab.app.run(sys.executable, "-m", "qos2.cli", "--socket", wire.daemon.socket, "status")
    sheet = dict(each.split(maxsplit=1) for each in said.splitlines() if each.split()[:1] in (["present"], ["missing"]))
    missing = sorted(name for name, present in expected.items() if not present)
    present = sorted(name for name, present in expected.items() if present)
    assert {word: names.strip().split(", ") for word, names in sheet.items()} == {
        "present": present or ["none"],
        "missing": missing or ["none"],
    }


def test_sockets_of_other_namespaces_are_served_where_the_kernel_names_the_namespace(wire: Wire) -> None:
    recording, receiver = wire.record(), wire.receiver()
    with wire.lab.router.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((ROUTES[0].host, receiver.port))
        wire.handle().add_socket(sock, TrafficType.VOICE)
        sock.send(b"datagram")
        receiver.expect(1)
        packets = recording.stop().select(dport=receiver.port, sport=port_of(sock))
    assert marks(packets) == [56 if VERSION >= (5, 14) else 0]


def test_flows_outlive_a_killed_daemon_and_the_next_one_takes_them_over(lab: Lab, daemon: Daemon) -> None:
    with Wire(lab, daemon) as wire:
        recording, receiver = wire.record(), wire.receiver()
        sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((ROUTES[0].host, receiver.port))
        wire.handle().add_socket(sock, TrafficType.VOICE)
        sock.send(b"datagram")
        attached, pins = device_state(lab.app), pinned(daemon)
        daemon.kill()
        sock.send(b"datagram")
        assert device_state(lab.app) == attached
        daemon.start()
        sock.send(b"datagram")
        qos = wire.handle()
        assert qos.status().orphans == 1
        flow = qos.add_socket(sock, TrafficType.BACKGROUND)
        sock.send(b"datagram")
        assert eventually(lambda: qos.status().orphans == 0)
        assert (device_state(lab.app), pinned(daemon)) == (attached, pins), "nothing twice, nothing anew"
        sock.send(b"datagram")
        flow.close()
        sock.send(b"datagram")
        receiver.expect(6)
        assert marks(recording.stop().select(dport=receiver.port)) == [56, 56, 56, 8, 8, 0]


def test_a_daemon_that_ends_leaves_nothing_also_when_another_was_killed_before_it(
    lab: Lab, daemon: Daemon, before: str
) -> None:
    with Wire(lab, daemon) as wire:
        sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((ROUTES[0].host, wire.receiver().port))
        wire.handle().add_socket(sock, TrafficType.VOICE).set_rate(CONTRACT)
        sock.send(b"datagram")
        assert device_state(lab.app) != before
        made = set(pinned(daemon).values())
        assert made <= in_kernel()
        daemon.kill()
        daemon.start()
    assert daemon.stop() == 0
    assert not daemon.pins.exists()
    assert not Path(daemon.socket).exists()
    assert device_state(lab.app) == before
    assert eventually(lambda: not made & in_kernel()), "maps or programs are left in the kernel"
