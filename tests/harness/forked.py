"""A program that marks a socket and forks: what its child does with the handle that it inherits.

Forked is the test's end. The same file is the program that it starts: `python -m harness.forked BINDING FD FD`. The
parent marks the first socket as voice and then does nothing but live. The child tries its copy of the handle,
closes it, marks the second socket as background by a handle of its own, and lives until its input ends.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

from demo.lab import end
from demo.processes import environment
from harness.qos2_h import QOS_NON_ADAPTIVE_FLOW, QOSTrafficTypeBackground, QOSTrafficTypeVoice
from harness.windows import BINDINGS, Program

_TESTS = Path(__file__).resolve().parents[1]


class Forked:
    """The program with the daemon at `path`; `verdict`: the child's calls on its parent's handle, and their errors."""

    def __init__(self, path: str, binding: str, parents: socket.socket, childs: socket.socket) -> None:
        sockets = [str(sock.fileno()) for sock in (parents, childs)]
        python_path = f"{environment()['PYTHONPATH']}:{_TESTS}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "harness.forked", binding, *sockets],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[parents.fileno(), childs.fileno()],
            env=environment() | {"PYTHONPATH": python_path, "QOS2_SOCKET": path},
        )
        assert self._process.stdout is not None
        self.verdict: dict[str, int] = json.loads(self._process.stdout.readline() or "{}")

    def kill_parent(self) -> None:
        """End the parent as a crash would; the child lives on."""
        self._process.kill()
        self._process.wait()

    def end_child(self) -> None:
        """Let the child end, if it has not."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def close(self) -> None:
        """End both, where they still run."""
        self.end_child()
        end(self._process)


def main() -> None:
    """Play the program."""
    program = Program(BINDINGS[sys.argv[1]](), os.environ["QOS2_SOCKET"])
    parents, childs = int(sys.argv[2]), int(sys.argv[3])
    handle = program.create()
    flow = program.add(handle, parents, None, QOSTrafficTypeVoice)
    if os.fork():
        signal.pause()
    calls = program.calls
    add = (handle, childs, None, QOSTrafficTypeBackground, QOS_NON_ADAPTIVE_FLOW)
    verdict = {
        "add": program.failure(calls.QOSAddSocketToFlow, *add),
        "enumerate": program.failure(calls.QOSEnumerateFlows, handle),
        "remove": program.failure(calls.QOSRemoveSocketFromFlow, handle, None, flow),
        "close": program.failure(calls.QOSCloseHandle, handle),
        "close again": program.failure(calls.QOSCloseHandle, handle),
    }
    program.add(program.create(), childs, None, QOSTrafficTypeBackground)
    os.write(1, json.dumps(verdict).encode() + b"\n")
    sys.stdin.read()
    os._exit(0)  # as a crash would: nothing is closed in order


if __name__ == "__main__":
    main()
