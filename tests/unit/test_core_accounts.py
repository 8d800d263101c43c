"""Totals per traffic type: what ended flows sent is kept, and no total ever goes back."""

from hypothesis import given
from hypothesis import strategies as st

from qos2.core.accounts import Accounts
from qos2.model import FlowStats, TrafficType

NOTHING = [FlowStats()] * len(TrafficType)
SENT = FlowStats(
    packets=10,
    bytes=1000,
    non_conformant_packets=3,
    non_conformant_bytes=300,
    delayed_packets=2,
    delay_ns=5_000,
    dropped_packets={"police": 1},
    dropped_bytes={"police": 100},
    last_ns=77,
    srtt_us=20,
    delivered=9,
)
COUNTED = FlowStats(
    packets=10,
    bytes=1000,
    non_conformant_packets=3,
    non_conformant_bytes=300,
    delayed_packets=2,
    delay_ns=5_000,
    dropped_packets={"police": 1},
    dropped_bytes={"police": 100},
)


def test_counters_of_an_ended_flow_stay_in_its_type_and_readings_go() -> None:
    accounts = Accounts()
    accounts.begin(TrafficType.VOICE)
    accounts.end(TrafficType.VOICE, SENT)
    totals = accounts.totals(NOTHING)
    assert totals.pop(TrafficType.VOICE) == COUNTED
    assert list(totals.values()) == [FlowStats()] * 5


def test_living_and_ended_flows_add_up_drops_by_reason() -> None:
    accounts = Accounts()
    accounts.begin(TrafficType.VOICE)
    accounts.end(TrafficType.VOICE, SENT)
    live = list(NOTHING)
    live[TrafficType.VOICE] = FlowStats(packets=1, bytes=60, dropped_packets={"horizon": 4, "police": 1})
    total = accounts.totals(live)[TrafficType.VOICE]
    assert (total.packets, total.bytes) == (11, 1060)
    assert total.dropped_packets == {"police": 2, "horizon": 4}
    assert total.dropped_bytes == {"police": 100}


def test_what_a_flow_sent_before_its_type_changed_stays_with_the_old_type() -> None:
    accounts = Accounts()
    accounts.begin(TrafficType.VOICE)
    accounts.change(TrafficType.VOICE, TrafficType.CONTROL, FlowStats(packets=10, bytes=1000))
    live = list(NOTHING)
    live[TrafficType.CONTROL] = FlowStats(packets=14, bytes=1400)
    totals = accounts.totals(live)
    assert (totals[TrafficType.VOICE].packets, totals[TrafficType.VOICE].bytes) == (10, 1000)
    assert (totals[TrafficType.CONTROL].packets, totals[TrafficType.CONTROL].bytes) == (4, 400)


def test_flows_are_counted_by_the_type_they_have() -> None:
    accounts = Accounts()
    accounts.begin(TrafficType.VOICE)
    accounts.begin(TrafficType.VOICE)
    accounts.change(TrafficType.VOICE, TrafficType.CONTROL, FlowStats())
    accounts.end(TrafficType.CONTROL, FlowStats())
    none = dict.fromkeys(TrafficType, 0)
    assert accounts.live == none | {TrafficType.VOICE: 1}
    assert accounts.begun == none | {TrafficType.VOICE: 2}
    assert accounts.ended == none | {TrafficType.CONTROL: 1}


@given(
    st.lists(
        st.tuples(st.sampled_from(["send", "begin", "change", "end"]), st.integers(0, 3), st.sampled_from(TrafficType)),
        max_size=60,
    )
)
def test_totals_are_monotonic_and_lose_nothing(events: list[tuple[str, int, TrafficType]]) -> None:
    accounts = Accounts()
    flows: dict[int, tuple[TrafficType, int]] = {}  # number -> type, packets
    sent = dict.fromkeys(TrafficType, 0)
    for event, number, kind in events:
        if event == "begin" and number not in flows:
            flows[number] = (kind, 0)
            accounts.begin(kind)
        elif number in flows:
            old, packets = flows[number]
            if event == "send":
                flows[number] = (old, packets + 5)
                sent[old] += 5
            elif event == "change":
                accounts.change(old, kind, FlowStats(packets=packets))
                flows[number] = (kind, packets)
            elif event == "end":
                accounts.end(old, FlowStats(packets=packets))
                del flows[number]
        live = [FlowStats(packets=sum(p for t, p in flows.values() if t == each)) for each in TrafficType]
        assert {each: stats.packets for each, stats in accounts.totals(live).items()} == sent
