"""What ss(8) says of a connection: the kernel's own account of it."""

import re
from typing import NamedTuple

from demo.lab import Namespace

#: A busy kernel may leave a connection out of one answer.
_ATTEMPTS = 5


class Told(NamedTuple):
    """What `ss -ti` says of a connection: microseconds, and segments since it began."""

    srtt_us: float
    min_rtt_us: float
    retransmits: int


def told_by_ss(namespace: Namespace, port: int) -> Told:
    """Of a namespace's TCP connection from this port."""
    for _ in range(_ATTEMPTS):
        said = namespace.run("ss", "-tinH", f"sport = :{port}")
        srtt, least = re.search(r"\brtt:([\d.]+)/", said), re.search(r"\bminrtt:([\d.]+)", said)
        if srtt is not None and least is not None:
            again = re.search(r"\bretrans:\d+/(\d+)", said)  # not said before the first
            return Told(float(srtt[1]) * 1e3, float(least[1]) * 1e3, int(again[1]) if again else 0)
    raise AssertionError(f"ss says nothing of port {port}: {said!r}")
