"""The receiving end of the end-to-end test: `python3 -m vagrant.receiver --listen ADDRESS`.

Nothing of QoS2 is installed on this machine, so only the standard library is used, beside tcpdump and ethtool. It
serves one test at a time at a TCP port of the private network. Orders and answers are lines of JSON:

    {"order": "begin", "tcp": [7102], "udp": [7101]}   {"device": "eth1"}            sinks and the capture run
    {"order": "time"}                                  {"time_ns": 1763716800000000000}  the clock of the capture
    {"order": "end", "marker": "5f0e"}                 {"lost": 0, "bytes": 123456}, then so many bytes of pcap

"end" waits for a packet that contains the marker: what was sent before it has then been captured. What goes wrong is
answered by {"error": "..."} and ends the test; its sinks and its capture end with the connection.
"""

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from types import TracebackType
from typing import IO, Any, Self

CONTROL_PORT = 7100

#: How long the sender may be silent, a program may take to begin or to end, and the last packet to arrive. Seconds;
#: an emulated machine that shares its processor needs up to five for the second.
SILENCE_S = 120.0
PATIENCE_S = 30.0

_SNAPLEN = 128
_LONGEST_ORDER = 4096


class ReceiverError(Exception):
    """A test that cannot go on; the message is for whoever ordered it."""


def device_of(address: str) -> str:
    """The device that has this address. Raises ReceiverError where there is none."""
    command = ["ip", "-json", "address", "show", "to", address]
    listed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    # Devices that do not match are listed as empty objects.
    names: list[str] = [device["ifname"] for device in json.loads(listed.stdout) if device]
    if not names:
        raise ReceiverError(f"no device has {address}")
    return names[0]


class Sinks:
    """A process that receives at the given ports and throws everything away; a context manager."""

    def __init__(self, tcp: list[int], udp: list[int]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "demo.sink", "--tcp", *map(str, tcp), "--udp", *map(str, udp)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        # It writes at once, or ends: a port that is taken closes its output.
        if self._process.stdout.readline().strip() != b"ready":
            self._end()
            raise ReceiverError("the sinks did not start: see the journal of qos2-e2e-receiver")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        self._process.kill()  # it has nothing to put away
        self._process.communicate()


class Capture:
    """Every IPv4 packet that arrives at a device, by tcpdump, but those of the control port; a context manager."""

    def __init__(self, device: str) -> None:
        self._data = bytearray()
        self._grown = threading.Condition()
        self._process = subprocess.Popen(
            [
                *("tcpdump", "--interface", device, "--direction", "in", "-n", "-w", "-", "-U", "-Z", "root"),
                *("--immediate-mode", "--snapshot-length", str(_SNAPLEN), "--time-stamp-precision", "nano"),
                *("--buffer-size", "16384", f"ip and not tcp port {CONTROL_PORT}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)

    def __enter__(self) -> Self:
        self._reader.start()
        assert self._process.stderr is not None
        said = b""
        # It says so when every further packet will be captured, and ends where it cannot.
        for line in self._process.stderr:
            said += line
            if b"listening on" in line:
                return self
        self._end()
        raise ReceiverError(f"tcpdump did not begin: {said.decode(errors='replace').strip()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def finish(self, marker: bytes) -> tuple[int, bytes]:
        """Wait for the marker and end: packets lost, and the capture as pcap. Raises ReceiverError without a marker."""
        with self._grown:
            if not self._grown.wait_for(lambda: self._data.find(marker) >= 0, PATIENCE_S):
                raise ReceiverError(f"the end marker did not arrive within {PATIENCE_S:g} s")
        said = self._end()
        lost = re.search(rb"(\d+) packets? dropped by kernel", said)
        if lost is None:
            raise ReceiverError(f"tcpdump told no count of lost packets: {said.decode(errors='replace').strip()}")
        return int(lost.group(1)), bytes(self._data)

    def _end(self) -> bytes:
        """What it wrote to stderr since it began to listen (idempotent)."""
        self._process.terminate()
        assert self._process.stderr is not None
        said = b"" if self._process.stderr.closed else self._process.stderr.read()
        self._process.wait(PATIENCE_S)
        self._reader.join()
        self._process.stderr.close()
        return said

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            while chunk := os.read(stream.fileno(), 1 << 16):
                with self._grown:
                    self._data += chunk
                    self._grown.notify_all()


class Session:
    """One connection of a sender, from its first order to its end."""

    def __init__(self, stack: ExitStack, address: str) -> None:
        self._stack = stack
        self._address = address
        self._capture: Capture | None = None

    def obey(self, order: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
        """The answer, and the bytes that follow it. Raises ReceiverError for what cannot be done."""
        match order:
            case {"order": "begin", "tcp": list(tcp), "udp": list(udp)} if self._capture is None:
                device = device_of(self._address)
                # Packets are captured as they were on the wire, not joined to larger ones.
                subprocess.run(["ethtool", "-K", device, "gro", "off"], check=True, timeout=PATIENCE_S)
                self._stack.enter_context(Sinks(tcp, udp))
                self._capture = self._stack.enter_context(Capture(device))
                return {"device": device}, b""
            case {"order": "time"}:
                return {"time_ns": time.time_ns()}, b""
            case {"order": "end", "marker": str(marker)} if self._capture is not None:
                lost, data = self._capture.finish(bytes.fromhex(marker))
                return {"lost": lost, "bytes": len(data)}, data
            case _:
                raise ReceiverError(f"not an order, or not now: {order}")


def attend(connection: socket.socket, address: str) -> None:
    """Obey one sender until it closes the connection."""
    connection.settimeout(SILENCE_S)
    with ExitStack() as stack:
        orders = stack.enter_context(connection.makefile("rb"))
        session = Session(stack, address)
        while line := orders.readline(_LONGEST_ORDER):
            try:
                answer, data = session.obey(json.loads(line))
            except (ReceiverError, ValueError, OSError, subprocess.SubprocessError) as error:
                answer, data = {"error": str(error)}, b""
            connection.sendall(json.dumps(answer).encode() + b"\n" + data)
            if "error" in answer:
                return


def main(argv: list[str] | None = None) -> int:
    """Serve tests, one after the other, until ended."""
    parser = argparse.ArgumentParser(prog="python3 -m vagrant.receiver")
    parser.add_argument("--listen", required=True, metavar="ADDRESS", help="IPv4 address on the private network")
    options = parser.parse_args(argv)
    with socket.create_server((options.listen, CONTROL_PORT)) as listener:
        while True:
            connection, _ = listener.accept()
            with connection:
                try:
                    attend(connection, options.listen)
                except OSError as error:
                    sys.stderr.write(f"a test ended early: {error}\n")


if __name__ == "__main__":
    sys.exit(main())
