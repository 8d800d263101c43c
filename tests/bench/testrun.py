"""Group `program`: ns per packet in test runs, without any device: the program alone, everything hot.

BPF_PROG_TEST_RUN repeats a program on one packet. Time is this thread's CPU time, so that other load on the
machine is mostly left out. Each call has a new dummy socket that has no TCP state: TCP's signals are part of
the real traffic of group `traffic`.
"""

import ctypes
import socket
import struct
import time
from collections.abc import Callable
from contextlib import ExitStack, closing

from bench.datapath import DSCP, Random, Tuple, load, set_policies, tuple_key
from bench.figures import Result, Spread, Table, Target, ratios, spread
from bench.session import SENDER_CPU, Session, bpf_folder, pinned
from harness.program import Program, SkBuff, run
from qos2.datapath import abi
from qos2.datapath.maps import Map
from qos2.datapath.ruleentries import behind_the_last
from qos2.datapath.ruleset import Ruleset

FLOWS = (1, 1_000, 65_536)


def packet(dscp: int) -> bytes:
    """An Ethernet frame with a UDP datagram of 64 bytes of payload."""
    payload = bytes(64)
    udp = struct.pack("!HHHH", 4000, 5004, 8 + len(payload), 0) + payload
    header = struct.pack(
        *("!BBHHHBBH4s4s", 0x45, dscp << 2, 20 + len(udp), 1, 0, 64, socket.IPPROTO_UDP, 0),
        *(socket.inet_aton("192.0.2.2"), socket.inet_aton("192.0.2.1")),
    )
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", total ^ 0xFFFF) + header[12:]
    return bytes.fromhex("020000000002020000000001") + b"\x08\x00" + header + udp


def ns_per_run(program_fd: int, frame: bytes, repeat: int) -> float:
    """Mean CPU time of one repetition."""
    begin = time.thread_time_ns()
    run(program_fd, frame, skb=SkBuff(), repeat=repeat)
    return (time.thread_time_ns() - begin) / repeat


class _Variant:
    """A program with the state it needs, and the program whose time is taken off."""

    def __init__(self, prepare: Callable[[], None], fd: int, base_fd: int) -> None:
        self.prepare = prepare
        self.fd = fd
        self.base_fd = base_fd
        self.samples: list[float] = []

    def measure(self, frame: bytes, repeat: int) -> None:
        """One round."""
        self.prepare()
        base = ns_per_run(self.base_fd, frame, repeat)
        self.samples.append(ns_per_run(self.fd, frame, repeat) - base)


def measure(session: Session) -> Result:
    """Hot, then spread over many flows, all variants of a table in turn."""
    with ExitStack() as stack:
        pins = stack.enter_context(bpf_folder())
        session.tell("compiling")
        program = stack.enter_context(closing(load(pins, max(FLOWS))))
        stack.enter_context(pinned(SENDER_CPU))
        return Result(
            "program",
            "The program alone",
            "`BPF_PROG_TEST_RUN` on one UDP datagram of 64 bytes of payload, CPU time of the calling thread over the "
            "number of repetitions, less the empty program in the same round. All variants take turns in every "
            "round. *mark + limit* has a rate that is never exceeded and notes the time of the last packet; TCP's "
            "signals need a real socket and are in the real traffic below.",
            *_tables(program, session),
        )


def _tables(program: Program, session: Session) -> tuple[tuple[Table, ...], tuple[Target, ...]]:
    with (
        closing(Map(program.pins / "bench_flows", Tuple, ctypes.c_uint64)) as keys,
        closing(Map(program.pins / "bench_random", ctypes.c_uint32, Random)) as random,
        closing(Ruleset(program.pins)) as ruleset,
    ):
        hot, targets = _hot(program, keys, session)
        policy_table, policy_targets = _policy(program, ruleset, session)
        spread_table, further = _spread(program, keys, random, session)
    return (hot, policy_table, spread_table), (*targets, *policy_targets, *further)


