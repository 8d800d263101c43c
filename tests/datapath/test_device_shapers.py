"""Shapers, qdiscs and devices of a real kernel: what a class lets through, what is put back, what is watched."""

import json
import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from harness.veth_pair import DEVICE, IP_AND_UDP_BYTES, VethPair, flooding, run_in
from qos2.core.bucket import bucket_depth_bytes
from qos2.datapath.links import Change, LinkEvent, LinkWatch, Namespace
from qos2.datapath.netlink import Request, attributes
from qos2.datapath.shapers import HANDLE, DeviceShaper, Htb, Police, available_kinds, shaper_for
from qos2.datapath.tc import (
    RTM_GETTCLASS,
    TC_H_ROOT,
    TCA_HTB_CEIL64,
    TCA_HTB_PARMS,
    TCA_HTB_RATE64,
    TCA_OPTIONS,
    TrafficControl,
)
from qos2.errors import InvalidRequest
from qos2.model import Shaper

pytestmark = pytest.mark.datapath

HTB_ONLY = frozenset({"htb"})
MBIT = 1_000_000


@pytest.fixture
def pair() -> Iterator[VethPair]:
    with VethPair() as made:
        yield made


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    with Namespace.fresh() as made:
        yield made


def htb(pair: VethPair) -> DeviceShaper:
    return shaper_for(pair.near, pair.device, HTB_ONLY)


def shape(shaper: DeviceShaper, minor: int, bandwidth: int) -> None:
    shaper.set_flow(minor, bandwidth, bucket_depth_bytes(bandwidth))


def rates(pair: VethPair, minor: int) -> tuple[int, int]:
    """Rate and ceil of a class in bytes/s, all digits (tc shows four or five)."""
    request = Request(RTM_GETTCLASS, 0, struct.pack("=BxxxiIII", 0, pair.device.index, 0, 0, 0), "reading classes")
    (message,) = (
        found
        for found in pair.near.conversation.dump(request)
        if struct.unpack_from("=I", found.body, 8)[0] == HANDLE | minor
    )
    options = dict(attributes(dict(attributes(message.body[20:]))[TCA_OPTIONS]))
    small = struct.unpack_from("=8xI8xI", options[TCA_HTB_PARMS])
    large = [struct.unpack("=Q", options[kind])[0] for kind in (TCA_HTB_RATE64, TCA_HTB_CEIL64) if kind in options]
    return (large[0], large[1]) if large else (small[0], small[1])


def test_the_kernels_kinds_are_those_that_it_lets_an_administrator_add(namespace: Namespace) -> None:
    assert available_kinds() <= {"fq", "htb"}
    for kind in available_kinds():
        run_in(namespace, "tc", "qdisc", "add", "dev", "lo", "root", kind)
        run_in(namespace, "tc", "qdisc", "delete", "dev", "lo", "root")


def test_a_flow_of_full_packets_gets_its_contract_at_ip_level(pair: VethPair) -> None:
    shaper = htb(pair)
    shape(shaper, 1, 10 * MBIT)
    assert pair.ip_rate(HANDLE | 1, 1472, seconds=3) == pytest.approx(10 * MBIT, rel=0.02)
    assert shaper.flow_drops() == {1: 0}


def test_a_flow_of_small_packets_gets_its_contract_once_corrected(pair: VethPair) -> None:
    shaper = htb(pair)
    shape(shaper, 1, 2 * MBIT)
    payload = 100
    ip_bytes = payload + IP_AND_UDP_BYTES
    as_full = 2 * MBIT * (1514 / 1500) / ((ip_bytes + 14) / ip_bytes)
    assert pair.ip_rate(HANDLE | 1, payload, seconds=2) == pytest.approx(as_full, rel=0.02)
    shaper.correct(1, ip_bytes * 1000, 1000)
    assert pair.ip_rate(HANDLE | 1, payload, seconds=3) == pytest.approx(2 * MBIT, rel=0.02)


