"""bpf/packet.h: packets built by scapy and by hand, whole, cut off at every byte, and random bytes.

Two judges: what a packet was built from, and `walk()`, a parser written again in Python from the RFCs,
for packets that nobody meant. Each packet ends where readable memory ends (unit/native), so every
read beyond `data_end` is caught by the processor.
"""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption, IPOption_Router_Alert
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    IPv6ExtHdrSegmentRouting,
    PadN,
)
from scapy.layers.ipsec import AH
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from qos2.datapath.abi import Counter
from unit.native import FIRST, LATER, WHOLE, Destination, Network, native, untimed
from unit.packet_corpus import (
    CORPUS,
    ETHERNET,
    EXTENSIONS,
    EXTENSIONS_WALKED,
    MAC,
    NO_ID,
    NO_LINK,
    PORT_PROTOCOLS,
    PORTS,
    TAGS,
    V4,
    V6,
    framed,
    ipv4,
    ipv6,
    on_every_link,
)

C = native()

NOT_IP, TRUNCATED, EXTENSION_LIMIT = -Counter.NOT_IP, -Counter.TRUNCATED, -Counter.EXTENSION_LIMIT


def ethernet() -> Ether:
    """With both addresses, or scapy would ask the network for them."""
    return Ether(dst=MAC, src=MAC)


def walk(data: bytes, link_bytes: int) -> tuple[Network, Destination | None]:
    """RFC 791, RFC 8200, RFC 4302, IEEE 802.1Q; the limits are packet.h's."""
    at, kinds = 0, {4, 6}
    if link_bytes:
        if len(data) < 14:
            return Network(TRUNCATED), None
        at, ethertype = 14, data[12:14]
        for _ in range(2):
            if ethertype in (b"\x81\x00", b"\x88\xa8", b"\x91\x00"):
                if len(data) < at + 4:
                    return Network(TRUNCATED), None
                ethertype = data[at + 2 : at + 4]
                at += 4
        kinds = {b"\x08\x00": {4}, b"\x86\xdd": {6}}.get(ethertype, set())
        if not kinds:
            return Network(NOT_IP), None
    l3, ip = at, data[at:]
    if not ip:
        return Network(TRUNCATED), None
    family = ip[0] >> 4
    if family not in kinds:
        return Network(NOT_IP), None
    if len(ip) < (20 if family == 4 else 40):
        return Network(TRUNCATED), None
    if family == 4:
        return Network(0, 4, ip[1], l3), walk_ipv4(ip)
    return Network(0, 6, (int.from_bytes(ip[:2], "big") >> 4) & 0xFF, l3), walk_ipv6(ip)


def walk_ports(family: int, protocol: int, segment: bytes, fragment: int, address: bytes, ident: bytes) -> Destination:
    if fragment == LATER or protocol not in PORT_PROTOCOLS:
        return Destination(0, protocol, fragment, 0, address, ident)
    if len(segment) < 4:
        return Destination(TRUNCATED, protocol, fragment, 0, address, ident)
    return Destination(0, protocol, fragment, int.from_bytes(segment[2:4], "big"), address, ident)


def walk_ipv4(ip: bytes) -> Destination:
    protocol, address, header = ip[9], ip[16:20], (ip[0] & 15) * 4
    if header < 20:
        return Destination(TRUNCATED, protocol, WHOLE, 0, address, NO_ID)
    more, offset = bool(ip[6] & 0x20), int.from_bytes(ip[6:8], "big") & 0x1FFF
    fragment = LATER if offset else FIRST if more else WHOLE
    return walk_ports(4, protocol, ip[header:], fragment, address, ip[4:6] + bytes(2) if fragment else NO_ID)


