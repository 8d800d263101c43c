"""`./dev vm`: tests on other kernels, each in a virtual machine of its own, and one table of it all: check by kernel.

    matrix.py [KERNEL ...] [--json FILE] [--host FILE] [--begin-within SECONDS] [-- PYTEST...]

KERNEL is a version (6.1), `newest`, a package (linux-image-6.12-amd64), or `all`. Without any it is 6.1. Machines run
one after the other: what they measure is measured on the host's processors. A kernel that cannot be fetched is left
out and named in the last lines; a machine that dies is a failure (99). The exit status is the worst of all kernels'.
"""

import argparse
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

#: Oldest first. The first is the oldest that is supported, and the one with everything is what most run.
ALL = ("5.10", "6.1", "6.12", "newest")
MAIN = "6.1"
SMOKE = ("tests/vm/test_smoke.py",)
#: Ten minutes on an emulated processor.
LANE = (*SMOKE, "tests/vm/test_stock_kernel.py", "tests/lab/test_netem.py")
#: What a kernel of a distribution can show, and whatever is judged by what leaves the wire: an hour and more, emulated.
WHOLE = ("tests/vm", "tests/lab/test_netem.py", "tests/datapath")
#: How long a machine may take, in seconds: six times of what an emulated processor takes, whose host may be busy.
SECONDS = {SMOKE: 1800, LANE: 3600, WHOLE: 14400}
OWN_SECONDS = 3600  #: for tests that are named

#: Exit status of kernels.sh, and two of boot.sh.
NO_KERNEL, NO_MACHINE, DIED = 3, 98, 99