def test_a_changed_rate_holds_for_what_is_queued_already(pair: VethPair) -> None:
    shaper = htb(pair)
    shape(shaper, 1, MBIT)
    with pair.sender(HANDLE | 1) as sender, pair.receiver() as receiver, flooding(sender, 1472):
        receiver.recv(2000)
        shape(shaper, 1, 10 * MBIT)
        begin = time.monotonic()
        octets = 0
        while time.monotonic() - begin < 2:
            octets += len(receiver.recv(2000)) + IP_AND_UDP_BYTES
    assert octets * 8 / 2 == pytest.approx(10 * MBIT, rel=0.02)


def test_traffic_of_no_flow_is_not_limited_beside_a_flow_that_is(pair: VethPair) -> None:
    unshaped = pair.ip_rate(0, 1472, seconds=0.5)
    shaper = htb(pair)
    shape(shaper, 1, MBIT)
    with pair.sender(HANDLE | 1) as sender, flooding(sender, 1472):
        beside = pair.ip_rate(0, 1472, seconds=0.5)
    # The contract is 1 Mbit/s. How much more there is, the processor decides: an emulated one did not reach 100 Mbit/s.
    assert beside > 10 * MBIT
    assert beside > unshaped / 10
    assert pair.tc.root_qdisc().direct_packets > 0


@pytest.mark.parametrize("bandwidth", [8_000, 10 * MBIT, 34_359_738_360, 100_000_000_000, 400_000_000_000])
def test_classes_carry_exact_rates_beyond_thirty_four_gigabits_too(pair: VethPair, bandwidth: int) -> None:
    shaper = htb(pair)
    shape(shaper, 0xFFFE, bandwidth)
    rate = round(bandwidth / 8 * 1514 / 1500)
    assert rates(pair, 0xFFFE) == (rate, rate)


def test_a_correction_within_a_fifth_of_a_percent_changes_nothing(pair: VethPair) -> None:
    shaper = htb(pair)
    shape(shaper, 1, 10 * MBIT)
    before = rates(pair, 1)
    shaper.correct(1, 1_450_000, 1000)
    assert rates(pair, 1) == before
    shaper.correct(1, 1_000_000, 1000)
    assert rates(pair, 1)[0] == round(10 * MBIT / 8 * 1014 / 1000)


def test_the_qdisc_comes_with_the_first_flow_and_goes_with_the_last(pair: VethPair) -> None:
    before = pair.qdiscs()
    shaper = htb(pair)
    assert (shaper.kind, shaper.flows, pair.qdiscs()) == (Shaper.HTB, 0, before)
    shape(shaper, 1, MBIT)
    shape(shaper, 2, MBIT)
    shaper.idle()
    assert [q.kind for q in pair.tc.qdiscs()] == ["htb", "pfifo", "pfifo"]
    shaper.remove_flow(1)
    shaper.idle()
    assert (shaper.flows, list(pair.tc.class_counters())) == (1, [2])
    shaper.remove_flow(2)
    shaper.idle()
    assert (shaper.flows, pair.qdiscs()) == (0, before)
    shape(shaper, 1, MBIT)
    assert shaper.in_place()
    shaper.close()
    assert pair.qdiscs() == before


def test_what_an_ended_flow_has_queued_leaves_before_its_class_goes(pair: VethPair) -> None:
    before = pair.qdiscs()
    shaper = htb(pair)
    shape(shaper, 1, 100_000)
    with pair.sender(HANDLE | 1) as sender, pair.receiver() as receiver:
        for _ in range(20):
            sender.send(bytes(1472))
        shaper.remove_flow(1)
        shaper.idle()
        assert pair.tc.root_qdisc().handle == HANDLE
        for _ in range(20):
            assert len(receiver.recv(2000)) == 1472
    shaper.idle()
    assert pair.qdiscs() == before


def test_an_earlier_daemons_qdisc_is_taken_over_with_its_flows(pair: VethPair) -> None:
    before = pair.qdiscs()
    killed = htb(pair)
    shape(killed, 1, MBIT)
    shape(killed, 2, MBIT)
    taken = shaper_for(pair.near, pair.device)
    assert (taken.kind, taken.why) == (Shaper.HTB, "htb of an earlier QoS2 daemon")
    shape(taken, 2, 5 * MBIT)
    taken.idle()
    assert list(pair.tc.class_counters()) == [2]
    assert rates(pair, 2)[0] == round(5 * MBIT / 8 * 1514 / 1500)
    taken.close()
    assert pair.qdiscs() == before


