"""QOSSetFlow: traffic types, DSCP values of one's own, arguments. Rates: set_rate.py."""

from conformance.calls import Rate, add, close, query, remove, result, set_dscp, set_flow, set_rate, set_type
from conformance.numbers import (
    AUDIO_VIDEO,
    BACKGROUND,
    BEST_EFFORT,
    CONTROL,
    EXCELLENT_EFFORT,
    QUERY_PRIORITY,
    SET_DSCP,
    SET_RATE,
    SET_TRAFFIC_TYPE,
    VOICE,
)
from conformance.rows.outcomes import (
    BAD_HANDLE,
    INVALID,
    KERNEL_REFUSED,
    NO_RIGHT,
    NOT_FOUND,
    POLICY,
    UNSUPPORTED,
)
from conformance.rows.states import FLOW, OFF_LINK_FLOW, READY, ROOT, ROOT_FLOW, UDP
from conformance.table import OK, Judge, Row, gives, nowhere
from conformance.vocabulary import (
    DENIED,
    INVENTED,
    NULL,
    PEER,
    SECOND,
    UNKNOWN_FLOW,
    Neighbour,
    Priority,
    Refuses,
    marked,
    shaped,
)

KEPT = {("s", PEER): marked(56)}
NO_OPERATION = 3
ROOT_ADAPTIVE = (*ROOT, UDP, add(flags=0))

TYPES = [
    *(
        Row(f"traffic type {number}", "1.8, 3.4", FLOW, set_type(number), OK, {("s", PEER): marked(dscp)})
        for number, dscp in [
            (BEST_EFFORT, 0),
            (BACKGROUND, 8),
            (EXCELLENT_EFFORT, 40),
            (AUDIO_VIDEO, 40),
            (VOICE, 56),
            (CONTROL, 56),
        ]
    ),
    *(Row(f"traffic type {number}", "1.8 [R]", FLOW, set_type(number), INVALID, KEPT) for number in (6, 0xFFFF_FFFF)),
    Row(
        "a traffic type is for all members",
        "3.4",
        (*FLOW, add(to=SECOND, flow="f")),
        set_type(BACKGROUND),
        OK,
        {("s", PEER): marked(8), ("s", SECOND): marked(8)},
    ),
    Row(
        "a traffic type reverts an override",
        "1.8, 3.4",
        (*ROOT_FLOW, set_dscp(26)),
        set_type(VOICE),
        OK,
        KEPT,
    ),
    Row(
        "a traffic type leaves the contract",
        "3.4",
        (*FLOW, set_rate(2_000_000)),
        set_type(BACKGROUND),
        OK,
        {("s", PEER): shaped(2_000_000, 8)},
    ),
    Row(
        "a traffic type marks again after a rate of 0",
        "3.3 [R]",
        (*FLOW, set_rate(0)),
        set_type(BACKGROUND),
        OK,
        {("s", PEER): marked(8)},
    ),
    Row(
        "a traffic type marks no adaptive flow without a rate",
        "3.2",
        OFF_LINK_FLOW,
        set_type(BACKGROUND),
        OK,
        nowhere("s", PEER),
    ),
    Row("traffic type denied by policy", "3.10", FLOW, set_type(BACKGROUND), POLICY, KEPT, world=DENIED),
    Row("a bad traffic type before a denial", "3.11 [R]", FLOW, set_type(6), INVALID, KEPT, world=DENIED),
    Row("the kernel refuses", "1.8", (*FLOW, Refuses("put")), set_type(BACKGROUND), KERNEL_REFUSED, KEPT),
]

