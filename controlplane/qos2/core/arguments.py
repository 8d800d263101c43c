"""What callers pass: plain numbers become values of the domain, or are refused with what would be right.

Pure checks of one request's own words; whether a flow exists or may be touched is the service's part.
Everything here raises InvalidRequest (Win32 87) and nothing else.
"""

from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import TypeVar, cast

from qos2.errors import InvalidRequest
from qos2.model import (
    DEFAULT_MINIMUM_BANDWIDTH,
    MAX_BANDWIDTH,
    MIN_BANDWIDTH,
    Bandwidth,
    Destination,
    Dscp,
    FlowRate,
    RateReason,
    Shaping,
)

#: What the special value of qos2.h gets: its documentation says "small" and no number. One voice call fits.
SMALL_BANDWIDTH = Bandwidth(64_000)

Number = TypeVar("Number", bound=IntEnum)


def known(kind: type[Number], value: int, word: str) -> Number:
    """`value` as a member of an enumeration of qos2.h; `word` names it in the refusal."""
    found = kind._value2member_map_.get(value)  # what kind(value) looks up, in a tenth of the time
    if found is None:
        last = max(kind)
        raise InvalidRequest(f"unknown {word} {value}", f"0 ({min(kind).name}) .. {last} ({last.name})")
    return cast(Number, found)


def contract(bandwidth: int, shaping: int, reason: int) -> FlowRate | None:
    """A rate contract in bits/s at IP level; None for bandwidth 0, which takes a contract away.

    QOS_OUTGOING_DEFAULT_MINIMUM_BANDWIDTH (exactly 0xFFFFFFFF) becomes SMALL_BANDWIDTH: it cannot be told
    from a request for 4.29 Gbit/s, and the header reserves it.
    """
    how, why = known(Shaping, shaping, "shaping"), known(RateReason, reason, "rate reason")
    if bandwidth == 0:
        return None
    if bandwidth == DEFAULT_MINIMUM_BANDWIDTH:
        return FlowRate(SMALL_BANDWIDTH, how, why)
    if not MIN_BANDWIDTH <= bandwidth <= MAX_BANDWIDTH:
        raise InvalidRequest(
            f"bandwidth {bandwidth} bits/s is outside {MIN_BANDWIDTH}..{MAX_BANDWIDTH}",
            "bits per second with IP headers; 0 takes the contract away",
        )
    return FlowRate(Bandwidth(bandwidth), how, why)


def code_point(value: int) -> Dscp:
    """A DSCP, RFC 2474: six bits."""
    if not 0 <= value <= 63:
        raise InvalidRequest(f"DSCP {value} is outside 0..63", "the DSCP is the upper six bits of the TOS byte")
    return Dscp(value)


def client_address(address: str) -> IPv4Address | IPv6Address:
    """The host that a QOSStartTrackingClient names: one literal address and no wildcard."""
    try:
        client = Destination.parse(address, 0).address
    except ValueError as error:
        raise InvalidRequest(f"not an address: {address!r}", "a literal IPv4 or IPv6 address") from error
    if client is None:
        raise InvalidRequest(f"{address} is no single host", "a literal IPv4 or IPv6 address")
    return client
