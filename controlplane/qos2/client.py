"""The synchronous face of QoS2: Handle and Flow, for applications.

A Handle is one connection to the daemon; when it ends, for whatever reason, its flows end. Each call is
one send and one receive on a blocking socket, under one lock, so that threads may share a handle. What a
call sends and what its result means is in wire/calls.py; here is the socket, the lock and the lifetime.

A handle belongs to the process that made it: a forked child drops its copy at once, so that the flows
end with their owner and not with its last descendant.
"""

import contextlib
import os
import socket
import stat
import struct
import threading
import weakref
from types import TracebackType
from typing import Protocol, TypeAlias, TypeVar

from qos2.errors import (
    InvalidHandle,
    InvalidRequest,
    NoSuchFlow,
    NotPermitted,
    ProtocolError,
    QosError,
    ServiceLost,
    ServiceUnavailable,
)
from qos2.model import (
    Condition,
    FlowFundamentals,
    FlowId,
    FlowRate,
    FlowStats,
    PacketPriority,
    RateReason,
    Shaping,
    TrafficType,
)
from qos2.wire import calls, protocol
from qos2.wire.calls import Call, Endpoint
from qos2.wire.connection import Connection

T = TypeVar("T")

DEFAULT_PATH = "/run/qos2/qos2.sock"
_ANOTHER = "make a new qos2.Handle"
_WENT_AWAY = ("the daemon went away", "make a new qos2.Handle and add the sockets again")
_DESCRIPTOR = struct.Struct("i")
#: Environment variable that names another socket than DEFAULT_PATH.
PATH_VARIABLE = "QOS2_SOCKET"


class HasDescriptor(Protocol):
    """Anything around a file descriptor, as asyncio's transports hand out in place of a socket."""

    def fileno(self) -> int: ...


#: A socket in any of its forms.
Socket: TypeAlias = socket.socket | HasDescriptor | int


class Flow:
    """Sockets that share a traffic type and a rate contract. As a context manager it ends at the end of the block.

    Every method raises NoSuchFlow once the flow has ended, ServiceLost when the daemon went away, and
    InvalidRequest in a forked child.
    """

    __slots__ = ("_closed", "_handle", "id")

    def __init__(self, handle: "Handle", flow: FlowId) -> None:
        self._handle = handle
        self._closed = False
        self.id = flow

    def __repr__(self) -> str:
        return f"<Flow {self.id:#010x}{' closed' if self._closed else ''}>"

    def __enter__(self) -> "Flow":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def add_socket(self, sock: Socket, dest: Endpoint | None = None) -> None:
        """Take one more socket, or one more destination of a socket, into this non-adaptive flow.

        `dest` is needed where the socket is not connected, and the all-zero address with port 0 stands for
        every destination. Raises InvalidRequest for a socket or destination that cannot be in a flow.
        """
        self._handle._run(calls.add_socket(0, self.id, dest, False), descriptor(sock))

    def remove_socket(self, sock: Socket) -> None:
        """Take a socket out, with all its destinations. The flow ends with its last one. NoSuchFlow if it is not in."""
        self._handle._run(calls.remove_socket(self.id), descriptor(sock))

    def set_traffic_type(self, traffic_type: TrafficType) -> None:
        """Mark by another type from now on; an explicit DSCP is dropped, the rate contract stays."""
        self._handle._run(calls.set_traffic_type(self.id, traffic_type))

    def set_rate(
        self,
        bandwidth: int,
        shaping: Shaping = Shaping.SHAPE_AND_MARK,
        reason: RateReason = RateReason.NOT_APPLICABLE,
    ) -> None:
        """Agree on a rate in bits/s at IP level, 8 kbit/s to 400 Gbit/s; 0 takes contract and marking away."""
        self._handle._run(calls.set_rate(self.id, bandwidth, shaping, reason))

    def set_dscp(self, dscp: int) -> None:
        """Mark with this DSCP (0..63) whatever the type says. Needs root or the group `qos2`, else NotPermitted."""
        self._handle._run(calls.set_dscp(self.id, dscp))

    def priority(self) -> PacketPriority:
        """The markings really in force."""
        return self._handle._run(calls.priority(self.id))

    def rate(self) -> FlowRate | None:
        """The rate contract in force, None without one."""
        return self._handle._run(calls.rate(self.id))

    def stats(self) -> FlowStats:
        """Its counters since it began."""
        return self._handle._run(calls.stats(self.id))

    def fundamentals(self, fresh: bool = False) -> FlowFundamentals:
        """Estimates of the path; `fresh` does not take remembered ones. NotSupported by this daemon yet."""
        return self._handle._run(calls.fundamentals(self.id, fresh))

    def notify(self, condition: Condition, bandwidth: int = 0) -> None:
        """Return when the condition holds; `bandwidth` in bits/s for AVAILABLE. NotSupported by this daemon yet."""
        self._handle._run(calls.notify(self.id, condition, bandwidth))

    def close(self) -> None:
        """End the flow: its packets pass untouched from now on. Does nothing where it has ended already."""
        if self._closed:
            return
        self._closed = True
        if self._handle.closed:
            return
        # A flow that is gone already is what was asked for; the handle may have been closed by another thread.
        with contextlib.suppress(NoSuchFlow, ServiceLost, InvalidHandle):
            self._handle._run(calls.remove_socket(self.id))


