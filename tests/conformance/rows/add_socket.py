"""QOSAddSocketToFlow: arguments, new flows and existing ones. Destinations and families: destinations.py."""

from conformance.calls import add, close, create, remove, set_rate, set_type
from conformance.numbers import (
    ADAPTIVE,
    AUDIO_VIDEO,
    BACKGROUND,
    BEST_EFFORT,
    CONTROL,
    EXCELLENT_EFFORT,
    VOICE,
)
from conformance.rows.outcomes import (
    BAD_HANDLE,
    EXHAUSTED,
    INVALID,
    KERNEL_REFUSED,
    NO_ROUTE_THERE,
    NOT_FOUND,
    POLICY,
)
from conformance.rows.states import ADAPTIVE_FLOW, FLOW, NO_ROUTE, ON_LINK, OPEN, READY, ROOT, UDP
from conformance.table import Judge, Row, gives, nowhere
from conformance.vocabulary import (
    DENIED,
    DENIED_FLOWS,
    INVENTED,
    NULL,
    PEER,
    PEER_OTHER_PORT,
    SECOND,
    UNKNOWN_FLOW,
    UNTOUCHED,
    Neighbour,
    NoSocket,
    Refuses,
    Socket,
    World,
    marked,
    shaped,
)

SECOND_SOCKET = Socket("t")
EMPTIED = (*FLOW, remove("s"))  #: its last socket has left
UNMARKED = nowhere("s", PEER)

TYPES = [
    Row(f"traffic type {number}", "3.1, 3.2", READY, add(traffic_type=number), gives("f"), {("s", PEER): marked(dscp)})
    for number, dscp in [
        (BEST_EFFORT, 0),
        (BACKGROUND, 8),
        (EXCELLENT_EFFORT, 40),
        (AUDIO_VIDEO, 40),
        (VOICE, 56),
        (CONTROL, 56),
    ]
] + [Row(f"traffic type {number}", "1.6 [R]", READY, add(traffic_type=number), INVALID, UNMARKED) for number in (6, -1)]

