"""QOSAddSocketToFlow: which packets of which socket a flow takes, families and the strict daemon."""

from conformance.calls import add
from conformance.numbers import ADAPTIVE
from conformance.rows.outcomes import (
    INVALID,
)
from conformance.rows.states import OPEN, READY
from conformance.table import Judge, Row, everywhere, gives, nowhere
from conformance.vocabulary import (
    ANY,
    ANY6,
    MALFORMED,
    MAPPED,
    MULTICAST,
    PEER,
    PEER6,
    PEER6_ALL_PORTS,
    PEER_ALL_PORTS,
    PEER_OTHER_PORT,
    SECOND,
    SECOND6,
    STRICT,
    UNTOUCHED,
    Connect,
    Disconnect,
    Kind,
    Listening,
    Socket,
    marked,
)

VOICE = marked(56)

UDP6 = (OPEN, Socket(kind=Kind.UDP6))
UDP6_ONLY = (OPEN, Socket(kind=Kind.UDP6_ONLY))
CONNECTED = (OPEN, Socket(to=PEER))
CONNECTED6 = (OPEN, Socket(kind=Kind.UDP6, to=PEER6))
CONNECTED_MAPPED = (OPEN, Socket(kind=Kind.UDP6, to=MAPPED))
TCP = (OPEN, Socket(kind=Kind.TCP, to=PEER))
TCP6 = (OPEN, Socket(kind=Kind.TCP6, to=PEER6))
TCP_MAPPED = (OPEN, Socket(kind=Kind.TCP6, to=MAPPED))
FRESH_TCP = (OPEN, Socket(kind=Kind.TCP))

UNCONNECTED = [
    Row(
        "UDP to its destination alone",
        "3.9",
        READY,
        add(),
        gives("f"),
        {("s", PEER): VOICE, ("s", PEER_OTHER_PORT): UNTOUCHED, ("s", SECOND): UNTOUCHED},
    ),
    Row("UDP without destination", "1.6, 3.9", READY, add(to=None), INVALID, nowhere("s", PEER)),
    Row("IPv6 UDP without destination", "1.6, 3.9", UDP6, add(to=None), INVALID, nowhere("s", PEER6)),
    Row(
        "the zero address is every destination",
        "1.6",
        READY,
        add(to=ANY),
        gives("f"),
        everywhere("s", [PEER, PEER_OTHER_PORT, SECOND], VOICE),
    ),
    Row(
        "the zero address of IPv6 is every destination",
        "1.6",
        UDP6,
        add(to=ANY6),
        gives("f"),
        everywhere("s", [PEER6, SECOND6, MAPPED], VOICE),
    ),
    Row(
        "port 0 is every port of a host",
        "1.6 [R]",
        READY,
        add(to=PEER_ALL_PORTS),
        gives("f"),
        {("s", PEER): VOICE, ("s", PEER_OTHER_PORT): VOICE, ("s", SECOND): UNTOUCHED},
    ),
    Row(
        "port 0 is every port of a host by IPv6",
        "1.6 [R]",
        UDP6,
        add(to=PEER6_ALL_PORTS),
        gives("f"),
        {("s", PEER6): VOICE, ("s", SECOND6): UNTOUCHED},
    ),
    Row("a multicast group", "3.9 [R]", READY, add(to=MULTICAST), gives("f"), nowhere("s", PEER)),
    Row("TCP before it connects", "1.6", FRESH_TCP, add(), gives("f")),
    Row("TCP before it connects, without destination", "1.6", FRESH_TCP, add(to=None), INVALID),
    Row("TCP that listens", "1.6 [R]", (OPEN, Listening()), add(to=None), gives("f")),
    Row("a malformed address", "1.6", READY, add(to=MALFORMED), INVALID, nowhere("s", PEER), Judge.CLIENT),
]

CONNECTIONS = [
    Row("connected UDP without destination", "1.6", CONNECTED, add(to=None), gives("f"), {("s", PEER): VOICE}),
    Row("connected UDP with its peer", "1.6", CONNECTED, add(), gives("f"), {("s", PEER): VOICE}),
    Row(
        "connected UDP with another destination",
        "1.6",
        CONNECTED,
        add(to=SECOND),
        INVALID,
        nowhere("s", PEER),
    ),
    Row(
        "connected UDP with another port",
        "1.6",
        CONNECTED,
        add(to=PEER_OTHER_PORT),
        INVALID,
        nowhere("s", PEER),
    ),
    Row("connected IPv6 UDP without destination", "3.9", CONNECTED6, add(to=None), gives("f"), {("s", PEER6): VOICE}),
    Row("connected IPv6 UDP with its peer", "3.9", CONNECTED6, add(to=PEER6), gives("f"), {("s", PEER6): VOICE}),
    Row(
        "dual-stack UDP connected to IPv4, without destination",
        "3.9",
        CONNECTED_MAPPED,
        add(to=None),
        gives("f"),
        {("s", MAPPED): VOICE},
    ),
    Row(
        "marks of a connected UDP socket outlive its disconnect",
        "3.8",
        (*CONNECTED, add(to=None), Disconnect("s")),
        add(to=SECOND, flow="f"),
        gives("f"),
        {("s", PEER): VOICE, ("s", SECOND): VOICE, ("s", PEER_OTHER_PORT): UNTOUCHED},
    ),
    Row(
        "connect, add, disconnect on a dual-stack socket, for one peer after the other",
        "3.8, 5",
        (*UDP6, Connect("s", MAPPED), add(to=None), Disconnect("s"), Connect("s", PEER6)),
        add(to=None, into="g"),
        gives("g"),
        {("s", PEER6): VOICE},
    ),
    Row("connected TCP without destination", "3.9", TCP, add(to=None), gives("f"), {("s", PEER): VOICE}),
    Row("connected TCP with its peer", "3.9", TCP, add(), gives("f"), {("s", PEER): VOICE}),
    Row("connected TCP with another destination", "1.6", TCP, add(to=SECOND), INVALID, nowhere("s", PEER)),
    Row("connected IPv6 TCP", "3.9", TCP6, add(to=None), gives("f"), {("s", PEER6): VOICE}),
    Row("dual-stack TCP connected to IPv4", "3.9", TCP_MAPPED, add(to=None), gives("f"), {("s", MAPPED): VOICE}),
    Row(
        "dual-stack TCP with its peer as an IPv4 address",
        "3.9 [R]",
        TCP_MAPPED,
        add(),
        gives("f"),
        {("s", MAPPED): VOICE},
    ),
]

