"""The C tests of libqwave (clients/c/tests) against the real server: as they are, and under sanitizers.

The programs judge themselves and end with 0. Where they want the daemon to do something they write a line,
which Troupe obeys. Daemons that misbehave are scripts at the end of this file.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Any

import pytest

from qos2.core.service import Limits
from qos2.model import Bandwidth, FlowFundamentals
from unit.native import REPOSITORY, tool
from unit.server_stage import PEER, Stage, open_descriptors, staged

LIBRARY = REPOSITORY / "clients" / "c"
PROGRAMS = ("calls", "overlapped", "threads", "fork", "signals", "lost")
#: Build folder of each lane, and what a sanitizer is told: a finding ends the program with 99.
LANES: dict[str, tuple[str, dict[str, str]]] = {
    "plain": ("build", {}),
    "asan": ("build/asan", {"ASAN_OPTIONS": "detect_leaks=1:exitcode=99", "UBSAN_OPTIONS": "print_stacktrace=1"}),
    "tsan": ("build/tsan", {"TSAN_OPTIONS": "exitcode=99:second_deadlock_stack=1", "ROUNDS": "60"}),
}
#: ThreadSanitizer does not work behind a fork() of a program with threads, which is what this one does.
NOT_FOR_TSAN = "fork"
TIME_S = 100
#: The wait for a daemon that does not answer is 10 s, too long for a test; the build `hasty` has it shorter.
HASTY_NS = 300_000_000


@cache
def built(*targets: str, variables: str = "") -> Path:
    """Make targets of the library's Makefile, once per run; its folder."""
    command = [tool("make"), "-s", "-C", str(LIBRARY), *variables.split(), *targets]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}\n{done.stdout}{done.stderr}", pytrace=False)
    return LIBRARY


def program(lane: str, name: str) -> Path:
    """A program of clients/c/tests, built for a lane."""
    built(*(["all", "tests"] if lane == "plain" else [lane]))
    return LIBRARY / LANES[lane][0] / "tests" / name


