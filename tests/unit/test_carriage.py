"""What a flow was carried at, and whether the network limited it."""

import pytest

from qos2.model import Transport
from qos2.paths.carriage import Carriage, Carried, Counters
from qos2.paths.tcp import TcpInfo

INFO = TcpInfo(1, False, 1448, 0, 20_000, 10, 0, 0, 0, 20_000, 0, 0, 0, 0, 0, 0, 0, 0)
NONE = Counters(0, 0, 0)
#: A second in which TCP had data under way all the time, and 1,448,000 bytes were acknowledged.
BUSY = INFO._replace(bytes_acked=1_448_000, busy_us=1_000_000)
SENT = Counters(1_500_000, 1_000, 0)


def about(found: Carried | None) -> tuple[float, float | None, bool]:
    """Its fields, rates to the bit."""
    assert found is not None
    return round(found.sent), None if found.rate is None else round(found.rate), found.limited


def second(info: TcpInfo | None, counters: Counters = SENT, version: int = 4) -> Carried | None:
    """A second that ends so."""
    carriage = Carriage(Transport.TCP, version)
    assert carriage.since(0.0, NONE, INFO) is None
    return carriage.since(1.0, counters, info)


def test_tcp_that_the_network_limits_is_carried_at_what_was_acknowledged_with_its_headers() -> None:
    assert about(second(BUSY)) == (12_000_000, 12_000_000, True)
    assert about(second(BUSY, version=6)) == (12_000_000, 1000 * (1448 + 72) * 8, True)


@pytest.mark.parametrize(
    "info",
    [
        BUSY._replace(app_limited=True),
        BUSY._replace(busy_us=800_000),
        BUSY._replace(rwnd_limited_us=200_000),
        BUSY._replace(sndbuf_limited_us=200_000),
        BUSY._replace(sndbuf_limited_us=60_000, rwnd_limited_us=60_000),
    ],
)
def test_what_something_else_held_back_is_not_limited_by_the_network(info: TcpInfo) -> None:
    assert about(second(info)) == (12_000_000, 12_000_000, False)


def test_nor_is_what_its_own_contract_held_back() -> None:
    assert about(second(BUSY, SENT._replace(held_packets=1))) == (12_000_000, 12_000_000, False)


@pytest.mark.parametrize("info", [None, BUSY._replace(mss=0), INFO._replace(bytes_acked=-1)])
def test_without_the_kernels_word_only_what_was_sent_is_known(info: TcpInfo | None) -> None:
    assert second(info) == Carried(12_000_000.0, None, False)


def test_of_udp_nobody_knows_what_arrived() -> None:
    carriage = Carriage(Transport.UDP, 4)
    assert carriage.since(0.0, NONE, None) is None
    assert carriage.since(0.5, SENT, None) == Carried(24_000_000.0, None, False)


def test_counters_that_go_back_begin_anew() -> None:
    carriage = Carriage(Transport.UDP, 4)
    carriage.since(0.0, SENT, None)
    assert carriage.since(1.0, NONE, None) is None
    assert carriage.since(1.0, SENT, None) == Carried(12_000_000.0, None, False)


def test_behind_a_hole_what_arrives_is_carried_and_when_it_is_filled_nothing_is_counted_twice() -> None:
    carriage = Carriage(Transport.TCP, 4)
    infos = [
        INFO,
        INFO._replace(bytes_acked=100 * 1448, busy_us=100_000),
        INFO._replace(bytes_acked=100 * 1448, sacked=99, busy_us=200_000),  # the first of them was lost
        INFO._replace(bytes_acked=100 * 1448, sacked=199, busy_us=300_000),
        INFO._replace(bytes_acked=400 * 1448, busy_us=400_000),  # sent again
    ]
    seen = [carriage.since(0.1, Counters(150_000 * number, 100 * number, 0), each) for number, each in enumerate(infos)]
    assert seen[0] is None
    assert list(map(about, seen[1:])) == [
        (12_000_000, 12_000_000, True),
        (12_000_000, 11_880_000, True),
        (12_000_000, 12_000_000, True),
        (12_000_000, 12_120_000, True),
    ]


def test_segments_that_have_become_smaller_do_not_arrive_backwards() -> None:
    carriage = Carriage(Transport.TCP, 4)
    carriage.since(0.0, NONE, INFO._replace(sacked=10))
    assert carriage.since(0.1, NONE, INFO._replace(sacked=10, mss=1200)) == Carried(0.0, 0.0, False)
