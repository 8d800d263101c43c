"""When a flow is called congested, and when no longer: the constants of core/congestion.py, each with its reason.

All of them are keys of the configuration. A window is one look at a flow, a tenth of a second, that brought news of it.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Construction raises ValueError for values that contradict each other."""

    #: Delay beyond the path's own that makes a window bad: a call begins to suffer, and jitter of Wi-Fi does not last.
    congested_queue_delay_ms: float = 30.0
    #: ... or this share of the path's own round trip, where that is more: long paths waver more.
    congested_rtt_share: float = 0.5
    #: Share of segments lost that makes a window bad. Radio links lose less all the time, full queues more.
    congested_loss: float = 0.01
    #: Share of segments that were marked CE: a queue that marks at all does so from a few milliseconds on.
    congested_ce: float = 0.05
    #: So many of the last `congested_window_count` windows must be bad: one spike is none, half a second is some.
    congested_bad_windows: int = 3
    congested_window_count: int = 6
    #: A window with less than this share of the limits is good; in between it says nothing. A sender's sawtooth
    #: empties a queue by a third each time, which is not the end of the congestion.
    uncongested_share: float = 0.5
    #: So many good windows in turn end it: one second.
    uncongested_good_windows: int = 10
    #: Nor does it end earlier than this after its beginning, in seconds: who lowers his rate needs that long to see it.
    congested_dwell_s: float = 2.0
    #: A flow of which nothing was heard for so long is unknown again.
    unknown_after_s: float = 10.0
    #: How quickly the path's own round trip is taken to have risen, as a time constant in seconds. Slow beside
    #: any congestion that somebody would wait out, soon enough after a change of route.
    baseline_rise_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.congested_bad_windows <= self.congested_window_count <= 8:
            raise ValueError("congested_bad_windows: from 1 to congested_window_count, which is at most 8")
        for name, least, most in (
            ("congested_queue_delay_ms", 0.1, 10_000),
            ("congested_rtt_share", 0, 10),
            ("congested_loss", 0.0001, 1),
            ("congested_ce", 0.0001, 1),
            ("uncongested_share", 0.01, 1),
            ("uncongested_good_windows", 1, 250),
            ("congested_dwell_s", 0, 3600),
            ("unknown_after_s", 0.5, 3600),
            ("baseline_rise_s", 1, 86_400),
        ):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name}: from {least} to {most}")
