"""Rules and connections in words, by the keys that their file has for them.

For replies and logs. What is not said is left out, as in the file.
"""

from collections.abc import Iterable

from qos2.core.policy import Connection
from qos2.core.rule import Act, Bucket, Match, Traffic


def conditions(match: Match) -> dict[str, tuple[str, ...]]:
    """The conditions of a rule: each holds if one of its alternatives does."""
    every: dict[str, Iterable[object]] = {
        "unit": match.units,
        "cgroup": match.cgroups,
        "user": match.users,
        "executable": match.executables,
        "protocol": match.protocols,
        "local": match.local,
        "remote": match.remote,
        "local_port": match.local_ports,
        "remote_port": match.remote_ports,
        "device": match.devices,
        "namespace": match.namespaces,
        "dscp": match.dscps,
        "traffic": () if match.traffic is Traffic.LOCAL else (match.traffic,),
    }
    return {key: told for key, values in every.items() if (told := tuple(map(str, values)))}


def effects(act: Act) -> dict[str, str]:
    """What a rule does; rates in bits/s."""
    told: dict[str, object] = {}
    if act.traffic_type is not None:
        told["traffic_type"] = act.traffic_type.label
    if act.dscp is not None:
        told["dscp"] = act.dscp
    if act.rate:
        told |= {"rate": act.rate, "shaping": act.shaping.label}
        if act.bucket is not Bucket.SHARED:
            told["bucket"] = act.bucket
    if act.priority is not None:
        told["priority"] = act.priority
    told |= {key: "true" for key in ("ceiling", "deny", "exempt") if getattr(act, key)}
    return {key: str(value) for key, value in told.items()}


def facts(connection: Connection) -> dict[str, str]:
    """What is known of a connection."""
    every: dict[str, object] = {
        "unit": connection.unit,
        "cgroup": connection.cgroup,
        "user": connection.uid,
        "executable": connection.executable,
        "protocol": connection.protocol,
        "local": connection.local,
        "local_port": connection.local_port or None,
        "remote": connection.remote,
        "remote_port": connection.remote_port or None,
        "device": connection.device,
        "namespace": connection.namespace,
        "dscp": connection.dscp,
        "traffic": Traffic.FORWARDED if connection.forwarded else None,
    }
    return {key: str(value) for key, value in every.items() if value is not None and value != ""}
