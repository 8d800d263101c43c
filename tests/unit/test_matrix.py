"""The table of `./dev vm`: from what each machine leaves behind, with scripts in place of downloads and machines."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vm import matrix

KERNELS = """#!/bin/sh
case $1 in
5.10) echo "no package of it"; exit 3 ;;
newest) echo 7.2.12-amd64 ;;
broken) exit 1 ;;
*) echo "$1.0-amd64" ;;
esac
"""
PASSED = '<testcase classname="tests.vm.test_smoke" name="test_udp_is_marked[IPv4]" time="1.5"/>'
SKIPPED = """<testcase classname="tests.vm.test_smoke" name="test_udp_is_marked[VLAN]" time="0.25">
<skipped type="pytest.skip" message="no 8021q">where</skipped></testcase>"""
FAILED = """<testcase classname="tests.lab.test_netem" name="test_delay" time="2">
<properties><property name="srtt_ms" value="21.5"/></properties><failure message="late">trace</failure></testcase>"""
ERROR = '<testcase classname="" name="tests.vm.test_smoke" time="0"><error message="collection failure"/></testcase>'


def machine(status: int, *cases: str) -> str:
    """A boot.sh that says it ran its arguments, leaves these cases behind and ends with `status`."""
    junit = f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>"
    leave = f"mkdir -p $QOS_VM_RUN\ncat >$QOS_VM_RUN/junit.xml <<'X'\n{junit}\nX\n"
    return f"#!/bin/sh\necho $* $QOS_VM_SECONDS\n{leave}exit {status}\n"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with kernels.sh, where a test puts its boot.sh."""
    monkeypatch.setattr(matrix, "HERE", tmp_path)
    monkeypatch.setattr(matrix, "ROOT", tmp_path)
    monkeypatch.delenv("QOS_VM_SECONDS", raising=False)
    write(tmp_path / "kernels.sh", KERNELS)
    return tmp_path


def write(script: Path, text: str) -> None:
    script.write_text(text)
    script.chmod(0o755)


def test_a_check_is_a_smoke_test_or_another_file() -> None:
    assert matrix.check_of("tests.vm.test_smoke", "test_a_b[x]") == "a b"
    assert matrix.check_of("tests.datapath.test_hook", "test_a_b[x]") == "datapath/test_hook"


