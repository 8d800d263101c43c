"""The judge is judged: parsing captured packets, rates and bursts, on frames built by scapy and by hand."""

import socket
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, IPOption_Router_Alert, fragment
from scapy.layers.inet import TCP as TcpLayer
from scapy.layers.inet import UDP as UdpLayer
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, fragment6
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from demo.capture import FlowSeen
from demo.packets import TCP, UDP, CaptureError, mapped, most_bytes, parse_frames, parse_pcap, rate


def ethernet() -> Ether:
    """With both addresses given, or scapy would ask the network for one."""
    return Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")


def savefile(records: list[tuple[int, bytes]], magic: int = 0xA1B23C4D, link: int = 1) -> bytes:
    header = struct.pack("<IHHiIII", magic, 2, 4, 0, 0, 262144, link)
    return header + b"".join(
        struct.pack("<IIII", time // 10**9, time % 10**9, len(frame), len(frame)) + frame for time, frame in records
    )


@pytest.fixture(scope="module")
def samples() -> list[tuple[int, bytes]]:
    layers = [
        ethernet()
        / IP(src="192.0.2.2", dst="198.51.100.2", tos=0xB9)
        / UdpLayer(sport=4000, dport=5004)
        / Raw(bytes(100)),
        ethernet() / ARP(),
        ethernet() / IPv6(src="2001:db8:1::2", dst="2001:db8:2::3", tc=0xA2) / TcpLayer(sport=4001, dport=7001),
        ethernet()
        / IP(src="192.0.2.2", dst="198.51.100.3", tos=0x20, options=[IPOption_Router_Alert()])
        / TcpLayer(sport=1, dport=2)
        / Raw(bytes(9)),
        ethernet() / IP(src="192.0.2.2", dst="198.51.100.3") / ICMP(),
    ]
    return [(1_700_000_000_000_000_000 + index, bytes(layer)) for index, layer in enumerate(layers)]


def test_every_field_of_both_families_is_read(samples: list[tuple[int, bytes]]) -> None:
    packets = parse_pcap(savefile(samples))
    assert packets.time_ns.tolist() == [1_700_000_000_000_000_000 + index for index in (0, 2, 3, 4)]
    assert packets.family.tolist() == [4, 6, 4, 4]
    assert packets.ip_bytes.tolist() == [128, 60, 24 + 20 + 9, 28]
    assert packets.dscp.tolist() == [46, 40, 8, 0]
    assert packets.ecn.tolist() == [1, 2, 0, 0]
    assert packets.protocol.tolist() == [UDP, TCP, TCP, 1]
    assert packets.sport.tolist() == [4000, 4001, 1, 0]
    assert packets.dport.tolist() == [5004, 7001, 2, 0]
    assert packets.fragment.tolist() == [False] * 4
    assert packets.checksum_ok.tolist() == [True] * 4
    assert packets.source[0].tobytes() == mapped("192.0.2.2")
    assert packets.destination[0].tobytes() == mapped("198.51.100.2")
    assert packets.source[1].tobytes() == socket.inet_pton(socket.AF_INET6, "2001:db8:1::2")
    assert packets.destination[1].tobytes() == mapped("2001:db8:2::3")
    assert [packets.frame(index) for index in range(4)] == [samples[index][1] for index in (0, 2, 3, 4)]


def test_frames_and_a_savefile_of_them_are_the_same(samples: list[tuple[int, bytes]]) -> None:
    from_file, from_frames = parse_pcap(savefile(samples)), parse_frames(samples)
    assert from_file.time_ns.tolist() == from_frames.time_ns.tolist()
    assert from_file.dscp.tolist() == from_frames.dscp.tolist()
    assert [from_file.frame(i) for i in range(4)] == [from_frames.frame(i) for i in range(4)]


def test_packets_are_put_into_the_order_of_their_stamps(samples: list[tuple[int, bytes]]) -> None:
    assert parse_frames(samples[::-1]).dscp.tolist() == [46, 40, 8, 0]


def test_a_wrong_ipv4_checksum_is_noticed_whichever_header_bit_is_flipped(samples: list[tuple[int, bytes]]) -> None:
    frame = samples[3][1]
    for position in range(14 + 1, 14 + 24):  # the first byte says how long the header is
        for bit in range(8):
            wrong = bytearray(frame)
            wrong[position] ^= 1 << bit
            assert parse_frames([(0, bytes(wrong))]).checksum_ok.tolist() == [False]


def test_all_fragments_are_known_as_such_and_only_the_first_has_ports() -> None:
    v4 = fragment(
        IP(src="192.0.2.2", dst="198.51.100.2") / UdpLayer(sport=4, dport=5) / Raw(bytes(3000)), fragsize=1400
    )
    v6 = fragment6(
        IPv6(src="2001:db8::2", dst="2001:db8::1")
        / IPv6ExtHdrFragment(id=7)
        / UdpLayer(sport=4, dport=5)
        / Raw(bytes(3000)),
        1280,
    )
    for pieces in (v4, v6):
        packets = parse_frames([(index, bytes(ethernet() / piece)) for index, piece in enumerate(pieces)])
        assert len(packets) == 3
        assert packets.protocol.tolist() == [UDP] * 3
        assert packets.fragment.tolist() == [True] * 3
        assert packets.dport.tolist() == [5, 0, 0]


def test_selecting_keeps_what_has_all_the_given_values(samples: list[tuple[int, bytes]]) -> None:
    packets = parse_frames(samples)
    assert packets.select(family=4).dscp.tolist() == [46, 8, 0]
    assert packets.select(protocol=TCP, family=4).dscp.tolist() == [8]
    assert packets.select(destination="198.51.100.2").dscp.tolist() == [46]
    assert packets.select(sport=4001, dport=7001).dscp.tolist() == [40]
    assert packets.select(begin_ns=1_700_000_000_000_000_002, end_ns=1_700_000_000_000_000_004).dscp.tolist() == [40, 8]
    assert packets.select(family=4).dscps() == {46: 1, 8: 1, 0: 1}
    assert len(packets.select(sport=9)) == 0


@pytest.mark.parametrize("cut", range(1, 16))
def test_a_capture_that_was_cut_off_is_refused(samples: list[tuple[int, bytes]], cut: int) -> None:
    with pytest.raises(CaptureError, match="the capture ends within"):
        parse_pcap(savefile(samples)[:-cut])


@pytest.mark.parametrize("data", [b"", savefile([], magic=0xA1B2C3D4), savefile([], link=113)])
def test_what_is_no_capture_in_nanoseconds_of_ethernet_is_refused(data: bytes) -> None:
    with pytest.raises(CaptureError, match="not a"):
        parse_pcap(data)


def test_an_empty_capture_has_no_packets() -> None:
    assert len(parse_pcap(savefile([]))) == 0


@given(st.binary(max_size=80), st.sampled_from([0x0800, 0x86DD]))
def test_no_frame_however_short_is_read_beyond_its_end(rest: bytes, ethertype: int) -> None:
    frame = bytes(12) + struct.pack("!H", ethertype) + rest
    enough = len(rest) >= (20 if ethertype == 0x0800 else 40)
    assert len(parse_frames([(0, frame)])) == enough


ARRIVALS = st.lists(st.tuples(st.integers(0, 5_000), st.integers(20, 1500)), max_size=40).map(sorted)


@given(ARRIVALS, st.integers(0, 4_000), st.integers(1, 2_000))
def test_a_rate_counts_what_arrived_within_the_interval(
    arrivals: list[tuple[int, int]], begin: int, length: int
) -> None:
    times = np.array([time for time, _ in arrivals], np.int64)
    sizes = np.array([size for _, size in arrivals], np.int64)
    inside = sum(size for time, size in arrivals if begin <= time < begin + length)
    assert rate(times, sizes, begin, begin + length) == pytest.approx(inside * 8e9 / length)


def test_an_empty_interval_has_no_rate() -> None:
    with pytest.raises(ValueError, match="no rate"):
        rate(np.array([1]), np.array([100]), 5, 5)


@given(ARRIVALS, st.integers(1, 3_000))
def test_the_fullest_window_is_the_fullest_of_all_windows(arrivals: list[tuple[int, int]], window: int) -> None:
    times = np.array([time for time, _ in arrivals], np.int64)
    sizes = np.array([size for _, size in arrivals], np.int64)
    # Contents change only where a window's begin or end meets an arrival.
    begins = (
        {time for time, _ in arrivals}
        | {time - window for time, _ in arrivals}
        | {time - window + 1 for time, _ in arrivals}
    )
    contents = [sum(size for time, size in arrivals if begin <= time < begin + window) for begin in begins]
    assert most_bytes(times, sizes, window) == max(contents, default=0)


def test_the_live_counters_give_the_rate_of_any_interval() -> None:
    seen = FlowSeen()
    for index in range(10):
        seen.times_ns.append(index * 100_000_000)
        seen.sizes.append(1250)
    assert seen.rate(0, 1_000_000_000) == 100_000
    assert seen.rate(250_000_000, 750_000_000) == 100_000
    assert seen.copy().rate(2_000_000_000, 3_000_000_000) == 0