class Handle:
    """A session with the daemon, QOSCreateHandle. Close it, or use it as a context manager; its flows end with it.

    Raises ServiceUnavailable where no daemon answers at `path` (default: $QOS2_SOCKET, else DEFAULT_PATH),
    LimitExceeded where this user has too many handles.

    `timeout` is how many seconds a call waits for the daemon, None for ever. A daemon that does not answer
    in that time is lost (ServiceLost): an application must not hang because its QoS does.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float | None = 10.0) -> None:
        self.path = os.fspath(path) if path is not None else os.environ.get(PATH_VARIABLE) or DEFAULT_PATH
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._connection = Connection()
        self._is_lost = False
        self._socket: socket.socket | None = _connect(self.path, timeout)
        try:
            opened = self._run(calls.open_handle())
        except BaseException:
            self.close()
            raise
        self.server_version = opened.server
        #: Whether this caller may set a raw DSCP and see the flows of others.
        self.privileged = opened.privileged
        _HANDLES.add(self)

    def __repr__(self) -> str:
        return f"<Handle {self.path}{' closed' if self.closed else ''}>"

    def __enter__(self) -> "Handle":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def closed(self) -> bool:
        """Closed, lost, or the copy of a parent's handle in a forked child."""
        return self._socket is None

    def close(self) -> None:
        """End the connection and with it all its flows; a call in another thread ends with ServiceLost."""
        connected = self._socket
        if connected is None:
            return
        if os.getpid() != self._pid:
            # A forked child: give up the copy, leave the connection alone. The lock may be held for ever here.
            self._socket = None
            connected.close()
            return
        with contextlib.suppress(OSError):  # the daemon is gone, or another thread was quicker
            connected.shutdown(socket.SHUT_RDWR)
        with self._lock:
            self._drop(connected)

    def _drop(self, connected: socket.socket) -> None:
        self._socket = None
        connected.close()

    def add_socket(
        self, sock: Socket, traffic_type: TrafficType, dest: Endpoint | None = None, adaptive: bool = False
    ) -> Flow:
        """Begin a flow with a socket: TCP or UDP over IPv4 or IPv6, connected or not.

        `dest` is needed where the socket is not connected: (literal address, port); the all-zero address
        with port 0 stands for every destination. A non-adaptive flow is marked from now on, an adaptive
        one from its first rate contract. Raises InvalidRequest for a socket or destination that cannot be
        in a flow, LimitExceeded where the table, or this user's share of it, is full.
        """
        return Flow(self, self._run(calls.add_socket(traffic_type, 0, dest, adaptive), descriptor(sock)))

    def add_program(self, traffic_type: TrafficType) -> Flow:
        """Begin a flow of all sockets that this process and its children make from now on."""
        return Flow(self, self._run(calls.add_program(traffic_type)))

    def enumerate(self) -> list[FlowId]:
        """The ids of all flows of the machine. NotPermitted unless root or in the group `qos2`."""
        found: list[FlowId] = []
        while True:
            page = self._run(calls.enumerate_flows(len(found)))
            found.extend(map(FlowId, page.flows))
            if not page.more:
                return found

    def flows(self) -> list[protocol.FlowDetails]:
        """Details of all flows of the machine where privileged, else of those of this user, in order of slots."""
        found: list[protocol.FlowDetails] = []
        after = 0
        while True:
            page = self._run(calls.list_flows(0, after))
            found.extend(page.flows)
            if not page.more:
                return found
            after = found[-1].flow

    def flow_details(self, flow: int) -> protocol.FlowDetails:
        """Details of one flow; NoSuchFlow where there is none of this id that the caller may see."""
        page = self._run(calls.list_flows(flow, 0))
        if len(page.flows) != 1:
            raise ProtocolError(f"{len(page.flows)} flows in reply to one id")
        return page.flows[0]

    def status(self) -> protocol.StatusReport:
        """The daemon and its datapath, all devices in one report."""
        report = self._run(calls.status(0))
        devices = list(report.datapath["devices"])
        more = report.more
        while more:
            page = self._run(calls.status(len(devices)))
            devices += page.datapath["devices"]
            more = page.more
        report.datapath["devices"] = devices
        report.more = False
        return report

    def start_tracking(self, address: str) -> None:
        """Estimate the path to a host before there is a flow to it. NotSupported by this daemon yet."""
        self._run(calls.start_tracking(address))

    def stop_tracking(self, address: str) -> None:
        """The end of start_tracking. NotSupported by this daemon yet."""
        self._run(calls.stop_tracking(address))

    def cancel(self, request: int) -> None:
        """Give up a pending request by its number. NotSupported by this daemon yet."""
        self._run(calls.cancel(request))

    def _run(self, call: Call[T], fd: int = -1) -> T:
        """One call: its request, with a descriptor or without, and the reply to it."""
        if os.getpid() != self._pid:
            # Before the lock: a thread of the parent may have held it when the child was made.
            raise InvalidRequest(
                "this handle belongs to the parent process", "a forked child makes a qos2.Handle of its own"
            )
        with self._lock:
            connected = self._socket
            if connected is None:
                raise ServiceLost(*_WENT_AWAY) if self._is_lost else InvalidHandle("the handle is closed", _ANOTHER)
            data = self._connection.send(call)
            try:
                if fd < 0:
                    connected.send(data)
                else:
                    connected.sendmsg((data,), ((socket.SOL_SOCKET, socket.SCM_RIGHTS, _DESCRIPTOR.pack(fd)),))
            except (ConnectionError, BlockingIOError) as error:
                raise self._lost(connected, error) from error
            except OSError as error:
                # The kernel took nothing (the descriptor is closed by now, say): the connection is as before.
                self._connection.withdraw(call)
                raise InvalidRequest(f"the request cannot be sent: {error.strerror}") from error
            while True:
                try:
                    packet = connected.recv(protocol.MAX_MESSAGE_BYTES)
                except OSError as error:
                    raise self._lost(connected, error) from error
                if not packet:
                    raise self._lost(connected, None)
                answered, reply = self._connection.receive(packet)
                # A reply to an earlier call, that an exception took away from its caller, is passed over.
                if answered is call or answered is None:
                    return call.outcome(reply)

    def _lost(self, connected: socket.socket, error: OSError | None) -> QosError:
        """The connection ended under a call: why, by the daemon's last words where it left any."""
        self._is_lost = True
        if isinstance(error, BlockingIOError):
            self._drop(connected)
            return ServiceLost("the daemon does not answer", "see its log; then make a new qos2.Handle")
        last: QosError = ServiceLost(*_WENT_AWAY)
        # A connection refused for a limit: the reason was sent before it was closed.
        with contextlib.suppress(OSError, ProtocolError):
            _, reply = self._connection.receive(connected.recv(protocol.MAX_MESSAGE_BYTES, socket.MSG_DONTWAIT))
            if isinstance(reply, protocol.Failure) and reply.id == 0:
                last = protocol.error_of(reply)
        self._drop(connected)
        return last


