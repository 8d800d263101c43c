"""QOSQueryFlow: priorities and estimates. Buffers: query_buffers.py; contracts in force: set_rate.py."""

from conformance.calls import add, cancel, close, create, query, remove, result, set_dscp, set_rate
from conformance.numbers import (
    AUDIO_VIDEO,
    BACKGROUND,
    BEST_EFFORT,
    CONTROL,
    EXCELLENT_EFFORT,
    FRESH,
    QUERY_FUNDAMENTALS,
    QUERY_PRIORITY,
    QUERY_RATE,
    SHAPE_ONLY,
    VOICE,
)
from conformance.rows.outcomes import (
    ABORTED,
    BAD_HANDLE,
    EXHAUSTED,
    INCOMPLETE,
    INVALID,
    NO_DATA,
    NO_ROUTE_THERE,
    NOT_FOUND,
    PENDING,
    POLICY,
    RETRY,
    UNSUPPORTED,
)
from conformance.rows.states import (
    ADAPTIVE_FLOW,
    ALL,
    ESTIMATED,
    FLOW,
    KNOWN,
    NO_ROUTE,
    OFF_LINK,
    OFF_LINK_FLOW,
    PRIVILEGED,
    RATED_FLOW,
    READY,
    REFRESHING,
    ROOT,
    ROOT_FLOW,
)
from conformance.table import OK, Judge, Row, gives
from conformance.vocabulary import (
    DENIED,
    INVENTED,
    NULL,
    PEER,
    SECOND,
    UNKNOWN_FLOW,
    CannotMeasure,
    Estimate,
    Fundamentals,
    Measured,
    Neighbour,
    Priority,
    World,
)

NO_OPERATION = 3


PRIORITIES = [
    *(
        Row(
            f"priority of traffic type {number}",
            "1.9, 3.1",
            (*READY, add(traffic_type=number)),
            query(QUERY_PRIORITY),
            gives(Priority(dscp), 16),
        )
        for number, dscp in [
            (BEST_EFFORT, 0),
            (BACKGROUND, 8),
            (EXCELLENT_EFFORT, 40),
            (AUDIO_VIDEO, 40),
            (VOICE, 56),
            (CONTROL, 56),
        ]
    ),
    Row(
        "priority of an override",
        "1.9, 3.4",
        (*ROOT_FLOW, set_dscp(46)),
        query(QUERY_PRIORITY),
        gives(Priority(46), 16),
    ),
    Row(
        "priority of an adaptive flow without a rate",
        "6.16 [R]",
        ADAPTIVE_FLOW,
        query(QUERY_PRIORITY),
        gives(Priority(0), 16),
    ),
    Row("priority of an adaptive flow with a rate", "3.2", RATED_FLOW, query(QUERY_PRIORITY), gives(Priority(56), 16)),
    Row(
        "priority of shaping without marks",
        "3.3",
        (*FLOW, set_rate(2_000_000, SHAPE_ONLY)),
        query(QUERY_PRIORITY),
        gives(Priority(0), 16),
    ),
    Row("priority after a rate of 0", "3.3", (*FLOW, set_rate(0)), query(QUERY_PRIORITY), gives(Priority(0), 16)),
    Row(
        "priority after a rate of 0, over an override",
        "3.3 [R]",
        (*ROOT_FLOW, set_dscp(46), set_rate(0)),
        query(QUERY_PRIORITY),
        gives(Priority(0), 16),
    ),
]

