"""QOSNotifyFlow: conditions, bandwidths, arguments. What becomes of calls that wait: pending.py."""

from conformance.calls import add, close, create, notify, remove, result, set_rate
from conformance.numbers import (
    ADAPTIVE,
    AVAILABLE,
    CONGESTED,
    ERROR_INSUFFICIENT_BUFFER,
    UNCONGESTED,
)
from conformance.rows.outcomes import (
    BAD_HANDLE,
    INCOMPLETE,
    INVALID,
    NO_ROUTE_THERE,
    NOT_FOUND,
    PENDING,
    POLICY,
    UNSUPPORTED,
)
from conformance.rows.states import (
    ADAPTIVE_FLOW,
    CONDITIONS,
    CONGESTION,
    FLOW,
    HELD_RATE,
    MET,
    MORE,
    NO_CONGESTION,
    NO_ROUTE,
    OFF_LINK_FLOW,
    ON_LINK,
    PRIVILEGED,
    RATED_FLOW,
    READY,
    ROOT,
    UDP,
    WAITING,
)
from conformance.table import OK, Judge, Row, fails
from conformance.vocabulary import (
    DENIED,
    INVENTED,
    NULL,
    PEER,
    UNKNOWN_FLOW,
    Congestion,
    Neighbour,
    shaped,
)

TOO_SMALL = fails(ERROR_INSUFFICIENT_BUFFER, size=8)
NO_CONDITION = 3

