"""Keys and signals of the live views: single keys as words, and a terminal that is as before afterwards."""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Self

#: What terminals send for the keys that have no character (xterm's control sequences, in both cursor modes).
_SEQUENCES = {
    "\x1b[A": "up",
    "\x1bOA": "up",
    "\x1b[B": "down",
    "\x1bOB": "down",
    "\x1b[5~": "page up",
    "\x1b[6~": "page down",
    " ": "page down",
    "\x1b[H": "home",
    "\x1b[1~": "home",
}


@contextmanager
def terminated_by_exception() -> Iterator[None]:
    """SIGTERM unwinds the stack, so that the terminal gets its screen and its echo back."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class Keyboard:
    """Single keys from standard input; none where that is no terminal."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else None

    def __enter__(self) -> Self:
        if self._fd is not None:
            self._saved = termios.tcgetattr(self._fd)
            tty.setcbreak(self._fd)
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._fd is not None:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, self._saved)

    def wait(self, seconds: float) -> str:
        """The key pressed within `seconds`: its letter, `up`, `down`, `page up` ...; else an empty text."""
        seconds = max(seconds, 0.0)
        if self._fd is None:
            time.sleep(seconds)
            return ""
        if not select.select([self._fd], [], [], seconds)[0]:
            return ""
        # Nothing to read on a ready terminal: it has hung up.
        return key_of(os.read(self._fd, 16).decode("ascii", "replace"))


def key_of(text: str) -> str:
    """The first key of what was typed; of keys typed faster than they are read, one each time is enough."""
    if not text:
        return "q"
    for sequence, name in _SEQUENCES.items():
        if text.startswith(sequence):
            return name
    return text[0].lower()
