"""From the flows of one socket to what the datapath looks up: its storage and its further destinations.

Pure arithmetic of layout; KernelDatapath writes the result. The first exact destination lives in the
socket's own storage, where the datapath compares without a lookup; only further ones need the map.
"""

import socket
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address

from qos2.datapath import abi
from qos2.model import Destination, FlowId


@lru_cache(maxsize=4096)  # an application sends many times to few places
def address_words(destination: Destination) -> tuple[int, tuple[int, int, int, int]]:
    """Family (4, 6, or 0 for the wildcard) and address as the packet's four words, IPv4 in the first."""
    if destination.address is None:
        return 0, (0, 0, 0, 0)
    packed = destination.address.packed.ljust(16, b"\0")
    words = tuple(int.from_bytes(packed[at : at + 4], "little") for at in range(0, 16, 4))
    family = 4 if isinstance(destination.address, IPv4Address) else 6
    return family, (words[0], words[1], words[2], words[3])


def destination_key(cookie: int, destination: Destination) -> abi.Destination:
    """The key of `destinations` for one socket and destination."""
    family, words = address_words(destination)
    key = abi.Destination(cookie=cookie, port_be=socket.htons(destination.port), family=family)
    key.address_be[:] = words
    return key


# Plain numbers: this runs for each socket that is added, and arithmetic of enumerations is slow.
_EXACT, _ANY_PORT = int(abi.SocketFlag.EXACT), int(abi.SocketFlag.ANY_PORT)
_ANY_ADDRESS, _PRESET = int(abi.SocketFlag.ANY_ADDRESS), int(abi.SocketFlag.PRESET)


def _shape(destination: Destination) -> int:
    if destination.address is None:
        return _ANY_ADDRESS
    return _EXACT if destination.port else _ANY_PORT


def _names(value: abi.SocketFlow, destination: Destination) -> bool:
    family, words = address_words(destination)
    return (
        value.first_family == family
        and value.first_port_be == socket.htons(destination.port)
        and tuple(value.first_address_be) == words
    )


def plan(
    flows: Mapping[Destination, FlowId], current: abi.SocketFlow | None
) -> tuple[abi.SocketFlow, dict[Destination, FlowId]]:
    """The storage that makes `flows` the socket's flows, and the entries that `destinations` must have.

    A destination that `current` names stays where it is, so that no packet meets a moment without it.
    The preset of `current` is carried over.
    """
    value = abi.SocketFlow()
    if current is not None and current.flags & _PRESET:
        value.flags = _PRESET
        value.preset_dscp = current.preset_dscp
        value.original_dscp = current.original_dscp
    exact = [d for d in flows if d.port and d.address is not None]
    first = exact[0] if exact else None
    if len(exact) > 1 and current is not None and current.first_family:
        first = next((d for d in exact if _names(current, d)), first)
    further: dict[Destination, FlowId] = {}
    for destination, flow in flows.items():
        if destination.is_any:
            value.flow_id = flow
        elif destination is first:
            value.first_flow_id = flow
            value.first_family, value.first_address_be[:] = address_words(destination)
            value.first_port_be = socket.htons(destination.port)
        else:
            further[destination] = flow
            value.flags |= _shape(destination)
    return value, further
