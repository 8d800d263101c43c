"""The synchronous face of QoS2: Handle and Flow, for applications.

A Handle is one connection to the daemon; when it ends, for whatever reason, its flows end. What a call sends
and what its result means is in wire/calls.py, how threads share the connection in channel.py; here are the
methods and their arguments. aio.py has the same ones for asyncio.

A handle belongs to the process that made it: a forked child drops its copy at once, so that the flows
end with their owner and not with its last descendant.
"""

import os
import socket
import stat
from types import TracebackType
from typing import Protocol, TypeAlias, TypeVar

from qos2.channel import Channel, Operation
from qos2.errors import (
    Cancelled,
    InvalidHandle,
    InvalidRequest,
    NoSuchFlow,
    NotPermitted,
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
from qos2.wire.calls import Call, Endpoint, Steps

T = TypeVar("T")

DEFAULT_PATH = "/run/qos2/qos2.sock"
#: Environment variable that names another socket than DEFAULT_PATH.
PATH_VARIABLE = "QOS2_SOCKET"


class HasDescriptor(Protocol):
    """Anything around a file descriptor, as asyncio's transports hand out in place of a socket."""

    def fileno(self) -> int: ...


#: A socket in any of its forms.
Socket: TypeAlias = socket.socket | HasDescriptor | int


class Flow:
    """Sockets that share a traffic type and a rate contract. As a context manager it ends at the end of the block.

    Every method raises NoSuchFlow once the flow has ended, ServiceLost when the daemon went away, InvalidHandle
    once the handle is closed and in a forked child, and Cancelled where it is closed during the call.
    """

    __slots__ = ("_channel", "_closed", "id")

    def __init__(self, handle: "Handle", flow: FlowId) -> None:
        self._channel = handle._channel
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
        self._channel.run(calls.add_socket(0, self.id, dest, False), descriptor(sock))

    def remove_socket(self, sock: Socket) -> None:
        """Take a socket out, with all its destinations. The flow ends with its last one. NoSuchFlow if it is not in."""
        self._channel.run(calls.remove_socket(self.id), descriptor(sock))

    def set_traffic_type(self, traffic_type: TrafficType) -> None:
        """Mark by another type from now on; an explicit DSCP is dropped, the rate contract stays."""
        self._channel.run(calls.set_traffic_type(self.id, traffic_type))

    def set_rate(
        self,
        bandwidth: int,
        shaping: Shaping = Shaping.SHAPE_AND_MARK,
        reason: RateReason = RateReason.NOT_APPLICABLE,
    ) -> None:
        """Agree on a rate in bits/s at IP level, 8 kbit/s to 400 Gbit/s; 0 takes contract and marking away.

        On an adaptive flow NetworkBusy or Retry where the path does not have it: the former contract stays.
        """
        self._channel.run(calls.set_rate(self.id, bandwidth, shaping, reason))

    def set_dscp(self, dscp: int) -> None:
        """Mark with this DSCP (0..63) whatever the type says. Needs root or the group `qos2`, else NotPermitted."""
        self._channel.run(calls.set_dscp(self.id, dscp))

    def priority(self) -> PacketPriority:
        """The markings really in force."""
        return self._channel.run(calls.priority(self.id))

    def rate(self) -> FlowRate | None:
        """The rate contract in force, None without one."""
        return self._channel.run(calls.rate(self.id))

    def stats(self) -> FlowStats:
        """Its counters since it began."""
        return self._channel.run(calls.stats(self.id))

    def fundamentals(self, fresh: bool = False) -> FlowFundamentals:
        """Estimates of the path of an adaptive flow; with `fresh`, as long as it takes, those of a new measurement.

        Numbers that were measured; `statements` has their ages and methods, and lower bounds.

        Raises NotSupported where nothing can be learnt about the path, NoData where nothing is known yet, and
        Retry where it cannot be measured now.
        """
        return self._channel.run(calls.fundamentals(self.id, fresh))

    def begin_fundamentals(self, fresh: bool = False) -> Operation[FlowFundamentals]:
        """As `fundamentals`, without waiting."""
        return self._channel.begin(calls.fundamentals(self.id, fresh))

    def notify(self, condition: Condition, bandwidth: int = 0, timeout: float | None = None) -> None:
        """Return once the condition holds for this adaptive flow. TimedOut after `timeout` seconds (None: never).

        For AVAILABLE `bandwidth` says which total in bits/s the flow wants to have, more than it holds. Raises
        NotSupported where nothing can be learnt about the path, AlreadyExists where such a call waits already,
        and Cancelled where the flow ends meanwhile.
        """
        self._channel.run(calls.notify(self.id, condition, bandwidth), timeout=timeout)

    def begin_notify(self, condition: Condition, bandwidth: int = 0) -> Operation[None]:
        """As `notify`, without waiting."""
        return self._channel.begin(calls.notify(self.id, condition, bandwidth))

    def report(self, *, rtt: float | None = None, loss: float | None = None, delivered: int | None = None) -> None:
        """Tell what the application knows of this flow since its last report, as RTCP or QUIC tell it.

        `rtt` in seconds, `loss` the share 0..1 of its packets, `delivered` the bytes at IP level that have arrived; at
        least one. Congestion of UDP is judged by that. A report every 100 ms to 1 s is best. Raises InvalidRequest,
        and NotSupported for a flow of several sockets.
        """
        self._channel.run(calls.report(self.id, rtt, loss, delivered))

    def close(self) -> None:
        """End the flow: its packets pass untouched from now on. Does nothing where it has ended already."""
        if self._closed:
            return
        self._closed = True
        try:
            self._channel.run(calls.remove_socket(self.id))
        except (NoSuchFlow, ServiceLost, InvalidHandle, Cancelled):
            return  # it has ended already, with its last socket, the daemon or the handle


class Handle:
    """A session with the daemon, QOSCreateHandle. Close it, or use it as a context manager; its flows end with it.

    Raises ServiceUnavailable where no daemon answers at `path` (default: $QOS2_SOCKET, else DEFAULT_PATH),
    NotPermitted where the path may not be entered, LimitExceeded where this user has too many handles.

    `timeout` is how many seconds a call waits for the daemon, None for ever. A daemon that does not answer
    in that time is lost (ServiceLost): an application must not hang because its QoS does. Waiting for a condition
    or a new measurement takes as long as it takes.

    Threads may share a handle. A signal handler must not use the one whose call it may have interrupted: that
    is refused (InvalidRequest) where it would hang; close() is fine. A forked child makes a handle of its own.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float | None = 10.0) -> None:
        self.path = socket_path(path)
        try:
            self._channel = Channel(self.path, timeout)
            try:
                opened = self._channel.run(calls.open_handle())
            except BaseException:
                self._channel.abort()
                raise
        except (OSError, ServiceLost) as error:
            raise unavailable(self.path, error) from error
        self.server_version = opened.server
        #: Whether this caller may set a raw DSCP and see the flows of others.
        self.privileged = opened.privileged

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
        return self._channel.closed

    def close(self) -> None:
        """End all its flows and the connection. What waits in other threads ends with Cancelled.

        When it returns the flows have ended, unless the daemon did not answer within `timeout`: then they end
        with the connection, as soon as it can. In a forked child the parent's flows stay as they are.
        """
        self._channel.close()

    def add_socket(
        self, sock: Socket, traffic_type: TrafficType, dest: Endpoint | None = None, adaptive: bool = False
    ) -> Flow:
        """Begin a flow with a socket: TCP or UDP over IPv4 or IPv6, connected or not.

        `dest` is needed where the socket is not connected: (literal address, port); the all-zero address
        with port 0 stands for every destination. A non-adaptive flow is marked from now on, an adaptive
        one from its first rate contract. Raises InvalidRequest for a socket or destination that cannot be
        in a flow, LimitExceeded where the table, or this user's share of it, is full.
        """
        return Flow(self, self._channel.run(calls.add_socket(traffic_type, 0, dest, adaptive), descriptor(sock)))

    def add_program(self, traffic_type: TrafficType) -> Flow:
        """Begin a flow of all sockets that this process and its children make from now on."""
        return Flow(self, self._channel.run(calls.add_program(traffic_type)))

    def enumerate(self) -> list[FlowId]:
        """The ids of all flows of the machine. NotPermitted unless root or in the group `qos2`."""
        return self._run_all(calls.all_flow_ids())

    def flows(self) -> list[protocol.FlowDetails]:
        """Details of all flows of the machine where privileged, else of those of this user, in order of slots."""
        return self._run_all(calls.all_flows())

    def flow_details(self, flow: int) -> protocol.FlowDetails:
        """Details of one flow; NoSuchFlow where there is none of this id that the caller may see."""
        return self._channel.run(calls.flow_details(flow))

    def explain(self, flow: int) -> protocol.Explanation:
        """Why a flow that the caller may see is called congested or not: its last changes, each with its evidence."""
        return self._channel.run(calls.explain(flow))

    def status(self) -> protocol.StatusReport:
        """The daemon and its datapath, all devices in one report."""
        return self._run_all(calls.whole_status())

    def start_tracking(self, address: str) -> None:
        """Estimate the path to a host (a literal address) before there is a flow to it, until `stop_tracking`.

        Again for the same host it changes nothing. Raises InvalidRequest for what is no host's address,
        NotSupported for a host whose path cannot be estimated, HostUnreachable without a route to it.
        """
        self._channel.run(calls.start_tracking(address))

    def stop_tracking(self, address: str) -> None:
        """The end of `start_tracking`, of this or another handle of the process. NoSuchFlow where it is not tracked."""
        self._channel.run(calls.stop_tracking(address))

    def reload(self) -> protocol.Reloaded:
        """Have the daemon read the administrator's policy anew. NotPermitted unless root or in the group `qos2`.

        Raises ConfigError with a line for each mistake; whatever is raised, the policy so far stays in force.
        """
        return self._channel.run(calls.reload())

    def policy(self) -> list[protocol.RuleDetails]:
        """The rules of the administrator's policy, in order of decision; their counters for the privileged alone."""
        return self._run_all(calls.policy())

    def policy_decision(
        self, question: protocol.PolicyTest | protocol.PolicyExplain, sock: Socket | None = None
    ) -> protocol.PolicyDecision:
        """Which rule a connection meets and why the others do not: one that is described, a flow's, or a socket's.

        Raises InvalidRequest for what cannot be, NoSuchFlow, NotPermitted for another user's process.
        """
        return self._run_all(calls.policy_decision(question), -1 if sock is None else descriptor(sock))

    def begin(self, call: Call[T], fd: int = -1) -> Operation[T]:
        """Send any call of wire/calls.py, with a descriptor or without, and do not wait. For qos2.win32.

        Raises LimitExceeded where no thread can be started to receive the answer.
        """
        return self._channel.begin(call, fd)

    def _run_all(self, steps: Steps[T], fd: int = -1) -> T:
        """Calls in turn, each made of what came of those before it, and each with the same descriptor."""
        try:
            call = next(steps)
            while True:
                call = steps.send(self._channel.run(call, fd))
        except StopIteration as end:
            value: T = end.value
            return value


def socket_path(path: str | os.PathLike[str] | None) -> str:
    """Where the daemon listens: `path`, else $QOS2_SOCKET, else DEFAULT_PATH."""
    return os.fspath(path) if path is not None else os.environ.get(PATH_VARIABLE) or DEFAULT_PATH


def unavailable(path: str, error: OSError | ServiceLost) -> QosError:
    """Why no handle could be opened; BlockingIOError: the daemon's backlog is full."""
    if isinstance(error, ServiceLost):
        return ServiceUnavailable(f"the daemon at {path}: {error.message}", "see its log")
    if isinstance(error, PermissionError):
        return NotPermitted(f"no access to {path}", "the daemon's socket_mode says who may connect")
    if isinstance(error, BlockingIOError):
        return ServiceUnavailable(f"the daemon at {path} does not answer", "see its log")
    reason = error.strerror or str(error)
    return ServiceUnavailable(f"no daemon at {path}: {reason}", f"start qos2d, or name its socket in ${PATH_VARIABLE}")


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
