"""The error tree, each error with its wire code, its Win32 number and, where it helps, a hint.

    QosError
    ├── InvalidRequest        a value, a combination or a socket that cannot be honoured
    │   ├── ProtocolError     bytes that are no request: not JSON, wrong version, too long, surplus descriptors
    │   └── InvalidHandle     no handle, or one that is closed
    ├── NotPermitted          the caller lacks the right
    │   └── DeniedByPolicy    the administrator's configuration forbids it
    ├── NoSuchFlow            unknown flow id, or a flow of somebody else
    ├── LimitExceeded         the flow table is full, or this user's share of it
    ├── NotSupported          not on this path or not yet
    │   └── NotAdaptive       the call needs an adaptive flow
    ├── NoData Retry NetworkBusy AlreadyExists Cancelled    answers of estimates and notifications
    ├── HostUnreachable       no route to the host at the other end
    ├── TimedOut              the caller did not want to wait any longer
    ├── ServiceUnavailable    the client cannot reach the daemon
    ├── ServiceLost           the daemon went away under a live handle
    ├── DatapathError         the kernel refused
    │   ├── AbiMismatch MissingKernelFeature DeviceGone
    ├── ConfigError AlreadyRunning                          the daemon cannot start
    └── InternalError         a bug of the daemon in this one request

`win32` numbers are those of winerror.h, as the QoS2 pages list them per call.
"""

from typing import ClassVar


class QosError(Exception):
    """Base of every error of this package. `code` is the word on the wire, `hint` says what to do."""

    code: ClassVar[str] = "error"
    win32: ClassVar[int] = 31

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class InvalidRequest(QosError):
    """A value, a combination or a socket that cannot be honoured (ERROR_INVALID_PARAMETER)."""

    code = "invalid_request"
    win32 = 87


class ProtocolError(InvalidRequest):
    """Bytes that are no request of this protocol."""

    code = "protocol_error"


class InvalidHandle(InvalidRequest):
    """No handle, or one that is closed (ERROR_INVALID_HANDLE)."""

    code = "invalid_handle"
    win32 = 6


class NotPermitted(QosError):
    """The caller lacks the right (ERROR_ACCESS_DENIED)."""

    code = "not_permitted"
    win32 = 5


class DeniedByPolicy(NotPermitted):
    """The administrator's configuration forbids it (ERROR_ACCESS_DISABLED_BY_POLICY)."""

    code = "denied_by_policy"
    win32 = 1260


class NoSuchFlow(QosError):
    """Unknown flow id, a flow of somebody else, or a socket that is not in it (ERROR_NOT_FOUND)."""

    code = "no_such_flow"
    win32 = 1168


class LimitExceeded(QosError):
    """The flow table is full, or this user's share of it (ERROR_NO_SYSTEM_RESOURCES)."""

    code = "limit_exceeded"
    win32 = 1450


class NotSupported(QosError):
    """Not possible on this path, or not yet implemented (ERROR_NOT_SUPPORTED)."""

    code = "not_supported"
    win32 = 50


class NotAdaptive(NotSupported):
    """The call needs an adaptive flow (ERROR_NOT_SUPPORTED)."""

    code = "not_adaptive"


class NoData(QosError):
    """No estimate exists yet (ERROR_NO_DATA)."""

    code = "no_data"
    win32 = 232


class Retry(QosError):
    """Too little data so far; transient (ERROR_RETRY)."""

    code = "retry"
    win32 = 1237


class NetworkBusy(QosError):
    """Admission refused the rate (ERROR_NETWORK_BUSY)."""

    code = "network_busy"
    win32 = 54


class AlreadyExists(QosError):
    """A request of this kind is pending on the flow already (ERROR_ALREADY_EXISTS)."""

    code = "already_exists"
    win32 = 183


class Cancelled(QosError):
    """The operation was cancelled, or its handle or flow ended (ERROR_OPERATION_ABORTED)."""

    code = "cancelled"
    win32 = 995


class HostUnreachable(QosError):
    """There is no route to the host at the other end (ERROR_HOST_UNREACHABLE)."""

    code = "host_unreachable"
    win32 = 1232


class TimedOut(QosError):
    """The caller's time was over before the answer came (ERROR_TIMEOUT)."""

    code = "timed_out"
    win32 = 1460


class ServiceUnavailable(QosError):
    """The daemon cannot be reached (ERROR_SERVICE_DEPENDENCY_FAIL)."""

    code = "service_unavailable"
    win32 = 1068


class ServiceLost(QosError):
    """The daemon went away under a live handle (ERROR_DEVICE_REINITIALIZATION_NEEDED): make a new one."""

    code = "service_lost"
    win32 = 1164


class DatapathError(QosError):
    """The kernel refused (ERROR_IO_DEVICE)."""

    code = "datapath_error"
    win32 = 1117


class AbiMismatch(DatapathError):
    """The compiled maps and abi.py disagree about the layout of a structure."""

    code = "abi_mismatch"


class MissingKernelFeature(DatapathError):
    """The kernel, its headers, a file system or a privilege that the datapath needs is not there."""

    code = "missing_kernel_feature"


class DeviceGone(DatapathError):
    """The network device does not exist (any more)."""

    code = "device_gone"


class ConfigError(QosError):
    """The configuration file is wrong; the message names file and key."""

    code = "config_error"
    win32 = 87


class AlreadyRunning(QosError):
    """Another daemon owns the socket or the datapath (ERROR_SERVICE_ALREADY_RUNNING)."""

    code = "already_running"
    win32 = 1056


class InternalError(QosError):
    """A bug of the daemon in this one request; its log has the traceback (ERROR_GEN_FAILURE)."""

    code = "internal"
    win32 = 31


def _tree(root: type[QosError]) -> dict[str, type[QosError]]:
    found = {root.code: root}
    for child in root.__subclasses__():
        found |= _tree(child)
    return found


BY_CODE: dict[str, type[QosError]] = _tree(QosError)
