"""The pure part of shaping: which shaper a root qdisc calls for, which devices lie at the bottom, bucket depths."""

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.core.bucket import bucket_depth_bytes
from qos2.datapath.links import Device, bottom
from qos2.datapath.shapers import HANDLE, choose
from qos2.datapath.tc import TC_H_ROOT, Qdisc, htb_class_options
from qos2.model import MAX_BANDWIDTH, MIN_BANDWIDTH, Shaper

ALL = frozenset({"fq", "htb"})
HTB_ONLY = frozenset({"htb"})


def default(kind: str, *leaves: str) -> Qdisc:
    return Qdisc(kind, 0, TC_H_ROOT, True, tuple(Qdisc(leaf, 0, 1 + n, True) for n, leaf in enumerate(leaves)))


def placed(kind: str, *leaves: str) -> Qdisc:
    return Qdisc(
        kind,
        0x80010000,
        TC_H_ROOT,
        False,
        tuple(Qdisc(leaf, 0x80020000 + (n << 16), 0x80010001 + n, False) for n, leaf in enumerate(leaves)),
    )


@pytest.mark.parametrize("kind", ["noop", "noqueue", "pfifo_fast", "fq_codel"])
def test_a_default_root_becomes_fq_where_the_kernel_has_it_else_htb_else_police(kind: str) -> None:
    assert choose(default(kind), ALL)[0] is Shaper.FQ
    assert choose(default(kind), HTB_ONLY)[0] is Shaper.HTB
    assert choose(default(kind), frozenset())[0] is Shaper.POLICE


@pytest.mark.parametrize("root", [placed("fq"), placed("mq", "fq", "fq")], ids=repr)
@pytest.mark.parametrize("available", [ALL, HTB_ONLY, frozenset()], ids=sorted)
def test_an_administrators_fq_is_used_as_it_is(root: Qdisc, available: frozenset[str]) -> None:
    shaper, why = choose(root, available)
    assert shaper is Shaper.FQ
    assert "flow_limit" in why


@pytest.mark.parametrize("root", [default("fq"), default("mq", "fq", "fq")], ids=repr)
def test_an_fq_by_default_is_replaced_by_one_with_room(root: Qdisc) -> None:
    assert choose(root, ALL) == (Shaper.FQ, f"fq in place of the default {root.kind}")


def test_a_default_mq_is_replaced_as_a_whole() -> None:
    assert choose(default("mq", "fq_codel", "fq_codel"), ALL)[0] is Shaper.FQ
    assert choose(default("mq", "fq", "fq_codel"), HTB_ONLY)[0] is Shaper.HTB


@pytest.mark.parametrize(
    "root",
    [
        placed("htb"),
        placed("pfifo_fast"),
        placed("fq_codel"),
        placed("mq", "fq_codel", "fq_codel"),
        default("cake"),  # by net.core.default_qdisc: a choice too
        dataclasses.replace(default("mq", "fq_codel"), leaves=(Qdisc("tbf", 0x10000, 1, False),)),
    ],
    ids=repr,
)
def test_an_administrators_qdisc_means_police_with_a_reason_that_names_it(root: Qdisc) -> None:
    shaper, why = choose(root, ALL)
    assert shaper is Shaper.POLICE
    assert root.kind in why
    assert "administrator" in why


@pytest.mark.parametrize(("kind", "shaper"), [("htb", Shaper.HTB), ("fq", Shaper.FQ), ("mq", Shaper.FQ)])
def test_the_qdisc_of_an_earlier_daemon_is_taken_over(kind: str, shaper: Shaper) -> None:
    assert choose(Qdisc(kind, HANDLE, TC_H_ROOT, False), frozenset())[0] is shaper


def test_the_same_qdisc_with_another_handle_is_foreign() -> None:
    assert choose(Qdisc("htb", HANDLE + 0x10000, TC_H_ROOT, False), ALL)[0] is Shaper.POLICE


def device(
    index: int, kind: str = "", *, lower: int | None = None, master: int | None = None, loopback: bool = False
) -> Device:
    return Device(
        name=f"d{index}",
        index=index,
        kind=kind,
        mtu=1500,
        up=True,
        ethernet=True,
        loopback=loopback,
        lower=lower,
        master=master,
        master_kind="bond" if master else "",
        tx_queues=1,
    )


def test_only_the_lowest_device_of_each_stack_is_at_the_bottom() -> None:
    eth0, eth1, eth2 = device(2, master=5), device(3, master=5), device(4)
    bond, vlan, bridge = device(5, "bond"), device(6, "vlan", lower=5), device(7, "bridge")
    macvlan, vxlan = device(8, "macvlan", lower=4), device(9, "vxlan")
    loopback, tunnel, wireguard = device(1, loopback=True), device(10, "tun"), device(11, "wireguard")
    found = bottom([loopback, eth0, eth1, eth2, bond, vlan, bridge, macvlan, vxlan, tunnel, wireguard])
    assert found == [eth0, eth1, eth2, tunnel, wireguard]


def test_a_device_whose_lower_one_is_in_another_namespace_is_at_the_bottom_of_this_one() -> None:
    macvlan = device(8, "macvlan", lower=4)
    assert bottom([macvlan]) == [macvlan]


def test_a_bucket_is_two_packets_deep_for_slow_contracts_and_ten_milliseconds_for_fast_ones() -> None:
    assert bucket_depth_bytes(8_000) == 3000
    assert bucket_depth_bytes(2_400_000) == 3000
    assert bucket_depth_bytes(2_400_008) == 3001
    assert bucket_depth_bytes(100_000_000) == 125_000
    assert bucket_depth_bytes(8_000, mtu=9000) == 18_000


@given(st.integers(MIN_BANDWIDTH, MAX_BANDWIDTH), st.integers(68, 65_536))
def test_a_bucket_always_takes_two_packets_and_ten_milliseconds_with_less_than_a_byte_to_spare(
    bandwidth: int, mtu: int
) -> None:
    depth = bucket_depth_bytes(bandwidth, mtu)
    assert depth >= 2 * mtu
    assert depth * 800 >= bandwidth
    assert depth == 2 * mtu or (depth - 1) * 800 < bandwidth


@pytest.mark.parametrize(("bandwidth", "mtu"), [(0, 1500), (-1, 1500), (8000, 0)])
def test_a_bucket_without_a_rate_or_an_mtu_is_refused(bandwidth: int, mtu: int) -> None:
    with pytest.raises(ValueError, match="positive"):
        bucket_depth_bytes(bandwidth, mtu)


@given(st.integers(1, 50_000_000_000), st.integers(0, 60_000_000_000))
def test_the_options_of_a_class_carry_the_exact_rate_and_a_burst_rounded_up_to_a_tick(
    bytes_per_s: int, burst_ns: int
) -> None:
    options = htb_class_options(bytes_per_s, burst_ns, 65_536)
    length, kind = struct.unpack_from("=HH", options)
    rate, ceil = struct.unpack_from("=I", options, 4 + 8)[0], struct.unpack_from("=I", options, 4 + 12 + 8)[0]
    buffer, cbuffer, quantum = struct.unpack_from("=III", options, 4 + 24)
    assert (length, kind, quantum) == (48, 1, 65_536)
    assert rate == ceil == min(bytes_per_s, 0xFFFF_FFFF)
    assert buffer == cbuffer
    assert 0 <= buffer * 64 - burst_ns < 64
    if bytes_per_s > 0xFFFF_FFFF:
        assert struct.unpack_from("=HHQHHQ", options, 48) == (12, 6, bytes_per_s, 12, 7, bytes_per_s)
    else:
        assert len(options) == 48
