"""The end-to-end test between two machines: `qos2-e2e`, which is `python -m vagrant.e2e --to RECEIVER`, on the sender.

Four programs' worth of traffic leaves this machine: a UDP and a TCP flow that qos2d marks and holds back, and one of
each that nobody registered. The judge is a capture on the receiver (receiver.py). One line per claim, PASS or FAIL;
exit status 0 where all hold, 1 where one does not, 2 where the test could not run. No root is needed, but for ethtool.
"""

import argparse
import fcntl
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import qos2
from demo.packets import TCP, UDP, CaptureError, Packets, parse_pcap, rate
from demo.verdict import Finding
from vagrant.receiver import CONTROL_PORT, PATIENCE_S

#: How far a rate may be from its contract. Measured between emulated machines whose host was busy with other things:
#: 0.35 % at most (docs/vagrant.md). The rest is for hosts that are busier, which hold a machine up for some 0.1 s.
RATE_TOLERANCE = 0.05

_MTU_BYTES = 1500
_SETTLE_S = 2.0
_MIN_SECONDS = 4.0
_TICK_S = 0.2  # how soon a sender notices that it shall stop
_DAEMON_S = 300.0  # the datapath is compiled at boot: a minute on an emulated processor
_DISCARD_PORT = 9
_S = 1_000_000_000


class EndToEndError(Exception):
    """The test could not run; the message says why."""


@dataclass(frozen=True, slots=True)
class Flow:
    """What is sent, and so what must arrive."""

    name: str
    protocol: int
    port: int
    dscp: int  #: of its traffic type; of an unregistered flow, the one that its program sets itself
    traffic_type: qos2.TrafficType | None = None
    contract: int = 0  #: bits/s at IP level; 0: unregistered
    payload: int = 1 << 16  #: bytes per write
    per_second: int = 0  #: writes per second; 0: as much as the socket takes

    @property
    def offered(self) -> int:
        """Bits/s of payload of a paced flow."""
        return self.payload * 8 * self.per_second


#: The unregistered ones send more than the contracts allow: nothing but being registered may hold packets back.
FLOWS = (
    Flow("udp", UDP, 7101, dscp=56, traffic_type=qos2.TrafficType.VOICE, contract=2_000_000, payload=1200),
    Flow("tcp", TCP, 7102, dscp=40, traffic_type=qos2.TrafficType.AUDIO_VIDEO, contract=5_000_000),
    Flow("other udp", UDP, 7103, dscp=10, payload=1200, per_second=300),
    Flow("other tcp", TCP, 7104, dscp=0, payload=7500, per_second=100),
)


@dataclass(frozen=True, slots=True)
class Interval:
    """Begin and end of the measurement, by the clock of the capture (ns)."""

    begin_ns: int
    end_ns: int


def judge(flow: Flow, seen: Packets, during: Interval, sent_bytes: int) -> list[Finding]:
    """One finding per claim about what the receiver captured of a flow; `sent_bytes` are those of its program."""
    count = len(seen)
    if count == 0:
        return [Finding(False, "nothing arrived")]
    dscps = seen.dscps()
    others = ", ".join(f"{packets:,} with {dscp}" for dscp, packets in dscps.items() if dscp != flow.dscp)
    marks = f"DSCP {flow.dscp} on all {count:,} packets"
    if others:
        marks = f"DSCP {flow.dscp} on {dscps.get(flow.dscp, 0):,} of {count:,} packets; {others}"
    longest = int(seen.ip_bytes.max())
    findings = [
        Finding(not others, marks),
        # Larger ones are several, joined or not yet cut: headers would be missing from the rate.
        Finding(longest <= _MTU_BYTES, f"packets as on the wire, the longest of {longest:,} bytes"),
    ]
    if flow.contract:
        measured = rate(seen.time_ns, seen.ip_bytes, during.begin_ns, during.end_ns)
        findings.append(_near(measured, flow.contract, "contracted"))
    else:
        # What its program offers is payload; that of a packet is what is behind IP's and its own header.
        headers = 20 + (8 if flow.protocol == UDP else 32)
        measured = rate(seen.time_ns, seen.ip_bytes - headers, during.begin_ns, during.end_ns)
        findings.append(_near(measured, flow.offered, "offered"))
    if flow.protocol == UDP:
        lost = sent_bytes // flow.payload - count
        findings.append(Finding(lost == 0, f"{lost:,} packets lost" if lost else f"none of {count:,} packets lost"))
    return findings


