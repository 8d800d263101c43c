"""A blocking conversation with the kernel over rtnetlink: requests go out, acknowledgements and dumps come in.

Not a library of message types: links.py and tc.py know those. pyroute2's own sockets are not used,
because its synchronous calls run an event loop each (so they fail inside the daemon's loop) and its
`netns=` starts a child process; its message classes read the answers. One thread at a time.
"""

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from qos2.errors import DatapathError, DeviceGone

# linux/netlink.h
SOL_NETLINK = 270
NETLINK_CAP_ACK = 10
NETLINK_EXT_ACK = 11
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_DUMP_INTR = 0x10
NLM_F_CAPPED = 0x100
NLM_F_ACK_TLVS = 0x200
NLM_F_REPLACE = 0x100
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_DUMP = 0x300
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLMSGERR_ATTR_MSG = 1
NLA_TYPE_MASK = 0x3FFF
NLA_F_NESTED = 0x8000

HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_ERROR = struct.Struct("=i")

#: Larger than any message of the kernel (a dump fills at most 32 KiB, a link with many VFs some more).
RECEIVE_BYTES = 1 << 18
ANSWER_SECONDS = 10
DUMP_ATTEMPTS = 20


class NetlinkRefused(DatapathError):
    """The kernel answered with an error number; `number` is that errno."""

    def __init__(self, number: int, doing: str, explanation: str = "") -> None:
        reason = explanation or os.strerror(number)
        hint = "the daemon needs CAP_NET_ADMIN in this network namespace" if number == errno.EPERM else ""
        super().__init__(f"{doing}: {reason} [{errno.errorcode.get(number, number)}]", hint)
        self.number = number


class Request(NamedTuple):
    """One message: its rtnetlink type, NLM_F flags beyond REQUEST, body, and what it does in words."""

    kind: int
    flags: int
    body: bytes
    doing: str


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute (struct nlattr), padded to four bytes."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def attributes(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The attributes of a message body after its fixed part, or of a nested attribute's payload.

    Raises DatapathError where a length leads out of the data.
    """
    at = 0
    while at + 4 <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < 4 or at + length > len(data):
            raise DatapathError(f"netlink attribute of {length} bytes in {len(data) - at} bytes of message")
        yield kind & NLA_TYPE_MASK, data[at + 4 : at + length]
        at += (length + 3) & ~3


class Message(NamedTuple):
    """One message as received: type, sequence number, flags, and all of its bytes with the header."""

    kind: int
    sequence: int
    flags: int
    whole: memoryview

    @property
    def body(self) -> memoryview:
        return self.whole[HEADER.size :]


def messages(datagram: memoryview) -> Iterator[Message]:
    """The messages of one datagram. Raises DatapathError where a length leads out of it."""
    at = 0
    while at + HEADER.size <= len(datagram):
        length, kind, flags, sequence, _port = HEADER.unpack_from(datagram, at)
        if length < HEADER.size or at + length > len(datagram):
            raise DatapathError(f"netlink message of {length} bytes in {len(datagram) - at} bytes of datagram")
        yield Message(kind, sequence, flags, datagram[at : at + length])
        at += (length + 3) & ~3


class Conversation:
    """A NETLINK_ROUTE socket of the network namespace in which it is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        try:
            self._socket.bind((0, 0))
            self._socket.settimeout(ANSWER_SECONDS)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        except OSError:
            self._socket.close()
            raise
        self._sequence = 0

    @property
    def socket(self) -> socket.socket:
        return self._socket

    def ask(self, *requests: Request) -> None:
        """Carry out requests in this order, all of them, in one system call.

        Raises DeviceGone or NetlinkRefused for the first that failed, after all were tried.
        """
        waiting: dict[int, Request] = {}
        packed = bytearray()
        for request in requests:
            self._sequence += 1
            waiting[self._sequence] = request
            packed += self._pack(request, NLM_F_ACK)
            packed += bytes(-len(packed) % 4)
        self._socket.send(packed)
        failed: DatapathError | None = None
        while waiting:
            for message in self._receive(next(iter(waiting.values())).doing):
                if message.kind != NLMSG_ERROR or message.sequence not in waiting:
                    continue
                request = waiting.pop(message.sequence)
                number = -_ERROR.unpack_from(message.body)[0]
                if number and failed is None:
                    failed = _failure(number, request.doing, message)
        if failed is not None:
            raise failed

    def get(self, request: Request) -> Message:
        """The one answer to a question. Raises DeviceGone or NetlinkRefused."""
        self._sequence += 1
        self._socket.send(self._pack(request, 0))
        while True:
            for message in self._receive(request.doing):
                if message.sequence != self._sequence:
                    continue
                if message.kind == NLMSG_ERROR:
                    raise _failure(-_ERROR.unpack_from(message.body)[0], request.doing, message)
                return message

    def dump(self, request: Request) -> list[Message]:
        """All answers to a dump, asked again where the kernel says that it changed meanwhile.

        Raises DeviceGone or NetlinkRefused.
        """
        for _ in range(DUMP_ATTEMPTS):
            self._sequence += 1
            self._socket.send(self._pack(request, NLM_F_DUMP))
            found, consistent = self._read_dump(request)
            if consistent:
                return found
        raise DatapathError(f"{request.doing}: changed during each of {DUMP_ATTEMPTS} attempts to read it")

    def close(self) -> None:
        self._socket.close()

    def _pack(self, request: Request, flags: int) -> bytes:
        header = HEADER.pack(
            HEADER.size + len(request.body), request.kind, NLM_F_REQUEST | flags | request.flags, self._sequence, 0
        )
        return header + request.body

    def _read_dump(self, request: Request) -> tuple[list[Message], bool]:
        found: list[Message] = []
        consistent = True
        while True:
            for message in self._receive(request.doing):
                if message.sequence != self._sequence:
                    continue
                consistent = consistent and not message.flags & NLM_F_DUMP_INTR
                if message.kind in (NLMSG_DONE, NLMSG_ERROR):
                    number = -_ERROR.unpack_from(message.body)[0]
                    if number > 0:
                        raise _failure(number, request.doing, message)
                    return found, consistent
                found.append(message)

    def _receive(self, doing: str) -> Iterator[Message]:
        try:
            data, _ancillary, flags, _address = self._socket.recvmsg(RECEIVE_BYTES)
        except TimeoutError:
            raise DatapathError(f"{doing}: no answer within {ANSWER_SECONDS} s") from None
        if flags & socket.MSG_TRUNC:
            raise DatapathError(f"{doing}: the answer is longer than {RECEIVE_BYTES} bytes")
        return messages(memoryview(data))


def _failure(number: int, doing: str, message: Message) -> DatapathError:
    explanation = _explanation(message)
    if number == errno.ENODEV:
        return DeviceGone(f"{doing}: {explanation or 'the device does not exist'}")
    return NetlinkRefused(number, doing, explanation)


def _explanation(message: Message) -> str:
    """The kernel's own sentence, where it sends one (extended acknowledgement)."""
    if message.kind != NLMSG_ERROR or not message.flags & NLM_F_ACK_TLVS:
        return ""
    # struct nlmsgerr: the error, the request's header, and the request itself unless it was capped.
    length = _ERROR.size + HEADER.size
    if not message.flags & NLM_F_CAPPED:
        length = _ERROR.size + HEADER.unpack_from(message.body, _ERROR.size)[0]
    for kind, payload in attributes(message.body[(length + 3) & ~3 :]):
        if kind == NLMSGERR_ATTR_MSG:
            return bytes(payload).rstrip(b"\0").decode(errors="replace")
    return ""
