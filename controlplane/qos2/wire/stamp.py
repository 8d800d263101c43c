"""STAMP test packets and their bytes (RFC 8762, unauthenticated mode; TLVs of RFC 8972). No I/O.

A sender's packet and a reflector's have the same length: whatever a reflector adds was padding before, so that
replies are never larger than requests. A TWAMP-Light reflector (RFC 5357, appendix I) answers such packets too, with
padding of its own or none; its sender's are answered where they are as long as the smallest answer of that protocol.
"""

import struct
from typing import NamedTuple

#: A packet of either side without TLVs.
BASE_BYTES = 44
PORT = 862

#: A reflector's packet in TWAMP-Light, which ends with the sender's TTL: less than this is not answered.
LEAST_BYTES = 41
_SENDER = struct.Struct("!IQHH")  # sequence number, timestamp, error estimate, session id
_REFLECTED = struct.Struct("!IQHHQIQHxxB")  # ..., receive timestamp, the sender's first three, its TTL
#: All that is read of it. Some TWAMP-Light reflectors, as twampy by default, leave the TTL off.
_READ = struct.Struct("!IQHHQIQH")
_TLV = struct.Struct("!BBH")  # flags, type, length

#: RFC 8762, 4.2.1: bit Z says that times are PTPv2 (seconds and nanoseconds), and not NTP (RFC 5905).
_PTP = 0x4000
#: Half a millisecond, 2^-32 * 2^13 * 0xFF: no better claim is made than that of an NTP client. Multiplier is never 0.
_OWN_ERROR = 13 << 8 | 0xFF

_EXTRA_PADDING = 1
_TIMESTAMP_INFORMATION = 3
_CLASS_OF_SERVICE = 4
#: Length of the value, of those that have a fixed one.
_LENGTHS = {_TIMESTAMP_INFORMATION: 4, _CLASS_OF_SERVICE: 4}
_KNOWN = frozenset({_EXTRA_PADDING, *_LENGTHS})
#: Timestamp Information (RFC 8972, 4.3): sources of synchronisation, and how times are taken.
_FREE_RUNNING = 5
_HARDWARE, _KERNEL, _PROCESS = 1, 2, 3  # HW Assist, SW Local, Control Plane
_UNRECOGNISED, _MALFORMED = 0x80, 0x40

_NTP_EPOCH_S = 2_208_988_800  # from 1900 to 1970
_ERA_S = 1 << 32
#: No reflector keeps a packet for longer.
_LONGEST_STAY_S = 10
#: The era (RFC 5905, section 6) is that in which a time is no earlier than this: a third of one before 2036.
_PIVOT_S = _ERA_S * 2 // 3


