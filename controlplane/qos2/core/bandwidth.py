"""Bandwidths as people write them, on command lines and in the policy."""

import re
from decimal import Decimal

from qos2.model import MAX_BANDWIDTH, MIN_BANDWIDTH, Bandwidth

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def parse_bandwidth(text: str) -> Bandwidth:
    """Bits per second of `64k`, `20M`, `1.5G` or plain digits; units are decimal.

    Raises ValueError for anything else, and outside of the limits of a rate contract.
    """
    told = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([kKmMgGtT]?)", text)
    if told is None:
        raise ValueError(f"{text!r} is no rate such as 64k, 20M or 1.5G (bits per second)")
    bits = Decimal(told[1]) * _UNITS[told[2].lower()]
    if not MIN_BANDWIDTH <= bits <= MAX_BANDWIDTH:
        raise ValueError(f"{text} is not between 8k and 400G bits per second")
    return Bandwidth(int(bits))