ARGUMENTS = [
    *(
        Row(f"flags {flags}", "1.6 [R]", READY, add(flags=flags), INVALID, UNMARKED, Judge.CLIENT)
        for flags in (1, 3, 4, 0x8000_0002)
    ),
    Row("NULL flow id", "1.6", READY, add(flow=NULL), INVALID, UNMARKED, Judge.POINTER),
    Row("a descriptor that is not open", "1.6 [R]", (OPEN, NoSocket()), add(), INVALID, judge=Judge.CLIENT),
    Row("a file", "1.6 [R]", (OPEN, NoSocket(file=True)), add(), INVALID, judge=Judge.CLIENT),
    Row("a closed handle", "1.6", (*READY, close()), add(), BAD_HANDLE, UNMARKED),
    Row("no handle", "1.6", (UDP,), add(handle=NULL), BAD_HANDLE, UNMARKED, Judge.CLIENT),
    Row("an invented handle", "1.6", (UDP,), add(handle=INVENTED), BAD_HANDLE, UNMARKED, Judge.CLIENT),
    Row(
        "a closed handle before bad flags",
        "3.11 [R]",
        (*READY, close()),
        add(flags=4),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
    Row(
        "a closed handle before a bad traffic type",
        "3.11 [R]",
        (*READY, close()),
        add(traffic_type=6),
        BAD_HANDLE,
    ),
    Row(
        "bad flags before an unknown flow",
        "3.11 [R]",
        READY,
        add(flow=UNKNOWN_FLOW, flags=4),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row(
        "a missing destination before an unknown flow",
        "3.11 [R]",
        READY,
        add(to=None, flow=UNKNOWN_FLOW),
        INVALID,
    ),
    Row(
        "a bad traffic type before a denial",
        "3.11 [R]",
        READY,
        add(traffic_type=6),
        INVALID,
        world=DENIED_FLOWS,
    ),
    Row("the kernel refuses", "1.6", (*READY, Refuses("bind")), add(), KERNEL_REFUSED, UNMARKED),
]

EXISTING = [
    Row(
        "a second socket joins a flow",
        "1.6",
        (*FLOW, SECOND_SOCKET),
        add("t", SECOND, flow="f"),
        gives("f"),
        {("s", PEER): marked(56), ("t", SECOND): marked(56), ("t", PEER): UNTOUCHED},
    ),
    Row(
        "a second destination of a socket joins a flow",
        "3.9",
        FLOW,
        add(to=SECOND, flow="f"),
        gives("f"),
        {("s", PEER): marked(56), ("s", SECOND): marked(56), ("s", PEER_OTHER_PORT): UNTOUCHED},
    ),
    Row(
        "its traffic type is the flow's, whatever is passed",
        "1.6",
        (*READY, add(traffic_type=AUDIO_VIDEO), SECOND_SOCKET),
        add("t", SECOND, BACKGROUND, flow="f"),
        gives("f"),
        {("t", SECOND): marked(40)},
    ),
    Row(
        "its traffic type is not even looked at",
        "1.6 [R]",
        (*FLOW, SECOND_SOCKET),
        add("t", SECOND, 77, flow="f"),
        gives("f"),
        {("t", SECOND): marked(56)},
    ),
    Row(
        "it comes under the contract of the flow",
        "3.3",
        (*FLOW, set_rate(3_000_000), SECOND_SOCKET),
        add("t", SECOND, flow="f"),
        gives("f"),
        {("s", PEER): shaped(3_000_000, 56), ("t", SECOND): shaped(3_000_000, 56)},
    ),
    Row("the same socket and destination again", "3.9 [R]", FLOW, add(flow="f"), gives("f"), {("s", PEER): marked(56)}),
    Row(
        "the same socket and destination in a new flow: the last one wins",
        "3.9 [R]",
        FLOW,
        add(traffic_type=BACKGROUND, into="g"),
        gives("g"),
        {("s", PEER): marked(8)},
    ),
    Row(
        "two flows of one socket for two destinations",
        "3.9",
        FLOW,
        add(to=SECOND, traffic_type=AUDIO_VIDEO, into="g"),
        gives("g"),
        {("s", PEER): marked(56), ("s", SECOND): marked(40)},
    ),
    Row(
        "the flag must be given again",
        "1.6",
        (*FLOW, SECOND_SOCKET),
        add("t", SECOND, flow="f", flags=ADAPTIVE),
        INVALID,
        {("s", PEER): marked(56), ("t", SECOND): UNTOUCHED},
    ),
    Row(
        "an adaptive flow has one socket",
        "1.6, 3.9",
        (*ADAPTIVE_FLOW, SECOND_SOCKET),
        add("t", SECOND, flow="f"),
        INVALID,
        nowhere("t", SECOND),
    ),
    Row(
        "an adaptive flow has one socket, also with its own flag",
        "1.6, 3.9",
        (*ADAPTIVE_FLOW, SECOND_SOCKET),
        add("t", SECOND, flow="f", flags=ADAPTIVE),
        INVALID,
        nowhere("t", SECOND),
    ),
    Row("an unknown flow", "1.6", READY, add(flow=UNKNOWN_FLOW), NOT_FOUND, UNMARKED),
    Row(
        "the missing flag before an unknown flow",
        "3.11 [R]",
        READY,
        add(flow=UNKNOWN_FLOW, flags=ADAPTIVE),
        INVALID,
    ),
    Row("a flow that was emptied", "1.6, 3.8", EMPTIED, add(flow="f"), NOT_FOUND, UNMARKED),
    Row("a flow that was removed", "1.6", (*FLOW, remove()), add(flow="f"), NOT_FOUND, UNMARKED),
    Row(
        "a flow of another process",
        "3.10 [R]",
        (*READY, Neighbour("n")),
        add(flow="n"),
        NOT_FOUND,
        UNMARKED,
    ),
    Row(
        "a flow of another process, for root too",
        "3.10 [R]",
        (*ROOT, UDP, Neighbour("n")),
        add(flow="n"),
        NOT_FOUND,
        UNMARKED,
    ),
    Row(
        "a flow of another handle of the process",
        "6.18 [R]",
        (*FLOW, create("g"), SECOND_SOCKET),
        add("t", SECOND, flow="f", handle="g"),
        gives("f"),
        {("t", SECOND): marked(56)},
    ),
    Row(
        "in a flow without contract and marks it is not marked either",
        "3.3",
        (*FLOW, set_rate(0), SECOND_SOCKET),
        add("t", SECOND, flow="f"),
        gives("f"),
        nowhere("t", SECOND),
    ),
    Row(
        "its marks follow the traffic type of the flow",
        "3.4",
        (*FLOW, set_type(BACKGROUND), SECOND_SOCKET),
        add("t", SECOND, flow="f"),
        gives("f"),
        {("s", PEER): marked(8), ("t", SECOND): marked(8)},
    ),
]

ADAPTIVES = [
    Row("adaptive: nothing is marked before a rate", "3.2", READY, add(flags=ADAPTIVE), gives("f"), UNMARKED),
    Row("adaptive, on-link", "3.2", (*READY, ON_LINK), add(flags=ADAPTIVE), gives("f"), UNMARKED),
    Row(
        "adaptive, to a host without a route",
        "1.6",
        (*READY, NO_ROUTE),
        add(flags=ADAPTIVE),
        NO_ROUTE_THERE,
        UNMARKED,
    ),
]

RIGHTS = [
    Row(
        "denied by policy",
        "3.10",
        READY,
        add(),
        POLICY,
        UNMARKED,
        world=DENIED_FLOWS,
    ),
    Row(
        "denied by policy, root too",
        "3.10 [R]",
        (*ROOT, UDP),
        add(),
        POLICY,
        UNMARKED,
        world=DENIED_FLOWS,
    ),
    Row(
        "an unknown flow before a denial",
        "3.11 [R]",
        READY,
        add(flow=UNKNOWN_FLOW),
        NOT_FOUND,
        world=DENIED_FLOWS,
    ),
    Row(
        "other words of the policy do not forbid it",
        "3.10 [R]",
        READY,
        add(),
        gives("f"),
        {("s", PEER): marked(56)},
        world=DENIED,
    ),
    Row(
        "more flows than a user may have",
        "1.6",
        FLOW,
        add(to=SECOND, into="g"),
        EXHAUSTED,
        {("s", PEER): marked(56), ("s", SECOND): UNTOUCHED},
        world=World(limits={"flows_per_uid": 1}),
    ),
    Row(
        "more members than a flow may have",
        "1.6",
        FLOW,
        add(to=SECOND, flow="f"),
        EXHAUSTED,
        {("s", PEER): marked(56), ("s", SECOND): UNTOUCHED},
        world=World(limits={"members_per_flow": 1}),
    ),
    Row(
        "a member of a full flow again",
        "3.9 [R]",
        FLOW,
        add(flow="f"),
        gives("f"),
        {("s", PEER): marked(56)},
        world=World(limits={"members_per_flow": 1}),
    ),
]

ROWS = [*TYPES, *ARGUMENTS, *EXISTING, *ADAPTIVES, *RIGHTS]
