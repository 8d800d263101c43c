"""qos2d, the entry point: arguments, configuration, the lock on the datapath, then the daemon.

Stays in the foreground, says READY=1 to a service manager, and on SIGTERM or SIGINT takes everything
off the host again. After kill -9 the datapath goes on; the next start takes it over.
"""

import argparse
import contextlib
import logging
import os
import socket
import sys
import time
from pathlib import Path

from qos2.config import Config, load
from qos2.datapath.pins import Pins
from qos2.errors import QosError
from qos2.version import version

_LOG = logging.getLogger("qos2d")


def serve(config: Config) -> None:
    """Runs the daemon until it is told to stop. Raises QosError where it cannot start."""
    began = time.monotonic()
    with contextlib.closing(Pins(config.pin_path, config.max_flows)) as pins:
        try:
            pins.begin()
            # The compiler works in a process of its own meanwhile.
            import asyncio

            from qos2.runtime import assembled

            with assembled(pins, config) as daemon:
                _LOG.info("datapath in place after %.2f s", time.monotonic() - began)
                asyncio.run(daemon.run(lambda: _announce(config)))
                notify("STOPPING=1")
        except QosError:
            pins.give_up()
            raise


def notify(state: str) -> None:
    """Tells the service manager (sd_notify(3)); silent where there is none."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect("\0" + address[1:] if address.startswith("@") else address)
        sender.sendall(state.encode())


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qos2d", description="The QoS2 daemon.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (TOML)")
    parser.add_argument("--socket", metavar="PATH", help="where clients connect")
    parser.add_argument("--device", action="append", metavar="DEV", help="repeatable; default: all bottom devices")
    parser.add_argument("--metrics", metavar="ADDR:PORT", help="Prometheus endpoint; empty: none")
    parser.add_argument("--pin-path", metavar="DIR", help="folder on bpffs for what outlives the daemon")
    parser.add_argument("--version", action="version", version=f"qos2d {version()}")
    return parser


def main() -> int:
    """Entry point: 0 after a clean stop, 1 where it could not start."""
    given = arguments().parse_args()
    overrides = {
        "socket": given.socket,
        "devices": given.device,
        "metrics": given.metrics,
        "pin_path": given.pin_path,
    }
    try:
        config = load(given.config, {key: value for key, value in overrides.items() if value is not None})
        logging.basicConfig(
            level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
        )
        serve(config)
    except QosError as error:
        sys.stderr.write(f"qos2d: {error.message}\n")
        if error.hint:
            sys.stderr.write(f"       {error.hint}\n")
        return 1
    return 0


def _announce(config: Config) -> None:
    _LOG.info("ready: %s", config.socket)
    notify("READY=1")


if __name__ == "__main__":
    sys.exit(main())
