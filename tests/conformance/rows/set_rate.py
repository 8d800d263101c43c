"""QOSSetFlow(QOSSetOutgoingRate): contracts, and the admission of adaptive flows."""

from conformance.calls import add, close, query, remove, result, set_dscp, set_rate, set_type
from conformance.numbers import (
    BACKGROUND,
    CONGESTION,
    DEFAULT_MINIMUM_BANDWIDTH,
    ERROR_NETWORK_BUSY,
    ERROR_RETRY,
    QUERY_RATE,
    SHAPE_ONLY,
    USE_NON_CONFORMANT_MARKINGS,
    USER_CAUSED,
)
from conformance.rows.outcomes import (
    BAD_HANDLE,
    BUSY,
    INVALID,
    KERNEL_REFUSED,
    NO_ROUTE_THERE,
    NOT_FOUND,
    POLICY,
    RETRY,
)
from conformance.rows.states import (
    ADAPTIVE_FLOW,
    FLOW,
    HELD_RATE,
    NO_ROUTE,
    OFF_LINK_FLOW,
    RATED_FLOW,
    READY,
    ROOT_FLOW,
)
from conformance.table import OK, Judge, Row, gives, nowhere
from conformance.vocabulary import (
    DENIED,
    PEER,
    SECOND,
    UNKNOWN_FLOW,
    Admission,
    Neighbour,
    Refuses,
    marked,
    remarked,
    shaped,
)

TOO_MUCH, TOO_EARLY = Admission(ERROR_NETWORK_BUSY), Admission(ERROR_RETRY)
KEPT = {("s", PEER): marked(56)}
UNMARKED = nowhere("s", PEER)
RATE = 3_000_000
SMALLEST, LARGEST = 8_000, 400_000_000_000
SMALL_ALLOTMENT = 64_000

CONTRACTS = [
    Row("shape and mark", "3.3", FLOW, set_rate(RATE), OK, {("s", PEER): shaped(RATE, 56)}),
    Row("shape only", "3.3, 6.1", FLOW, set_rate(RATE, SHAPE_ONLY), OK, {("s", PEER): shaped(RATE, 0)}),
    Row(
        "non-conformant markings",
        "3.3",
        FLOW,
        set_rate(RATE, USE_NON_CONFORMANT_MARKINGS),
        OK,
        {("s", PEER): remarked(RATE, 56)},
    ),
    *(
        Row(
            f"reason {reason} has no effect",
            "6.19",
            FLOW,
            set_rate(RATE, reason=reason),
            OK,
            {("s", PEER): shaped(RATE, 56)},
        )
        for reason in range(CONGESTION, USER_CAUSED + 1)
    ),
    Row(
        "all members share it",
        "3.3",
        (*FLOW, add(to=SECOND, flow="f")),
        set_rate(RATE),
        OK,
        {("s", PEER): shaped(RATE, 56), ("s", SECOND): shaped(RATE, 56)},
    ),
    Row(
        "a new rate replaces the old one",
        "3.3",
        (*FLOW, set_rate(RATE)),
        set_rate(2 * RATE),
        OK,
        {("s", PEER): shaped(2 * RATE, 56)},
    ),
    Row("the smallest rate", "3.3 [R]", FLOW, set_rate(SMALLEST), OK, {("s", PEER): shaped(SMALLEST, 56)}),
    Row("less than the smallest rate", "3.3 [R]", FLOW, set_rate(SMALLEST - 1), INVALID, KEPT),
    Row("the largest rate", "3.3 [R]", FLOW, set_rate(LARGEST), OK, {("s", PEER): shaped(LARGEST, 56)}),
    Row("more than the largest rate", "3.3 [R]", FLOW, set_rate(LARGEST + 1), INVALID, KEPT),
    Row("2^64 - 1", "3.3 [R]", FLOW, set_rate(2**64 - 1), INVALID, KEPT, Judge.CLIENT),
    Row("above 2^32", "6.5", FLOW, set_rate(2**32), OK, {("s", PEER): shaped(2**32, 56)}),
    Row("below 2^32 - 1", "6.5", FLOW, set_rate(2**32 - 2), OK, {("s", PEER): shaped(2**32 - 2, 56)}),
    Row(
        "the default minimum bandwidth",
        "3.3, 6.5 [R]",
        FLOW,
        set_rate(DEFAULT_MINIMUM_BANDWIDTH),
        OK,
        {("s", PEER): shaped(SMALL_ALLOTMENT, 56)},
    ),
    Row("an unknown shaping", "1.8 [R]", FLOW, set_rate(RATE, 3), INVALID, KEPT),
    Row("an unknown reason", "1.8 [R]", FLOW, set_rate(RATE, reason=5), INVALID, KEPT),
    Row("an unknown shaping with a rate of 0", "1.8 [R]", FLOW, set_rate(0, 3), INVALID, KEPT),
    Row(
        "after the type, as an upload limiter does",
        "5",
        (*FLOW, set_type(BACKGROUND)),
        set_rate(RATE),
        OK,
        {("s", PEER): shaped(RATE, 8)},
    ),
    Row("rate: the kernel refuses", "1.8", (*FLOW, Refuses("put")), set_rate(RATE), KERNEL_REFUSED, KEPT),
]

