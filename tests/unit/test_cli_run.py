"""`qos2 run`: rates, exit codes, signals, and the flow around a command."""

import os
import signal
import subprocess
import sys
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

from qos2.cli import run
from qos2.cli.main import main
from qos2.model import Shaping, TrafficType
from unit.cli_stage import StandIn


@pytest.mark.parametrize(
    ("text", "bits"),
    [("64k", 64_000), ("20M", 20_000_000), ("1.5G", 1_500_000_000), ("8000", 8_000), ("0.4t", 400_000_000_000),
     ("12.5K", 12_500)],
)  # fmt: skip
def test_rates_are_decimal_bits_per_second(text: str, bits: int) -> None:
    assert run.rate(text) == bits


@pytest.mark.parametrize("text", ["", "k", "-5M", "20Mbit", "1e9", "nan", "inf", "7k", "401G", "0", "٣M"])
def test_other_rates_are_refused(text: str) -> None:
    with pytest.raises(ArgumentTypeError):
        run.rate(text)


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["sh", "-c", "kill -KILL $$"], 128 + signal.SIGKILL),
        (["/etc/passwd"], 126),
        (["there-is-no-such-command"], 127),
    ],
)
def test_run_hands_on_the_exit_code_and_ends_the_flow(command: list[str], code: int) -> None:
    qos = StandIn()
    assert main(["run", "--type", "background", "--", *command], connect=qos.connect) == code
    assert qos.types == [TrafficType.BACKGROUND]
    assert qos.flow.rates == []
    assert qos.flow.closed


def test_run_sets_the_rate_before_the_command_starts() -> None:
    qos = StandIn()
    arguments = ["run", "--type", "audio-video", "--rate", "1.5M", "--shaping", "use-non-conformant-markings"]
    assert main([*arguments, "true", "--rate", "7"], connect=qos.connect) == 0
    assert qos.types == [TrafficType.AUDIO_VIDEO]
    assert qos.flow.rates == [(1_500_000, Shaping.USE_NON_CONFORMANT_MARKINGS)]


def test_the_daemon_sees_the_name_of_the_command_when_we_connect() -> None:
    def own_name() -> str:
        return Path("/proc/self/comm").read_text()

    names = [own_name()]

    def connect(path: str | None) -> StandIn:
        names.append(own_name())
        return StandIn()

    assert main(["run", "--type", "voice", "--", "/bin/true"], connect=connect) == 0
    assert names[1:] == ["true\n"]
    assert own_name() == names[0]


def test_run_says_why_a_command_cannot_be_run(capsys: pytest.CaptureFixture[str]) -> None:
    main(["run", "--type", "voice", "--", "there-is-no-such-command"], connect=StandIn().connect)
    assert capsys.readouterr().err == "qos2: there-is-no-such-command: No such file or directory\n"


def test_run_prints_the_counters_to_stderr_when_asked(capfd: pytest.CaptureFixture[str]) -> None:
    main(["run", "--type", "voice", "--stats", "--", "echo", "hello"], connect=StandIn().connect)
    assert capfd.readouterr() == (
        "hello\n",
        "qos2: flow 0x00100007: 123456 packets, 98765432 bytes, 1000 delayed, 12 remarked, 2 dropped\n",
    )


def test_a_lost_daemon_does_not_change_the_exit_code_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    qos = StandIn()
    qos.flow.lost = True
    assert main(["run", "--type", "voice", "--stats", "--", "sh", "-c", "exit 3"], connect=qos.connect) == 3
    assert capsys.readouterr().err == "qos2: the daemon went away; the flow had ended before the command did\n"


def test_the_command_has_our_signal_mask_and_not_the_ignored_signals_of_python(
    capfd: pytest.CaptureFixture[str],
) -> None:
    script = "grep -E '^Sig(Blk|Ign)' /proc/self/status"
    assert main(["run", "--type", "voice", "--", "sh", "-c", script], connect=StandIn().connect) == 0
    told = dict(line.split(":\t") for line in capfd.readouterr().out.splitlines())
    assert int(told["SigBlk"], 16) == 0
    of_python = 1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)
    assert int(told["SigIgn"], 16) & of_python == 0
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_run_passes_signals_on_to_the_command(number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'exit 42' {name}; echo ready; while :; do sleep 0.05; done"
    program = (
        "import sys; from rich.console import Console; from qos2.cli.run import run_command;"
        "sys.exit(run_command(['sh', '-c', sys.argv[1]], Console(stderr=True)))"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", program, script], stdout=subprocess.PIPE, text=True, env=environment
    ) as runner:
        assert runner.stdout is not None
        assert runner.stdout.readline() == "ready\n"
        runner.send_signal(number)
        assert runner.wait(timeout=20) == 42
