"""How much waits at a device, looked at every two milliseconds: the truth about when a path is congested.

The kernel is asked for the root qdisc's statistics (RTM_GETQDISC, rtnetlink(7)); tc-tbf(8) and tc-htb(8) count what
their inner queues hold.
"""

import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from demo.lab import Namespace
from qos2.datapath.netlink import Conversation, Message, Request, attributes
from qos2.errors import DatapathError

# linux/rtnetlink.h, linux/pkt_sched.h, linux/gen_stats.h
_RTM_GETQDISC = 38
_NLM_F_ECHO = 0x8  # without it, only those hear the answer who listen to what happens to qdiscs
_TC_H_ROOT = 0xFFFFFFFF
_TCA_STATS2 = 7
_TCA_STATS_QUEUE = 3
_TCMSG = struct.Struct("=B3xiIII")
_QUEUE_PACKETS = struct.Struct("=I")  # the first of struct gnet_stats_queue

PAUSE_S = 0.002


class Look(NamedTuple):
    """So many packets waited at that moment (time.monotonic())."""

    time_s: float
    packets: int


def first_queued(looks: Sequence[Look], since_s: float) -> float | None:
    """When a packet was first seen to wait, from that moment on; None: never."""
    return next((look.time_s for look in looks if look.time_s >= since_s and look.packets), None)


def first_empty(looks: Sequence[Look], since_s: float) -> float | None:
    """When nothing was first seen to wait, from that moment on; None: never."""
    return next((look.time_s for look in looks if look.time_s >= since_s and not look.packets), None)


class Backlog:
    """The root qdisc of a namespace's device."""

    def __init__(self, namespace: Namespace) -> None:
        with namespace.entered():  # a netlink socket stays where it was made
            self._conversation = Conversation()
            device = socket.if_nametoindex(namespace.device)
        body = _TCMSG.pack(socket.AF_UNSPEC, device, 0, _TC_H_ROOT, 0)
        self._request = Request(_RTM_GETQDISC, _NLM_F_ECHO, body, f"reading the queue of {namespace.device}")

    def packets(self) -> int:
        """What waits now. Raises DatapathError."""
        return packets(self._conversation.get(self._request))

    @contextmanager
    def watched(self) -> Iterator[list[Look]]:
        """Looks are added to the list during the block. Raises DatapathError at its end where the kernel refused."""
        looks: list[Look] = []
        failed: list[DatapathError] = []
        over = threading.Event()

        def watch() -> None:
            try:
                while not over.wait(PAUSE_S):
                    looks.append(Look(time.monotonic(), self.packets()))
            except DatapathError as error:
                failed.append(error)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield looks
        finally:
            over.set()
            thread.join()
        for error in failed:
            raise error

    def close(self) -> None:
        """Let go of the namespace."""
        self._conversation.close()


def packets(answer: Message) -> int:
    """The length of a queue from what the kernel answers. Raises DatapathError where it does not say."""
    for kind, content in attributes(answer.body[_TCMSG.size :]):
        if kind == _TCA_STATS2:
            for inner, values in attributes(content):
                if inner == _TCA_STATS_QUEUE:
                    waiting: int = _QUEUE_PACKETS.unpack_from(values)[0]
                    return waiting
    raise DatapathError("the kernel tells no length of this queue")
