"""Calls that are pending: a second one of the same kind, how they end, QOSCancel and GetOverlappedResult."""

from conformance.calls import add, cancel, close, create, notify, query, remove, result
from conformance.numbers import (
    AVAILABLE,
    CONGESTED,
    QUERY_PRIORITY,
    UNCONGESTED,
)
from conformance.rows.outcomes import (
    ABORTED,
    BAD_HANDLE,
    EXHAUSTED,
    EXISTS,
    INCOMPLETE,
    INVALID,
    PENDING,
)
from conformance.rows.states import (
    CONDITIONS,
    CONGESTION,
    FLOW,
    HELD_RATE,
    MORE,
    NO_CONGESTION,
    OPEN,
    RATED_FLOW,
    WAITING,
)
from conformance.table import OK, Judge, Row
from conformance.vocabulary import (
    INVENTED,
    NULL,
    PEER,
    World,
    shaped,
)

EXISTING = [
    *(
        Row(
            f"condition {condition} twice",
            "1.10",
            (*RATED_FLOW, notify(condition, total, overlapped="o")),
            notify(condition, total, overlapped="p"),
            EXISTS,
        )
        for condition, total in CONDITIONS
    ),
    Row(
        "bandwidth of another value is the same kind",
        "1.10",
        (*RATED_FLOW, notify(AVAILABLE, MORE, overlapped="o")),
        notify(AVAILABLE, 2 * MORE, overlapped="p"),
        EXISTS,
    ),
    Row(
        "twice, by another handle of the process",
        "1.10",
        (*WAITING, create("g")),
        notify(CONGESTED, overlapped="p", handle="g"),
        EXISTS,
    ),
    Row("twice, waiting without OVERLAPPED", "1.10", WAITING, notify(CONGESTED), EXISTS),
    Row(
        "the first one goes on after a second was refused",
        "1.10",
        (*RATED_FLOW, notify(CONGESTED, overlapped="o"), NO_CONGESTION, notify(UNCONGESTED), CONGESTION),
        result(),
        OK,
    ),
    Row(
        "after the first one was cancelled",
        "1.10, 1.11",
        (*WAITING, cancel(), result()),
        notify(CONGESTED, overlapped="o"),
        PENDING,
    ),
    Row(
        "a bandwidth that is held before one that is pending",
        "3.11 [R]",
        (*RATED_FLOW, notify(AVAILABLE, MORE, overlapped="o")),
        notify(AVAILABLE, HELD_RATE),
        INVALID,
    ),
    Row(
        "an OVERLAPPED that is in use",
        "1.12 [R]",
        WAITING,
        notify(UNCONGESTED, overlapped="o"),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row(
        "more at a time than a handle may have",
        "1.10",
        WAITING,
        notify(UNCONGESTED, overlapped="p"),
        EXHAUSTED,
        world=World(limits={"pending_per_handle": 1}),
    ),
]

ENDS = [
    Row("cancelled", "1.10, 1.11", (*WAITING, cancel()), result(), ABORTED),
    Row("its handle is closed", "1.2, 1.10", (*WAITING, close()), result(), ABORTED),
    Row("its flow is removed", "1.10, 3.7 [R]", (*WAITING, remove()), result(), ABORTED),
    Row("its socket is removed", "1.10, 3.7 [R]", (*WAITING, remove("s")), result(), ABORTED),
    Row(
        "its flow is removed by another handle",
        "3.7 [R]",
        (*WAITING, create("g"), remove(handle="g")),
        result(),
        ABORTED,
    ),
    Row(
        "another flow is removed",
        "3.7",
        (*WAITING, add(into="g", to=PEER, flags=2), remove(flow="g")),
        result(wait=False),
        INCOMPLETE,
    ),
    Row(
        "another handle is closed",
        "1.2",
        (*WAITING, create("g"), close("g")),
        result(wait=False),
        INCOMPLETE,
    ),
    Row(
        "the handle that waits is closed, not the flow's",
        "1.2 [R]",
        (*RATED_FLOW, create("g"), notify(CONGESTED, overlapped="o", handle="g"), close("g")),
        result(handle="g"),
        ABORTED,
        {("s", PEER): shaped(HELD_RATE, 56)},
    ),
]

CANCELS = [
    Row("a wait", "1.11", WAITING, cancel(), OK),
    Row("NULL", "1.11", (OPEN,), cancel(NULL), INVALID, judge=Judge.CLIENT),
    Row("an OVERLAPPED that was never used", "1.11 [R]", RATED_FLOW, cancel(), INVALID, judge=Judge.CLIENT),
    Row(
        "an OVERLAPPED that has completed",
        "1.11 [R]",
        (*WAITING, CONGESTION, result()),
        cancel(),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row(
        "an OVERLAPPED whose call completed at once",
        "1.11 [R]",
        (*FLOW, query(QUERY_PRIORITY, overlapped="o"), result()),
        cancel(),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row("twice", "1.11 [R]", (*WAITING, cancel(), result()), cancel(), INVALID, judge=Judge.CLIENT),
    Row(
        "through another handle than the pending call's",
        "1.11 [R]",
        (*WAITING, create("g")),
        cancel(handle="g"),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row("one of two waits", "1.11", (*WAITING, notify(UNCONGESTED, overlapped="p")), cancel("p"), OK),
    Row("a closed handle", "1.11", (*WAITING, close()), cancel(), BAD_HANDLE, judge=Judge.CLIENT),
    Row("no handle", "1.11", WAITING, cancel(handle=NULL), BAD_HANDLE, judge=Judge.CLIENT),
    Row("an invented handle", "1.11", WAITING, cancel(handle=INVENTED), BAD_HANDLE, judge=Judge.CLIENT),
    Row("a closed handle before NULL", "3.11 [R]", (OPEN, close()), cancel(NULL), BAD_HANDLE, judge=Judge.CLIENT),
]

RESULTS = [
    Row("while it waits", "1.12", WAITING, result(wait=False), INCOMPLETE),
    Row(
        "the other wait, after one was cancelled",
        "1.11",
        (*WAITING, notify(UNCONGESTED, overlapped="p"), cancel("p"), result("p")),
        result(wait=False),
        INCOMPLETE,
    ),
]

ROWS = [*EXISTING, *ENDS, *CANCELS, *RESULTS]
