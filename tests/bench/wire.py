"""Group `wire`: how many datagrams per second leave through a veth pair, with and without traffic control.

Each way of traffic control has a device and sockets of its own, so the sender goes from one to the next in
every round and nothing is replaced meanwhile.
"""

import socket
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack

from bench.crowd import Prepare
from bench.figures import Result, Table, over, ratios, spread
from bench.hooked import DATAPATH, EMPTY_PROGRAM, Hooked
from bench.pair import Link, Pair
from bench.session import Session, bpf_folder, senders
from demo.lab import Namespace

_FLOWS = (1, 100, 5_000)
NOTHING = "no traffic control"
EMPTY, MISS, FULL = "empty program", "datapath, unregistered", "datapath, mark + limit"
HTB_PRIORITY, HTB_U32 = "HTB by SO_PRIORITY", "HTB, a u32 filter per flow"
#: Seen from run to run, in either direction, within a run with narrow quartiles.
_PLACEMENT = (
    "Each way has its own sockets; where in memory they happen to lie makes up to 20 % of difference between runs with "
    "thousands of them, also for the empty program."
)
WAYS = (NOTHING, EMPTY, MISS, FULL, HTB_PRIORITY, HTB_U32)


def measure(session: Session) -> Result:
    """Datagrams per second with 1, 100 and 5,000 flows."""
    tables = []
    with ExitStack() as stack:
        library = stack.enter_context(senders())
        folder = stack.enter_context(bpf_folder())
        pair = stack.enter_context(Pair())
        session.tell("compiling")
        hooked = Hooked(folder, pair, stack, flows=max(_FLOWS))
        session.tell(f"making {len(WAYS) * max(_FLOWS):,} sockets")
        links = {way: pair.join() for way in WAYS}
        prepare: dict[str, Prepare] = {FULL: hooked.register, HTB_PRIORITY: _number}
        crowds = {way: pair.crowd(link, library, max(_FLOWS), prepare.get(way, _leave)) for way, link in links.items()}
        hooked.set_policies(limit=True, mark=True)
        hooked.attach(links[EMPTY], EMPTY_PROGRAM)
        hooked.attach(links[MISS], DATAPATH)
        kind = hooked.attach(links[FULL], DATAPATH).kind
        rounds = session.choose(7, 21)
        for flows in _FLOWS:
            session.tell(f"{flows:,} flows: placing classes and filters")
            place_htb(pair.near, links[HTB_PRIORITY], flows, ())
            place_htb(pair.near, links[HTB_U32], flows, crowds[HTB_U32].ports[:flows])
            samples: dict[str, list[float]] = {way: [] for way in WAYS}
            seconds = session.choose_s(0.15, 0.4)
            for number in range(rounds):
                session.tell(f"{flows:,} flows, round {number + 1} of {rounds}")
                # Another one begins in each round: what a way leaves in the caches falls to all in turn.
                for way in (*WAYS[number % len(WAYS) :], *WAYS[: number % len(WAYS)]):
                    samples[way].append(crowds[way].flood(flows, seconds) / seconds)
            tables.append(_table(flows, samples))
    return Result(
        "wire",
        "Datagrams per second",
        "One thread on one CPU sends datagrams of 64 bytes of payload over connected sockets, one per flow, chosen at "
        "random, through a veth pair; the receiver's buffer is full. Each way has a device and sockets of its own; "
        f"all take turns in every round ({rounds} rounds). Programs are attached by {kind}. *Mark + limit* has a rate "
        "that is never exceeded. HTB has one class per flow with a rate that is never reached, chosen by the socket's "
        "SO_PRIORITY or by one u32 filter per flow on its source port.",
        tuple(tables),
    )


def place_htb(namespace: Namespace, link: Link, classes: int, ports: Iterable[int]) -> None:
    """A fresh HTB with so many classes of 10 Gbit/s, and a u32 filter into each by its source port, if given."""
    on = f"dev {link.device}"
    lines = [f"qdisc replace {on} root handle 1: htb"]
    for minor in range(1, classes + 1):
        lines.append(f"class add {on} parent 1: classid 1:{minor:x} htb rate 10gbit quantum 60000")
    for minor, port in enumerate(ports, 1):
        match = f"u32 match ip sport {port} 0xffff"
        lines.append(f"filter add {on} parent 1: protocol ip prio 1 {match} flowid 1:{minor:x}")
    namespace.run("tc", "qdisc", "replace", "dev", link.device, "root", "pfifo")  # a changed HTB keeps its classes
    with tempfile.NamedTemporaryFile("w", prefix="qos2-bench-") as batch:
        batch.write("\n".join(lines) + "\n")
        batch.flush()
        namespace.run("tc", "-batch", batch.name, timeout=120)


def _leave(sockets: Sequence[socket.socket]) -> None:
    """These are as any application's."""


def _number(sockets: Sequence[socket.socket]) -> None:
    """Each chooses its own class, 1:1 and on."""
    for minor, sock in enumerate(sockets, 1):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PRIORITY, 1 << 16 | minor)


def _table(flows: int, samples: Mapping[str, list[float]]) -> Table:
    def added(way: str) -> list[float]:
        """ns per packet more than with nothing, round by round."""
        each, plain = ([1e9 / rate for rate in samples[name]] for name in (way, NOTHING))
        return over(each, plain)

    rows = []
    for way in WAYS:
        rate = spread([sample / 1000 for sample in samples[way]])
        ratio = spread(ratios(samples[way], samples[NOTHING]))
        rows.append((way, rate.text(), ratio.text(3), spread(added(way)).text(0)))
    title = f"{flows:,} flow{'s' * (flows > 1)}"
    notes = () if flows == 1 else (_PLACEMENT,)
    return Table(title, ("way", "1000 packets/s", "ratio to none", "added ns per packet"), tuple(rows), notes)
