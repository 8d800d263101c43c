"""Messages: what is sent is what is read, and what is no message is refused in words."""

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qos2.errors import BY_CODE, InternalError, InvalidRequest, NoSuchFlow, ProtocolError, QosError
from qos2.model import (
    ANY_DESTINATION,
    Bandwidth,
    Cause,
    Destination,
    DeviceStatus,
    Dscp,
    FlowFundamentals,
    FlowRate,
    FlowState,
    FlowStats,
    Method,
    PacketPriority,
    Quality,
    RateReason,
    Shaper,
    Shaping,
    Statement,
)
from qos2.wire import calls, protocol

REQUESTS = protocol.Request.__subclasses__()
RESULTS = protocol.Result.__subclasses__()

TEXT = st.text(max_size=40)
NUMBER = st.integers(-(2**63), 2**63 - 1)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
STATEMENT = st.builds(Statement, NUMBER, st.sampled_from(Quality), st.sampled_from(Method), FLOAT)
DEVICE = st.builds(DeviceStatus, TEXT, NUMBER, NUMBER, TEXT, st.sampled_from(Shaper), TEXT, NUMBER, st.none() | NUMBER)
COUNTERS = st.dictionaries(TEXT, st.integers(0, 2**64 - 1), max_size=4)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of the type of a field."""
    by_type: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: NUMBER,
        str: TEXT,
        float: FLOAT,
        int | None: st.none() | NUMBER,
        list[int]: st.lists(NUMBER),
        list[str]: st.lists(TEXT),
        dict[str, str]: st.dictionaries(TEXT, TEXT),
        dict[str, Any]: COUNTERS,
        protocol.Number: NUMBER,
        protocol.RequestId: st.integers(0, 2**53 - 1),
        protocol.AddressText | None: st.none() | TEXT,
        protocol.AddressText: TEXT,
        protocol.NameText: TEXT,
        protocol.PathText: TEXT,
        dict[str, list[str]]: st.dictionaries(TEXT, st.lists(TEXT), max_size=3),
        dict[str, Any] | None: st.none() | COUNTERS,
        tuple[protocol.Number, protocol.Number]: st.tuples(NUMBER, NUMBER),
        protocol.Number | None: st.none() | NUMBER,
        float | None: st.none() | FLOAT,
        dict[str, float]: st.dictionaries(TEXT, FLOAT, max_size=4),
        dict[str, Statement]: st.dictionaries(TEXT, STATEMENT, max_size=3),
        FlowState: st.sampled_from(FlowState),
        Cause | None: st.none() | st.sampled_from(Cause),
        Method | None: st.none() | st.sampled_from(Method),
        FlowFundamentals | None: st.none()
        | st.builds(FlowFundamentals, *(st.none() | NUMBER,) * 3, st.dictionaries(TEXT, STATEMENT, max_size=3)),
        DeviceStatus | None: st.none() | DEVICE,
    }
    if kind == list[protocol.FlowDetails]:
        return st.lists(messages(protocol.FlowDetails), max_size=2)
    if kind == list[protocol.StateChange]:
        return st.lists(messages(protocol.StateChange), min_size=1, max_size=2)
    if kind == list[protocol.RuleDetails]:
        return st.lists(messages(protocol.RuleDetails), max_size=2)
    if kind == protocol.RuleDetails | None:
        return st.none() | messages(protocol.RuleDetails)
    if kind == list[protocol.RuleReason]:
        return st.lists(messages(protocol.RuleReason), max_size=2)
    return by_type[kind]


def messages(kind: type[Any]) -> st.SearchStrategy[Any]:
    """Any message of one type."""
    return st.builds(kind, **{field.name: values(field.type) for field in msgspec.structs.fields(kind)})


@pytest.mark.parametrize("kind", REQUESTS, ids=lambda kind: kind.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_a_request_is_read_as_it_was_written(kind: type[protocol.Request], data: st.DataObject) -> None:
    request = data.draw(messages(kind))
    request.v = protocol.VERSION
    assert protocol.decode_request(protocol.encode(request)) == request


@pytest.mark.parametrize("kind", RESULTS, ids=lambda kind: kind.__name__)
@settings(max_examples=10)
@given(data=st.data())
def test_a_result_is_read_as_it_was_written(kind: type[protocol.Result], data: st.DataObject) -> None:
    result = data.draw(messages(kind))
    assert protocol.decode_reply(protocol.encode(result)) == result


@pytest.mark.parametrize("code", sorted(BY_CODE))
def test_an_error_arrives_as_its_class_with_its_words(code: str) -> None:
    kind = BY_CODE[code]
    error = protocol.error_of(_decoded_failure(protocol.failure(7, kind("what", "do this"))))
    assert (type(error), error.message, error.hint) == (kind, "what", "do this")


def _decoded_failure(failure: protocol.Failure) -> protocol.Failure:
    decoded = protocol.decode_reply(protocol.encode(failure))
    assert isinstance(decoded, protocol.Failure)
    assert decoded == failure
    return decoded


def test_an_error_of_a_newer_daemon_is_an_internal_one() -> None:
    newer = protocol.Failure(id=1, code="invented_later", win32=1, message="what")
    assert type(protocol.error_of(newer)) is InternalError


def test_a_field_of_a_newer_daemon_is_passed_over() -> None:
    assert protocol.decode_reply(b'{"result":"added","id":3,"flow":9,"later":1}') == protocol.Added(id=3, flow=9)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_as_no_request(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_request(data)
    assert protocol.request_id(data) == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["op", "id", "v", "flow", "port", "x"]), inner),
    max_leaves=12,
)


@settings(max_examples=50)
@given(JSON, st.sampled_from([kind.__struct_config__.tag for kind in REQUESTS]))
def test_random_json_is_a_request_or_refused_and_its_refusal_can_be_sent(value: Any, op: str) -> None:
    data = json.dumps(value | {"op": op} if isinstance(value, dict) else value).encode()
    try:
        protocol.decode_request(data)
    except ProtocolError as error:
        reply = protocol.encode(protocol.failure(protocol.request_id(data), error))
        assert len(reply) <= protocol.MAX_MESSAGE_BYTES
        assert isinstance(protocol.decode_reply(reply), protocol.Failure)


@settings(max_examples=50)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused_as_no_reply(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode_reply(data)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"v":1,"id":4,"op":"fly"}', "Invalid value 'fly' - at `$.op`"),
        (b'{"v":1,"id":4}', "missing required field `op`"),
        (b'{"v":1,"id":4,"op":"stats","flow":"9"}', "Expected `int`, got `str` - at `$.flow`"),
        (b'{"v":1,"id":4,"op":"stats"}', "missing required field `flow`"),
        (b'{"v":1,"id":4,"op":"stats","flow":9,"flags":2}', "unknown field `flags`"),
        (
            b'{"v":1,"id":4,"op":"stats","flow":9223372036854775808}',
            "Expected `int` <= 9223372036854775807 - at `$.flow`",
        ),
        (b'{"v":1,"id":4,"op":"start_tracking","address":"' + b"9" * 65 + b'"}', "length <= 64"),
        (b'{"v":1,"id":4,"op":"report","loss":0.5}', "missing required field `flow`"),
        (b'{"v":1,"id":4,"op":"report","flow":9,"rtt_us":0.5}', "Expected `int | null`, got `float` - at `$.rtt_us`"),
        (b'{"v":1,"id":4,"op":"report","flow":9,"rtt":1}', "unknown field `rtt`"),
        (b'{"v":1,"id":4,"op":"report","flow":9,"loss":"1"}', "Expected `float | null`, got `str` - at `$.loss`"),
        (b'{"v":1,"id":4,"op":"report","flow":9,"loss":1e999}', "Number out of range - at `$.loss`"),
        (b'{"v":1,"id":4,"op":"explain","flow":null}', "Expected `int`, got `null` - at `$.flow`"),
    ],
)
def test_a_wrong_message_is_refused_with_where_it_is_wrong(data: bytes, words: str) -> None:
    with pytest.raises(ProtocolError, match=r".*") as refusal:
        protocol.decode_request(data)
    assert words in refusal.value.message
    assert protocol.request_id(data) == 4


def test_another_version_is_named_before_anything_else_is_judged() -> None:
    with pytest.raises(ProtocolError, match="protocol version 2") as refusal:
        protocol.decode_request(b'{"v":2,"id":4,"op":"of_version_2","new":true}')
    assert refusal.value.hint == "this daemon speaks version 1"
    with pytest.raises(ProtocolError, match="protocol version 2"):
        protocol.decode_request(b'{"v":2,"op":"status"}')


def test_a_refusal_fits_a_message_however_long_its_words_are() -> None:
    failure = protocol.failure(2**53 - 1, InvalidRequest("\x01" * 100_000, "\x01" * 100_000))
    assert len(protocol.encode(failure)) <= protocol.MAX_MESSAGE_BYTES
    assert failure.message == "\x01" * protocol.MAX_ERROR_TEXT


# What a client makes of replies


def outcome(call: calls.Call[Any], reply: calls.Reply) -> Any:
    """What a call makes of this reply."""
    call.reply = reply
    return call.outcome()


def test_the_outcome_of_a_call_is_a_value_of_the_model() -> None:
    priority = protocol.Priority(conformant_dscp=56, non_conformant_dscp=0, conformant_l2=0, non_conformant_l2=0)
    assert outcome(calls.priority(5), priority) == PacketPriority(Dscp(56), Dscp(0))
    assert outcome(calls.rate(5), protocol.Rate(bandwidth=0, shaping=0, reason=0)) is None
    rate = outcome(calls.rate(5), protocol.Rate(bandwidth=8000, shaping=2, reason=4))
    assert rate == FlowRate(Bandwidth(8000), Shaping.USE_NON_CONFORMANT_MARKINGS, RateReason.USER_CAUSED)


def test_the_counters_of_a_flow_survive_the_way() -> None:
    stats = FlowStats(packets=23, bytes=2**63, dropped_packets={"horizon": 3}, min_rtt_us=40)
    data = protocol.encode(protocol.Stats(id=1, stats=msgspec.to_builtins(stats)))
    reply = protocol.decode_reply(data)
    assert outcome(calls.stats(5), reply) == stats


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (protocol.Added(flow=5), ProtocolError),
        (protocol.Rate(bandwidth=8000, shaping=77, reason=0), ProtocolError),
        (protocol.failure(1, NoSuchFlow("no flow 5")), NoSuchFlow),
    ],
)
def test_another_outcome_is_an_error(reply: Any, error: type[QosError]) -> None:
    with pytest.raises(error):
        outcome(calls.rate(5), reply)


@pytest.mark.parametrize(
    ("dest", "fields"),
    [
        (None, (None, 0)),
        (("192.0.2.7", 5004), ("192.0.2.7", 5004)),
        (("2001:db8::7", 5004, 0, 3), ("2001:db8::7", 5004)),
        (Destination.parse("::ffff:192.0.2.7", 5004), ("192.0.2.7", 5004)),
        (Destination.parse("2001:db8::7", 0), ("2001:db8::7", 0)),
        (ANY_DESTINATION, ("0.0.0.0", 0)),
    ],
)
def test_a_destination_travels_as_address_and_port(dest: Any, fields: tuple[str | None, int]) -> None:
    assert calls.endpoint(dest) == fields


@pytest.mark.parametrize("dest", ["192.0.2.7", 5004, ("192.0.2.7",), (5004, "192.0.2.7"), ("192.0.2.7", "5004"), {}])
def test_what_is_no_pair_of_address_and_port_is_refused(dest: Any) -> None:
    with pytest.raises(InvalidRequest, match="not a destination"):
        calls.endpoint(dest)


# The description for others


def test_the_document_names_every_request_result_and_field() -> None:
    document = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    parts: list[type[msgspec.Struct]] = [
        *(protocol.FlowDetails, protocol.StateChange, protocol.RuleDetails, protocol.RuleReason)
    ]
    kinds: list[type[msgspec.Struct]] = [*REQUESTS, *RESULTS, *parts]
    for kind in kinds:
        if kind not in parts:
            assert f"`{kind.__struct_config__.tag}`" in document
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in document, f"{kind.__name__}.{field.name}"
    for word in (*FlowState, *Cause, *Quality, *Method):
        assert f"`{word}`" in document, word
    for counter in FlowStats.__dataclass_fields__:
        assert f"`{counter}`" in document, counter


def test_the_document_gives_each_error_of_a_request_its_number() -> None:
    document = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
    named = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", document, re.MULTILINE))
    of_requests = set(BY_CODE) - {
        # of the client itself, of the daemon's start, or bases and special cases of what is in the table
        *("error", "service_unavailable", "service_lost", "timed_out", "already_running"),
        *("abi_mismatch", "missing_kernel_feature", "device_gone"),
    }
    assert set(named) == of_requests
    assert {code: BY_CODE[code].win32 for code in named} == {code: int(number) for code, number in named.items()}
