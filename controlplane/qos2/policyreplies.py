"""The administrator's policy in messages: rules, and what they say of a connection, in pages that fit.

No I/O and no decision: the service has made them. Texts of files and paths are cut, so that one rule fits a message.
"""

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Any

import msgspec

from qos2.core.policy import Address, Connection, Reason
from qos2.core.ruletext import conditions, effects, facts
from qos2.core.ruleviews import Decision, RuleView
from qos2.errors import InvalidRequest
from qos2.model import Dscp, Transport
from qos2.wire import protocol

#: So many alternatives of a condition are told, each with so many characters at most.
_TOLD = 8
_CHARACTERS = 64
_PATH_CHARACTERS = 256
_REASON_CHARACTERS = 400


def rule_details(view: RuleView) -> protocol.RuleDetails:
    rule = view.rule
    return protocol.RuleDetails(
        name=rule.name,
        precedence=rule.precedence,
        file=rule.file[-_PATH_CHARACTERS:],
        line=rule.line,
        match={key: _told(values) for key, values in conditions(rule.match).items()},
        act=effects(rule.act),
        flow=view.flow,
        stats=None if view.stats is None else msgspec.to_builtins(view.stats),
        used=view.used,
        ready=view.ready,
        applications=view.applications,
        missing=_told(view.missing),
    )


def rules_page(request: int, generation: int, views: Sequence[RuleView], *, more: bool, room: int) -> protocol.Result:
    """As many of these as fit into `room` bytes; `more`: there are others behind them."""
    page = fitting(map(rule_details, views), room)
    return protocol.PolicyRules(id=request, generation=generation, rules=page, more=more or len(page) < len(views))


def decision_page(request: int, generation: int, decision: Decision, after: int, room: int) -> protocol.PolicyDecision:
    """What is known, and as many reasons behind the first `after` as fit; the rule and flows on the first page."""
    if not 0 <= after <= len(decision.reasons):
        raise InvalidRequest(f"there are no {after} reasons", "begin with after 0")
    first = after == 0
    page = protocol.PolicyDecision(
        id=request,
        generation=generation,
        rule=rule_details(decision.rule) if first and decision.rule is not None else None,
        connection={key: _cut(value, _PATH_CHARACTERS) for key, value in facts(decision.connection).items()},
        flows=list(decision.flows[:_TOLD]) if first else [],
        device=decision.way.device,
        attached=decision.way.attached,
        why=_cut(decision.way.why, _REASON_CHARACTERS),
    )
    rest = decision.reasons[after:]
    page.reasons = fitting(map(_reason, rest), room - len(protocol.encode(page)))
    page.more = len(page.reasons) < len(rest)
    return page


def described(request: protocol.PolicyTest) -> Connection:
    """The connection that a request describes. Raises InvalidRequest."""
    return Connection(
        unit=request.unit,
        cgroup=request.cgroup,
        uid=None if request.uid is None else _within(request.uid, 2**32 - 1, "uid"),
        executable=request.executable,
        protocol=_transport(request.protocol),
        local=_address(request.local),
        local_port=_within(request.local_port, 0xFFFF, "port"),
        remote=_address(request.remote),
        remote_port=_within(request.remote_port, 0xFFFF, "port"),
        device=request.device,
        namespace=request.namespace,
        dscp=None if request.dscp is None else Dscp(_within(request.dscp, 63, "DSCP")),
        forwarded=request.forwarded,
    )


def fitting(entries: Iterable[Any], room: int) -> list[Any]:
    """As many of the first entries as fit into `room` bytes, at least one, each with a comma behind it."""
    page: list[Any] = []
    for entry in entries:
        room -= len(msgspec.json.encode(entry)) + 1
        if room < 0 and page:
            break
        page.append(entry)
    return page


def _reason(reason: Reason) -> protocol.RuleReason:
    return protocol.RuleReason(
        rule=reason.rule.name,
        verdict=reason.verdict,
        condition=reason.condition,
        text=_cut(reason.text, _REASON_CHARACTERS),
    )


def _told(values: Sequence[str]) -> list[str]:
    told = [_cut(each, _CHARACTERS) for each in values[:_TOLD]]
    return told if len(told) == len(values) else [*told, f"and {len(values) - len(told)} more"]


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _within(value: int, most: int, word: str) -> int:
    if not 0 <= value <= most:
        raise InvalidRequest(f"{word} {value} is outside 0..{most}", "leave out what is not known")
    return value


def _address(text: str) -> Address | None:
    if not text:
        return None
    try:
        return ip_address(text)
    except ValueError as error:
        raise InvalidRequest(f"not an address: {text!r}", "a literal IPv4 or IPv6 address") from error


def _transport(word: str) -> Transport | None:
    if word and word not in set(Transport):
        raise InvalidRequest(f"no rule is about the protocol {word!r}", "tcp or udp")
    return Transport(word) if word else None
