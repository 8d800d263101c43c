"""Of group `paths`: the ways on which estimates are judged: bottlenecks of each kind, on the link and beyond it.

    app --- router (routes 198.51.100.0/24; hands on frames of 203.0.113.0/24 as a wire would) --- bottleneck --- peer

Both ways share the bottleneck and its cross traffic. Of each prefix the peer has the upper half of the addresses, so
that every measurement can be of a host that nobody has asked about before; a reflector answers at those from 192 on.
"""

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum

from bench.rate import Counters
from demo.lab import LabError
from demo.processes import environment
from harness.congested import OTHER_PEER, PACKET_BYTES, CongestedLab

MBITS = (5, 20, 50, 100)
LOADS = (0.0, 0.5)
_ROUTED, _LINKED = "198.51.100", "203.0.113"
_SILENT, _REFLECTING = 128, 192
#: Hosts of each kind on either way.
HOSTS = 62
_QUEUE_S = 0.1
#: As CongestedLab: two packets.
_BURST_BYTES = 3000
_POLICER_S = 0.01
_LINK_BYTES = 14


class Shaper(StrEnum):
    """What limits the way, tc-tbf(8), tc-htb(8), tc-police(8)."""

    TBF = "TBF"
    HTB = "HTB"
    POLICER = "policer"


@dataclass(frozen=True, slots=True)
class Cell:
    """A bottleneck of `mbit` Mbit/s of link layer; others send so much of it; the peer is so many hops away."""

    mbit: int
    load: float
    shaper: Shaper
    hops: int

    @property
    def name(self) -> str:
        """As a row of a table begins."""
        return f"{self.mbit} Mbit/s, {self.load:.0%} load, {self.shaper}, {self.hops} hop{'s' * (self.hops > 1)}"


