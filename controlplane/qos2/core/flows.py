"""The table of flows: who owns which flow, and which sockets are in it.

Pure bookkeeping in dicts, each step of constant cost (moving or removing a socket costs what that
socket has, never what the table has). It applies no rule and asks nobody: the service decides first,
tells the datapath, and records here what is in force.

A member of a flow is a socket with a destination. The same pair is in one flow at most.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from qos2.core.priorities import Treatment, granted
from qos2.core.rule import Rule
from qos2.model import Destination, FlowId, FlowPolicy, Peer, RemoteHost, SocketFacts, Transport, slot_of

#: In `type_of_slot`: no flow.
NO_TYPE = 255
_TAKEN = re.compile(rb"[^\xff]")


@dataclass(slots=True, eq=False)
class Share:
    """What one user has of the daemon."""

    uid: int
    handles: int = 0
    slots: set[int] = field(default_factory=set)


@dataclass(slots=True, eq=False)
class Handle:
    """A session of one process; its flows end with it."""

    number: int
    peer: Peer
    share: Share
    flows: dict[int, "Flow"] = field(default_factory=dict)  #: by slot

    def owns(self, flow: "Flow") -> bool:
        """Any handle of the process that made a flow may change it. The uid guards against a reused pid."""
        peer, owner = self.peer, flow.owner.peer
        return peer.pid == owner.pid and peer.uid == owner.uid

    def sees(self, flow: "Flow") -> bool:
        """Flows of the same user, and for privileged peers everybody's."""
        return self.peer.privileged or self.peer.uid == flow.owner.peer.uid


@dataclass(slots=True, eq=False)
class Socket:
    """A socket that is in some flow. `flows` is what the datapath was told of it."""

    cookie: int
    transport: Transport
    netns_cookie: int
    flows: dict[Destination, FlowId] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class Flow:
    """A flow. `treatment` is what its owner asked for, `policy` what the datapath was told last.

    `rule` is the administrator's that its first socket met; `facts` and `destination` are of that socket, none of a
    program's flow.
    """

    id: FlowId
    owner: Handle
    treatment: Treatment
    policy: FlowPolicy
    begun_s: float
    rule: Rule | None = None
    facts: SocketFacts | None = None
    destination: Destination | None = None
    whole_program: bool = False
    members: dict[int, tuple[Destination, ...]] = field(default_factory=dict)  #: by cookie, in order of joining
    member_count: int = 0
    host: RemoteHost | None = None  #: of an adaptive flow: the other end of its one path, whatever its socket does

    @property
    def granted(self) -> Treatment:
        """What is in force of its treatment."""
        return granted(self.treatment, self.rule)


class FlowTable:
    """Flows by slot, sockets by cookie. `type_of_slot` has a byte per slot for sums over the mapped arrays.

    `ruled` counts the flows under a rule, by its name.
    """

    __slots__ = ("flows", "ruled", "sockets", "type_of_slot")

    def __init__(self, size: int) -> None:
        self.flows: dict[int, Flow] = {}
        self.sockets: dict[int, Socket] = {}
        self.ruled: Counter[str] = Counter()
        self.type_of_slot = bytearray([NO_TYPE]) * (size + 1)

    def find(self, flow: int) -> Flow | None:
        """The flow of this id, if it lives. Any number may be asked for."""
        found = self.flows.get(slot_of(FlowId(flow)))
        return found if found is not None and found.id == flow else None

    def insert(self, flow: Flow) -> None:
        slot = slot_of(flow.id)
        self.flows[slot] = flow
        flow.owner.flows[slot] = flow
        flow.owner.share.slots.add(slot)
        self.type_of_slot[slot] = flow.granted.traffic_type
        if flow.rule is not None:
            self.ruled[flow.rule.name] += 1

    def judge(self, flow: Flow, rule: Rule | None) -> None:
        """Another rule, or none, applies to a flow of the table from now on."""
        if flow.rule is not None:
            self._unruled(flow.rule)
        if rule is not None:
            self.ruled[rule.name] += 1
        flow.rule = rule

    def _unruled(self, rule: Rule) -> None:
        self.ruled[rule.name] -= 1
        if not self.ruled[rule.name]:
            del self.ruled[rule.name]

    def remove(self, flow: Flow) -> list[tuple[int, tuple[Destination, ...]]]:
        """Take a flow and its members out; returns what its sockets (by cookie) had joined it with.

        Its byte in `type_of_slot` stays: the datapath may go on counting for it.
        """
        slot = slot_of(flow.id)
        del self.flows[slot]
        del flow.owner.flows[slot]
        flow.owner.share.slots.discard(slot)
        if flow.rule is not None:
            self._unruled(flow.rule)
        left = []
        for cookie, destinations in flow.members.items():
            socket = self.sockets[cookie]
            for destination in destinations:
                del socket.flows[destination]
            if not socket.flows:
                del self.sockets[cookie]
            left.append((cookie, destinations))
        return left

    def socket(self, facts: SocketFacts) -> Socket:
        """The socket of these facts as it is recorded, or a new one that `join` will record."""
        known = self.sockets.get(facts.cookie)
        return known if known is not None else Socket(facts.cookie, facts.transport, facts.netns_cookie)

    def join(self, flow: Flow, socket: Socket, destination: Destination) -> None:
        """Record a member; one that another flow had must leave that one."""
        self.sockets[socket.cookie] = socket
        socket.flows[destination] = flow.id
        flow.members[socket.cookie] = (*flow.members.get(socket.cookie, ()), destination)
        flow.member_count += 1

    def leave(self, flow: Flow, socket: Socket, destination: Destination) -> None:
        """Take one member out of `flow`; `socket.flows` has it no more, or under another flow's id."""
        left = tuple(each for each in flow.members[socket.cookie] if each != destination)
        flow.member_count -= 1
        if left:
            flow.members[socket.cookie] = left
        else:
            del flow.members[socket.cookie]
        if not socket.flows:
            self.sockets.pop(socket.cookie, None)  # gone already if the last of several has left

    def namespaces(self, flow: Flow) -> frozenset[int]:
        """The network namespaces of a flow's sockets; of one that has none, those of the sockets it had.

        Empty for a program's: its sockets are not known, so it is held back wherever the datapath is.
        """
        if not flow.members or flow.whole_program:
            return flow.policy.netns_cookies
        return frozenset(self.sockets[cookie].netns_cookie for cookie in flow.members)

    def behind(self, slot: int) -> Iterator[Flow]:
        """Flows in slots above this one, in their order."""
        # The regular expression finds the next taken slot at the speed of memory, however sparse they are.
        for taken in _TAKEN.finditer(self.type_of_slot, slot + 1):
            flow = self.flows.get(taken.start())
            if flow is not None:
                yield flow
