"""The demonstration as its audience starts it: it runs, its verdict is good, and it leaves nothing behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from demo.processes import environment

pytestmark = pytest.mark.datapath


def leftovers() -> set[str]:
    """What a demonstration could leave on the host."""
    mounts = {line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if "qos2-daemon-" in line}
    return {path.name for path in Path("/run/netns").glob("qos2-demo-*")} | mounts


def started(*argv: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "demo", *argv], env=environment(), stdout=subprocess.PIPE, text=True, bufsize=1
    )


def test_the_demonstration_ends_with_a_good_verdict_in_text_and_json(tmp_path: Path) -> None:
    before = leftovers()
    with started("--seconds", "8", "--json", str(tmp_path / "figures.json")) as demo:
        said, _ = demo.communicate(timeout=60)
    assert demo.returncode == 0, said
    assert said.splitlines()[-1] == "The wire agrees with every contract."
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["good"]
    seen = {flow["name"]: list(flow["seen_dscps"]) for flow in figures["flows"]}
    assert seen == {"voice": ["56"], "video": ["40"], "backup": ["8"], "plain": ["0"]}
    video = next(flow for flow in figures["flows"] if flow["name"] == "video")
    assert video["seen_rate_before"] == pytest.approx(8_000_000, rel=0.03)
    assert video["seen_rate_after"] == pytest.approx(3_000_000, rel=0.03)
    assert leftovers() == before


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_demonstration_leaves_nothing_behind(number: signal.Signals, status: int) -> None:
    before = leftovers()
    with started() as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if line.startswith("  1 s"):
                break
        demo.send_signal(number)
        demo.communicate(timeout=30)
    assert demo.returncode == status
    assert leftovers() == before


def test_too_short_a_demonstration_is_refused() -> None:
    with started("--seconds", "3") as demo:
        demo.communicate(timeout=30)
    assert demo.returncode == 2
