"""Compiled programs that are kept: a start without compiler loads the same as one with it, and marks the same.

What else is told of a kept file, needs no kernel and is in tests/unit/test_compiled.py.
"""

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demo.lab import Lab, command
from demo.packets import UDP
from demo.processes import Daemon
from harness.program import compiled
from harness.wire import UNPROBED, Wire, marks
from qos2 import Handle, TrafficType
from qos2.datapath import cache, loader
from qos2.datapath.compiled import Compiled
from qos2.datapath.objects import Objects, load, spec_of
from qos2.errors import DatapathError, MissingKernelFeature

pytestmark = pytest.mark.datapath

_SLOTS = 64
#: Marks are the programs' alone: the kernel is not told to write them.
_SETTINGS = UNPROBED | {"preset_tos": False}
#: Fields of bpftool that are of one object and not of what it is made of.
_ITS_OWN = {"id", "loaded_at", "uid", "pids", "map_ids", "btf_id", "pinned", "frozen", "owner_prog_type", "owner_jited"}
#: r0 = r9, which nothing was ever put into; then the end.
_REFUSED = bytes((0xBF, 0x90, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0))
#: What a start is told to have gone through, in the daemon's log.
_COMPILED_ANEW = "compiling the datapath"


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    """A lab without the session's daemon."""
    with Lab("qos2-test-kept") as lab:
        yield lab


@pytest.fixture(scope="module")
def fresh(bpf_fs: Path) -> Compiled:
    """What the daemons of this checkout load; compiled now, if none of them has run."""
    scratch = bpf_fs / "fresh"
    scratch.mkdir()
    return compiled(loader.read_source(), scratch)


@pytest.fixture
def kept(tmp_path: Path, fresh: Compiled) -> Path:
    """A cache with what a daemon needs for its start."""
    cache.keep(tmp_path / "cache", key(), fresh)
    return tmp_path / "cache"


def key() -> cache.Key:
    return loader.key_of(loader.read_source(), "ethernet")


def loaded(daemon: Daemon) -> dict[str, dict[str, Any]]:
    """What the kernel tells of each pinned map and program, the digest of its instructions included."""
    found = {}
    for kind, folder in (("map", "maps-*"), ("prog", "programs-*")):
        for pin in daemon.pins.glob(f"{folder}/*"):
            told = json.loads(command("bpftool", "-j", kind, "show", "pinned", str(pin)))
            found[pin.name] = {name: value for name, value in told.items() if name not in _ITS_OWN}
    return found


def has_had_a_child(daemon: Daemon) -> bool:
    """Whether the daemon has waited for a child process: the page faults of such (proc(5), cminflt)."""
    assert daemon.process is not None
    return int(Path(f"/proc/{daemon.process.pid}/stat").read_text().rpartition(")")[2].split()[8]) > 0


def has_a_compiler(daemon: Daemon) -> bool:
    """Whether bcc is in the daemon's own memory."""
    assert daemon.process is not None
    return "libbcc" in Path(f"/proc/{daemon.process.pid}/maps").read_text()


def voice_is_marked(lab: Lab, daemon: Daemon) -> list[int]:
    """The marks, at the peer, of three datagrams of a flow."""
    with Wire(lab, daemon) as wire:
        recording, receiver = wire.record(), wire.receiver()
        sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((lab.peer.ipv4[0].partition("/")[0], receiver.port))
        wire.handle().add_socket(sock, TrafficType.VOICE)
        for _ in range(3):
            sock.send(b"datagram")
        receiver.expect(3)
        return marks(recording.stop().select(protocol=UDP, dport=receiver.port))


