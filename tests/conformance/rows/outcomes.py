"""Refusals that many rows expect."""

from conformance import numbers
from conformance.table import fails

NO_RIGHT = fails(numbers.ERROR_ACCESS_DENIED)
BAD_HANDLE = fails(numbers.ERROR_INVALID_HANDLE)
UNSUPPORTED = fails(numbers.ERROR_NOT_SUPPORTED)
BUSY = fails(numbers.ERROR_NETWORK_BUSY)
INVALID = fails(numbers.ERROR_INVALID_PARAMETER)
EXISTS = fails(numbers.ERROR_ALREADY_EXISTS)
NO_DATA = fails(numbers.ERROR_NO_DATA)
ABORTED = fails(numbers.ERROR_OPERATION_ABORTED)
INCOMPLETE = fails(numbers.ERROR_IO_INCOMPLETE)
PENDING = fails(numbers.ERROR_IO_PENDING)
NO_DAEMON = fails(numbers.ERROR_SERVICE_DEPENDENCY_FAIL)
KERNEL_REFUSED = fails(numbers.ERROR_IO_DEVICE)
DAEMON_LOST = fails(numbers.ERROR_DEVICE_REINITIALIZATION_NEEDED)
NOT_FOUND = fails(numbers.ERROR_NOT_FOUND)
NO_ROUTE_THERE = fails(numbers.ERROR_HOST_UNREACHABLE)
RETRY = fails(numbers.ERROR_RETRY)
POLICY = fails(numbers.ERROR_ACCESS_DISABLED_BY_POLICY)
EXHAUSTED = fails(numbers.ERROR_NO_SYSTEM_RESOURCES)
