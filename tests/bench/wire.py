"""Group `wire`: how many datagrams per second leave through a veth pair, with and without traffic control.

Each way of traffic control has a device and sockets of its own, set up once for a number of flows; the sender
goes from one to the next in every round.
"""

import ctypes
import socket
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from bench.figures import Result, Table, over, ratios, spread
from bench.pair import Link, Pair, Sockets
from bench.session import SENDER_CPU, Session, bpf_folder, pinned, senders
from bench.traffic import Bench
from bench.datapath import set_policies
from demo.lab import Namespace
from qos2.datapath import hook

_FLOWS = (1, 100, 5_000)
NOTHING = "no traffic control"


def measure(session: Session) -> Result:
    """Datagrams per second with 1, 100 and 5,000 flows."""
    tables = []
    with ExitStack() as stack:
        library = stack.enter_context(senders())
        folder = stack.enter_context(bpf_folder())
        pair = stack.enter_context(Pair())
        session.tell("compiling")
        setup = _Setup(pair, stack, folder)
        stack.enter_context(pinned(SENDER_CPU))
        rounds = session.choose(7, 21)
        for flows in _FLOWS:
            session.tell(f"{flows:,} flows: placing filters and classes")
            setup.place(flows)
            samples: dict[str, list[float]] = {name: [] for name in setup.ways}
            seconds = session.choose_s(0.15, 0.4)
            for number in range(rounds):
                session.tell(f"{flows:,} flows, round {number + 1} of {rounds}")
                for name, sockets in setup.ways.items():
                    samples[name].append(sockets.flood(library, flows, seconds) / seconds)
            tables.append(_table(flows, samples, rounds))
    return Result(
        "wire",
        "Datagrams per second",
        "One thread on one CPU sends datagrams of 64 bytes of payload over connected sockets, one per flow, chosen at "
        "random, through a veth pair; the receiver's buffer is full. Each way has a device and sockets of its own; all "
        "take turns in every round. *Mark + limit* has a rate that is never exceeded. HTB has one class per flow with "
        "a rate that is never reached, chosen by one u32 filter per flow on its source port, or by SO_PRIORITY.",
        tuple(tables),
    )
