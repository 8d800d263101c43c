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

from qos2.cli import (
    checkconfig,
    explain,
    flow,
    flows,
    observations,
    policy,
    reflector,
    reload,
    render,
    run,
    sampling,
    selection,
    status,
    top,
    watch,
)
from qos2.cli.ports import Client
from qos2.client import Handle
from qos2.errors import QosError
from qos2.model import Shaping
from qos2.paths.reflector import PACKETS_PER_S
from qos2.wire import stamp

Connect = Callable[[str | None], Client]
_REFLECTOR = "answer probes of other hosts' paths (STAMP), for daemons that estimate the way to this host"
_CHECK = "whether the daemon would take its configuration and its policy; needs no daemon"
_POLICY = "the administrator's rules: what they are, and what they say of a connection"
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
        if execute is None:  # it needs no daemon
            code: int = arguments.alone(arguments)
            return code
        name = run.named_after(arguments.command) if arguments.execute is run.execute else nullcontext()
        with name, connect(arguments.socket) as qos:
            code = execute(qos, arguments, render.console())
        sys.stdout.flush()
        return code
    except QosError as error:
        for line in error.message.splitlines():  # a policy may have several mistakes
            print(f"qos2: {render.printable(line)}", file=sys.stderr)
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
        return _add(commands, name, execute, text, has_json=has_json)

    add("status", status.execute, "the daemon, its devices, how they shape and why, the kernel, problems")
    add("flows", flows.execute, "all flows that you may see, one per line")
    one = add("flow", flow.execute, "everything about one flow")
    one.add_argument("id", metavar="ID", type=flow.flow_id, help="as `qos2 flows` shows it")
    one = add("explain", explain.execute, "why a flow is in its state, what is known of its path, what changed lately")
    one.add_argument("id", metavar="ID", type=flow.flow_id, help="as `qos2 flows` shows it")
    _top(add("top", top.execute, "who sends what now: links, classes and flows, live"))
    _watch(add("watch", watch.execute, "the states of flows and what they rest on, live; changes as lines in a pipe"))
    _policy(commands.add_parser("policy", help=_POLICY, description=_POLICY))
    add("reload", reload.execute, "have the daemon read the administrator's rules anew: all of them, or none")
    _check(commands.add_parser("check-config", help=_CHECK, description=_CHECK))
    _reflector(commands.add_parser("reflector", help=_REFLECTOR, description=_REFLECTOR))
    _run(add("run", run.execute, "run a program with all of its sockets in one flow", has_json=False))
    return made


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    execute: Execute,
    text: str,
    *,
    has_json: bool = True,
) -> argparse.ArgumentParser:
    """A command that asks the daemon."""
    command = commands.add_parser(name, help=text, description=text)
    # The same option behind the command, without overwriting the one before it.
    command.add_argument("--socket", metavar="PATH", default=argparse.SUPPRESS, help="socket of the daemon")
    if has_json:
        command.add_argument("--json", action="store_true", help="one JSON document instead of text")
    command.set_defaults(execute=execute)
    return command


def _policy(command: argparse.ArgumentParser) -> None:
    commands = command.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "list", policy.execute_list, "all rules in order of decision, with what they have carried")
    test = _add(commands, "test", policy.execute_test, "which rule a connection would meet, and why the others do not")
    owner = test.add_argument_group("who has opened it")
    owner.add_argument("--unit", default="", help="systemd unit")
    owner.add_argument("--cgroup", metavar="PATH", default="", help="below /sys/fs/cgroup")
    owner.add_argument("--user", metavar="NAME", type=policy.user, help="name or uid")
    owner.add_argument("--executable", metavar="PATH", default="", help="absolute path")
    ends = test.add_argument_group("its ends; what is left out is not known")
    ends.add_argument("--protocol", choices=("tcp", "udp"), default="")
    ends.add_argument("--local", metavar="ADDRESS", default="")
    ends.add_argument("--local-port", metavar="PORT", type=int, default=0)
    ends.add_argument("--remote", metavar="ADDRESS", default="")
    ends.add_argument("--remote-port", metavar="PORT", type=int, default=0)
    packets = test.add_argument_group("its packets")
    packets.add_argument("--device", metavar="DEV", default="", help="by which they leave")
    packets.add_argument("--namespace", metavar="NAME", default="", help="network namespace, host for the daemon's own")
    packets.add_argument("--dscp", type=int, help="that the program sets")
    packets.add_argument("--forwarded", action="store_true", help="they come from another host")
    live = _add(commands, "explain", policy.execute_explain, "the same of a live connection: nobody has to guess")
    live.add_argument(
        "what", metavar="PID|SOCKET|FLOW", type=policy.target,
        help="a process with all of its sockets; one socket as '192.0.2.1:40000>192.0.2.7:443' or inode:12345; a flow "
        "as 0x00100001",
    )  # fmt: skip
    for each in (test, live):
        each.add_argument("--all", action="store_true", help="tell why of every rule, however many there are")


def _top(command: argparse.ArgumentParser) -> None:
    command.add_argument("--sort", choices=selection.SORTS, default="rate", help="order (default: rate)")
    command.add_argument("--filter", metavar="WORDS", default="", help="only flows that have all of these words: in "
                         "program, pid, unit, user, address, type, state, rule or id")  # fmt: skip
    command.add_argument("--once", action="store_true", help="one look, then end")
    command.add_argument("--interval", metavar="SECONDS", type=sampling.interval, default=1.0, help="default: 1")
    command.add_argument(
        "--color", choices=render.COLORS, default="auto", help="default: auto, never where NO_COLOR is set"
    )


def _watch(command: argparse.ArgumentParser) -> None:
    command.add_argument("flow", metavar="ID", nargs="?", type=flow.flow_id, help="one flow alone, with all about it")
    command.add_argument("--sort", choices=observations.ORDERS, default="state", help="order (default: state)")
    command.add_argument("--once", action="store_true", help="one view, then end; with --json one line per flow")
    command.add_argument("--interval", metavar="SECONDS", type=sampling.interval, default=0.5, help="default: 0.5")


def _check(command: argparse.ArgumentParser) -> None:
    command.set_defaults(execute=None, alone=checkconfig.execute)
    checkconfig.add_arguments(command)


def _reflector(command: argparse.ArgumentParser) -> None:
    command.set_defaults(execute=None, alone=reflector.execute)
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