class Troupe:
    """A stage at a path, which can be gone and back again."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.stage: Stage | None = None
        self.start()

    def start(self) -> int:
        self.stage = Stage(self.path, limits=Limits(handles_per_uid=4096), max_flows=4096)
        return 0

    def stop(self) -> int:
        if self.stage is not None:
            self.stage.close()
        self.stage = None
        return 0

    def obey(self, line: str) -> int:
        """What clients/c/tests/stage.h asks for."""
        word, *numbers = line.split()
        if word in ("start", "stop"):
            return {"start": self.start, "stop": self.stop}[word]()
        stage = self.stage
        assert stage is not None, line
        if word == "congested":
            flow, congested = map(int, numbers)
            stage.set_condition(flow, congested=bool(congested))
            return 0
        if word == "measure":
            bottleneck, available, rtt_us = map(int, numbers)
            stage.measure(PEER[0], FlowFundamentals(Bandwidth(bottleneck), Bandwidth(available), rtt_us))
            return 0
        # The end of a connection is noticed by reading it.
        stage.settle()
        counts: dict[str, Callable[[], int]] = {
            "flows": lambda: stage.service.flows,
            "handles": lambda: stage.service.handles,
            "pending": lambda: stage.service.pending,
        }
        return stage.call(counts[word])


@pytest.fixture
def troupe() -> Iterator[Troupe]:
    before = open_descriptors()
    with tempfile.TemporaryDirectory(prefix="qos2-") as directory:
        os.chmod(directory, 0o755)
        made = Troupe(f"{directory}/qos2.sock")
        try:
            yield made
        finally:
            made.stop()
    assert open_descriptors() == before


@contextlib.contextmanager
def running(
    path: Path,
    socket_path: str,
    *,
    arguments: tuple[object, ...] = (),
    ends: bool = True,
    options: dict[str, str] | None = None,
) -> Iterator[tuple["subprocess.Popen[str]", IO[str], IO[str]]]:
    """A program whose daemon is at `socket_path`, with its stdin and stdout. It ends with 0 and says nothing else.

    With `ends` False it is ended from here.
    """
    environment = os.environ | {"QOS2_SOCKET": socket_path} | (options or {})
    command = [str(path), *map(str, arguments)]
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True
        ) as process,
    ):
        late = threading.Timer(TIME_S, process.kill)
        late.start()
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            yield process, process.stdin, process.stdout
            process.stdin.close()
            if not ends:
                process.terminate()
            code = process.wait()
            said.seek(0)
            assert (code, said.read()) == (0 if ends else -signal.SIGTERM, "")
        finally:
            late.cancel()
            late.join()
            process.kill()


@pytest.mark.parametrize(
    ("lane", "name"),
    [(lane, name) for lane in LANES for name in PROGRAMS if (lane, name) != ("tsan", NOT_FOR_TSAN)],
)
def test_program(lane: str, name: str, troupe: Troupe) -> None:
    with running(program(lane, f"{name}_test"), troupe.path, options=LANES[lane][1]) as (_, stdin, stdout):
        for line in stdout:
            with contextlib.suppress(BrokenPipeError):  # it has ended with a finding, which is told by its number
                stdin.write(f"{troupe.obey(line)}\n")
                stdin.flush()


def test_checks_without_a_daemon() -> None:
    for lane in ("plain", "asan"):
        done = subprocess.run([program(lane, "check_header")], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# The examples


def example(name: str) -> Path:
    return built("examples") / "build" / "examples" / name


def test_example_that_marks(troupe: Troupe) -> None:
    with running(example("mark"), troupe.path, arguments=PEER) as (_, _, stdout):
        assert [line.partition(":")[2] for line in stdout] == [" DSCP 56\n"]
    assert troupe.obey("handles") == 0


def test_example_that_follows_congestion(troupe: Troupe) -> None:
    stage = troupe.stage
    assert stage is not None
    stage.set_estimate(PEER[0], FlowFundamentals(Bandwidth(10_000_000), Bandwidth(2_000_000), 900))
    with running(example("adaptive"), troupe.path, arguments=(*PEER, 1_000_000, TIME_S), ends=False) as (_, _, stdout):

        def said(*lines: str) -> None:
            assert [stdout.readline().rstrip() for _ in lines] == list(lines)

        def rate() -> int:
            return int(stage.call(lambda: stage.datapath.policies[flow].bandwidth))

        said("available 2000000", "rate 1000000", "waiting for congestion")
        (flow,) = stage.call(lambda: tuple(stage.conditions.watched))
        assert rate() == 1_000_000
        for _ in range(2):
            stage.set_condition(flow, congested=True)
            said("rate 100000", "waiting for room")
            assert rate() == 100_000
            stage.set_condition(flow, congested=False, free=899_999)
            stage.set_condition(flow, congested=False, free=900_000)
            said("rate 1000000", "waiting for congestion")
            assert rate() == 1_000_000


def test_example_goes_on_without_estimates(troupe: Troupe) -> None:
    assert troupe.stage is not None
    troupe.stage.set_off_link(PEER[0])
    with running(example("adaptive"), troupe.path, arguments=(*PEER, 1_000_000, 0.2)) as (_, _, stdout):
        assert stdout.read() == "rate 1000000\n"
    assert troupe.obey("handles") == 0


# Daemons that misbehave


class Script:
    """A daemon that answers each request by what `answer` makes of it: packets, or None to close the connection."""

    def __init__(self, path: str, answer: Callable[[dict[str, Any]], list[bytes] | None]) -> None:
        self._answer = answer
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._run, name="script")
        self._thread.start()

    def __enter__(self) -> "Script":
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _run(self) -> None:
        while True:
            try:
                connected, _ = self._listener.accept()
            except OSError:
                return
            with connected:
                self._serve(connected)

    def _serve(self, connected: socket.socket) -> None:
        while True:
            data, fds, _, _ = socket.recv_fds(connected, 65536, 4)
            for fd in fds:
                os.close(fd)
            if not data:
                return
            replies = self._answer(json.loads(data))
            if replies is None:
                return
            for reply in replies:
                connected.send(reply)


OPENED = {"result": "opened", "server": "script", "privileged": False}
Reply = dict[str, Any] | bytes


def answering(*replies: Reply) -> Callable[[dict[str, Any]], list[bytes] | None]:
    """open_handle and close_handle as they should be; each other request by the next of these."""
    left = list(replies)

    def answer(request: dict[str, Any]) -> list[bytes] | None:
        if request["op"] == "open_handle":
            reply: Reply = OPENED
        elif request["op"] == "close_handle":
            reply = {"result": "done"}
        elif left:
            reply = left.pop(0)
        else:
            return None
        return [reply if isinstance(reply, bytes) else json.dumps({"id": request["id"]} | reply).encode()]

    return answer


def talk(answer: Callable[[dict[str, Any]], list[bytes] | None], *calls: str, lane: str = "asan") -> list[str]:
    """What the library makes of a daemon that answers so: for each call the number of its error, and its words."""
    path = LIBRARY / "build/hasty/tests/talk_test" if lane == "hasty" else program(lane, "talk_test")
    options = {} if lane == "hasty" else LANES[lane][1]
    with tempfile.TemporaryDirectory(prefix="qos2-") as directory:
        place = f"{directory}/qos2.sock"
        with Script(place, answer), running(path, place, options=options) as (_, stdin, stdout):
            said = []
            for call in calls:
                stdin.write(f"{call}\n")
                stdin.flush()
                said.append(stdout.readline().rstrip("\n"))
            return said


def error(code: str, win32: int, message: str, hint: str = "") -> dict[str, Any]:
    return {"result": "error", "code": code, "win32": win32, "message": message, "hint": hint}


def numbers(said: list[str]) -> list[int]:
    return [int(each.split()[0]) for each in said]


NO_REPLIES: dict[str, bytes] = {
    "not JSON": b"\xff\xfe",
    "a list": b"[]",
    "no number": b'{"result":"done"}',
    "another number": b'{"result":"done","id":99}',
    "a negative number": b'{"result":"done","id":-1}',
    "a fraction": b'{"result":"done","id":2.0}',
    "an unknown kind": b'{"result":"surprise","id":2}',
    "no kind": b'{"id":2}',
    "text behind it": b'{"result":"done","id":2}x',
    "two": b'{"result":"done","id":2}{"result":"done","id":3}',
    "a deep one": b'{"result":"done","id":2,"x":' + b"[" * 8000 + b"]" * 8000 + b"}",
    "an error without a number": b'{"result":"error","id":2,"code":"x","message":"m"}',
    "an error without words": b'{"result":"error","id":2,"code":"x","win32":87}',
    "a number that is none of Windows": b'{"result":"error","id":2,"code":"x","win32":4294967296,"message":"m"}',
    "longer than a message": b'{"result":"done","id":2,"x":"' + b"x" * 20000 + b'"}',
    "empty": b"",
}


@pytest.mark.parametrize("name", NO_REPLIES)
def test_what_is_no_reply_ends_the_connection(name: str) -> None:
    said = talk(answering(NO_REPLIES[name]), "create", "remove", "remove", "close", "create", "close")
    assert numbers(said) == [0, 1164, 1164, 0, 0, 0]


def test_unknown_members_of_a_reply_are_passed_over() -> None:
    more = {"future": [{"a": [1, 2.5e3, None, True], "flow": 3}, "\u20ac\ud83d\ude00"], "flow": 7, "result": "added"}
    assert numbers(talk(answering(more), "create", "add", "close")) == [0, 0, 0]


@pytest.mark.parametrize(
    "reply",
    [
        {"result": "done"},
        {
            "result": "priority",
            "conformant_dscp": 1,
            "non_conformant_dscp": 2,
            "conformant_l2": 3,
            "non_conformant_l2": 4,
        },
        error("internal", 31, "a bug"),
        # A number that would be success, or would be waited for.
        error("strange", 0, "m"),
        error("strange", 997, "m"),
    ],
    ids=lambda reply: f"{reply['result']} {reply.get('win32', '')}",
)
def test_a_reply_to_something_else_fails_that_call_alone(reply: dict[str, Any]) -> None:
    said = talk(answering(reply, {"result": "rate", "bandwidth": 5}), "create", "rate", "rate", "close")
    assert numbers(said) == [0, 31, 0, 0]


def test_message_and_hint_are_told() -> None:
    refused = error("no_such_flow", 1168, 'no "flow"\t\u20ac', "look \U0001f600")
    said = talk(answering(refused), "create", "remove", "close")
    assert said == ["0", '1168 no "flow"\t\u20ac (look \U0001f600)', "0"]


def test_words_are_cut_between_characters() -> None:
    said = talk(answering(error("no_such_flow", 1168, "\u20ac" * 1000, "x" * 1000)), "create", "remove", "close")
    assert said == ["0", "1168 " + "\u20ac" * 170, "0"]


def test_a_code_that_is_not_known_keeps_its_number() -> None:
    said = talk(answering(error("from_the_future", 4242, "soon")), "create", "remove", "close")
    assert said == ["0", "4242 soon", "0"]


def test_last_words_are_the_error() -> None:
    """A daemon that is full says so with number 0 and closes the connection."""

    def full(request: dict[str, Any]) -> list[bytes] | None:
        return [json.dumps({"id": 0} | error("limit_exceeded", 1450, "too many")).encode()]

    assert talk(full, "create") == ["1450 too many"]


def waiting(end: list[bytes] | None) -> Callable[[dict[str, Any]], list[bytes] | None]:
    """A daemon at which notifications wait, and which answers close_handle with `end`."""

    def answer(request: dict[str, Any]) -> list[bytes] | None:
        replies = {"open_handle": OPENED, "rate": error("no_such_flow", 1168, "unread")}
        if request["op"] == "close_handle":
            return end
        return [json.dumps(replies[each] | {"id": request["id"]}).encode() for each in replies if each == request["op"]]

    return answer


def test_what_waits_when_the_handle_is_closed_is_cancelled_by_the_end_of_the_connection_too() -> None:
    assert numbers(talk(waiting(None), "create", "notify", "result", "close", "result")) == [0, 997, 996, 0, 995]


def test_a_call_that_the_daemon_meets_behind_the_end_of_its_handle_is_cancelled() -> None:
    late = error("invalid_handle", 6, "the handle is closed")
    assert numbers(talk(answering(late), "create", "remove", "close")) == [0, 995, 0]


def test_a_daemon_that_is_full_says_so() -> None:
    """It refuses before it reads: its words lie in a connection that was reset, or is at its end."""
    path = program("asan", "talk_test")
    with staged(connections=1) as stage, stage.connection(), running(path, stage.path) as (_, stdin, stdout):
        for _ in range(1000):
            stdin.write("create\n")
            stdin.flush()
            assert stdout.readline().startswith("1450 there are 1 connections")


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ({"result": "flow_ids", "flows": [1, 2, 3], "more": False}, 0),
        ({"result": "flow_ids", "flows": [1, 2, 4294967296]}, 1164),
        ({"result": "flow_ids", "flows": ["1"]}, 1164),
        ({"result": "flow_ids", "flows": {"1": 1}}, 1164),
        ({"result": "flow_ids"}, 1164),
        # Asking again for nothing would never end.
        ({"result": "flow_ids", "flows": [], "more": True}, 1164),
        ({"result": "flow_ids", "flows": []}, 0),
    ],
)
def test_lists_of_ids(reply: dict[str, Any], expected: int) -> None:
    assert numbers(talk(answering(reply), "create", "enumerate", "close")) == [0, expected, 0]


def test_a_list_without_end_is_given_up() -> None:
    page = {"result": "flow_ids", "flows": [7] * 5000, "more": True}
    assert numbers(talk(answering(*[page] * 300), "create", "enumerate", "rate", "close"))[:2] == [0, 31]


@pytest.mark.parametrize("field", ["bottleneck", "available", "rtt_us"])
@pytest.mark.parametrize(("value", "expected"), [(None, 0), (2**63 - 1, 0), (-1, 1164), (2**63, 1164), ("1", 1164)])
def test_estimates(field: str, value: Any, expected: int) -> None:
    reply = {"result": "fundamentals", field: value}
    assert numbers(talk(answering(reply), "create", "fundamentals", "close")) == [0, expected, 0]


STATEMENTS: dict[str, Any] = {
    "as they are": {"rtt": {"value": 900, "quality": "measured", "method": "probe", "age_s": 0.25}},
    "of a later daemon": {"jitter": {"value": [1, {"bottleneck": 7}], "quality": None}},
    "no statements at all": None,
}


@pytest.mark.parametrize("name", STATEMENTS)
def test_what_is_said_about_estimates_is_passed_over(name: str) -> None:
    reply = {"result": "fundamentals", "statements": STATEMENTS[name], "bottleneck": 8000, "rtt_us": 900}
    assert numbers(talk(answering(reply, reply), "create", "fundamentals", "fundamentals", "close")) == [0, 0, 0, 0]


def test_a_daemon_that_does_not_answer_is_gone() -> None:
    """10 s as it is built; here with less, and the number that makes it so is checked."""
    assert "#define TRANSPORT_TIMEOUT_NS (10 * INT64_C(1000000000))" in (LIBRARY / "src/transport.h").read_text()
    built("tests", variables=f"BUILD=build/hasty CPPFLAGS=-DTRANSPORT_TIMEOUT_NS={HASTY_NS}")

    def silent(request: dict[str, Any]) -> list[bytes] | None:
        return [json.dumps(OPENED | {"id": request["id"]}).encode()] if request["op"] == "open_handle" else []

    began_s = time.monotonic()
    assert numbers(talk(silent, "create", "remove", "add", "close", lane="hasty")) == [0, 1164, 1164, 0]
    assert HASTY_NS / 1e9 <= time.monotonic() - began_s < 10
    assert numbers(talk(lambda _: [], "create", "close", lane="hasty")) == [1068, 87]
