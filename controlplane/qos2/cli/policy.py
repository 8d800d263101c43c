"""`qos2 policy list`, `test` and `explain`: the administrator's rules, and what they say of a connection.

`test` describes one, `explain` looks at a live one: a process, a socket or a flow.
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pwd import getpwnam

from rich.console import Console
from rich.table import Table

from qos2.cli import opensockets, render, ruling
from qos2.cli.flow import flow_id
from qos2.cli.opensockets import OpenSocket
from qos2.cli.ports import Client
from qos2.errors import InvalidRequest, NoSuchFlow, NotPermitted
from qos2.model import Destination
from qos2.owner import owner_of
from qos2.wire.protocol import FlowDetails, PolicyDecision, PolicyExplain, PolicyTest, RuleDetails

_INODE = ("inode:", "socket:[")
_NOT_AT_HAND = "Whether an application has registered it cannot be told without the right to trace its process."


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be explained: one of these."""

    flow: int = 0
    pid: int = 0
    inode: int = 0
    ends: tuple[Destination, Destination] | None = None


def target(text: str) -> Target:
    """A flow `0x00100001`, a process `4711`, a socket `LOCAL>REMOTE` or `inode:12345`. Raises ArgumentTypeError."""
    try:
        if ">" in text:
            return Target(ends=opensockets.parse_ends(text))
        if text.startswith(_INODE):
            return Target(inode=int(text.removeprefix(_INODE[0]).removeprefix(_INODE[1]).removesuffix("]")))
        if text.lower().startswith("0x"):
            return Target(flow=flow_id(text))
        if 0 < int(text) < 1 << 32:
            return Target(pid=int(text))
    except ValueError as error:
        raise ArgumentTypeError(
            f"{text!r} is no flow (0x00100001), no process (4711) and no socket "
            f"(192.0.2.1:40000>192.0.2.7:443, [::1]:40000>[::1]:443 or inode:12345)"
        ) from error
    raise ArgumentTypeError(f"{text!r} is no process")


def user(text: str) -> int:
    """A uid by number or name. Raises ArgumentTypeError."""
    if text.isdecimal():
        return int(text)
    try:
        return getpwnam(text).pw_uid
    except KeyError as error:
        raise ArgumentTypeError(f"there is no user {text!r}") from error


def execute_list(qos: Client, arguments: Namespace, out: Console) -> int:
    """All rules, in order of decision."""
    rules = qos.policy()
    if arguments.json:
        render.write_json(out, {"rules": [ruling.rule_document(rule) for rule in rules]})
    elif not rules:
        out.print("no rules: what no application registers passes untouched")
    else:
        out.print(listing(rules))
    return 0


def listing(rules: Sequence[RuleDetails]) -> Table:
    """Some lines for each rule."""
    made = Table(box=None, show_header=False, padding=(0, 2, 0, 0), pad_edge=False)
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for number, rule in enumerate(rules, 1):
        where = ruling.place(rule)
        made.add_row(
            f"{number}",
            f"{render.printable(rule.name)}, precedence {rule.precedence}{f', {where}' if where else ''}",
        )
        made.add_row("  match", ruling.match(rule))
        made.add_row("  act", ruling.act(rule))
        made.add_row("  use", ruling.use(rule))
        if rule.missing:
            made.add_row("  missing", "not there now: " + render.printable(", ".join(rule.missing)))
    return made


def execute_test(qos: Client, arguments: Namespace, out: Console) -> int:
    """Which rule a described connection would meet, and why the others do not."""
    decision = qos.policy_decision(
        PolicyTest(
            unit=arguments.unit,
            cgroup=arguments.cgroup,
            uid=arguments.user,
            executable=arguments.executable,
            protocol=arguments.protocol,
            local=arguments.local,
            local_port=arguments.local_port,
            remote=arguments.remote,
            remote_port=arguments.remote_port,
            device=arguments.device,
            namespace=arguments.namespace,
            dscp=arguments.dscp,
            forwarded=arguments.forwarded,
        )
    )
    if arguments.json:
        render.write_json(out, ruling.document(decision))
    else:
        out.print(ruling.sheet(decision, every=arguments.all))
    return 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What the daemon says of one socket, or of a flow (no `title`). `notes` are what it cannot know."""

    decision: PolicyDecision
    title: str = ""
    notes: tuple[str, ...] = ()
    connected: bool = True


def execute_explain(qos: Client, arguments: Namespace, out: Console) -> int:
    """The same of a flow, or of each socket of a process, or of one socket."""
    wanted: Target = arguments.what
    if wanted.flow:
        answers = [Answer(qos.policy_decision(PolicyExplain(flow=wanted.flow)))]
    else:
        answers = [_answer(qos, each) for each in _sockets(wanted)]
    if arguments.json:
        documents = [
            {"socket": each.title or None, "notes": list(each.notes)}
            | ruling.document(each.decision, connected=each.connected)
            for each in answers
        ]
        render.write_json(out, {"decisions": documents})
        return 0
    for number, each in enumerate(answers):
        if number:
            out.print()
        flows = _flows(qos, each.decision)
        sheet = ruling.sheet(
            each.decision, each.title, flows, each.notes, connected=each.connected, every=arguments.all
        )
        out.print(sheet)
    return 0


def _sockets(wanted: Target) -> list[OpenSocket]:
    if wanted.pid:
        try:
            found = opensockets.of_process(wanted.pid)
        except ProcessLookupError as error:
            raise InvalidRequest(
                f"there is no process {wanted.pid}", "a flow is written 0x...: `qos2 flows`"
            ) from error
        except PermissionError as error:
            raise NotPermitted(f"the sockets of process {wanted.pid} are not yours to see", "ask as root") from error
        if not found:
            raise InvalidRequest(
                f"process {wanted.pid} has no TCP or UDP socket with a port", "it may have been closed, or never bound"
            )
        return found
    one = opensockets.by_inode(wanted.inode) if wanted.ends is None else opensockets.by_ends(*wanted.ends)
    if one is None:
        raise InvalidRequest("there is no such socket", "as root all are found; of another namespace by process alone")
    return [one]


def _answer(qos: Client, each: OpenSocket) -> Answer:
    """By the socket itself where we may have a copy of it, else by what /proc says of it."""
    connected = each.remote is not None
    with ExitStack() as undo:
        try:
            copy = undo.enter_context(opensockets.borrowed(each)) if each.pid else None
        except OSError:
            copy = None  # not ours to trace, or closed meanwhile
        if copy is not None:
            decision = qos.policy_decision(PolicyExplain(pid=each.pid), copy)
            return Answer(decision, str(each), connected=connected)
    owner = owner_of(each.pid)
    remote = each.remote
    decision = qos.policy_decision(
        PolicyTest(
            unit=owner.unit,
            cgroup=owner.cgroup,
            executable=owner.executable,
            uid=each.uid,
            protocol=each.transport,
            local="" if each.local.address is None else str(each.local.address),
            local_port=each.local.port,
            remote="" if remote is None or remote.address is None else str(remote.address),
            remote_port=0 if remote is None else remote.port,
        )
    )
    return Answer(decision, str(each), (_NOT_AT_HAND,), connected)


def _flows(qos: Client, decision: PolicyDecision) -> list[FlowDetails]:
    """Details of the flows of applications that we may see."""
    found = []
    for flow in decision.flows:
        try:
            found.append(qos.flow_details(flow))
        except NoSuchFlow:
            continue
    return found
