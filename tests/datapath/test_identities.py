"""What names in rules stand for: real cgroups, real network namespaces, followed as they come and go."""

import contextlib
import os
import select
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.lab import command
from qos2.core.rule import Match
from qos2.datapath import cgrouptree
from qos2.datapath.executables import Executables, number_of
from qos2.datapath.identities import Cgroup, Identities, Resolved
from qos2.datapath.links import Namespace
from qos2.datapath.programs import cgroup_mount
from qos2.model import DeviceStatus, Shaper

pytestmark = pytest.mark.datapath

OWN = 77  #: a cookie that no namespace has
#: inotify tells at once; this is for a machine whose two cores are busy.
SOON_S = 5.0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A slice of our own, as systemd would make one; emptied afterwards."""
    mount = cgroup_mount()
    if mount is None:
        pytest.skip("cgroup2 is not mounted on this host")
    made = mount / f"qos2-test-{os.getpid()}.slice"
    made.mkdir()
    yield made
    for nested in sorted(made.rglob("*/"), key=lambda path: len(path.parts), reverse=True):
        nested.rmdir()
    made.rmdir()


@pytest.fixture
def attached() -> list[DeviceStatus]:
    """What the datapath is attached to: a test changes it."""
    return []


@pytest.fixture
def identities(attached: list[DeviceStatus], tmp_path: Path) -> Iterator[Identities]:
    with contextlib.closing(Identities(lambda: attached, own_netns_cookie=OWN)) as made:
        yield made


def device(name: str, index: int, cookie: int = OWN) -> DeviceStatus:
    return DeviceStatus(name, index, cookie, "tcx", Shaper.FQ, "")


def readable(identities: Identities) -> bool:
    return bool(select.select([identities], [], [], SOON_S)[0])


def unit(name: str) -> Match:
    return Match(units=(name,))


def ids(*folders: Path) -> Resolved:
    mount = cgroup_mount()
    assert mount is not None
    return Resolved(tuple(Cgroup(each.stat().st_ino, len(each.relative_to(mount).parts)) for each in folders))


def test_a_unit_is_the_cgroup_of_its_name(folder: Path, identities: Identities) -> None:
    asterisk = folder / "asterisk.service"
    (asterisk / "inner").mkdir(parents=True)
    identities.follow([unit("asterisk.service")])
    assert identities.resolve(unit("asterisk.service")) == ids(asterisk)
    assert identities.missing(unit("asterisk.service")) == ()


def test_a_unit_that_starts_later_is_told_at_once(folder: Path, identities: Identities) -> None:
    wanted = unit("asterisk.service")
    identities.follow([wanted])
    assert identities.resolve(wanted) == Resolved(cgroups=())
    assert identities.missing(wanted) == ("unit asterisk.service",)
    (folder / "asterisk.service").mkdir()
    assert readable(identities)
    assert identities.look()
    assert identities.resolve(wanted) == ids(folder / "asterisk.service")


def test_a_unit_that_is_restarted_has_another_cgroup(folder: Path, identities: Identities) -> None:
    wanted, asterisk = unit("asterisk.service"), folder / "asterisk.service"
    asterisk.mkdir()
    before = asterisk.stat().st_ino
    identities.follow([wanted])
    asterisk.rmdir()
    asterisk.mkdir()
    assert identities.look()
    assert identities.resolve(wanted) == ids(asterisk)
    assert asterisk.stat().st_ino != before
    asterisk.rmdir()
    assert identities.look()
    assert identities.resolve(wanted) == Resolved(cgroups=())


def test_units_of_user_managers_and_of_new_slices_are_found(folder: Path, identities: Identities) -> None:
    mail, of_one = unit("app-mail.scope"), unit("user@1000.service/app-mail.scope")
    identities.follow([mail, of_one])
    scopes = [folder / f"user@{uid}.service" / "app.slice" / "app-mail.scope" for uid in (1000, 1001)]
    for scope in scopes:
        scope.mkdir(parents=True)  # each folder is made before anybody watches the one around it
    assert identities.look()
    assert identities.resolve(mail) == ids(*scopes)
    assert identities.resolve(of_one) == ids(scopes[0])


def test_what_is_inside_of_a_container_is_no_unit_of_the_host(folder: Path, identities: Identities) -> None:
    (folder / "docker-1f.scope" / "system.slice" / "asterisk.service").mkdir(parents=True)
    (folder / "_memory.service").mkdir()
    identities.follow([unit("asterisk.service"), unit("memory.service")])
    assert identities.resolve(unit("asterisk.service")) == Resolved(cgroups=())
    assert identities.resolve(unit("memory.service")) == ids(folder / "_memory.service")  # as systemd escapes it


def test_a_path_is_followed_through_folders_that_do_not_exist_yet(folder: Path, identities: Identities) -> None:
    wanted = Match(cgroups=(f"/{folder.name}/a.service/b/c",))
    identities.follow([wanted])
    assert identities.missing(wanted) == (f"cgroup /{folder.name}/a.service/b/c",)
    inner = folder / "a.service" / "b" / "c"
    inner.mkdir(parents=True)
    assert identities.look()
    assert identities.resolve(wanted) == ids(inner)
    inner.rmdir()
    inner.parent.rmdir()
    assert identities.look()
    assert identities.resolve(wanted) == Resolved(cgroups=())


def test_a_unit_and_a_path_give_what_is_in_both(folder: Path, identities: Identities) -> None:
    asterisk, nginx = folder / "asterisk.service", folder / "nginx.service"
    (asterisk / "media").mkdir(parents=True)
    nginx.mkdir()
    path = f"/{folder.name}"
    inner = Match(units=("asterisk.service", "nginx.service"), cgroups=(f"{path}/asterisk.service/media",))
    outer = Match(units=("asterisk.service", "nginx.service"), cgroups=(path,))
    neither = Match(units=("asterisk.service",), cgroups=(f"{path}/nginx.service",))
    identities.follow([inner, outer, neither])
    assert identities.resolve(inner) == ids(asterisk / "media")
    assert identities.resolve(outer) == ids(asterisk, nginx)
    assert identities.resolve(neither) == Resolved(cgroups=())


def test_the_root_is_no_condition(folder: Path, identities: Identities) -> None:
    asterisk = folder / "asterisk.service"
    asterisk.mkdir()
    both = Match(units=("asterisk.service",), cgroups=("/", "/other"))
    identities.follow([unit("-.slice"), Match(cgroups=("/",)), both])
    assert identities.resolve(unit("-.slice")) == Resolved()
    assert identities.resolve(Match(cgroups=("/",))) == Resolved()
    assert identities.resolve(both) == ids(asterisk)
    assert identities.missing(both) == ("cgroup /other",)
    assert identities.missing(unit("-.slice")) == ()


def test_too_deep_a_cgroup_is_told(folder: Path, identities: Identities) -> None:
    inner = folder / "/".join("abcdefghijklmn")
    (inner / "o").mkdir(parents=True)
    path = f"/{inner.relative_to(folder.parent)}"
    reached, not_reached = Match(cgroups=(path,)), Match(cgroups=(f"{path}/o",))
    identities.follow([reached, not_reached])
    assert identities.resolve(reached) == ids(inner)
    assert identities.problems == {}
    assert identities.resolve(not_reached) == Resolved(cgroups=())
    assert identities.problems == {f"cgroup {path}/o": f"cgroup {path}/o is 16 levels deep: no rule can match it"}


@pytest.mark.parametrize("mounted", [True, False])
def test_without_the_whole_hierarchy_nothing_is_matched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounted: bool
) -> None:
    monkeypatch.setattr("qos2.datapath.identities.cgroup_mount", lambda: tmp_path if mounted else None)
    with contextlib.closing(Identities(list, own_netns_cookie=OWN)) as identities:
        why = "the daemon is in a cgroup namespace of its own" if mounted else "cgroup2 is not mounted"
        identities.follow([unit("a.service"), Match(cgroups=("/a",))])
        assert identities.problems == {"cgroup2": f"{why}: rules that name a unit or cgroup match nothing"}
        assert identities.resolve(unit("a.service")) == Resolved(cgroups=())
        assert identities.missing(Match(cgroups=("/a",))) == ("cgroup /a",)
        assert not identities.look()
        assert not select.select([identities], [], [], 0)[0]
        identities.follow([])
        assert identities.problems == {}


def test_other_folders_change_nothing(folder: Path, identities: Identities) -> None:
    identities.follow([unit("asterisk.service")])
    (folder / "nginx.service").mkdir()
    assert not identities.look()
    identities.follow([])
    (folder / "asterisk.service").mkdir()
    assert not identities.look()


def test_lost_events_are_made_up_for(folder: Path, identities: Identities, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = unit("asterisk.service")
    identities.follow([wanted])
    (folder / "asterisk.service").mkdir()
    read = os.read

    def overflowed(descriptor: int, length: int) -> bytes:
        """As the kernel tells it: what was in the queue is gone."""
        read(descriptor, length)
        monkeypatch.undo()
        return struct.pack("=iIII", -1, 0x4000, 0, 0)

    monkeypatch.setattr(os, "read", overflowed)
    assert identities.look()
    assert identities.resolve(wanted) == ids(folder / "asterisk.service")


def test_a_look_costs_less_than_a_millisecond(folder: Path, identities: Identities) -> None:
    """Measured 1 us with 300 watched folders, as nothing is looked through; the bound is the one promised."""
    for number in range(300):
        (folder / f"qos2-test-{number}.slice").mkdir()
    identities.follow([unit("asterisk.service")])
    began_s = time.process_time()
    for _ in range(100):
        assert not identities.look()
    assert (time.process_time() - began_s) / 100 < 1e-3


def test_where_folders_cannot_be_watched_they_are_looked_through(
    folder: Path, identities: Identities, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refused:
        """Of libc: without inotify, as at the limit of its instances."""

        @staticmethod
        def inotify_init1(_flags: int) -> int:
            return -1

    monkeypatch.setattr(cgrouptree, "_LIBC", Refused)
    monkeypatch.setattr(cgrouptree, "_LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(cgrouptree, "_SHARE", 1e9)
    wanted = unit("asterisk.service")
    identities.follow([wanted])
    assert not identities.look()
    assert identities.problems["cgroups"].startswith("cgroups cannot be watched")
    (folder / "asterisk.service").mkdir()
    assert identities.look()
    assert identities.resolve(wanted) == ids(folder / "asterisk.service")
    monkeypatch.undo()
    assert not identities.look()  # watches again
    assert identities.look() is False
    assert identities.problems == {}
    (folder / "asterisk.service").rmdir()
    assert readable(identities)


def test_a_namespace_is_followed_by_its_name(identities: Identities) -> None:
    name = f"qos2-test-{os.getpid()}-id"
    wanted = Match(namespaces=(name,))
    identities.follow([wanted])
    assert identities.missing(wanted) == (f"namespace {name}",)
    assert identities.resolve(wanted) == Resolved(netns_cookies=())
    seen = []
    for _ in range(2):  # the second one has the same name, and may have the same inode
        command("ip", "netns", "add", name)
        try:
            assert identities.look()
            descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
            with contextlib.closing(Namespace(descriptor)) as namespace:
                os.close(descriptor)
                assert identities.resolve(wanted) == Resolved(netns_cookies=(namespace.cookie,))
                assert identities.name_of(namespace.cookie) == name
                assert identities.named_namespaces() == {Path("/run/netns") / name: namespace.cookie}
                seen.append(namespace.cookie)
            assert not identities.look()
        finally:
            command("ip", "netns", "del", name)
    assert identities.look()
    assert identities.resolve(wanted) == Resolved(netns_cookies=())
    assert len(set(seen)) == 2
    assert identities.named_namespaces() == {}


def test_a_namespace_made_anew_between_two_looks_is_another_one(identities: Identities) -> None:
    name = f"qos2-test-{os.getpid()}-id"
    wanted = Match(namespaces=(name,))
    command("ip", "netns", "add", name)
    try:
        identities.follow([wanted])
        before = identities.resolve(wanted)
        command("ip", "netns", "del", name)
        command("ip", "netns", "add", name)
        assert identities.look()
        assert identities.resolve(wanted) not in (before, Resolved(netns_cookies=()))
    finally:
        command("ip", "netns", "del", name)


def test_a_namespace_that_no_rule_names_has_its_name_too(identities: Identities) -> None:
    name = f"qos2-test-{os.getpid()}-id"
    assert (identities.name_of(OWN), identities.name_of(OWN + 1)) == ("host", "")
    command("ip", "netns", "add", name)
    try:
        identities.follow([Match(namespaces=(name,))])
        (cookie,) = identities.resolve(Match(namespaces=(name,))).netns_cookies or ()
        identities.follow([])
        assert identities.name_of(cookie) == name
    finally:
        command("ip", "netns", "del", name)
    assert identities.name_of(cookie) == ""


def test_a_file_that_is_no_namespace_is_none(attached: list[DeviceStatus], tmp_path: Path) -> None:
    (tmp_path / "blue").touch()
    (tmp_path / "odd").symlink_to("/proc/self/status")
    wanted = Match(namespaces=("blue", "odd", "host"))
    with contextlib.closing(Identities(lambda: attached, own_netns_cookie=OWN, namespaces=tmp_path)) as identities:
        identities.follow([wanted])
        assert identities.resolve(wanted) == Resolved(netns_cookies=(OWN,))
        assert identities.missing(wanted) == ("namespace blue", "namespace odd")
        assert identities.named_namespaces() == {}
        assert list(identities.problems) == ["namespace odd"]
        identities.look()
        assert identities.counters["namespace_failed"] == 1  # once, however often it is met
        (tmp_path / "odd").unlink()
        identities.look()
        assert identities.problems == {}


def test_devices_are_those_attached_in_the_namespaces_wanted(
    attached: list[DeviceStatus], identities: Identities
) -> None:
    anywhere, here = Match(devices=("eth0", "wg0")), Match(devices=("eth0",), namespaces=("host",))
    attached += [device("eth0", 2), device("eth0", 2, cookie=5), device("eth1", 3)]
    identities.follow([anywhere, here])
    assert identities.resolve(anywhere) == Resolved(devices=((OWN, 2), (5, 2)))
    assert identities.resolve(here) == Resolved(netns_cookies=(OWN,), devices=((OWN, 2),))
    assert identities.missing(anywhere) == ("device wg0",)
    assert not identities.look()
    attached.append(device("eth2", 8))
    assert not identities.look()
    attached.append(device("wg0", 9))
    assert identities.look()
    assert identities.resolve(anywhere) == Resolved(devices=((OWN, 2), (5, 2), (OWN, 9)))


def test_executables_have_the_numbers_that_are_recorded(attached: list[DeviceStatus]) -> None:
    recorded: dict[int, int] = {}
    executables = Executables(recorded.__setitem__, recorded.__delitem__)
    identities = Identities(lambda: attached, own_netns_cookie=OWN, executables=executables)
    wanted = Match(executables=("/usr/bin/sleep", "/usr/bin/no-such-file"))
    with contextlib.closing(identities), subprocess.Popen(["/usr/bin/sleep", "60"]) as sleeper:
        try:
            identities.follow([wanted])
            numbers = tuple(map(number_of, wanted.executables))
            assert identities.resolve(wanted) == Resolved(executables=numbers)
            assert recorded[sleeper.pid] == numbers[0]
            assert identities.missing(wanted) == ("executable /usr/bin/no-such-file",)
        finally:
            sleeper.kill()


def test_without_conditions_nothing_is_resolved(identities: Identities) -> None:
    identities.follow([Match()])
    assert identities.resolve(Match()) == Resolved()
    assert identities.missing(Match()) == ()