WAITS = [
    Row("the route is gone", "1.10", (*RATED_FLOW, NO_ROUTE), notify(CONGESTED), NO_ROUTE_THERE),
    *(
        Row(
            f"condition {condition} does not hold: it waits",
            "1.10, 3.7",
            RATED_FLOW,
            notify(condition, total, overlapped="o"),
            PENDING,
            {("s", PEER): shaped(HELD_RATE, 56)},
        )
        for condition, total in CONDITIONS
    ),
    *(
        Row(
            f"condition {condition} holds already",
            "1.10, 3.7",
            (*RATED_FLOW, MET[condition]),
            notify(condition, total),
            OK,
        )
        for condition, total in CONDITIONS
    ),
    *(
        Row(
            f"condition {condition} holds already, overlapped",
            "1.12",
            (*RATED_FLOW, MET[condition]),
            notify(condition, total, overlapped="o"),
            OK,
        )
        for condition, total in CONDITIONS
    ),
    *(
        Row(
            f"condition {condition} comes to hold",
            "3.7",
            (*RATED_FLOW, notify(condition, total, overlapped="o"), MET[condition]),
            result(),
            OK,
        )
        for condition, total in CONDITIONS
    ),
    Row(
        "another condition comes to hold",
        "3.7",
        (*WAITING, NO_CONGESTION),
        result(wait=False),
        INCOMPLETE,
    ),
    Row("a condition comes and goes: told once", "3.7", (*WAITING, CONGESTION, Congestion("f", None)), result(), OK),
    Row(
        "one-shot: it is asked again",
        "3.7",
        (*WAITING, CONGESTION, result(), Congestion("f", None)),
        notify(CONGESTED, overlapped="o"),
        PENDING,
    ),
    Row(
        "an adaptive flow without a rate can wait too",
        "1.10 [R]",
        ADAPTIVE_FLOW,
        notify(CONGESTED, overlapped="o"),
        PENDING,
    ),
    Row("for bandwidth without a rate", "1.10 [R]", ADAPTIVE_FLOW, notify(AVAILABLE, 1, overlapped="o"), PENDING),
    Row("another kind while one is pending", "1.10", WAITING, notify(UNCONGESTED, overlapped="p"), PENDING),
    Row(
        "the first of two kinds comes to hold",
        "1.12",
        (*WAITING, notify(AVAILABLE, MORE, overlapped="p"), CONGESTION),
        result(),
        OK,
    ),
    Row(
        "the second of two kinds still waits",
        "1.12",
        (*WAITING, notify(AVAILABLE, MORE, overlapped="p"), CONGESTION),
        result("p", wait=False),
        INCOMPLETE,
    ),
    Row(
        "one bit/s less than is wanted",
        "3.7",
        (*RATED_FLOW, Congestion("f", False, free=HELD_RATE - 1)),
        notify(AVAILABLE, MORE, overlapped="o"),
        PENDING,
    ),
    Row(
        "bandwidth on a congested path",
        "3.7",
        (*RATED_FLOW, Congestion("f", True, free=MORE)),
        notify(AVAILABLE, MORE, overlapped="o"),
        PENDING,
    ),
    Row(
        "the former rate, of a flow that has lowered its own",
        "3.7",
        (*RATED_FLOW, set_rate(HELD_RATE // 10)),
        notify(AVAILABLE, HELD_RATE, overlapped="o"),
        PENDING,
        {("s", PEER): shaped(HELD_RATE // 10, 56)},
    ),
    Row(
        "a lowered rate makes the increment larger",
        "1.10",
        (*RATED_FLOW, Congestion("f", False, free=HELD_RATE), set_rate(HELD_RATE // 10)),
        notify(AVAILABLE, MORE, overlapped="o"),
        PENDING,
    ),
    Row(
        "a raised rate makes the increment smaller",
        "1.10 [R]",
        (
            *RATED_FLOW,
            Congestion("f", False, free=1000),
            notify(AVAILABLE, MORE, overlapped="o"),
            set_rate(MORE - 1000),
        ),
        result(),
        OK,
    ),
]

BANDWIDTHS = [
    Row("as much as the flow holds", "1.10 [R]", RATED_FLOW, notify(AVAILABLE, HELD_RATE), INVALID),
    Row("less than the flow holds", "1.10 [R]", RATED_FLOW, notify(AVAILABLE, HELD_RATE - 1), INVALID),
    Row("0", "1.10 [R]", ADAPTIVE_FLOW, notify(AVAILABLE, 0), INVALID),
    Row(
        "little more than the flow holds", "1.10", RATED_FLOW, notify(AVAILABLE, HELD_RATE + 1, overlapped="o"), PENDING
    ),
    Row("NULL size and buffer", "1.10", RATED_FLOW, notify(AVAILABLE, NULL, size=NULL), INVALID, judge=Judge.CLIENT),
    Row("NULL buffer", "1.10", RATED_FLOW, notify(AVAILABLE, NULL), INVALID, judge=Judge.CLIENT),
    Row("NULL size", "1.10", RATED_FLOW, notify(AVAILABLE, MORE, size=NULL), INVALID, judge=Judge.POINTER),
    *(
        Row(f"{size} bytes", "3.11", RATED_FLOW, notify(AVAILABLE, MORE, size=size), TOO_SMALL, judge=Judge.CLIENT)
        for size in (0, 4, 7)
    ),
    Row(
        "more than 8 bytes",
        "3.11",
        RATED_FLOW,
        notify(AVAILABLE, MORE, size=64, overlapped="o"),
        PENDING,
        judge=Judge.CLIENT,
    ),
    *(
        Row(
            f"condition {condition} with a size and a buffer",
            "1.10",
            RATED_FLOW,
            notify(condition, MORE, size=8),
            INVALID,
            judge=Judge.CLIENT,
        )
        for condition in (CONGESTED, UNCONGESTED)
    ),
    Row("congestion with a size", "1.10", RATED_FLOW, notify(CONGESTED, size=8), INVALID, judge=Judge.CLIENT),
    Row(
        "congestion with a buffer", "1.10", RATED_FLOW, notify(CONGESTED, MORE, size=NULL), INVALID, judge=Judge.CLIENT
    ),
    Row(
        "what is not supported before too few bytes",
        "3.11 [R]",
        FLOW,
        notify(AVAILABLE, MORE, size=4),
        UNSUPPORTED,
        judge=Judge.CLIENT,
    ),
    Row(
        "an unknown flow before too few bytes",
        "3.11 [R]",
        READY,
        notify(AVAILABLE, MORE, size=4, flow=UNKNOWN_FLOW),
        NOT_FOUND,
        judge=Judge.CLIENT,
    ),
    Row(
        "a denial before too few bytes",
        "3.11 [R]",
        ADAPTIVE_FLOW,
        notify(AVAILABLE, MORE, size=4),
        POLICY,
        judge=Judge.CLIENT,
        world=DENIED,
    ),
    Row(
        "too few bytes before one that is pending",
        "3.11 [R]",
        (*RATED_FLOW, notify(AVAILABLE, MORE, overlapped="o")),
        notify(AVAILABLE, MORE, size=4),
        TOO_SMALL,
        judge=Judge.CLIENT,
    ),
    Row("what is not supported before a bandwidth of 0", "3.11 [R]", FLOW, notify(AVAILABLE, 0), UNSUPPORTED),
    Row(
        "an unknown flow before a bandwidth of 0", "3.11 [R]", READY, notify(AVAILABLE, 0, flow=UNKNOWN_FLOW), NOT_FOUND
    ),
]

ARGUMENTS = [
    *(
        Row(f"condition {condition} of a non-adaptive flow", "1.10", FLOW, notify(condition, total), UNSUPPORTED)
        for condition, total in CONDITIONS
    ),
    *(
        Row(f"condition {condition} off-link", "6.9", OFF_LINK_FLOW, notify(condition, total), UNSUPPORTED)
        for condition, total in CONDITIONS
    ),
    Row("overlapped, off-link", "1.12", OFF_LINK_FLOW, notify(CONGESTED, overlapped="o"), UNSUPPORTED),
    Row("an unknown operation", "1.10 [R]", RATED_FLOW, notify(NO_CONDITION), INVALID, judge=Judge.CLIENT),
    Row("flags", "1.10", RATED_FLOW, notify(CONGESTED, flags=1), INVALID, judge=Judge.CLIENT),
    Row("an unknown flow", "1.10", READY, notify(CONGESTED, flow=UNKNOWN_FLOW), NOT_FOUND),
    Row("flow 0", "6.13 [R]", READY, notify(CONGESTED, flow=0), NOT_FOUND),
    Row("a flow that is gone", "3.8", (*ADAPTIVE_FLOW, remove()), notify(CONGESTED), NOT_FOUND),
    Row("a flow of another process", "3.10 [R]", (*READY, Neighbour("n")), notify(CONGESTED, flow="n"), NOT_FOUND),
    Row(
        "a flow of another process, for root too",
        "3.10 [R]",
        (*ROOT, UDP, Neighbour("n")),
        notify(CONGESTED, flow="n"),
        NOT_FOUND,
    ),
    Row(
        "a flow of another user, for root too",
        "3.10 [R]",
        (*RATED_FLOW, PRIVILEGED, create("g")),
        notify(CONGESTED, handle="g"),
        NOT_FOUND,
    ),
    Row("denied by policy", "1.10, 3.10", ADAPTIVE_FLOW, notify(CONGESTED), POLICY, world=DENIED),
    Row(
        "denied by policy, root too",
        "3.10 [R]",
        (*ROOT, UDP, ON_LINK, add(flags=ADAPTIVE)),
        notify(CONGESTED),
        POLICY,
        world=DENIED,
    ),
    Row("a denial before a non-adaptive flow", "3.11 [R]", FLOW, notify(CONGESTED), POLICY, world=DENIED),
    Row(
        "an unknown flow before a denial",
        "3.11 [R]",
        READY,
        notify(CONGESTED, flow=UNKNOWN_FLOW),
        NOT_FOUND,
        world=DENIED,
    ),
    Row(
        "an unknown operation before an unknown flow",
        "3.11 [R]",
        READY,
        notify(NO_CONDITION, flow=UNKNOWN_FLOW),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row(
        "a surplus size before an unknown flow",
        "3.11 [R]",
        READY,
        notify(CONGESTED, size=8, flow=UNKNOWN_FLOW),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row("a closed handle", "1.10", (*RATED_FLOW, close()), notify(CONGESTED), BAD_HANDLE),
    Row("no handle", "1.10", RATED_FLOW, notify(CONGESTED, handle=NULL), BAD_HANDLE, judge=Judge.CLIENT),
    Row("an invented handle", "1.10", RATED_FLOW, notify(CONGESTED, handle=INVENTED), BAD_HANDLE, judge=Judge.CLIENT),
    Row(
        "a closed handle before everything",
        "3.11 [R]",
        (*RATED_FLOW, close()),
        notify(NO_CONDITION, 1, size=1, flow=0, flags=1),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
]

ROWS = [*WAITS, *BANDWIDTHS, *ARGUMENTS]