def walk_ipv6(ip: bytes) -> Destination:
    protocol, address, at, fragment, ident = ip[6], ip[24:40], 40, WHOLE, NO_ID
    for _ in range(EXTENSIONS_WALKED):
        if protocol not in EXTENSIONS:
            break
        header = ip[at : at + 8]
        if len(header) < 8:
            return Destination(TRUNCATED, protocol, fragment, 0, address, ident)
        kind, protocol = protocol, header[0]
        if kind == 44:
            at += 8
            word = int.from_bytes(header[2:4], "big")
            if word >> 3 or word & 1:
                fragment, ident = (LATER if word >> 3 else FIRST), header[4:8]
            if fragment == LATER:
                return Destination(0, protocol, LATER, 0, address, ident)
        else:
            at += (header[1] + 2) * 4 if kind == 51 else (header[1] + 1) * 8
    if protocol in EXTENSIONS:
        return Destination(EXTENSION_LIMIT, protocol, fragment, 0, address, ident)
    return walk_ports(6, protocol, ip[at:], fragment, address, ident)


def test_every_packet_of_the_corpus_is_read_as_it_was_built() -> None:
    for case in CORPUS:
        for data, link_bytes, l3_offset in on_every_link(case):
            assert C.parse(data, link_bytes) == (Network(0, case.family, 0xB9, l3_offset), case.expected)


def test_a_packet_cut_off_anywhere_is_read_as_far_as_it_goes_and_never_further() -> None:
    dice = random.Random(1500)
    for case in dice.sample(CORPUS, 400):
        data, link_bytes, _ = dice.choice(list(on_every_link(case)))
        for length in range(len(data)):
            assert C.parse(data[:length], link_bytes) == walk(data[:length], link_bytes)


def test_each_truncation_of_a_plain_udp_packet_is_called_truncated() -> None:
    for family, packet, ethertype in ((4, ipv4(17, PORTS), 0x0800), (6, ipv6(17, PORTS), 0x86DD)):
        fixed = {4: 20, 6: 40}[family]
        data = framed(b"", ethertype, packet)
        for length in range(14 + fixed):
            assert C.parse(data[:length], ETHERNET) == (Network(TRUNCATED), None)
        for length in range(14 + fixed, 14 + fixed + 4):
            network, destination = C.parse(data[:length], ETHERNET)
            assert network.error == 0
            assert destination is not None
            assert (destination.error, destination.port) == (TRUNCATED, 0)
        assert C.parse(data[: 14 + fixed + 4], ETHERNET) == C.parse(data, ETHERNET)


@settings(untimed, max_examples=200)
@given(data=st.binary(max_size=200), link_bytes=st.sampled_from((ETHERNET, NO_LINK)))
def test_random_bytes_are_read_as_the_rfcs_say(data: bytes, link_bytes: int) -> None:
    assert C.parse(data, link_bytes) == walk(data, link_bytes)


def test_damaged_packets_are_read_as_the_rfcs_say() -> None:
    dice = random.Random(3552)
    for _ in range(8000):
        data, link_bytes, _ = dice.choice(list(on_every_link(dice.choice(CORPUS))))
        damaged = bytearray(data)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.choice((0, 43, 44, 51, 60, 0xFF, dice.randrange(256)))
        packet = bytes(damaged[: dice.randint(0, len(damaged))] if dice.random() < 0.3 else damaged)
        assert C.parse(packet, link_bytes) == walk(packet, link_bytes)


def test_every_ds_field_is_read_in_both_families() -> None:
    for dsfield in range(256):
        assert C.parse(ipv4(17, PORTS, dsfield=dsfield), NO_LINK)[0] == Network(0, 4, dsfield, 0)
        assert C.parse(ipv6(17, PORTS, dsfield=dsfield), NO_LINK)[0] == Network(0, 6, dsfield, 0)