def _hot(program: Program, keys: Map, session: Session) -> tuple[Table, tuple[Target, ...]]:
    frame = packet(DSCP)
    keys.put(tuple_key(socket.IPPROTO_UDP, ("192.0.2.2", 4000), ("192.0.2.1", 5004)), ctypes.c_uint64(0))
    empty = program.load("bench_empty")

    def policy(*, limit: bool = False, mark: bool = False) -> Callable[[], None]:
        return lambda: set_policies(program.policy, 1, limit=limit, mark=mark)

    flow, flip, flip_only = (program.load(f"bench_{name}") for name in ("flow", "flip_flow", "flip_only"))
    variants = {
        "reference": _Variant(policy(), program.load("bench_reference"), empty),
        "miss": _Variant(policy(), program.fd["qos_fq"], empty),
        "hit: count": _Variant(policy(), flow, empty),
        "mark, already right": _Variant(policy(mark=True), flow, empty),
        "mark, changing each packet": _Variant(policy(mark=True), flip, flip_only),
        "mark + limit": _Variant(policy(limit=True, mark=True), flow, empty),
        "mark changing + limit": _Variant(policy(limit=True, mark=True), flip, flip_only),
    }
    rounds = session.choose(15, 41)
    empties = []
    for number in range(rounds):
        session.tell(f"one flow, round {number + 1} of {rounds}")
        empties.append(ns_per_run(empty, frame, 200_000))
        for variant in variants.values():
            variant.measure(frame, 200_000)
    reference = variants["reference"].samples
    rows = [
        (name, spread(variant.samples).text(), spread(ratios(variant.samples, reference)).text(2))
        for name, variant in variants.items()
    ]
    table = Table(
        "One flow, hot",
        ("program", "ns over the empty program", "ratio to the reference"),
        tuple(rows),
        (
            f"The empty program itself: {spread(empties).text()} ns, {rounds} rounds of 200,000 repetitions.",
            "A test run keeps what the program wrote, so *changing* flips the policy's DSCP before each packet; "
            "the cost of the flip is taken off.",
        ),
    )
    full = spread(variants["mark + limit"].samples).median
    return table, (
        Target("testrun-limit", "test run, mark + limit, over the empty program", 30, full, "ns", decimals=1),
    )


def rules(count: int) -> list[abi.Rule]:
    """So many, of which the last one is met by everything and gives flow 1."""
    found = []
    for number in range(1, count + 1):
        rule = behind_the_last()
        rule.flow_id, rule.bucket = 1, abi.Bucket.SHARED
        if number < count:
            rule.remote_port_first = rule.remote_port_last = number
        found.append(rule)
    return found


def us_to_decide(program_fd: int, frame: bytes) -> float:
    """Mean CPU time of the first packet of a socket, with the system call of the test run."""
    begin = time.thread_time_ns()
    for _ in range(200):
        run(program_fd, frame, skb=SkBuff())  # each has a socket of its own
    return (time.thread_time_ns() - begin) / 200_000


def _policy(program: Program, ruleset: Ruleset, session: Session) -> tuple[Table, tuple[Target, ...]]:
    """Unregistered sockets under rules: what was decided is kept, so that their number does not count."""
    frame, empty, fq = packet(DSCP), program.load("bench_empty"), program.fd["qos_fq"]

    def installed(count: int, flag: int) -> Callable[[], None]:
        def prepare() -> None:
            set_policies(program.policy, 1, mark=True)
            ruleset.install(rules(count), abi.RulesetFlag(flag))

        return prepare

    variants = {
        f"{name}, {how}": _Variant(installed(count, flag), fq, empty)
        for how, flag in (("by socket", 0), ("by destination", int(abi.RulesetFlag.PEERS)))
        for name, count in (("1 rule", 1), ("1,000 rules", 1_000))
    }
    variants["no rules"] = _Variant(installed(0, 0), fq, empty)
    deciding: dict[int, list[float]] = {0: [], 1: [], 1_000: [], 4_096: []}
    rounds = session.choose(15, 41)
    for number in range(rounds):
        session.tell(f"rules, round {number + 1} of {rounds}")
        for variant in variants.values():
            variant.measure(frame, 200_000)
        for count, samples in deciding.items():
            installed(count, 0)()
            samples.append(us_to_decide(fq, frame))
    installed(0, 0)()
    table = Table(
        "Sockets that nobody registered, under rules",
        ("rules", "ns over the empty program"),
        tuple((name, spread(variant.samples).text()) for name, variant in variants.items()),
        (
            "The rule that is met is the last one, and marks. What it says is kept by socket, or by destination where "
            "some rule looks at one.",
            "The first packet of a socket goes through the rules: "
            + ", ".join(
                f"{spread([a - b for a, b in zip(samples, deciding[0], strict=True)]).text()} us with {count:,}"
                for count, samples in deciding.items()
                if count
            )
            + ".",
        ),
    )
    one, many = variants["1 rule, by socket"].samples, variants["1,000 rules, by socket"].samples
    claim = "test run, decided sockets, 1,000 rules: ratio to one rule"
    return table, (Target("testrun-rules", claim, 1.15, spread(ratios(many, one)).median),)


