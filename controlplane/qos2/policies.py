"""Reads the administrator's policy and hands it to the service: at the start, by SIGHUP, by `qos2 reload`.

All or nothing: whatever is wrong with a file, or refused by the kernel, the policy so far stays in force.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from qos2.core.policy import Policy
from qos2.core.ruleviews import Loaded
from qos2.core.service import Service
from qos2.errors import QosError
from qos2.policyfile import read_policy, warnings

_LOG = logging.getLogger("qos2d.policy")


class Policies:
    """The policy of a folder. `loads` counts by "ok" and "failed"; the other attributes are of the last load.

    `loaded_at` is when a policy came into force last, in seconds since 1970; 0 before the first one has.
    """

    def __init__(
        self,
        folder: Path,
        service: Service,
        *,
        read: Callable[[Path], Policy] = read_policy,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.folder = folder
        self._service = service
        self._read = read
        self._now = now
        self.loads: Counter[str] = Counter(ok=0, failed=0)
        self.successful = False
        self.loaded_at = 0.0
        self.took_s = 0.0

    @property
    def rules(self) -> int:
        """How many rules are in force."""
        return len(self._service.policy.rules)

    @property
    def generation(self) -> int:
        """That of the policy in force, 0 before the first one."""
        return self._service.policy_generation

    def load(self) -> Loaded:
        """Read the folder and put the policy into force, as a client asks.

        Raises ConfigError with each error on a line of its own, LimitExceeded, DatapathError: nothing has changed.
        """
        loaded = self._load()
        _LOG.info("the policy was reloaded: %s", self._described(loaded))
        return loaded

    def reread(self) -> str:
        """As `load` at the start and for SIGHUP, where the daemon logs what is returned, or raised."""
        return self._described(self._load())

    def _described(self, loaded: Loaded) -> str:
        return f"{loaded.rules} rules of {self.folder}, generation {loaded.generation}"

    def _load(self) -> Loaded:
        began_s = time.monotonic()
        try:
            policy = self._read(self.folder)
            generation = self._service.load_policy(policy)
        except QosError:
            self.successful = False
            self.loads["failed"] += 1
            raise
        finally:
            self.took_s = time.monotonic() - began_s
        self.successful = True
        self.loads["ok"] += 1
        self.loaded_at = self._now()
        loaded = Loaded(generation, len(policy.rules), warnings(policy))
        for each in loaded.warnings:
            _LOG.warning("%s", each)
        return loaded
