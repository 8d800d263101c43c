"""TCP and UDP sockets of running programs: which there are, who holds them, and, where we may, a copy of one.

From /proc (proc_pid_fd(5), proc_pid_net(5)) and pidfd_getfd(2), which needs the right to trace the program. Nothing is
sent and nothing changed.
"""

import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

from qos2.model import ANY_DESTINATION, Destination, Transport

PROC = Path("/proc")
#: The same number on every architecture, pidfd_getfd(2); not in Python's standard library.
_SYS_PIDFD_GETFD = 438
_TABLES = {"tcp": Transport.TCP, "tcp6": Transport.TCP, "udp": Transport.UDP, "udp6": Transport.UDP}
_PROTOCOLS = {socket.IPPROTO_TCP: Transport.TCP, socket.IPPROTO_UDP: Transport.UDP}
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class OpenSocket:
    """A socket that has a port. `pid` and `fd` of a program that holds it, 0 and -1 where none was found."""

    inode: int
    transport: Transport
    local: Destination
    remote: Destination | None  #: where it is connected to
    uid: int
    pid: int = 0
    fd: int = -1

    def __str__(self) -> str:
        return f"{self.transport} {self.local} > {'anywhere' if self.remote is None else self.remote}"


def of_process(pid: int, proc: Path = PROC) -> list[OpenSocket]:
    """The sockets of a process in the order of its descriptors.

    Raises ProcessLookupError where there is none, PermissionError where its descriptors are not ours to see.
    """
    found = []
    try:
        known = _in_namespace(proc / str(pid))
        for fd, inode in _descriptors(proc / str(pid)):
            # Those of another network namespace than the process is in are known by themselves alone.
            each = known.get(inode) or _unlisted(OpenSocket(inode, Transport.TCP, ANY_DESTINATION, None, 0, pid, fd))
            if each is not None:
                found.append(replace(each, pid=pid, fd=fd))
    except FileNotFoundError as error:
        raise ProcessLookupError(f"no process {pid}") from error
    return found


def by_inode(inode: int, proc: Path = PROC) -> OpenSocket | None:
    """The socket of this number in the table of inodes, with the first program found to hold it."""
    for folder in _processes(proc):
        try:
            for fd, held in _descriptors(folder):
                if held == inode and (found := _in_namespace(folder).get(inode)) is not None:
                    return replace(found, pid=int(folder.name), fd=fd)
        except (PermissionError, FileNotFoundError, ProcessLookupError):
            continue  # not ours to see, or it has just ended
    return _in_namespace(proc / "self").get(inode)


def by_ends(local: Destination, remote: Destination, proc: Path = PROC) -> OpenSocket | None:
    """The socket of our network namespace that is bound and connected so."""
    for each in _in_namespace(proc / "self").values():
        if (each.local, each.remote) == (local, remote):
            return by_inode(each.inode, proc) or each
    return None


def parse_ends(text: str) -> tuple[Destination, Destination]:
    """Both ends of `192.0.2.1:40000>192.0.2.7:443`, IPv6 in brackets. Raises ValueError."""
    local, arrow, remote = text.partition(">")
    if not arrow:
        raise ValueError(f"{text!r} has no >")
    return _parse_end(local.strip()), _parse_end(remote.strip())


@contextmanager
def borrowed(each: OpenSocket) -> Iterator[socket.socket]:
    """A copy of a program's socket, closed at the end of the block. Raises OSError where we may not have one."""
    pidfd = os.pidfd_open(each.pid)
    try:
        fd = _LIBC.syscall(_SYS_PIDFD_GETFD, pidfd, each.fd, 0)
        if fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(pidfd)
    with socket.socket(fileno=fd) as copy:
        yield copy


def _unlisted(each: OpenSocket) -> OpenSocket | None:
    """The same with what a copy of it tells; None for what is no TCP or UDP socket with a port, or not ours to copy."""
    try:
        with borrowed(each) as copy:
            transport = _PROTOCOLS.get(copy.proto)
            if transport is None or copy.family not in (socket.AF_INET, socket.AF_INET6):
                return None
            local, remote = Destination.parse(*copy.getsockname()[:2]), None
            with suppress(OSError):  # not connected
                remote = Destination.parse(*copy.getpeername()[:2])
            uid = os.fstat(copy.fileno()).st_uid
    except OSError:
        return None
    return replace(each, transport=transport, local=local, remote=remote, uid=uid) if local.port else None


def _parse_end(text: str) -> Destination:
    host, colon, port = text.rpartition(":")
    if not colon or not port.isdecimal():
        raise ValueError(f"{text!r} is no ADDRESS:PORT")
    return Destination.parse(host.removeprefix("[").removesuffix("]"), int(port))


def _processes(proc: Path) -> Iterator[Path]:
    return (folder for folder in proc.iterdir() if folder.name.isdecimal())


def _descriptors(process: Path) -> Iterator[tuple[int, int]]:
    """Of its sockets: descriptor and inode."""
    for link in sorted((process / "fd").iterdir(), key=lambda link: int(link.name)):
        try:
            target = os.readlink(link)
        except FileNotFoundError:
            continue  # closed meanwhile
        if target.startswith("socket:["):
            yield int(link.name), int(target[len("socket:[") : -1])


def _in_namespace(process: Path) -> dict[int, OpenSocket]:
    """All sockets of the network namespace of a process, by inode."""
    found: dict[int, OpenSocket] = {}
    for name, transport in _TABLES.items():
        try:
            lines = (process / "net" / name).read_text().splitlines()[1:]
        except FileNotFoundError:
            if not process.exists():
                raise
            continue  # a kernel without IPv6
        for line in lines:
            columns = line.split()
            remote = _end(columns[2])
            each = OpenSocket(
                inode=int(columns[9]),
                transport=transport,
                local=_end(columns[1]),
                remote=None if remote.port == 0 else remote,
                uid=int(columns[7]),
            )
            found[each.inode] = each
    return found


def _end(text: str) -> Destination:
    """`0100007F:0050`: words of the host's byte order, each of them an address' bytes in network order."""
    digits, _, port = text.partition(":")
    words = [int(digits[at : at + 8], 16) for at in range(0, len(digits), 8)]
    packed = struct.pack(f"={len(words)}I", *words)
    address: IPv4Address | IPv6Address = ip_address(packed)
    return Destination.parse(str(address), int(port, 16))
