"""What a person would care about, told to the log: one line per event, none per flow.

Most of it is the difference between two looks at the datapath, a second apart: devices that came or were let go of, and
problems that began or ended. What came and went in between is not told.
"""

import logging
from collections.abc import Mapping
from enum import StrEnum

from qos2.model import DatapathStatus, DeviceStatus

_LOG = logging.getLogger("qos2d")


class Event(StrEnum):
    """The field `event` of a line: QOS2_EVENT in the journal."""

    START = "start"
    TAKE_OVER = "take_over"
    READY = "ready"
    DEVICE_ATTACHED = "device_attached"
    DEVICE_LET_GO = "device_let_go"
    PROBLEM_BEGAN = "problem_began"
    PROBLEM_ENDED = "problem_ended"
    RELOADED = "reloaded"
    RELOAD_FAILED = "reload_failed"
    STOP = "stop"
    STOPPED = "stopped"
    FAILED = "failed"


def tell(
    event: Event, message: str, fields: Mapping[str, str | int] | None = None, *, level: int = logging.INFO
) -> None:
    """One line: `message` for people, `event` and `fields` for programs (logs.py)."""
    _LOG.log(level, "%s", message, extra={"fields": {"event": event.value, **(fields or {})}}, stacklevel=2)


class Chronicle:
    """Remembers what the datapath was like, and tells what has changed since."""

    def __init__(self) -> None:
        self._devices: Mapping[tuple[int, int], DeviceStatus] = {}
        self._problems: tuple[str, ...] = ()

    def look(self, status: DatapathStatus) -> None:
        """Tell the changes since the last look; at the first one, everything."""
        devices = {(device.netns_cookie, device.index): device for device in status.devices}
        for key, device in self._devices.items():
            if key not in devices:
                tell(Event.DEVICE_LET_GO, f"device {device.name}: let go", _named(device))
        for key, device in devices.items():
            before = self._devices.get(key)
            if before is None or _treatment(before) != _treatment(device):
                message = f"device {device.name}: {device.hook}, {device.shaper.value} ({device.why})"
                fields = _named(device) | {"hook": device.hook, "shaper": device.shaper.value}
                tell(Event.DEVICE_ATTACHED, message, fields)
        for problem in self._problems:
            if problem not in status.problems:
                tell(Event.PROBLEM_ENDED, f"no longer: {problem}", {"problem": problem})
        for problem in status.problems:
            if problem not in self._problems:
                tell(Event.PROBLEM_BEGAN, f"problem: {problem}", {"problem": problem}, level=logging.WARNING)
        self._devices, self._problems = devices, status.problems


def _named(device: DeviceStatus) -> dict[str, str | int]:
    return {"device": device.name, "ifindex": device.index, "netns": device.netns_cookie}


def _treatment(device: DeviceStatus) -> tuple[str, str, str, str]:
    return device.name, device.hook, device.shaper.value, device.why
