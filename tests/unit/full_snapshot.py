"""Everything that a daemon can have to tell Prometheus, all at once: for tests of the metrics."""

from dataclasses import replace
from typing import get_args

from qos2.core.usage import OTHER, Contracts
from qos2.datapath.abi import Counter, Drop, EventKind
from qos2.errors import BY_CODE
from qos2.metrics import LagMeter, ReloadStatus, RequestMeter, Snapshot
from qos2.model import DatapathStatus, DeviceStatus, FlowStats, Shaper, TrafficType
from qos2.wire.protocol import AnyRequest
from unit.path_metrics import paths_known_in_every_way

OPERATIONS = [request.__struct_config__.tag for request in get_args(AnyRequest)]
#: How many pairs of unit and type a Usage tells by name.
PLACES = 16
DEVICES = 40
PROGRAMS = ("qos_fq", "qos_htb", "qos_police", "qos_sock_create")


def meter() -> RequestMeter:
    return RequestMeter(OPERATIONS, ["ok", *BY_CODE])


def empty() -> Snapshot:
    return Snapshot(version="0.1.0", datapath=DatapathStatus(kernel="6.18.0"))


def stats(scale: int) -> FlowStats:
    reasons = (*(drop.label for drop in Drop), "queue")
    return FlowStats(
        packets=100 * scale,
        bytes=15_000_000_000 * scale,
        non_conformant_packets=30 * scale,
        non_conformant_bytes=4_000_000_000 * scale,
        delayed_packets=20 * scale,
        delay_ns=1_500_000_000 * scale,
        dropped_packets={reason: (3 + at) * scale for at, reason in enumerate(reasons)},
        dropped_bytes={drop.label: (300 + drop) * scale for drop in Drop},
    )


def every_request() -> RequestMeter:
    """Each operation has succeeded and failed, and each error has occurred."""
    requests = meter()
    for operation in OPERATIONS:
        requests.observe(operation, "ok", 75e-6)
        requests.observe(operation, "invalid_request", 75e-6)
    for code in BY_CODE:
        requests.observe("add_socket", code, 75e-6)
    requests.observe("drop_table", "protocol_error", 2.0)
    requests.observe("status", "no such code", 75e-6)
    return requests


def device(number: int) -> DeviceStatus:
    plain = DeviceStatus(f"eth{number}", number, 1, "tcx", Shaper.HTB, "no fq", number)
    return replace(plain, speed_bps=1_000_000_000, backlog_bytes=3000)


def full() -> Snapshot:
    lag = LagMeter()
    lag.observe(0.002)
    named = {(f"{number}.service", TrafficType(number % 6)): 1000 + number for number in range(PLACES)}
    failures = ("device_load_failed", "device_speed_failed")
    features = ("tcx", "fq", "htb", "cgroup2", "netns_cookie", "compare_and_swap")
    return Snapshot(
        version="0.1.0",
        datapath=DatapathStatus(
            kernel='6.18.0-"odd"\\kernel\n',
            devices=tuple(map(device, range(DEVICES))),
            features=dict.fromkeys(features, True) | {"fq": False},
            counters={name: 7 for name in (*(each.label for each in Counter), *failures)},
            events={kind.label: 9 for kind in EventKind},
            map_entries={"policy": (12, 65_536), "destinations": (13, 65_536)},
            problems=("device eth1 is not attached", "device eth2 can only police"),
        ),
        reload=ReloadStatus(generation=3, succeeded=False, at_s=1_795_255_200.5),
        flows={kind: int(kind) for kind in TrafficType},
        totals={kind: stats(int(kind) + 1) for kind in TrafficType},
        begun={kind: 10 + kind for kind in TrafficType},
        ended={kind: 5 + kind for kind in TrafficType},
        contracts={kind: Contracts(2 + kind, 1e6 * kind, 5e5 * kind) for kind in TrafficType},
        units=named | {(OTHER, kind): 70 + kind for kind in TrafficType},
        units_truncated=11,
        handles=3,
        orphans=2,
        pending_requests=6,
        refused_connections={
            reason: 5 for reason in ("connections", "connections_per_uid", "resources", "credentials", "not_reading")
        },
        requests=every_request(),
        lag=lag,
        paths=paths_known_in_every_way(),
        device_sent_bytes={f"eth{number}": 15_000 for number in range(DEVICES)},
        device_dropped_packets={f"eth{number}": 4 for number in range(DEVICES)},
        program_runs={program: (1000, 0.25) for program in PROGRAMS},
    )