@dataclass
class Outcome:
    """What came of the tests of one check on one kernel."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        total = self.passed + self.failed + self.skipped
        if self.failed:
            return f"FAILED {self.failed} of {total}" if total > 1 else "FAILED"
        if not self.passed:
            return "skipped"
        ok = f"{self.passed} ok" if total > 1 else "ok"
        return f"{ok}, {self.skipped} skipped" if self.skipped else ok


@dataclass
class Result:
    """What came of one kernel."""

    kernel: str  #: as it was asked for
    release: str
    status: int  #: pytest's exit status, or DIED
    seconds: float
    checks: dict[str, Outcome] = field(default_factory=dict)  #: by name
    figures: dict[str, dict[str, str]] = field(default_factory=dict)  #: test -> what it measured
    failures: list[str] = field(default_factory=list)  #: tests
    skips: dict[str, dict[str, int]] = field(default_factory=dict)  #: check -> reason -> tests


def check_of(module: str, name: str) -> str:
    """A test of test_smoke.py is a check by itself, in words; any other file is one check."""
    folder, _, file = module.removeprefix("tests.").rpartition(".")
    if file == "test_smoke":
        return name.partition("[")[0].removeprefix("test_").replace("_", " ")
    return f"{folder.replace('.', '/')}/{file}"


def read_junit(path: Path, result: Result) -> None:
    """Adds what the junit file of a run says to `result`. Raises ElementTree.ParseError, FileNotFoundError."""
    for case in ElementTree.parse(path).iter("testcase"):
        name = case.get("name", "")
        check = check_of(case.get("classname") or name, name)
        outcome = result.checks.setdefault(check, Outcome())
        outcome.seconds = round(outcome.seconds + float(case.get("time", 0)), 3)
        skipped = case.find("skipped")
        if case.find("failure") is not None or case.find("error") is not None:
            outcome.failed += 1
            result.failures.append("::".join(part for part in (case.get("classname"), name) if part))
        elif skipped is not None:
            outcome.skipped += 1
            reasons, reason = result.skips.setdefault(check, {}), skipped.get("message", "no reason")
            reasons[reason] = reasons.get(reason, 0) + 1
        else:
            outcome.passed += 1
        figures = {each.get("name", ""): each.get("value", "") for each in case.iter("property")}
        if figures:
            result.figures[name] = figures


def find(kernel: str) -> tuple[str, str]:
    """(release, "") of a kernel that is unpacked now, or ("", why there is none)."""
    with subprocess.Popen([HERE / "kernels.sh", kernel], stdout=subprocess.PIPE, text=True) as fetching:
        said = fetching.communicate()[0].strip()
    if fetching.returncode == 0:
        return said, ""
    return "", said if fetching.returncode == NO_KERNEL else f"kernels.sh ended with status {fetching.returncode}"


def run_of(release: str) -> Path:
    """Where the machine of this kernel leaves what it said."""
    return ROOT / ".cache" / "vm" / "runs" / release


def last_time(release: str, tests: Sequence[str]) -> str:
    """How long these tests took on this kernel when they last came to their end here, in words."""
    try:
        seconds = json.loads((run_of(release) / "seconds.json").read_text())[" ".join(tests)]
    except (OSError, ValueError, KeyError):
        return "never run here"
    return f"took {seconds / 60:.0f} min last time"


def remember(result: Result, tests: Sequence[str]) -> None:
    """For `last_time`."""
    path = run_of(result.release) / "seconds.json"
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    path.write_text(json.dumps(known | {" ".join(tests): result.seconds}, indent=2) + "\n")


def boot(kernel: str, release: str, tests: Sequence[str], seconds: int) -> Result:
    """Runs the tests on this kernel, and shows what pytest says meanwhile."""
    run = run_of(release)
    environment = {"QOS_VM_SECONDS": str(seconds)} | os.environ | {"QOS_VM_RUN": str(run)}
    junit = run / "junit.xml"
    junit.unlink(missing_ok=True)
    began = time.monotonic()
    with subprocess.Popen([HERE / "boot.sh", release, *tests], env=environment) as machine:
        try:
            status = machine.wait()
        except BaseException:
            machine.terminate()  # it ends its machine
            raise
    result = Result(kernel, release, status, round(time.monotonic() - began, 1))
    try:
        if status != NO_MACHINE:
            read_junit(junit, result)
    except (ElementTree.ParseError, FileNotFoundError):
        result.status = DIED  # whatever it says: pytest did not come to its end
    return result


def host(junit: Path | None) -> list[Result]:
    """What came of the tests on the host, of which pytest has told the failures. Empty without a file."""
    result = Result("host", f"this host's {platform.release()}", 0, 0)
    try:
        if junit is not None:
            read_junit(junit, result)
    except (ElementTree.ParseError, FileNotFoundError):
        pass  # pytest was interrupted, and has said so
    result.failures.clear()
    return [result]


def table(results: Sequence[Result]) -> list[str]:
    """A line per check, a column per kernel."""
    checks = list(dict.fromkeys(check for result in results for check in result.checks))
    rows = [["check", *(result.release.removesuffix("-amd64") for result in results)]]
    for check in checks:
        rows.append([check, *(str(result.checks.get(check, "-")) for result in results)])
    rows.append(["exit status", *("died" if result.status == DIED else str(result.status) for result in results)])
    rows.append(["seconds", *(f"{result.seconds:.0f}" for result in results)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def last_lines(results: Sequence[Result], missing: dict[str, str]) -> list[str]:
    """What failed and what was left out, each by name."""
    lines: list[str] = []
    for result in results:
        lines.extend(f"failed on {result.release}: {test}" for test in result.failures)
        if result.status == DIED:
            lines.append(f"failed on {result.release}: the machine died; see .cache/vm/runs/{result.release}")
    for result in results:
        for check, reasons in result.skips.items():
            for reason, count in reasons.items():
                lines.append(f"skipped on {result.release}: {check} ({count}): {reason}")
    lines.extend(f"skipped: kernel {kernel}: {reason}" for kernel, reason in missing.items())
    return lines


def has_kvm() -> bool:
    """Whether boot.sh uses hardware, by the same signs."""
    return os.access("/dev/kvm", os.W_OK) and bool(re.search(r"\b(vmx|svm)\b", Path("/proc/cpuinfo").read_text()))


def document(results: Sequence[Result], missing: dict[str, str]) -> dict[str, object]:
    """What --json writes."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"kernel": platform.release(), "processors": os.cpu_count(), "kvm": has_kvm()},
        "kernels": [asdict(result) for result in results],
        "skipped": missing,
        "exit_status": max((result.status for result in results), default=0),
    }


