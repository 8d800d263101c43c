"""packet_source() and the source port, against what scapy builds: where a packet comes from, as rules see it."""

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.all import ICMP, IP, TCP, UDP, Dot1Q, Ether, IPOption, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, Raw, raw

from unit.native import Source, native, untimed

V4, V6 = "192.0.2.1", "2001:db8::1"
ETHERNET = 14


def frame(*layers: Any) -> bytes:
    packet = Ether()
    for layer in layers:
        packet /= layer
    return bytes(raw(packet))


FOUR = IP(src=V4, dst="198.51.100.1")
SIX = IPv6(src=V6, dst="2001:db8::2")


@pytest.mark.parametrize(
    ("layers", "port"),
    [
        ((FOUR, UDP(sport=4000)), 4000),
        ((FOUR, TCP(sport=65535)), 65535),
        ((Dot1Q(vlan=5), FOUR, UDP(sport=1)), 1),
        ((IP(src=V4, options=[IPOption(b"\x01")] * 4), UDP(sport=4000)), 4000),
        ((IP(src=V4, frag=185), Raw(bytes(64))), 0),
        ((FOUR, ICMP()), 0),
        ((SIX, UDP(sport=4000)), 4000),
        ((SIX, IPv6ExtHdrDestOpt(), TCP(sport=443)), 443),
        ((SIX, IPv6ExtHdrFragment(offset=185), Raw(bytes(64))), 0),
    ],
    ids=str,
)
def test_source_is_that_of_the_packet(layers: tuple[Any, ...], port: int) -> None:
    four = any(isinstance(layer, IP) for layer in layers)
    address = socket.inet_pton(socket.AF_INET if four else socket.AF_INET6, V4 if four else V6)
    assert native().source(frame(*layers), ETHERNET) == Source(0, port, address)


@untimed
@given(st.ip_addresses(), st.integers(0, 65535))
def test_any_address_and_port_is_read_as_it_is(address: Any, port: int) -> None:
    network = IP(src=str(address)) if address.version == 4 else IPv6(src=str(address))
    packet = bytes(raw(network / UDP(sport=port)))
    assert native().source(packet, 0) == Source(0, port, address.packed)