ESTIMATES = [
    Row("the route is gone", "1.9", (*ESTIMATED, NO_ROUTE), query(QUERY_FUNDAMENTALS), NO_ROUTE_THERE),
    Row("the route is another one, off-link", "1.9", (*ESTIMATED, OFF_LINK), query(QUERY_FUNDAMENTALS), UNSUPPORTED),
    Row("estimates", "1.9, 3.5", ESTIMATED, query(QUERY_FUNDAMENTALS), ALL),
    Row(
        "the bottleneck alone",
        "3.5",
        (*ADAPTIVE_FLOW, Estimate(PEER, bottleneck=100_000_000)),
        query(QUERY_FUNDAMENTALS),
        gives(Fundamentals(bottleneck=100_000_000), 40),
    ),
    Row(
        "the round trip alone",
        "3.5 [R]",
        (*ADAPTIVE_FLOW, Estimate(PEER, rtt_us=1_500)),
        query(QUERY_FUNDAMENTALS),
        gives(Fundamentals(rtt_us=1_500), 40),
    ),
    Row(
        "nothing is available",
        "3.5",
        (*ADAPTIVE_FLOW, Estimate(PEER, 100_000_000, 0)),
        query(QUERY_FUNDAMENTALS),
        gives(Fundamentals(100_000_000, 0), 40),
    ),
    Row("no estimate yet", "1.9, 3.5", ADAPTIVE_FLOW, query(QUERY_FUNDAMENTALS), NO_DATA),
    Row(
        "estimates of a way that is not the flow's",
        "3.5",
        (*ADAPTIVE_FLOW, Estimate(SECOND, 1, 1, 1)),
        query(QUERY_FUNDAMENTALS),
        NO_DATA,
    ),
    Row("estimates off-link", "6.9", OFF_LINK_FLOW, query(QUERY_FUNDAMENTALS), UNSUPPORTED),
    Row("estimates of a non-adaptive flow", "1.9", FLOW, query(QUERY_FUNDAMENTALS), UNSUPPORTED),
    Row(
        "estimates denied by policy",
        "1.9, 3.10",
        ESTIMATED,
        query(QUERY_FUNDAMENTALS),
        POLICY,
        world=DENIED,
    ),
    Row(
        "a denial before a non-adaptive flow",
        "3.11 [R]",
        FLOW,
        query(QUERY_FUNDAMENTALS),
        POLICY,
        world=DENIED,
    ),
    Row(
        "a denial of estimates leaves the priority",
        "3.10 [R]",
        FLOW,
        query(QUERY_PRIORITY),
        gives(Priority(56), 16),
        world=DENIED,
    ),
]

FRESHNESS = [
    Row(
        "fresh: more at a time than a handle may have",
        "1.9",
        REFRESHING,
        query(QUERY_FUNDAMENTALS, flags=FRESH),
        EXHAUSTED,
        world=World(limits={"pending_per_handle": 1}),
    ),
    Row(
        "fresh: it waits for a new measurement",
        "1.9",
        ESTIMATED,
        query(QUERY_FUNDAMENTALS, flags=FRESH, overlapped="o"),
        PENDING,
    ),
    Row(
        "fresh: the new measurement",
        "1.9",
        (*REFRESHING, Estimate(PEER, 50_000_000), Measured(PEER)),
        result(),
        gives(Fundamentals(50_000_000), 40),
    ),
    Row("fresh: no new measurement yet", "1.12", REFRESHING, result(wait=False), INCOMPLETE),
    Row(
        "fresh: the first measurement",
        "1.9",
        (*ADAPTIVE_FLOW, query(QUERY_FUNDAMENTALS, flags=FRESH, overlapped="o"), KNOWN, Measured(PEER)),
        result(),
        ALL,
    ),
    Row(
        "fresh: not to be had",
        "1.9",
        (*ESTIMATED, CannotMeasure(PEER)),
        query(QUERY_FUNDAMENTALS, flags=FRESH),
        RETRY,
    ),
    Row("fresh: cancelled", "1.11", (*REFRESHING, cancel()), result(), ABORTED),
    Row("fresh: its flow is removed", "3.7 [R]", (*REFRESHING, remove()), result(), ABORTED),
    Row("fresh: its handle is closed", "1.2", (*REFRESHING, close()), result(), ABORTED),
    Row("fresh off-link", "6.9", OFF_LINK_FLOW, query(QUERY_FUNDAMENTALS, flags=FRESH), UNSUPPORTED),
    Row("fresh, of a non-adaptive flow", "1.9", FLOW, query(QUERY_FUNDAMENTALS, flags=FRESH), UNSUPPORTED),
    Row(
        "fresh has no meaning for priorities",
        "1.9 [R]",
        FLOW,
        query(QUERY_PRIORITY, flags=FRESH),
        gives(Priority(56), 16),
        judge=Judge.CLIENT,
    ),
    Row(
        "fresh has no meaning for rates",
        "1.9 [R]",
        FLOW,
        query(QUERY_RATE, flags=FRESH),
        gives(0, 8),
        judge=Judge.CLIENT,
    ),
]

