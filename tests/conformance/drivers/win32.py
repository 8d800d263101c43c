"""A program over qos2.win32."""

import select
from collections.abc import Callable
from typing import Any

from conformance.calls import Rate
from conformance.drivers.base import PATIENCE_S
from conformance.drivers.binding import BindingDriver
from conformance.numbers import ERROR_INSUFFICIENT_BUFFER, ERROR_IO_PENDING
from conformance.vocabulary import NULL, Address, Fundamentals, Named, Outcome, Pointer, Priority
from qos2.win32 import (
    OVERLAPPED,
    QOS_FLOW_FUNDAMENTALS,
    QOS_FLOWRATE_OUTGOING,
    QOS_PACKET_PRIORITY,
    GetOverlappedResult,
    QOSAddSocketToFlow,
    QOSCancel,
    QOSCloseHandle,
    QOSCreateHandle,
    QOSEnumerateFlows,
    QOSNotifyFlow,
    QOSQueryFlow,
    QOSRemoveSocketFromFlow,
    QOSSetFlow,
    QOSStartTrackingClient,
    QOSStopTrackingClient,
    WinError,
)


class Win32Driver(BindingDriver):
    """Out-parameters are results there, so that sizes are seen only where a buffer is too small."""

    def expected(self, outcome: Outcome) -> Outcome:
        size = outcome.size if outcome.error == ERROR_INSUFFICIENT_BUFFER else None
        return Outcome(outcome.error, outcome.value, size)

    def new_overlapped(self) -> OVERLAPPED:
        made = OVERLAPPED()
        made.fileno()  # from here on its event is written
        return made

    def QOSCreateHandle(self, Version: Any, QOSHandle: Any = None) -> Outcome:
        with self.scene.user():
            return _outcome(lambda: QOSCreateHandle(_pointed(Version), path=self.scene.path))

    def QOSCloseHandle(self, QOSHandle: Any) -> Outcome:
        return _outcome(lambda: QOSCloseHandle(_handle(QOSHandle)))

    def QOSStartTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int) -> Outcome:
        return _outcome(lambda: QOSStartTrackingClient(_handle(QOSHandle), self._address(DestAddr), Flags))

    def QOSStopTrackingClient(self, QOSHandle: Any, DestAddr: Any, Flags: int) -> Outcome:
        return _outcome(lambda: QOSStopTrackingClient(_handle(QOSHandle), self._address(DestAddr), Flags))

    def QOSEnumerateFlows(self, QOSHandle: Any, Size: Any, Buffer: Any) -> Outcome:
        return _outcome(lambda: QOSEnumerateFlows(_handle(QOSHandle), Size))

    def QOSAddSocketToFlow(
        self, QOSHandle: Any, Socket: str, DestAddr: Any, TrafficType: int, Flags: int, FlowId: Any
    ) -> Outcome:
        fd, address = self.scene.descriptors[Socket], self._address(DestAddr)
        return _outcome(lambda: QOSAddSocketToFlow(_handle(QOSHandle), fd, address, TrafficType, Flags, FlowId))

    def QOSRemoveSocketFromFlow(self, QOSHandle: Any, Socket: str | None, FlowId: int, Flags: int) -> Outcome:
        fd = None if Socket is None else self.scene.descriptors[Socket]
        return _outcome(lambda: QOSRemoveSocketFromFlow(_handle(QOSHandle), fd, FlowId, Flags))

    def QOSSetFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        return self._started(
            Overlapped, lambda o: QOSSetFlow(_handle(QOSHandle), FlowId, Operation, Size, _pointed(Buffer), Flags, o)
        )

    def QOSQueryFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        return self._started(Overlapped, lambda o: QOSQueryFlow(_handle(QOSHandle), FlowId, Operation, Size, Flags, o))

    def QOSNotifyFlow(
        self, QOSHandle: Any, FlowId: int, Operation: int, Size: Any, Buffer: Any, Flags: int, Overlapped: Any
    ) -> Outcome:
        size, buffer = _pointed(Size), _pointed(Buffer)
        return self._started(
            Overlapped, lambda o: QOSNotifyFlow(_handle(QOSHandle), FlowId, Operation, size, buffer, Flags, o)
        )

    def QOSCancel(self, QOSHandle: Any, Overlapped: Any) -> Outcome:
        overlapped: Any = None if Overlapped is NULL else self.overlapped(Overlapped)
        return _outcome(lambda: QOSCancel(_handle(QOSHandle), overlapped))

    def GetOverlappedResult(self, QOSHandle: Any, Overlapped: str, Wait: bool) -> Outcome:
        overlapped = self.overlapped(Overlapped)
        if Wait:
            assert select.select([overlapped], [], [], PATIENCE_S)[0], f"the event of {Overlapped} is not written"
        return _outcome(lambda: GetOverlappedResult(QOSHandle, overlapped, Wait))

    def _started(self, name: str | None, call: Callable[[OVERLAPPED | None], Any]) -> Outcome:
        """The outcome of a call that takes an OVERLAPPED, or none."""
        if name is None:
            return _outcome(lambda: call(None))
        overlapped = self.overlapped(name)
        outcome = _outcome(lambda: call(overlapped))
        if outcome.error:
            return outcome
        assert outcome.value is overlapped
        return Outcome(ERROR_IO_PENDING)

    def _address(self, address: Address | Pointer | None) -> Any:
        return self.scene.written(address) if isinstance(address, Address) else None


def _outcome(call: Callable[[], Any]) -> Outcome:
    try:
        value = call()
    except WinError as error:
        return Outcome(error.winerror, size=error.size or None)
    return Outcome(0, _value(value))


def _value(value: Any) -> object:
    """A result in the words of the table."""
    match value:
        case QOS_PACKET_PRIORITY():
            return Priority(
                value.ConformantDSCPValue,
                value.NonConformantDSCPValue,
                value.ConformantL2Value,
                value.NonConformantL2Value,
            )
        case QOS_FLOW_FUNDAMENTALS():
            return Fundamentals(
                value.BottleneckBandwidth if value.BottleneckBandwidthSet else None,
                value.AvailableBandwidth if value.AvailableBandwidthSet else None,
                value.RTT if value.RTTSet else None,
            )
    return value


def _pointed(value: Any) -> Any:
    """What is passed for a pointer: None for NULL, the structure of a rate, else the value itself."""
    if value is NULL:
        return None
    if isinstance(value, Rate):
        return QOS_FLOWRATE_OUTGOING(value.bandwidth, value.shaping, value.reason)
    return value


def _handle(handle: Any) -> Any:
    """NULL, a number that is no handle, or what QOSCreateHandle has made."""
    if handle is NULL:
        return None
    return 0x7FFF_1234 if isinstance(handle, Named) else handle