def _near(measured: float, expected: int, word: str) -> Finding:
    error = measured / expected - 1
    text = f"{measured / 1e6:.3f} of {expected / 1e6:g} Mbit/s {word} ({error:+.2%})"
    return Finding(abs(error) <= RATE_TOLERANCE, text)


class Receiver:
    """The receiver's service, see receiver.py; a context manager. Raises EndToEndError where it refuses."""

    def __init__(self, address: str) -> None:
        try:
            self._connection = socket.create_connection((address, CONTROL_PORT), PATIENCE_S)
        except OSError as error:
            raise EndToEndError(f"no receiver at {address}, port {CONTROL_PORT}: {error}") from error
        # Waiting for the end marker is part of an answer.
        self._connection.settimeout(2 * PATIENCE_S)
        self._answers = self._connection.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._answers.close()
        self._connection.close()

    def order(self, order: str, **arguments: Any) -> dict[str, Any]:
        """Its answer to one order."""
        self._connection.sendall(json.dumps({"order": order, **arguments}).encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._answers.readline() or '{"error": "it closed the connection"}')
        if "error" in answer:
            raise EndToEndError(f"the receiver, asked to {order}: {answer['error']}")
        return answer

    def end(self, marker: bytes) -> tuple[int, Packets]:
        """Packets that the capture lost, and the others."""
        answer = self.order("end", marker=marker.hex())
        data = self._answers.read(answer["bytes"])
        return answer["lost"], parse_pcap(data)


class Sender:
    """One flow's socket, registered where the flow is, and a thread that writes to it; a context manager."""

    def __init__(self, flow: Flow, to: str) -> None:
        self.flow = flow
        self._to = (to, flow.port)
        self._stop = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=flow.name)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if flow.protocol == UDP else socket.SOCK_STREAM)

    def connect(self, qos: qos2.Handle) -> None:
        """Register the flow where it is to be, and connect. Raises OSError, qos2.QosError."""
        flow = self.flow
        if flow.protocol == TCP:
            # Whatever the machine's default: bbr pauses for 0.2 s every ten, which would look like a broken contract.
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        if flow.traffic_type is None:
            self._socket.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, flow.dscp << 2)
        else:
            # Before connect(), so that the first packet of all, TCP's SYN, is marked as well.
            registered = qos.add_socket(self._socket, flow.traffic_type, dest=self._to)
            registered.set_rate(flow.contract, shaping=qos2.Shaping.SHAPE_AND_MARK)
        self._socket.settimeout(PATIENCE_S)
        self._socket.connect(self._to)

    def start(self) -> None:
        """Begin to write."""
        self._socket.settimeout(_TICK_S)
        self._written = self._thread.submit(self._write)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.shutdown()
        if self.flow.protocol == TCP:
            # What still waits in the socket is of no use to anybody: reset instead of draining for seconds.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def stop(self) -> int:
        """End it, and let datagrams that are held back leave; the bytes that the socket took.

        Raises EndToEndError where they do not leave, OSError where writing failed.
        """
        self._stop.set()
        written = self._written.result(PATIENCE_S)
        deadline = time.monotonic() + PATIENCE_S
        while self.flow.protocol == UDP and self._waiting_bytes():
            if time.monotonic() > deadline:
                raise EndToEndError(f"{self.flow.name}: packets still wait {PATIENCE_S:g} s after the last was written")
            time.sleep(_TICK_S)
        return written

    def _waiting_bytes(self) -> int:
        """Memory of packets that have not left the machine."""
        (waiting,) = struct.unpack("i", fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(4)))
        return int(waiting)

    def _write(self) -> int:
        payload = bytes(self.flow.payload)
        begin = time.monotonic()
        writes = written = 0
        while not self._stop.is_set():
            if self.flow.per_second:
                wait = begin + writes / self.flow.per_second - time.monotonic()
                if wait > 0:
                    time.sleep(min(wait, _TICK_S))
                    continue
            try:
                written += self._socket.send(payload)
            except TimeoutError:
                continue  # held back; see whether to stop
            writes += 1
        return written


