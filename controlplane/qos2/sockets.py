"""What the kernel says of descriptors that clients pass, and of the clients themselves.

The server believes nothing that a client says about its socket or about itself: the facts are read
here, with few system calls and none that can wait. Nothing of a passed descriptor is asked but socket
options: fstat() and close() of a file may wait for its file system (FUSE, NFS), and close() of a TCP
socket may linger. Closer does what may wait, in a thread of its own.
"""

import contextlib
import grp
import os
import queue
import socket
import struct
import sys
import threading
from functools import lru_cache

from qos2.errors import InvalidRequest
from qos2.model import Destination, Peer, SocketFacts, Transport
from qos2.owner import owner_of

# <asm-generic/socket.h>: not in Python's socket module.
_SO_COOKIE = 57
_SO_PEERGROUPS = 59
_SO_NETNS_COOKIE = 71

_UCRED = struct.Struct("iII")  #: struct ucred of unix(7): pid, uid, gid
# Plain numbers: those of the socket module are slow members of enumerations.
_SOCKET, _IPV6 = int(socket.SOL_SOCKET), int(socket.IPPROTO_IPV6)
_INET, _INET6 = int(socket.AF_INET), int(socket.AF_INET6)
_ON_AND_SECONDS = struct.Struct("ii")  #: struct linger

#: What getsockopt() of Python returns at most, in gids of 4 bytes.
_MOST_GROUPS = 256

_TRANSPORTS: dict[tuple[int, int], Transport] = {
    (socket.SOCK_STREAM, socket.IPPROTO_TCP): Transport.TCP,
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP): Transport.UDP,
}
#: Protocols that people pass by mistake; IPPROTO_MPTCP and IPPROTO_DCCP are not in Python 3.11.
_PROTOCOLS = {1: "ICMP", 33: "DCCP", 58: "ICMPv6", 132: "SCTP", 136: "UDP-Lite", 262: "MPTCP"}

#: Destination.parse, remembering: an application sends many times to few places.
parse_destination = lru_cache(maxsize=4096)(Destination.parse)


def socket_facts(fd: int) -> SocketFacts:
    """The facts of a passed TCP or UDP socket. Raises InvalidRequest for anything else, naming what it is."""
    try:
        passed = socket.SocketType(fileno=fd)
    except OSError as error:
        raise InvalidRequest(f"the descriptor is not a socket: {error.strerror}", "pass a TCP or UDP socket") from error
    try:
        return _facts(passed)
    finally:
        passed.detach()


def _facts(passed: socket.SocketType) -> SocketFacts:
    family = passed.family
    transport = _TRANSPORTS.get((passed.type, passed.proto))
    if transport is None or (family != _INET and family != _INET6):
        raise InvalidRequest(f"{_described(passed)} cannot be in a flow", "TCP and UDP over IPv4 or IPv6 can")
    option = passed.getsockopt
    listening = transport is Transport.TCP and option(_SOCKET, socket.SO_ACCEPTCONN) != 0
    peer: Destination | None = None
    local: Destination | None = None
    if not listening:
        try:
            name = passed.getpeername()
        except OSError:
            pass  # not connected: the usual case for UDP and no error
        else:
            peer = parse_destination(name[0], name[1])
    own = passed.getsockname()
    if own[1]:
        local = Destination.parse(own[0], own[1])  # not remembered: each has a port of its own
    try:
        netns_cookie = int.from_bytes(option(_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        netns_cookie = 0  # before Linux 5.14
    return SocketFacts(
        int.from_bytes(option(_SOCKET, _SO_COOKIE, 8), sys.byteorder),
        transport,
        family,
        family == _INET6 and option(_IPV6, socket.IPV6_V6ONLY) != 0,
        listening,
        peer,
        netns_cookie,
        local,
    )


def _described(passed: socket.SocketType) -> str:
    """A socket of the wrong kind in words: "an AF_UNIX socket", "a raw socket", "an SCTP socket"."""
    if passed.family not in (socket.AF_INET, socket.AF_INET6):
        try:
            return f"a socket of family {socket.AddressFamily(passed.family).name}"
        except ValueError:
            return f"a socket of family {passed.family}"
    if passed.type == socket.SOCK_RAW:
        return "a raw socket (SOCK_RAW)"
    return f"a socket of protocol {_PROTOCOLS.get(passed.proto, passed.proto)}"


def peer_of(connected: socket.socket, privileged_gid: int | None, stranger: int) -> Peer:
    """Who connected, as the kernel saw it then (SO_PEERCRED, SO_PEERGROUPS). Raises OSError if it is gone.

    A process outside of our pid namespace has pid 0 for us. It gets the negative pid `stranger`, another
    one for each connection: else all such processes would own each other's flows.
    """
    pid, uid, gid = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    # Raises OSError (ERANGE) for somebody with more groups than fit: he is refused and not wrongly judged.
    packed = connected.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MOST_GROUPS * 4)
    gids = frozenset((gid, *struct.unpack(f"{len(packed) // 4}I", packed)))
    try:
        # The accepted socket is in the namespace of the one that connected (unix_stream_connect() makes it there).
        netns_cookie = int.from_bytes(connected.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8), sys.byteorder)
    except OSError:
        netns_cookie = 0  # before Linux 5.14
    return Peer(
        pid=pid or stranger,
        uid=uid,
        gids=gids,
        privileged=uid == 0 or privileged_gid in gids,
        program=_program(pid) if pid else "",
        netns_cookie=netns_cookie,
        **owner_of(pid)._asdict(),
    )