SCAPY: dict[str, tuple[Callable[[], Packet], int, int, int]] = {  # (packet, l3_offset, protocol, port)
    "tcp over ipv4": (lambda: ethernet() / IP(src="198.51.100.1", dst="192.0.2.7") / TCP(dport=443), 14, 6, 443),
    "udp with a router alert": (
        lambda: (
            ethernet() / IP(src="198.51.100.1", dst="192.0.2.7", options=[IPOption_Router_Alert()]) / UDP(dport=5004)
        ),
        14,
        17,
        5004,
    ),
    "udp with forty bytes of options": (
        lambda: (
            ethernet() / IP(src="198.51.100.1", dst="192.0.2.7", options=[IPOption(b"\x01" * 40)]) / UDP(dport=5004)
        ),
        14,
        17,
        5004,
    ),
    "sctp in a vlan": (
        lambda: ethernet() / Dot1Q(vlan=7) / IP(src="198.51.100.1", dst="192.0.2.7") / SCTP(dport=36412),
        18,
        132,
        36412,
    ),
    "tcp in q-in-q": (
        lambda: (
            ethernet() / Dot1AD(vlan=9) / Dot1Q(vlan=7) / IPv6(src="2001:db8::1", dst="2001:db8::7") / TCP(dport=22)
        ),
        22,
        6,
        22,
    ),
    "ping over ipv4": (lambda: ethernet() / IP(src="198.51.100.1", dst="192.0.2.7") / ICMP(), 14, 1, 0),
    "ping over ipv6": (
        lambda: ethernet() / IPv6(src="2001:db8::1", dst="2001:db8::7") / ICMPv6EchoRequest(),
        14,
        58,
        0,
    ),
    "udp behind four extension headers": (
        lambda: (
            ethernet()
            / IPv6(src="2001:db8::1", dst="2001:db8::7")
            / IPv6ExtHdrHopByHop(options=[PadN(optdata=bytes(20))])
            / IPv6ExtHdrDestOpt()
            / IPv6ExtHdrRouting(addresses=["2001:db8::8", "2001:db8::9"])
            / IPv6ExtHdrDestOpt(options=[PadN(optdata=bytes(12))])
            / UDP(dport=3478)
        ),
        14,
        17,
        3478,
    ),
    "tcp behind an authentication header": (
        lambda: (
            ethernet()
            / IPv6(src="2001:db8::1", dst="2001:db8::7")
            / AH(nh=6, icv=bytes(12), payloadlen=4)
            / TCP(dport=179)
        ),
        14,
        6,
        179,
    ),
    "udp with segment routing": (
        lambda: (
            ethernet()
            / IPv6(src="2001:db8::1", dst="2001:db8::7")
            / IPv6ExtHdrSegmentRouting(addresses=["2001:db8::8"])
            / UDP(dport=53)
        ),
        14,
        17,
        53,
    ),
}


@pytest.mark.parametrize("name", SCAPY)
def test_a_packet_of_scapy_is_read_as_scapy_built_it(name: str) -> None:
    build, l3_offset, protocol, port = SCAPY[name]
    packet = build()
    family = 4 if IP in packet else 6
    network, destination = C.parse(bytes(packet), ETHERNET)
    assert network == Network(0, family, 0, l3_offset)
    assert destination == Destination(0, protocol, WHOLE, port, V4 if family == 4 else V6, NO_ID)


def test_with_a_routing_header_the_address_is_the_next_hop_on_the_wire() -> None:
    route = IPv6ExtHdrRouting(type=2, addresses=["2001:db8::99"])
    _, destination = C.parse(bytes(IPv6(src="2001:db8::1", dst="2001:db8::7") / route / UDP(dport=53)), NO_LINK)
    assert destination == Destination(0, 17, WHOLE, 53, V6, NO_ID)


def test_fragments_made_by_scapy_share_their_id_and_only_the_first_has_the_port() -> None:
    datagram = IP(src="198.51.100.1", dst="192.0.2.7", id=0x1234) / UDP(dport=5004) / Raw(bytes(4000))
    read = [C.parse(bytes(part), NO_LINK)[1] for part in datagram.fragment(1400)]
    ident = b"\x12\x34\x00\x00"
    later = Destination(0, 17, LATER, 0, V4, ident)
    assert read == [Destination(0, 17, FIRST, 5004, V4, ident), later, later]


def test_an_atomic_fragment_is_a_whole_packet() -> None:
    """RFC 6946."""
    packet = IPv6(src="2001:db8::1", dst="2001:db8::7") / IPv6ExtHdrFragment(m=0, offset=0, id=77) / UDP(dport=53)
    assert C.parse(bytes(packet), NO_LINK)[1] == Destination(0, 17, WHOLE, 53, V6, NO_ID)