def test_an_administrators_qdisc_is_never_touched(pair: VethPair) -> None:
    pair.command("tc", "qdisc", "add", "dev", DEVICE, "root", "handle", "7:", "htb", "default", "1")
    before = pair.qdiscs()
    shaper = shaper_for(pair.near, pair.device)
    assert isinstance(shaper, Police)
    shape(shaper, 1, MBIT)
    assert pair.qdiscs() == before
    shaper.remove_flow(1)
    shaper.idle()
    shaper.close()
    assert pair.qdiscs() == before


def test_an_administrators_qdisc_that_came_after_the_choice_is_not_touched_either(pair: VethPair) -> None:
    shaper = htb(pair)
    pair.command("tc", "qdisc", "add", "dev", DEVICE, "root", "handle", "7:", "pfifo")
    before = pair.qdiscs()
    shape(shaper, 1, MBIT)
    assert not shaper.in_place()
    shaper.correct(1, 1000, 10)
    shaper.remove_flow(1)
    shaper.idle()
    shaper.close()
    assert pair.qdiscs() == before


def test_an_administrator_who_replaces_our_qdisc_wins_and_the_daemon_can_see_it(pair: VethPair) -> None:
    shaper = htb(pair)
    shape(shaper, 1, MBIT)
    shape(shaper, 2, MBIT)
    assert shaper.in_place()
    pair.command("tc", "qdisc", "replace", "dev", DEVICE, "root", "handle", "7:", "pfifo")
    before = pair.qdiscs()
    assert not shaper.in_place()
    shaper.remove_flow(1)
    shape(shaper, 2, 2 * MBIT)
    shaper.idle()
    assert not shaper.in_place()
    shaper.close()
    assert pair.qdiscs() == before


def test_a_device_that_goes_takes_its_flows_without_an_error(pair: VethPair) -> None:
    shaper = htb(pair)
    shape(shaper, 1, MBIT)
    pair.command("ip", "link", "delete", DEVICE)
    shape(shaper, 2, MBIT)
    assert not shaper.in_place()
    shaper.remove_flow(1)
    shaper.idle()
    assert shaper.flow_drops() == {}
    shaper.close()


def test_a_default_mq_is_replaced_as_a_whole_and_put_back_with_its_queues(namespace: Namespace) -> None:
    run_in(namespace, "ip", "link", "add", "many", "numtxqueues", "4", "type", "ifb")
    run_in(namespace, "ip", "link", "set", "many", "up")
    (device,) = (found for found in namespace.devices() if found.name == "many")
    before = run_in(namespace, "tc", "-j", "qdisc", "show", "dev", "many")
    shaper = shaper_for(namespace, device, HTB_ONLY)
    assert isinstance(shaper, Htb)
    assert shaper.why == "the kernel has no fq: htb in place of the default mq"
    shape(shaper, 1, MBIT)
    assert shaper.in_place()
    shaper.remove_flow(1)
    shaper.idle()
    assert run_in(namespace, "tc", "-j", "qdisc", "show", "dev", "many") == before


@pytest.fixture
def _fq() -> None:
    if "fq" not in available_kinds():
        pytest.skip("this kernel has no fq")


@pytest.mark.usefixtures("_fq")
def test_fq_takes_the_place_of_a_default_with_room_for_every_delay_and_is_taken_away(pair: VethPair) -> None:
    before = pair.qdiscs()
    shaper = shaper_for(pair.near, pair.device)
    assert (shaper.kind, pair.qdiscs()) == (Shaper.FQ, before)
    shape(shaper, 1, MBIT)
    (shown,) = json.loads(pair.qdiscs())
    assert (shown["kind"], shown["handle"]) == ("fq", "5152:")
    assert (shown["options"]["limit"], shown["options"]["flow_limit"]) == (1_000_000, 10_000)
    assert shaper.in_place()
    taken = shaper_for(pair.near, pair.device)
    assert (taken.kind, taken.why) == (Shaper.FQ, "fq of an earlier QoS2 daemon")
    shaper.remove_flow(1)
    shaper.idle()
    assert pair.qdiscs() == before


