"""STAMP packets, byte by byte against the figures of RFC 8762 and RFC 8972, and against another implementation."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos2.wire import stamp
from qos2.wire.stamp import (
    LEAST_BYTES,
    Reflected,
    is_reflected,
    ns_of_ntp,
    ntp_of_ns,
    pack_probe,
    reflect,
    unpack_reflected,
)

SENT_NS = 1_800_000_000_123_456_789
SECONDS = 1_800_000_000 + 2_208_988_800
FRACTION = round(0.123456789 * 2**32)
NTP = struct.pack("!II", SECONDS, FRACTION)
ERROR = b"\x0d\xff"


class TestTimes:
    @given(st.integers(700_000_000_000_000_000, 4_900_000_000_000_000_000))
    def test_nanoseconds_of_1993_to_2125_come_back_whole(self, unix_ns: int) -> None:
        assert ns_of_ntp(ntp_of_ns(unix_ns)) == unix_ns

    @pytest.mark.parametrize(
        ("unix_ns", "ntp"),
        [
            (0, 2_208_988_800 << 32),
            (1_500_000_000, (2_208_988_801 << 32) + (1 << 31)),
            (2_085_978_495_999_999_999, (1 << 64) - 4),  # the last nanosecond of the era, 2036-02-07
            (2_085_978_496_000_000_000, 0),
        ],
    )
    def test_the_format_is_that_of_ntp(self, unix_ns: int, ntp: int) -> None:
        assert ntp_of_ns(unix_ns) == ntp


class TestSender:
    def test_the_smallest_packet(self) -> None:
        assert pack_probe(7, SENT_NS, 44) == b"\0\0\0\7" + NTP + ERROR + bytes(30)

    def test_padding_is_a_tlv_of_its_own(self) -> None:
        assert pack_probe(7, SENT_NS, 55)[44:] == b"\x80\x01\0\x07" + bytes(7)
        assert pack_probe(7, SENT_NS, 48)[44:] == b"\x80\x01\0\0"

    def test_where_there_is_room_it_asks_how_times_are_taken(self) -> None:
        asked = b"\x80\x03\0\x04\0\0\0\0"
        assert pack_probe(7, SENT_NS, 56)[44:] == asked + b"\x80\x01\0\0"
        assert pack_probe(7, SENT_NS, 1372)[44:] == asked + b"\x80\x01\x05\x24" + bytes(1316)

    def test_what_is_too_little_for_a_tlv_is_zeros(self) -> None:
        assert pack_probe(7, SENT_NS, 47)[44:] == bytes(3)

    def test_sequence_numbers_go_round(self) -> None:
        assert pack_probe((1 << 32) + 5, SENT_NS, 44)[:4] == b"\0\0\0\5"

    @pytest.mark.parametrize("total", [0, 43, 65_580])
    def test_other_sizes_are_refused(self, total: int) -> None:
        with pytest.raises(ValueError, match=f"{total} bytes"):
            pack_probe(1, SENT_NS, total)


class TestReflector:
    def reply(self, request: bytes, **others: Any) -> bytes | None:
        return reflect(request, reached_ns=SENT_NS + 5_000, returned_ns=SENT_NS + 9_000, ttl=63, **others)

    def test_a_reply_has_the_times_of_both_and_the_ttl(self) -> None:
        reply = self.reply(pack_probe(7, SENT_NS, 44), sequence=2)
        reached, returned = ntp_of_ns(SENT_NS + 5_000), ntp_of_ns(SENT_NS + 9_000)
        assert reply == (
            b"\0\0\0\2"
            + struct.pack("!Q", returned)
            + ERROR
            + bytes(2)
            + struct.pack("!Q", reached)
            + b"\0\0\0\7"
            + NTP
            + ERROR
            + bytes(2)
            + b"\x3f"
            + bytes(3)
        )

    def test_without_state_the_senders_sequence_is_repeated(self) -> None:
        reply = self.reply(pack_probe(7, SENT_NS, 44))
        assert reply is not None
        assert reply[:4] == b"\0\0\0\7"

    def test_the_session_identifier_comes_back(self) -> None:
        request = bytearray(pack_probe(7, SENT_NS, 44))
        request[14:16] = b"\xab\xcd"
        reply = self.reply(bytes(request))
        assert reply is not None
        assert reply[14:16] == b"\xab\xcd"

    @given(st.binary(max_size=400), st.integers(0, 63), st.integers(0, 3))
    def test_a_reply_is_as_long_as_its_request(self, request: bytes, dscp: int, ecn: int) -> None:
        reply = self.reply(request, dscp=dscp, ecn=ecn)
        assert (None if reply is None else len(reply)) == (None if len(request) < LEAST_BYTES else len(request))

    def test_a_sender_of_twamp_light_may_pad_no_more_than_its_reply_needs(self) -> None:
        request = pack_probe(7, SENT_NS, 44)
        whole = self.reply(request)
        assert whole is not None
        assert self.reply(request[:41]) == whole[:41]

    @pytest.mark.parametrize(
        ("request_tlvs", "reply_tlvs"),
        [
            (b"\x80\x01\0\x02ab", b"\0\x01\0\x02ab"),  # extra padding, known
            (b"\x80\xf0\0\x02ab", b"\x80\xf0\0\x02ab"),  # private use, not known
            (b"\x80\x01\0\x09ab", b"\x40\x01\0\x09ab"),  # longer than the packet
            (b"\x80\xf0\0\x09ab", b"\xc0\xf0\0\x09ab"),  # and not known besides
            (b"\x80\xf0\0\x01x\x80\x01\0\0", b"\x80\xf0\0\x01x\0\x01\0\0"),  # one after the other
            (b"\x80\x01\0\0\x80\x02", b"\0\x01\0\0\x80\x02"),  # the rest of one
            (b"\x80\x04\0\x04\xb8\0\0\0", b"\0\x04\0\x04\xba\xe4\0\0"),  # class of service: 46, arrived with 46
            (b"\x80\x04\0\x04\x28\0\0\0", b"\0\x04\0\x04\x2a\xe5\0\0"),  # 10, and that is not obeyed
            (b"\x80\x04\0\x02\xb8\0", b"\x40\x04\0\x02\xb8\0"),
            (b"\x80\x03\0\x04\0\0\0\0", b"\0\x03\0\x04\5\3\5\3"),  # timestamp information: by a process
            (b"\x80\x03\0\x03\0\0\0", b"\x40\x03\0\x03\0\0\0"),
            (bytes(9), bytes(9)),
        ],
    )
    def test_tlvs(self, request_tlvs: bytes, reply_tlvs: bytes) -> None:
        reply = self.reply(pack_probe(7, SENT_NS, 44) + request_tlvs, dscp=46, ecn=1)
        assert reply is not None
        assert reply[44:] == reply_tlvs

    @pytest.mark.parametrize("request_", [b"", bytes(40)])
    def test_what_is_no_test_packet_has_no_reply(self, request_: bytes) -> None:
        assert self.reply(request_) is None


class TestReflected:
    @given(
        st.integers(0, 2**32 - 1),
        st.integers(44, 1472),
        st.integers(0, 10**9),
        st.integers(0, 10**9),
        st.integers(0, 255),
    )
    def test_what_went_out_is_what_is_read(self, sequence: int, size: int, there: int, back: int, ttl: int) -> None:
        times = SENT_NS, SENT_NS + there, SENT_NS + there + back
        reply = reflect(pack_probe(sequence, SENT_NS, size), reached_ns=times[1], returned_ns=times[2], ttl=ttl)
        assert reply is not None
        assert unpack_reflected(reply) == Reflected(sequence, sequence, *times, at_arrival=False)

    @pytest.mark.parametrize(
        ("answer", "at_arrival"),
        [
            (b"\0\x03\0\x04\5\1\5\3", True),  # by hardware
            (b"\0\x03\0\x04\5\2\5\3", True),  # by the kernel
            (b"\0\x03\0\x04\5\3\5\3", False),  # by a process
            (b"\x80\x03\0\x04\5\2\5\3", False),  # not understood
            (b"\0\x01\0\x04\5\2\5\3", False),  # padding
            (b"\0\x03\0\x04\5\2", False),  # cut off
            (b"", False),
        ],
    )
    def test_it_may_say_how_it_takes_times(self, answer: bytes, at_arrival: bool) -> None:
        reply = reflect(pack_probe(7, SENT_NS, 44), reached_ns=SENT_NS, returned_ns=SENT_NS, ttl=1)
        assert reply is not None
        assert unpack_reflected(reply + answer).at_arrival is at_arrival

    def test_ours_says_so(self) -> None:
        probe = pack_probe(7, SENT_NS, 1372)
        reply = reflect(probe, reached_ns=SENT_NS, returned_ns=SENT_NS, ttl=1, at_arrival=True)
        assert reply is not None
        assert reply[44:52] == b"\0\x03\0\x04\5\2\5\3"
        assert unpack_reflected(reply).at_arrival

    def test_a_reflector_may_keep_ptp_time(self) -> None:
        reply = bytearray(reflect(pack_probe(7, SENT_NS, 44), reached_ns=1, returned_ns=1, ttl=1) or b"")
        reply[4:12] = struct.pack("!II", 1_800_000_001, 500)
        reply[12:14] = b"\x4d\xff"
        reply[16:24] = struct.pack("!II", 1_800_000_001, 400)
        assert unpack_reflected(bytes(reply)) == Reflected(
            7, 7, SENT_NS, 1_800_000_001_000_000_400, 1_800_000_001_000_000_500, False
        )

    @pytest.mark.parametrize("size", [38, 41])
    def test_one_of_twamp_light_is_shorter(self, size: int) -> None:
        reply = reflect(pack_probe(7, SENT_NS, 44), reached_ns=SENT_NS, returned_ns=SENT_NS, ttl=1)
        assert reply is not None
        assert unpack_reflected(reply[:size]) == Reflected(7, 7, SENT_NS, SENT_NS, SENT_NS, at_arrival=False)
        with pytest.raises(ValueError, match="37 bytes"):
            unpack_reflected(reply[:37])


class TestWhatIsAReply:
    def test_replies_are_told_from_requests(self) -> None:
        request = pack_probe(7, SENT_NS, 60)
        reply = reflect(request, reached_ns=SENT_NS, returned_ns=SENT_NS + 5_000_000_000, ttl=1)
        assert reply is not None
        assert (is_reflected(request), is_reflected(reply), is_reflected(reply[:38])) == (False, True, True)
        assert not is_reflected(reply[:37])

    def test_whatever_a_reflector_answers_is_no_request(self) -> None:
        """Also where its clock was set back meanwhile, and where the seconds of NTP begin anew (2036)."""
        for returned_ns in (SENT_NS - 3_000_000_000, 2_085_978_496_000_000_000):
            reply = reflect(pack_probe(7, 1, 44), reached_ns=returned_ns - 1, returned_ns=returned_ns, ttl=1)
            assert reply is not None
            assert is_reflected(reply)

    @pytest.mark.parametrize("padding", [b"\0", b"\xff", b"\x55"])
    def test_a_senders_padding_is_none(self, padding: bytes) -> None:
        assert not is_reflected(pack_probe(7, SENT_NS, 44)[:14] + padding * 30)


def test_scapy_reads_the_same() -> None:
    """Its layers were written from the RFCs by others."""
    scapy = pytest.importorskip("scapy.contrib.stamp", reason="scapy is not installed")
    request = pack_probe(7, SENT_NS, 48)
    sender = scapy.STAMPSessionSenderTestUnauthenticated(request)
    assert (sender.seq, sender.tlv_objects[0].type, int(sender.tlv_objects[0].flags)) == (7, 1, 0x80)
    assert str(sender.ts) == f"{SECONDS}.123456789"
    reply = reflect(request, reached_ns=SENT_NS, returned_ns=SENT_NS, ttl=63, sequence=9)
    reflector = scapy.STAMPSessionReflectorTestUnauthenticated(reply)
    assert (reflector.seq, reflector.seq_sender, reflector.ttl_sender) == (9, 7, 63)
    assert stamp.PORT == 862
