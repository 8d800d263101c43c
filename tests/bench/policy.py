"""Group `policy`: how long a thousand rules take to come into force, and what they cost packets that they are about.

The real daemon reads files and puts them into force as `qos2 reload` asks; what a packet costs is the kernel's own
count of the daemon's program, as in group `traffic`, for one socket that nobody registered.
"""

import ctypes
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import qos2
from bench.figures import Result, Table, Target, ratios, spread
from bench.pair import sent
from bench.session import SENDER_CPU, Session, pinned, senders
from bench.traffic import counting, run_time
from demo.lab import Lab, LabError
from demo.processes import Daemon, Sink
from qos2.datapath.loader import CLASSIFIERS
from qos2.datapath.maps import open_pin

_RULES = 1_000
_LOAD_MS = 200.0
#: Of the cost with one rule, per round: what differs less is no change.
_SAME = 1.05
_PORT = 5004
_BYTES = 64
#: Old flows end a second after a reload; none is measured while they do.
_SETTLED_S = 1.5


def by_user(number: int, of: int) -> str:
    """A rule that looks at the socket alone; the last of `of` is that of root, who sends."""
    return f"match.user = {0 if number == of else 100_000 + number}\nact.dscp = 34\n"


def by_port(number: int, of: int) -> str:
    """A rule that looks at the connection."""
    return f"match.remote_port = {_PORT if number == of else 10_000 + number}\nact.dscp = 34\n"


def with_rate(number: int, of: int) -> str:
    """As by_port(), with a contract each."""
    return by_port(number, of) + 'act.rate = "100M"\n'


KINDS: dict[str, Callable[[int, int], str]] = {"of the socket": by_user, "of the connection": by_port}


def text(rule: Callable[[int, int], str], count: int, names: str) -> str:
    """A file of rules. Of equal precedence and kind, they are gone through as they stand."""
    return "".join(f'[[rule]]\nname = "{names} {number}"\n{rule(number, count)}\n' for number in range(1, count + 1))


@dataclass(slots=True)
class _Policed:
    """The daemon, and the one socket that sends."""

    daemon: Daemon
    qos: qos2.Handle
    programs: list[int]
    library: ctypes.CDLL
    sock: socket.socket
    costs: dict[tuple[str, int], list[float]] = field(default_factory=dict)

    def load_ms(self, rules: str) -> float:
        """How long a client waits for these rules to be in force."""
        (self.daemon.policy / "bench.toml").write_text(rules)
        begin_s = time.perf_counter()
        self.qos.reload()
        took_ms = (time.perf_counter() - begin_s) * 1e3
        time.sleep(_SETTLED_S)
        return took_ms

    def cost_ns(self, seconds: float) -> float:
        """Of a packet whose rule is decided, by the only program that runs."""
        for _ in range(3):
            self.sock.send(bytes(_BYTES))
        before = [run_time(program) for program in self.programs]
        descriptors = (ctypes.c_int * 1)(self.sock.fileno())
        with pinned(SENDER_CPU):
            sent(self.library.udp_flood(descriptors, 1, _BYTES, seconds))
        after = [run_time(program) for program in self.programs]
        grown = [(now[0] - then[0], now[1] - then[1]) for now, then in zip(after, before, strict=True)]
        ns, runs = max(grown, key=lambda each: each[1])
        if not runs:
            raise LabError("no packet met the program")
        return ns / runs


def measure(session: Session) -> Result:
    """Loads of all-new and of unchanged rules, then none, one and a thousand in turn under a flood."""
    loads: dict[str, list[float]] = {"marks": [], "marks, unchanged": [], "marks and rates": []}
    with ExitStack() as stack:
        lab = stack.enter_context(Lab("qos2-bench"))
        session.tell("starting the daemon")
        daemon = stack.enter_context(Daemon(lab.app, probing=False))
        stack.enter_context(Sink(lab.peer, [], [_PORT]))
        qos = stack.enter_context(qos2.Handle(daemon.socket))
        sock = stack.enter_context(lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM))
        sock.connect((lab.peer.ipv4[0], _PORT))
        programs = [open_pin(pin) for pin in sorted(daemon.pins.glob("programs-*/qos_*")) if pin.name in CLASSIFIERS]
        for program in programs:
            stack.callback(os.close, program)
        policed = _Policed(daemon, qos, programs, stack.enter_context(senders()), sock)
        rounds = session.choose(3, 5)
        for number in range(rounds):
            session.tell(f"loading, round {number + 1} of {rounds}")
            anew = text(by_port, _RULES, f"marks {number}")
            loads["marks"].append(policed.load_ms(anew))
            loads["marks, unchanged"].append(policed.load_ms(anew))
            loads["marks and rates"].append(policed.load_ms(text(with_rate, _RULES, f"rates {number}")))
        rounds = session.choose(5, 11)
        with counting():
            for number in range(rounds):
                session.tell(f"packets, round {number + 1} of {rounds}")
                for kind, rule in KINDS.items():
                    for count in (0, 1, _RULES):
                        policed.load_ms(text(rule, count, kind))
                        cost_ns = policed.cost_ns(session.choose_s(0.2, 0.3))
                        policed.costs.setdefault((kind, count), []).append(cost_ns)
        (device,) = qos.status().datapath["devices"]
    return Result(
        "policy",
        "Rules",
        f"The real daemon. *Loading* is what `qos2 reload` waits for, files of {_RULES:,} rules included; each load "
        "but the unchanged one replaces all rules. *Packets* are datagrams of one socket that nobody registered; the "
        "last rule is theirs, and was decided before. By the kernel's own count, of a device shaped by "
        f"{device['shaper']}.",
        (
            Table(
                f"Loading {_RULES:,} rules",
                ("rules with", "ms until they are in force"),
                tuple((name, spread(samples).text(0)) for name, samples in loads.items()),
            ),
            Table(
                "ns per packet whose rule is decided",
                ("rules look at what is", "no rules", "1 rule", f"{_RULES:,} rules", "ratio of the last two"),
                tuple(_row(kind, policed.costs) for kind in KINDS),
                (f"{rounds} rounds.",),
            ),
        ),
        (
            *(_load_target(name, samples) for name, samples in loads.items()),
            *(_cost_target(kind, policed.costs) for kind in KINDS),
        ),
    )


def _load_target(name: str, samples: list[float]) -> Target:
    key, claim = f"policy-load-{name.replace(' ', '-')}", f"{_RULES:,} rules with {name} come into force"
    return Target(key, claim, _LOAD_MS, spread(samples).median, "ms", decimals=0)


def _cost_target(kind: str, costs: dict[tuple[str, int], list[float]]) -> Target:
    claim = f"a packet under {_RULES:,} rules that look at what is {kind}, to one under 1"
    return Target(f"policy-{kind.split()[-1]}", claim, _SAME, _ratio(kind, costs))


def _ratio(kind: str, costs: dict[tuple[str, int], list[float]]) -> float:
    return spread(ratios(costs[kind, _RULES], costs[kind, 1])).median


def _row(kind: str, costs: dict[tuple[str, int], list[float]]) -> tuple[str, ...]:
    figures = (spread(costs[kind, count]).text() for count in (0, 1, _RULES))
    return (kind, *figures, f"{_ratio(kind, costs):.2f}")
