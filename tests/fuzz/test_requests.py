"""What the daemon reads from its clients, under fire: whole conversations of well-formed and mangled requests.

The real server and service over ports in memory, in the same process, so that a bug is seen as one. Each request has
one reply, at once or when what it waits for ends; none is `internal`; at the end everything is given back.
"""

import json
import socket
from collections import Counter
from enum import Enum
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from qos2.core.rule import Match
from qos2.core.ruleviews import Loaded
from qos2.model import Bandwidth, FlowFundamentals, Method, Quality, Statement
from qos2.wire import protocol
from unit.policy_stage import CAPPED, policy, rule
from unit.server_stage import RawClient, Stage, staged, udp

PEER = ("192.0.2.7", 5004)
#: Small numbers often enough that enumerations, flags and flows are met.
NUMBER = st.integers(-1, 6) | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([8_000, 64_000, 2**32 - 1, 2**32])
ADDRESS = st.sampled_from(
    ["192.0.2.7", "0.0.0.0", "::", "::ffff:192.0.2.7", "2001:db8::7", "fe80::1%lo", "nowhere", ""]
)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
SCALAR = NUMBER | ADDRESS | st.booleans() | st.none() | st.text(max_size=8) | FLOAT


def mostly(usual: st.SearchStrategy[Any], strange: st.SearchStrategy[Any] = NUMBER) -> st.SearchStrategy[Any]:
    """Four times of five what is usual: a request is refused for its first strange field, and goes no further."""
    return st.integers(0, 4).flatmap(lambda chosen: strange if chosen == 4 else usual)


#: What ends a conversation is said at its end.
KINDS = [kind for kind in protocol.Request.__subclasses__() if kind is not protocol.CloseHandle]
OPERATIONS = {str(kind.__struct_config__.tag) for kind in KINDS}
SHARE = st.floats(0, 1) | FLOAT
FIELDS = {
    "flow": mostly(st.just("latest"), st.just(0) | NUMBER),
    "port": mostly(st.sampled_from([0, 5004])),
    "after": mostly(st.just(0)),
    "bandwidth": mostly(st.sampled_from([8_000, 1_000_000])),
    "shaping": mostly(st.integers(0, 2)),
    "reason": mostly(st.integers(0, 4)),
    "dscp": mostly(st.integers(0, 63)),
    "condition": mostly(st.integers(0, 2)),
    "request": mostly(st.just("waiting"), st.integers(0, 12) | NUMBER),
    "address": mostly(st.just(PEER[0]), ADDRESS | st.none()),
    "adaptive": mostly(st.just(True), st.booleans()),
    "fresh": st.booleans(),
    "version": st.just([1, 0]) | st.lists(NUMBER, max_size=3),
    "traffic_type": mostly(st.integers(0, 5)),
    "rtt_us": mostly(st.integers(1, 10_000_000) | st.none()),
    "loss": mostly(SHARE | st.none()),
    "delivered_bytes": mostly(st.integers(0, 2**40) | st.none()),
    **dict.fromkeys(("unit", "cgroup", "executable", "device", "namespace"), st.text(max_size=8)),
    "uid": mostly(st.none() | st.integers(0, 2**32)),
    "pid": mostly(st.just(0)),
    "protocol": mostly(st.sampled_from(["", "tcp", "udp"]), st.text(max_size=8)),
    **dict.fromkeys(("local", "remote"), mostly(st.sampled_from(["", PEER[0], "2001:db8::7"]), ADDRESS)),
    **dict.fromkeys(("local_port", "remote_port"), mostly(st.sampled_from([0, 5004]))),
    "forwarded": st.booleans(),
}
KNOWN = FlowFundamentals(
    Bandwidth(10_000_000), statements={"bottleneck": Statement(10_000_000, Quality.MEASURED, Method.TRAIN, 0.5)}
)


DENIED_TO_NOBODY = rule("nobody", match=Match(users=(4_000_000,)), deny=True)


class News(Enum):
    """What happens meanwhile on the way of the latest flow."""

    CONGESTED = True
    UNCONGESTED = False
    SILENT = None
    MEASURED = KNOWN
    NOT_MEASURED = "nothing"


def named(kind: type[protocol.Request]) -> dict[str, st.SearchStrategy[Any]]:
    """The arguments of one operation."""
    return {name: FIELDS.get(name, NUMBER) for name in kind.__struct_fields__ if name not in ("v", "id")}


