"""A rule as the kernel matches it: one entry for each combination of its alternatives (struct rule of types.h).

An entry has one value and one mask for each thing that rules look at, so a condition with three ports and two
prefixes becomes six entries, one behind the other. Names are numbers by now (identities.py).
"""

import itertools
import math
import socket
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv4Network
from typing import TypeVar

from qos2.core.ports import InstalledRule
from qos2.core.rule import Bucket, Match, PortRange, Prefix, Traffic
from qos2.datapath import abi
from qos2.datapath.identities import Resolved
from qos2.errors import LimitExceeded
from qos2.model import Transport

Value = TypeVar("Value")
#: Values of struct rule by their names.
Fields = dict[str, int | Sequence[int]]

_ALL = 0xFFFFFFFF
_BYTE = 0xFF
_PROTOCOLS = {Transport.TCP: int(socket.IPPROTO_TCP), Transport.UDP: int(socket.IPPROTO_UDP)}
_BUCKETS = {Bucket.SHARED: abi.Bucket.SHARED, Bucket.SOCKET: abi.Bucket.SOCKET, Bucket.HOST: abi.Bucket.HOST}
_TRAFFIC = {Traffic.LOCAL: abi.Traffic.LOCAL, Traffic.FORWARDED: abi.Traffic.FORWARDED}
_ANY_PORT = PortRange(0, 0xFFFF)  #: also of packets that have none
_WORDS = struct.Struct("=4I")


def entries(installed: InstalledRule, resolved: Resolved, pool: int, *, with_namespaces: bool) -> list[abi.Rule]:
    """The entries of one rule, none where it names something that is not there now.

    `pool` is the index of its pool, 0 without one; `with_namespaces`: the kernel tells a packet's network namespace.
    Raises LimitExceeded naming a rule that is more than all rules together may be.
    """
    match = installed.rule.match
    if _owner_wanted(match) and match.traffic is Traffic.FORWARDED:
        return []  # nobody of this host owns what is forwarded
    alternatives = _alternatives(match, resolved, with_namespaces=with_namespaces)
    if math.prod(map(len, alternatives)) > abi.RULES:
        raise LimitExceeded(
            f"rule {installed.rule.name} has over {abi.RULES:,} combinations of its alternatives",
            "wider prefixes, port ranges or a slice say the same in fewer",
        )
    return [_entry(installed, pool, fields) for fields in _combinations(alternatives)]


def behind_the_last() -> abi.Rule:
    """The entry that ends a ruleset: everything matches it, and it says that no rule does."""
    rule = abi.Rule(bucket=abi.Bucket.NONE)
    rule.local_port_last = rule.remote_port_last = _ANY_PORT.last
    return rule


def flags(installed: Iterable[InstalledRule]) -> abi.RulesetFlag:
    """What some of these rules look at."""
    found = abi.RulesetFlag(0)
    for each in installed:
        match = each.rule.match
        if match.traffic is not Traffic.LOCAL:
            found |= abi.RulesetFlag.FORWARDED
        if match.local or match.remote or match.remote_ports or (each.pooled and each.rule.act.bucket is Bucket.HOST):
            found |= abi.RulesetFlag.PEERS
        if match.devices:
            found |= abi.RulesetFlag.DEVICE
        if match.dscps:
            found |= abi.RulesetFlag.DSCP
        if match.executables:
            found |= abi.RulesetFlag.EXECUTABLES
    return found


def _owner_wanted(match: Match) -> bool:
    return bool(match.units or match.cgroups or match.users or match.executables)


def _entry(installed: InstalledRule, pool: int, fields: Fields) -> abi.Rule:
    rule = abi.Rule(flow_id=installed.flow or 0, pool=pool)
    rule.bucket = _BUCKETS[installed.rule.act.bucket] if installed.pooled else abi.Bucket.SHARED
    for name, value in fields.items():
        if isinstance(value, int):
            setattr(rule, name, value)
        else:
            getattr(rule, name)[:] = value
    return rule


def _combinations(alternatives: Sequence[Sequence[Fields]]) -> Iterator[Fields]:
    """One of each; two prefixes of different families never meet."""
    for chosen in itertools.product(*alternatives):
        families = {fields["family"] for fields in chosen if "family" in fields}
        if len(families) < 2:
            yield {name: value for fields in chosen for name, value in fields.items()}


def _alternatives(match: Match, resolved: Resolved, *, with_namespaces: bool) -> list[list[Fields]]:
    """By condition: what it may be, one field set for each way; `[{}]` for none."""
    owner = _owner_wanted(match)
    local_only = owner or match.traffic is not Traffic.ANY
    traffic = abi.Traffic.LOCAL if owner else _TRAFFIC.get(match.traffic, abi.Traffic.LOCAL)
    return [
        [{"traffic": traffic, "traffic_mask": _BYTE}] if local_only else [{}],
        _each(resolved.cgroups, lambda cgroup: _cgroup(cgroup.id, cgroup.level)),
        _each(match.users or None, lambda uid: {"uid": uid, "uid_mask": _ALL}),
        _each(resolved.executables, lambda index: {"executable": index, "executable_mask": _ALL}),
        _each(match.protocols or None, lambda name: {"protocol": _PROTOCOLS[name], "protocol_mask": _BYTE}),
        _each(match.local or None, lambda prefix: _prefix("local", prefix)),
        _each(match.remote or None, lambda prefix: _prefix("remote", prefix)),
        _each(match.local_ports or (_ANY_PORT,), lambda ports: _ports("local", ports)),
        _each(match.remote_ports or (_ANY_PORT,), lambda ports: _ports("remote", ports)),
        _places(resolved, with_namespaces=with_namespaces),
        _each(match.dscps or None, lambda dscp: {"dscp": dscp, "dscp_mask": _BYTE}),
    ]


def _each(wanted: Iterable[Value] | None, fields_of: Callable[[Value], Fields]) -> list[Fields]:
    """None: no such condition."""
    return [{}] if wanted is None else [fields_of(each) for each in wanted]


def _cgroup(cgroup_id: int, level: int) -> Fields:
    """Everything is below the root, which has level 0 and is not compared."""
    return {"cgroup_id": cgroup_id, "cgroup_level": level} if level else {}


def _prefix(side: str, prefix: Prefix) -> Fields:
    four = isinstance(prefix, IPv4Network)
    return {
        f"{side}_be": _words(prefix.network_address.packed),
        f"{side}_mask_be": _words(prefix.netmask.packed),
        "family": 4 if four else 6,
        "family_mask": _BYTE,
    }


def _words(address: bytes) -> tuple[int, ...]:
    """As they lie in a packet; IPv4 in the first."""
    return _WORDS.unpack(address.ljust(_WORDS.size, bytes(1)))


def _ports(side: str, ports: PortRange) -> Fields:
    return {f"{side}_port_first": ports.first, f"{side}_port_last": ports.last}


def _places(resolved: Resolved, *, with_namespaces: bool) -> list[Fields]:
    """Devices are within the namespaces already, where a match names both."""
    if resolved.devices is not None:
        return _each(
            resolved.devices,
            lambda place: {
                "netns_cookie": place[0] if with_namespaces else 0,
                "ifindex": place[1],
                "ifindex_mask": _ALL,
            },
        )
    return _each(resolved.netns_cookies, lambda cookie: {"netns_cookie": cookie})