def cells(quick: bool, policer: bool) -> list[Cell]:
    """The whole grid; `quick`: every capacity once, with each other value twice."""
    shapers = [shaper for shaper in Shaper if policer or shaper is not Shaper.POLICER]
    if not quick:
        return [Cell(mbit, load, each, hops) for mbit in MBITS for each in shapers for load in LOADS for hops in (1, 2)]
    return [
        Cell(mbit, LOADS[number // 2 % 2], shapers[number % len(shapers)], 1 + (number + number // 2) % 2)
        for number, mbit in enumerate(MBITS)
    ]


class Ways:
    """The lab's router and peer, made ready for the grid; `close` with the lab."""

    def __init__(self, lab: CongestedLab) -> None:
        self._lab = lab
        self._used: Counter[str] = Counter()  #: addresses, by what they begin with and whether a reflector answers
        app, router, peer = lab.lab.app, lab.lab.router, lab.lab.peer
        # Single packets on the wire, as from a network card: HTB would let 64 KB of an skb pass at once.
        app.run("ethtool", "-K", app.device, "tso", "off", "tx-udp-segmentation", "off")
        app.run("ip", "address", "add", f"{_LINKED}.2/24", "dev", app.device)
        peer.run("ip", "address", "add", f"{_LINKED}.1/24", "dev", peer.device)
        for prefix in (_ROUTED, _LINKED):
            peer.run("ip", "route", "add", "local", f"{prefix}.{_SILENT}/25", "dev", "lo")
        for near, far in (("to-app", router.device), (router.device, "to-app")):
            router.run("tc", "qdisc", "add", "dev", near, "clsact")
            hand_on = ("action", "mirred", "egress", "redirect", "dev", far)
            on = ("tc", "filter", "add", "dev", near, "ingress", "protocol")
            router.run(*on, "ip", "prio", "1", "u32", "match", "ip", "dst", f"{_LINKED}.0/24", *hand_on)
            # The address asked for is at byte 24 of an ARP packet for IPv4 over Ethernet (RFC 826).
            asked = f"0x{socket.inet_aton(f'{_LINKED}.0').hex()}"
            router.run(*on, "arp", "prio", "2", "u32", "match", "u32", asked, "0xffffff00", "at", "24", *hand_on)
        self._reflect()
        self.arrived = Counters(lab.lab.peer)  #: bytes at IP level, whoever sent them

    def _reflect(self) -> None:
        listen = [f"{prefix}.{_REFLECTING + n}" for prefix in (_ROUTED, _LINKED) for n in range(HOSTS)]
        process = self._lab.lab.peer.popen(
            *(sys.executable, "-m", "qos2.cli", "reflector", "--rate", "100000"),
            *(argument for prefix in ("192.0.2.0/24", f"{_LINKED}.0/24") for argument in ("--allow", prefix)),
            *(argument for address in listen for argument in ("--listen", address)),
            stdout=subprocess.PIPE,
            env=environment(),
        )
        assert process.stdout is not None
        if not process.stdout.readline().startswith(b"reflecting"):
            raise LabError("the reflector did not start")

    def close(self) -> None:
        self.arrived.close()

    def peer(self, hops: int, *, reflecting: bool) -> str:
        """An address of the peer that was not used before. Raises LabError when all were."""
        prefix, first = _LINKED if hops == 1 else _ROUTED, _REFLECTING if reflecting else _SILENT
        number = self._used[f"{prefix}.{first}"]
        if number == HOSTS:
            raise LabError("no more addresses of the peer that nobody has asked about")
        self._used[f"{prefix}.{first}"] += 1
        return f"{prefix}.{first + number}"

    def limit(self, shaper: Shaper, mbit: int) -> float:
        """From now on the way is limited so; bits/s at IP level. Raises LabError where the kernel has no such thing."""
        router = self._lab.lab.router
        on, rate = ("dev", router.device), f"{mbit}mbit"
        with suppress(LabError):  # there is none
            router.run("tc", "filter", "del", *on, "egress")
        if shaper is Shaper.TBF:
            return self._lab.bottleneck(mbit * 1e6, _QUEUE_S * 1e3)
        router.run("tc", "qdisc", "replace", *on, "root", "pfifo")  # a changed HTB keeps its classes
        if shaper is Shaper.HTB:
            burst = str(_BURST_BYTES)
            router.run("tc", "qdisc", "replace", *on, "root", "handle", "1:", "htb", "default", "1")
            contract = ("rate", rate, "burst", burst, "cburst", burst, "quantum", "1514")
            router.run("tc", "class", "add", *on, "parent", "1:", "classid", "1:1", "htb", *contract)
            queue = ("bfifo", "limit", f"{mbit * 1e6 / 8 * _QUEUE_S:.0f}")
            router.run("tc", "qdisc", "add", *on, "parent", "1:1", *queue)
        else:
            burst = f"{max(10 * _BURST_BYTES, mbit * 1e6 / 8 * _POLICER_S):.0f}"
            every = ("egress", "protocol", "all", "prio", "1", "u32", "match", "u32", "0", "0")
            router.run("tc", "filter", "add", *on, *every, "police", "rate", rate, "burst", burst, "drop")
        return mbit * 1e6 * PACKET_BYTES / (PACKET_BYTES + _LINK_BYTES)

    @contextmanager
    def loaded(self, rate: float) -> Iterator["Others"]:
        """Others send so many bits/s at IP level over the bottleneck for the block; 0: nobody."""
        with self._lab.lab.peer.socket(socket.AF_INET, socket.SOCK_DGRAM) as sink:
            sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the least there is: the rest are drops, counted
            sink.bind((OTHER_PEER, 0))
            with self._lab.lab.app.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect(sink.getsockname())
                others = Others(self._lab, sink.getsockname()[1])
                try:
                    if not rate:
                        yield others
                        return
                    with self._lab.sending(sock, rate) as flood:
                        flood.begin()
                        time.sleep(0.3)
                        yield others
                finally:
                    others.close()


class Others:
    """What the cross traffic has brought to the peer, by the drops of its socket there, which nobody reads."""

    def __init__(self, lab: CongestedLab, port: int) -> None:
        self._local = f"{int.from_bytes(socket.inet_aton(OTHER_PEER), sys.byteorder):08X}:{port:04X}"
        with lab.lab.peer.entered():
            # Opened in there, it speaks of that namespace for ever.
            self._sockets = open("/proc/thread-self/net/udp")  # noqa: SIM115  until `close`

    def bytes(self) -> int:
        """At IP level, since some time. Raises LabError."""
        self._sockets.seek(0)
        for line in self._sockets:
            fields = line.split()
            if fields[1] == self._local:
                return int(fields[-1]) * PACKET_BYTES
        raise LabError("the sink of the cross traffic is gone")

    def close(self) -> None:
        self._sockets.close()