OVERRIDES = [
    *(
        Row(f"DSCP {value}", "1.8, 3.4", ROOT_FLOW, set_dscp(value), OK, {("s", PEER): marked(value)})
        for value in (0, 26, 46, 63)
    ),
    *(Row(f"DSCP {value}", "1.8 [R]", ROOT_FLOW, set_dscp(value), INVALID, KEPT) for value in (64, 184, 0xFFFF_FFFF)),
    Row(
        "DSCP without the right leaves the traffic type's",
        "1.8, 3.4",
        FLOW,
        set_dscp(46),
        NO_RIGHT,
        KEPT,
    ),
    Row("DSCP of an adaptive flow", "1.8", ROOT_ADAPTIVE, set_dscp(46), UNSUPPORTED),
    Row(
        "DSCP of an adaptive flow that has a rate",
        "1.8",
        (*ROOT_ADAPTIVE, set_rate(2_000_000)),
        set_dscp(46),
        UNSUPPORTED,
        {("s", PEER): shaped(2_000_000, 56)},
    ),
    Row("DSCP denied by policy, root too", "3.10 [R]", ROOT_FLOW, set_dscp(46), POLICY, KEPT, world=DENIED),
    Row(
        "DSCP without the right before a denial",
        "3.11 [R]",
        FLOW,
        set_dscp(46),
        NO_RIGHT,
        KEPT,
        world=DENIED,
    ),
    Row(
        "DSCP without the right before an adaptive flow",
        "3.11 [R]",
        OFF_LINK_FLOW,
        set_dscp(46),
        NO_RIGHT,
    ),
    Row("DSCP denied before an adaptive flow", "3.11 [R]", ROOT_ADAPTIVE, set_dscp(46), POLICY, world=DENIED),
    Row("a bad DSCP before the right", "3.11 [R]", FLOW, set_dscp(64), INVALID, KEPT),
    Row("a bad DSCP before an unknown flow", "3.11 [R]", READY, set_dscp(64, flow=UNKNOWN_FLOW), INVALID),
    Row("an unknown flow before the right", "3.11 [R]", READY, set_dscp(46, flow=UNKNOWN_FLOW), NOT_FOUND),
    Row(
        "DSCP after a shaping without marks",
        "6.1 [R]",
        (*ROOT_FLOW, set_rate(2_000_000, 0)),
        set_dscp(46),
        OK,
        {("s", PEER): shaped(2_000_000, 46)},
    ),
    Row(
        "DSCP marks again after a rate of 0",
        "3.3 [R]",
        (*ROOT_FLOW, set_rate(0)),
        set_dscp(46),
        OK,
        {("s", PEER): marked(46)},
    ),
    Row(
        "DSCP of a member that joins later",
        "3.4",
        (*ROOT_FLOW, set_dscp(26)),
        add(to=SECOND, flow="f"),
        gives("f"),
        {("s", PEER): marked(26), ("s", SECOND): marked(26)},
    ),
]

