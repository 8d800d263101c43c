"""Hooks on a real device: they outlive their process, are never doubled, and leave others' filters alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.veth_pair import (
    DEVICE,
    HAS_TCX,
    Program,
    VethPair,
    bpf_file_system,
    counting,
    flooding,
    loaded_program,
)
from qos2.datapath import hook
from qos2.datapath.hook import HookKind
from qos2.datapath.tc import CLSACT_EGRESS, TrafficControl
from qos2.errors import DatapathError, DeviceGone

pytestmark = pytest.mark.datapath

needs_tcx = pytest.mark.skipif(not HAS_TCX, reason="this kernel has no tcx (it came with 6.6)")
KINDS = (pytest.param("tcx", marks=needs_tcx), "clsact")


@pytest.fixture
def pair() -> Iterator[VethPair]:
    with VethPair() as made:
        yield made


@pytest.fixture
def pins(tmp_path: Path) -> Iterator[Path]:
    with bpf_file_system(tmp_path) as folder:
        yield folder


@pytest.fixture
def program() -> Iterator[Program]:
    with loaded_program("qos_one") as loaded:
        yield loaded


@pytest.fixture
def foreign(pair: VethPair, pins: Path) -> Iterator[tuple[list[int], tuple[str, ...]]]:
    """Another agent's tcx program and clsact filter: the programs' ids, the dump of the filters."""
    with loaded_program("foreign") as other:
        other.pin(pins / "foreign")
        if HAS_TCX:
            pair.attach_foreign_tcx(other.fd)
        pair.command("tc", "qdisc", "add", "dev", DEVICE, "clsact")
        pinned = str(pins / "foreign")
        pair.command("tc", "filter", "add", "dev", DEVICE, "egress", "prio", "5", "bpf", "da", "object-pinned", pinned)
        yield pair.tcx_programs(), pair.filters()
        (pins / "foreign").unlink()


def own_filters(pair: VethPair) -> list[str]:
    return [found.name for found in pair.tc.filters(CLSACT_EGRESS) if found.name.startswith("qos_")]


def hooks_of_ours(pair: VethPair, program: Program) -> int:
    return len(own_filters(pair)) + pair.tcx_programs().count(program.id)


@pytest.mark.parametrize("kind", KINDS)
def test_every_packet_meets_the_program_until_it_is_detached(
    pair: VethPair, pins: Path, program: Program, kind: HookKind
) -> None:
    before = pair.qdiscs(), pair.filters(), pair.tcx_programs()
    attached = hook.attach(pair.near, pair.device.index, program.fd, pins / "dev", kind)
    assert attached.kind == kind
    with counting(), pair.receiver() as receiver, pair.sender() as sender:
        sent = -pair.sent_packets()
        for _ in range(23):
            sender.send(b"x")
            receiver.recv(100)
        sent += pair.sent_packets()
        hook.detach(attached)
        sender.send(b"x")
        receiver.recv(100)
        assert sent >= 23
        assert program.runs == sent
    assert (pair.qdiscs(), pair.filters(), pair.tcx_programs()) == before
    assert list(pins.iterdir()) == []


def test_tcx_is_taken_where_the_kernel_has_it_else_clsact(pair: VethPair, pins: Path, program: Program) -> None:
    attached = hook.attach(pair.near, pair.device.index, program.fd, pins / "dev")
    assert attached.kind == ("tcx" if HAS_TCX else "clsact")
    assert hooks_of_ours(pair, program) == 1


CHILD = """
import os, signal, sys
from pathlib import Path
from harness.veth_pair import loaded_program
from qos2.datapath import hook
from qos2.datapath.links import Namespace
namespace = Namespace(int(sys.argv[1]))
with loaded_program("qos_child") as program:
    hook.attach(namespace, int(sys.argv[2]), program.fd, Path(sys.argv[3]), sys.argv[4])
    print(program.id, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("kind", KINDS)
def test_a_hook_survives_kill_9_and_the_next_daemon_adopts_it_without_a_second_one(
    pair: VethPair, pins: Path, program: Program, kind: HookKind
) -> None:
    index, before = pair.device.index, (pair.qdiscs(), pair.filters())
    assert hook.adopt(pair.near, index, pins / "dev") is None
    namespace = pair.near.fileno()
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(namespace), str(index), str(pins / "dev"), kind],
        pass_fds=[namespace],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    left = int(child.stdout)
    assert [left] == (pair.tcx_programs() if kind == "tcx" else program_ids(pair))

    adopted = hook.adopt(pair.near, index, pins / "dev")
    assert adopted == hook.Hook(pair.near, index, kind, pins / "dev")
    again = hook.attach(pair.near, index, program.fd, pins / "dev")
    assert again == adopted
    assert [program.id] == (pair.tcx_programs() if kind == "tcx" else program_ids(pair))
    hook.detach(again)
    assert (pair.qdiscs(), pair.filters()) == before
    assert pair.tcx_programs() == []


def program_ids(pair: VethPair) -> list[int]:
    shown = json.loads(pair.filters()[1])
    return [entry["options"]["prog"]["id"] for entry in shown if "prog" in entry.get("options", {})]


@pytest.mark.parametrize("kind", KINDS)
def test_replacing_the_program_under_traffic_misses_no_packet(
    pair: VethPair, pins: Path, program: Program, kind: HookKind
) -> None:
    with loaded_program("qos_two") as second, counting():
        attached = hook.attach(pair.near, pair.device.index, program.fd, pins / "dev", kind)
        before = pair.sent_packets()
        with pair.sender() as sender, flooding(sender, 100):
            replacements = 0
            while replacements < 300 or min(program.runs, second.runs) < 1000:
                hook.replace(attached, (second if replacements % 2 == 0 else program).fd)
                replacements += 1
        passed = pair.sent_packets() - before
        assert program.runs + second.runs == passed
        hook.detach(attached)


