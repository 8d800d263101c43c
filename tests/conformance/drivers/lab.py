"""A scene with a network: the real daemon on the application's device, and a capture on the peer's.

Packets are judged where they arrive. The sockets of a row have a DSCP of the application's own, so that a
packet that no flow touches differs from one that is marked as best effort.
"""

import socket
import struct
import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack

from conformance.drivers.base import PATIENCE_S
from conformance.drivers.scene import Scene
from conformance.table import Sending
from conformance.vocabulary import Mark, Steered
from demo.lab import Lab
from demo.packets import Packets, parse_frames
from demo.processes import Daemon
from qos2.core.bucket import bucket_depth_bytes

#: What the application sets by itself: AF11 (RFC 2597).
OWN_DSCP = 10
#: Rates, in bits/s, at which a train of packets shows in a short time whether it is held back.
JUDGED_RATES = range(1_000_000, 10_000_001)

_ETH_P_ALL = 3
# <asm-generic/socket.h>: not in Python's socket module.
_SO_RCVBUFFORCE = 33
_SO_TIMESTAMPNS = 35
_TIMESPEC = struct.Struct("qq")
_TRAIN_S = 0.2
_TRAIN_BYTES = 1000
_TRAINS = 3


class Field:
    """A lab with a daemon, and its peer, where every packet is seen; serves many rows. A context manager."""

    def __init__(self, lab: Lab, daemon: Daemon) -> None:
        self.lab = lab
        self.daemon = daemon
        self._stack = ExitStack()
        self._tokens = 0

    def __enter__(self) -> "Field":
        peer = self.lab.peer
        self._capture = self._stack.enter_context(peer.socket(socket.AF_PACKET, socket.SOCK_RAW))
        self._capture.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 16 << 20)
        self._capture.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
        self._capture.bind((peer.device, _ETH_P_ALL))
        listener = self._stack.enter_context(peer.socket(socket.AF_INET6, socket.SOCK_STREAM))
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", 0))
        listener.listen(1024)  # nobody accepts: the kernel takes connections and their data by itself
        port: int = listener.getsockname()[1]
        self.ports = (0, port, port ^ 1)
        for each in self.ports[1:]:
            # Nobody reads here; without it a datagram would come back as an error of the socket that sent it.
            sink = self._stack.enter_context(peer.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            sink.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sink.bind(("::", each))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def token(self) -> bytes:
        """What no other packet contains."""
        self._tokens += 1
        return b"conformance %012d." % self._tokens

    def arrived(self, tokens: Collection[bytes]) -> dict[bytes, Packets]:
        """The first packet with each token. Raises TimeoutError where one does not come."""
        found: dict[bytes, Packets] = {}
        deadline = time.monotonic() + PATIENCE_S
        while len(found) < len(tokens):
            self._capture.settimeout(max(deadline - time.monotonic(), 0.001))
            frame, ancillary, _, _ = self._capture.recvmsg(2048, socket.CMSG_SPACE(_TIMESPEC.size))
            seconds, nanoseconds = _TIMESPEC.unpack(ancillary[0][2])
            for token in tokens:
                if token in frame and token not in found:
                    found[token] = parse_frames([(seconds * 1_000_000_000 + nanoseconds, frame)])
        return found


class LabScene(Scene):
    """The program of a row in the application's namespace."""

    def __init__(self, field: Field) -> None:
        self._field = field
        peer = field.lab.peer
        hosts = {"peer": peer.ipv4[0], "second": peer.ipv4[1], "peer6": peer.ipv6[0], "second6": peer.ipv6[1]}
        super().__init__(hosts, field.ports)

    @property
    def path(self) -> str:
        return self._field.daemon.socket

    def new_socket(self, family: int, kind: int) -> socket.socket:
        made = self._field.lab.app.socket(family, kind)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, OWN_DSCP << 2)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS, OWN_DSCP << 2)
        return made

    def end_daemon(self) -> None:
        raise NotImplementedError("the daemon of a field serves all its rows")

    def begin_daemon(self) -> None:
        raise NotImplementedError("the daemon of a field serves all its rows")

    def steer(self, state: Steered, flows: Mapping[str, int]) -> None:
        raise NotImplementedError(f"the real daemon is not steered: {state}")

    def dscps(self, sendings: Collection[Sending]) -> dict[Sending, int]:
        """Send a packet of each of these: the DSCP with which it arrives."""
        tokens = {sending: self._field.token() for sending in sendings}
        for sending, token in tokens.items():
            self._send(sending, token)
        arrived = self._field.arrived(tokens.values())
        return {sending: int(arrived[token].dscp[0]) for sending, token in tokens.items()}

    def obeys(self, sending: Sending, mark: Mark) -> bool:
        """Whether a train of packets is treated by the rate of a mark: delayed, or the excess marked as best effort.

        A machine that stands still may push the packets of one train together again, not those of each.
        """
        return any(self._train_obeys(sending, mark) for _ in range(_TRAINS))

    def _train_obeys(self, sending: Sending, mark: Mark) -> bool:
        surplus = _TRAIN_S * mark.bandwidth / 8
        count = int((bucket_depth_bytes(mark.bandwidth) + surplus) / _TRAIN_BYTES) + 1
        tokens = [self._field.token().ljust(_TRAIN_BYTES, b".") for _ in range(count)]
        for token in tokens:
            self._send(sending, token)
        packets = list(self._field.arrived(tokens).values())
        if mark.delayed:
            seconds = int(packets[-1].time_ns[0] - packets[0].time_ns[0]) / 1e9
            return seconds >= 0.75 * _TRAIN_S and {int(each.dscp[0]) for each in packets} == {mark.dscp}
        return {int(each.dscp[0]) for each in packets} == {mark.dscp, 0}

    def _send(self, sending: Sending, data: bytes) -> None:
        name, address = sending
        its = self.sockets[name]
        try:
            its.getpeername()
        except OSError:
            its.sendto(data, self.written(address))
        else:
            its.send(data)
