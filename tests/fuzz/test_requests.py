"""What the daemon reads from its clients, under fire: whole conversations of well-formed and mangled requests.

The real server and service over ports in memory, in the same process, so that a bug is seen as one. Each request has
one reply, at once or when what it waits for ends; none is `internal`; at the end everything is given back.
"""

import json
import socket
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qos2.wire import protocol
from unit.server_stage import RawClient, Stage, staged, udp

PEER = ("192.0.2.7", 5004)
#: Small numbers often enough that enumerations, flags and flows are met.
NUMBER = st.integers(-1, 6) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([8_000, 64_000, 2**32 - 1, 2**32])
ADDRESS = st.sampled_from(
    ["192.0.2.7", "0.0.0.0", "::", "::ffff:192.0.2.7", "2001:db8::7", "fe80::1%lo", "nowhere", ""]
)
SCALAR = NUMBER | ADDRESS | st.booleans() | st.none() | st.text(max_size=8)

#: What ends a conversation is said at its end.
KINDS = [kind for kind in protocol.Request.__subclasses__() if kind is not protocol.CloseHandle]
FIELDS = {
    "flow": st.sampled_from(["latest", "latest", "latest", 0]) | NUMBER,
    "port": st.sampled_from([0, 5004]) | NUMBER,
    "bandwidth": st.sampled_from([8_000, 1_000_000]) | NUMBER,
    "condition": st.integers(0, 2) | NUMBER,
    "request": st.integers(0, 12) | NUMBER,
    "address": ADDRESS | st.none(),
    "adaptive": st.booleans(),
    "fresh": st.booleans(),
    "version": st.just([1, 0]) | st.lists(NUMBER, max_size=3),
    "traffic_type": st.integers(0, 5) | NUMBER,
}


def named(kind: type[protocol.Request]) -> dict[str, st.SearchStrategy[Any]]:
    """The arguments of one operation."""
    return {name: FIELDS.get(name, NUMBER) for name in kind.__struct_fields__ if name not in ("v", "id")}


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """One request without its number, and how many descriptors go with it. One in eight is mangled."""
    kind = draw(st.sampled_from(KINDS))
    descriptors = 1 if kind in (protocol.AddSocket, protocol.RemoveSocket) else 0
    fields = draw(st.fixed_dictionaries(named(kind)))
    if kind is protocol.AddSocket and draw(st.booleans()):
        fields["flow"] = 0
    if draw(st.integers(0, 7)) == 0:
        fields = draw(st.fixed_dictionaries({}, optional=dict.fromkeys([*named(kind), "surplus"], SCALAR)))
        descriptors = draw(st.integers(0, 2))
    return {"op": str(kind.__struct_config__.tag)} | fields, descriptors


class Conversation:
    """One connection. `replies` by the number of their request."""

    def __init__(self, client: RawClient, sock: socket.socket) -> None:
        self._client = client
        self._sock = sock
        self._flow = 0
        self.asked = 0
        self.replies: dict[int, dict[str, Any]] = {}

    def say(self, fields: dict[str, Any], descriptors: int) -> None:
        """Ask, and read everything that has come when a question behind it is answered."""
        self.asked += 1
        if fields.get("flow") == "latest":
            fields = fields | {"flow": self._flow}
        message = {"id": self.asked} | fields
        self._client.send(json.dumps(message).encode(), (self._sock.fileno(),) * descriptors)
        self._client.send(b'{"op":"status","id":0}')
        while (reply := self._client.receive())["id"] != 0:
            assert reply["id"] not in self.replies, "a second reply"
            assert reply.get("code") != "internal", (message, reply)
            self.replies[reply["id"]] = reply
            if reply["result"] == "added":
                self._flow = reply["flow"]


def converse(stage: Stage, said: list[tuple[dict[str, Any], int]]) -> None:
    with stage.connection(opened=False) as client, udp(PEER) as sock:
        conversation = Conversation(client, sock)
        conversation.say({"op": "open_handle"}, 0)
        conversation.say({"op": "add_socket", "adaptive": True}, 1)
        for fields, descriptors in said:
            conversation.say(fields, descriptors)
        conversation.say({"op": "close_handle"}, 0)
        # What waited is cancelled by the end of the handle at the latest.
        assert set(conversation.replies) == set(range(1, conversation.asked + 1))
    stage.settle()
    assert stage.call(lambda: (stage.service.flows, stage.service.handles, stage.service.pending)) == (0, 0, 0)
    assert stage.datapath.policies == {}


def test_no_conversation_disturbs_the_daemon() -> None:
    with staged() as stage:  # compares the open descriptors of before and after

        @settings(max_examples=300, deadline=None)
        @given(st.lists(requests(), max_size=16))
        def holds(said: list[tuple[dict[str, Any], int]]) -> None:
            converse(stage, said)

        holds()