def ntp_of_ns(unix_ns: int) -> int:
    """The 64-bit NTP timestamp of a time in nanoseconds since 1970, rounded to the nearest 2^-32 s."""
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return (((seconds + _NTP_EPOCH_S) << 32) + ((ns << 32) + 500_000_000) // 1_000_000_000) & 0xFFFF_FFFF_FFFF_FFFF


def ns_of_ntp(timestamp: int) -> int:
    """Nanoseconds since 1970 of a 64-bit NTP timestamp, between 1991 and 2126; the inverse of ntp_of_ns."""
    seconds, fraction = timestamp >> 32, timestamp & 0xFFFF_FFFF
    if seconds < _PIVOT_S:
        seconds += _ERA_S
    return (seconds - _NTP_EPOCH_S) * 1_000_000_000 + (fraction * 1_000_000_000 + (1 << 31) >> 32)


class Reflected(NamedTuple):
    """What a reflector's packet says. Times in nanoseconds since 1970; the last two by the reflector's clock."""

    sequence: int  #: the reflector's own, or the sender's again where it keeps no state
    sender_sequence: int
    sent_ns: int
    reached_ns: int
    returned_ns: int
    at_arrival: bool  #: it says that `reached_ns` was taken by hardware or kernel, not when its process came to it


def pack_probe(sequence: int, sent_ns: int, total_bytes: int) -> bytes:
    """A sender's packet of `total_bytes` (at least BASE_BYTES): it asks how the reflector takes times, and is padded.

    Each by a TLV, where there is room; else by zeros.

    Raises ValueError for fewer bytes, or for more than a datagram holds.
    """
    padding = total_bytes - BASE_BYTES
    if not 0 <= padding <= 0xFFFF:
        raise ValueError(f"a STAMP packet of {total_bytes} bytes")
    packet = _SENDER.pack(sequence & 0xFFFF_FFFF, ntp_of_ns(sent_ns), _OWN_ERROR, 0).ljust(BASE_BYTES, b"\0")
    # A sender sets U; a reflector that knows the type clears it (RFC 8972, section 4).
    if padding >= 2 * _TLV.size + 4:
        packet += _TLV.pack(_UNRECOGNISED, _TIMESTAMP_INFORMATION, 4) + bytes(4)
        padding -= _TLV.size + 4
    if padding >= _TLV.size:
        packet += _TLV.pack(_UNRECOGNISED, _EXTRA_PADDING, padding - _TLV.size)
    return packet.ljust(total_bytes, b"\0")


def unpack_reflected(payload: bytes | memoryview) -> Reflected:
    """Raises ValueError for what is too short to be a reflector's packet."""
    if len(payload) < _READ.size:
        raise ValueError(f"a reflector's packet of {len(payload)} bytes")
    returned_sequence, returned, error, _session, reached, sequence, sent, sender_error = _READ.unpack_from(payload)
    times = _ns(sent, sender_error), _ns(reached, error), _ns(returned, error)
    return Reflected(returned_sequence, sequence, *times, _taken_at_arrival(payload))


def reflect(
    payload: bytes | memoryview,
    *,
    reached_ns: int,
    returned_ns: int,
    ttl: int,
    dscp: int = 0,
    ecn: int = 0,
    sequence: int | None = None,
    at_arrival: bool = False,
) -> bytes | None:
    """The reply to a sender's packet, as long as that; None for what is too short to be one.

    `ttl`, `dscp` and `ecn` are what the packet arrived with, `dscp` also what the reply will have; `sequence` is the
    reflector's own count, None: it keeps none and repeats the sender's (stateless, RFC 8762, 4.2). `at_arrival`: the
    kernel took `reached_ns`. TLVs are returned,
    those that are not understood flagged. From LEAST_BYTES on it may be a sender of TWAMP-Light.
    """
    if len(payload) < LEAST_BYTES:
        return None
    sender_sequence, sent, error, session = _SENDER.unpack_from(payload)
    head = _REFLECTED.pack(
        sender_sequence if sequence is None else sequence & 0xFFFF_FFFF,
        ntp_of_ns(returned_ns),
        _OWN_ERROR,
        session,
        ntp_of_ns(reached_ns),
        sender_sequence,
        sent,
        error,
        ttl,
    )
    return head.ljust(min(BASE_BYTES, len(payload)), b"\0") + _returned(
        bytearray(payload[BASE_BYTES:]), dscp, ecn, at_arrival
    )


def is_reflected(payload: bytes | memoryview) -> bool:
    """Whether this is a reply itself: it says when it reached a reflector, a moment before its own time.

    A sender has zeros there, or a TWAMP-Light one random padding, which looks like this once in 200 million packets.
    A reflector should not look at these bytes at all (RFC 8762, 4.2.1), but whoever answers replies, whatever port
    they come from, may do so for ever.
    """
    if len(payload) < _READ.size:
        return False
    _sequence, own, _error, _session, reached, *_others = _READ.unpack_from(payload)
    stay_s: int = (own >> 32) - (reached >> 32)  # seconds in both formats
    return bool(reached) and (stay_s + _LONGEST_STAY_S) % _ERA_S <= 2 * _LONGEST_STAY_S  # a clock may be set back


def _returned(tlvs: bytearray, dscp: int, ecn: int, at_arrival: bool) -> bytearray:
    """The TLVs of a request as a reply has them. What follows a malformed one is repeated as it came."""
    at = 0
    while at + _TLV.size <= len(tlvs):
        _flags, kind, length = _TLV.unpack_from(tlvs, at)
        if kind == 0 and length == 0:
            break  # no TLV but zeros: the padding of a sender that knows none
        end = at + _TLV.size + length
        tlvs[at] = 0 if kind in _KNOWN else _UNRECOGNISED
        if end > len(tlvs) or length != _LENGTHS.get(kind, length):
            tlvs[at] |= _MALFORMED
            break
        if kind == _CLASS_OF_SERVICE:
            # DSCP1 is what the sender asks the reply to have, DSCP2 and ECN what arrived (RFC 8972, 4.4, and its
            # erratum 8199). Who asks for something else than what arrived is not obeyed, and RP says so.
            asked = tlvs[at + 4] >> 2
            tlvs[at + 4 : at + 6] = (asked << 10 | dscp << 4 | ecn << 2 | (asked != dscp)).to_bytes(2)
        elif kind == _TIMESTAMP_INFORMATION:
            tlvs[at + 4 : end] = _FREE_RUNNING, _KERNEL if at_arrival else _PROCESS, _FREE_RUNNING, _PROCESS
        at = end
    return tlvs


def _taken_at_arrival(payload: bytes | memoryview) -> bool:
    """Whether a reply has an answer to what `pack_probe` asks for, and that is no process."""
    if len(payload) < BASE_BYTES + _TLV.size + 4:
        return False
    asked = _TLV.unpack_from(payload, BASE_BYTES) == (0, _TIMESTAMP_INFORMATION, 4)
    return asked and payload[BASE_BYTES + _TLV.size + 1] in (_HARDWARE, _KERNEL)


def _ns(timestamp: int, error: int) -> int:
    """A timestamp in the format that its error estimate tells."""
    if error & _PTP:
        return (timestamp >> 32) * 1_000_000_000 + (timestamp & 0xFFFF_FFFF)
    return ns_of_ntp(timestamp)
