"""The log: which lines there are, and what they look like as text, as JSON and as entries of the journal."""

import io
import json
import logging
import os
import select
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from qos2 import logs
from qos2.chronicle import Chronicle, Event, tell
from qos2.model import DatapathStatus, DeviceStatus, Shaper

ETH0 = DeviceStatus("eth0", 2, 4001, "tcx", Shaper.FQ, "fq in place of the default fq_codel")
WG0 = DeviceStatus("wg0", 7, 4001, "tcx", Shaper.POLICE, "qdisc tbf is the administrator's and is left alone")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """The process' own log is pytest's again afterwards."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    quiet = {name: logging.getLogger(name).level for name in logs._TOLD_ELSEWHERE}
    yield
    for each in root.handlers[:]:
        if each not in handlers:
            root.removeHandler(each)
            each.close()
    for each in handlers:
        if each not in root.handlers:
            root.addHandler(each)
    root.setLevel(level)
    for name, before in quiet.items():
        logging.getLogger(name).setLevel(before)


@pytest.fixture
def journal(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.bind(str(tmp_path / "journal"))
        made.settimeout(5)
        yield made


def entry(journal: socket.socket) -> dict[str, str]:
    """The fields of the next entry, by the documented protocol: NAME=value, or NAME, length as u64, value."""
    rest, fields = journal.recv(1 << 20), {}
    while rest:
        line, _, after = rest.partition(b"\n")
        name, equals, value = line.partition(b"=")
        if not equals:
            (length,) = struct.unpack_from("<Q", after)
            value, after = after[8 : 8 + length], after[8 + length :]
            assert after[:1] == b"\n"
            after = after[1:]
        assert name.decode() not in fields
        fields[name.decode()], rest = value.decode(), after
    return fields


def test_plain_lines_are_for_people() -> None:
    out = io.StringIO()
    assert logs.configure("info", "text", out) == "text"
    tell(Event.READY, "ready: /run/qos2/qos2.sock, after 0.30 s", {"socket": "/run/qos2/qos2.sock"})
    logging.getLogger("qos2d.server").warning("%s does not read", "curl(7)")
    logging.getLogger("qos2d").debug("unheard")
    assert out.getvalue() == (
        "INFO qos2d: ready: /run/qos2/qos2.sock, after 0.30 s\nWARNING qos2d.server: curl(7) does not read\n"
    )


def test_lines_of_json_hold_the_fields() -> None:
    out = io.StringIO()
    assert logs.configure("info", "json", out) == "json"
    tell(Event.TAKE_OVER, "took over 3 flows", {"flows": 3})
    try:
        raise ZeroDivisionError("of\nnothing")
    except ZeroDivisionError:
        logging.getLogger("qos2d").exception("follow failed")
    first, second = (json.loads(line) for line in out.getvalue().splitlines())
    assert first.pop("time")[10:11] == "T"
    assert first == {
        "level": "info",
        "logger": "qos2d",
        "message": "took over 3 flows",
        "event": "take_over",
        "flows": 3,
    }
    assert second.pop("exception").splitlines()[-2:] == ["ZeroDivisionError: of", "nothing"]
    assert second.pop("time")
    assert second == {"level": "error", "logger": "qos2d", "message": "follow failed"}


def test_the_journal_gets_fields(journal: socket.socket) -> None:
    assert logs.configure("info", "journal", journal=journal.getsockname()) == "journal"
    tell(Event.DEVICE_ATTACHED, "device eth0: tcx", {"device": "eth0", "ifindex": 2}, level=logging.WARNING)
    found = entry(journal)
    assert int(found.pop("CODE_LINE")) > 0
    assert found == {
        "MESSAGE": "device eth0: tcx",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "qos2d",
        "CODE_FILE": __file__,
        "CODE_FUNC": "test_the_journal_gets_fields",
        "QOS2_LOGGER": "qos2d",
        "QOS2_EVENT": "device_attached",
        "QOS2_DEVICE": "eth0",
        "QOS2_IFINDEX": "2",
    }


@pytest.mark.parametrize(("level", "priority"), [(10, "7"), (20, "6"), (30, "4"), (40, "3"), (50, "2"), (35, "5")])
def test_levels_are_priorities_of_syslog(journal: socket.socket, level: int, priority: str) -> None:
    logs.configure("debug", "journal", journal=journal.getsockname())
    logging.getLogger("qos2.test").log(level, "x")
    assert entry(journal)["PRIORITY"] == priority


def test_no_value_can_make_a_field_of_its_own_or_be_too_long(journal: socket.socket) -> None:
    logs.configure("info", "journal", journal=journal.getsockname())
    tell(Event.PROBLEM_BEGAN, "one\nPRIORITY=0\nQOS2_EVENT=x", {"problem": "p" * 100_000, "word": "\udcff"})
    found = entry(journal)
    assert found["MESSAGE"] == "one\nPRIORITY=0\nQOS2_EVENT=x"
    assert (found["PRIORITY"], found["QOS2_EVENT"]) == ("6", "problem_began")
    assert found["QOS2_PROBLEM"] == "p" * logs.MOST_BYTES + " ..."
    assert found["QOS2_WORD"] == "?"


def test_a_traceback_follows_its_message(journal: socket.socket) -> None:
    logs.configure("info", "journal", journal=journal.getsockname())
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        logging.getLogger("qos2d").exception("follow failed")
    lines = entry(journal)["MESSAGE"].splitlines()
    assert (lines[0], lines[1], lines[-1]) == (
        "follow failed",
        "Traceback (most recent call last):",
        "ZeroDivisionError",
    )


def test_a_journal_that_does_not_read_is_not_waited_for_and_hears_later_how_much_it_missed(
    journal: socket.socket,
) -> None:
    logs.configure("info", "journal", journal=journal.getsockname())
    log, sent = logging.getLogger("qos2d"), 3000  # more than net.unix.max_dgram_qlen
    for number in range(sent):
        log.info("%d", number)
    taken = 0
    while select.select([journal], [], [], 0)[0]:
        journal.recv(1 << 16)
        taken += 1
    assert 0 < taken < sent
    log.info("again")
    assert entry(journal) == {
        "MESSAGE": f"{sent - taken} lines before this one are lost: the journal did not take them",
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "qos2d",
    }
    assert entry(journal)["MESSAGE"] == "again"


def test_without_a_journal_the_daemon_goes_on(tmp_path: Path) -> None:
    logs.configure("info", "journal", journal=str(tmp_path / "none"))
    logging.getLogger("qos2d").info("unheard")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as late:
        late.bind(str(tmp_path / "none"))
        late.settimeout(5)
        logging.getLogger("qos2d").info("heard")
        assert [entry(late)["MESSAGE"] for _ in range(2)] == [
            "1 lines before this one are lost: the journal did not take them",
            "heard",
        ]


def test_auto_is_the_journal_only_where_standard_error_goes_there(
    journal: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(tmp_path / "log", "w+") as out:
        assert logs.configure("info", "auto", out) == "text"
        monkeypatch.setenv("JOURNAL_STREAM", "1:2")  # inherited, and standard error sent elsewhere since
        assert logs.configure("info", "auto", out) == "text"
        found = os.fstat(out.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
        assert logs.configure("info", "auto", out, journal.getsockname()) == "journal"
        assert logs.configure("info", "text", out) == "text"
    assert not logs.is_journal(io.StringIO())


def test_what_the_chronicle_tells_is_not_told_twice() -> None:
    for level, told in (("info", False), ("debug", True), ("error", False)):
        logs.configure(level, "text", io.StringIO())
        assert logging.getLogger("qos2.datapath.devices").isEnabledFor(logging.INFO) is told
        assert logging.getLogger("qos2.datapath.devices").isEnabledFor(logging.ERROR)


# Which lines there are


def told_of(caplog: pytest.LogCaptureFixture, *looks: DatapathStatus) -> list[tuple[str, str, dict[str, object]]]:
    """Level, message and fields of every line."""
    caplog.set_level(logging.INFO)
    caplog.clear()
    chronicle = Chronicle()
    for status in looks:
        chronicle.look(status)
    return [(each.levelname, each.getMessage(), vars(each)["fields"]) for each in caplog.records]


def status(*devices: DeviceStatus, problems: tuple[str, ...] = ()) -> DatapathStatus:
    return DatapathStatus("6.1.0", devices=devices, problems=problems)


def test_a_device_is_told_when_it_comes_changes_its_treatment_and_goes(caplog: pytest.LogCaptureFixture) -> None:
    busy = DeviceStatus("eth0", 2, 4001, "tcx", Shaper.FQ, ETH0.why, shaped_flows=9, load_bps=10_000)
    reshaped = DeviceStatus("eth0", 2, 4001, "tcx", Shaper.POLICE, "qdisc tbf is the administrator's")
    named = {"device": "eth0", "ifindex": 2, "netns": 4001}
    assert told_of(caplog, status(ETH0), status(busy), status(ETH0), status(reshaped), status()) == [
        (
            "INFO",
            "device eth0: tcx, fq (fq in place of the default fq_codel)",
            {"event": "device_attached", **named, "hook": "tcx", "shaper": "fq"},
        ),
        (
            "INFO",
            "device eth0: tcx, police (qdisc tbf is the administrator's)",
            {"event": "device_attached", **named, "hook": "tcx", "shaper": "police"},
        ),
        ("INFO", "device eth0: let go", {"event": "device_let_go", **named}),
    ]


def test_devices_of_one_name_in_two_namespaces_are_two(caplog: pytest.LogCaptureFixture) -> None:
    other = DeviceStatus("eth0", 2, 4002, "tcx", Shaper.FQ, ETH0.why)
    told = told_of(caplog, status(ETH0), status(ETH0, other), status(ETH0, other), status(ETH0))
    assert [(fields["event"], fields["netns"]) for _, _, fields in told] == [
        ("device_attached", 4001),
        ("device_attached", 4002),
        ("device_let_go", 4002),
    ]


def test_a_problem_is_told_when_it_begins_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    first, second = "device wg0 can only police", "device eth1 is not attached"
    looks = [
        status(WG0, problems=(first,)),
        status(WG0, problems=(first, second)),
        status(WG0, problems=(first, second)),
        status(WG0, problems=(second,)),
        status(WG0),
    ]
    assert told_of(caplog, *looks)[1:] == [
        ("WARNING", f"problem: {first}", {"event": "problem_began", "problem": first}),
        ("WARNING", f"problem: {second}", {"event": "problem_began", "problem": second}),
        ("INFO", f"no longer: {first}", {"event": "problem_ended", "problem": first}),
        ("INFO", f"no longer: {second}", {"event": "problem_ended", "problem": second}),
    ]