@pytest.mark.parametrize("kind", KINDS)
def test_foreign_filters_and_programs_are_the_same_before_during_and_after(
    pair: VethPair, pins: Path, program: Program, foreign: tuple[list[int], tuple[str, ...]], kind: HookKind
) -> None:
    other, filters = foreign
    qdiscs = pair.qdiscs()
    attached = hook.attach(pair.near, pair.device.index, program.fd, pins / "dev", kind)
    if kind == "tcx":
        assert pair.tcx_programs() == [program.id, *other]
        assert pair.filters() == filters
    else:
        assert pair.tcx_programs() == other
        assert [entry for entry in json.loads(pair.filters()[1]) if entry["pref"] == 5] == json.loads(filters[1])
    hook.replace(attached, program.fd)
    hook.detach(attached)
    assert pair.tcx_programs() == other
    assert pair.filters() == filters
    assert pair.qdiscs() == qdiscs


def test_a_clsact_of_ours_stays_while_a_foreign_filter_is_in_it(pair: VethPair, pins: Path, program: Program) -> None:
    attached = hook.attach(pair.near, pair.device.index, program.fd, pins / "dev", "clsact")
    with loaded_program("foreign") as other:
        pair.tc.set_bpf_filter(other.fd, parent=CLSACT_EGRESS, priority=9, handle=1, name="foreign", replace=False)
        hook.detach(attached)
        assert [found.name for found in pair.tc.filters(CLSACT_EGRESS) if found.handle] == ["foreign"]
    assert list(pins.iterdir()) == []


def test_a_foreign_filter_in_our_place_is_refused_and_left_alone(pair: VethPair, pins: Path, program: Program) -> None:
    pair.command("tc", "qdisc", "add", "dev", DEVICE, "clsact")
    with loaded_program("foreign") as other:
        place = {"priority": hook.FILTER_PRIORITY, "handle": hook.FILTER_HANDLE}
        pair.tc.set_bpf_filter(other.fd, parent=CLSACT_EGRESS, name="foreign", replace=False, **place)
        before = pair.filters()
        with pytest.raises(DatapathError, match="foreign bpf filter 'foreign'"):
            hook.attach(pair.near, pair.device.index, program.fd, pins / "dev", "clsact")
        assert pair.filters() == before


@needs_tcx
@pytest.mark.parametrize(("first", "then"), [("clsact", "tcx"), ("tcx", "clsact")])
def test_a_hook_of_the_other_kind_is_detached_when_one_kind_is_asked_for(
    pair: VethPair, pins: Path, program: Program, first: HookKind, then: HookKind
) -> None:
    index = pair.device.index
    hook.attach(pair.near, index, program.fd, pins / "dev", first)
    assert hook.attach(pair.near, index, program.fd, pins / "dev", then).kind == then
    assert hooks_of_ours(pair, program) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_pin_of_a_device_that_has_gone_is_removed(
    pair: VethPair, pins: Path, program: Program, kind: HookKind
) -> None:
    index = pair.device.index
    attached = hook.attach(pair.near, index, program.fd, pins / "dev", kind)
    pair.command("ip", "link", "delete", DEVICE)
    with pytest.raises(DeviceGone):
        hook.replace(attached, program.fd)
    assert hook.adopt(pair.near, index, pins / "dev") is None
    assert list(pins.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_detaching_from_a_device_that_has_gone_is_fine(
    pair: VethPair, pins: Path, program: Program, kind: HookKind
) -> None:
    attached = hook.attach(pair.near, pair.device.index, program.fd, pins / "dev", kind)
    pair.command("ip", "link", "delete", DEVICE)
    hook.detach(attached)
    assert list(pins.iterdir()) == []


@pytest.mark.parametrize("kind", KINDS)
def test_attaching_to_no_device_says_so_and_leaves_nothing(
    pair: VethPair, pins: Path, program: Program, kind: HookKind
) -> None:
    with pytest.raises(DeviceGone, match="4711"):
        hook.attach(pair.near, 4711, program.fd, pins / "dev", kind)
    assert list(pins.iterdir()) == []


@needs_tcx
def test_a_pin_outside_a_bpf_file_system_is_refused_and_nothing_stays_attached(
    pair: VethPair, program: Program, tmp_path: Path
) -> None:
    with pytest.raises(DatapathError, match="bpf file system"):
        hook.attach(pair.near, pair.device.index, program.fd, tmp_path / "dev", "tcx")
    assert pair.tcx_programs() == []


def test_a_clsact_that_was_there_is_not_removed_with_our_filter(pair: VethPair, pins: Path, program: Program) -> None:
    pair.command("tc", "qdisc", "add", "dev", DEVICE, "clsact")
    before = pair.qdiscs()
    hook.detach(hook.attach(pair.near, pair.device.index, program.fd, pins / "dev", "clsact"))
    assert pair.qdiscs() == before


def test_our_marker_does_not_hinder_when_somebody_removed_our_filter(
    pair: VethPair, pins: Path, program: Program
) -> None:
    index = pair.device.index
    hook.attach(pair.near, index, program.fd, pins / "dev", "clsact")
    TrafficControl(pair.near.conversation, index).delete_filter(
        parent=CLSACT_EGRESS, priority=hook.FILTER_PRIORITY, handle=hook.FILTER_HANDLE
    )
    assert hook.attach(pair.near, index, program.fd, pins / "dev").kind == ("tcx" if HAS_TCX else "clsact")
    assert hooks_of_ours(pair, program) == 1