ZERO = [
    Row("0 takes the marks", "1.8, 3.3", FLOW, set_rate(0), OK, UNMARKED),
    Row("0 takes the contract and the marks", "1.8, 3.3", (*FLOW, set_rate(RATE)), set_rate(0), OK, UNMARKED),
    Row("0 takes an override too", "1.8 [R]", (*ROOT_FLOW, set_dscp(26)), set_rate(0), OK, UNMARKED),
    Row(
        "a rate marks again after 0",
        "3.3 [R]",
        (*FLOW, set_rate(0)),
        set_rate(RATE),
        OK,
        {("s", PEER): shaped(RATE, 56)},
    ),
    Row(
        "0 twice",
        "3.3",
        (*FLOW, set_rate(0)),
        set_rate(0),
        OK,
        UNMARKED,
    ),
    Row("0 of an adaptive flow", "3.3", RATED_FLOW, set_rate(0), OK, UNMARKED),
    Row(
        "0 of an adaptive flow is not asked of admission", "3.6 [R]", (*RATED_FLOW, TOO_MUCH), set_rate(0), OK, UNMARKED
    ),
]

REFUSALS = [
    Row("rate: an unknown flow", "1.8", READY, set_rate(RATE, flow=UNKNOWN_FLOW), NOT_FOUND),
    Row("a bad rate before an unknown flow", "3.11 [R]", READY, set_rate(1, flow=UNKNOWN_FLOW), INVALID),
    Row("rate: a flow that is gone", "3.8", (*FLOW, remove()), set_rate(RATE), NOT_FOUND),
    Row("rate: a flow of another process", "3.10 [R]", (*READY, Neighbour("n")), set_rate(RATE, flow="n"), NOT_FOUND),
    Row("a closed handle before a bad rate", "3.11 [R]", (*FLOW, close()), set_rate(1), BAD_HANDLE),
    Row(
        "rate: denied by policy",
        "1.8, 3.10",
        FLOW,
        set_rate(RATE),
        POLICY,
        KEPT,
        world=DENIED,
    ),
    Row("a bad rate before a denial", "3.11 [R]", FLOW, set_rate(1), INVALID, KEPT, world=DENIED),
    Row(
        "rate: an unknown flow before a denial",
        "3.11 [R]",
        READY,
        set_rate(RATE, flow=UNKNOWN_FLOW),
        NOT_FOUND,
        world=DENIED,
    ),
    Row(
        "a denial before admission",
        "3.11 [R]",
        (*ADAPTIVE_FLOW, TOO_MUCH),
        set_rate(RATE),
        POLICY,
        UNMARKED,
        world=DENIED,
    ),
]

