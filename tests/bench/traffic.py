"""Group `traffic`: ns per packet of the program on a real device, with real sockets, by the kernel's own count.

The kernel adds up run time and runs of each program while it is asked to (BPF_ENABLE_STATS). The program at
the hook is replaced for each measurement; sockets, device and sender stay.
"""

import ctypes
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.crowd import most_sockets
from bench.datapath import DSCP
from bench.figures import Result, Table, Target, over, ratios, spread
from bench.hooked import DATAPATH, EMPTY_PROGRAM, REFERENCE_PROGRAM, Hooked
from bench.pair import Link, Pair, sent
from bench.session import SENDER_CPU, Session, bpf_folder, pinned, senders
from demo.lab import LabError
from qos2.datapath import hook
from qos2.datapath.maps import LIBBPF

_MANY = (1, 1_000, 19_000)
_BULK_BYTES = 1 << 17


@dataclass(frozen=True, slots=True)
class Variant:
    """A program at the hook, the policy of all flows, and whether the sending sockets are registered."""

    program: str
    registered: bool = False
    limit: bool = False
    mark: bool = False
    dscp: int = DSCP


VARIANTS = {
    "empty program": Variant(EMPTY_PROGRAM),
    "reference": Variant(REFERENCE_PROGRAM),
    "miss (unregistered)": Variant(DATAPATH),
    "hit: count": Variant(DATAPATH, registered=True),
    "mark, preset right": Variant(DATAPATH, registered=True, mark=True),
    "mark, preset wrong": Variant(DATAPATH, registered=True, mark=True, dscp=DSCP ^ 8),
    "mark + limit, preset right": Variant(DATAPATH, registered=True, mark=True, limit=True),
}
EMPTY, REFERENCE, MISS, *_, FULL = VARIANTS


@dataclass(frozen=True, slots=True)
class Load:
    """Traffic of one kind: `send(registered, seconds)` makes it."""

    key: str
    title: str
    send: Callable[[bool, float], object]
    samples: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in VARIANTS})


@contextmanager
def counting() -> Iterator[None]:
    """The kernel counts the runs of every program and their time for the block."""
    descriptor = LIBBPF.bpf_enable_stats(0)
    if descriptor < 0:
        raise LabError(f"BPF_ENABLE_STATS: {os.strerror(ctypes.get_errno())}")
    try:
        yield
    finally:
        os.close(descriptor)


def run_time(program_fd: int) -> tuple[int, int]:
    """(ns, runs) of a program since it was loaded."""
    lines = Path(f"/proc/self/fdinfo/{program_fd}").read_text().splitlines()
    facts = dict(line.split(":", 1) for line in lines)
    return int(facts["run_time_ns"]), int(facts["run_cnt"])


class Subject:
    """The device under test: whatever program a variant asks for is put at its hook."""

    def __init__(self, hooked: Hooked, attached: hook.Hook) -> None:
        self._hooked = hooked
        self._hook = attached

    def measure(self, variant: Variant, send: Callable[[bool, float], object], seconds: float) -> float:
        """Mean ns per run of the program while `send` sends."""
        self._hooked.set_policies(limit=variant.limit, mark=variant.mark, dscp=variant.dscp)
        descriptor = self._hooked.fd[variant.program]
        hook.replace(self._hook, descriptor)
        before_ns, before = run_time(descriptor)
        send(variant.registered, seconds)
        ns, runs = run_time(descriptor)
        if runs == before:
            raise LabError("no packet met the program")
        return (ns - before_ns) / (runs - before)


