"""The rows of the table: what each is made of, and all of them in one list."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from conformance.calls import Call
from conformance.vocabulary import (
    PLAIN,
    UNTOUCHED,
    Address,
    CloseSocket,
    Connect,
    DaemonBack,
    DaemonGone,
    Disconnect,
    Listening,
    Mark,
    Neighbour,
    NoSocket,
    Outcome,
    Privileged,
    Socket,
    Steered,
    World,
)

Step: TypeAlias = (
    Call
    | Privileged
    | Socket
    | Listening
    | Connect
    | Disconnect
    | CloseSocket
    | NoSocket
    | Neighbour
    | DaemonGone
    | DaemonBack
    | Steered
)

#: What a socket sends: by name of the socket, and to whom.
Sending: TypeAlias = tuple[str, Address]


class Judge(Enum):
    """Whose answer a row is about, which decides by what it can be run."""

    DAEMON = auto()  #: the core's: all three
    CLIENT = auto()  #: the client library's, before or after it asked the daemon: qos2.win32 and libqwave
    POINTER = auto()  #: a C pointer's, which the Python signatures do not have: libqwave


@dataclass(frozen=True, slots=True)
class Row:
    """One call in one state: `given` are the steps that lead there, each of which succeeds.

    `source`: section of the specification, "[R]" where the reading is this project's. `effects`: what happens to the
    next packet of a socket to a destination once the call is through.
    """

    name: str
    source: str
    given: tuple[Step, ...]
    call: Call
    expect: Outcome
    effects: Mapping[Sending, Mark] = field(default_factory=dict)
    judge: Judge = Judge.DAEMON
    world: World = PLAIN

    def __str__(self) -> str:
        return f"{self.call.function}: {self.name}"

    @property
    def privileged(self) -> bool:
        """Whether it needs a connection of root's."""
        return any(isinstance(step, Privileged) or (isinstance(step, Neighbour) and step.root) for step in self.given)

    @property
    def steered(self) -> bool:
        """Whether it needs a daemon over fakes."""
        return any(isinstance(step, Steered) for step in self.given)

    @property
    def on_the_wire(self) -> bool:
        """Whether it has an effect that a daemon as it is installed can be seen to have, without being restarted."""
        restarts = any(isinstance(step, DaemonGone) for step in self.given)
        return bool(self.effects) and not self.steered and not restarts and not self.world.limits


OK = Outcome()


def fails(error: int, *, size: int | None = None) -> Outcome:
    """`size`: the bytes needed, which 122 tells."""
    return Outcome(error, size=size)


def gives(value: object, size: int | None = None) -> Outcome:
    """A value, in so many bytes of a buffer."""
    return Outcome(0, value, size)


def everywhere(socket: str, addresses: Iterable[Address], mark: Mark) -> dict[Sending, Mark]:
    """The same to all these addresses."""
    return {(socket, address): mark for address in addresses}


def nowhere(socket: str = "s", *addresses: Address) -> dict[Sending, Mark]:
    """Nothing happens to what this socket sends to these addresses."""
    return everywhere(socket, addresses, UNTOUCHED)
