"""qos2d, the entry point: arguments, configuration, the log, the lock on the datapath, then the daemon.

Stays in the foreground, talks to a service manager where there is one, and on SIGTERM or SIGINT takes everything
off the host again. After kill -9 the datapath goes on; the next start takes it over.
"""

import argparse
import contextlib
import faulthandler
import logging
import signal
import socket
import sys
import time
from pathlib import Path

from qos2 import logs
from qos2.activation import address_of, passed_listener
from qos2.chronicle import Event, tell
from qos2.config import Config, load
from qos2.datapath.pins import Pins
from qos2.errors import QosError
from qos2.supervisor import Supervisor
from qos2.version import version


def serve(config: Config, supervisor: Supervisor, listener: socket.socket | None) -> None:
    """Runs the daemon until it is told to stop. Raises QosError where it cannot start."""
    began = time.monotonic()
    address = str(config.socket) if listener is None else address_of(listener)
    tell(Event.START, f"qos2d {version()} starts", {"version": version()})

    def announce() -> None:
        took = time.monotonic() - began
        tell(Event.READY, f"ready: {address}, after {took:.2f} s", {"socket": address})
        supervisor.ready()

    with contextlib.closing(Pins(config.pin_path, config.max_flows, config.cache)) as pins:
        try:
            pins.begin()
            # The compiler works in a process of its own meanwhile.
            import asyncio

            from qos2.runtime import assembled

            with assembled(pins, config, supervisor=supervisor, listener=listener) as daemon:
                asyncio.run(daemon.run(announce))
                supervisor.stopping()
                tell(Event.STOP, "stopping: flows end, devices and sockets become as they were")
        except QosError:
            pins.give_up()
            raise
    tell(Event.STOPPED, "stopped")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="qos2d", description="The QoS2 daemon.")
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration (TOML)")
    parser.add_argument(
        "--socket", metavar="PATH", help="where clients connect, unless a service manager passes a socket"
    )
    parser.add_argument("--device", action="append", metavar="DEV", help="repeatable; default: all bottom devices")
    parser.add_argument("--metrics", metavar="ADDR:PORT", help="Prometheus endpoint; empty: none")
    parser.add_argument("--pin-path", metavar="DIR", help="folder on bpffs for what outlives the daemon")
    parser.add_argument("--version", action="version", version=f"qos2d {version()}")
    return parser


def main() -> int:
    """Entry point: 0 after a clean stop, 1 where it could not start."""
    given = arguments().parse_args()
    # The watchdog ends a stuck daemon by SIGABRT: then the log shows where it was stuck.
    faulthandler.enable()
    # A reload that comes before anything was read finds what is about to be read.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    overrides = {
        "socket": given.socket,
        "devices": given.device,
        "metrics": given.metrics,
        "pin_path": given.pin_path,
    }
    supervisor = Supervisor()
    form = logs.configure("info", "auto")  # for what is wrong with the configuration
    try:
        config = load(given.config, {key: value for key, value in overrides.items() if value is not None})
        form = logs.configure(config.log_level, config.log_format)
        serve(config, supervisor, passed_listener())
    except QosError as error:
        if form == "text":
            hint = f"       {error.hint}\n" if error.hint else ""
            sys.stderr.write(f"qos2d: {error.message}\n{hint}")
        else:
            tell(Event.FAILED, str(error), {"error": error.code}, level=logging.ERROR)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
