"""What traffic control has in a namespace of the lab, as one text: what was put back exactly compares equal."""

import re
import tempfile

from demo.lab import Namespace
from harness.tcx import tcx_programs
from qos2.datapath import links

#: Counts packets, not settings.
_COUNTERS = re.compile(r" direct_packets_stat \d+")


def device_state(namespace: Namespace) -> str:
    """Qdiscs, classes and filters of every device as tc(8) shows them, and the ids of the tcx programs at egress."""
    with open(namespace.path) as descriptor, links.Namespace(descriptor.fileno()) as entered:
        devices = entered.devices()
        programs = "".join(f"tcx {device.name} {tcx_programs(entered, device.index)}\n" for device in devices)
    with tempfile.NamedTemporaryFile("w", suffix=".tc") as batch:
        batch.write("qdisc show\n")
        for device in devices:
            batch.write(f"class show dev {device.name}\n")
            batch.writelines(f"filter show dev {device.name} {at}\n" for at in ("root", "ingress", "egress"))
        batch.flush()
        shown = namespace.run("tc", "-batch", batch.name)
    return _COUNTERS.sub("", shown) + programs


def without_ours(state: str) -> str:
    """A state without what a daemon attaches to every device: its tcx program, or its filter and that one's clsact."""
    kept = [
        line
        for line in state.splitlines()
        if not line.startswith(("tcx ", "qdisc clsact ")) and " pref 81 " not in line and "qos_egress" not in line
    ]
    return "\n".join(kept)
