"""What is said to the service manager (sd_notify(3)), and what it wants to hear (sd_watchdog_enabled(3)).

Silent where there is none. A manager that does not read may not hold up the daemon.
"""

import logging
import os
import socket
import time
from collections.abc import MutableMapping

_LOG = logging.getLogger("qos2d")

#: The watchdog is fed so often within the time that it allows.
FEEDS = 4
#: The manager is waited for as long as this; not where it is fed, which comes again.
PATIENCE_S = 1.0


class Supervisor:
    """The service manager that started this process, if one did. Says nothing in a child process."""

    def __init__(self, environment: MutableMapping[str, str] = os.environ) -> None:
        """Takes what is meant for this process out of `environment`, so that no child speaks in its name."""
        address = environment.pop("NOTIFY_SOCKET", "")
        limit_us = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        #: How often `alive` wants to be called, in seconds; None: never.
        self.feed_s: float | None = None
        if address and limit_us.isascii() and limit_us.isdigit() and int(limit_us) and pid in ("", str(os.getpid())):
            self.feed_s = int(limit_us) / 1e6 / FEEDS

    def ready(self, status: str = "") -> None:
        """At the end of the start, and of each `reloading`. `status` is a line for people."""
        self._say(f"READY=1\nSTATUS={status}" if status else "READY=1")

    def reloading(self) -> None:
        """Configuration is being read again."""
        # Type=notify-reload compares the time with that of its signal.
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """From here on nobody is served."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """The event loop turns."""
        self._say("WATCHDOG=1", patience_s=0.0)

    def _say(self, state: str, *, patience_s: float = PATIENCE_S) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.settimeout(patience_s)
                sender.sendto(state.encode(), self._address)
        except OSError as error:
            _LOG.warning("the service manager does not hear %s: %s", state.partition("\n")[0], error)
