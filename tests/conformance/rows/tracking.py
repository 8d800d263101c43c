"""QOSStartTrackingClient and QOSStopTrackingClient."""

from conformance.calls import add, close, create, start, stop
from conformance.numbers import (
    ADAPTIVE,
)
from conformance.rows.outcomes import (
    BAD_HANDLE,
    EXHAUSTED,
    INVALID,
    NO_ROUTE_THERE,
    NOT_FOUND,
    POLICY,
    UNSUPPORTED,
)
from conformance.rows.states import FLOW, NO_ROUTE, ON_LINK, OPEN, RATED_FLOW, ROOT, UDP
from conformance.table import OK, Judge, Row
from conformance.vocabulary import (
    ANY,
    ANY6,
    DENIED,
    INVENTED,
    MALFORMED,
    MAPPED,
    NULL,
    PEER,
    PEER6,
    PEER_ALL_PORTS,
    PEER_OTHER_PORT,
    SECOND,
    Passes,
    Reach,
    Way,
    World,
    marked,
    shaped,
)

REACHABLE = (OPEN, ON_LINK)
TRACKED = (OPEN, ON_LINK, start())

STARTS = [
    Row("an on-link host", "1.3", REACHABLE, start(), OK),
    Row("an on-link host by IPv6", "1.3", (OPEN, Reach(PEER6, Way.ON_LINK)), start(PEER6), OK),
    Row("an IPv4-mapped address is its IPv4 host", "1.3 [R]", REACHABLE, start(MAPPED), OK),
    Row("the port is ignored", "1.3", REACHABLE, start(PEER_ALL_PORTS), OK),
    Row("again", "1.3 [R]", TRACKED, start(), OK),
    Row("again with another port", "1.3 [R]", TRACKED, start(PEER_OTHER_PORT), OK),
    Row("again by another handle", "1.3 [R]", (*TRACKED, create("g")), start(handle="g"), OK),
    Row("an off-link host", "1.3", (OPEN,), start(), UNSUPPORTED),
    Row("an off-link host by IPv6", "1.3", (OPEN,), start(PEER6), UNSUPPORTED),
    Row("a host without a route", "1.3", (OPEN, NO_ROUTE), start(), NO_ROUTE_THERE),
    Row("the zero address", "1.3", (OPEN,), start(ANY), INVALID),
    Row("the zero address of IPv6", "1.3", (OPEN,), start(ANY6), INVALID),
    Row("no address", "1.3", (OPEN,), start(NULL), INVALID, judge=Judge.CLIENT),
    Row("a malformed address", "1.3", (OPEN,), start(MALFORMED), INVALID, judge=Judge.CLIENT),
    Row("flags", "1.3", REACHABLE, start(flags=1), INVALID, judge=Judge.CLIENT),
    Row("a closed handle", "1.3", (OPEN, close()), start(), BAD_HANDLE),
    Row("no handle", "1.3", (), start(handle=NULL), BAD_HANDLE, judge=Judge.CLIENT),
    Row("an invented handle", "1.3", (), start(handle=INVENTED), BAD_HANDLE, judge=Judge.CLIENT),
    Row(
        "a closed handle before a bad address",
        "3.11 [R]",
        (OPEN, close()),
        start(NULL),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
    Row("denied by policy", "3.10", REACHABLE, start(), POLICY, world=DENIED),
    Row(
        "denied by policy, root too",
        "3.10 [R]",
        (*ROOT, ON_LINK),
        start(),
        POLICY,
        world=DENIED,
    ),
    Row(
        "a bad address before a denial",
        "3.11 [R]",
        (OPEN,),
        start(ANY),
        INVALID,
        world=DENIED,
    ),
    Row(
        "a denial before an off-link host",
        "3.11 [R]",
        (OPEN,),
        start(),
        POLICY,
        world=DENIED,
    ),
    Row(
        "more hosts than a user may track",
        "1.3",
        (*TRACKED, Reach(SECOND, Way.ON_LINK)),
        start(SECOND),
        EXHAUSTED,
        world=World(limits={"tracked_per_uid": 1}),
    ),
    Row("tracking marks nothing", "1.3", (*FLOW, ON_LINK), start(), OK, {("s", PEER): marked(56)}),
]

STOPS = [
    Row("a tracked host", "1.4", TRACKED, stop(), OK),
    Row("a tracked host by another port", "1.4", TRACKED, stop(PEER_OTHER_PORT), OK),
    Row("a tracked host by its IPv4-mapped address", "1.4 [R]", TRACKED, stop(MAPPED), OK),
    Row("by another handle of the process", "1.2, 1.4", (*TRACKED, create("g")), stop(handle="g"), OK),
    Row(
        "after the handle that began it has closed",
        "1.2, 1.4",
        (*TRACKED, close(), create("g"), Passes(59)),
        stop(handle="g"),
        OK,
    ),
    Row(
        "long after the handle that began it has closed",
        "6.12 [R]",
        (*TRACKED, close(), create("g"), Passes(61)),
        stop(handle="g"),
        NOT_FOUND,
    ),
    Row("a host that is not tracked", "1.4 [R]", REACHABLE, stop(), NOT_FOUND),
    Row("another host than the tracked one", "1.4 [R]", TRACKED, stop(SECOND), NOT_FOUND),
    Row("twice", "1.4 [R]", (*TRACKED, stop()), stop(), NOT_FOUND),
    Row("once, after two starts by one handle", "1.4 [R]", (*TRACKED, start(), stop()), stop(), NOT_FOUND),
    Row(
        "a host that an adaptive flow uses, but nobody tracks",
        "1.4 [R]",
        (OPEN, UDP, ON_LINK, add(flags=ADAPTIVE)),
        stop(),
        NOT_FOUND,
    ),
    Row(
        "a running flow is not disturbed",
        "1.4",
        (*RATED_FLOW, start()),
        stop(),
        OK,
        {("s", PEER): shaped(2_000_000, 56)},
    ),
    Row("the zero address", "1.4", (OPEN,), stop(ANY), INVALID),
    Row("no address", "1.4", (OPEN,), stop(NULL), INVALID, judge=Judge.CLIENT),
    Row("a malformed address", "1.4", (OPEN,), stop(MALFORMED), INVALID, judge=Judge.CLIENT),
    Row("flags", "1.4", TRACKED, stop(flags=1), INVALID, judge=Judge.CLIENT),
    Row("a closed handle", "1.4", (*TRACKED, close()), stop(), BAD_HANDLE),
    Row("no handle", "1.4", (), stop(handle=NULL), BAD_HANDLE, judge=Judge.CLIENT),
    Row(
        "bad flags before what is not tracked",
        "3.11 [R]",
        (OPEN,),
        stop(flags=1),
        INVALID,
        judge=Judge.CLIENT,
    ),
]

ROWS = [*STARTS, *STOPS]