def measure(session: Session) -> Result:
    """UDP with one and many sockets, TCP with small and large writes; every program in turn."""
    with ExitStack() as stack:
        library = stack.enter_context(senders())
        folder = stack.enter_context(bpf_folder())
        pair = stack.enter_context(Pair())
        session.tell("compiling")
        many = _MANY[:2] if session.quick else (*_MANY[:2], min(_MANY[2], most_sockets()))
        hooked = Hooked(folder, pair, stack, flows=many[-1] + 1)
        link = pair.join()
        attached = hooked.attach(link, EMPTY_PROGRAM)
        subject = Subject(hooked, attached)
        session.tell(f"making {2 * many[-1]:,} sockets")
        loads = _loads(hooked, pair, link, library, many)
        stack.enter_context(pinned(SENDER_CPU))
        rounds = session.choose(7, 15)
        with counting():
            for number in range(rounds):
                session.tell(f"round {number + 1} of {rounds}")
                for load_of in loads:
                    for name, variant in VARIANTS.items():
                        ns = subject.measure(variant, load_of.send, session.choose_s(0.12, 0.25))
                        load_of.samples[name].append(ns)
        return Result(
            "traffic",
            "The program in real traffic",
            f"Real sockets send over a veth pair; the program is attached by {attached.kind}. The kernel's own "
            "`run_time_ns / run_cnt` (`BPF_ENABLE_STATS`), less the empty program in the same round. All programs take "
            "turns on each kind of traffic in every round. *Preset right*: the socket's IP_TOS is what the flow "
            "asks for, as the daemon leaves it; *wrong*: every packet is rewritten. The reference finds its key.",
            _tables(loads, rounds),
            _targets(loads),
        )


def _loads(hooked: Hooked, pair: Pair, link: Link, library: ctypes.CDLL, many: Sequence[int]) -> list[Load]:
    # The first sockets get the memory that others gave back, scattered, and may be slower for it: not measured.
    pair.crowd(pair.join(), library, many[-1], lambda _: None)
    strange = pair.crowd(link, library, many[-1], hooked.know)
    known = pair.crowd(link, library, many[-1], hooked.register)
    streams = {registered: pair.stream(link, library).near for registered in (False, True)}
    hooked.register([streams[True]], first=many[-1] + 1)
    hooked.know([streams[False]])

    def datagrams(count: int) -> Callable[[bool, float], object]:
        return lambda registered, seconds: (known if registered else strange).flood(count, seconds)

    def writes(size: int) -> Callable[[bool, float], object]:
        return lambda registered, seconds: sent(library.write_flood(streams[registered].fileno(), size, seconds))

    return [
        *(Load(f"udp-{count}", f"UDP 64 B, {count:,} socket{'s' * (count > 1)}", datagrams(count)) for count in many),
        Load("tcp-small", "TCP, writes of 100 B", writes(100)),
        Load("tcp-bulk", "TCP bulk", writes(_BULK_BYTES)),
    ]


def _net(load: Load, name: str) -> list[float]:
    return over(load.samples[name], load.samples[EMPTY])


def _ratios(load: Load, name: str) -> list[float]:
    return ratios(_net(load, name), _net(load, REFERENCE))


def _tables(loads: Sequence[Load], rounds: int) -> tuple[Table, ...]:
    columns = ("program", *(load.title for load in loads))
    names = [name for name in VARIANTS if name != EMPTY]
    costs = tuple((name, *(spread(_net(load, name)).text() for load in loads)) for name in names)
    shares = tuple((name, *(spread(_ratios(load, name)).text(2) for load in loads)) for name in names)
    empty = ", ".join(f"{load.title}: {spread(load.samples[EMPTY]).text()}" for load in loads)
    return (
        Table(
            "ns per packet (per skb) over the empty program",
            columns,
            costs,
            (f"{rounds} rounds. The empty program, with what the kernel's counting costs: {empty} ns.",),
        ),
        Table("The same as a ratio to the reference", columns, shares),
    )


def _targets(loads: Sequence[Load]) -> tuple[Target, ...]:
    by_key = {load.key: load for load in loads}
    targets = []
    for key, limit in (("udp-1", 1.3), ("tcp-small", 1.0), ("tcp-bulk", 1.0)):
        title = by_key[key].title
        full, miss = (spread(_ratios(by_key[key], name)).median for name in (FULL, MISS))
        targets.append(
            Target(f"traffic-full-{key}", f"{title}: mark + limit + count + signals, to the reference", limit, full)
        )
        targets.append(Target(f"traffic-miss-{key}", f"{title}: unregistered, to the reference", 0.7, miss))
    return tuple(targets)
