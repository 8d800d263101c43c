"""Random rules and connections from a small world, so that they meet often."""

from ipaddress import ip_address, ip_network
from typing import TypeVar

from hypothesis import strategies as st

from qos2.core.policy import Connection
from qos2.core.rule import Act, Match, PortRange, Prefix, Rule, Traffic
from qos2.model import Dscp, Transport

Value = TypeVar("Value")

UNITS = ("a.service", "b.service", "system.slice", "system-x.slice", "user@1000.service", "-.slice",
         "user@1000.service/a.service")  # fmt: skip
CGROUPS = (
    "/",
    "/system.slice",
    "/system.slice/a.service",
    "/system.slice/a.service/inner",
    "/system.slice/system-x.slice/b.service",
    "/user.slice/user@1000.service/app.slice/a.service",
    "/docker/1/system.slice/a.service",
)
_FOUR = ("0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/16", "10.1.0.0/16", "10.1.2.3/32")
PREFIXES: tuple[Prefix, ...] = tuple(ip_network(text) for text in (*_FOUR, "::/0", "2001:db8::/32"))
ADDRESSES = tuple(ip_address(text) for text in ("10.1.2.3", "10.1.9.9", "192.0.2.1", "2001:db8::1", "fe80::1"))
RANGES = (PortRange(1, 1024), PortRange(443, 443), PortRange(1025, 65535), PortRange(1, 65535), PortRange(400, 2000))
PORTS = (0, 1, 443, 1024, 1025, 65535)
ACTS = (Act(dscp=Dscp(34)), Act(dscp=Dscp(8)), Act(deny=True), Act(exempt=True))


def _some(values: tuple[Value, ...]) -> st.SearchStrategy[tuple[Value, ...]]:
    """No condition half of the time, else up to three alternatives."""
    return st.just(()) | st.lists(st.sampled_from(values), min_size=1, max_size=3, unique=True).map(tuple)


def _maybe(*values: Value) -> st.SearchStrategy[Value]:
    return st.sampled_from(values)


matches = st.builds(
    Match,
    units=_some(UNITS),
    cgroups=_some(CGROUPS),
    users=_some((0, 1000, 1001)),
    executables=_some(("/usr/bin/a", "/usr/bin/b")),
    protocols=_some(tuple(Transport)),
    local=_some(PREFIXES),
    remote=_some(PREFIXES),
    local_ports=_some(RANGES),
    remote_ports=_some(RANGES),
    devices=_some(("eth0", "eth1")),
    namespaces=_some(("host", "blue")),
    dscps=_some((Dscp(0), Dscp(46))),
    traffic=st.sampled_from(Traffic),
)

#: With few conditions, so that many connections meet them.
wide_matches = st.one_of(
    st.builds(Match, remote=_some(PREFIXES), remote_ports=_some(RANGES), traffic=st.sampled_from(Traffic)),
    st.builds(Match, units=_some(UNITS), protocols=_some(tuple(Transport))),
    st.builds(Match, cgroups=_some(CGROUPS), users=_some((0, 1000))),
)

connections = st.builds(
    Connection,
    cgroup=_maybe("", *CGROUPS[1:]),
    uid=_maybe(None, 0, 1000, 1001),
    executable=_maybe("", "/usr/bin/a", "/usr/bin/b"),
    protocol=_maybe(None, *Transport),
    local=_maybe(None, *ADDRESSES),
    local_port=_maybe(*PORTS),
    remote=_maybe(None, *ADDRESSES),
    remote_port=_maybe(*PORTS),
    device=_maybe("", "eth0", "eth1"),
    namespace=_maybe("", "host", "blue"),
    dscp=_maybe(None, Dscp(0), Dscp(46)),
    forwarded=st.booleans(),
)

rules = st.lists(
    st.tuples(wide_matches | matches, st.sampled_from(ACTS), st.sampled_from((0, 127, 255))), max_size=12
).map(
    lambda drawn: [
        Rule(f"rule-{number}", match, act, precedence, "a.toml", number + 1)
        for number, (match, act, precedence) in enumerate(drawn)
    ]
)
