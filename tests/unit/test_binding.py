"""What a socket's storage says for the flows that the socket is in."""

import socket
from ipaddress import IPv4Address, IPv6Address

from hypothesis import given
from hypothesis import strategies as st

from qos2.datapath import abi, binding
from qos2.model import ANY_DESTINATION, Destination, FlowId

FIRST, SECOND = Destination.parse("192.0.2.7", 5004), Destination.parse("2001:db8::7", 5005)
ONE, TWO, THREE = FlowId(1 << 20 | 1), FlowId(2 << 20 | 2), FlowId(3 << 20 | 3)

addresses = (
    st.none() | st.builds(IPv4Address, st.integers(1, 2**32 - 1)) | st.builds(IPv6Address, st.integers(1, 2**96))
)
destinations = st.builds(Destination, addresses, st.integers(0, 65535))
bindings = st.dictionaries(destinations, st.integers(1, 2**32 - 1).map(FlowId), max_size=8)


def test_no_flow_is_an_empty_storage() -> None:
    value, further = binding.plan({}, None)
    assert bytes(value) == bytes(32)
    assert further == {}


def test_the_whole_socket_needs_no_destination() -> None:
    value, further = binding.plan({ANY_DESTINATION: ONE}, None)
    assert (value.flow_id, value.first_family, value.flags, further) == (ONE, 0, 0, {})


def test_an_ipv4_destination_stands_in_the_storage_as_in_the_packet() -> None:
    value, further = binding.plan({FIRST: ONE}, None)
    assert (value.first_flow_id, value.first_family, value.first_port_be) == (ONE, 4, socket.htons(5004))
    assert bytes(value.first_address_be) == socket.inet_aton("192.0.2.7") + bytes(12)
    assert further == {}


def test_an_ipv6_destination_stands_in_the_storage_as_in_the_packet() -> None:
    value, _ = binding.plan({SECOND: ONE}, None)
    assert value.first_family == 6
    assert bytes(value.first_address_be) == socket.inet_pton(socket.AF_INET6, "2001:db8::7")


def test_a_destination_keeps_its_place_when_others_come_before_it() -> None:
    value, _ = binding.plan({FIRST: ONE}, None)
    value, further = binding.plan({SECOND: TWO, FIRST: ONE, ANY_DESTINATION: THREE}, value)
    assert (value.first_flow_id, value.first_family, value.flow_id) == (ONE, 4, THREE)
    assert further == {SECOND: TWO}
    assert value.flags == abi.SocketFlag.EXACT


def test_a_preset_is_carried_over() -> None:
    before = abi.SocketFlow(flags=abi.SocketFlag.PRESET, preset_dscp=46, original_dscp=10)
    value, _ = binding.plan({ANY_DESTINATION: ONE}, before)
    assert (value.flags, value.preset_dscp, value.original_dscp) == (abi.SocketFlag.PRESET, 46, 10)


@given(bindings, bindings)
def test_every_flow_is_found_once_and_every_shape_is_flagged(
    before: dict[Destination, FlowId], flows: dict[Destination, FlowId]
) -> None:
    current, _ = binding.plan(before, None)
    value, further = binding.plan(flows, current)
    found = dict(further)
    if value.flow_id:
        found[ANY_DESTINATION] = value.flow_id
    if value.first_family:
        (first,) = [d for d in flows if d not in found]
        found[first] = value.first_flow_id
        assert binding.address_words(first) == (value.first_family, tuple(value.first_address_be))
        assert value.first_port_be == socket.htons(first.port)
    assert found == flows
    shapes = {
        abi.SocketFlag.EXACT: any(d.address is not None and d.port for d in further),
        abi.SocketFlag.ANY_PORT: any(d.address is not None and not d.port for d in further),
        abi.SocketFlag.ANY_ADDRESS: any(d.address is None for d in further),
    }
    assert {flag: bool(value.flags & flag) for flag in shapes} == shapes


@given(st.integers(1, 2**63), destinations)
def test_a_key_holds_cookie_address_and_port_and_nothing_else(cookie: int, destination: Destination) -> None:
    key = binding.destination_key(cookie, destination)
    packed = b"" if destination.address is None else destination.address.packed
    family = {0: 0, 4: 4, 16: 6}[len(packed)]
    expected = cookie.to_bytes(8, "little") + packed.ljust(16, b"\0") + destination.port.to_bytes(2, "big")
    assert bytes(key) == expected + bytes([family]) + bytes(5)
