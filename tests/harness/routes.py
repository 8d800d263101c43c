"""Ways from the lab's application to its peer: over the plain device, over a VLAN, and over a VLAN within it."""

import socket
from dataclasses import dataclass

from demo.lab import Lab, LabError

PLAIN, TAGGED, TWICE_TAGGED = "eth0", "eth0.5", "eth0.5.7"


@dataclass(frozen=True)
class Route:
    """A way from the application to the peer: over a device, to an address that is reached over no other."""

    device: str
    family: socket.AddressFamily
    host: str

    def __str__(self) -> str:
        return f"{'IPv4' if self.family == socket.AF_INET else 'IPv6'}-{self.device}"


ROUTES = [
    Route(PLAIN, socket.AF_INET, "198.51.100.2"),
    Route(PLAIN, socket.AF_INET6, "2001:db8:2::2"),
    Route(TAGGED, socket.AF_INET, "198.51.100.3"),
    Route(TAGGED, socket.AF_INET6, "2001:db8:2::3"),
    Route(TWICE_TAGGED, socket.AF_INET, "198.51.100.4"),
    Route(TWICE_TAGGED, socket.AF_INET6, "2001:db8:2::4"),
]


def add_vlans(lab: Lab, *, required: bool) -> str:
    """VLAN 5 between application and router, and VLAN 7 within it, whose tag is in the packet when we meet it.

    Why they are not there, or "". Raises LabError where they are required and cannot be made.
    """
    for number, device, on, port, subnet in (
        (5, TAGGED, PLAIN, "to-app", 1),
        (7, TWICE_TAGGED, TAGGED, "to-app.5", 2),
    ):
        for end, name, lower, host in ((lab.app, device, on, 2), (lab.router, f"{port}.{number}", port, 1)):
            try:
                end.run("ip", "link", "add", "link", lower, "name", name, "type", "vlan", "id", str(number))
            except LabError as error:
                if required or "Unknown device type" not in str(error):
                    raise
                return "this kernel has no VLAN devices (8021q)"
            end.run("ip", "address", "add", f"203.0.113.{subnet * 64 + host}/26", "dev", name)
            end.run("ip", "address", "add", f"2001:db8:{subnet + 4}::{host}/64", "dev", name, "nodad")
            end.run("ip", "link", "set", name, "up")
        for route in (each for each in ROUTES if each.device == device):
            via = f"203.0.113.{subnet * 64 + 1}" if route.family == socket.AF_INET else f"2001:db8:{subnet + 4}::1"
            lab.app.run("ip", "route", "add", route.host, "via", via, "dev", device)
    return ""