def gid_of(group: str) -> int | None:
    """None where this host has no such group."""
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        return None


def process(pid: int) -> Peer | None:
    """A process that has no connection here: what /proc says of it now. None where there is none of this pid."""
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except (OSError, ValueError):
        return None
    return Peer(pid=pid, uid=uid, program=_program(pid), **owner_of(pid)._asdict())


def _program(pid: int) -> str:
    """The name of a process, for people to read; empty where it has ended. It names itself: keep it printable."""
    try:
        with open(f"/proc/{pid}/comm", "rb") as comm:
            name = comm.read().decode(errors="replace").rstrip("\n")
    except OSError:
        return ""
    return "".join(each if each.isprintable() else "?" for each in name)


class Passed:
    """One descriptor that a client passed, and its facts once they were asked for."""

    __slots__ = ("_facts", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._facts: SocketFacts | None = None

    def facts(self) -> SocketFacts:
        """socket_facts of it."""
        if self._facts is None:
            self._facts = socket_facts(self.fd)
        return self._facts

    @property
    def closes_at_once(self) -> bool:
        """Whether close() cannot wait: UDP, or TCP that does not linger.

        The client may still set SO_LINGER and close its own copy between this look and our close(): a race
        that is accepted, since it costs the client a lucky microsecond and the daemon one linger time.
        """
        if self._facts is None:
            return False
        if self._facts.transport is Transport.UDP:
            return True
        passed = socket.SocketType(self._facts.family, socket.SOCK_STREAM, socket.IPPROTO_TCP, self.fd)
        try:
            option = passed.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _ON_AND_SECONDS.size)
        finally:
            passed.detach()
        on, seconds = _ON_AND_SECONDS.unpack(option)
        return not on or seconds == 0


class Closer:
    """Closes passed descriptors without letting the event loop wait for one."""

    def __init__(self) -> None:
        self._slow: queue.SimpleQueue[tuple[Passed, set[Passed]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def close(self, passed: Passed, waiting: set[Passed]) -> None:
        """Close it now or soon. Until it is closed it is in `waiting`, which its owner can bound."""
        if passed.closes_at_once:
            os.close(passed.fd)
            return
        waiting.add(passed)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="qos2-closer", daemon=True)
            self._thread.start()
        self._slow.put((passed, waiting))

    def stop(self, timeout_s: float) -> bool:
        """Close what is left. False where that takes longer than `timeout_s`; the process' end closes it then."""
        if self._thread is None:
            return True
        self._slow.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (entry := self._slow.get()) is not None:
            passed, waiting = entry
            # An error of the file system at close is its user's; the descriptor is free in any case (close(2)).
            with contextlib.suppress(OSError):
                os.close(passed.fd)
            waiting.discard(passed)
