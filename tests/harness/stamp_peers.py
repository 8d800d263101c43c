"""Ends of STAMP and TWAMP-Light sessions that nobody here wrote: scapy's packets over sockets, and nokia/twampy.

twampy is no package of the index: it runs where the environment names its program, and is left out elsewhere. This
file is a program too, the reflector of scapy's packets: `python -m harness.stamp_peers ADDRESS PORT`.
"""

import itertools
import os
import re
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from scapy.contrib.stamp import (
    STAMPSessionReflectorTestUnauthenticated,
    STAMPSessionSenderTestUnauthenticated,
    STAMPTestTLV,
)

from demo.lab import Namespace, end
from demo.processes import environment

TWAMPY = os.environ.get("QOS2_TWAMPY", "")
needs_twampy = pytest.mark.skipif(
    not TWAMPY,
    reason="needs nokia/twampy: clone it, and set QOS2_TWAMPY to its src/twampy/__main__.py (before 1.3: twampy.py)",
)
FROM_1900_TO_1970_S = 2_208_988_800
EXTRA_PADDING = 1
UNRECOGNISED = 0x80

_TESTS = Path(__file__).resolve().parents[1]
_UNITS_US = {"us": 1.0, "ms": 1e3, "sec": 1e6, "min": 60e6}
_ROW = re.compile(r"^ +(\w+):" + r" +([\d.]+)(us|ms|sec|min)" * 4 + r" +(-?[\d.]+)%$", re.MULTILINE)


def tlv(kind: int, value: bytes = b"", length: int | None = None) -> STAMPTestTLV:
    """As a sender sends it."""
    return STAMPTestTLV(flags=UNRECOGNISED, type=kind, len=len(value) if length is None else length, value=value)


def request(sequence: int, session: int, sent_s: float, *tlvs: STAMPTestTLV) -> bytes:
    """A sender's packet."""
    packet = STAMPSessionSenderTestUnauthenticated(
        seq=sequence, ssid=session, ts=sent_s + FROM_1900_TO_1970_S, tlv_objects=list(tlvs)
    )
    return bytes(packet)


class ScapyReflector:
    """A process that counts its replies from 0, as one with state does, and knows no TLV but extra padding."""

    def __init__(self, namespace: Namespace, address: str, port: int) -> None:
        python_path = f"{environment()['PYTHONPATH']}:{_TESTS}"
        self._process = namespace.popen(
            # What else this machine does would make a busy reflector seem idle now and then.
            *("nice", "-n", "-15", sys.executable, "-m", "harness.stamp_peers", address, str(port)),
            stdout=subprocess.PIPE,
            env=environment() | {"PYTHONPATH": python_path},
        )
        assert self._process.stdout is not None
        self._process.stdout.readline()  # it listens: to import scapy takes an emulated processor ten seconds and more

    def close(self) -> None:
        end(self._process)


def main() -> None:
    """Be that process."""
    address, port = sys.argv[1:]
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind((address, int(port)))
        os.write(1, b"listening\n")
        for count in itertools.count():
            data, source = sock.recvfrom(65_535)
            sock.sendto(_reply(data, time.time() + FROM_1900_TO_1970_S, count), source)


def _reply(data: bytes, reached: float, count: int) -> bytes:
    asked = STAMPSessionSenderTestUnauthenticated(data)
    for each in asked.tlv_objects:
        each.flags = 0 if each.type == EXTRA_PADDING else UNRECOGNISED
    reply = STAMPSessionReflectorTestUnauthenticated(
        seq=count,
        ts=0,
        ssid=asked.ssid,
        ts_rx=reached,
        seq_sender=asked.seq,
        ts_sender=asked.ts,
        err_estimate_sender=asked.err_estimate,
        tlv_objects=asked.tlv_objects,
    )
    packet = bytearray(bytes(reply))
    # Its own time as late as can be: to build a packet takes scapy some 0.1 ms.
    packet[4:12] = struct.pack("!Q", round((time.time() + FROM_1900_TO_1970_S) * 2**32))
    return bytes(packet)


class TwampyReflector:
    """Its responder, with replies that are as short as can be, which is its default."""

    def __init__(self, namespace: Namespace, address: str, port: int) -> None:
        at = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        self._process = namespace.popen(*_twampy("responder", at), stdout=subprocess.DEVNULL, env=_environment())

    def close(self) -> None:
        end(self._process)


class Row(NamedTuple):
    """One direction of what twampy's sender found; times in microseconds, loss in percent."""

    least: float
    most: float
    mean: float
    jitter: float
    loss: float


def twampy_sends(namespace: Namespace, to: str, own: str, count: int, padding: int) -> dict[str, Row]:
    """What its sender says of `count` packets, 10 ms apart, by direction: Outbound, Inbound, Roundtrip."""
    argv = _twampy("sender", to, own, "--count", str(count), "--interval", "10", "--padding", str(padding))
    process = namespace.popen(*argv, stdout=subprocess.PIPE, env=_environment())
    try:
        said = process.communicate(timeout=60)[0].decode()
    finally:
        end(process)
    rows = {}
    for name, *fields, loss in _ROW.findall(said):
        times = [float(number) * _UNITS_US[unit] for number, unit in zip(fields[::2], fields[1::2], strict=True)]
        rows[name] = Row._make([*times, float(loss)])
    assert rows or "100% loss" in said, said
    return rows


def _twampy(*argv: str) -> list[str]:
    return [sys.executable, TWAMPY, *argv]


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(TWAMPY).resolve().parents[1])}


if __name__ == "__main__":
    main()
