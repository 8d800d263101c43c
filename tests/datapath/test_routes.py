"""How hosts are reached, asked of real routing tables: those of a namespace that the test makes."""

import subprocess
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from qos2.datapath.devices import Devices
from qos2.datapath.links import Namespace
from qos2.datapath.routes import reach
from qos2.errors import HostUnreachable
from qos2.model import Reach

pytestmark = pytest.mark.datapath

ROUTES = """
link add lan type veth peer name far
link set lo up
link set lan up
link set far up
address add 192.0.2.1/24 dev lan
address add 2001:db8::1/64 dev lan nodad
route add 198.51.100.0/24 via 192.0.2.254
route add 2001:db8:1::/64 via 2001:db8::fe
route add 10.0.0.0/8 via inet6 2001:db8::fe dev lan
route add 203.0.113.0/26 dev lan
route add unreachable 203.0.113.64/26
route add prohibit 203.0.113.128/26
route add blackhole 203.0.113.192/26
route add unreachable 2001:db8:2::/64
route add prohibit 2001:db8:3::/64
route add blackhole 2001:db8:4::/64
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[Namespace]:
    with Namespace.fresh() as made:
        made.run(lambda: subprocess.run(["ip", "-batch", "-"], input=ROUTES, text=True, check=True))
        yield made


@pytest.mark.parametrize(
    ("address", "way"),
    [
        ("127.0.0.1", Reach.ON_LINK),
        ("::1", Reach.ON_LINK),
        ("192.0.2.1", Reach.ON_LINK),
        ("192.0.2.7", Reach.ON_LINK),
        ("2001:db8::7", Reach.ON_LINK),
        ("203.0.113.7", Reach.ON_LINK),
        ("198.51.100.7", Reach.ROUTED),
        ("2001:db8:1::7", Reach.ROUTED),
        ("10.1.2.3", Reach.ROUTED),
        ("192.0.2.255", Reach.NO_HOST),
        ("ff02::1", Reach.NO_HOST),
    ],
)
def test_a_host_is_on_the_link_if_no_gateway_is_between(namespace: Namespace, address: str, way: Reach) -> None:
    assert reach(namespace.conversation, ip_address(address)) is way


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "203.0.113.65", "203.0.113.129", "203.0.113.193", "2001:db8:2::7", "2001:db8:3::7", "2001:db8:4::7"],
)
def test_without_a_route_a_host_is_unreachable(namespace: Namespace, address: str) -> None:
    with pytest.raises(HostUnreachable) as refused:
        reach(namespace.conversation, ip_address(address))
    assert refused.value.message == f"no route to {address}"
    assert reach(namespace.conversation, ip_address("192.0.2.7"))


def test_nothing_is_known_of_a_namespace_that_is_not_in_use(namespace: Namespace, tmp_path: Path) -> None:
    devices = Devices(lambda link: tmp_path / link, tmp_path)
    assert devices.reach(namespace.cookie, ip_address("192.0.2.7")) is Reach.NO_HOST