@pytest.mark.usefixtures("_fq")
def test_fq_comes_under_each_queue_of_a_default_mq_and_the_default_is_put_back(namespace: Namespace) -> None:
    run_in(namespace, "ip", "link", "add", "many", "numtxqueues", "4", "type", "ifb")
    run_in(namespace, "ip", "link", "set", "many", "up")
    (device,) = (found for found in namespace.devices() if found.name == "many")
    before = run_in(namespace, "tc", "-j", "qdisc", "show", "dev", "many")
    shaper = shaper_for(namespace, device)
    shape(shaper, 1, MBIT)
    root = TrafficControl(namespace.conversation, device.index).root_qdisc()
    assert (root.kind, root.handle, [leaf.kind for leaf in root.leaves]) == ("mq", HANDLE, ["fq"] * 4)
    shaper.remove_flow(1)
    shaper.idle()
    assert run_in(namespace, "tc", "-j", "qdisc", "show", "dev", "many") == before


@pytest.mark.usefixtures("_fq")
def test_an_administrators_fq_is_used_as_it_is(pair: VethPair) -> None:
    pair.command("tc", "qdisc", "add", "dev", DEVICE, "root", "handle", "7:", "fq")
    before = pair.qdiscs()
    shaper = shaper_for(pair.near, pair.device)
    shape(shaper, 1, MBIT)
    assert (shaper.kind, shaper.in_place(), pair.qdiscs()) == (Shaper.FQ, True, before)
    shaper.close()
    assert pair.qdiscs() == before


@pytest.mark.parametrize("minor", [0, -1, 0x5152, 0xFFFF, 0x10000])
def test_minors_that_would_collide_with_our_root_or_clsact_are_refused(pair: VethPair, minor: int) -> None:
    shaper = htb(pair)
    with pytest.raises(InvalidRequest, match="minor"):
        shape(shaper, minor, MBIT)
    assert shaper.flows == 0


def test_the_kernel_warns_of_no_quantum_however_slow_or_fast_a_class_is(pair: VethPair) -> None:
    with open("/dev/kmsg", "rb", buffering=0) as log:
        os.set_blocking(log.fileno(), False)
        log.seek(0, os.SEEK_END)
        shaper = htb(pair)
        shape(shaper, 1, 8_000)
        shape(shaper, 2, 400_000_000_000)
        assert b"quantum" not in (log.read(8192) or b"")


def test_a_thousand_flows_are_set_and_read_in_one_dump(pair: VethPair) -> None:
    shaper = htb(pair)
    for minor in range(1, 1001):
        shape(shaper, minor, MBIT)
    assert shaper.flow_drops() == dict.fromkeys(range(1, 1001), 0)
    shaper.close()
    assert pair.tc.root_qdisc().parent == TC_H_ROOT


def test_a_veth_is_at_the_bottom_and_what_is_stacked_on_it_is_not(pair: VethPair) -> None:
    pair.command("ip", "link", "add", "stacked", "link", DEVICE, "type", "macvlan")
    pair.command("ip", "link", "add", "bundle", "type", "bridge")
    pair.command("ip", "tuntap", "add", "tunnel", "mode", "tun")
    found = {device.name: device for device in pair.near.devices()}
    assert (found[DEVICE].kind, found[DEVICE].lower, found[DEVICE].ethernet) == ("veth", None, True)
    assert (found["stacked"].kind, found["stacked"].lower) == ("macvlan", found[DEVICE].index)
    assert (found["tunnel"].kind, found["tunnel"].ethernet, found["tunnel"].up) == ("tun", False, False)
    assert (found["lo"].loopback, found["lo"].ethernet) == (True, True)
    assert {device.name for device in pair.near.bottom_devices()} == {DEVICE, "tunnel"}


def test_the_ends_of_a_veth_pair_in_one_namespace_are_both_at_the_bottom(namespace: Namespace) -> None:
    run_in(namespace, "ip", "link", "add", "left", "type", "veth", "peer", "name", "right")
    assert {device.name for device in namespace.bottom_devices()} == {"left", "right"}


