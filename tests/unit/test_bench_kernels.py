"""The page's tables of a run on other kernels, and the run that is in the tree."""

import json
from pathlib import Path

import pytest

from bench import kernels
from bench.session import Session

OK = {"passed": 2, "failed": 0, "skipped": 0, "seconds": 3.0}
RUN = {
    "date": "2026-01-02T03:04:05+00:00",
    "host": {"kernel": "6.18.1", "processors": 2, "kvm": False},
    "kernels": [
        {
            "release": "5.10.0-1-amd64",
            "seconds": 90.0,
            "checks": {"udp is marked": OK, "vm/test_fq": OK | {"passed": 0, "skipped": 1}},
            "figures": {},
            "failures": [],
            "skips": {"vm/test_fq": {"no fq": 1}},
        },
        {
            "release": "6.1.0-2-amd64",
            "seconds": 600.0,
            "checks": {"udp is marked": OK | {"failed": 1}},
            "figures": {
                "test_a_flow_alone[udp-10]": {"worst_rate_ratio": "0.9998", "gap_p99_ms": "1.31"},
                "test_many_flows": {"worst_rate_ratio": "1.0003", "gap_p99_ms": "2.5"},
            },
            "failures": ["tests.vm.test_smoke::test_udp"],
            "skips": {},
        },
    ],
    "skipped": {"7.9": "no package"},
    "exit_status": 1,
}


def test_the_page_shows_each_check_on_each_kernel_and_the_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = tmp_path / "run.json"
    written.write_text(json.dumps(RUN))
    monkeypatch.setattr(kernels, "RUN", written)
    result = kernels.measure(Session(quick=False, tell=lambda _: None))
    checks, figures = result.tables
    assert checks.columns == ("check", "5.10.0-1-amd64", "6.1.0-2-amd64")
    assert checks.rows == (
        ("udp is marked", "2 ok", "2 ok, 1 **failed**"),
        ("vm/test_fq", "1 left out", "-"),
        ("minutes", "1.5", "10.0"),
    )
    assert checks.notes == (
        "- 6.1.0-2-amd64: **failed**: tests.vm.test_smoke::test_udp",
        "- 5.10.0-1-amd64: vm/test_fq: 1 left out: no fq",
    )
    assert figures.columns == ("test", "worst rate ratio", "gap p99 ms")
    assert figures.rows == (("a flow alone: udp-10", "0.9998", "1.31"), ("many flows", "1.0003", "2.5"))
    assert "Not to be had: 7.9 (no package)." in result.method
    assert "their processors emulated" in result.method
