"""Times as arguments: how long an application wants to wait."""

import math
import time

from qos2.errors import InvalidRequest, TimedOut


def patience_s(timeout: float | None) -> float:
    """How long to wait for the daemon, None: for ever. Raises InvalidRequest for what is no such time."""
    if timeout is None:
        return math.inf
    if not timeout > 0:
        raise InvalidRequest(f"a timeout of {timeout} seconds", "more than 0, or None to wait for ever")
    return timeout


def limit_s(timeout: float | None) -> float:
    """When `timeout` seconds from now are over, by the monotonic clock. Raises InvalidRequest for what is no time."""
    if timeout is None:
        return math.inf
    if not timeout >= 0:
        raise InvalidRequest(f"a timeout of {timeout} seconds", "0 or more, or None to wait as long as it takes")
    return time.monotonic() + timeout


def check_time(until_s: float) -> None:
    """Raises TimedOut at that time, by the monotonic clock, and later."""
    if time.monotonic() >= until_s:
        raise TimedOut("the time is over", "the daemon has not answered yet")
