"""Handle and Flow for asyncio: the methods of qos2.Handle and qos2.Flow, each of them awaited."""

import os
from collections.abc import Generator
from types import TracebackType
from typing import Any, TypeVar

from qos2.aio.transport import Channel
from qos2.channel.timeouts import patience_s
from qos2.client import Socket, descriptor, socket_path, unavailable
from qos2.errors import Cancelled, InvalidHandle, InvalidRequest, NoSuchFlow, ServiceLost
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
from qos2.wire.calls import Endpoint, Steps

T = TypeVar("T")


class Flow:
    """As qos2.Flow: `async with await qos.add_socket(...) as flow` ends it at the end of the block."""

    __slots__ = ("_channel", "_closed", "id")

    def __init__(self, handle: "Handle", flow: FlowId) -> None:
        self._channel = handle._opened()
        self._closed = False
        self.id = flow

    def __repr__(self) -> str:
        return f"<Flow {self.id:#010x}{' closed' if self._closed else ''}>"

    async def __aenter__(self) -> "Flow":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def add_socket(self, sock: Socket, dest: Endpoint | None = None) -> None:
        """As qos2.Flow.add_socket. The socket must stay open until it returns."""
        await self._channel.run(calls.add_socket(0, self.id, dest, False), descriptor(sock))

    async def remove_socket(self, sock: Socket) -> None:
        """As qos2.Flow.remove_socket. The socket must stay open until it returns."""
        await self._channel.run(calls.remove_socket(self.id), descriptor(sock))

    async def set_traffic_type(self, traffic_type: TrafficType) -> None:
        """As qos2.Flow.set_traffic_type."""
        await self._channel.run(calls.set_traffic_type(self.id, traffic_type))

    async def set_rate(
        self,
        bandwidth: int,
        shaping: Shaping = Shaping.SHAPE_AND_MARK,
        reason: RateReason = RateReason.NOT_APPLICABLE,
    ) -> None:
        """As qos2.Flow.set_rate: bits/s at IP level."""
        await self._channel.run(calls.set_rate(self.id, bandwidth, shaping, reason))

    async def set_dscp(self, dscp: int) -> None:
        """As qos2.Flow.set_dscp: 0..63."""
        await self._channel.run(calls.set_dscp(self.id, dscp))

    async def priority(self) -> PacketPriority:
        """As qos2.Flow.priority."""
        return await self._channel.run(calls.priority(self.id))

    async def rate(self) -> FlowRate | None:
        """As qos2.Flow.rate."""
        return await self._channel.run(calls.rate(self.id))

    async def stats(self) -> FlowStats:
        """As qos2.Flow.stats."""
        return await self._channel.run(calls.stats(self.id))

    async def fundamentals(self, fresh: bool = False) -> FlowFundamentals:
        """As qos2.Flow.fundamentals."""
        return await self._channel.run(calls.fundamentals(self.id, fresh))

    async def notify(
        self,
        condition: Condition,
        bandwidth: int = 0,
        timeout: float | None = None,  # noqa: ASYNC109  # the same arguments as in qos2
    ) -> None:
        """As qos2.Flow.notify. A task that is cancelled in it cancels the wait at the daemon."""
        await self._channel.run(calls.notify(self.id, condition, bandwidth), within_s=timeout)

    async def report(
        self, *, rtt: float | None = None, loss: float | None = None, delivered: int | None = None
    ) -> None:
        """As qos2.Flow.report."""
        await self._channel.run(calls.report(self.id, rtt, loss, delivered))

    async def close(self) -> None:
        """As qos2.Flow.close."""
        if self._closed:
            return
        self._closed = True
        try:
            await self._channel.run(calls.remove_socket(self.id))
        except (NoSuchFlow, ServiceLost, InvalidHandle, Cancelled):
            return  # it has ended already, with its last socket, the daemon or the handle