ADMISSIONS = [
    Row("the route is gone", "1.8 [R]", (*ADAPTIVE_FLOW, NO_ROUTE), set_rate(RATE), NO_ROUTE_THERE, UNMARKED),
    Row(
        "adaptive, on-link: marks and shapes from now on",
        "3.2, 3.6",
        ADAPTIVE_FLOW,
        set_rate(RATE),
        OK,
        {("s", PEER): shaped(RATE, 56)},
    ),
    Row(
        "adaptive, off-link: marks and shapes too",
        "6.9",
        OFF_LINK_FLOW,
        set_rate(RATE),
        OK,
        {("s", PEER): shaped(RATE, 56)},
    ),
    Row(
        "adaptive, off-link: nobody is asked",
        "3.6",
        (*OFF_LINK_FLOW, TOO_MUCH),
        set_rate(RATE),
        OK,
        {("s", PEER): shaped(RATE, 56)},
    ),
    Row(
        "adaptive, off-link: shape only",
        "3.3, 6.9",
        OFF_LINK_FLOW,
        set_rate(RATE, SHAPE_ONLY),
        OK,
        {("s", PEER): shaped(RATE, 0)},
    ),
    Row("not admitted", "3.6", (*ADAPTIVE_FLOW, TOO_MUCH), set_rate(RATE), BUSY, UNMARKED),
    Row("not known yet", "3.6", (*ADAPTIVE_FLOW, TOO_EARLY), set_rate(RATE), RETRY, UNMARKED),
    Row(
        "not admitted: the former contract stays",
        "3.6 [R]",
        (*RATED_FLOW, TOO_MUCH),
        set_rate(2 * HELD_RATE),
        BUSY,
        {("s", PEER): shaped(HELD_RATE, 56)},
    ),
    Row(
        "not known yet: the former contract stays",
        "3.6 [R]",
        (*RATED_FLOW, TOO_EARLY),
        set_rate(2 * HELD_RATE),
        RETRY,
        {("s", PEER): shaped(HELD_RATE, 56)},
    ),
    Row(
        "to lower is always admitted",
        "3.6 [R]",
        (*RATED_FLOW, TOO_MUCH),
        set_rate(HELD_RATE // 10, reason=CONGESTION),
        OK,
        {("s", PEER): shaped(HELD_RATE // 10, 56)},
    ),
    Row(
        "what is held already is always admitted",
        "3.6 [R]",
        (*RATED_FLOW, TOO_MUCH),
        set_rate(HELD_RATE, USE_NON_CONFORMANT_MARKINGS),
        OK,
        {("s", PEER): remarked(HELD_RATE, 56)},
    ),
    Row(
        "admitted later",
        "3.6",
        (*ADAPTIVE_FLOW, TOO_MUCH, Admission(0)),
        set_rate(RATE),
        OK,
        {("s", PEER): shaped(RATE, 56)},
    ),
    Row(
        "no flow but an adaptive one is judged",
        "3.6",
        (*FLOW, TOO_MUCH),
        set_rate(RATE),
        OK,
        {("s", PEER): shaped(RATE, 56)},
    ),
    Row("a bad rate before admission", "3.11 [R]", (*ADAPTIVE_FLOW, TOO_MUCH), set_rate(1), INVALID, UNMARKED),
    Row(
        "overlapped, not admitted",
        "1.12, 3.6",
        (*ADAPTIVE_FLOW, TOO_MUCH),
        set_rate(RATE, overlapped="o"),
        BUSY,
        UNMARKED,
        Judge.CLIENT,
    ),
    Row(
        "overlapped, admitted",
        "1.12",
        (*ADAPTIVE_FLOW, set_rate(RATE, overlapped="o")),
        result(),
        OK,
        {("s", PEER): shaped(RATE, 56)},
        Judge.CLIENT,
    ),
]

QUERIES = [
    Row("the contract", "1.9", (*FLOW, set_rate(RATE)), query(QUERY_RATE), gives(RATE, 8)),
    Row(
        "the contract, whatever the shaping",
        "1.9",
        (*FLOW, set_rate(RATE, SHAPE_ONLY)),
        query(QUERY_RATE),
        gives(RATE, 8),
    ),
    Row("no contract", "6.15", FLOW, query(QUERY_RATE), gives(0, 8)),
    Row("no contract any longer", "6.15", (*FLOW, set_rate(RATE), set_rate(0)), query(QUERY_RATE), gives(0, 8)),
    Row("a contract above 2^32", "2.4", (*FLOW, set_rate(LARGEST)), query(QUERY_RATE), gives(LARGEST, 8)),
    Row(
        "the default minimum bandwidth as what it is",
        "6.5 [R]",
        (*FLOW, set_rate(DEFAULT_MINIMUM_BANDWIDTH)),
        query(QUERY_RATE),
        gives(SMALL_ALLOTMENT, 8),
    ),
    Row("an adaptive flow without a rate", "6.15", ADAPTIVE_FLOW, query(QUERY_RATE), gives(0, 8)),
    Row("an adaptive flow with a rate", "1.9", RATED_FLOW, query(QUERY_RATE), gives(HELD_RATE, 8)),
]

ROWS = [*CONTRACTS, *ZERO, *REFUSALS, *ADMISSIONS, *QUERIES]
