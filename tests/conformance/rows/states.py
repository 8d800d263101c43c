"""States that many rows begin in."""

from conformance.calls import add, create, notify, query, set_rate
from conformance.numbers import ADAPTIVE, AVAILABLE, CONGESTED, FRESH, QUERY_FUNDAMENTALS, UNCONGESTED
from conformance.table import Step, gives
from conformance.vocabulary import PEER, Congestion, Estimate, Fundamentals, Privileged, Reach, Socket, Way

OPEN = create()
PRIVILEGED = Privileged()
ROOT = (PRIVILEGED, OPEN)
UDP = Socket()
READY: tuple[Step, ...] = (OPEN, UDP)  #: a handle and an unconnected UDP socket
FLOW: tuple[Step, ...] = (*READY, add())  #: and a voice flow of both
ROOT_FLOW: tuple[Step, ...] = (*ROOT, UDP, add())
ON_LINK = Reach(PEER, Way.ON_LINK)
OFF_LINK = Reach(PEER, Way.OFF_LINK)
NO_ROUTE = Reach(PEER, Way.NO_ROUTE)
ADAPTIVE_FLOW: tuple[Step, ...] = (*READY, ON_LINK, add(flags=ADAPTIVE))  #: on-link, without a rate
OFF_LINK_FLOW: tuple[Step, ...] = (*READY, add(flags=ADAPTIVE))
HELD_RATE = 2_000_000
RATED_FLOW: tuple[Step, ...] = (*ADAPTIVE_FLOW, set_rate(HELD_RATE))
WAITING: tuple[Step, ...] = (*RATED_FLOW, notify(CONGESTED, overlapped="o"))  #: for congestion, as "o"

KNOWN = Estimate(PEER, 100_000_000, 80_000_000, 1_500)
ALL = gives(Fundamentals(100_000_000, 80_000_000, 1_500), 40)  #: what is known then
ESTIMATED: tuple[Step, ...] = (*ADAPTIVE_FLOW, KNOWN)
REFRESHING: tuple[Step, ...] = (*ESTIMATED, query(QUERY_FUNDAMENTALS, flags=FRESH, overlapped="o"))

MORE = 2 * HELD_RATE
CONGESTION, NO_CONGESTION = Congestion("f", True), Congestion("f", False)
#: Conditions, each with the bandwidth that is asked for, if any; and where each holds.
CONDITIONS = [(CONGESTED, None), (UNCONGESTED, None), (AVAILABLE, MORE)]
MET = {CONGESTED: CONGESTION, UNCONGESTED: NO_CONGESTION, AVAILABLE: Congestion("f", False, free=HELD_RATE)}
