"""The benchmarks: `python -m bench [--quick] [--output FILE] [GROUP ...]` (needs root; touches no real network).

Measures group by group, shows each as soon as it is done, and at the end writes the page. Exit status: 0 also when
targets are missed, which the page says; 2 when something could not be measured, 130 after Ctrl-C. Whatever it
made is removed in all cases.
"""

import argparse
import os
import platform
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

from rich.console import Console

import qos2
from bench import control, kernels, paths, policy, rate, requests, scrape, testrun, traffic, wire
from bench.figures import Result
from bench.progress import Durations, Progress
from bench.reasons import REASONS
from bench.report import Machine, page, show
from bench.session import Session, commit, cpu_model
from demo.lab import LabError
from demo.packets import CaptureError

#: Columns where the output is no terminal.
_PLAIN_WIDTH = 140
_ROOT = Path(__file__).resolve().parents[2]
PAGE = _ROOT / "docs" / "benchmarks.md"
#: What tells how long a run is going to take.
DURATIONS = _ROOT / ".cache" / "bench-durations.json"

GROUPS: dict[str, Callable[[Session], Result]] = {
    "program": testrun.measure,
    "traffic": traffic.measure,
    "wire": wire.measure,
    "rate": rate.measure,
    "requests": requests.measure,
    "control": control.measure,
    "paths": paths.measure,
    "policy": policy.measure,
    "scrape": scrape.measure,
    "kernels": kernels.measure,
}


def main(argv: list[str] | None = None) -> int:
    """Run what was asked for."""
    options = _parser().parse_args(argv)
    if os.geteuid() != 0:
        sys.stderr.write("bench: needs root (it loads eBPF and makes network namespaces): sudo ./dev bench\n")
        return 2
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console() if sys.stdout.isatty() else Console(width=_PLAIN_WIDTH)
    chosen = {*options.groups, *options.only} or set(GROUPS)
    mode = "quick" if options.quick else "full"
    begin = _load()
    progress = Progress(console, [name for name in GROUPS if name in chosen], Durations(DURATIONS, mode))
    try:
        results = [_measured(console, progress, options.quick) for _ in chosen]
    except (LabError, CaptureError, qos2.QosError, OSError, ValueError) as error:
        console.print(f"[bold red]bench: {type(error).__name__}[/]: {error}", highlight=False)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted; everything is removed.")
        return 130
    output = options.output or (PAGE if len(chosen) == len(GROUPS) and not options.quick else None)
    if output is None:
        console.print("No page written: a partial or quick run needs --output FILE for one.")
    else:
        output.write_text(page(_machine(mode, begin), results, REASONS))
        console.print(f"Written: {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="./dev bench", description="Measures the datapath and the daemon.")
    parser.add_argument("groups", nargs="*", type=_group, metavar="GROUP", help=f"of {', '.join(GROUPS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: about 5 minutes")
    parser.add_argument("--only", action="append", default=[], type=_group, metavar="GROUP", help="the same as GROUP")
    parser.add_argument("--output", type=Path, metavar="FILE", help=f"default: {PAGE.name}, after a full run of all")
    return parser


def _group(text: str) -> str:
    """Raises ArgumentTypeError for what is no group. (argparse's choices would refuse that none is given.)"""
    if text not in GROUPS:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(GROUPS)}")
    return text


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


def _measured(console: Console, progress: Progress, quick: bool) -> Result:
    with progress.group() as name:
        result = GROUPS[name](Session(quick, progress.tell))
    show(console, result)
    return result


def _load() -> str:
    return f"{os.getloadavg()[0]:.2f}"


def _machine(mode: str, begin_load: str) -> Machine:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20
    return Machine(
        cpu=cpu_model(),
        cpus=os.cpu_count() or 1,
        kernel=platform.release(),
        memory_mib=memory,
        date=datetime.now(UTC).isoformat(" ", "minutes"),
        commit=commit(),
        mode=mode,
        load=f"{begin_load} at the start, {_load()} at the end (the load of the benchmarks themselves included)",
    )


if __name__ == "__main__":
    sys.exit(main())