def former(path: Path) -> list[Result]:
    """The results in a file that --json wrote, none where there is no file. Raises ValueError where it is none."""
    try:
        found = json.loads(path.read_text())["kernels"]
    except FileNotFoundError:
        return []
    return [Result(**each | {"checks": {name: Outcome(**of) for name, of in each["checks"].items()}}) for each in found]


def add(result: Result, known: Result) -> None:
    """What came of a kernel, to what was known of it: its checks take the place of those of the same names."""

    def is_replaced(test: str) -> bool:
        classname, _, name = test.partition("::")
        return check_of(classname, name or classname) in result.checks

    known.failures = [test for test in known.failures if not is_replaced(test)] + result.failures
    known.skips = {check: why for check, why in known.skips.items() if check not in result.checks} | result.skips
    known.checks |= result.checks
    known.figures |= result.figures
    known.seconds = round(known.seconds + result.seconds, 1)
    known.status = result.status if result.status == DIED else int(bool(known.failures))


def choose(kernel: str, whole: bool) -> tuple[str, ...]:
    """The tests for a kernel that was asked for."""
    if kernel != MAIN:
        return SMOKE
    return WHOLE if whole else LANE


def main(arguments: Sequence[str]) -> int:
    """The exit status: 0, or the worst of any kernel."""
    parser = argparse.ArgumentParser(prog="dev vm", usage="%(prog)s [KERNEL ...] [--json FILE [--add]] [-- PYTEST...]")
    parser.add_argument("kernels", metavar="KERNEL", nargs="*", help="as 5.10, newest, linux-image-6.12-amd64; or all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there too")
    parser.add_argument("--add", action="store_true", help="to the results that FILE has, check by check")
    parser.add_argument("--host", type=Path, metavar="FILE", help="junit file of tests on the host, to name its skips")
    parser.add_argument(
        "--begin-within",
        type=float,
        default=math.inf,
        metavar="SECONDS",
        help="leave out, and name, what would be later",
    )
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options, tests = parser.parse_args(arguments[:end]), tuple(arguments[end + 1 :])
    if options.add and options.json is None:
        parser.error("--add needs --json FILE")
    for each in options.kernels:
        if "/" in each:
            parser.error(f"{each} is no kernel; tests go behind --")
    begun_s = time.monotonic()
    whole = "all" in options.kernels
    kernels = dict.fromkeys(ALL if whole else options.kernels or (MAIN,))

    # All of them first: unpacking takes a processor, and tests measure.
    found = {kernel: find(kernel) for kernel in kernels}
    missing = {kernel: reason for kernel, (release, reason) in found.items() if not release}
    results = {each.release: each for each in former(options.json)} if options.add else {}
    machines: dict[str, str] = {}
    for kernel, (release, _) in found.items():
        if release:
            machines.setdefault(release, kernel)
    for number, (release, kernel) in enumerate(machines.items(), 1):
        chosen = tests or choose(kernel, whole)
        if time.monotonic() - begun_s > options.begin_within:
            missing[kernel] = "no time was left for its machine"
            continue
        sys.stderr.write(f"==> machine {number} of {len(machines)}: Linux {release}, {last_time(release, chosen)}\n")
        result = boot(kernel, release, chosen, SECONDS.get(chosen, OWN_SECONDS))
        if result.status == NO_MACHINE:
            missing[kernel] = "virtme-ng, which boots it, cannot be had"
            continue
        if result.status != DIED:
            remember(result, chosen)
        if release in results:
            add(result, results[release])
        else:
            results[release] = result

    lines = table(list(results.values())) if results else ["no kernel was run"]
    lines += ["", *last_lines([*host(options.host), *results.values()], missing)]
    sys.stdout.write("\n" + "\n".join(lines).rstrip() + "\n")
    report = document(list(results.values()), missing)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return int(str(report["exit_status"]))


def _terminated(number: int, _frame: object) -> None:
    sys.exit(128 + number)  # by way of boot(), which ends its machine


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _terminated)
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