def _spread(program: Program, keys: Map, random: Map, session: Session) -> tuple[Table, tuple[Target, ...]]:
    frame = packet(DSCP)
    _fill_keys(keys, session)
    flow, flow_base = program.load("bench_spread_flow"), program.load("bench_spread_only")
    tuples, tuples_base = program.load("bench_tuples_reference"), program.load("bench_tuples_only")

    def policy(flows: int, *, limit: bool = False, mark: bool = False) -> Callable[[], None]:
        def prepare() -> None:
            random.put(ctypes.c_uint32(0), Random(1, flows))
            set_policies(program.policy, flows, limit=limit, mark=mark)

        return prepare

    kinds: dict[str, Callable[[int], _Variant]] = {
        "reference": lambda n: _Variant(policy(n), tuples, tuples_base),
        "hit: count": lambda n: _Variant(policy(n), flow, flow_base),
        "mark, already right": lambda n: _Variant(policy(n, mark=True), flow, flow_base),
        "mark + limit": lambda n: _Variant(policy(n, limit=True, mark=True), flow, flow_base),
    }
    variants = {(kind, flows): make(flows) for kind, make in kinds.items() for flows in FLOWS}
    rounds = session.choose(9, 25)
    for number in range(rounds):
        session.tell(f"many flows, round {number + 1} of {rounds}")
        for variant in variants.values():
            variant.measure(frame, 300_000)
    medians: dict[tuple[str, int], Spread] = {key: spread(variant.samples) for key, variant in variants.items()}
    rows = []
    for kind in kinds:
        cells = []
        for flows in FLOWS:
            reference = variants["reference", flows].samples
            ratio = spread(ratios(variants[kind, flows].samples, reference)).text(2).split(" ")[0]
            cells.append(f"{medians[kind, flows].text()} ({ratio})")
        rows.append((kind, *cells))
    growth = ratios(variants["mark + limit", FLOWS[-1]].samples, variants["mark + limit", FLOWS[0]].samples)
    table = Table(
        "Each packet of another flow, chosen at random: ns over the empty program (ratio to the reference)",
        ("program", "1 flow", *(f"{flows:,} flows" for flows in FLOWS[1:])),
        tuple(rows),
        (
            f"{rounds} rounds of 300,000 repetitions, less a program that chooses the flow and does nothing with "
            "it. Each choice depends on the last result, so that repetitions cannot overlap in the processor.",
            "There is one socket, whose storage stays hot; many sockets are in the real traffic below.",
        ),
    )
    claim = f"test run, mark + limit, {FLOWS[-1]:,} flows: ratio to one flow"
    return table, (Target("testrun-flows", claim, 1.8, spread(growth).median),)


def _fill_keys(keys: Map, session: Session) -> None:
    session.tell(f"{max(FLOWS):,} keys for the reference")
    key = tuple_key(socket.IPPROTO_UDP, ("0.0.0.0", 4000), ("192.0.2.1", 5004))
    for index in range(max(FLOWS)):
        key.saddr = index
        keys.put(key, ctypes.c_uint64(0))