def open_handle() -> qos2.Handle:
    """A session with the daemon, which may still be starting. Raises qos2.QosError where none comes."""
    deadline = time.monotonic() + _DAEMON_S
    while True:
        try:
            return qos2.Handle(timeout=PATIENCE_S)
        except qos2.ServiceUnavailable:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def cut_to_packets(to: str) -> str:
    """Have large segments cut to packets on this side of the device towards `to`; its name. Raises EndToEndError.

    Between machines of one host they would else arrive whole. Cutting is done behind the datapath, which sees
    them as it always does.
    """
    try:
        routes = subprocess.run(
            ["ip", "-json", "route", "get", to], capture_output=True, text=True, check=True, timeout=PATIENCE_S
        )
        device: str = json.loads(routes.stdout)[0]["dev"]
        as_root = [] if os.geteuid() == 0 else ["sudo", "-n"]
        subprocess.run(
            [*as_root, "/usr/sbin/ethtool", "-K", device, "tso", "off"],
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE_S,
        )
    except subprocess.CalledProcessError as error:
        raise EndToEndError(f"{' '.join(error.cmd)}: {error.stderr.strip()}") from error
    return device


def run(to: str, seconds: float) -> dict[str, list[Finding]]:
    """The whole test; the findings by flow. Raises EndToEndError, CaptureError, qos2.QosError, OSError."""
    device = cut_to_packets(to)
    marker = os.urandom(24)
    with ExitStack() as stack:
        qos = stack.enter_context(open_handle())
        receiver = stack.enter_context(Receiver(to))
        ports = {kind: [flow.port for flow in FLOWS if flow.protocol == kind] for kind in (TCP, UDP)}
        far = receiver.order("begin", tcp=ports[TCP], udp=ports[UDP])["device"]
        # Contracts first: with the first of them the device gets another qdisc, and what passes through the old one
        # just then is dropped by the kernel. All connections before the first packet, for the same reason.
        senders = [stack.enter_context(Sender(flow, to)) for flow in FLOWS]
        for sender in senders:
            sender.connect(qos)
        for sender in senders:
            sender.start()
        shapers = {found["name"]: found["shaper"] for found in qos.status().datapath["devices"]}
        if device not in shapers:
            raise EndToEndError(f"qos2d is not attached to {device}: see `qos2 status`")
        say(f"Linux {platform.release()}: {device} holds packets back by {shapers[device]}; judged at {far} of {to}")
        time.sleep(_SETTLE_S)
        begin_ns = receiver.order("time")["time_ns"]
        time.sleep(seconds)
        during = Interval(begin_ns, receiver.order("time")["time_ns"])
        sent = {sender.flow.name: sender.stop() for sender in senders}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
            last.sendto(marker, (to, _DISCARD_PORT))
        lost, packets = receiver.end(marker)
    findings = {
        flow.name: judge(flow, packets.select(protocol=flow.protocol, dport=flow.port), during, sent[flow.name])
        for flow in FLOWS
    }
    findings["capture"] = [Finding(lost == 0, f"{lost:,} packets missed" if lost else "no packet missed")]
    return findings


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(argv: list[str] | None = None) -> int:
    """Run the test and print the verdict; the exit status."""
    parser = argparse.ArgumentParser(prog="qos2-e2e", description="QoS2 between two machines, judged by the receiver.")
    parser.add_argument("--to", required=True, metavar="ADDRESS", help="IPv4 address of the receiver")
    parser.add_argument("--seconds", type=float, default=8.0, help="how long to measure (default 8)")
    options = parser.parse_args(argv)
    if options.seconds < _MIN_SECONDS:
        parser.error(f"--seconds must be at least {_MIN_SECONDS:g}, or there is nothing to average over")
    try:
        findings = run(options.to, options.seconds)
    except (EndToEndError, CaptureError, qos2.QosError, OSError, subprocess.SubprocessError) as error:
        sys.stderr.write(f"qos2-e2e: could not run: {error}\n")
        return 2
    for name, found in findings.items():
        for finding in found:
            say(f"{'PASS' if finding.good else 'FAIL'}  {name:<10} {finding.text}")
    failed = sum(not finding.good for found in findings.values() for finding in found)
    claims = sum(map(len, findings.values()))
    say(f"qos2-e2e: {f'{failed} of {claims} claims FAILED' if failed else f'all {claims} claims hold'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
