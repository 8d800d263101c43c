"""The demonstration's applications, each a process of its own: `python -m demo.senders ROLE --to ADDRESS --port PORT`.

They use QoS2 as any application would, and know nothing of the lab. A sender reports in lines of JSON on its
standard output and obeys lines on its standard input: `rate N` (bits per second) asks for another contract,
`stop` ends it, and so does the end of the input.
"""

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import qos2


@dataclass(frozen=True, slots=True)
class Role:
    """What a sender sends. Without a traffic type it never talks to the daemon."""

    transport: int  #: socket.SOCK_DGRAM or socket.SOCK_STREAM
    traffic_type: qos2.TrafficType | None
    payload: int = 1 << 16  #: bytes per write
    per_second: int = 0  #: writes per second; 0: as much as the socket takes

    def ip_rate(self, header_bytes: int) -> int:
        """Bits per second at IP level of a paced role, with this much header per packet."""
        return (self.payload + header_bytes) * 8 * self.per_second


ROLES = {
    "voice": Role(socket.SOCK_DGRAM, qos2.TrafficType.VOICE, payload=160, per_second=50),
    "video": Role(socket.SOCK_STREAM, qos2.TrafficType.AUDIO_VIDEO),
    "backup": Role(socket.SOCK_STREAM, qos2.TrafficType.BACKGROUND),
    "plain": Role(socket.SOCK_DGRAM, None, payload=1222, per_second=600),
}


class Orders:
    """Lines from standard input, without ever blocking on it."""

    def __init__(self) -> None:
        self._pending = b""
        self.stopped = False

    def read(self) -> list[int]:
        """The contracts ordered since the last call, in bits per second; to be called when the input is readable."""
        data = os.read(0, 4096)
        *lines, self._pending = (self._pending + data).split(b"\n")
        rates = []
        for line in lines:
            word, _, value = line.decode().partition(" ")
            if word == "rate":
                rates.append(int(value))
            elif word == "stop":
                self.stopped = True
            else:
                raise ValueError(f"unknown order {line!r}")
        self.stopped = self.stopped or not data
        return rates


def report(**event: Any) -> None:
    """One line to whoever started this process."""
    print(json.dumps(event), flush=True)


def send_paced(sock: socket.socket, role: Role, orders: Orders, renew: Callable[[int], None]) -> int:
    """Write `per_second` times a second until stopped, making up for late wake-ups; how often it wrote."""
    period = 1 / role.per_second
    payload = bytes(role.payload)
    begin = time.monotonic()
    sent = 0
    while not orders.stopped:
        wait = begin + sent * period - time.monotonic()
        if wait > 0:
            if select.select([0], [], [], wait)[0]:
                for rate in orders.read():
                    renew(rate)
            continue
        sock.send(payload)
        sent += 1
    return sent


def send_bulk(sock: socket.socket, role: Role, orders: Orders, renew: Callable[[int], None]) -> int:
    """Write as much as the socket takes until stopped; how often it wrote."""
    payload = bytes(role.payload)
    sock.setblocking(False)
    sent = 0
    while not orders.stopped:
        ordered, writable, _ = select.select([0], [sock], [])
        if ordered:
            for rate in orders.read():
                renew(rate)
        if writable:
            sock.send(payload)
            sent += 1
    return sent


def main(argv: list[str] | None = None) -> int:
    """Play one role until stopped."""
    parser = argparse.ArgumentParser(prog="python -m demo.senders")
    parser.add_argument("role", choices=ROLES)
    parser.add_argument("--to", required=True, help="address of the receiver")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--service", help="socket of the daemon")
    parser.add_argument("--rate", type=int, default=0, help="contract in bits per second at IP level")
    options = parser.parse_args(argv)
    role = ROLES[options.role]
    target = (options.to, options.port)

    with ExitStack() as stack:
        family = socket.AF_INET6 if ":" in options.to else socket.AF_INET
        sock = stack.enter_context(socket.socket(family, role.transport))
        if role.transport == socket.SOCK_STREAM:
            # Whatever the host's default: bbr pauses for 0.2 s every ten, which would look like a broken contract.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")
        flow = None
        if role.traffic_type is not None:
            qos = stack.enter_context(qos2.Handle(options.service))
            # Before connect(), so that the first packet of all, TCP's SYN, is marked as well.
            flow = qos.add_socket(sock, role.traffic_type, dest=target)
            if options.rate:
                flow.set_rate(options.rate, shaping=qos2.Shaping.SHAPE_AND_MARK)
        sock.connect(target)
        report(event="started", sport=sock.getsockname()[1], flow=flow.id if flow else None)

        def renew(rate: int) -> None:
            if flow is not None:
                flow.set_rate(rate, shaping=qos2.Shaping.SHAPE_AND_MARK, reason=qos2.RateReason.CONTENT_CHANGE)
            report(event="rate", rate=rate)

        send = send_paced if role.per_second else send_bulk
        sent = send(sock, role, Orders(), renew)
        report(event="stopped", sent=sent)
        if role.transport == socket.SOCK_STREAM:
            # What still waits in the socket is of no use to anybody: reset instead of draining for seconds.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        # Before the flow ends: its last packets are still part of it.
        sock.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
