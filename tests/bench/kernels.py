"""Other kernels: nothing is measured here, it is the last run of `./dev vm all` that is shown.

    sudo ./dev vm all --json tests/bench/kernels.json

writes what this reads; it takes an hour and more where machines are emulated, so it is no part of a run of the others.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.figures import Result, Table
from bench.session import Session

RUN = Path(__file__).with_suffix(".json")


def measure(session: Session) -> Result:
    """The tables of the run in RUN. Raises OSError where it is missing, ValueError where it is none."""
    session.tell("reading the last run of ./dev vm all")
    run = json.loads(RUN.read_text())
    kernels = run["kernels"]
    missing = "".join(f" Not to be had: {kernel} ({why})." for kernel, why in run["skipped"].items())
    return Result(
        name="kernels",
        title="Kernels",
        method="`sudo ./dev vm --json`: each kernel in a virtual machine of its own, the tests of the main one in "
        "several, one after the other; files that were run anew (`--add`) have taken the place of their former "
        f"results. Ended {run['date']}, on a host with Linux {run['host']['kernel']} and "
        f"{run['host']['processors']} processors, {_processor(run)}. A check is a test of `tests/vm/test_smoke.py` "
        f"or another file of tests; docs/kernels.md says more.{missing}",
        tables=(_checks(kernels), *_figures(kernels)),
    )


def _processor(run: Mapping[str, Any]) -> str:
    return "with KVM" if run["host"]["kvm"] else "their processors emulated"


def _checks(kernels: list[dict[str, Any]]) -> Table:
    names = dict.fromkeys(check for kernel in kernels for check in kernel["checks"])
    rows = [(name, *(_outcome(kernel["checks"].get(name)) for kernel in kernels)) for name in names]
    rows.append(("minutes", *(f"{kernel['seconds'] / 60:.1f}" for kernel in kernels)))
    skips = [
        f"- {kernel['release']}: {check}: {count} left out: {reason}"
        for kernel in kernels
        for check, reasons in kernel["skips"].items()
        for reason, count in reasons.items()
    ]
    failures = [f"- {kernel['release']}: **failed**: {test}" for kernel in kernels for test in kernel["failures"]]
    return Table(
        "Kernel by check",
        ("check", *(kernel["release"] for kernel in kernels)),
        tuple(rows),
        tuple(failures + skips),
    )


def _outcome(outcome: Mapping[str, int] | None) -> str:
    if outcome is None:
        return "-"
    words = {"passed": "ok", "failed": "**failed**", "skipped": "left out"}
    return ", ".join(f"{outcome[key]} {word}" for key, word in words.items() if outcome[key]) or "-"


def _figures(kernels: list[dict[str, Any]]) -> list[Table]:
    """A table for all tests of a kernel that measure the same."""
    tables = []
    for kernel in kernels:
        alike: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for test, figures in kernel["figures"].items():
            alike.setdefault(tuple(figures), []).append((_words(test), *map(str, figures.values())))
        for names, rows in alike.items():
            columns = ("test", *(name.replace("_", " ") for name in names))
            tables.append(Table(f"{kernel['release']}: {', '.join(columns[1:3])}", columns, tuple(rows)))
    return tables


def _words(test: str) -> str:
    name, _, parameters = test.partition("[")
    return re.sub("_", " ", name.removeprefix("test_")) + (f": {parameters[:-1]}" if parameters else "")