def descriptor(sock: Socket) -> int:
    """The file descriptor of a socket; raises InvalidRequest for what is none, so that it is never sent."""
    try:
        fd = sock if isinstance(sock, int) else sock.fileno()
    except (AttributeError, OSError, ValueError) as error:
        raise InvalidRequest(f"not a socket: {sock!r}", "a socket.socket or its descriptor") from error
    if fd < 0:
        raise InvalidRequest("the socket is closed", "remove a socket from its flow before closing it")
    if not isinstance(sock, socket.socket):
        try:
            mode = os.fstat(fd).st_mode
        except (OSError, OverflowError) as error:
            raise InvalidRequest(f"descriptor {fd} is not open", "a socket.socket or its descriptor") from error
        if not stat.S_ISSOCK(mode):
            raise InvalidRequest(f"descriptor {fd} is not a socket", "a socket.socket or its descriptor")
    return fd


def _connect(path: str, timeout: float | None) -> socket.socket:
    if timeout is not None and not timeout > 0:
        raise InvalidRequest(f"a timeout of {timeout} seconds", "more than 0, or None to wait for ever")
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        if timeout is not None:
            # In the kernel and not by settimeout(), which would cost a poll() before each send and receive.
            limit = struct.pack("ll", int(timeout), int(timeout % 1 * 1_000_000))
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
        connected.connect(path)
    except OSError as error:
        connected.close()
        raise _unavailable(path, error) from error
    except BaseException:
        connected.close()
        raise
    return connected


def _unavailable(path: str, error: OSError) -> QosError:
    if isinstance(error, PermissionError):
        return NotPermitted(f"no access to {path}", "the daemon's socket_mode says who may connect")
    if isinstance(error, BlockingIOError):
        return ServiceUnavailable(f"the daemon at {path} does not answer", "see its log")
    reason = error.strerror or str(error)
    return ServiceUnavailable(f"no daemon at {path}: {reason}", f"start qos2d, or name its socket in ${PATH_VARIABLE}")


#: Handles of this process, to be dropped in its forked children.
_HANDLES: "weakref.WeakSet[Handle]" = weakref.WeakSet()


def _drop_inherited() -> None:
    for handle in list(_HANDLES):
        handle.close()
    _HANDLES.clear()


os.register_at_fork(after_in_child=_drop_inherited)