class Handle:
    """As qos2.Handle, of the same arguments. It opens by `async with Handle() as qos` or `qos = await Handle()`.

    That raises ServiceUnavailable, NotPermitted or LimitExceeded as qos2.Handle() does. Any number of tasks may
    use it at once; another loop, and thus another thread, may not (InvalidRequest).
    """

    def __init__(self, path: str | os.PathLike[str] | None = None, *, timeout: float | None = 10.0) -> None:
        patience_s(timeout)
        self.path = socket_path(path)
        self._timeout = timeout
        self._channel: Channel | None = None
        self.server_version = ""
        #: Whether this caller may set a raw DSCP and see the flows of others.
        self.privileged = False

    def __repr__(self) -> str:
        return f"<Handle {self.path}{' closed' if self.closed else ''}>"

    def __await__(self) -> Generator[Any, None, "Handle"]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> "Handle":
        if self._channel is not None:
            raise InvalidRequest("the handle was opened already", "make a new qos2.aio.Handle")
        self._channel = channel = Channel(self._timeout)
        try:
            try:
                await channel.connect(self.path)
                opened = await channel.run(calls.open_handle())
            except BaseException:
                channel.abort()
                raise
        except (OSError, ServiceLost) as error:
            raise unavailable(self.path, error) from error
        self.server_version = opened.server
        self.privileged = opened.privileged
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def closed(self) -> bool:
        """Not opened yet, closed, lost, or the copy of a parent's handle in a forked child."""
        return self._channel is None or self._channel.closed

    async def close(self) -> None:
        """As qos2.Handle.close: what waits in other tasks ends with Cancelled."""
        if self._channel is not None:
            await self._channel.close()

    async def add_socket(
        self, sock: Socket, traffic_type: TrafficType, dest: Endpoint | None = None, adaptive: bool = False
    ) -> Flow:
        """As qos2.Handle.add_socket. The socket must stay open until it returns."""
        call = calls.add_socket(traffic_type, 0, dest, adaptive)
        return Flow(self, await self._opened().run(call, descriptor(sock)))

    async def add_program(self, traffic_type: TrafficType) -> Flow:
        """As qos2.Handle.add_program."""
        return Flow(self, await self._opened().run(calls.add_program(traffic_type)))

    async def enumerate(self) -> list[FlowId]:
        """As qos2.Handle.enumerate."""
        return await self._run_all(calls.all_flow_ids())

    async def flows(self) -> list[protocol.FlowDetails]:
        """As qos2.Handle.flows."""
        return await self._run_all(calls.all_flows())

    async def flow_details(self, flow: int) -> protocol.FlowDetails:
        """As qos2.Handle.flow_details."""
        return await self._opened().run(calls.flow_details(flow))

    async def explain(self, flow: int) -> protocol.Explanation:
        """As qos2.Handle.explain."""
        return await self._opened().run(calls.explain(flow))

    async def status(self) -> protocol.StatusReport:
        """As qos2.Handle.status."""
        return await self._run_all(calls.whole_status())

    async def start_tracking(self, address: str) -> None:
        """As qos2.Handle.start_tracking."""
        await self._opened().run(calls.start_tracking(address))

    async def stop_tracking(self, address: str) -> None:
        """As qos2.Handle.stop_tracking."""
        await self._opened().run(calls.stop_tracking(address))

    async def reload(self) -> protocol.Reloaded:
        """As qos2.Handle.reload."""
        return await self._opened().run(calls.reload())

    async def policy(self) -> list[protocol.RuleDetails]:
        """As qos2.Handle.policy."""
        return await self._run_all(calls.policy())

    async def policy_decision(
        self, question: protocol.PolicyTest | protocol.PolicyExplain, sock: Socket | None = None
    ) -> protocol.PolicyDecision:
        """As qos2.Handle.policy_decision. The socket must stay open until it returns."""
        return await self._run_all(calls.policy_decision(question), -1 if sock is None else descriptor(sock))

    def _opened(self) -> Channel:
        if self._channel is None:
            raise InvalidHandle("the handle is not open", "async with qos2.aio.Handle() as qos, or await it")
        return self._channel

    async def _run_all(self, steps: Steps[T], fd: int = -1) -> T:
        """Calls in turn, each made of what came of those before it, and each with the same descriptor."""
        channel = self._opened()
        try:
            call = next(steps)
            while True:
                call = steps.send(await channel.run(call, fd))
        except StopIteration as end:
            value: T = end.value
            return value
