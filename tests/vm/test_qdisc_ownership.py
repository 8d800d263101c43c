"""Whose qdiscs they are: the kernel's defaults are replaced and put back exactly, an administrator's are never touched.

The daemon lives in another namespace than the flows: so it watches every device of theirs, of all kinds at once, and
lets go of all of them with the last flow. Runs on every kernel; one with fq shows more.
"""

import fcntl
import json
import os
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

import qos2
from demo.lab import Lab, LabError
from demo.processes import Daemon
from harness.device_state import device_state, without_ours
from harness.wire import UNPROBED, eventually
from qos2 import TrafficType
from qos2.datapath.shapers import available_kinds

pytestmark = pytest.mark.datapath

QUEUES = 4
_TUNSETIFF, _IFF_TAP, _IFF_MULTI_QUEUE, _IFF_NO_PI = 0x400454CA, 0x2, 0x100, 0x1000
#: One device each; of the kinds that this kernel has. A leading "parent" is one more qdisc below the one before.
ADMINISTRATORS = {
    "pfifo": ["root handle 7: pfifo limit 77"],
    "pfifo_fast": ["root pfifo_fast"],  # the kind of a default, but chosen
    "fq_codel": ["root handle 7: fq_codel limit 777"],
    "fq": ["root handle 7: fq flow_limit 77 maxrate 70mbit"],
    "sfq": ["root handle 7: sfq perturb 10"],
    "tbf": ["root handle 7: tbf rate 70mbit burst 32k limit 64k", "parent 7:1 pfifo limit 77"],
    "prio": ["root handle 7: prio bands 3", "parent 7:1 handle 71: pfifo limit 77"],
    "htb": ["root handle 7: htb default 1"],
    "netem": ["root handle 7: netem delay 1ms"],
    "cake": ["root handle 7: cake bandwidth 70mbit"],
    "drr": ["root handle 7: drr"],
    "mq-leaf": ["root handle 7: mq", "parent 7:2 pfifo limit 77"],
    "mq-ours-alike": ["root handle 5153: mq", "parent 5153:1 handle 5152: pfifo limit 77"],
}
#: Every kernel that is supported has these; that they are here shows that the list above was tried.
COMMON = {"pfifo", "pfifo_fast", "htb", "mq-leaf", "mq-ours-alike"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("qos2-test") as made:
        yield made


@pytest.fixture(scope="module")
def distant(lab: Lab) -> Iterator[Daemon]:
    """A daemon in the router."""
    with Daemon(lab.router, orphan_grace_s=30, **UNPROBED) as daemon:
        yield daemon
        assert "Traceback" not in daemon.log, daemon.log


@contextmanager
def flow(lab: Lab, daemon: Daemon) -> Iterator[qos2.Handle]:
    """A flow in the application's namespace that is held back, and has sent something."""
    with (
        qos2.Handle(daemon.socket) as qos,
        lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
    ):
        receiver.bind((lab.peer.ipv4[0], 0))
        sock.connect(receiver.getsockname())
        qos.add_socket(sock, TrafficType.VOICE).set_rate(1_000_000)
        for _ in range(3):
            sock.send(bytes(1472))  # of the size that htb's rates are reckoned for: the daemon has nothing to correct
        yield qos


@contextmanager
def devices(lab: Lab, *lines: str) -> Iterator[None]:
    """More devices in the application's namespace, by arguments of `ip link add`; each is removed afterwards."""
    with ExitStack() as undo:
        for line in lines:
            lab.app.run("ip", "link", "add", *line.split())
            undo.callback(lab.app.run, "ip", "link", "delete", line.split()[0])
        yield


@contextmanager
def tap(lab: Lab, name: str, *, queues: int) -> Iterator[None]:
    """A device of its own wire with so many transmit queues, which has a default qdisc with each; nobody reads it."""
    flags = _IFF_TAP | _IFF_NO_PI | (_IFF_MULTI_QUEUE if queues > 1 else 0)
    with ExitStack() as stack, lab.app.entered():
        for _ in range(queues):
            queue = os.open("/dev/net/tun", os.O_RDWR)
            stack.callback(os.close, queue)
            fcntl.ioctl(queue, _TUNSETIFF, struct.pack("16sH22x", name.encode(), flags))
        yield


@contextmanager
def of_every_kind(lab: Lab) -> Iterator[None]:
    """Devices with each default that the kernel has: none, one queue, many queues, and none yet, as it is down."""
    with (
        devices(
            lab,
            f"pair0 numtxqueues {QUEUES} numrxqueues {QUEUES} type veth peer name pair1",
            "stacked0 link eth0 type macvlan",
            "bridge0 type bridge",
        ),
        tap(lab, "single0", queues=1),
        tap(lab, "many0", queues=QUEUES),
        tap(lab, "down0", queues=1),
    ):
        for device in ("pair0", "pair1", "single0", "many0", "stacked0", "bridge0"):
            lab.app.run("ip", "link", "set", device, "up")
        yield


def roots(lab: Lab) -> dict[str, tuple[str, str]]:
    """Device -> kind and handle of its root qdisc; not of a device that has none."""
    shown = json.loads(lab.app.run("tc", "-j", "qdisc", "show"))
    return {each["dev"]: (each["kind"], each["handle"]) for each in shown if each.get("root")}


@pytest.mark.parametrize("end", ["flow closed", "daemon stopped", "daemon killed, started and stopped"])
def test_what_the_kernel_has_by_default_is_replaced_and_put_back_exactly(lab: Lab, distant: Daemon, end: str) -> None:
    with of_every_kind(lab):
        before = device_state(lab.app)
        with flow(lab, distant):
            kind = "fq" if "fq" in available_kinds() else "htb"
            placed = dict.fromkeys(("eth0", "pair0", "pair1", "single0", "down0"), (kind, "5152:"))
            placed["many0"] = ("mq" if kind == "fq" else "htb", "5152:")
            stacked = {"lo": ("noqueue", "0:"), "stacked0": ("noqueue", "0:"), "bridge0": ("noqueue", "0:")}
            assert roots(lab) == placed | stacked
            if kind == "fq":
                shown = json.loads(lab.app.run("tc", "-j", "qdisc", "show", "dev", "many0"))
                assert Counter(each["kind"] for each in shown if not each.get("root")) - Counter(clsact=1) == {
                    "fq": QUEUES
                }
            during = device_state(lab.app)
            if end == "daemon stopped":
                assert distant.stop() == 0
            elif end != "flow closed":
                distant.kill()
                assert device_state(lab.app) == during
                distant.start()
                assert device_state(lab.app) == during
                assert distant.stop() == 0
        if end == "flow closed":
            assert eventually(lambda: device_state(lab.app) == before)
        assert device_state(lab.app) == before
    if end != "flow closed":
        distant.start()


@contextmanager
def with_administrators(lab: Lab) -> Iterator[set[str]]:
    """A device for each of ADMINISTRATORS' qdiscs that the kernel has, and which those are; eth0 has one too."""
    had = set()
    with ExitStack() as undo:
        root = ("dev", "eth0", "root")
        lab.app.run("tc", "qdisc", "replace", *root, "handle", "7:", "pfifo", "limit", "1000")
        undo.callback(lab.app.run, "tc", "qdisc", "delete", *root)
        for number, (name, lines) in enumerate(ADMINISTRATORS.items()):
            device = f"adm{number}"
            veth = f"type veth peer name peer{number} netns {lab.router.name}"
            with ExitStack() as own:
                own.enter_context(devices(lab, f"{device} numtxqueues {QUEUES} numrxqueues {QUEUES} {veth}"))
                lab.app.run("ip", "link", "set", device, "up")
                try:
                    for line in lines:
                        lab.app.run("tc", "qdisc", "add", "dev", device, *line.split())
                except LabError as error:
                    if "unknown" not in str(error):  # so says tc of the kernel's ENOENT
                        raise
                    continue
                if name == "htb":
                    lab.app.run(*f"tc class add dev {device} parent 7: classid 7:1 htb rate 70mbit".split())
                    lab.app.run(*f"tc qdisc add dev {device} parent 7:1 handle 71: pfifo limit 77".split())
                    everything = ("bytecode", "1,6 0 0 4294967295,", "classid", "7:1")
                    lab.app.run(*f"tc filter add dev {device} parent 7: prio 5 protocol all bpf".split(), *everything)
                had.add(name)
                undo.enter_context(own.pop_all())
        yield had


def test_an_administrators_qdisc_is_never_touched_whatever_becomes_of_the_daemon(lab: Lab, distant: Daemon) -> None:
    with with_administrators(lab) as had:
        assert had >= COMMON
        before = device_state(lab.app)
        kept = without_ours(before)
        with flow(lab, distant) as qos:
            chosen = {device["name"]: device["shaper"] for device in qos.status().datapath["devices"]}
            expected = {
                f"adm{number}": "fq" if name == "fq" else "police"
                for number, name in enumerate(ADMINISTRATORS)
                if name in had
            }
            assert {name: chosen[name] for name in expected} == expected
            assert without_ours(device_state(lab.app)) == kept
            distant.kill()
            assert without_ours(device_state(lab.app)) == kept
            distant.start()
            assert without_ours(device_state(lab.app)) == kept
        assert distant.stop() == 0
        assert device_state(lab.app) == before
    distant.start()


def test_a_device_that_a_restarted_daemon_is_no_longer_told_to_watch_is_put_back() -> None:
    """`devices` was changed, and the daemon killed: nobody else would take its qdisc and its program away."""
    with Lab("qos2-test") as lab, tap(lab, "other0", queues=1):
        lab.app.run("ip", "link", "set", "other0", "up")
        before = device_state(lab.app)
        with Daemon(lab.app, **UNPROBED) as daemon:
            with flow(lab, daemon):
                assert roots(lab)["eth0"][1] == "5152:"
                daemon.kill()
                lab.app.device = "other0"
                daemon.start()
                assert (roots(lab)["eth0"], roots(lab)["other0"][1]) == (("noqueue", "0:"), "5152:")
                changed = [line for line in device_state(lab.app).splitlines() if line not in before]
                assert [line for line in changed if "eth0" in line] == []
            assert daemon.stop() == 0
        assert device_state(lab.app) == before
