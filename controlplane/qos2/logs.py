"""Where the daemon's log goes, and how: plain lines, lines of JSON, or fields of the systemd journal.

A line may carry fields beside its message (chronicle.py): `device` is QOS2_DEVICE in the journal, "device" in JSON,
and in plain lines what the message says of it. The journal is written to in its own protocol, which is documented at
systemd.io/JOURNAL_NATIVE_PROTOCOL; not through libsystemd (python3-systemd), which waits for a journald that does not
read, and the event loop with it.
"""

import json
import logging
import os
import socket
import struct
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Literal, TextIO

from qos2.config import LogFormat

JOURNAL = "/run/systemd/journal/socket"
IDENTIFIER = "qos2d"
#: A datagram that is longer than the socket's buffer is refused: longer values are cut.
MOST_BYTES = 32_768

#: Priorities of syslog(3).
_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}
_LENGTH = struct.Struct("<Q")
#: What these tell at INFO the chronicle tells too, with fields.
_TOLD_ELSEWHERE = ("qos2.datapath.devices",)


def configure(
    level: str, form: LogFormat, stream: TextIO = sys.stderr, journal: str = JOURNAL
) -> Literal["text", "json", "journal"]:
    """Send the log of this process to `stream`, or to the journal, from now on. The form that `auto` came to."""
    if form == "auto":
        form = "journal" if is_journal(stream) else "text"
    handler: logging.Handler
    if form == "journal":
        handler = JournalHandler(journal)
    else:
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    number = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=number, handlers=[handler], force=True)
    for name in _TOLD_ELSEWHERE:
        logging.getLogger(name).setLevel(logging.WARNING if number == logging.INFO else logging.NOTSET)
    return form


def is_journal(stream: TextIO, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether what is written to `stream` goes to the journal: $JOURNAL_STREAM has its device and inode."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False  # closed, or no file
    return environment.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class TextFormatter(logging.Formatter):
    """`INFO qos2d: ready: /run/qos2/qos2.sock`."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")


class JsonFormatter(logging.Formatter):
    """One object per line: time, level, logger, message, the fields, and exception where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        trace = _trace(self, record)
        if trace:
            told["exception"] = trace
        return json.dumps(told)


class JournalHandler(logging.Handler):
    """Sends each record as one entry, and never waits: what the journal does not take is counted, and told later."""

    def __init__(self, path: str = JOURNAL) -> None:
        super().__init__()
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        self._lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Sends it. Raises nothing: the log may not end what it is about."""
        try:
            data = b"".join(_packed(name, value) for name, value in self._entry(record))
        except Exception:  # arguments that do not fit their message, as in any handler of logging
            self.handleError(record)
            return
        try:
            if self._lost:
                missing = f"{self._lost} lines before this one are lost: the journal did not take them"
                self._socket.sendto(_own_words(missing), self._path)
                self._lost = 0
            self._socket.sendto(data, self._path)
        except OSError:
            self._lost += 1

    def close(self) -> None:
        self._socket.close()
        super().close()

    def _entry(self, record: logging.LogRecord) -> Iterator[tuple[str, str]]:
        trace = _trace(logging.Formatter(), record)
        message = record.getMessage()
        yield "MESSAGE", f"{message}\n{trace}" if trace else message
        yield "PRIORITY", str(_PRIORITIES.get(record.levelno, 5))
        yield "SYSLOG_IDENTIFIER", IDENTIFIER
        yield "CODE_FILE", record.pathname
        yield "CODE_LINE", str(record.lineno)
        yield "CODE_FUNC", record.funcName or ""
        yield "QOS2_LOGGER", record.name
        for name, value in _fields(record).items():
            yield f"QOS2_{name.upper()}", str(value)

    def __repr__(self) -> str:
        return f"<JournalHandler {self._path}>"


def _fields(record: logging.LogRecord) -> Mapping[str, str | int]:
    fields: Mapping[str, str | int] = getattr(record, "fields", {})
    return fields


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _packed(name: str, value: str) -> bytes:
    data = value.encode(errors="replace")
    if len(data) > MOST_BYTES:
        data = data[:MOST_BYTES] + b" ..."
    if b"\n" in data:
        return name.encode() + b"\n" + _LENGTH.pack(len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def _own_words(message: str) -> bytes:
    entry = {"MESSAGE": message, "PRIORITY": "4", "SYSLOG_IDENTIFIER": IDENTIFIER}
    return b"".join(_packed(name, value) for name, value in entry.items())
