"""What Prometheus is told of paths and congestion: the whole text, and how notifications are sorted by their time."""

import pytest

from qos2.metrics import NOTIFICATION_BOUNDS, NotificationMeter, PathsSnapshot, Snapshot, render
from qos2.model import Cause, Condition, DatapathStatus, FlowState
from unit.path_metrics import paths_known_in_every_way

OF_PATHS = (
    *("qos2_flow_states", "qos2_paths", "qos2_reflectors", "qos2_path_estimates", "qos2_admissions"),
    *("qos2_probe_", "qos2_observation_failures", "qos2_notification_seconds"),
)

EVERYTHING = """\
# HELP qos2_flow_states Flows of one socket, by what is said of their way through the network and what that rests on. \
rate_limited: the network is free, the flow's own contract holds it back; unknown: nothing was heard of it lately.
# TYPE qos2_flow_states gauge
qos2_flow_states{cause="ce",state="congested"} 15.0
qos2_flow_states{cause="loss",state="congested"} 14.0
qos2_flow_states{cause="probe",state="congested"} 16.0
qos2_flow_states{cause="queue_delay",state="congested"} 13.0
qos2_flow_states{cause="contract",state="rate_limited"} 12.0
qos2_flow_states{cause="",state="uncongested"} 11.0
qos2_flow_states{cause="",state="unknown"} 10.0
# HELP qos2_paths Remote hosts whose paths adaptive flows or trackers use now.
# TYPE qos2_paths gauge
qos2_paths 9.0
# HELP qos2_reflectors Of these, hosts with a reflector that answers.
# TYPE qos2_reflectors gauge
qos2_reflectors 4.0
# HELP qos2_path_estimates Hosts in use of which a quantity is known, by how well; a lower_bound is no measurement.
# TYPE qos2_path_estimates gauge
qos2_path_estimates{quality="lower_bound",quantity="available"} 33.0
qos2_path_estimates{quality="measured",quantity="available"} 32.0
qos2_path_estimates{quality="lower_bound",quantity="bottleneck"} 31.0
qos2_path_estimates{quality="measured",quantity="bottleneck"} 30.0
qos2_path_estimates{quality="lower_bound",quantity="rtt"} 35.0
qos2_path_estimates{quality="measured",quantity="rtt"} 34.0
# HELP qos2_admissions_total Rates that adaptive flows asked for beyond what they held: admitted, refused as \
network_busy, or put off (retry) while the path was being measured.
# TYPE qos2_admissions_total counter
qos2_admissions_total{result="admitted"} 61.0
qos2_admissions_total{result="network_busy"} 62.0
qos2_admissions_total{result="retry"} 63.0
# HELP qos2_probe_bytes_total Bytes of probes sent to reflectors, at IP level.
# TYPE qos2_probe_bytes_total counter
qos2_probe_bytes_total 72000.0
# HELP qos2_probe_packets_total Probes sent to reflectors.
# TYPE qos2_probe_packets_total counter
qos2_probe_packets_total 71.0
# HELP qos2_probe_results_total What became of probes: answered, lost; late, unreadable, clock_set, odd_times \
(replies); refused, failed, untimed (whole plans).
# TYPE qos2_probe_results_total counter
qos2_probe_results_total{result="answered"} 73.0
qos2_probe_results_total{result="lost"} 74.0
qos2_probe_results_total{result="late"} 75.0
qos2_probe_results_total{result="unreadable"} 76.0
qos2_probe_results_total{result="clock_set"} 77.0
qos2_probe_results_total{result="odd_times"} 78.0
qos2_probe_results_total{result="refused"} 79.0
qos2_probe_results_total{result="failed"} 80.0
qos2_probe_results_total{result="untimed"} 81.0
# HELP qos2_observation_failures_total Parts of a look at flows and paths that failed, and plans of probes that came \
to nothing.
# TYPE qos2_observation_failures_total counter
qos2_observation_failures_total{part="hear"} 90.0
qos2_observation_failures_total{part="judge"} 91.0
qos2_observation_failures_total{part="follow"} 92.0
qos2_observation_failures_total{part="look"} 93.0
qos2_observation_failures_total{part="tcp"} 94.0
qos2_observation_failures_total{part="plan"} 95.0
qos2_observation_failures_total{part="expire"} 96.0
qos2_observation_failures_total{part="unsent"} 97.0
qos2_observation_failures_total{part="outdated"} 98.0
# HELP qos2_notification_seconds Time from reading the signals that fulfilled a condition to the reply to who waited \
for it.
# TYPE qos2_notification_seconds histogram
qos2_notification_seconds_bucket{condition="congested",le="0.001"} 0.0
qos2_notification_seconds_bucket{condition="congested",le="0.005"} 1.0
qos2_notification_seconds_bucket{condition="congested",le="0.025"} 1.0
qos2_notification_seconds_bucket{condition="congested",le="0.1"} 1.0
qos2_notification_seconds_bucket{condition="congested",le="1.0"} 2.0
qos2_notification_seconds_bucket{condition="congested",le="+Inf"} 2.0
qos2_notification_seconds_count{condition="congested"} 2.0
qos2_notification_seconds_sum{condition="congested"} 0.252
qos2_notification_seconds_bucket{condition="uncongested",le="0.001"} 0.0
qos2_notification_seconds_bucket{condition="uncongested",le="0.005"} 0.0
qos2_notification_seconds_bucket{condition="uncongested",le="0.025"} 0.0
qos2_notification_seconds_bucket{condition="uncongested",le="0.1"} 0.0
qos2_notification_seconds_bucket{condition="uncongested",le="1.0"} 0.0
qos2_notification_seconds_bucket{condition="uncongested",le="+Inf"} 0.0
qos2_notification_seconds_count{condition="uncongested"} 0.0
qos2_notification_seconds_sum{condition="uncongested"} 0.0
qos2_notification_seconds_bucket{condition="available",le="0.001"} 0.0
qos2_notification_seconds_bucket{condition="available",le="0.005"} 0.0
qos2_notification_seconds_bucket{condition="available",le="0.025"} 0.0
qos2_notification_seconds_bucket{condition="available",le="0.1"} 0.0
qos2_notification_seconds_bucket{condition="available",le="1.0"} 0.0
qos2_notification_seconds_bucket{condition="available",le="+Inf"} 1.0
qos2_notification_seconds_count{condition="available"} 1.0
qos2_notification_seconds_sum{condition="available"} 7.0
"""


