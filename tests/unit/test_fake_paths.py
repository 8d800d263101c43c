"""The fakes of paths and conditions, which are to catch mistakes of others."""

from ipaddress import ip_address

import pytest

from qos2.errors import HostUnreachable, NetworkBusy, Retry
from qos2.model import Bandwidth, Condition, FlowFundamentals, FlowId, RemoteHost
from qos2.paths.fake import FakeConditions, FakePaths

NEAR, FAR, LOST = (RemoteHost(ip_address(text), 7) for text in ("192.0.2.7", "198.51.100.1", "203.0.113.1"))
FLOW = FlowId(0x100001)
KNOWN = FlowFundamentals(rtt_us=5)
ONE_MBIT, TWO_MBIT, NOTHING = Bandwidth(1_000_000), Bandwidth(2_000_000), Bandwidth(0)


class TestFakePaths:
    def test_hosts_are_on_the_link_until_it_is_said_otherwise(self) -> None:
        paths = FakePaths()
        assert paths.supports(NEAR)
        paths.set_off_link("192.0.2.7")
        assert not paths.supports(NEAR)
        assert not paths.supports(RemoteHost(NEAR.address, 8))
        paths.set_off_link("192.0.2.7", False)
        paths.set_unreachable(LOST.address)
        assert paths.supports(NEAR)
        with pytest.raises(HostUnreachable):
            paths.supports(LOST)

    def test_estimates_admission_and_refresh_are_what_was_set(self) -> None:
        paths = FakePaths()
        paths.begin(NEAR)
        assert paths.estimate(NEAR) is None
        paths.set_estimate("192.0.2.7", KNOWN)
        assert paths.estimate(NEAR) == KNOWN
        paths.set_estimate("192.0.2.7", None)
        assert paths.estimate(NEAR) is None
        paths.admit(NEAR, NOTHING, ONE_MBIT)
        paths.set_admission("192.0.2.7", NetworkBusy("full"))
        with pytest.raises(NetworkBusy):
            paths.admit(NEAR, ONE_MBIT, TWO_MBIT)
        assert paths.asked == [("192.0.2.7", 0, ONE_MBIT), ("192.0.2.7", ONE_MBIT, TWO_MBIT)]
        paths.set_refresh("192.0.2.7", Retry("not now"))
        with pytest.raises(Retry):
            paths.refresh(NEAR)
        assert paths.refreshing == []

    def test_the_end_of_a_measurement_is_told_once(self) -> None:
        paths = FakePaths()
        for host in (NEAR, FAR):
            paths.begin(host)
            paths.refresh(host)
        paths.refresh(NEAR)
        paths.finish_refresh("192.0.2.7")
        assert (paths.measured(), paths.measured(), paths.refreshing) == ({NEAR: True}, {}, [FAR])
        paths.finish_refresh(FAR.address, new=False)
        assert (paths.measured(), paths.refreshing) == ({FAR: False}, [])

    def test_mistakes_are_found(self) -> None:
        paths = FakePaths()
        for wrong in (paths.end, paths.estimate, paths.refresh):
            with pytest.raises(RuntimeError):
                wrong(NEAR)
        with pytest.raises(RuntimeError):
            paths.admit(NEAR, NOTHING, ONE_MBIT)
        paths.begin(NEAR)
        with pytest.raises(RuntimeError):
            paths.begin(NEAR)
        with pytest.raises(RuntimeError):
            paths.admit(NEAR, ONE_MBIT, ONE_MBIT)
        paths.end(NEAR)
        with pytest.raises(RuntimeError):
            paths.end(NEAR)


class TestFakeConditions:
    @pytest.mark.parametrize(
        ("congested", "free", "holding"),
        [
            (None, 5_000_000, set()),
            (True, 5_000_000, {Condition.CONGESTED}),
            (False, 999_999, {Condition.UNCONGESTED}),
            (False, 1_000_000, {Condition.UNCONGESTED, Condition.AVAILABLE}),
        ],
    )
    def test_conditions_are_what_was_set(self, congested: bool | None, free: int, holding: set[Condition]) -> None:
        conditions = FakeConditions()
        conditions.watch(FLOW, NEAR)
        conditions.set(FLOW, congested=congested, free=free)
        found = set()
        for condition in Condition:
            available = condition is Condition.AVAILABLE
            held, wanted = (ONE_MBIT, TWO_MBIT) if available else (NOTHING, NOTHING)
            if conditions.holds(FLOW, condition, held=held, wanted=wanted):
                found.add(condition)
        assert found == holding

    def test_a_change_is_told_once(self) -> None:
        conditions = FakeConditions()
        conditions.set(FLOW, congested=True)
        conditions.set(FLOW, congested=None)
        assert (conditions.changed(), conditions.changed()) == ((FLOW,), ())

    def test_mistakes_are_found(self) -> None:
        conditions = FakeConditions()
        with pytest.raises(RuntimeError):
            conditions.unwatch(FLOW)
        with pytest.raises(RuntimeError):
            conditions.holds(FLOW, Condition.CONGESTED, held=NOTHING, wanted=NOTHING)
        conditions.watch(FLOW, NEAR)
        with pytest.raises(RuntimeError):
            conditions.watch(FLOW, NEAR)
        with pytest.raises(RuntimeError):
            conditions.holds(FLOW, Condition.CONGESTED, held=NOTHING, wanted=ONE_MBIT)