@st.composite
def requests(draw: st.DrawFn) -> tuple[dict[str, Any], int]:
    """One request without its number, and how many descriptors go with it. One in eight is mangled."""
    kind = draw(st.sampled_from(KINDS))
    descriptors = 1 if kind in (protocol.AddSocket, protocol.RemoveSocket) else 0
    fields = draw(st.fixed_dictionaries(named(kind)))
    if kind is protocol.PolicyExplain and draw(st.booleans()):
        fields["flow"], descriptors = 0, 1
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
        if fields.get("request") == "waiting":
            fields = fields | {"request": max(set(range(1, self.asked)) - set(self.replies), default=0)}
        message = {"id": self.asked} | fields
        self._client.send(json.dumps(message).encode(), (self._sock.fileno(),) * descriptors)
        self._listen(message)

    def meanwhile(self, stage: Stage, news: News) -> None:
        """Something happens, and whoever waited for it is told."""
        if news in (News.MEASURED, News.NOT_MEASURED):
            stage.measure(PEER[0], KNOWN if news is News.MEASURED else None)
        else:
            stage.set_condition(self._flow, congested=news.value, free=1_000_000)
        self._listen(news)

    def _listen(self, cause: Any) -> None:
        self._client.send(b'{"op":"status","id":0}')
        while (reply := self._client.receive())["id"] != 0:
            assert reply["id"] not in self.replies, "a second reply"
            assert reply.get("code") != "internal", (cause, reply)
            self.replies[reply["id"]] = reply
            if reply["result"] == "added":
                self._flow = reply["flow"]


def converse(stage: Stage, said: list[tuple[dict[str, Any], int] | News]) -> None:
    stage.set_estimate(PEER[0], KNOWN)
    with stage.connection(opened=False) as client, udp(PEER) as sock:
        conversation = Conversation(client, sock)
        conversation.say({"op": "open_handle"}, 0)
        conversation.say({"op": "add_socket", "adaptive": True}, 1)
        for each in said:
            if isinstance(each, News):
                conversation.meanwhile(stage, each)
            else:
                conversation.say(*each)
        conversation.say({"op": "close_handle"}, 0)
        # What waited is cancelled by the end of the handle at the latest.
        assert set(conversation.replies) == set(range(1, conversation.asked + 1))
    stage.settle()
    assert stage.call(lambda: (stage.service.flows, stage.service.handles, stage.service.pending)) == (0, 0, 0)
    # What is left is of the rules.
    assert set(stage.datapath.policies) == {each.flow for each in stage.datapath.ruleset if each.flow is not None}


#: Each kind of request as it should be, with what lets it succeed.
EACH_ONCE: list[tuple[dict[str, Any], int] | News] = [
    ({"op": "add_socket", "flow": 0, "adaptive": True, "traffic_type": 4}, 1),
    ({"op": "set_rate", "flow": "latest", "bandwidth": 8_000, "shaping": 1, "reason": 0}, 0),
    *(({"op": op, "flow": "latest"}, 0) for op in ("priority", "rate", "stats", "fundamentals", "explain")),
    ({"op": "report", "flow": "latest", "rtt_us": 20_000, "loss": 0.5, "delivered_bytes": 9}, 0),
    ({"op": "set_traffic_type", "flow": "latest", "traffic_type": 1}, 0),
    ({"op": "set_dscp", "flow": "latest", "dscp": 46}, 0),
    ({"op": "notify", "flow": "latest", "condition": 0}, 0),
    News.CONGESTED,
    ({"op": "fundamentals", "flow": "latest", "fresh": True}, 0),
    ({"op": "cancel", "request": "waiting"}, 0),
    ({"op": "start_tracking", "address": PEER[0]}, 0),
    ({"op": "stop_tracking", "address": PEER[0]}, 0),
    *(({"op": op, "after": 0}, 0) for op in ("enumerate", "list_flows", "status")),
    *(({"op": op, "after": 0}, 0) for op in ("policy_list", "policy_test")),
    ({"op": "policy_explain", "flow": "latest"}, 0),
    ({"op": "policy_explain", "flow": 0}, 1),
    ({"op": "reload"}, 0),
    ({"op": "add_program", "traffic_type": 4}, 0),
    ({"op": "remove_socket", "flow": "latest"}, 0),
]


def test_no_conversation_disturbs_the_daemon() -> None:
    with staged(load_policy=lambda: Loaded(1, 1)) as stage:  # compares the open descriptors of before and after
        stage.call(lambda: stage.service.load_policy(policy(CAPPED, DENIED_TO_NOBODY)))

        @example(EACH_ONCE)
        @settings(max_examples=500, deadline=None)
        @given(st.lists(mostly(requests(), st.sampled_from(News)), min_size=6, max_size=24))
        def holds(said: list[tuple[dict[str, Any], int] | News]) -> None:
            converse(stage, said)

        holds()
        answered = Counter(entry[:2] for entry in stage.observed)
        # Each kind of request got through to where it is carried out; a raw DSCP, all ids and a reload need a right.
        assert {op for op, result in answered if result == "ok"} >= OPERATIONS - {"set_dscp", "enumerate", "reload"}
        # ... and not in the conversation of the test's own alone.
        assert [op for op in ("report", "explain", "notify", "fundamentals") if answered[op, "ok"] == 1] == []
        assert answered["report", "invalid_request"] > 0
        assert answered["report", "no_such_flow"] > 0
        assert answered["explain", "no_such_flow"] > 0
