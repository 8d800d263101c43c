"""How far a run of the benchmarks is: which group of how many, what it does, and how long the rest is going to take.

On a terminal one line that is renewed; elsewhere a line at the begin of each group, and then one at most every half
minute. What is left is estimated by how long each group took when it was last measured whole in this checkout.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

#: Seconds between lines where the output is no terminal.
QUIET_S = 30.0


class Durations:
    """Seconds that each group took when it was last measured, in a file; of full and of quick runs apart."""

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        self._mode = mode
        try:
            self._known: dict[str, dict[str, float]] = json.loads(path.read_text())
        except (OSError, ValueError):  # the first run here, or one that was killed while it wrote
            self._known = {}

    def of(self, group: str) -> float | None:
        """None: never measured here in this mode."""
        return self._known.get(self._mode, {}).get(group)

    def note(self, group: str, seconds: float) -> None:
        """It has just taken so long."""
        self._known.setdefault(self._mode, {})[group] = round(seconds, 1)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self._known, indent=2, sort_keys=True) + "\n")


class Progress:
    """Of the groups `chosen`, in this order. `tell` takes one line about what is being done."""

    def __init__(
        self,
        console: Console,
        chosen: Sequence[str],
        durations: Durations,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._chosen = list(chosen)
        self._durations = durations
        self._clock = clock
        self._taken_s = 0.0  # by the groups before this one whose duration was known, and what was expected of them
        self._expected_s = 0.0
        self._number = 0
        self._begun_s = clock()
        self._said_s = -QUIET_S
        self._doing = ""
        self._spinner = Spinner("dots")

    @contextmanager
    def group(self) -> Iterator[str]:
        """The next group, by its name; what it took is remembered where it comes to its end."""
        name = self._chosen[self._number]
        self._begun_s, self._said_s, self._doing = self._clock(), -QUIET_S, ""
        if self._console.is_terminal:
            with Live(get_renderable=self._line, console=self._console, transient=True, refresh_per_second=2):
                yield name
        else:
            self.tell("begins")
            yield name
        took_s, expected_s = self._clock() - self._begun_s, self._durations.of(name)
        if expected_s is not None:
            self._taken_s += took_s
            self._expected_s += expected_s
        self._durations.note(name, took_s)
        self._number += 1
        self._begun_s = self._clock()

    def tell(self, doing: str) -> None:
        """What the group does now."""
        self._doing = doing
        if not self._console.is_terminal and self._clock() >= self._said_s + QUIET_S:
            self._said_s = self._clock()
            self._console.print(f"bench: {self.text()}", markup=False, highlight=False, soft_wrap=True)

    def text(self) -> str:
        """As `group 2 of 7, wire: 64 flows, round 1 of 9; 45 s; about 4 min left`."""
        elapsed_s = self._clock() - self._begun_s
        left_s = self.left_s()
        left = "time left not known: first run here" if left_s is None else f"about {_rounded(left_s)} left"
        where = f"group {self._number + 1} of {len(self._chosen)}, {self._chosen[self._number]}"
        return f"{where}{': ' * bool(self._doing)}{self._doing}; {_rounded(elapsed_s)}; {left}"

    def left_s(self) -> float | None:
        """Of all groups, as fast as those before them have been. None where one of them was never measured here."""
        expected = [self._durations.of(name) for name in self._chosen[self._number :]]
        known = [each for each in expected if each is not None]
        if len(known) < len(expected):
            return None
        pace = self._taken_s / self._expected_s if self._expected_s else 1.0
        elapsed_s = self._clock() - self._begun_s
        return max(known[0] * pace - elapsed_s, 0.0) + sum(known[1:]) * pace

    def _line(self) -> Spinner:
        self._spinner.update(text=Text(self.text(), no_wrap=True, overflow="ellipsis"))
        return self._spinner


def _rounded(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
