"""Figures over time in one line of characters, eight levels high."""

from collections.abc import Sequence
from math import ceil

#: Least to most, from "Block Elements" of Unicode, and for terminals without them.
BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.:-=+*#"


def sparkline(values: Sequence[float | None], width: int, full: float = 0.0, *, ascii_only: bool = False) -> str:
    """The last `width` values, newest at the right, from 0 to `full` or the largest shown, whichever is more.

    None (not known at that time) is a blank; a value that is not 0 is above the lowest level.
    """
    shown = values[-width:] if width > 0 else []
    most = max([full, *(value for value in shown if value is not None)])
    levels = ASCII if ascii_only else BLOCKS
    drawn = "".join(" " if value is None else levels[_level(value, most)] for value in shown)
    return drawn.rjust(width)


def _level(value: float, most: float) -> int:
    if value <= 0 or most <= 0:
        return 0
    # A seventh is the first level, not a little more than it by the error of a division.
    return min(max(ceil(value / most * 7 - 1e-9), 1), 7)
