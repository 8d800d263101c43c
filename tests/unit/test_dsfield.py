"""bpf/dsfield.h: every DSCP over every DS field in both families, judged by checksums computed anew.

What bpf_skb_store_bytes() does with the result is the datapath tests' business; here the bytes count.
"""

import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.native import native, untimed

C = native()

DSCPS = range(64)
DSFIELDS = range(256)  # all DSCPs times all ECN codepoints
IPV4_REWRITTEN = 12  # bytes that must be there, RFC 791: up to and with the header checksum


def ones_complement_sum(header: bytes) -> int:
    """RFC 1071: 0xffff over a header with a valid checksum in it."""
    total = sum(int.from_bytes(header[i : i + 2], "big") for i in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def sealed(header: bytes) -> bytes:
    """The IPv4 header with its checksum computed over all of it."""
    blank = header[:10] + bytes(2) + header[12:]
    return blank[:10] + (~ones_complement_sum(blank) & 0xFFFF).to_bytes(2, "big") + blank[12:]


def ipv4(dsfield: int, rest: bytes) -> bytes:
    """A header of 20 bytes and whatever options `rest` has beyond 18, checksum valid."""
    words = (len(rest) + 2) // 4
    return sealed(bytes((0x40 | words, dsfield)) + rest[: words * 4 - 2])


def ipv6(dsfield: int, rest: bytes) -> bytes:
    """The first four bytes around the class, then the rest; `rest[0]` gives the flow label's upper bits."""
    return bytes((0x60 | dsfield >> 4, (dsfield & 15) << 4 | (rest[0] & 15))) + rest[1:]


def ipv6_class(header: bytes) -> int:
    return (int.from_bytes(header[:4], "big") >> 20) & 0xFF


def every_change() -> Iterator[tuple[int, int, int, random.Random]]:
    """(DS field, DSCP wanted, DS field expected, a seeded source of the other bytes)."""
    dice = random.Random(2474)
    for dsfield, dscp in itertools.product(DSFIELDS, DSCPS):
        yield dsfield, dscp, dscp * 4 + dsfield % 4, dice


def test_dscp_is_the_upper_six_bits() -> None:
    assert [C.dscp(dsfield) for dsfield in DSFIELDS] == [dsfield // 4 for dsfield in DSFIELDS]


def test_with_dscp_keeps_ecn_for_every_pair() -> None:
    for dsfield, dscp, expected, _ in every_change():
        assert C.with_dscp(dsfield, dscp) == expected


def test_a_dscp_out_of_range_never_reaches_the_ecn_bits() -> None:
    for dscp in range(64, 256):
        assert C.with_dscp(0b01, dscp) == (dscp % 64) * 4 + 0b01
        assert C.rewrite(ipv4(0b01, bytes(18)), 4, dscp) == ipv4((dscp % 64) * 4 + 0b01, bytes(18))
        assert C.rewrite(ipv6(0b01, bytes(39)), 6, dscp) == ipv6((dscp % 64) * 4 + 0b01, bytes(39))


def test_ipv4_rewrite_changes_the_dscp_and_the_checksum_and_nothing_else() -> None:
    for dsfield, dscp, expected, dice in every_change():
        rest = dice.randbytes(18 + 4 * dice.randrange(11))
        rewritten = C.rewrite(ipv4(dsfield, rest), 4, dscp)
        assert rewritten == ipv4(expected, rest)


def test_ipv6_rewrite_changes_the_dscp_and_nothing_else() -> None:
    for dsfield, dscp, expected, dice in every_change():
        rest = dice.randbytes(39)
        rewritten = C.rewrite(ipv6(dsfield, rest), 6, dscp)
        assert rewritten == ipv6(expected, rest)
        assert ipv6_class(rewritten) == expected


@pytest.mark.parametrize("result", [0x0000, 0x0001, 0x0100, 0xFEFF, 0xFFFE])
def test_ipv4_checksum_is_right_where_it_becomes_a_corner_value(result: int) -> None:
    """Where RFC 1141 answers 0xffff for 0x0000, and where carries carry again, in either byte order."""
    for dsfield, dscp, expected, dice in itertools.islice(every_change(), 0, None, 7):
        rest = dice.randbytes(18)
        target = bytes((0x45, expected)) + rest[:2] + bytes(2) + rest[4:8] + bytes(2) + rest[10:]
        missing = (~result & 0xFFFF) - ones_complement_sum(target)
        identification = (missing % 0xFFFF).to_bytes(2, "big")
        rest = rest[:2] + identification + rest[4:]
        after = ipv4(expected, rest)
        assert int.from_bytes(after[10:12], "big") == result
        assert C.rewrite(ipv4(dsfield, rest), 4, dscp) == after


def test_ipv4_checksum_0xffff_stays_valid() -> None:
    """A sender may write 0xffff where 0x0000 is meant: in one's complement both verify."""
    for dsfield, dscp, expected, dice in itertools.islice(every_change(), 0, None, 7):
        rest = dice.randbytes(18)
        blank = bytes((0x45, dsfield)) + rest[:2] + bytes(2) + rest[4:8] + bytes(2) + rest[10:]
        identification = ((0xFFFF - ones_complement_sum(blank)) % 0xFFFF).to_bytes(2, "big")
        before = blank[:4] + identification + blank[6:10] + b"\xff\xff" + blank[12:]
        assert ones_complement_sum(before) == 0xFFFF
        rewritten = C.rewrite(before, 4, dscp)
        assert ones_complement_sum(rewritten) == 0xFFFF
        assert rewritten[1] == expected


@untimed
@given(header=st.binary(min_size=20, max_size=60).map(lambda b: b[: len(b) // 4 * 4]), dscp=st.sampled_from(DSCPS))
def test_a_wrong_ipv4_checksum_stays_wrong_by_the_same_amount(header: bytes, dscp: int) -> None:
    before = bytes((0x45,)) + header[1:]
    after = C.rewrite(before, 4, dscp)
    assert ones_complement_sum(after) % 0xFFFF == ones_complement_sum(before) % 0xFFFF
    assert after[2:10] + after[12:] == before[2:10] + before[12:]


@untimed
@given(
    rest=st.binary(min_size=39, max_size=39),
    dsfield=st.sampled_from(DSFIELDS),
    dscp=st.sampled_from(DSCPS),
    family=st.sampled_from((4, 6)),
)
def test_rewriting_back_gives_the_packet_that_was(rest: bytes, dsfield: int, dscp: int, family: int) -> None:
    header = ipv4(dsfield, rest[:18]) if family == 4 else ipv6(dsfield, rest)
    there = C.rewrite(header, family, dscp)
    assert C.rewrite(there, family, dsfield // 4) == header
    assert C.rewrite(header, family, dsfield // 4) == header


@pytest.mark.parametrize(("family", "needed"), [(4, IPV4_REWRITTEN), (6, 4)])
def test_a_header_that_ends_too_early_is_not_rewritten(family: int, needed: int) -> None:
    header = ipv4(0, bytes(18)) if family == 4 else ipv6(0, bytes(39))
    for length in range(needed):
        assert C.rewrite(header[:length], family, 46) == b""
    rewritten = C.rewrite(header, family, 46)
    assert C.rewrite(header[:needed], family, 46) == rewritten[:needed]
    assert len(rewritten) == len(header)
