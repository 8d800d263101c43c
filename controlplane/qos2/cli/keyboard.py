"""Keys and signals of the live views: single keys as words, and a terminal that is as before afterwards."""

import codecs
import os
import re
import select
import signal
import sys
import termios
import threading
import time
import tty
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    "\x1bOH": "home",
    "\x1b[1~": "home",
    "\x1b[F": "end",
    "\x1bOF": "end",
    "\x1b[4~": "end",
}
_NAMES = {"\r": "enter", "\n": "enter", "\x1b": "escape", "\x7f": "backspace", "\b": "backspace", "\x15": "clear"}
#: One key as a terminal sends it: a control sequence, or a character.
_KEY = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1bO.|.", re.DOTALL)
#: So long the rest of a control sequence may take to come after its first character, seconds.
_SEQUENCE_S = 0.05


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


class Bell:
    """Ends the waiting for a key early: rung from another thread, and where the terminal changes its size."""

    def __init__(self) -> None:
        self.fd = -1
        # Taken again by a signal that comes while it is held.
        self._lock = threading.RLock()

    def __enter__(self) -> Self:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._previous = signal.signal(signal.SIGWINCH, lambda _number, _frame: self.ring())
        return self

    def __exit__(self, *_exception: object) -> None:
        signal.signal(signal.SIGWINCH, self._previous)
        with self._lock:  # a later file of this number must not be written to
            fd, self.fd = self.fd, -1
            os.close(fd)

    def ring(self) -> None:
        """From anywhere; once it is over nothing happens."""
        with self._lock:
            if self.fd >= 0:
                os.eventfd_write(self.fd, 1)

    def quiet(self) -> None:
        """Until it is rung again."""
        with suppress(BlockingIOError):
            os.eventfd_read(self.fd)


class Keyboard:
    """Single keys from standard input; none where that is no terminal."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno() if sys.stdin.isatty() else None
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._typed: deque[str] = deque()

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
        typed = self.typed(seconds)
        return "" if typed is None else key_of(typed)

    def typed(self, seconds: float, bell: Bell | None = None) -> str | None:
        """What the terminal sent for the next key; None if there was none within `seconds` or the bell rang first.

        An empty text: the terminal has hung up.
        """
        if self._typed:
            return self._typed.popleft()
        seconds = max(seconds, 0.0)
        sources = [each for each in (self._fd, bell.fd if bell else None) if each is not None]
        if not sources:
            time.sleep(seconds)
            return None
        ready = select.select(sources, [], [], seconds)[0]
        if bell is not None and bell.fd in ready:
            bell.quiet()
        if self._fd is None or self._fd not in ready:
            return None
        return self._read(self._fd)

    def _read(self, fd: int) -> str | None:
        sent = os.read(fd, 256)
        # A control sequence may come in pieces; the escape key comes alone.
        if sent.endswith((b"\x1b", b"\x1b[", b"\x1bO")) and select.select([fd], [], [], _SEQUENCE_S)[0]:
            sent += os.read(fd, 256)
        if not sent:
            return ""
        self._typed.extend(_KEY.findall(self._decoder.decode(sent)))
        return self._typed.popleft() if self._typed else None


def key_of(text: str) -> str:
    """The first key of what was typed, as a word or a small letter; `q` where the terminal has hung up."""
    if not text:
        return "q"
    for sequence, name in _SEQUENCES.items():
        if text.startswith(sequence):
            return name
    return text[0].lower()


def name_of(typed: str) -> str:
    """As `key_of`, with names for enter, escape, backspace and clear (Ctrl-U); empty for unknown control sequences."""
    if typed in _NAMES:
        return _NAMES[typed]
    return "" if len(typed) > 1 and typed not in _SEQUENCES else key_of(typed)