ARGUMENTS = [
    Row("an unknown operation", "1.8 [R]", FLOW, set_flow(NO_OPERATION, 0, size=4), INVALID, KEPT, Judge.CLIENT),
    *(
        Row(
            f"operation {operation} from {size} bytes",
            "3.11 [R]",
            FLOW,
            set_flow(operation, buffer, size=size),
            INVALID,
            KEPT,
            Judge.CLIENT,
        )
        for operation, buffer, size in [
            (SET_TRAFFIC_TYPE, BACKGROUND, 3),
            (SET_TRAFFIC_TYPE, BACKGROUND, 0),
            (SET_RATE, Rate(2_000_000), 15),
            (SET_DSCP, 8, 3),
        ]
    ),
    *(
        Row(
            f"operation {operation}: a NULL buffer",
            "1.8 [R]",
            FLOW,
            set_flow(operation, NULL),
            INVALID,
            KEPT,
            Judge.CLIENT,
        )
        for operation in (SET_TRAFFIC_TYPE, SET_RATE, SET_DSCP)
    ),
    Row(
        "a buffer that is larger",
        "1.8 [R]",
        FLOW,
        set_flow(SET_TRAFFIC_TYPE, BACKGROUND, size=8),
        OK,
        {("s", PEER): marked(8)},
        Judge.CLIENT,
    ),
    Row("flags", "1.8", FLOW, set_flow(SET_TRAFFIC_TYPE, BACKGROUND, flags=1), INVALID, KEPT, Judge.CLIENT),
    Row("an unknown flow", "1.8", READY, set_type(VOICE, flow=UNKNOWN_FLOW), NOT_FOUND),
    Row("flow 0", "6.13 [R]", READY, set_type(VOICE, flow=0), NOT_FOUND),
    Row("a flow that is gone", "3.8", (*FLOW, remove()), set_type(VOICE), NOT_FOUND),
    Row("a flow of another process", "3.10 [R]", (*READY, Neighbour("n")), set_type(BACKGROUND, flow="n"), NOT_FOUND),
    Row(
        "a flow of another process, for root too",
        "3.10 [R]",
        (*ROOT_FLOW, Neighbour("n")),
        set_dscp(8, flow="n"),
        NOT_FOUND,
    ),
    Row(
        "an unknown flow before a denial",
        "3.11 [R]",
        READY,
        set_type(VOICE, flow=UNKNOWN_FLOW),
        NOT_FOUND,
        world=DENIED,
    ),
    Row("a bad traffic type before an unknown flow", "3.11 [R]", READY, set_type(6, flow=UNKNOWN_FLOW), INVALID),
    Row(
        "an unknown operation before an unknown flow",
        "3.11 [R]",
        READY,
        set_flow(NO_OPERATION, 0, size=4, flow=UNKNOWN_FLOW),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row(
        "a small buffer before an unknown flow",
        "3.11 [R]",
        READY,
        set_flow(SET_DSCP, 46, size=2, flow=UNKNOWN_FLOW),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row(
        "a small buffer before the right", "3.11 [R]", FLOW, set_flow(SET_DSCP, 46, size=2), INVALID, KEPT, Judge.CLIENT
    ),
    Row("a closed handle", "1.8", (*FLOW, close()), set_type(BACKGROUND), BAD_HANDLE),
    Row("no handle", "1.8", FLOW, set_type(BACKGROUND, handle=NULL), BAD_HANDLE, KEPT, Judge.CLIENT),
    Row("an invented handle", "1.8", FLOW, set_type(BACKGROUND, handle=INVENTED), BAD_HANDLE, KEPT, Judge.CLIENT),
    Row(
        "a closed handle before everything",
        "3.11 [R]",
        (*FLOW, close()),
        set_flow(NO_OPERATION, NULL, size=0, flow=0, flags=1),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
]

OVERLAPPED = [
    Row(
        "overlapped",
        "1.8, 1.12",
        FLOW,
        set_type(BACKGROUND, overlapped="o"),
        OK,
        {("s", PEER): marked(8)},
        Judge.CLIENT,
    ),
    Row(
        "overlapped, its event is written and it has succeeded",
        "1.12",
        (*FLOW, set_type(BACKGROUND, overlapped="o")),
        result(),
        OK,
        {("s", PEER): marked(8)},
        Judge.CLIENT,
    ),
    Row(
        "overlapped, refused",
        "1.8, 1.12",
        FLOW,
        set_dscp(46, overlapped="o"),
        NO_RIGHT,
        KEPT,
        Judge.CLIENT,
    ),
    Row(
        "overlapped, an argument that is wrong",
        "1.12",
        FLOW,
        set_flow(SET_DSCP, 46, size=2, overlapped="o"),
        INVALID,
        KEPT,
        Judge.CLIENT,
    ),
]

PRIORITIES = [
    Row(
        "what is in force can be read back",
        "1.9, 3.4",
        (*ROOT_FLOW, set_dscp(26)),
        query(QUERY_PRIORITY),
        gives(Priority(26), 16),
    ),
]

ROWS = [*TYPES, *OVERRIDES, *ARGUMENTS, *OVERLAPPED, *PRIORITIES]
