"""What forked children do with the channels that they inherit: close their copies, at once and within fork().

Otherwise a flow would live as long as the last descendant of the process that it belongs to.
"""

import os
import weakref
from typing import Protocol


class Inheritable(Protocol):
    """A channel of either kind."""

    def inherit(self) -> None:
        """In a forked child, whose only thread this is: close the copy, touch nothing of the parent."""


_OF_THIS_PROCESS: "weakref.WeakSet[Inheritable]" = weakref.WeakSet()


def close_in_children(channel: Inheritable) -> None:
    """To be called before it is connected: another thread may fork at any time."""
    _OF_THIS_PROCESS.add(channel)


def _inherit() -> None:
    for channel in list(_OF_THIS_PROCESS):
        channel.inherit()
    _OF_THIS_PROCESS.clear()


os.register_at_fork(after_in_child=_inherit)
