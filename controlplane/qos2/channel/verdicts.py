"""What becomes of calls when a connection ends: replies that the daemon did not send."""

from qos2.errors import Cancelled, InvalidHandle, ServiceLost
from qos2.wire.protocol import failure

GONE = failure(0, ServiceLost("the daemon went away", "make a new qos2.Handle and add the sockets again"))
SILENT = failure(0, ServiceLost("the daemon does not answer", "see its log; then make a new qos2.Handle"))
CLOSED = failure(0, InvalidHandle("the handle is closed", "make a new qos2.Handle"))
CLOSING = failure(0, Cancelled("the handle was closed during the call", "make a new qos2.Handle"))
INHERITED = failure(
    0, InvalidHandle("this handle belongs to the parent process", "a forked child makes a qos2.Handle of its own")
)
