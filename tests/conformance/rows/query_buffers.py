"""QOSQueryFlow: sizes, pointers, and OVERLAPPED."""

from conformance.calls import query, result
from conformance.numbers import (
    ERROR_INSUFFICIENT_BUFFER,
    FRESH,
    QUERY_FUNDAMENTALS,
    QUERY_PRIORITY,
    QUERY_RATE,
)
from conformance.rows.outcomes import (
    INVALID,
    NO_DATA,
    NOT_FOUND,
    POLICY,
    UNSUPPORTED,
)
from conformance.rows.states import (
    ADAPTIVE_FLOW,
    ALL,
    ESTIMATED,
    FLOW,
    READY,
)
from conformance.table import Judge, Row, fails, gives
from conformance.vocabulary import (
    DENIED,
    NULL,
    PEER,
    UNKNOWN_FLOW,
    CannotMeasure,
    Priority,
)

BUFFERS = [
    *(
        Row(
            f"operation {operation} into {size} bytes",
            "3.11, 6.6",
            ESTIMATED,
            query(operation, size=size),
            fails(ERROR_INSUFFICIENT_BUFFER, size=need),
            judge=Judge.CLIENT,
        )
        for operation, size, need in [
            (QUERY_FUNDAMENTALS, 39, 40),
            (QUERY_FUNDAMENTALS, 0, 40),
            (QUERY_PRIORITY, 15, 16),
            (QUERY_RATE, 7, 8),
            (QUERY_RATE, 0, 8),
        ]
    ),
    Row(
        "a larger buffer for estimates", "3.11", ESTIMATED, query(QUERY_FUNDAMENTALS, size=64), ALL, judge=Judge.CLIENT
    ),
    Row(
        "a larger buffer for priorities",
        "3.11",
        FLOW,
        query(QUERY_PRIORITY, size=64),
        gives(Priority(56), 16),
        judge=Judge.CLIENT,
    ),
    Row("a larger buffer for rates", "3.11", FLOW, query(QUERY_RATE, size=64), gives(0, 8), judge=Judge.CLIENT),
    *(
        Row(f"operation {operation}: NULL size", "6.6", FLOW, query(operation, size=NULL), INVALID, judge=Judge.POINTER)
        for operation in range(3)
    ),
    *(
        Row(
            f"operation {operation}: NULL buffer",
            "6.6",
            FLOW,
            query(operation, buffer=NULL),
            INVALID,
            judge=Judge.POINTER,
        )
        for operation in range(3)
    ),
    Row(
        "a small buffer before no data",
        "3.11 [R]",
        ADAPTIVE_FLOW,
        query(QUERY_FUNDAMENTALS, size=39),
        fails(ERROR_INSUFFICIENT_BUFFER, size=40),
        judge=Judge.CLIENT,
    ),
    Row(
        "a small buffer before a measurement that is not to be had",
        "3.11 [R]",
        (*ESTIMATED, CannotMeasure(PEER)),
        query(QUERY_FUNDAMENTALS, size=39, flags=FRESH),
        fails(ERROR_INSUFFICIENT_BUFFER, size=40),
        judge=Judge.CLIENT,
    ),
    Row(
        "what is not supported before a small buffer",
        "3.11 [R]",
        FLOW,
        query(QUERY_FUNDAMENTALS, size=39),
        UNSUPPORTED,
        judge=Judge.CLIENT,
    ),
    Row(
        "an unknown flow before a small buffer",
        "3.11 [R]",
        READY,
        query(QUERY_RATE, UNKNOWN_FLOW, size=7),
        NOT_FOUND,
        judge=Judge.CLIENT,
    ),
    Row(
        "a denial before a small buffer",
        "3.11 [R]",
        ADAPTIVE_FLOW,
        query(QUERY_FUNDAMENTALS, size=39),
        POLICY,
        judge=Judge.CLIENT,
        world=DENIED,
    ),
    Row(
        "a NULL size before an unknown flow",
        "3.11 [R]",
        READY,
        query(QUERY_RATE, UNKNOWN_FLOW, size=NULL),
        INVALID,
        judge=Judge.POINTER,
    ),
]

OVERLAPPED = [
    Row(
        "overlapped",
        "1.9, 1.12",
        FLOW,
        query(QUERY_PRIORITY, overlapped="o"),
        gives(Priority(56), 16),
        judge=Judge.CLIENT,
    ),
    Row(
        "overlapped, the buffer is filled when the event is written",
        "1.12",
        (*ESTIMATED, query(QUERY_FUNDAMENTALS, overlapped="o")),
        result(),
        ALL,
        judge=Judge.CLIENT,
    ),
    Row(
        "overlapped, refused",
        "1.12",
        ADAPTIVE_FLOW,
        query(QUERY_FUNDAMENTALS, overlapped="o"),
        NO_DATA,
        judge=Judge.CLIENT,
    ),
    Row(
        "overlapped, an unknown flow",
        "1.12",
        READY,
        query(QUERY_RATE, 0, overlapped="o"),
        NOT_FOUND,
        judge=Judge.CLIENT,
    ),
    Row(
        "overlapped, used again after its completion",
        "1.12",
        (*FLOW, query(QUERY_PRIORITY, overlapped="o"), result()),
        query(QUERY_RATE, overlapped="o"),
        gives(0, 8),
        judge=Judge.CLIENT,
    ),
]

ROWS = [*BUFFERS, *OVERLAPPED]
