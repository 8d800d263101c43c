"""A command of `qos2` on a real terminal, over a stand-in for the daemon, and our end of that terminal.

Not a test itself.
"""

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminal(*arguments: str, flows: str = "", before: str = "") -> Iterator[tuple["subprocess.Popen[bytes]", int]]:
    """The command on a terminal of 80 by 24, over a stand-in with these answers; and our end of the terminal.

    `before` is executed first.
    """
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from unit.cli_stage import *\n"
        "from qos2.cli.main import main\n"
        f"{before}\n"
        f"sys.exit(main(sys.argv[1].split(), connect=StandIn({flows}).connect))"
    )
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", program, " ".join(arguments), *sys.path],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environment | {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8"},
    )
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def seen_until(ours: int, text: str) -> str:
    """What the terminal was sent until this text came; fails after 20 s."""
    sent = b""  # a character may come in two pieces
    end_s = time.monotonic() + 20
    while text.encode() not in sent:
        assert select.select([ours], [], [], max(end_s - time.monotonic(), 0))[0], f"no {text!r} in {sent[-4000:]!r}"
        sent += os.read(ours, 65536)
    return sent.decode(errors="replace")


def echoes(ours: int) -> bool:
    return bool(termios.tcgetattr(ours)[3] & termios.ECHO)
