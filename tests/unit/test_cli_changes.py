"""`qos2 watch` as lines: what is told of flows from look to look, and how the stream ends."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence

import pytest

from qos2.cli.changes import Changes
from qos2.cli.main import main
from qos2.wire.protocol import Explanation, FlowDetails
from unit.cli_stage import EVIDENCE, VOICE, StandIn, change, details, explanation

#: 2026-11-21T04:00:00Z
NOON = 1_795_233_600.0

CALM = {"queue_delay_us": 1_210.0, "limit_queue_delay_us": 30_000.0}


def free(state_s: float, flow: int = 0x00100001) -> FlowDetails:
    return details(flow, state="uncongested", cause=None, state_s=state_s, evidence=CALM)


def congested(state_s: float, flow: int = 0x00100001) -> FlowDetails:
    return details(flow, state_s=state_s)


def told(
    *looks: tuple[float, Sequence[FlowDetails]], explanations: Mapping[int, Explanation] | None = None
) -> list[tuple[float, int, str, str | None]]:
    """What is told by looks at so many seconds: since when, of which flow, state and cause."""
    changes = Changes(StandIn(explanations=explanations))
    return [
        (round(change.at_s - NOON, 3), change.flow.flow, change.state, change.cause)
        for at_s, flows in looks
        for change in changes.of(flows, at_s, NOON + at_s)
    ]


def test_each_flow_has_a_first_line_and_then_none_while_its_state_lasts() -> None:
    both = [(100.0 + later_s, [free(60.0 + later_s), congested(9.0 + later_s, 2)]) for later_s in (0.0, 0.5, 3.0)]
    assert told(*both) == [(40.0, 0x00100001, "uncongested", None), (91.0, 2, "congested", "queue_delay")]


def test_a_change_is_told_with_the_time_at_which_it_happened() -> None:
    history = explanation(
        changes=(change("congested", "queue_delay", 0.3, EVIDENCE), change("uncongested", None, 60.5, CALM))
    )
    assert told((100.0, [free(60.0)]), (100.5, [congested(0.3)]), explanations={0x00100001: history}) == [
        (40.0, 0x00100001, "uncongested", None),
        (100.2, 0x00100001, "congested", "queue_delay"),
    ]


def test_changes_between_two_looks_are_all_told_in_their_order() -> None:
    history = explanation(
        changes=(
            change("congested", "loss", 0.4, {"loss": 0.03}),
            change("uncongested", None, 2.1, {"queue_delay_us": 900.0}),
            change("congested", "queue_delay", 4.9, EVIDENCE),
            change("uncongested", None, 65.0, CALM),
            change("unknown", None, 75.0),
        )
    )
    now = details(state="congested", cause="loss", state_s=0.4, evidence={"loss": 0.03})
    assert told((100.0, [free(60.0)]), (105.0, [now]), explanations={0x00100001: history}) == [
        (40.0, 0x00100001, "uncongested", None),
        (100.1, 0x00100001, "congested", "queue_delay"),
        (102.9, 0x00100001, "uncongested", None),
        (104.6, 0x00100001, "congested", "loss"),
    ]


def test_the_same_state_again_is_a_change_too() -> None:
    history = explanation(
        changes=(
            change("congested", "queue_delay", 0.5, {"queue_delay_us": 50_000.0}),
            change("uncongested", None, 2.0, CALM),
            change("congested", "queue_delay", 13.0, EVIDENCE),
        )
    )
    now = details(state_s=0.5, evidence={"queue_delay_us": 50_000.0})
    assert told((100.0, [congested(10.0)]), (103.0, [now]), explanations={0x00100001: history}) == [
        (90.0, 0x00100001, "congested", "queue_delay"),
        (101.0, 0x00100001, "uncongested", None),
        (102.5, 0x00100001, "congested", "queue_delay"),
    ]


def test_a_change_behind_the_look_is_left_to_the_next_one() -> None:
    late = explanation(
        changes=(
            change("congested", "queue_delay", 0.0, EVIDENCE),
            change("rate_limited", "contract", 0.4, {"own_delay_us": 9.0}),
            change("uncongested", None, 61.0, CALM),
        )
    )
    limited = details(state="rate_limited", cause="contract", state_s=0.4, evidence={"own_delay_us": 9.0})
    changes = Changes(StandIn(explanations={0x00100001: late}))
    looks = [list(changes.of([flow], at_s, NOON + at_s)) for at_s, flow in ((100.0, free(60.0)), (101.0, limited))]
    assert [change.state for change in looks[1]] == ["rate_limited"]
    assert [change.state for change in changes.of([congested(0.5)], 101.5, NOON)] == ["congested"]


@pytest.mark.parametrize("late_s", [0.2, 3.0])
def test_a_reply_that_comes_late_makes_no_change(late_s: float) -> None:
    assert len(told((100.0, [congested(60.0)]), (100.5 + late_s, [congested(60.5)]))) == 1


def test_what_was_before_the_first_look_is_not_news() -> None:
    """Although the daemon remembers it, and what was told first has left its memory."""
    history = explanation(changes=(change("congested", "queue_delay", 0.3, EVIDENCE), change("unknown", None, 9_999.0)))
    assert told((100.0, [free(60.0)]), (100.5, [congested(0.3)]), explanations={0x00100001: history}) == [
        (40.0, 0x00100001, "uncongested", None),
        (100.2, 0x00100001, "congested", "queue_delay"),
    ]


def test_a_clock_that_is_set_makes_no_change() -> None:
    changes = Changes(StandIn())
    looks = [list(changes.of([free(60.0 + at_s)], at_s, time_s)) for at_s, time_s in ((0.0, NOON), (1.0, NOON - 3600))]
    assert [len(look) for look in looks] == [1, 0]


def test_a_flow_that_is_gone_has_a_last_line_and_a_new_one_a_first() -> None:
    assert told((100.0, [free(60.0)]), (100.5, [free(0.2, 0x00200001)]), (101.0, [])) == [
        (40.0, 0x00100001, "uncongested", None),
        (100.5, 0x00100001, "ended", None),
        (100.3, 0x00200001, "uncongested", None),
        (101.0, 0x00200001, "ended", None),
    ]


def test_a_flow_that_ends_before_it_is_explained_is_told_as_it_was_seen() -> None:
    class Forgetful(StandIn):
        def explain(self, flow: int) -> Explanation:
            return self.explanations[self.flow_details(0x00300001).flow]  # there is none

    changes = Changes(Forgetful())
    assert [change.state for change in changes.of([free(60.0)], 100.0, NOON)] == ["uncongested"]
    assert [change.state for change in changes.of([congested(0.3)], 100.5, NOON)] == ["congested"]


def test_a_line_always_has_the_same_columns() -> None:
    changes = Changes(StandIn())
    odd = details(
        0x00100004, program='my "player"\n', cause="ce", state_s=2.0, evidence={"ce_share": 0.25, "novel": 3.0}
    )
    assert [change.line() for change in changes.of([congested(12.4), odd, VOICE], 100.0, NOON)] == [
        "time=2026-11-21T03:59:47.600Z flow=0x00100001 program=videosender pid=4321 state=congested cause=queue_delay "
        "queue_delay_us=84200 loss=0 ce_share=- bad_windows=3 rtt_us=- baseline_rtt_us=- own_delay_us=-",
        'time=2026-11-21T03:59:58.000Z flow=0x00100004 program="my \\"player\\"?" pid=4321 state=congested cause=ce '
        "queue_delay_us=- loss=- ce_share=0.25 bad_windows=- rtt_us=- baseline_rtt_us=- own_delay_us=-",
        "time=2026-11-21T03:58:45.000Z flow=0xfff00002 program=baresip pid=1234567 state=unknown cause=- "
        "queue_delay_us=- loss=- ce_share=- bad_windows=- rtt_us=- baseline_rtt_us=- own_delay_us=-",
    ]


def test_a_change_as_json_has_all_of_its_evidence() -> None:
    (first,) = Changes(StandIn()).of([congested(12.4)], 100.0, NOON)
    assert first.document() == {
        "time": "2026-11-21T03:59:47.600Z",
        "flow": "0x00100001",
        "program": "videosender",
        "pid": 4321,
        "state": "congested",
        "cause": "queue_delay",
        "evidence": EVIDENCE,
    }


# The command


def test_in_a_pipe_watch_writes_a_line_per_change_until_ctrl_c(capsys: pytest.CaptureFixture[str]) -> None:
    history = {0x00100001: explanation(changes=(change("congested", "queue_delay", 0.0, EVIDENCE),))}
    qos = StandIn([free(60.0)], [free(60.1)], [congested(0.0)], [], explanations=history, ends=True)
    assert main(["watch", "--interval", "0.1"], connect=qos.connect) == 0
    lines = [line.split(" ") for line in capsys.readouterr().out.splitlines()]
    assert [columns[4] for columns in lines] == ["state=uncongested", "state=congested", "state=ended"]
    assert qos.explained == [0x00100001]  # asked only when something had changed


def test_watch_of_one_flow_ends_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    qos = StandIn([free(60.0), VOICE], [VOICE])
    assert main(["watch", "0x00100001", "--interval", "0.1", "--json"], connect=qos.connect) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["flow"], each["state"]) for each in told] == [("0x00100001", "uncongested"), ("0x00100001", "ended")]


def test_watch_of_no_flow_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "0x00100009"], connect=StandIn().connect) == 1
    assert capsys.readouterr() == ("", "qos2: no flow 1048585\n  hint: see `qos2 flows`\n")


def test_once_as_json_is_one_line_per_flow(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--once", "--json"], connect=StandIn().connect) == 0
    assert [json.loads(line)["state"] for line in capsys.readouterr().out.splitlines()] == [
        "congested",
        "unknown",
        "rate_limited",
    ]


def watcher(*arguments: str) -> "subprocess.Popen[bytes]":
    program = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from unit.cli_stage import StandIn\n"
        "from qos2.cli.main import main\n"
        "sys.exit(main(sys.argv[1].split(), connect=StandIn().connect))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, " ".join(arguments), *sys.path], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_watch_ends_when_its_reader_goes_although_nothing_is_written() -> None:
    with watcher("watch", "--interval", "3600") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [process.stdout.readline()[:5] for _ in range(3)] == [b"time="] * 3
        process.stdout.close()
        assert process.wait(timeout=20) == 1
        assert process.stderr.read() == b""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 128 + signal.SIGTERM)])
def test_watch_ends_cleanly_by_a_signal(number: int, code: int) -> None:
    with watcher("watch", "--interval", "3600") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert [process.stdout.readline()[:5] for _ in range(3)] == [b"time="] * 3  # flushed, though a pipe
        os.kill(process.pid, number)
        assert process.wait(timeout=20) == code
        assert (process.stdout.read(), process.stderr.read()) == (b"", b"")
