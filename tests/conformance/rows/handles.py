"""QOSCreateHandle and QOSCloseHandle."""

from conformance.calls import add, close, create, query, remove
from conformance.numbers import (
    QUERY_RATE,
)
from conformance.rows.outcomes import (
    EXHAUSTED,
    INVALID,
    NO_DAEMON,
    NOT_FOUND,
)
from conformance.rows.states import FLOW, OPEN, UDP
from conformance.table import OK, Judge, Row, gives, nowhere
from conformance.vocabulary import (
    INVENTED,
    NULL,
    PEER,
    SECOND,
    UNTOUCHED,
    DaemonBack,
    DaemonGone,
    Socket,
    World,
    marked,
)

TWO_HANDLES = (OPEN, create("g"), UDP, Socket("t"))

ROWS = [
    Row("version 1.0", "1.1", (), create(), gives("h")),
    *(
        Row(f"version {major}.{minor}", "1.1", (), create(version=(major, minor)), INVALID)
        for major, minor in [(0, 0), (1, 5), (2, 0), (0, 1)]
    ),
    Row("NULL version", "1.1", (), create(version=NULL), INVALID, judge=Judge.CLIENT),
    Row("NULL handle pointer", "1.1", (), create(out=NULL), INVALID, judge=Judge.POINTER),
    Row("many in one process", "1.1", (OPEN, create("g")), create("i"), gives("i")),
    Row(
        "no daemon",
        "1.1",
        (DaemonGone(),),
        create(),
        NO_DAEMON,
        judge=Judge.CLIENT,
    ),
    Row(
        "more handles than a user may have",
        "1.1",
        (OPEN,),
        create("g"),
        EXHAUSTED,
        world=World(limits={"handles_per_uid": 1}),
    ),
    Row(
        "a closed handle makes room",
        "1.2",
        (OPEN, close()),
        create("g"),
        gives("g"),
        world=World(limits={"handles_per_uid": 1}),
    ),
    Row(
        "the daemon went and came back",
        "3.8",
        (OPEN, DaemonGone(), DaemonBack()),
        create("g"),
        gives("g"),
        judge=Judge.CLIENT,
    ),
    Row("an open handle", "1.2", (OPEN,), close(), OK),
    Row("all its flows end", "1.2", FLOW, close(), OK, nowhere("s", PEER)),
    Row(
        "its flows are gone for another handle too",
        "1.2, 3.8",
        (*FLOW, create("g"), close()),
        query(QUERY_RATE, handle="g"),
        NOT_FOUND,
    ),
    Row(
        "flows of another handle stay",
        "1.2",
        (*TWO_HANDLES, add(), add("t", SECOND, handle="g", into="g")),
        close(),
        OK,
        {("s", PEER): UNTOUCHED, ("t", SECOND): marked(56)},
    ),
    Row(
        "a flow belongs to the handle that began it, whoever added to it",
        "1.2 [R]",
        (*TWO_HANDLES, add(), add("t", SECOND, flow="f", handle="g")),
        close("g"),
        OK,
        {("s", PEER): marked(56), ("t", SECOND): marked(56)},
    ),
    Row("twice", "1.2 [R]", (OPEN, close()), close(), INVALID, judge=Judge.CLIENT),
    Row("NULL", "1.2", (), close(NULL), INVALID, judge=Judge.CLIENT),
    Row("an invented handle", "1.2", (), close(INVENTED), INVALID, judge=Judge.CLIENT),
    Row("after the daemon went", "3.8 [R]", (OPEN, DaemonGone()), close(), OK, judge=Judge.CLIENT),
    Row(
        "another handle of the process ends a flow",
        "6.18 [R]",
        (*FLOW, create("g")),
        remove(handle="g"),
        OK,
        nowhere("s", PEER),
    ),
]
