"""The policy of a folder: read, put into force or refused as a whole, and what is remembered of it."""

import logging
from pathlib import Path

import pytest

from qos2.errors import ConfigError, DatapathError
from qos2.policies import Policies
from unit.core_stage import PEER, Stage, udp
from unit.policy_stage import installed

CALLS = '[[rule]]\nname = "calls"\nmatch.remote_port = 5004\nact.dscp = 26\n'
WRONG = '[[rule]]\nname = "calls"\nmatch.remote_prot = 5004\nact.dscp = 64\n'


def policies(stage: Stage, folder: Path) -> Policies:
    return Policies(folder, stage.service, now=lambda: 1_700_000_000.0 + stage.now_s)


def test_a_folder_is_put_into_force_and_remembered(tmp_path: Path) -> None:
    stage = Stage()
    made = policies(stage, tmp_path)
    assert (made.generation, made.rules, made.loaded_at, made.successful) == (0, 0, 0.0, False)
    (tmp_path / "10-calls.toml").write_text(CALLS)
    loaded = made.load()
    assert (loaded.generation, loaded.rules) == (1, 1)
    assert (made.generation, made.rules, made.loaded_at, made.successful) == (1, 1, 1_700_001_000.0, True)
    assert dict(made.loads) == {"ok": 1, "failed": 0}
    assert stage.dscp(stage.add(udp(1), PEER)) == 26


def test_no_folder_is_no_policy(tmp_path: Path) -> None:
    stage = Stage()
    assert policies(stage, tmp_path / "none").load().rules == 0
    assert stage.fake.ruleset_generation == 1


def test_mistakes_leave_the_policy_so_far_in_force(tmp_path: Path) -> None:
    stage = Stage()
    made = policies(stage, tmp_path)
    (tmp_path / "10-calls.toml").write_text(CALLS)
    made.load()
    before = installed(stage.fake)
    (tmp_path / "10-calls.toml").write_text(WRONG)
    with pytest.raises(ConfigError) as refused:
        made.load()
    assert len(refused.value.message.splitlines()) == 2
    assert (installed(stage.fake), made.successful, dict(made.loads)) == (before, False, {"ok": 1, "failed": 1})
    assert str(tmp_path / "10-calls.toml:3") in refused.value.message
    (tmp_path / "10-calls.toml").write_text(CALLS)
    stage.fake.refuse("install")
    with pytest.raises(DatapathError):
        made.load()
    assert (installed(stage.fake), made.loads["failed"]) == (before, 2)
    assert made.reread() == f"1 rules of {tmp_path}, generation 2"
    assert made.successful


def test_what_a_client_has_changed_is_logged_with_what_is_probably_not_meant(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "10-calls.toml").write_text(CALLS + CALLS.replace("calls", "same"))
    with caplog.at_level(logging.INFO, "qos2d.policy"):
        loaded = policies(Stage(), tmp_path).load()
    assert len(loaded.warnings) >= 1
    assert [record.message for record in caplog.records] == [
        *loaded.warnings,
        f"the policy was reloaded: 2 rules of {tmp_path}, generation 1",
    ]