def test_a_namespace_is_named_by_the_cookie_of_the_sockets_in_it(pair: VethPair) -> None:
    with pair.sender() as sender, Namespace.of_socket(sender.fileno()) as found, Namespace() as own:
        assert found.cookie == pair.near.cookie
        assert len({found.cookie, pair.far.cookie, own.cookie}) == 3
        assert [device.index for device in found.devices()] == [device.index for device in pair.near.devices()]


def test_namespaces_leave_no_descriptor_and_no_thread_behind() -> None:
    before = os.listdir("/proc/self/fd"), threading.enumerate(), os.readlink("/proc/thread-self/ns/net")
    for _ in range(5):
        with Namespace.fresh() as namespace:
            namespace.devices()
            namespace.watch().close()
    after = os.listdir("/proc/self/fd"), threading.enumerate(), os.readlink("/proc/thread-self/ns/net")
    assert after == before


@pytest.fixture
def watch(namespace: Namespace) -> Iterator[LinkWatch]:
    following = namespace.watch()
    yield following
    following.close()


def test_the_watcher_tells_of_devices_that_come_change_and_go(namespace: Namespace, watch: LinkWatch) -> None:
    assert watch.read_events() == []
    run_in(namespace, "ip", "link", "add", "extra7", "index", "77", "type", "ifb")
    assert watch.read_events() == [LinkEvent(Change.ADDED, 77, "extra7")]
    run_in(namespace, "ip", "link", "set", "extra7", "up")
    assert watch.read_events() == [LinkEvent(Change.CHANGED, 77, "extra7")]
    run_in(namespace, "ip", "link", "delete", "extra7")
    assert watch.read_events() == [LinkEvent(Change.REMOVED, 77, "extra7")]


def test_a_device_that_came_and_went_unseen_is_not_told_of_and_a_reused_index_is_told_of_twice(
    namespace: Namespace, watch: LinkWatch
) -> None:
    run_in(namespace, "ip", "link", "add", "brief", "index", "78", "type", "ifb")
    run_in(namespace, "ip", "link", "delete", "brief")
    assert watch.read_events() == []
    run_in(namespace, "ip", "link", "add", "first", "index", "79", "type", "ifb")
    assert watch.read_events() == [LinkEvent(Change.ADDED, 79, "first")]
    run_in(namespace, "ip", "link", "delete", "first")
    run_in(namespace, "ip", "link", "add", "second", "index", "79", "type", "ifb")
    assert watch.read_events() == [
        LinkEvent(Change.REMOVED, 79, "first"),
        LinkEvent(Change.ADDED, 79, "second"),
    ]


def test_a_port_that_leaves_its_bridge_has_not_gone(namespace: Namespace, watch: LinkWatch) -> None:
    run_in(namespace, "ip", "link", "add", "bridge0", "type", "bridge")
    run_in(namespace, "ip", "link", "add", "port0", "index", "80", "type", "ifb")
    run_in(namespace, "ip", "link", "set", "port0", "master", "bridge0")
    watch.read_events()
    run_in(namespace, "ip", "link", "set", "port0", "nomaster")
    assert LinkEvent(Change.CHANGED, 80, "port0") in watch.read_events()


def test_a_storm_of_events_ends_in_one_resync(namespace: Namespace, watch: LinkWatch) -> None:
    run_in(namespace, "ip", "link", "add", "extra8", "index", "81", "type", "ifb")
    changes = "".join(f"link set extra8 mtu {1000 + n % 2}\n" for n in range(2000))
    script = run_in(namespace, "mktemp").strip()
    with open(script, "w") as batch:
        batch.write(changes)
    try:
        run_in(namespace, "ip", "-batch", script)
    finally:
        os.unlink(script)
    assert watch.read_events() == [LinkEvent(Change.RESYNC, 0, "")]
    assert watch.read_events() == []
    run_in(namespace, "ip", "link", "delete", "extra8")
    assert watch.read_events() == [LinkEvent(Change.REMOVED, 81, "extra8")]
