"""Captured packets as arrays, and what is computed from them: rates, bursts, marks.

Pure: bytes in, numbers out, with numpy over whole captures. Where the bytes come from is capture.py's matter.
Sizes are at IP level (header, options and payload; no link header), which is what a rate contract counts.
"""

import struct
from dataclasses import dataclass, field, fields
from ipaddress import IPv6Address, ip_address
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

#: struct pcap_hdr (libpcap's savefile format): this magic number means stamps in nanoseconds.
_PCAP_NANOSECONDS = 0xA1B23C4D
_PCAP_HEADER = 24
_PCAP_RECORD = struct.Struct("<IIII")
_LINKTYPE_ETHERNET = 1

_ETHERNET = 14
_IPV4_WORDS = 30  # the longest IPv4 header, in 16-bit words
_FRAGMENT_HEADER = 44  # IPv6 next header number of the fragment header
_PAD = 128  # zeroes behind the last frame, so that no field of a short frame lies outside the buffer

TCP = 6
UDP = 17


class CaptureError(Exception):
    """A capture that cannot be judged: packets were lost, or its bytes are no capture."""


@dataclass(frozen=True, slots=True, eq=False)
class Packets:
    """IP packets in the order of their arrival, one array per field, all of the same length."""

    time_ns: NDArray[np.int64]  #: arrival, CLOCK_REALTIME
    ip_bytes: NDArray[np.int64]
    family: NDArray[np.uint8]  #: 4 or 6
    dscp: NDArray[np.uint8]
    ecn: NDArray[np.uint8]
    protocol: NDArray[np.uint8]
    source: NDArray[np.uint8]  #: (n, 16): the IPv6 address, or the IPv4 address mapped into IPv6
    destination: NDArray[np.uint8]
    sport: NDArray[np.uint16]  #: of TCP and UDP; 0 for others and for later fragments
    dport: NDArray[np.uint16]
    fragment: NDArray[np.bool_]  #: first or later fragment of a datagram
    checksum_ok: NDArray[np.bool_]  #: IPv4 header checksum; True for IPv6, which has none
    frame_at: NDArray[np.int64]  #: where its frame lies in `data`
    frame_bytes: NDArray[np.int64]  #: how much of it was captured
    data: bytes = field(repr=False)

    def __len__(self) -> int:
        return len(self.time_ns)

    def frame(self, index: int) -> bytes:
        """The captured bytes of one packet, from its Ethernet header on."""
        begin = int(self.frame_at[index])
        return self.data[begin : begin + int(self.frame_bytes[index])]

    def where(self, keep: NDArray[np.bool_]) -> Self:
        """Those for which the mask is true."""
        return type(self)(
            **{f.name: getattr(self, f.name)[keep] for f in fields(self) if f.name != "data"}, data=self.data
        )

    def select(
        self,
        *,
        family: int | None = None,
        protocol: int | None = None,
        sport: int | None = None,
        dport: int | None = None,
        destination: str | None = None,
        begin_ns: int | None = None,
        end_ns: int | None = None,
    ) -> Self:
        """Those that have all the given values; times are begin <= time < end."""
        keep = np.ones(len(self), dtype=np.bool_)
        for array, value in (
            (self.family, family),
            (self.protocol, protocol),
            (self.sport, sport),
            (self.dport, dport),
        ):
            if value is not None:
                keep &= array == value
        if destination is not None:
            keep &= (self.destination == np.frombuffer(mapped(destination), np.uint8)).all(axis=1)
        if begin_ns is not None:
            keep &= self.time_ns >= begin_ns
        if end_ns is not None:
            keep &= self.time_ns < end_ns
        return self.where(keep)

    def dscps(self) -> dict[int, int]:
        """How many packets had each DSCP."""
        values, counts = np.unique(self.dscp, return_counts=True)
        return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def mapped(address: str) -> bytes:
    """The 16 bytes of an address as `Packets` holds it."""
    ip = ip_address(address)
    return ip.packed if isinstance(ip, IPv6Address) else b"\0" * 10 + b"\xff\xff" + ip.packed


def parse_pcap(data: bytes) -> Packets:
    """The IP packets of a capture in pcap format (Ethernet, stamps in ns); other frames are left out.

    A record cut off at the end is an error, not an end. Raises CaptureError.
    """
    if len(data) < _PCAP_HEADER or struct.unpack_from("<I", data)[0] != _PCAP_NANOSECONDS:
        raise CaptureError("not a pcap capture with stamps in nanoseconds")
    if struct.unpack_from("<I", data, 20)[0] != _LINKTYPE_ETHERNET:
        raise CaptureError("not a capture of Ethernet frames")
    times, begins, lengths = [], [], []
    at = _PCAP_HEADER
    while at < len(data):
        if len(data) - at < _PCAP_RECORD.size:
            raise CaptureError("the capture ends within a record header")
        seconds, nanoseconds, captured, _ = _PCAP_RECORD.unpack_from(data, at)
        at += _PCAP_RECORD.size
        if len(data) - at < captured:
            raise CaptureError("the capture ends within a frame")
        times.append(seconds * 1_000_000_000 + nanoseconds)
        begins.append(at)
        lengths.append(captured)
        at += captured
    return _dissect(data, np.array(times, np.int64), np.array(begins, np.int64), np.array(lengths, np.int64))