def lines_of_paths(paths: PathsSnapshot | None) -> list[str]:
    """The lines that are there for paths, explanations among them."""
    text = render(Snapshot(version="0.1.0", datapath=DatapathStatus(kernel="6.18.0"), paths=paths)).decode()
    return [
        line for line in text.splitlines() if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(OF_PATHS)
    ]


def numbers_of(paths: PathsSnapshot) -> list[str]:
    """The lines without explanations."""
    return [line for line in lines_of_paths(paths) if not line.startswith("#")]


def test_everything_that_can_be_known_is_told() -> None:
    assert lines_of_paths(paths_known_in_every_way()) == EVERYTHING.splitlines()


def test_a_daemon_that_observes_nothing_tells_nothing_of_paths() -> None:
    assert lines_of_paths(None) == []


def test_before_anything_was_observed_every_counter_is_told_as_zero() -> None:
    counters = [each for each in numbers_of(paths_known_in_every_way()) if "_total" in each]
    counted = sorted([f"{each.rpartition(' ')[0]} 0.0" for each in counters])
    assert sorted(numbers_of(PathsSnapshot())) == sorted(["qos2_paths 0.0", "qos2_reflectors 0.0", *counted])


def test_a_state_without_flows_goes_and_does_not_stay_at_its_last_number() -> None:
    before = PathsSnapshot(states={(FlowState.CONGESTED, Cause.LOSS): 2, (FlowState.UNKNOWN, None): 1})
    assert numbers_of(before)[:2] == [
        'qos2_flow_states{cause="loss",state="congested"} 2.0',
        'qos2_flow_states{cause="",state="unknown"} 1.0',
    ]
    assert numbers_of(PathsSnapshot(states={(FlowState.UNKNOWN, None): 3}))[0] == (
        'qos2_flow_states{cause="",state="unknown"} 3.0'
    )


def test_rendering_leaves_the_counters_of_the_prober_whole() -> None:
    paths = paths_known_in_every_way()
    probes = dict(paths.probes)
    assert lines_of_paths(paths) == lines_of_paths(paths)
    assert paths.probes == probes


def test_a_notification_falls_into_the_bucket_whose_bound_it_does_not_exceed() -> None:
    meter = NotificationMeter()
    for seconds in (0.0, *NOTIFICATION_BOUNDS, 1.0001, 3600.0):
        meter.observe(Condition.UNCONGESTED, seconds)
    latency = meter.latency[Condition.UNCONGESTED]
    assert latency.counts == [2, 1, 1, 1, 1, 2]
    assert latency.seconds == pytest.approx(sum(NOTIFICATION_BOUNDS) + 3601.0001)
    others = [meter.latency[each] for each in (Condition.CONGESTED, Condition.AVAILABLE)]
    assert [(each.counts, each.seconds) for each in others] == [([0] * 6, 0.0)] * 2
