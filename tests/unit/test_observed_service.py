"""What applications hear of their paths: the service over real paths and conditions, in virtual time."""

from collections import Counter

import pytest

from qos2.core.notifications import Completion
from qos2.core.probes import ProbeKind
from qos2.core.probing import SINGLE_BYTES
from qos2.errors import NetworkBusy, NoData, NotSupported, Retry
from qos2.model import (
    Condition,
    FlowState,
    Reach,
)
from unit.bottleneck import Bottleneck
from unit.paths_stage import (
    HOST,
    MBIT,
    OTHER_HOST,
    ServiceStage,
    TcpTraffic,
    rate,
    tcp,
    udp,
)


class TestWhatApplicationsHear:
    def test_of_congestion_with_the_time_of_the_signals_that_showed_it(self) -> None:
        stage = ServiceStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        flow = stage.adaptive(udp(1))
        assert stage.service.notify(stage.handle, flow, Condition.CONGESTED, request=7) is False
        assert stage.follow(3.0) == []
        stage.prober.ways[HOST].load = 1.3
        onset_s = stage.now_s
        [completion] = stage.follow(2.0)
        assert completion.signal_s is not None
        assert completion == Completion(stage.handle, 7, condition=Condition.CONGESTED, signal_s=completion.signal_s)
        assert completion.signal_s - onset_s <= 1.0
        assert stage.way().watchers == 0
        # It holds now: who asks again is told so at once, and of its end within three seconds.
        assert stage.service.notify(stage.handle, flow, Condition.CONGESTED, request=8) is True
        assert stage.service.notify(stage.handle, flow, Condition.UNCONGESTED, request=9) is False
        stage.prober.ways[HOST].load = 0.0
        end_s = stage.now_s
        [completion] = stage.follow(4.0)
        assert (completion.request, completion.condition) == (9, Condition.UNCONGESTED)
        assert completion.signal_s is not None
        assert completion.signal_s - end_s <= 3.0

    def test_a_refused_rate_can_be_had_once_it_is_told_to_be_available(self) -> None:
        stage = ServiceStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        other = stage.adaptive(udp(2), handle=stage.others)
        flow = stage.adaptive(udp(1))
        with pytest.raises(Retry):
            stage.set_rate(flow, 8)
        stage.follow(3.0)
        stage.set_rate(other, 14, handle=stage.others)
        with pytest.raises(NetworkBusy):
            stage.set_rate(flow, 8)
        stage.set_rate(flow, 4)
        assert stage.service.notify(stage.handle, flow, Condition.AVAILABLE, rate(8), request=7) is False
        assert stage.follow(1.0) == []
        stage.service.remove_socket(stage.others, other, None, None)
        [completion] = stage.follow(0.1)
        assert completion == Completion(stage.handle, 7, condition=Condition.AVAILABLE, signal_s=stage.now_s)
        stage.set_rate(flow, 8)
        assert stage.paths.admissions == Counter(retry=1, admitted=3, network_busy=1)

    def test_a_fresh_measurement_or_1237(self) -> None:
        stage = ServiceStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        flow = stage.adaptive(udp(1))
        with pytest.raises(NoData):
            stage.service.fundamentals(stage.handle, flow)
        stage.follow(5.0)
        sent = len(stage.prober.sent)
        assert stage.service.fundamentals(stage.handle, flow, True, request=5) is None
        [completion] = stage.follow(1.5)
        assert completion.error is None
        assert completion.result is not None
        assert completion.result.bottleneck == pytest.approx(20 * MBIT, rel=0.05)
        kinds = {plan.kind for _host, _dscp, plan in stage.prober.sent[sent:]}
        assert kinds >= {ProbeKind.BURST, ProbeKind.PACED}

        stage.prober.ways[HOST].reflector = False
        asked_s = stage.now_s
        assert stage.service.fundamentals(stage.handle, flow, True, request=6) is None
        while not (completions := stage.follow(0.1)):
            assert stage.now_s - asked_s < 3.2
        [completion] = completions
        assert (completion.request, completion.result) == (6, None)
        assert isinstance(completion.error, Retry)

    def test_by_default_beyond_the_link_what_a_reflector_shows_and_without_one_nothing_is_refused(self) -> None:
        stage = ServiceStage()
        stage.reach[HOST.address] = Reach.ROUTED
        flow = stage.adaptive(udp(1))
        with pytest.raises(Retry):
            stage.set_rate(flow, 100)
        stage.follow(0.7)
        stage.set_rate(flow, 100)
        with pytest.raises(NoData):
            stage.service.fundamentals(stage.handle, flow)
        assert stage.state(flow) == (FlowState.UNKNOWN, None)
        # It is asked for again, ever more rarely: about 1, 2, 4, 8, 16, 32, and from then on 60 seconds later.
        stage.prober.sent.clear()
        stage.follow(300.0)
        assert all(plan.kind is ProbeKind.SINGLE for _host, _dscp, plan in stage.prober.sent)
        assert 7 <= len(stage.prober.sent) <= 10
        assert sum(plan.bytes for _host, _dscp, plan in stage.prober.sent) == 2 * SINGLE_BYTES * len(stage.prober.sent)

    def test_as_on_windows_nothing_is_sent_beyond_the_link_every_rate_is_accepted_and_questions_are_refused(
        self,
    ) -> None:
        stage = ServiceStage(beyond_link=False)
        stage.reach[HOST.address] = Reach.ROUTED
        flow = stage.adaptive(udp(1))
        stage.set_rate(flow, 100)
        with pytest.raises(NotSupported) as refusal:
            stage.service.fundamentals(stage.handle, flow)
        assert refusal.value.win32 == 50
        with pytest.raises(NotSupported):
            stage.service.notify(stage.handle, flow, Condition.CONGESTED, request=1)
        with pytest.raises(NotSupported):
            stage.service.start_tracking(stage.handle, "192.0.2.7")
        stage.follow(3.0)
        assert (stage.prober.sent, stage.paths.hosts) == ([], 0)
        stage.reach[HOST.address] = Reach.ON_LINK
        assert stage.service.notify(stage.handle, flow, Condition.CONGESTED, request=1) is False
        stage.follow(0.2)
        assert stage.prober.open_hosts == {HOST}

    def test_tracking_gathers_until_it_is_stopped(self) -> None:
        stage = ServiceStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        stage.service.start_tracking(stage.handle, "192.0.2.7")
        stage.follow(3.0)
        assert stage.paths.reflectors == 1
        stage.service.stop_tracking(stage.handle, "192.0.2.7")
        sent = len(stage.prober.sent)
        stage.follow(3.0)
        assert (len(stage.prober.sent), stage.prober.open_hosts) == (sent, set())
        flow = stage.adaptive(udp(1))
        assert stage.service.fundamentals(stage.handle, flow) is not None

    def test_with_a_handle_ends_all_that_was_done_for_it(self) -> None:
        """An application that dies: its connection ends, and with it the handle."""
        stage = ServiceStage()
        stage.prober.ways[HOST] = Bottleneck(20 * MBIT)
        flow = stage.adaptive(tcp(1))
        TcpTraffic(stage, flow, 20)
        stage.service.start_tracking(stage.handle, "192.0.2.8")
        stage.service.notify(stage.handle, flow, Condition.CONGESTED, request=1)
        stage.service.fundamentals(stage.handle, flow, True, request=2)
        stage.run(0.1)
        assert stage.prober.open_hosts == {HOST, OTHER_HOST}
        stage.service.close_handle(stage.handle)
        stage.traffic.clear()
        sent = len(stage.prober.sent)
        stage.run(0.1)
        assert (stage.prober.open_hosts, stage.diagnosis.held) == (set(), set())
        assert (stage.paths.hosts, stage.conditions.watching, stage.conditions.census()) == (0, 0, {})
        stage.run(2.0)
        assert len(stage.prober.sent) == sent
        assert stage.paths.measured() == {}
