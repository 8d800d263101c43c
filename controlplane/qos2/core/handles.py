"""The open handles, and the users that they belong to."""

from qos2.core.flows import Handle, Share
from qos2.core.rules import Limits
from qos2.errors import InvalidHandle, LimitExceeded
from qos2.model import Peer


class Handles:
    """Handles by number. A number is never given again."""

    __slots__ = ("_handles", "_last", "_limits", "_shares")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._handles: dict[int, Handle] = {}
        self._shares: dict[int, Share] = {}
        self._last = 0

    def __len__(self) -> int:
        return len(self._handles)

    def find(self, number: int) -> Handle:
        """Raises InvalidHandle for one that is not open."""
        handle = self._handles.get(number)
        if handle is None:
            raise InvalidHandle(f"no handle {number}", "open one first")
        return handle

    def open(self, peer: Peer) -> int:
        """The number of a new handle. Raises LimitExceeded where the user has too many."""
        share = self._shares.get(peer.uid)
        if share is None:
            share = self._shares[peer.uid] = Share(peer.uid)
        if share.handles >= self._limits.handles_per_uid:
            raise LimitExceeded(
                f"user {peer.uid} has {share.handles} handles", "one serves a process; else raise handles_per_uid"
            )
        share.handles += 1
        self._last += 1
        self._handles[self._last] = Handle(self._last, peer, share)
        return self._last

    def close(self, handle: Handle) -> None:
        """Its flows have ended."""
        del self._handles[handle.number]
        handle.share.handles -= 1
        if handle.share.handles == 0:
            del self._shares[handle.share.uid]

    def check_share(self, owner: Handle) -> None:
        """Raises LimitExceeded where the user of this handle may not begin another flow."""
        limits, share = self._limits, owner.share
        most = limits.flows_per_privileged_uid if owner.peer.privileged else limits.flows_per_uid
        if len(share.slots) >= most:
            raise LimitExceeded(f"user {share.uid} has {most} flows", "end flows, or raise flows_per_uid")
