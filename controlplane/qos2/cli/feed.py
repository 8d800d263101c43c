"""Looks taken beside the view: the daemon is asked in a thread of its own, so that keys are answered meanwhile.

A daemon that goes away is said to be gone, and asked for again until it is back.
"""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from qos2.cli import evidence
from qos2.cli.observations import Observation
from qos2.cli.ports import Client
from qos2.cli.sampling import Row
from qos2.cli.snapshot import Looks, Snapshot
from qos2.cli.trace import Trace
from qos2.errors import NoSuchFlow, QosError
from qos2.wire.protocol import Explanation, FlowDetails

#: Two looks at once at the beginning, so that there are rates before a newcomer wonders.
_FIRST_INTERVAL_S = 0.5
#: The daemon is asked for at most this share of the time, however long a look takes.
_SHARE = 0.25
#: Between attempts to reach a daemon that went away.
_RETRY_S = 1.0


class Feed:
    """`latest`, `trouble` (empty: none) and `observed` are renewed in the background, and then `ring` is called.

    A context manager; `check` raises what went wrong in the thread otherwise.
    """

    def __init__(self, qos: Client, connect: Callable[[], Client], interval_s: float, ring: Callable[[], None]) -> None:
        self.latest: Snapshot | None = None
        self.trouble = ""
        self.observed: Observation | None = None
        self._qos: Client | None = qos
        self._connect = connect
        self._interval_s = interval_s
        self._ring = ring
        self._looks = Looks(qos)
        self._trace = Trace()
        self._changed = threading.Condition()
        self._followed: FlowDetails | None = None
        self._paused = False
        self._ended = False
        self._asked_at_s: float | None = None  # of a look that is not over
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify()
        # It may be waiting for a daemon that does not answer: whoever closes the handle ends that.
        self._thread.join(0.5)

    def check(self) -> None:
        """Raises what ended the thread."""
        if self._failure is not None:
            raise self._failure

    @property
    def silent_s(self) -> float:
        """For how long the daemon has been asked now without an answer; 0: it is not being asked."""
        asked_at_s = self._asked_at_s
        return 0.0 if asked_at_s is None else time.monotonic() - asked_at_s

    def pause(self, paused: bool) -> None:
        """Whether to stand still."""
        with self._changed:
            self._paused = paused
            self._changed.notify()

    def follow(self, flow: FlowDetails | None) -> None:
        """From now on `observed` is that flow, as soon as the daemon has told of it. None: of none."""
        with self._changed:
            self._followed, self.observed = flow, None
            self._changed.notify()

    def _run(self) -> None:
        try:
            wait_s = 0.0
            while self._rest(wait_s):
                wait_s = self._look()
                self._ring()
        except BaseException as error:  # raised again by check(), in the thread that shows it
            self._failure = error
            self._ring()

    def _look(self) -> float:
        """One look; how long to wait for the next, seconds."""
        self._asked_at_s = begun_s = time.monotonic()
        try:
            self._reconnect()
            snapshot = self._looks.look()
            first, self.latest, self.trouble = self.latest is None, snapshot, ""
            self._observe(fresh=True)
        except QosError as error:
            self._lose(error)
            return _RETRY_S
        finally:
            self._asked_at_s = None
        took_s = time.monotonic() - begun_s
        interval_s = min(self._interval_s, _FIRST_INTERVAL_S) if first else self._interval_s
        return max(interval_s - took_s, took_s * (1 / _SHARE - 1))

    def _reconnect(self) -> None:
        if self._qos is None:
            self._qos = self._connect()
            self._looks = Looks(self._qos)

    def _lose(self, error: QosError) -> None:
        self.trouble = error.message
        if self._qos is not None:
            self._qos.__exit__(None, None, None)
            self._qos = None

    def _rest(self, seconds: float) -> bool:
        """Wait, and answer meanwhile who wants to know of a flow. False: it is over."""
        due_s = time.monotonic() + seconds
        while True:
            with self._changed:
                while not self._ended and not self._asked() and (self._paused or time.monotonic() < due_s):
                    self._changed.wait(None if self._paused else due_s - time.monotonic())
                if self._ended or not self._asked():
                    return not self._ended
            try:
                self._observe(fresh=False)
            except QosError as error:
                self._lose(error)
            self._ring()

    def _asked(self) -> bool:
        return self._qos is not None and self._followed is not None and self.observed is None

    def _observe(self, *, fresh: bool) -> None:
        """The followed flow. `fresh`: after a look; else it is asked for between two."""
        followed, qos = self._followed, self._qos
        if followed is None or qos is None:
            return
        before = self.observed
        if before is None:
            self._trace = Trace()
        row = self._row(followed.flow)
        if row is None:
            self._publish(followed, Observation(before.flow if before else followed, self._trace, None))
            return
        if before is None or fresh:
            self._trace.add(row.bits if self.latest is not None and self.latest.interval_s else None)
        try:
            explanation: Explanation | None = qos.explain(followed.flow)
        except NoSuchFlow:
            explanation = None
        if explanation is not None and explanation.source is not None:
            self._trace.learn(evidence.known(explanation.signals))
        self._publish(followed, Observation(row.flow, self._trace, explanation))

    def _row(self, number: int) -> Row | None:
        rows = () if self.latest is None else self.latest.rows
        return next((row for row in rows if row.flow.flow == number), None)

    def _publish(self, followed: FlowDetails, observed: Observation) -> None:
        with self._changed:
            # Meanwhile another one may be wanted.
            if self._followed is followed:
                self.observed = observed
