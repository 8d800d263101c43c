"""The real Prometheus server in a network namespace, with the configuration of the tree, asked by its HTTP API."""

import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from demo.lab import LabError, Namespace, end

_SHIPPED = Path(__file__).resolve().parents[2] / "deploy" / "prometheus"
_START_S = 60.0

Sample = tuple[dict[str, str], float]


class Prometheus:
    """A context manager. Its files are copies of those in deploy/prometheus; all that differs is how often it looks."""

    def __init__(self, namespace: Namespace, *, interval_s: int = 1, port: int = 9090) -> None:
        self._namespace = namespace
        self._interval_s = interval_s
        self._address = f"127.0.0.1:{port}"
        self._process: subprocess.Popen[bytes] | None = None
        self.directory = Path()

    def __enter__(self) -> Self:
        self.directory = Path(tempfile.mkdtemp(prefix="qos2-prometheus-"))
        try:
            for file in _SHIPPED.glob("*.yml"):
                shutil.copy(file, self.directory)
            config = self.directory / "prometheus.yml"
            # Every 15 s as shipped, the test would have to wait for minutes of data.
            config.write_text(config.read_text().replace("_interval: 15s", f"_interval: {self._interval_s}s"))
            with open(self.directory / "log", "wb") as log:
                self._process = self._namespace.popen(
                    *("nice", "-n", "10", "prometheus", f"--config.file={config}"),
                    *(f"--storage.tsdb.path={self.directory / 'data'}", f"--web.listen-address={self._address}"),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                )
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def query(self, expression: str) -> list[Sample]:
        """What an expression yields now: labels and value of each series, those that are no number left out."""
        found = self.ask("query", query=expression)["result"]
        samples = [({str(k): str(v) for k, v in each["metric"].items()}, float(each["value"][1])) for each in found]
        return [(labels, value) for labels, value in samples if value == value]

    def value(self, expression: str) -> float:
        """Of an expression that yields one series. Raises LookupError where it is none or several."""
        found = self.query(expression)
        if len(found) != 1:
            raise LookupError(f"{expression} yields {found}")
        return found[0][1]

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of its API. Raises LabError, with its message, where it refuses."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            answer = json.loads(self.get(url))
        except urllib.error.HTTPError as error:
            with error:
                raise LabError(f"{url}: {error.read().decode(errors='replace')}") from error
        return answer["data"]

    def get(self, url: str) -> bytes:
        """What an HTTP server in the namespace answers. Raises OSError."""
        with self._namespace.entered(), urllib.request.urlopen(url, timeout=20) as answer:
            body: bytes = answer.read()
            return body

    @property
    def log(self) -> str:
        """What it has written so far."""
        return (self.directory / "log").read_text(errors="replace")

    def close(self) -> None:
        """End it and remove its files."""
        if self._process is not None:
            end(self._process, 20.0)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            assert self._process is not None
            try:
                self.get(f"http://{self._address}/-/ready")
                return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise LabError(f"prometheus does not start: {error}\n{self.log[-3000:]}") from error
            time.sleep(0.1)
