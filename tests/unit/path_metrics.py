"""What the daemon can know of paths and congestion, all at once: for tests of what Prometheus is told."""

from itertools import product

from qos2.metrics import NotificationMeter, PathsSnapshot
from qos2.model import Cause, Condition, FlowState, Quality

#: Every state with every cause that it can have.
STATES = (
    (FlowState.UNKNOWN, None),
    (FlowState.UNCONGESTED, None),
    (FlowState.RATE_LIMITED, Cause.CONTRACT),
    *((FlowState.CONGESTED, cause) for cause in Cause if cause is not Cause.CONTRACT),
)
ESTIMATES = tuple(product(("bottleneck", "available", "rtt"), Quality))
PROBE_RESULTS = (
    *("answered", "lost", "late", "unreadable", "clock_set", "odd_times"),
    *("refused", "failed", "untimed"),
)
FAILURES = ("hear", "judge", "follow", "look", "tcp", "plan", "expire", "unsent", "outdated")


def paths_known_in_every_way() -> PathsSnapshot:
    """A snapshot with every series there can be, and another number in each."""
    notifications = NotificationMeter()
    for condition, seconds in ((Condition.CONGESTED, 0.002), (Condition.CONGESTED, 0.25), (Condition.AVAILABLE, 7.0)):
        notifications.observe(condition, seconds)
    return PathsSnapshot(
        states={pair: 10 + number for number, pair in enumerate(STATES)},
        hosts=9,
        reflectors=4,
        estimates={each: 30 + number for number, each in enumerate(ESTIMATES)},
        admissions={"admitted": 61, "network_busy": 62, "retry": 63},
        probes={"sent_packets": 71, "sent_bytes": 72_000}
        | {result: 73 + number for number, result in enumerate(PROBE_RESULTS)},
        failures={part: 90 + number for number, part in enumerate(FAILURES)},
        notifications=notifications,
    )
