"""Packets for the parser's tests, built by hand from what they are meant to be: each comes with its answer.

The corpus: IPv4 with every length of options and kind of fragment, IPv6 with extension headers in
every order of up to three and at random up to eight, bare and in Ethernet with up to two tags.
"""

import itertools
import random
from collections.abc import Iterator
from typing import NamedTuple

from unit.native import FIRST, LATER, WHOLE, Destination

ETHERNET, NO_LINK = 14, 0
PORT_PROTOCOLS = (6, 17, 33, 132, 136)  # TCP, UDP, DCCP, SCTP, UDP-Lite
EXTENSIONS = (0, 43, 44, 51, 60, 135, 139, 140)  # hop-by-hop, routing, fragment, AH, destination, MH, HIP, shim6
EXTENSIONS_WALKED = 8  # PACKET_EXTENSIONS
NO_ID = bytes(4)
MAC = "02:00:00:00:00:01"
V4 = bytes((192, 0, 2, 7))
V6 = bytes.fromhex("20010db8000000000000000000000007")
PORTS = bytes.fromhex("c001 1f90 0010 0000")  # 49153 -> 8080
TAGS = [b"", bytes.fromhex("81000005"), bytes.fromhex("88a80005810000ff"), bytes.fromhex("91000005 81000006")]


def framed(tags: bytes, ethertype: int, network: bytes) -> bytes:
    return bytes(12) + tags + ethertype.to_bytes(2, "big") + network


def ipv4(protocol: int, after: bytes, *, dsfield: int = 0xB9, frag: int = 0x4000, options: bytes = b"") -> bytes:
    """`frag`: flags and offset; the identification is 0xbeef."""
    length = (20 + len(options) + len(after)).to_bytes(2, "big")
    first = bytes((0x45 + len(options) // 4, dsfield)) + length + b"\xbe\xef" + frag.to_bytes(2, "big")
    return first + bytes((64, protocol, 0, 0, 198, 51, 100, 1)) + V4 + options + after


def ipv6(protocol: int, after: bytes, *, dsfield: int = 0xB9) -> bytes:
    first = (6 << 28 | dsfield << 20 | 0xABCDE).to_bytes(4, "big")
    return first + len(after).to_bytes(2, "big") + bytes((protocol, 64)) + bytes(15) + b"\x01" + V6 + after


def extension(kind: int, follows: int, dice: random.Random) -> bytes:
    """An extension header of random length and content (not the fragment header)."""
    units = dice.choice((0, 0, 0, 1, 2, 5))
    total = (units + 2) * 4 if kind == 51 else (units + 1) * 8
    return bytes((follows, units)) + dice.randbytes(total - 2)


def fragment_header(follows: int, offset: int, more: int, identification: bytes, reserved: int = 0) -> bytes:
    return bytes((follows, reserved)) + (offset << 3 | (reserved & 3) << 1 | more).to_bytes(2, "big") + identification


class Case(NamedTuple):
    """An IP packet without link header, and what it was built to be."""

    ip: bytes
    family: int
    expected: Destination


def extension_cases() -> Iterator[Case]:
    """Extension headers in every order of up to three of the eight, and in random orders of up to eight."""
    dice = random.Random(8200)
    orders: list[tuple[int, ...]] = [order for n in range(4) for order in itertools.permutations(EXTENSIONS, n)]
    orders += [tuple(dice.choices(EXTENSIONS, k=dice.randint(4, EXTENSIONS_WALKED))) for _ in range(1000)]
    for order in orders:
        last = dice.choice([*PORT_PROTOCOLS, 58, 59, 50, 253])
        part = dice.choice((WHOLE, FIRST, LATER)) if 44 in order else WHOLE
        kinds, ident = [*order, last], dice.randbytes(4)
        after, protocol = PORTS, last
        for place in reversed(range(len(order))):
            follows = kinds[place + 1]
            if order[place] != 44:
                after = extension(order[place], follows, dice) + after
                continue
            offset, more = (dice.randrange(1, 8192), dice.randrange(2)) if part == LATER else (0, int(part == FIRST))
            if part == LATER:  # the walk ends at the first of them
                protocol = follows
            after = fragment_header(follows, offset, more, ident, reserved=dice.randrange(256)) + after
        port = 8080 if last in PORT_PROTOCOLS and part != LATER else 0
        expected = Destination(0, protocol, part, port, V6, ident if part else NO_ID)
        yield Case(ipv6(kinds[0], after), 6, expected)


def ipv4_cases() -> Iterator[Case]:
    dice = random.Random(791)
    for words, protocol in itertools.product(range(11), [*PORT_PROTOCOLS, 1, 4, 47, 50, 51]):
        port = 8080 if protocol in PORT_PROTOCOLS else 0
        options = dice.randbytes(words * 4)
        for frag, fragment in (
            (0, WHOLE),
            (0x4000, WHOLE),
            (0x8000, WHOLE),
            (0x2000, FIRST),
            (0x2001, LATER),
            (185, LATER),
        ):
            ident = b"\xbe\xef\x00\x00" if fragment else NO_ID
            expected = Destination(0, protocol, fragment, 0 if fragment == LATER else port, V4, ident)
            yield Case(ipv4(protocol, PORTS, frag=frag, options=options), 4, expected)


CORPUS = [*ipv4_cases(), *extension_cases()]


def on_every_link(case: Case) -> Iterator[tuple[bytes, int, int]]:
    """(data, link_bytes, l3_offset): bare, and in Ethernet with each kind of tags."""
    yield case.ip, NO_LINK, 0
    for tags in TAGS:
        yield framed(tags, 0x0800 if case.family == 4 else 0x86DD, case.ip), ETHERNET, 14 + len(tags)
