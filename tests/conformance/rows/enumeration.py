"""QOSEnumerateFlows."""

from conformance.calls import add, close, create, enumerate_flows, remove
from conformance.numbers import (
    ERROR_INSUFFICIENT_BUFFER,
)
from conformance.rows.outcomes import (
    BAD_HANDLE,
    INVALID,
    NO_RIGHT,
)
from conformance.rows.states import FLOW, OPEN, PRIVILEGED, ROOT, ROOT_FLOW
from conformance.table import Judge, Row, fails, gives
from conformance.vocabulary import DENIED, DENIED_FLOWS, INVENTED, NULL, SECOND, Neighbour, Socket

TWO_FLOWS = (*ROOT_FLOW, Socket("t"), add("t", SECOND, into="g"))
NONE: frozenset[str] = frozenset()


ROWS = [
    Row("no flows", "1.5", ROOT, enumerate_flows(), gives(NONE, 0)),
    Row(
        "no flows into no buffer", "1.5 [R]", ROOT, enumerate_flows(0, buffer=NULL), gives(NONE, 0), judge=Judge.POINTER
    ),
    Row("one's own flows", "1.5", TWO_FLOWS, enumerate_flows(), gives(frozenset({"f", "g"}), 8)),
    Row(
        "a buffer of the right size",
        "1.5",
        TWO_FLOWS,
        enumerate_flows(8),
        gives(frozenset({"f", "g"}), 8),
        judge=Judge.CLIENT,
    ),
    Row(
        "a buffer that is larger",
        "3.11",
        TWO_FLOWS,
        enumerate_flows(400),
        gives(frozenset({"f", "g"}), 8),
        judge=Judge.CLIENT,
    ),
    Row(
        "a buffer that holds some",
        "1.5",
        TWO_FLOWS,
        enumerate_flows(7),
        fails(ERROR_INSUFFICIENT_BUFFER, size=8),
        judge=Judge.CLIENT,
    ),
    Row(
        "no room at all",
        "1.5 [R]",
        TWO_FLOWS,
        enumerate_flows(0),
        fails(ERROR_INSUFFICIENT_BUFFER, size=8),
        judge=Judge.CLIENT,
    ),
    Row(
        "NULL buffer of size 0",
        "1.5 [R]",
        TWO_FLOWS,
        enumerate_flows(0, buffer=NULL),
        fails(ERROR_INSUFFICIENT_BUFFER, size=8),
        judge=Judge.POINTER,
    ),
    Row(
        "NULL buffer of a size",
        "1.5 [R]",
        ROOT,
        enumerate_flows(8, buffer=NULL),
        INVALID,
        judge=Judge.POINTER,
    ),
    Row("NULL size", "1.5 [R]", ROOT, enumerate_flows(NULL), INVALID, judge=Judge.POINTER),
    Row(
        "flows of other processes too",
        "1.5",
        (*ROOT_FLOW, Neighbour("n")),
        enumerate_flows(),
        gives(frozenset({"f", "n"}), 8),
    ),
    Row(
        "flows of other users too",
        "1.5",
        (*FLOW, PRIVILEGED, create("g")),
        enumerate_flows(handle="g"),
        gives(frozenset({"f"}), 4),
    ),
    Row(
        "not a flow that was removed",
        "1.7",
        (*TWO_FLOWS, remove(flow="f")),
        enumerate_flows(),
        gives(frozenset({"g"}), 4),
    ),
    Row("without the right", "1.5", FLOW, enumerate_flows(), NO_RIGHT),
    Row(
        "without the right into a buffer that is too small",
        "3.11 [R]",
        FLOW,
        enumerate_flows(0),
        NO_RIGHT,
        judge=Judge.CLIENT,
    ),
    Row(
        "a NULL size without the right",
        "3.11 [R]",
        FLOW,
        enumerate_flows(NULL),
        INVALID,
        judge=Judge.POINTER,
    ),
    Row("no word of the policy is about it", "3.10 [R]", ROOT, enumerate_flows(), gives(NONE, 0), world=DENIED),
    Row("nor is that about flows", "3.10 [R]", ROOT, enumerate_flows(), gives(NONE, 0), world=DENIED_FLOWS),
    Row("a closed handle", "1.5", (*ROOT, close()), enumerate_flows(), BAD_HANDLE),
    Row("a closed handle without the right", "3.11 [R]", (OPEN, close()), enumerate_flows(), BAD_HANDLE),
    Row("no handle", "1.5", (), enumerate_flows(handle=NULL), BAD_HANDLE, judge=Judge.CLIENT),
    Row(
        "an invented handle",
        "1.5",
        (),
        enumerate_flows(handle=INVENTED),
        BAD_HANDLE,
        judge=Judge.CLIENT,
    ),
]