def test_eight_extension_headers_are_walked_and_a_ninth_is_the_limit() -> None:
    longest = bytes((60, 255)) + bytes(2046)
    eight = longest * 7 + bytes((17, 255)) + bytes(2046)
    assert C.parse(ipv6(60, eight + PORTS), NO_LINK)[1] == Destination(0, 17, WHOLE, 8080, V6, NO_ID)
    nine = longest + eight
    assert C.parse(ipv6(60, nine + PORTS), NO_LINK)[1] == Destination(EXTENSION_LIMIT, 60, WHOLE, 0, V6, NO_ID)


@pytest.mark.parametrize("protocol", [50, 59], ids=["esp", "no next header"])
def test_the_walk_ends_without_a_port_at(protocol: int) -> None:
    options = bytes((protocol, 0)) + bytes(6)
    assert C.parse(ipv6(60, options + PORTS), NO_LINK)[1] == Destination(0, protocol, WHOLE, 0, V6, NO_ID)


@pytest.mark.parametrize(
    ("data", "link_bytes"),
    [
        pytest.param(bytes(ethernet() / ARP(hwsrc=MAC, psrc="198.51.100.1")), ETHERNET, id="arp"),
        pytest.param(framed(TAGS[2] + TAGS[1], 0x0800, ipv4(17, PORTS)), ETHERNET, id="three tags"),
        pytest.param(framed(b"", 0x0800, ipv6(17, PORTS)), ETHERNET, id="ipv6 under the type of ipv4"),
        pytest.param(framed(b"", 0x86DD, ipv4(17, PORTS)), ETHERNET, id="ipv4 under the type of ipv6"),
        pytest.param(framed(b"", 0x0026, b"\xaa\xaa\x03" + bytes(40)), ETHERNET, id="802.3 length"),
        pytest.param(ipv4(17, PORTS), 4, id="a link layer that is not known"),
        *(pytest.param(bytes((v << 4,)) + bytes(60), NO_LINK, id=f"version {v}") for v in range(16) if v not in (4, 6)),
    ],
)
def test_what_is_not_ip_is_said_to_be_not_ip(data: bytes, link_bytes: int) -> None:
    assert C.parse(data, link_bytes) == (Network(NOT_IP), None)


@pytest.mark.parametrize("words", range(5))
def test_an_ipv4_header_length_below_twenty_is_truncated(words: int) -> None:
    packet = bytes((0x40 + words,)) + ipv4(17, PORTS)[1:]
    assert C.parse(packet, NO_LINK)[1] == Destination(TRUNCATED, 17, WHOLE, 0, V4, NO_ID)


@untimed
@given(
    segments=st.lists(st.integers(1, 1460), min_size=1, max_size=45),
    l3_offset=st.sampled_from((0, 14, 18, 22)),
    headers=st.sampled_from((28, 40, 48, 52, 60, 80)),
)
def test_ip_bytes_of_a_gso_skb_are_the_sum_of_its_segments(segments: list[int], l3_offset: int, headers: int) -> None:
    """wire_len as qdisc_pkt_len_init() makes it: the skb as it is, and all headers again per further segment."""
    skb_len = l3_offset + headers + sum(segments)
    wire_len = skb_len + (len(segments) - 1) * (l3_offset + headers)
    on_the_wire = sum(headers + payload for payload in segments)
    assert C.ip_bytes(wire_len, len(segments), l3_offset) == on_the_wire
    if len(segments) == 1:
        assert C.ip_bytes(wire_len, 0, l3_offset) == on_the_wire


@untimed
@given(wire_len=st.integers(0, 2**32 - 1), gso_segs=st.integers(0, 2**32 - 1), l3_offset=st.integers(0, 2**32 - 1))
def test_ip_bytes_never_fall_below_a_bare_header(wire_len: int, gso_segs: int, l3_offset: int) -> None:
    assert C.ip_bytes(wire_len, gso_segs, l3_offset) == max(20, wire_len - l3_offset * max(1, gso_segs))