FOREIGN = [
    Row(
        "a flow of another process of the user",
        "1.9, 3.10",
        (*READY, Neighbour("n")),
        query(QUERY_PRIORITY, "n"),
        gives(Priority(56), 16),
    ),
    Row(
        "a flow of another user's process, for root",
        "1.9, 3.10",
        (*FLOW, PRIVILEGED, create("g")),
        query(QUERY_PRIORITY, handle="g"),
        gives(Priority(56), 16),
    ),
    Row(
        "the rate of another user's flow, for root",
        "1.9",
        (*FLOW, set_rate(3_000_000), PRIVILEGED, create("g")),
        query(QUERY_RATE, handle="g"),
        gives(3_000_000, 8),
    ),
    Row(
        "a flow of another user's process",
        "3.10 [R]",
        (*READY, Neighbour("n", root=True)),
        query(QUERY_PRIORITY, "n"),
        NOT_FOUND,
    ),
    Row(
        "estimates of another user's flow, for root",
        "1.9",
        (*ESTIMATED, PRIVILEGED, create("g")),
        query(QUERY_FUNDAMENTALS, handle="g"),
        ALL,
    ),
    Row(
        "fresh is ignored for what is not one's own",
        "1.9",
        (*ESTIMATED, PRIVILEGED, create("g")),
        query(QUERY_FUNDAMENTALS, flags=FRESH, handle="g"),
        ALL,
    ),
]

ARGUMENTS = [
    Row("an unknown operation", "1.9 [R]", FLOW, query(NO_OPERATION, size=64), INVALID, judge=Judge.CLIENT),
    *(
        Row(f"flags {flags}", "1.9 [R]", FLOW, query(QUERY_RATE, flags=flags), INVALID, judge=Judge.CLIENT)
        for flags in (2, 3)
    ),
    Row("an unknown flow", "1.9", READY, query(QUERY_PRIORITY, UNKNOWN_FLOW), NOT_FOUND),
    Row("flow 0", "6.13 [R]", READY, query(QUERY_RATE, 0), NOT_FOUND),
    Row("estimates of an unknown flow", "1.9", READY, query(QUERY_FUNDAMENTALS, UNKNOWN_FLOW), NOT_FOUND),
    Row("an unknown flow, for root", "1.9", ROOT, query(QUERY_FUNDAMENTALS, UNKNOWN_FLOW), NOT_FOUND),
    Row(
        "an unknown flow before a denial",
        "3.11 [R]",
        READY,
        query(QUERY_FUNDAMENTALS, UNKNOWN_FLOW),
        NOT_FOUND,
        world=DENIED,
    ),
    Row(
        "an unknown operation before an unknown flow",
        "3.11 [R]",
        READY,
        query(NO_OPERATION, UNKNOWN_FLOW, size=64),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row(
        "bad flags before an unknown flow",
        "3.11 [R]",
        READY,
        query(QUERY_RATE, UNKNOWN_FLOW, flags=2),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row("a flow that is gone", "3.8", (*FLOW, remove()), query(QUERY_PRIORITY), NOT_FOUND),
    Row("a closed handle", "1.9", (*FLOW, close()), query(QUERY_PRIORITY), BAD_HANDLE),
    Row("no handle", "1.9", FLOW, query(QUERY_PRIORITY, handle=NULL), BAD_HANDLE, judge=Judge.CLIENT),
    Row("an invented handle", "1.9", FLOW, query(QUERY_PRIORITY, handle=INVENTED), BAD_HANDLE, judge=Judge.CLIENT),
    Row(
        "a closed handle before everything",
        "3.11 [R]",
        (*FLOW, close()),
        query(NO_OPERATION, 0, size=1, flags=8),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
]

CANCELS = [Row("a fresh query", "1.11", REFRESHING, cancel(), OK)]

ROWS = [*PRIORITIES, *ESTIMATES, *FRESHNESS, *FOREIGN, *ARGUMENTS, *CANCELS]
