"""QOSRemoveSocketFromFlow, and how long flows and their ids live."""

from conformance.calls import add, close, create, query, remove, set_type
from conformance.numbers import (
    BACKGROUND,
    QUERY_PRIORITY,
    QUERY_RATE,
)
from conformance.rows.outcomes import (
    BAD_HANDLE,
    INVALID,
    KERNEL_REFUSED,
    NOT_FOUND,
)
from conformance.rows.states import ADAPTIVE_FLOW, FLOW, OFF_LINK_FLOW, OPEN, READY, ROOT_FLOW, UDP
from conformance.table import OK, Judge, Row, gives, nowhere
from conformance.vocabulary import (
    DENIED,
    INVENTED,
    NULL,
    PEER,
    SECOND,
    UNKNOWN_FLOW,
    UNTOUCHED,
    CloseSocket,
    Neighbour,
    NoSocket,
    Priority,
    Refuses,
    Socket,
    marked,
)

GONE = nowhere("s", PEER)
KEPT = {("s", PEER): marked(56)}

TWO_SOCKETS = (*FLOW, Socket("t"), add("t", SECOND, flow="f"))
TWO_DESTINATIONS = (*FLOW, add(to=SECOND, flow="f"))
CLOSED_SOCKET = (*FLOW, CloseSocket("s"))

REMOVALS = [
    Row("the whole flow", "1.7", FLOW, remove(), OK, GONE),
    Row("its only socket", "1.7", FLOW, remove("s"), OK, GONE),
    Row("a whole flow of two sockets", "1.7", TWO_SOCKETS, remove(), OK, GONE | nowhere("t", SECOND)),
    Row(
        "one socket of two",
        "1.7, 3.8",
        TWO_SOCKETS,
        remove("s"),
        OK,
        {("s", PEER): UNTOUCHED, ("t", SECOND): marked(56)},
    ),
    Row("a socket with all its destinations", "1.7", TWO_DESTINATIONS, remove("s"), OK, nowhere("s", PEER, SECOND)),
    Row(
        "a socket from one of its flows",
        "3.9",
        (*FLOW, add(to=SECOND, into="g", traffic_type=BACKGROUND)),
        remove("s", "g"),
        OK,
        {("s", PEER): marked(56), ("s", SECOND): UNTOUCHED},
    ),
    Row("an adaptive flow", "1.7", ADAPTIVE_FLOW, remove(), OK, GONE),
    Row("the socket of an adaptive flow", "1.7", OFF_LINK_FLOW, remove("s"), OK, GONE),
    Row("add and remove, as per datagram", "5", (*FLOW, remove("s"), add()), remove("s"), OK, GONE),
    Row("the kernel refuses", "1.7", (*FLOW, Refuses("end")), remove(), KERNEL_REFUSED, KEPT),
    Row("a policy that denies what flows do", "3.10 [R]", FLOW, remove(), OK, GONE, world=DENIED),
]

ABSENCES = [
    Row("id 0", "1.7", READY, remove(flow=0), NOT_FOUND),
    Row("id 0 with a socket", "1.7", READY, remove("s", 0), NOT_FOUND),
    Row("an unknown id", "1.7", READY, remove(flow=UNKNOWN_FLOW), NOT_FOUND),
    Row("twice", "1.7, 3.8", (*FLOW, remove()), remove(), NOT_FOUND),
    Row("a flow that its last socket has left", "3.8", (*FLOW, remove("s")), remove(), NOT_FOUND),
    Row("a socket that has left", "1.7 [R]", (*TWO_SOCKETS, remove("s")), remove("s"), NOT_FOUND),
    Row("a socket that never joined", "1.7 [R]", (*FLOW, Socket("t")), remove("t"), NOT_FOUND, KEPT),
    Row(
        "a socket that moved to another flow",
        "1.7 [R], 3.9 [R]",
        (*TWO_SOCKETS, add(into="g")),
        remove("s"),
        NOT_FOUND,
        KEPT,
    ),
    Row("a flow of another process", "3.10 [R]", (*READY, Neighbour("n")), remove(flow="n"), NOT_FOUND),
    Row(
        "a flow of another process, for root too", "3.10 [R]", (*ROOT_FLOW, Neighbour("n")), remove(flow="n"), NOT_FOUND
    ),
    Row("a file", "1.7 [R]", (*FLOW, NoSocket("t", file=True)), remove("t"), NOT_FOUND, KEPT, Judge.CLIENT),
]

HUSKS = [
    Row("a closed socket", "3.8 [R]", CLOSED_SOCKET, remove("s"), NOT_FOUND, judge=Judge.CLIENT),
    Row("a flow whose socket is closed", "3.8 [R]", CLOSED_SOCKET, remove(), OK),
    Row("the husk of a flow can be asked", "3.8 [R]", CLOSED_SOCKET, query(QUERY_PRIORITY), gives(Priority(56), 16)),
    Row("the husk of a flow can be set", "3.8 [R]", CLOSED_SOCKET, set_type(BACKGROUND), OK),
    Row(
        "the husk of a flow takes another socket",
        "3.8 [R]",
        (*CLOSED_SOCKET, Socket("t")),
        add("t", SECOND, flow="f"),
        gives("f"),
        {("t", SECOND): marked(56)},
    ),
    Row("an id that is gone", "3.8", (*FLOW, remove()), query(QUERY_RATE), NOT_FOUND),
]

ARGUMENTS = [
    *(Row(f"flags {flags}", "1.7", FLOW, remove(flags=flags), INVALID, KEPT, Judge.CLIENT) for flags in (1, 2)),
    Row(
        "bad flags before an unknown id",
        "3.11 [R]",
        READY,
        remove(flow=UNKNOWN_FLOW, flags=1),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row("a closed handle", "1.7", (*FLOW, close()), remove(), BAD_HANDLE),
    Row("no handle", "1.7", FLOW, remove(handle=NULL), BAD_HANDLE, KEPT, Judge.CLIENT),
    Row("an invented handle", "1.7", FLOW, remove(handle=INVENTED), BAD_HANDLE, KEPT, Judge.CLIENT),
    Row(
        "a closed handle before bad flags",
        "3.11 [R]",
        (OPEN, UDP, close()),
        remove(flow=0, flags=1),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
    Row(
        "a closed handle before a closed socket",
        "3.11 [R]",
        (*CLOSED_SOCKET, create("g"), close("g")),
        remove("s", handle="g"),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
]

ROWS = [*REMOVALS, *ABSENCES, *HUSKS, *ARGUMENTS]
