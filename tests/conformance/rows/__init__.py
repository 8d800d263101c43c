"""The rows, by call. ROWS is all of them."""

from conformance.rows import (
    add_socket,
    destinations,
    enumeration,
    handles,
    lost,
    notify_flow,
    pending,
    query_buffers,
    query_flow,
    remove_socket,
    set_flow,
    set_rate,
    tracking,
)
from conformance.table import Row

ROWS: list[Row] = [
    *handles.ROWS,
    *tracking.ROWS,
    *enumeration.ROWS,
    *add_socket.ROWS,
    *destinations.ROWS,
    *remove_socket.ROWS,
    *set_flow.ROWS,
    *set_rate.ROWS,
    *query_flow.ROWS,
    *query_buffers.ROWS,
    *notify_flow.ROWS,
    *pending.ROWS,
    *lost.ROWS,
]
