"""`qos2 check-config`: what the daemon would say of its configuration and its policy, without one."""

import json
from argparse import ArgumentParser
from pathlib import Path

import pytest

from qos2.cli import checkconfig
from qos2.cli.main import main

GOOD = '[[rule]]\nname = "calls"\nmatch.unit = ["asterisk.service", "kamailio.service"]\nact.traffic_type = "voice"\n'
BAD = '[[rule]]\nname = "calls"\nmatch.remote = "10.0.0.1/8"\nact.dcsp = 46\n'
WARNED = GOOD + '[[rule]]\nname = "again"\nmatch.unit = "asterisk.service"\nact.dscp = 1\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """In place of /etc/qos2."""
    monkeypatch.setattr(checkconfig, "CONFIG", tmp_path / "qos2d.toml")
    monkeypatch.setattr(checkconfig, "FOLDER", tmp_path / "policy.d")
    return tmp_path


def checked(*words: str) -> int:
    command = ArgumentParser()
    checkconfig.add_arguments(command)
    return checkconfig.execute(command.parse_args(words))


def written(place: Path, policy: str, config: str | None = None) -> None:
    (place / "policy.d").mkdir()
    (place / "policy.d" / "10.toml").write_text(policy)
    if config is not None:
        (place / "qos2d.toml").write_text(config)


def test_good_files_pass(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(place, GOOD, "max_flows = 100\n")
    assert checked() == 0
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        f"good: {place}/qos2d.toml",
        f"good, 1 rule in 2 of 4096 kernel entries: {place}/policy.d",
    ]
    assert said.err == ""


def test_it_is_a_command_that_needs_no_daemon(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(place, BAD)
    assert main(["--socket", "/nonexistent", "check-config", "--policy", str(place / "policy.d")]) == 1
    assert capsys.readouterr().out.splitlines()[1] == f"2 errors: {place}/policy.d"


def test_what_is_not_there_by_default_is_not_wrong(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert checked() == 0
    assert capsys.readouterr().out.splitlines() == [
        f"not there, all defaults: {place}/qos2d.toml",
        f"not there, no rules: {place}/policy.d",
    ]


def test_what_is_named_must_be_there(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "file").touch()
    assert checked("--config", str(place / "none.toml"), "--policy", str(place / "none")) == 1
    assert checked("--config", str(place / "file"), "--policy", str(place / "file")) == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"{place}/none.toml: No such file or directory (name another file with --config)",
        f"{place}/none: there is no such folder",
        f"{place}/file: is no folder",
    ]
    assert said.out.splitlines() == [
        f"1 error: {place}/none.toml",
        f"1 error: {place}/none",
        f"good: {place}/file",
        f"1 error: {place}/file",
    ]


def test_all_errors_of_both_are_told(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(place, BAD, "max_flow = 100\n")
    assert checked() == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        f"{place}/qos2d.toml: unknown key `max_flow` (did you mean `max_flows`?)",
        f'{place}/policy.d/10.toml:3: match.remote: "10.0.0.1/8" has host bits set'
        ' ("10.0.0.0/8" or the one address "10.0.0.1")',
        f'{place}/policy.d/10.toml:4: act.dcsp: unknown key (did you mean "dscp"?)',
    ]
    assert said.out.splitlines() == [f"1 error: {place}/qos2d.toml", f"2 errors: {place}/policy.d"]


def test_warnings_are_told_and_pass(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(place, WARNED)
    assert checked() == 0
    assert capsys.readouterr().out.splitlines()[0] == (
        f"warning: {place}/policy.d/10.toml:5: rule again: can never act: all that it matches meets calls (10.toml:1)"
        " before"
    )


def test_as_json_it_says_the_same(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(place, WARNED)
    assert checked("--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "config": {"path": f"{place}/qos2d.toml", "ok": True, "present": False, "errors": []},
        "policy": {
            "path": f"{place}/policy.d",
            "ok": True,
            "present": True,
            "errors": [],
            "rules": 2,
            "entries": 3,
            "warnings": [
                f"{place}/policy.d/10.toml:5: rule again: can never act: all that it matches meets calls (10.toml:1)"
                " before"
            ],
        },
    }


def test_as_json_each_error_has_its_parts(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(place, BAD, "log_level = 3\n")
    assert checked("--json") == 1
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert said.err == ""
    assert (found["ok"], found["config"]["ok"], found["policy"]["ok"]) == (False, False, False)
    (wrong,) = found["config"]["errors"]
    assert wrong == {
        "text": f"{place}/qos2d.toml: log_level: expected `str`, got `int`",
        "what": f"{place}/qos2d.toml: log_level: expected `str`, got `int`",
        "hint": "",
    }
    assert found["policy"]["errors"][1] == {
        "file": f"{place}/policy.d/10.toml",
        "line": 4,
        "key": "act.dcsp",
        "what": "unknown key",
        "hint": 'did you mean "dscp"?',
        "text": f'{place}/policy.d/10.toml:4: act.dcsp: unknown key (did you mean "dscp"?)',
    }


def test_what_a_terminal_could_take_for_commands_is_not_printed(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written(place, '[[rule]]\nname = "a"\nact.dscp = 1\n"\\u001b[2J" = 1\n')
    assert checked() == 1
    assert "\x1b" not in capsys.readouterr().err
