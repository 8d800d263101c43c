"""Win32 error numbers, and the exception that carries one.

The numbers are those of winerror.h that the QoS2 pages name, with what Windows' overlapped calls need.
An error of the daemon or of the client becomes a WinError here, with the number that the Windows call
would leave for GetLastError, and with its own message and hint.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from qos2.errors import QosError

P = ParamSpec("P")
T = TypeVar("T")

ERROR_SUCCESS = 0
ERROR_ACCESS_DENIED = 5
ERROR_INVALID_HANDLE = 6
ERROR_NOT_ENOUGH_MEMORY = 8
ERROR_GEN_FAILURE = 31
ERROR_NOT_SUPPORTED = 50
ERROR_NETWORK_BUSY = 54
ERROR_ADAP_HDW_ERR = 57
ERROR_UNEXP_NET_ERR = 59
ERROR_BAD_NET_NAME = 67
ERROR_INVALID_PARAMETER = 87
ERROR_INSUFFICIENT_BUFFER = 122
ERROR_BUSY = 170
ERROR_ALREADY_EXISTS = 183
ERROR_NO_DATA = 232
ERROR_SYSTEM_POWERSTATE_TRANSITION = 782
ERROR_SYSTEM_POWERSTATE_COMPLEX_TRANSITION = 783
ERROR_OPERATION_ABORTED = 995
ERROR_IO_INCOMPLETE = 996
ERROR_IO_PENDING = 997
ERROR_SERVICE_ALREADY_RUNNING = 1056
ERROR_SERVICE_DEPENDENCY_FAIL = 1068
ERROR_IO_DEVICE = 1117
ERROR_DEVICE_REINITIALIZATION_NEEDED = 1164
ERROR_NOT_FOUND = 1168
ERROR_CONNECTION_REFUSED = 1225
ERROR_HOST_UNREACHABLE = 1232
ERROR_RETRY = 1237
ERROR_ACCESS_DISABLED_BY_POLICY = 1260
ERROR_NO_SYSTEM_RESOURCES = 1450
ERROR_TIMEOUT = 1460
ERROR_RESOURCE_DISABLED = 4309

#: Number -> name in winerror.h, of every constant above.
ERROR_NAMES: dict[int, str] = {number: name for name, number in globals().items() if name.startswith("ERROR_")}


class WinError(OSError):
    """A call of qos2.win32 failed; `winerror` is what GetLastError would return on Windows.

    It is an OSError with `winerror`, as ctypes.WinError() makes on Windows, so that `except OSError` of a
    program from there goes on working; `errno` is None, for the number is none. `strerror` says what is
    wrong and `hint` what to do; `size` is the number of bytes needed, with ERROR_INSUFFICIENT_BUFFER.
    The error of the package that it stands for, if any, is its `__cause__`.
    """

    def __init__(self, winerror: int, message: str, hint: str = "", size: int = 0) -> None:
        super().__init__(message)
        self.winerror = winerror
        self.strerror = message
        self.hint = hint
        self.size = size

    def __reduce__(self) -> tuple[type["WinError"], tuple[int, str, str, int]]:
        return type(self), (self.winerror, self.strerror or "", self.hint, self.size)

    def __str__(self) -> str:
        hint = f" ({self.hint})" if self.hint else ""
        return f"[WinError {self.winerror}] {self.name}: {self.strerror}{hint}"

    @property
    def name(self) -> str:
        """The number's name in winerror.h, as "ERROR_NOT_FOUND"."""
        return ERROR_NAMES.get(self.winerror, f"ERROR_{self.winerror}")


def win_error(error: QosError) -> WinError:
    """`error` as Windows would number it; it becomes the cause where the result is raised `from` it."""
    return WinError(error.win32, error.message, error.hint)


def insufficient(given: int, needed: int) -> WinError:
    """ERROR_INSUFFICIENT_BUFFER for a buffer of `given` bytes."""
    return WinError(
        ERROR_INSUFFICIENT_BUFFER, f"a buffer of {given} bytes", f"{needed} are needed; Size=None fits", needed
    )


def windows(call: Callable[P, T]) -> Callable[P, T]:
    """Decorates a call: errors of the package leave it as WinError."""

    @wraps(call)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return call(*args, **kwargs)
        except QosError as error:
            raise win_error(error) from error

    return called
