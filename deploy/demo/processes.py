"""The processes that run in a lab, as seen by whoever starts them: the daemon, a sender, a sink.

Each is the real program in a process of its own; here is only how it is started, spoken to and ended.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import qos2
from demo.lab import LabError, Namespace, command, end

_ROOT = Path(__file__).resolve().parents[2]

#: Where daemons of this checkout, and programs in its tests, keep what they have compiled.
CACHE = _ROOT / ".cache" / "datapath"
#: How long the daemon may take to compile, load and answer (two seconds, but a minute on an emulated processor, and
#: three where that one's host is overloaded); how long a sender to answer. Seconds.
START_S = 360.0
ANSWER_S = 20.0


def environment() -> dict[str, str]:
    """That of this process, with this checkout's packages importable."""
    return os.environ | {"PYTHONPATH": f"{_ROOT / 'deploy'}:{_ROOT / 'controlplane'}"}


class Daemon:
    """The real qos2d in one namespace, with a directory, a socket and a bpffs of its own.

    Its bpffs is mounted for it alone: neither a daemon of the host nor another lab can meet its pins, and they
    vanish with the mount even if the daemon was killed.
    """

    def __init__(self, namespace: Namespace, **settings: str | int | bool | list[str]) -> None:
        """`settings` are keys of the daemon's configuration file, beside those set here."""
        self._namespace = namespace
        self._settings = settings
        self._stack = ExitStack()
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = Path()

    @property
    def socket(self) -> str:
        """Path of the socket where it answers."""
        return str(self.directory / "qos2.sock")

    @property
    def pins(self) -> Path:
        """Where it pins its programs and maps."""
        return self.directory / "bpf" / "qos2"

    @property
    def policy(self) -> Path:
        """Folder of its policy, empty at first."""
        return self.directory / "policy.d"

    @property
    def log(self) -> str:
        """What it has written so far, over all starts."""
        return (self.directory / "log").read_text(errors="replace")

    def __enter__(self) -> Self:
        try:
            self.directory = Path(tempfile.mkdtemp(prefix="qos2-daemon-"))
            self._stack.callback(shutil.rmtree, self.directory)
            self.directory.chmod(0o755)
            mount = self.directory / "bpf"
            mount.mkdir()
            command("mount", "-t", "bpf", "bpf", str(mount))
            self._stack.callback(command, "umount", str(mount))
            self.policy.mkdir()
            settings = {
                **{"pin_path": str(self.pins), "cache": str(CACHE), "metrics": "", "policy": str(self.policy)},
                **self._settings,
            }
            text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
            (self.directory / "qos2d.toml").write_text(text)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def start(self) -> None:
        """Start it and wait until it answers. Raises LabError, with the end of its log, where it does not."""
        with open(self.directory / "log", "ab") as log:
            self.process = self._namespace.popen(
                *(sys.executable, "-m", "qos2.daemon", "--config", str(self.directory / "qos2d.toml")),
                *("--socket", self.socket, "--device", self._namespace.device),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environment(),
            )
        deadline = time.monotonic() + START_S
        while True:
            try:
                qos2.Handle(self.socket).close()
                return
            except qos2.ServiceUnavailable as error:
                status = self.process.poll()
                if status is not None or time.monotonic() > deadline:
                    state = "still starts" if status is None else f"ended with status {status}"
                    raise LabError(f"the daemon {state}: {error}\n{self.log[-4000:]}") from error
            time.sleep(0.02)

    def stop(self) -> int:
        """End it with SIGTERM; its exit status."""
        assert self.process is not None
        return end(self.process, 10.0)

    def kill(self) -> None:
        """End it with SIGKILL: nothing of it can tidy up."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """End it if it runs, and remove its directory and its pins (idempotent).

        Raises LabError, with the end of its log, where it does not stop cleanly.
        """
        with self._stack:
            if self.process is None or self.process.poll() is not None:
                return
            if (status := self.stop()) != 0:
                raise LabError(f"the daemon ended with status {status}\n{self.log[-4000:]}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class Sink:
    """A process in the peer that receives on the given ports of both families; a context manager."""

    def __init__(self, namespace: Namespace, tcp: list[int], udp: list[int]) -> None:
        self._process = namespace.popen(
            *(sys.executable, "-m", "demo.sink", "--tcp", *map(str, tcp), "--udp", *map(str, udp)),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        if _line(self._process) != "ready":
            end(self._process)
            raise LabError("the sink did not start")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self._process)


class Sender:
    """A sender process (see senders.py) that has begun to send; a context manager.

    Raises LabError where it does not start or does not answer; its own message is on stderr.
    """

    def __init__(self, namespace: Namespace, role: str, to: str, port: int, service: str = "", rate: int = 0) -> None:
        argv = [sys.executable, "-m", "demo.senders", role, "--to", to, "--port", str(port), "--rate", str(rate)]
        self._process = namespace.popen(
            *argv,
            *(["--service", service] if service else []),
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
        )
        try:
            started = self._answer("started")
        except BaseException:
            end(self._process)
            raise
        self.sport: int = started["sport"]
        self.flow: qos2.FlowId | None = started["flow"]

    def set_rate(self, rate: int) -> None:
        """Have it ask for another contract (bits/s); returns when that is in force."""
        self._order(f"rate {rate}")
        self._answer("rate")

    def stop(self) -> int:
        """Have it end; how often it wrote."""
        self._order("stop")
        sent: int = self._answer("stopped")["sent"]
        return sent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end(self._process)

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")
        self._process.stdin.flush()

    def _answer(self, event: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(_line(self._process) or "{}")
        if answer.get("event") != event:
            raise LabError(f"a sender answered {answer} instead of {event!r}")
        return answer


def _line(process: subprocess.Popen[bytes]) -> str:
    """The next line that a process writes, or an empty one where it ends or says nothing for ANSWER_S."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], ANSWER_S)[0]:
        return ""
    return process.stdout.readline().decode().strip()
