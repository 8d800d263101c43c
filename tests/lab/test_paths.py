"""What the daemon says of a path, what it admits by that, and that it lets go of the path with its last user."""

import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

import qos2
from demo.capture import Recording
from demo.processes import environment
from harness.congested import OTHER_PEER, CongestedLab, wait_until
from qos2.model import Condition, Method, Quality, Shaping, TrafficType

pytestmark = pytest.mark.datapath

MBIT = 1e6


def known(flow: qos2.Flow) -> bool:
    """Whether both bandwidths are measured."""
    try:
        return flow.fundamentals().available is not None
    except qos2.NoData:
        return False


@pytest.mark.parametrize("load", [0.0, 0.5])
def test_a_way_with_a_reflector_is_known_before_anything_is_sent(congested: CongestedLab, load: float) -> None:
    capacity = congested.bottleneck(20 * MBIT)
    with congested.handle() as qos, ExitStack() as stack:
        if load:
            stack.enter_context(congested.cross(load * capacity)).begin()
            time.sleep(0.5)
        flow = qos.add_socket(congested.udp(), TrafficType.AUDIO_VIDEO, adaptive=True)
        assert wait_until(lambda: known(flow)) <= 4.0  # goal: 2 s
        time.sleep(3)
        found = flow.fundamentals()
    # Trains: 15 % in the median is the goal; one answer on a busy machine may be off by more.
    assert found.bottleneck == pytest.approx(capacity, rel=0.1)
    assert found.available == pytest.approx((1 - load) * capacity, abs=0.3 * capacity)
    assert {name: (each.quality, each.method) for name, each in found.statements.items()} == {
        "bottleneck": (Quality.MEASURED, Method.TRAIN),
        "available": (Quality.MEASURED, Method.TRAIN),
        "rtt": (Quality.MEASURED, Method.PROBE),
    }


def test_tcp_that_fills_the_way_measures_it(congested: CongestedLab) -> None:
    capacity = congested.bottleneck(20 * MBIT)
    with congested.handle() as qos, ExitStack() as stack:
        sock = congested.tcp()
        flow = qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=True)
        stack.enter_context(congested.cross(0.5 * capacity)).begin()
        stack.enter_context(congested.sending(sock, block=65536)).begin()
        time.sleep(5)
        found = flow.fundamentals()
    assert found.statements["available"].method is Method.TCP
    assert found.available == pytest.approx(0.5 * capacity, rel=0.2)


def test_a_rate_that_the_way_has_not_is_refused_until_it_has(congested: CongestedLab) -> None:
    """The safe strategy of QOSSetFlow's page: stream at what is there, be told when there is more, take it."""
    capacity = congested.bottleneck(20 * MBIT)
    wanted = round(0.7 * capacity)
    with congested.handle() as qos:
        sock = congested.udp(OTHER_PEER)  # nobody has asked about it before
        flow = qos.add_socket(sock, TrafficType.AUDIO_VIDEO, adaptive=True)
        with congested.cross(0.6 * capacity) as cross, congested.sending(sock, wanted) as application:
            cross.begin()
            with pytest.raises(qos2.Retry) as early:
                flow.set_rate(wanted)
            assert early.value.win32 == 1237
            wait_until(lambda: known(flow))
            time.sleep(2)
            with pytest.raises(qos2.NetworkBusy) as busy:
                flow.set_rate(wanted)
            assert busy.value.win32 == 54
            assert (flow.rate(), flow.priority().conformant_dscp) == (None, 0)
            lower = round(0.8 * (flow.fundamentals().available or 0))
            assert 0.1 * capacity <= lower <= 0.6 * capacity
            flow.set_rate(lower, Shaping.SHAPE_AND_MARK)
            assert (flow.rate(), flow.priority().conformant_dscp) == (qos2.FlowRate(qos2.Bandwidth(lower)), 40)
            application.begin()
            told = flow.begin_notify(Condition.AVAILABLE, wanted)
            time.sleep(1.5)
            assert not told.done
            with pytest.raises(qos2.NetworkBusy):
                flow.set_rate(wanted)
            assert flow.rate() == qos2.FlowRate(qos2.Bandwidth(lower))
            cross.stop()
            told.result(timeout=15)
            flow.set_rate(wanted)
            flow.set_rate(lower)  # lowering is always admitted


_PROGRAM = (
    "import qos2, sys\n"
    "qos = qos2.Handle(sys.argv[1])\n"
    "qos.start_tracking(sys.argv[3])\n"
    "flow = qos.add_socket(int(sys.argv[2]), qos2.TrafficType.VOICE, adaptive=True)\n"
    "flow.begin_notify(qos2.Condition.CONGESTED)\n"
    "print('ready', flush=True)\n"
    "sys.stdin.read()\n"
)


def test_a_second_after_an_application_has_died_nothing_of_it_is_left(congested: CongestedLab) -> None:
    congested.bottleneck(20 * MBIT)
    assert congested.daemon.process is not None
    descriptors = Path(f"/proc/{congested.daemon.process.pid}/fd")
    sock = congested.tcp()
    with congested.handle() as qos:
        flows = len(qos.flows())
        before = len(list(descriptors.iterdir()))
        process = congested.lab.app.popen(
            *(sys.executable, "-c", _PROGRAM, congested.daemon.socket, str(sock.fileno()), OTHER_PEER),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[sock.fileno()],
            env=environment(),
        )
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(1.5)
            assert len(list(descriptors.iterdir())) > before  # its connection, and probes to two addresses
            process.send_signal(signal.SIGKILL)
            process.wait()
            time.sleep(1)
            recording = Recording.start(congested.lab.peer, congested.lab.router)
            assert len(qos.flows()) == flows
            assert len(list(descriptors.iterdir())) <= before
            time.sleep(1.5)
            packets = recording.stop()
            assert [int(port) for port in packets.dport if port == 862] == []
        finally:
            process.kill()
            process.communicate()
