"""Every call through a handle whose daemon has ended, and what a new handle can do once it is back."""

from conformance.calls import (
    Call,
    add,
    cancel,
    close,
    create,
    enumerate_flows,
    notify,
    query,
    remove,
    result,
    set_dscp,
    set_rate,
    set_type,
    start,
    stop,
)
from conformance.numbers import ADAPTIVE, BACKGROUND, CONGESTED, QUERY_FUNDAMENTALS, QUERY_PRIORITY, QUERY_RATE
from conformance.rows.outcomes import BAD_HANDLE, DAEMON_LOST, INVALID
from conformance.rows.states import FLOW, OPEN, READY, REFRESHING, WAITING
from conformance.table import OK, Judge, Row, gives
from conformance.vocabulary import PEER, DaemonBack, DaemonGone, marked

GONE, BACK = DaemonGone(), DaemonBack()

CALLS: dict[str, Call] = {
    "a new flow": add(into="g"),
    "an existing flow": add(flow="f"),
    "a whole flow": remove(),
    "a socket": remove("s"),
    "a traffic type": set_type(BACKGROUND),
    "a rate": set_rate(2_000_000),
    "a DSCP": set_dscp(8),
    "estimates": query(QUERY_FUNDAMENTALS),
    "a priority": query(QUERY_PRIORITY),
    "a contract": query(QUERY_RATE),
    "a condition": notify(CONGESTED),
    "a condition, overlapped": notify(CONGESTED, overlapped="o"),
    "all flows": enumerate_flows(),
    "the start of tracking": start(),
    "the end of tracking": stop(),
}

ROWS = [
    *(
        Row(f"the daemon is gone: {name}", "3.8", (*FLOW, GONE), call, DAEMON_LOST, judge=Judge.CLIENT)
        for name, call in CALLS.items()
    ),
    Row("the daemon is gone", "3.8", (*WAITING, GONE), cancel(), DAEMON_LOST, judge=Judge.CLIENT),
    Row("the daemon ends under a wait", "3.8", (*WAITING, GONE), result(), DAEMON_LOST, judge=Judge.CLIENT),
    Row("the daemon ends under a fresh query", "3.8", (*REFRESHING, GONE), result(), DAEMON_LOST, judge=Judge.CLIENT),
    Row(
        "bad flags before a daemon that is gone",
        "3.11 [R]",
        (*FLOW, GONE),
        remove(flags=1),
        INVALID,
        judge=Judge.CLIENT,
    ),
    Row(
        "a closed handle before a daemon that is gone",
        "3.11 [R]",
        (*FLOW, GONE, close()),
        query(QUERY_PRIORITY),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
    Row("an old handle once the daemon is back", "3.8", (*READY, GONE, BACK), add(), DAEMON_LOST, judge=Judge.CLIENT),
    Row("an old handle once the daemon is back", "3.8 [R]", (OPEN, GONE, BACK), close(), OK, judge=Judge.CLIENT),
    Row(
        "a new handle once the daemon is back",
        "3.8",
        (*FLOW, GONE, BACK, create("g")),
        add(handle="g"),
        gives("f"),
        {("s", PEER): marked(56)},
        judge=Judge.CLIENT,
    ),
    Row(
        "a new handle once the daemon is back, adaptive",
        "3.8",
        (*FLOW, GONE, BACK, create("g")),
        add(handle="g", flags=ADAPTIVE),
        gives("f"),
        judge=Judge.CLIENT,
    ),
]