def test_what_is_kept_is_what_was_compiled_and_marks_the_same(own_lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with Daemon(own_lab.app, cache=str(folder), **_SETTINGS) as daemon:
        assert (has_had_a_child(daemon), has_a_compiler(daemon)) == (True, False)
        by_the_compiler = loaded(daemon)
        assert voice_is_marked(own_lab, daemon) == [56] * 3
    assert by_the_compiler.keys() == {*loader.MAPS, *loader.STAGES, *loader.SOCKET_PROGRAMS}
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    with Daemon(own_lab.app, cache=str(folder), **_SETTINGS) as daemon:
        assert (has_had_a_child(daemon), has_a_compiler(daemon)) == (False, False)
        assert loaded(daemon) == by_the_compiler
        assert voice_is_marked(own_lab, daemon) == [56] * 3
        assert _COMPILED_ANEW not in daemon.log
    assert [(path, path.stat().st_mtime_ns) for path in folder.iterdir()] == [(file, written)]


def test_maps_are_taken_over_with_their_flows_by_programs_that_were_kept(own_lab: Lab, kept: Path) -> None:
    with Daemon(own_lab.app, cache=str(kept), orphan_grace_s=60, **_SETTINGS) as daemon, Wire(own_lab, daemon) as wire:
        recording, receiver = wire.record(), wire.receiver()
        sock = wire.sender(socket.AF_INET, socket.SOCK_DGRAM)
        sock.connect((own_lab.peer.ipv4[0].partition("/")[0], receiver.port))
        wire.handle().add_socket(sock, TrafficType.VOICE)
        before = loaded(daemon)
        daemon.kill()
        sock.send(b"datagram")
        for folder in daemon.pins.glob("programs-*"):  # as after an upgrade that changed nothing of the datapath
            for pin in folder.iterdir():
                pin.unlink()
            folder.rmdir()
        daemon.start()
        assert not has_had_a_child(daemon)
        assert loaded(daemon) == before
        sock.send(b"datagram")
        receiver.expect(2)
        assert marks(recording.stop().select(protocol=UDP, dport=receiver.port)) == [56] * 2
        with Handle(daemon.socket) as qos:
            assert qos.status().orphans == 1


def test_programs_that_the_kernel_refuses_are_compiled_anew_and_replaced(
    own_lab: Lab, kept: Path, fresh: Compiled
) -> None:
    wrong = [replace(each, code=_REFUSED, maps={}) if each.name == "qos_htb" else each for each in fresh.programs]
    cache.keep(kept, key(), replace(fresh, programs=wrong))
    with Daemon(own_lab.app, cache=str(kept), **_SETTINGS) as daemon:
        assert has_had_a_child(daemon)
        assert "what was kept was refused: the kernel refused program qos_htb" in daemon.log
        assert "R9 !read_ok" in daemon.log
        assert voice_is_marked(own_lab, daemon) == [56] * 3
    assert cache.read(kept, key()) == fresh


def test_a_damaged_file_is_named_compiled_anew_and_replaced(own_lab: Lab, kept: Path, fresh: Compiled) -> None:
    file = kept / key().file_name
    file.write_bytes(file.read_bytes()[:-100])
    with Daemon(own_lab.app, cache=str(kept), **_SETTINGS) as daemon:
        assert has_had_a_child(daemon)
        assert f"{file}: it is damaged" in daemon.log
    assert cache.read(kept, key()) == fresh


def test_a_cache_that_cannot_be_written_is_told_once_and_costs_time_alone(own_lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Daemon(own_lab.app, cache=str(tmp_path / "file" / "cache"), **_SETTINGS) as daemon:
        assert has_had_a_child(daemon)
        assert daemon.log.count(str(tmp_path / "file" / "cache")) == 1
        assert voice_is_marked(own_lab, daemon) == [56] * 3


@pytest.fixture
def pins(bpf_fs: Path) -> Iterator[Path]:
    folder = bpf_fs / "kept"
    folder.mkdir()
    yield folder
    for pin in folder.iterdir():
        pin.unlink()
    folder.rmdir()


def test_a_pinned_map_of_another_size_is_refused_by_its_name(pins: Path, fresh: Compiled) -> None:
    with Objects(fresh, pins, _SLOTS):
        pass
    with Objects(fresh, pins, _SLOTS):  # taken over
        pass
    with pytest.raises(DatapathError, match=r"/kept/cold is another map: .*max_entries=64.* not .*=65") as refused:
        Objects(fresh, pins, _SLOTS + 1)
    assert not isinstance(refused.value, MissingKernelFeature)  # compiling anew would not help


def test_maps_are_made_as_they_were_compiled(pins: Path, fresh: Compiled) -> None:
    wanted = {spec.name: replace(spec, max_entries=spec.max_entries or 0) for spec in fresh.maps}
    slots = {name: replace(wanted[name], max_entries=_SLOTS) for name in ("policy", "hot", "cold", "destinations")}
    assert {spec.name for spec in fresh.maps if spec.max_entries is None} == slots.keys()
    with Objects(fresh, pins, _SLOTS) as objects:
        found = {name: spec_of(name, descriptor) for name, descriptor in objects.maps.items()}
    assert found == wanted | slots


def test_a_refused_program_is_told_with_the_verifiers_last_words(pins: Path, fresh: Compiled) -> None:
    wrong = [replace(each, code=_REFUSED, maps={}) if each.name == "qos_fq" else each for each in fresh.programs]
    with Objects(replace(fresh, programs=wrong), pins, _SLOTS) as objects:
        with pytest.raises(MissingKernelFeature, match=r"refused program qos_fq: .*R9 !read_ok"):
            objects.fill_stages()
        assert objects.program("qos_sock_create") > 0


def test_a_program_needs_a_bpf_file_system(pins: Path, tmp_path: Path, fresh: Compiled) -> None:
    with pytest.raises(DatapathError, match="cannot pin"):
        load(fresh, pins, tmp_path, _SLOTS)
