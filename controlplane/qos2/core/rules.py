"""The administrator's say: what one user may take, refusals as on Windows, and what nobody may do.

All of it comes from the daemon's configuration and holds for as long as it runs.
"""

from dataclasses import dataclass
from enum import StrEnum

from qos2.errors import DeniedByPolicy


@dataclass(frozen=True, slots=True)
class Limits:
    """Handles, flows and tracked hosts are counted per uid, members per flow, requests that wait per handle."""

    flows_per_uid: int = 16_384
    flows_per_privileged_uid: int = 65_536
    handles_per_uid: int = 1_024
    members_per_flow: int = 4_096
    orphan_grace_s: float = 10.0  #: so long a restarted daemon leaves the flows of a killed one in force
    pending_per_handle: int = 1_024
    tracked_per_uid: int = 1_024  #: those that linger after their handle included


class Deniable(StrEnum):
    """What the administrator can forbid, by its word in the configuration."""

    FLOWS = "flows"  #: adding sockets and programs
    TRAFFIC_TYPE = "traffic_type"  #: setting another one; that of a new flow belongs to `flows`
    RATE = "rate"
    DSCP = "dscp"
    ESTIMATES = "estimates"  #: fundamentals, notifications, reports and tracking


@dataclass(frozen=True, slots=True)
class Rules:
    """`strict`: addresses that Windows refuses are refused. `deny` holds for everybody, root included."""

    strict: bool = False
    deny: frozenset[Deniable] = frozenset()

    def check(self, what: Deniable) -> None:
        """Raises DeniedByPolicy where the administrator forbids it."""
        if what in self.deny:
            raise DeniedByPolicy(
                f"the administrator does not allow it: {what.value}", "`deny` in the daemon's configuration says so"
            )