def parse_frames(frames: list[tuple[int, bytes]]) -> Packets:
    """As parse_pcap, from pairs of time in ns and frame."""
    lengths = np.array([len(frame) for _, frame in frames], np.int64)
    begins = np.concatenate(([0], np.cumsum(lengths)))[: len(frames)]
    times = np.array([time for time, _ in frames], np.int64)
    return _dissect(b"".join(frame for _, frame in frames), times, begins, lengths)


def _dissect(data: bytes, time_ns: NDArray[Any], frame_at: NDArray[Any], frame_bytes: NDArray[Any]) -> Packets:
    # Two CPUs may deliver in another order than they stamped.
    order = np.argsort(time_ns, kind="stable")
    time_ns, frame_at, frame_bytes = time_ns[order], frame_at[order], frame_bytes[order]
    octets = np.frombuffer(data + b"\0" * _PAD, np.uint8)

    def byte(at: NDArray[Any]) -> NDArray[np.int64]:
        return np.asarray(octets[at], np.int64)

    def word(at: NDArray[Any]) -> NDArray[np.int64]:
        return byte(at) << 8 | byte(at + 1)

    ethertype = word(frame_at + 12)
    ip = ((ethertype == 0x0800) & (frame_bytes >= _ETHERNET + 20)) | (
        (ethertype == 0x86DD) & (frame_bytes >= _ETHERNET + 40)
    )
    time_ns, frame_at, frame_bytes = time_ns[ip], frame_at[ip], frame_bytes[ip]
    l3 = frame_at + _ETHERNET
    v4 = ethertype[ip] == 0x0800

    dsfield = np.where(v4, byte(l3 + 1), (byte(l3) << 4 | byte(l3 + 1) >> 4) & 0xFF)
    header = np.where(v4, (byte(l3) & 0xF) * 4, 40)
    protocol = np.where(v4, byte(l3 + 9), byte(l3 + 6))
    # In IPv6 a fragment header comes first in what this lab's hosts send.
    extended = ~v4 & (protocol == _FRAGMENT_HEADER)
    offset = np.where(v4, word(l3 + 6) & 0x1FFF, np.where(extended, word(l3 + 42) >> 3, 0))
    more = np.where(v4, word(l3 + 6) & 0x2000, np.where(extended, word(l3 + 42) & 1, 0)) != 0
    protocol = np.where(extended, byte(l3 + 40), protocol)
    header = header + np.where(extended, 8, 0)
    ported = ((protocol == TCP) | (protocol == UDP)) & (offset == 0)

    addresses = []
    for v4_offset, v6_offset in ((12, 8), (16, 24)):
        wide = octets[(l3 + v6_offset)[:, None] + np.arange(16)]
        narrow = np.zeros_like(wide)
        narrow[:, 10:12] = 0xFF
        narrow[:, 12:] = octets[(l3 + v4_offset)[:, None] + np.arange(4)]
        addresses.append(np.where(v4[:, None], narrow, wide))

    return Packets(
        time_ns=time_ns,
        ip_bytes=np.where(v4, word(l3 + 2), word(l3 + 4) + 40),
        family=np.where(v4, 4, 6).astype(np.uint8),
        dscp=(dsfield >> 2).astype(np.uint8),
        ecn=(dsfield & 3).astype(np.uint8),
        protocol=protocol.astype(np.uint8),
        source=addresses[0],
        destination=addresses[1],
        sport=np.where(ported, word(l3 + header), 0).astype(np.uint16),
        dport=np.where(ported, word(l3 + header + 2), 0).astype(np.uint16),
        fragment=(offset != 0) | more,
        checksum_ok=_ipv4_checksum_ok(octets, l3, header) | ~v4,
        frame_at=frame_at,
        frame_bytes=frame_bytes,
        data=data,
    )


def _ipv4_checksum_ok(octets: NDArray[np.uint8], l3: NDArray[np.int64], header: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether the ones' complement sum over the header is all ones (RFC 791, RFC 1071)."""
    at = l3[:, None] + 2 * np.arange(_IPV4_WORDS)
    words = octets[at].astype(np.int64) << 8 | octets[at + 1]
    total = np.where(2 * np.arange(_IPV4_WORDS) < header[:, None], words, 0).sum(axis=1)
    for _ in range(2):
        total = (total & 0xFFFF) + (total >> 16)
    return np.asarray(total == 0xFFFF)


def rate(time_ns: NDArray[np.int64], ip_bytes: NDArray[np.int64], begin_ns: int, end_ns: int) -> float:
    """Bits per second at IP level of what arrived at begin <= time < end. Raises ValueError for an empty interval."""
    if end_ns <= begin_ns:
        raise ValueError(f"an interval of {end_ns - begin_ns} ns has no rate")
    inside = (time_ns >= begin_ns) & (time_ns < end_ns)
    return float(ip_bytes[inside].sum()) * 8e9 / (end_ns - begin_ns)


def most_bytes(time_ns: NDArray[np.int64], ip_bytes: NDArray[np.int64], window_ns: int) -> int:
    """The most that arrived in any half-open window of this length; 0 without packets. Times must ascend.

    Some fullest window begins at an arrival, so only those are tried.
    """
    if len(time_ns) == 0:
        return 0
    total = np.concatenate(([0], np.cumsum(ip_bytes)))
    ends = np.searchsorted(time_ns, time_ns + window_ns, side="left")
    return int((total[ends] - total[:-1]).max())
