"""Group `traffic`: ns per packet of the program on a real device, with real sockets, by the kernel's own count.

The kernel adds up run time and runs of each program while it is asked to (BPF_ENABLE_STATS). The program at
the hook is replaced for each measurement; sockets, device and sender stay.
"""

import ctypes
import os
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.datapath import DSCP, Tuple, load, set_policies, tuple_key
from bench.figures import Result, Table, Target, over, ratios, spread
from bench.pair import Pair, Sockets, sent
from bench.session import SENDER_CPU, Session, bpf_folder, pinned, senders
from demo.lab import LabError
from harness.program import Program
from qos2.datapath import abi, hook
from qos2.datapath.links import Namespace
from qos2.datapath.maps import LIBBPF, Map

_MANY = (1, 1_000, 20_000)
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
    "empty program": Variant("bench_empty"),
    "reference": Variant("bench_reference"),
    "miss (unregistered)": Variant("qos_fq"),
    "hit: count": Variant("qos_fq", registered=True),
    "mark, preset right": Variant("qos_fq", registered=True, mark=True),
    "mark, preset wrong": Variant("qos_fq", registered=True, mark=True, dscp=DSCP ^ 8),
    "mark + limit, preset right": Variant("qos_fq", registered=True, mark=True, limit=True),
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


class Bench:
    """The device under test, its hook, and the maps of the datapath."""

    def __init__(self, folder: Path, pair: Pair, stack: ExitStack, flows: int) -> None:
        self.program: Program = stack.enter_context(closing(load(folder, flows)))
        self._keys = stack.enter_context(closing(Map(self.program.pins / "bench_flows", Tuple, ctypes.c_uint64)))
        self._sockets = stack.enter_context(closing(Map(self.program.pins / "sockets", ctypes.c_int, abi.SocketFlow)))
        self.link = pair.join()
        self._flows = 0
        self._fds = {name: self.program.load(name) for name in ("bench_empty", "bench_reference")}
        self._fds["qos_fq"] = self.program.fd["qos_fq"]
        with open(pair.near.path) as descriptor:
            namespace = stack.enter_context(closing(Namespace(descriptor.fileno())))
        index = next(device.index for device in namespace.devices() if device.name == self.link.device)
        self._hook = hook.attach(namespace, index, self._fds["bench_empty"], folder / "link")
        stack.callback(hook.detach, self._hook)

    @property
    def hook_kind(self) -> str:
        return self._hook.kind

    def register(self, sockets: Sequence[socket.socket]) -> None:
        """A flow for each, and the DSCP preset as the daemon would."""
        for sock in sockets:
            self._flows += 1
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, DSCP << 2)
            self._sockets.put(ctypes.c_int(sock.fileno()), abi.SocketFlow(flow_id=self._flows))

    def know(self, sockets: Sequence[socket.socket]) -> None:
        """A key of the reference program for each."""
        for sock in sockets:
            protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
            key = tuple_key(protocol, sock.getsockname(), sock.getpeername())
            self._keys.put(key, ctypes.c_uint64(0))

    def measure(self, variant: Variant, send: Callable[[bool, float], object], seconds: float) -> float:
        """Mean ns per run of the program while `send` sends."""
        set_policies(self.program.policy, self._flows, limit=variant.limit, mark=variant.mark, dscp=variant.dscp)
        descriptor = self._fds[variant.program]
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
        many = _MANY[:2] if session.quick else _MANY
        bench = Bench(folder, pair, stack, flows=many[-1] + 1)
        session.tell(f"making {2 * many[-1]:,} sockets")
        loads = _loads(bench, pair, library, many)
        stack.enter_context(pinned(SENDER_CPU))
        rounds = session.choose(7, 15)
        with counting():
            for number in range(rounds):
                session.tell(f"round {number + 1} of {rounds}")
                for load_of in loads:
                    for name, variant in VARIANTS.items():
                        ns = bench.measure(variant, load_of.send, session.choose_s(0.12, 0.25))
                        load_of.samples[name].append(ns)
        return Result(
            "traffic",
            "The program in real traffic",
            f"Real sockets send over a veth pair; the program is attached by {bench.hook_kind}. The kernel's own "
            "`run_time_ns / run_cnt` (`BPF_ENABLE_STATS`), less the empty program in the same round. All programs take "
            "turns on each kind of traffic in every round. *Preset right*: the socket's IP_TOS is what the flow "
            "asks for, as the daemon leaves it; *wrong*: every packet is rewritten. The reference finds its key.",
            _tables(loads, rounds),
            _targets(loads),
        )


def _loads(bench: Bench, pair: Pair, library: ctypes.CDLL, many: Sequence[int]) -> list[Load]:
    strange, known = (pair.datagram_sockets(bench.link, many[-1]) for _ in range(2))
    streams = {registered: pair.stream(bench.link, library).near for registered in (False, True)}
    bench.register(known.all)
    bench.register([streams[True]])
    bench.know(strange.all)
    bench.know([streams[False]])

    def datagrams(count: int) -> Callable[[bool, float], object]:
        def send(registered: bool, seconds: float) -> object:
            sockets: Sockets = known if registered else strange
            return sockets.flood(library, count, seconds)

        return send

    def writes(size: int) -> Callable[[bool, float], object]:
        return lambda registered, seconds: sent(
            library.stream_flood(streams[registered].fileno(), size, seconds)
        )

    return [
        *(
            Load(f"udp-{count}", f"UDP 64 B, {count:,} socket{'s' * (count > 1)}", datagrams(count))
            for count in many
        ),
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
