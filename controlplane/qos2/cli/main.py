"""The command `qos2`: arguments in, one subcommand run, errors as one line and a hint.

Exit codes: 0 done; 1 the daemon refused or cannot be reached; 2 wrong usage; `qos2 run` hands on
the code of its command.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console

from qos2.cli import explain, flow, flows, observations, reflector, render, run, sampling, status, top, watch
from qos2.cli.ports import Client
from qos2.client import Handle
from qos2.errors import QosError
from qos2.model import Shaping
from qos2.paths.reflector import PACKETS_PER_S
from qos2.wire import stamp

Connect = Callable[[str | None], Client]
_REFLECTOR = "answer probes of other hosts' paths (STAMP), for daemons that estimate the way to this host"
Execute = Callable[[Client, argparse.Namespace, Console], int]


def main(argv: Sequence[str] | None = None, connect: Connect = Handle) -> int:
    """Run the command line `argv` (None: that of the process) over what `connect` gives."""
    # A terminal that cannot show a character shows a question mark, not a traceback.
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = parser().parse_args(argv)
    execute: Execute | None = arguments.execute
    try:
        if execute is None:  # the one command that needs no daemon
            return reflector.execute(arguments)
        name = run.named_after(arguments.command) if arguments.execute is run.execute else nullcontext()
        with name, connect(arguments.socket) as qos:
            code = execute(qos, arguments, render.console())
        sys.stdout.flush()
        return code
    except QosError as error:
        print(f"qos2: {render.printable(error.message)}", file=sys.stderr)
        if error.hint:
            print(f"  hint: {render.printable(error.hint)}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    made = argparse.ArgumentParser(
        prog="qos2",
        description="Watch and control the quality-of-service flows of this host.",
        epilog="Flow ids are written 0x00100001; decimal is understood too.",
    )
    made.add_argument("--version", action="version", version=f"qos2 {_version()}")
    made.add_argument("--socket", metavar="PATH", help="socket of the daemon (default: $QOS2_SOCKET, else its own)")
    commands = made.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, execute: Execute, text: str, *, has_json: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        # The same option behind the command, without overwriting the one before it.
        command.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="socket of the daemon")
        if has_json:
            command.add_argument("--json", action="store_true", help="one JSON document instead of text")
        command.set_defaults(execute=execute)
        return command

    add("status", status.execute, "the daemon, its devices, how they shape and why, the kernel, problems")
    add("flows", flows.execute, "all flows that you may see, one per line")
    one = add("flow", flow.execute, "everything about one flow")
    one.add_argument("id", metavar="ID", type=flow.flow_id, help="as `qos2 flows` shows it")
    one = add("explain", explain.execute, "why a flow is in its state, what is known of its path, what changed lately")
    one.add_argument("id", metavar="ID", type=flow.flow_id, help="as `qos2 flows` shows it")
    _top(add("top", top.execute, "what each flow sends now, live"))
    _watch(add("watch", watch.execute, "the states of flows and what they rest on, live; changes as lines in a pipe"))
    _reflector(commands.add_parser("reflector", help=_REFLECTOR, description=_REFLECTOR))
    _run(add("run", run.execute, "run a program with all of its sockets in one flow", has_json=False))
    return made


def _top(command: argparse.ArgumentParser) -> None:
    command.add_argument("--sort", choices=top.SORTS, default="rate", help="order (default: rate)")
    command.add_argument("--once", action="store_true", help="one table, then end")
    command.add_argument("--interval", metavar="SECONDS", type=sampling.interval, default=1.0, help="default: 1")


def _watch(command: argparse.ArgumentParser) -> None:
    command.add_argument("flow", metavar="ID", nargs="?", type=flow.flow_id, help="one flow alone, with all about it")
    command.add_argument("--sort", choices=observations.ORDERS, default="state", help="order (default: state)")
    command.add_argument("--once", action="store_true", help="one view, then end; with --json one line per flow")
    command.add_argument("--interval", metavar="SECONDS", type=sampling.interval, default=0.5, help="default: 0.5")


def _reflector(command: argparse.ArgumentParser) -> None:
    command.set_defaults(execute=None)
    command.add_argument(
        "--listen", metavar="ADDRESS", type=reflector.address, action="append", help="repeatable; default: all"
    )
    command.add_argument("--port", type=reflector.port, default=stamp.PORT, help=f"default: {stamp.PORT}")
    command.add_argument(
        "--allow", metavar="NETWORK", type=reflector.network, action="append",
        help="answer these sources alone; repeatable; default: private, link-local and loopback networks",
    )  # fmt: skip
    command.add_argument(
        "--rate", metavar="PACKETS", type=reflector.rate, default=PACKETS_PER_S,
        help=f"answer at most so many per second and source (default: {PACKETS_PER_S:g})",
    )  # fmt: skip


class _Command(argparse.Action):
    """The words of a command, without the `--` in front of them; at least one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        assert isinstance(values, list)  # nargs=REMAINDER
        words = values[1:] if values[:1] == ["--"] else values
        if not words:
            parser.error("no command to run")
        setattr(namespace, self.dest, words)


def _run(command: argparse.ArgumentParser) -> None:
    command.usage = (
        "qos2 run --type TYPE [--rate RATE] [--shaping HOW] [--stats] [--linger SECONDS] -- COMMAND [ARGUMENT ...]"
    )
    command.add_argument(
        "--type", type=run.traffic_type, required=True, help="best_effort, background, excellent_effort, audio_video, "
        "voice or control",
    )  # fmt: skip
    command.add_argument("--rate", type=run.rate, help="at most so many bits/s at IP level: 64k, 20M, 1.5G")
    command.add_argument(
        "--shaping", type=run.shaping, default=Shaping.SHAPE_AND_MARK, metavar="HOW",
        help="shape_and_mark (default): delay what exceeds the rate; shape_only: the same without a mark; "
        "use_non_conformant_markings: send it at once, marked down",
    )  # fmt: skip
    command.add_argument("--stats", action="store_true", help="print the flow's counters to stderr at the end")
    command.add_argument(
        "--linger",
        metavar="SECONDS",
        type=run.seconds,
        default=run.LINGER_S,
        help=f"wait at most so long for data that the command left to be sent (default: {run.LINGER_S:g})",
    )
    command.add_argument("command", nargs=argparse.REMAINDER, action=_Command, metavar="COMMAND")


def _version() -> str:
    try:
        return version("qos2")
    except PackageNotFoundError:
        return "(not installed: run from its sources)"


if __name__ == "__main__":
    sys.exit(main())
