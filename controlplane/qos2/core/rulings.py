"""Which rule of the administrator's policy an application's request meets.

Pure. A socket that an application passes is judged by what the kernel says of it, and by who passed it. By which
device its packets will leave, and what DSCP it has set, is not known then: rules about these do not apply to it.
"""

from collections.abc import Callable
from dataclasses import replace

from qos2.core.policy import Connection, Policy
from qos2.core.rule import Rule, Traffic
from qos2.errors import DeniedByPolicy
from qos2.model import Destination, Peer, SocketFacts

#: So many kinds of clients are remembered, as many as there are units, users and programs with flows; and so many kinds
#: of sockets of each.
_REMEMBERED = 4096


#: What a socket is asked for, and the condition of a rule that asks for it.
_FACTS = {
    "protocol": "protocols",
    "local": "local",
    "local_port": "local_ports",
    "remote": "remote",
    "remote_port": "remote_ports",
}


def connection_of(peer: Peer, facts: SocketFacts | None, destination: Destination | None, namespace: str) -> Connection:
    """What is known of a socket that sends to `destination`; without `facts`, of whatever the process will open."""
    owner = Connection(
        unit=peer.unit, cgroup=peer.cgroup, uid=peer.uid, executable=peer.executable, namespace=namespace
    )
    return _connected(owner, facts, destination)


def _connected(owner: Connection, facts: SocketFacts | None, destination: Destination | None) -> Connection:
    if facts is None:
        return owner
    local, remote = facts.local, facts.peer or destination
    return replace(
        owner,
        protocol=facts.transport,
        local=None if local is None else local.address,
        local_port=0 if local is None else local.port,
        remote=None if remote is None else remote.address,
        remote_port=0 if remote is None else remote.port,
    )


class _Candidates:
    """The rules that the sockets of one kind of client can meet, by what these rules ask of a socket."""

    __slots__ = ("_asked", "_found", "_owner", "_policy")

    def __init__(self, policy: Policy, owner: Connection) -> None:
        self._policy = Policy(rule for rule in policy.rules if Policy([_about_owner(rule)]).find(owner) is not None)
        self._owner = owner
        self._asked = tuple(
            fact for fact, asked in _FACTS.items() if any(getattr(rule.match, asked) for rule in self._policy.rules)
        )
        #: By the facts that count: an application has many sockets to few ports.
        self._found: dict[tuple[object, ...], Rule | None] = {}

    def find(self, facts: SocketFacts | None, destination: Destination | None) -> Rule | None:
        connection = self._owner if not self._asked else _connected(self._owner, facts, destination)
        key = tuple([getattr(connection, fact) for fact in self._asked])
        try:
            return self._found[key]
        except KeyError:
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            rule = self._found[key] = self._policy.find(connection)
            return rule


def _about_owner(rule: Rule) -> Rule:
    """The rule without its conditions about addresses and ports; those that no socket here meets stay."""
    match = replace(rule.match, protocols=(), local=(), remote=(), local_ports=(), remote_ports=())
    return replace(rule, match=match)


class Rulings:
    """Judges by one policy. `namespace_name` tells how rules name a network namespace, by its cookie."""

    __slots__ = ("_candidates", "_local", "_namespace_name", "policy")

    def __init__(self, policy: Policy, namespace_name: Callable[[int], str]) -> None:
        self.policy = policy
        self._local = Policy(rule for rule in policy.rules if rule.match.traffic is not Traffic.FORWARDED)
        self._namespace_name = namespace_name
        self._candidates: dict[tuple[object, ...], _Candidates] = {}

    def find(self, peer: Peer, facts: SocketFacts | None, destination: Destination | None) -> Rule | None:
        """The rule that a socket meets, or (without `facts`) a process; None where no rule matches."""
        if not self._local.rules:
            return None
        namespace = self.namespace(peer, facts)
        kind = (peer.unit, peer.cgroup, peer.uid, peer.executable, namespace)
        candidates = self._candidates.get(kind)
        if candidates is None:
            if len(self._candidates) >= _REMEMBERED:
                self._candidates.clear()
            owner = connection_of(peer, None, None, namespace)
            candidates = self._candidates[kind] = _Candidates(self._local, owner)
        return candidates.find(facts, destination)

    def namespace(self, peer: Peer, facts: SocketFacts | None) -> str:
        """That of the socket as rules name it; of a process the one from which it connected."""
        return self._namespace_name(peer.netns_cookie if facts is None else facts.netns_cookie)


def check(rule: Rule | None) -> None:
    """Raises DeniedByPolicy where the rule denies an application's request."""
    if rule is not None and rule.act.deny:
        place = f"{rule.file}:{rule.line}" if rule.file else "the administrator's policy"
        raise DeniedByPolicy(f"the rule {rule.name} does not allow it", f"{place} says so; see `qos2 policy list`")
