"""What tests of fq share: one lab with one daemon, and the figures that they measure, told in the last lines of a run.

A figure is a property of its test: in the terminal's summary, and in the junit file.
"""

from collections.abc import Callable, Iterator

import pytest

from demo.lab import Lab
from demo.processes import Daemon
from harness.wire import UNPROBED, Wire
from qos2.datapath.shapers import available_kinds


@pytest.fixture(scope="session")
def fq() -> None:
    """For tests that are about nothing where the kernel has no fq."""
    if "fq" not in available_kinds():
        pytest.skip("this kernel has no fq: ./dev vm")


@pytest.fixture(scope="package")
def lab(fq: None) -> Iterator[Lab]:
    """Three namespaces: app - router - peer."""
    with Lab("qos2-test") as made:
        yield made


@pytest.fixture(scope="package")
def daemon(lab: Lab) -> Iterator[Daemon]:
    """The real daemon on the application's device; one for all files, as an emulated processor needs half a minute."""
    with Daemon(lab.app, **UNPROBED) as started:
        yield started
        assert "Traceback" not in started.log, started.log


@pytest.fixture
def wire(lab: Lab, daemon: Daemon) -> Iterator[Wire]:
    """Sockets, captures and senders of one test."""
    with Wire(lab, daemon) as made:
        yield made


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, object], None]:
    """Keeps what the test has measured, by name.

    As record_property does, which refuses to where junit files are of the default family: its schema has no properties
    of a test case, though they are written and read all the same.
    """
    return lambda name, value: request.node.user_properties.append((name, value))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each test has measured, passed or not."""
    measured = [
        report
        for outcome in ("passed", "failed", "skipped")
        for report in terminalreporter.getreports(outcome)
        if getattr(report, "when", "") == "call" and report.user_properties
    ]
    if measured:
        terminalreporter.section("figures")
    for report in measured:
        figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
        terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {figures}")