def test_the_table_has_a_line_per_check_and_a_column_per_kernel(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(stage / "boot.sh", machine(0, PASSED, SKIPPED))
    assert matrix.main(["6.12", "newest", "--json", str(stage / "report")]) == 0
    lines = [line.rstrip() for line in capfd.readouterr().out.splitlines()]
    assert lines == [
        "6.12.0-amd64 tests/vm/test_smoke.py 1800",
        "7.2.12-amd64 tests/vm/test_smoke.py 1800",
        "",
        "check          6.12.0           7.2.12",
        "udp is marked  1 ok, 1 skipped  1 ok, 1 skipped",
        "exit status    0                0",
        "seconds        0                0",
        "",
        "skipped on 6.12.0-amd64: udp is marked (1): no 8021q",
        "skipped on 7.2.12-amd64: udp is marked (1): no 8021q",
    ]
    report = json.loads((stage / "report").read_text())
    assert report["exit_status"] == 0
    assert [(each["kernel"], each["release"], each["checks"]) for each in report["kernels"]] == [
        (word, release, {"udp is marked": {"passed": 1, "failed": 0, "skipped": 1, "seconds": 1.75}})
        for word, release in (("6.12", "6.12.0-amd64"), ("newest", "7.2.12-amd64"))
    ]
    assert report["kernels"][0]["skips"] == {"udp is marked": {"no 8021q": 1}}


def test_failures_are_named_and_their_status_returned(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(stage / "boot.sh", machine(1, PASSED, FAILED, ERROR))
    assert matrix.main(["6.12", "--json", str(stage / "report")]) == 1
    said = capfd.readouterr().out
    assert "lab/test_netem       FAILED\n" in said
    assert "failed on 6.12.0-amd64: tests.lab.test_netem::test_delay\n" in said
    assert "failed on 6.12.0-amd64: tests.vm.test_smoke\n" in said
    (result,) = json.loads((stage / "report").read_text())["kernels"]
    assert result["figures"] == {"test_delay": {"srtt_ms": "21.5"}}


def test_a_later_run_is_added_check_by_check(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = str(stage / "report")
    write(stage / "boot.sh", machine(1, PASSED, SKIPPED, FAILED, ERROR))
    assert matrix.main(["6.12", "--json", report, "--add"]) == 1
    first = json.loads((stage / "report").read_text())["kernels"][0]
    assert first["failures"] == ["tests.lab.test_netem::test_delay", "tests.vm.test_smoke"]
    write(stage / "boot.sh", machine(0, FAILED.partition("<failure")[0] + "</testcase>"))
    assert matrix.main(["6.12", "newest", "--json", report, "--add", "--", "tests/lab"]) == 1
    both = json.loads((stage / "report").read_text())["kernels"]
    assert [each["release"] for each in both] == ["6.12.0-amd64", "7.2.12-amd64"]
    assert both[0]["failures"] == ["tests.vm.test_smoke"]
    assert both[0]["checks"] == first["checks"] | {"lab/test_netem": both[1]["checks"]["lab/test_netem"]}
    assert (both[0]["skips"], both[0]["figures"]) == (first["skips"], first["figures"])
    assert "failed on 6.12.0-amd64: tests.vm.test_smoke\n" in capfd.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        matrix.main(["6.12", "--add"])


def test_a_kernel_that_cannot_be_had_is_left_out_and_named_last(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(stage / "boot.sh", machine(0, PASSED))
    assert matrix.main(["5.10", "6.12"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == "skipped: kernel 5.10: no package of it"
    assert lines[2].split() == ["check", "6.12.0"]


def test_no_kernel_at_all_is_said(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert matrix.main(["5.10", "broken"]) == 0
    assert capfd.readouterr().out.splitlines() == [
        "",
        "no kernel was run",
        "",
        "skipped: kernel 5.10: no package of it",
        "skipped: kernel broken: kernels.sh ended with status 1",
    ]


def test_without_virtme_every_kernel_is_left_out_by_name(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(stage / "boot.sh", "#!/bin/sh\nexit 98\n")
    assert matrix.main(["6.12"]) == 0
    assert capfd.readouterr().out.endswith("skipped: kernel 6.12: virtme-ng, which boots it, cannot be had\n")


@pytest.mark.parametrize("status", [0, 99])
def test_a_machine_without_results_has_died_whatever_its_status(
    stage: Path, capfd: pytest.CaptureFixture[str], status: int
) -> None:
    run = stage / ".cache" / "vm" / "runs" / "6.12.0-amd64"
    run.mkdir(parents=True)
    (run / "junit.xml").write_text("<testsuites/>")  # of another run
    write(stage / "boot.sh", f"#!/bin/sh\nexit {status}\n")
    assert matrix.main(["6.12"]) == 99
    assert "exit status  died\n" in (said := capfd.readouterr().out)
    assert said.endswith("failed on 6.12.0-amd64: the machine died; see .cache/vm/runs/6.12.0-amd64\n")


def test_all_is_every_kernel_with_everything_on_the_main_one(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(stage / "boot.sh", machine(0, PASSED))
    assert matrix.main(["all"]) == 0
    assert capfd.readouterr().out.splitlines()[:3] == [
        f"6.1.0-amd64 {' '.join(matrix.WHOLE)} {matrix.SECONDS[matrix.WHOLE]}",
        "6.12.0-amd64 tests/vm/test_smoke.py 1800",
        "7.2.12-amd64 tests/vm/test_smoke.py 1800",
    ]


def test_without_a_kernel_it_is_the_main_one_and_own_tests_go_behind_two_dashes(
    stage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(stage / "boot.sh", machine(0, PASSED))
    assert matrix.main([]) == 0
    assert matrix.main(["6.12", "--", "-x", "tests/unit"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"6.1.0-amd64 {' '.join(matrix.LANE)} {matrix.SECONDS[matrix.LANE]}"
    assert f"6.12.0-amd64 -x tests/unit {matrix.OWN_SECONDS}" in lines
    with pytest.raises(SystemExit, match="2"):
        matrix.main(["6.12", "tests/unit"])


def test_the_named_tests_are_there() -> None:
    for path in {*matrix.SMOKE, *matrix.LANE, *matrix.WHOLE}:
        assert (Path(__file__).parents[2] / path).exists(), path


def test_a_terminated_table_ends_its_machine(tmp_path: Path) -> None:
    (tmp_path / "tests" / "vm").mkdir(parents=True)
    copied = tmp_path / "tests" / "vm" / "matrix.py"
    copied.write_bytes(Path(matrix.__file__).read_bytes())
    write(copied.with_name("kernels.sh"), KERNELS)
    write(copied.with_name("boot.sh"), "#!/bin/sh\necho $$ >pid.new\nmv pid.new pid\nexec sleep 60\n")
    table = subprocess.Popen([sys.executable, str(copied), "6.12"], cwd=tmp_path)
    pid = tmp_path / "pid"
    deadline = time.monotonic() + 20
    while not pid.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    table.send_signal(signal.SIGTERM)
    assert table.wait(20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


def test_a_machine_that_would_be_too_late_is_left_out_and_named(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(stage / "boot.sh", machine(0, PASSED))
    assert matrix.main(["6.12", "--begin-within", "-1"]) == 0
    said = capfd.readouterr().out
    assert "no kernel was run" in said
    assert said.endswith("skipped: kernel 6.12: no time was left for its machine\n")


def test_the_last_lines_name_what_the_host_left_out_too(stage: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(stage / "boot.sh", machine(0, PASSED))
    junit = stage / "host.xml"
    junit.write_text(f"<testsuites><testsuite>{FAILED}{SKIPPED}{SKIPPED}</testsuite></testsuites>")
    assert matrix.main(["6.12", "--host", str(junit)]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == f"skipped on this host's {platform.release()}: udp is marked (2): no 8021q"
    assert not [line for line in lines if line.startswith("failed")], "pytest has told them"