FAMILIES = [
    Row(
        "IPv6 UDP",
        "3.9",
        UDP6,
        add(to=PEER6),
        gives("f"),
        {("s", PEER6): VOICE, ("s", SECOND6): UNTOUCHED, ("s", MAPPED): UNTOUCHED},
    ),
    Row("IPv6-only UDP", "3.9", UDP6_ONLY, add(to=PEER6), gives("f"), {("s", PEER6): VOICE}),
    Row(
        "an IPv4 address on a dual-stack socket",
        "3.9 [R]",
        UDP6,
        add(),
        gives("f"),
        {("s", MAPPED): VOICE, ("s", PEER6): UNTOUCHED},
    ),
    Row(
        "an IPv4-mapped address on a dual-stack socket",
        "3.9 [R]",
        UDP6,
        add(to=MAPPED),
        gives("f"),
        {("s", MAPPED): VOICE, ("s", PEER6): UNTOUCHED},
    ),
    Row(
        "an IPv4-mapped address on an IPv4 socket",
        "3.9 [R]",
        READY,
        add(to=MAPPED),
        gives("f"),
        {("s", PEER): VOICE, ("s", SECOND): UNTOUCHED},
    ),
    Row("an IPv6 address on an IPv4 socket", "1.6", READY, add(to=PEER6), INVALID, nowhere("s", PEER)),
    Row("an IPv4 address on an IPv6-only socket", "1.6", UDP6_ONLY, add(), INVALID, nowhere("s", PEER6)),
    Row("an IPv4-mapped address on an IPv6-only socket", "1.6", UDP6_ONLY, add(to=MAPPED), INVALID),
    Row(
        "a mapped and a plain IPv4 address are one destination",
        "3.9 [R]",
        (*UDP6, add()),
        add(to=MAPPED, into="g", traffic_type=1),
        gives("g"),
        {("s", MAPPED): marked(8)},
    ),
]

STRICTS = [
    Row(
        "strict: an IPv4 address on a dual-stack socket",
        "3.9",
        UDP6,
        add(),
        INVALID,
        nowhere("s", MAPPED),
        world=STRICT,
    ),
    Row(
        "strict: an IPv4-mapped address on a dual-stack socket",
        "3.9",
        UDP6,
        add(to=MAPPED),
        INVALID,
        nowhere("s", MAPPED),
        world=STRICT,
    ),
    Row(
        "strict: an IPv4-mapped address on an IPv4 socket",
        "3.9",
        READY,
        add(to=MAPPED),
        INVALID,
        nowhere("s", PEER),
        world=STRICT,
    ),
    Row(
        "strict: an IPv6 address on an IPv4 socket",
        "3.9",
        READY,
        add(to=PEER6),
        INVALID,
        nowhere("s", PEER),
        world=STRICT,
    ),
    Row("strict: an IPv4 address on an IPv6-only socket", "3.9", UDP6_ONLY, add(), INVALID, world=STRICT),
    Row(
        "strict: an IPv4 address on an IPv4 socket", "3.9", READY, add(), gives("f"), {("s", PEER): VOICE}, world=STRICT
    ),
    Row(
        "strict: an IPv6 address on a dual-stack socket",
        "3.9",
        UDP6,
        add(to=PEER6),
        gives("f"),
        {("s", PEER6): VOICE},
        world=STRICT,
    ),
    Row(
        "strict: the way out: connect, and no destination",
        "3.9",
        CONNECTED_MAPPED,
        add(to=None),
        gives("f"),
        {("s", MAPPED): VOICE},
        world=STRICT,
    ),
]

ADAPTIVES = [
    Row("adaptive, without destination", "1.6", READY, add(to=None, flags=ADAPTIVE), INVALID),
    Row("adaptive, to every destination", "1.6, 3.9", READY, add(to=ANY, flags=ADAPTIVE), INVALID, nowhere("s", PEER)),
    Row("adaptive, to every port", "1.6, 3.9", READY, add(to=PEER_ALL_PORTS, flags=ADAPTIVE), INVALID),
    Row("adaptive, connected", "1.6", CONNECTED, add(to=None, flags=ADAPTIVE), gives("f"), nowhere("s", PEER)),
    Row("adaptive, a listening socket", "1.6 [R]", (OPEN, Listening()), add(to=None, flags=ADAPTIVE), INVALID),
    Row("adaptive, TCP before it connects", "1.6", FRESH_TCP, add(flags=ADAPTIVE), gives("f")),
]

ROWS = [*UNCONNECTED, *CONNECTIONS, *FAMILIES, *STRICTS, *ADAPTIVES]
