"""`qos2 policy list|test|explain`, `qos2 reload`, and the rule in `qos2 flow` and `qos2 explain`: whole outputs.

Over the real server and service, in whose memory the datapath is; sockets are those of this test.
"""

import json
import os
import socket
from argparse import ArgumentTypeError
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qos2.cli import opensockets
from qos2.cli.explain import sheet as explain_sheet
from qos2.cli.flow import flow_sheet
from qos2.cli.main import main
from qos2.cli.opensockets import OpenSocket
from qos2.cli.policy import Target, target
from qos2.client import Handle
from qos2.core.ports import WayOut
from qos2.core.rule import Bucket, Match, Rule
from qos2.core.ruleviews import Loaded
from qos2.errors import ConfigError
from qos2.model import Bandwidth, Destination, Dscp, FlowStats, RemoteHost, TrafficType, Transport
from qos2.owner import owner_of
from unit.cli_stage import details, explanation, printed
from unit.policy_stage import CALLS, CAPPED, DENIED, EXEMPT, MBIT, installed, policy, port, rule
from unit.server_stage import Stage, staged, udp, unprivileged

PEER = ("127.0.0.1", 5004)
RTP = replace(CALLS, match=replace(CALLS.match, units=("asterisk.service", "baresip.service")))
BULK = rule("bulk", 50, match=port(873), dscp=Dscp(8), rate=Bandwidth(200 * MBIT), bucket=Bucket.HOST, priority=1)
pytestmark = pytest.mark.usefixtures("narrow")


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def stage() -> Iterator[Stage]:
    with staged(load_policy=lambda: Loaded(4, 2, ("b and a tie",))) as made:
        yield made


def load(stage: Stage, *rules: Rule) -> None:
    stage.call(lambda: stage.service.load_policy(policy(*rules)))


def run(stage: Stage, capsys: pytest.CaptureFixture[str], *words: str) -> list[str]:
    """The lines of a command that succeeds."""
    assert main(["--socket", stage.path, *words]) == 0
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


def run_json(stage: Stage, capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main(["--socket", stage.path, *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


class TestList:
    def test_each_rule_is_told_with_what_it_is_about_does_and_has_carried(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        if os.geteuid() != 0:
            pytest.skip("the counters of rules are root's to see")
        load(stage, RTP, BULK, DENIED)
        bulk = installed(stage.datapath)["bulk"]
        assert bulk is not None
        stage.datapath.set_stats(bulk, FlowStats(packets=1200, bytes=1_500_000, delayed_packets=3))
        stage.datapath.draw(bulk)
        stage.call(stage.service.follow)
        stage.datapath.absent["calls"] = ("unit asterisk.service",)
        assert run(stage, capsys, "policy", "list") == [
            "1          calls, precedence 127, 10-site.toml:3",
            "  match    unit asterisk.service or baresip.service; remote_port 5004",
            "  act      marks voice",
            "  use      flow 0x00100001: 0 packets, 0B, 0 delayed, 0 dropped",
            "  missing  not there now: unit asterisk.service",
            "2          denied, precedence 127, 10-site.toml:3",
            "  match    remote_port 5004",
            "  act      refuses applications' requests (1260); packets pass untouched",
            "  use      no flow",
            "3          bulk, precedence 50, 10-site.toml:3",
            "  match    remote_port 873",
            "  act      marks DSCP 8; 802.1p priority 1; at most 200Mbit/s for each remote",
            "           host, what exceeds it waits",
            "  use      flow 0x00100002: 1200 packets, 1.5MB, 3 delayed, 0 dropped; 1 remote",
            "           host with a flow each",
        ]

    def test_without_rules_that_is_said(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        assert run(stage, capsys, "policy", "list") == ["no rules: what no application registers passes untouched"]

    def test_the_json_form_has_everything(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        load(stage, CAPPED)
        with unprivileged():
            document = run_json(stage, capsys, "policy", "list")
        assert document == {
            "rules": [
                {
                    "name": "capped",
                    "precedence": 127,
                    "file": "10-site.toml",
                    "line": 3,
                    "match": {"remote_port": ["5004"]},
                    "act": {"rate": "2000000", "shaping": "shape_and_mark", "ceiling": "true"},
                    "flow": "0x00100001",
                    "stats": None,
                    "flows_in_use": 0,
                    "flows_ready": 0,
                    "flows_of_applications": 0,
                    "missing": [],
                }
            ]
        }


class TestTest:
    def test_the_rule_that_is_met_and_why_the_others_are_not(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        load(stage, RTP, BULK, replace(EXEMPT, precedence=1))
        words = "policy test --unit baresip.service --user 1000 --protocol udp --remote 192.0.2.7 --remote-port 5004"
        with unprivileged():
            lines = run(stage, capsys, *words.split())
        assert lines == [
            "known    unit baresip.service, user 1000, protocol udp, remote 192.0.2.7,",
            "         remote_port 5004",
            "verdict  The rule calls applies: marks voice.",
            "rule     calls (10-site.toml:3): flow 0x00100001",
            "device   Its packets leave by fake0, where they are seen.",
            "rules    calls: matches",
            "         bulk: remote_port: 5004 is not 873",
            "         exempt: shadowed by calls",
        ]

    def test_what_meets_no_rule_is_told_why(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        load(stage, RTP)
        assert run(stage, capsys, "policy", "test", "--remote-port", "80", "--remote", "2001:db8::7") == [
            "known    remote 2001:db8::7, remote_port 80",
            "verdict  No rule matches it: such packets keep the DSCP that the program sets,",
            "         CS0 where it sets none.",
            "device   Its packets leave by fake0, where they are seen.",
            "rules    calls: unit: not known",
        ]

    def test_of_many_rules_the_first_and_the_one_that_matches_are_told(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        load(stage, *(rule(f"r{number:04}", match=port(number)) for number in range(1, 1001)))
        lines = run(stage, capsys, "policy", "test", "--remote-port", "900")
        assert lines[-3:] == [
            "         r0012: remote_port: 900 is not 12",
            "         ... r0900: matches",
            "         1000 rules in all; --all tells each",
        ]
        every = run(stage, capsys, "policy", "test", "--remote-port", "900", "--all")
        assert [line[9:] for line in every if ": remote_port: 900 is not " in line] == [
            f"r{number:04}: remote_port: 900 is not {number}" for number in range(1, 1001) if number != 900
        ]

    @pytest.mark.parametrize(
        ("words", "told"),
        [
            ("--remote nowhere", "not an address: 'nowhere'"),
            ("--remote-port 65536", "port 65536 is outside 0..65535"),
            ("--local-port -1", "port -1 is outside 0..65535"),
            ("--dscp 64", "DSCP 64 is outside 0..63"),
            (f"--user {1 << 32}", f"uid {1 << 32} is outside 0..4294967295"),
        ],
    )
    def test_what_cannot_be_is_refused(
        self, words: str, told: str, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["--socket", stage.path, "policy", "test", *words.split()]) == 1
        assert told in capsys.readouterr().err


class TestExplain:
    """Why is everything still CS0?"""

    def verdicts(self, stage: Stage, capsys: pytest.CaptureFixture[str], sock: socket.socket) -> list[str]:
        document = run_json(stage, capsys, "policy", "explain", f"inode:{os.fstat(sock.fileno()).st_ino}")
        (decision,) = document["decisions"]
        return [*decision["verdict"], *decision["notes"]]

    def test_a_socket_that_meets_a_rule(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        load(stage, CALLS)
        with udp(PEER) as sock:
            own = sock.getsockname()
            known = owner_of(os.getpid())
            lines = run(stage, capsys, "policy", "explain", f"127.0.0.1:{own[1]}>127.0.0.1:5004")
            facts = " ".join(lines[1:]).split("verdict")[0]
            assert lines[0] == f"socket   udp 127.0.0.1:{own[1]} > 127.0.0.1:5004"
            # The path of this interpreter may be folded anywhere.
            assert known.executable in facts.replace(" ", "").replace("known", "")
            assert f"local_port {own[1]}" in " ".join(facts.split())
            verdict = next(number for number, line in enumerate(lines) if line.startswith("verdict"))
            rule_line = "rule     calls (10-site.toml:3): flow 0x00100001"
            if os.geteuid() == 0:
                rule_line += ": 0 packets, 0B, 0 delayed, 0"
            assert lines[verdict] == "verdict  The rule calls applies: marks voice."
            assert lines[verdict + 1] == rule_line
            assert lines[-2:] == [
                "device   Its packets leave by fake0, where they are seen.",
                "rules    calls: matches",
            ]

    def test_a_socket_that_no_rule_matches(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        load(stage, BULK)
        with udp(PEER) as sock:
            assert self.verdicts(stage, capsys, sock) == [
                "No rule matches it: such packets keep the DSCP that the program sets, CS0 where it sets none."
            ]

    def test_a_socket_while_there_are_no_rules(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        with udp() as sock:
            sock.bind(("127.0.0.1", 0))
            assert self.verdicts(stage, capsys, sock) == [
                "It is not connected: each place that it sends to is decided by itself.",
                "No rule matches all that it may send: such packets keep the DSCP that the program sets, CS0 where it "
                "sets none.",
                "There are no rules at all.",
            ]

    def test_a_socket_that_an_application_has_registered(
        self, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        load(stage, CAPPED)
        with Handle(stage.path) as qos, udp(PEER) as sock:
            flow = qos.add_socket(sock, TrafficType.VOICE)
            flow.set_rate(8 * MBIT)
            document = run_json(stage, capsys, "policy", "explain", f"0x{flow.id:08x}")
            program = Path("/proc/self/comm").read_text().strip()
            (decision,) = document["decisions"]
            assert (decision["flows"], decision["rule"]["name"]) == ([f"0x{flow.id:08x}"], "capped")
            lines = " ".join(" ".join(run(stage, capsys, "policy", "explain", str(os.getpid()))).split())
            assert (
                f"{program}({os.getpid()}) has registered it: it is in flow 0x{flow.id:08x}, which marks DSCP 56, at "
                "most 2Mbit/s. The rule capped applies to it: 8Mbit/s became 2Mbit/s."
            ) in lines
            for command in ("flow", "explain"):
                told = run(stage, capsys, command, f"0x{flow.id:08x}")
                assert "The rule capped applies to it: 8Mbit/s became 2Mbit/s." in " ".join(" ".join(told).split())

    def test_a_flow_of_a_rule_is_told_as_such(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        load(stage, CALLS)
        with unprivileged():
            assert run(stage, capsys, "policy", "explain", "0x00100001") == [
                "verdict  The rule calls applies: marks voice.",
                "rule     calls (10-site.toml:3): flow 0x00100001",
            ]
        assert main(["--socket", stage.path, "flow", "0x00100001"]) == 1
        assert "is no application's but of the rule calls" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("way", "told"),
        [
            (WayOut("eth0", attached=True), "Its packets leave by eth0, where they are seen."),
            (
                WayOut("wg0", attached=False, why="it is not in `devices`"),
                "Its packets leave by wg0 unseen: it is not in `devices`. Whatever the rules say, they are not marked.",
            ),
            (
                WayOut(why="there is no route"),
                "Its packets are not seen when they leave: there is no route. Whatever the rules say, they are not "
                "marked.",
            ),
        ],
    )
    def test_by_which_device_it_leaves(
        self, way: WayOut, told: str, stage: Stage, capsys: pytest.CaptureFixture[str]
    ) -> None:
        load(stage, DENIED)
        with udp(PEER) as sock:
            cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 71, 8), "little")  # SO_NETNS_COOKIE
            host = RemoteHost(Destination.parse(*PEER).address, cookie)  # type: ignore[arg-type]  # it is no wildcard
            stage.datapath.ways_out[host] = way
            inode = os.fstat(sock.fileno()).st_ino
            lines = " ".join(" ".join(run(stage, capsys, "policy", "explain", f"socket:[{inode}]")).split())
            assert told in lines
            assert "an application that asks for something is refused, and packets pass untouched" in lines

    def test_a_socket_that_is_not_ours_to_trace_is_described(
        self, stage: Stage, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refused(_each: OpenSocket) -> Any:
            raise PermissionError("not ours")

        load(stage, CALLS)
        monkeypatch.setattr(opensockets, "borrowed", refused)
        with udp(PEER) as sock:
            assert self.verdicts(stage, capsys, sock) == [
                "The rule calls applies: marks voice.",
                "Whether an application has registered it cannot be told without the right to trace its process.",
            ]

    def test_what_is_not_there_is_said(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        for what, why in (
            ("4194304", "there is no process 4194304"),
            ("inode:1", "there is no such socket"),
            ("0x00f00001", "no flow 15728641"),
        ):
            assert main(["--socket", stage.path, "policy", "explain", what]) == 1
            assert why in capsys.readouterr().err


class TestReload:
    def test_what_is_in_force_is_said_with_warnings(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        if os.geteuid() != 0:
            pytest.skip("reloading is root's to ask for")
        assert run(stage, capsys, "reload") == [
            "the policy is in force: 2 rules, generation 4",
            "warning: b and a tie",
        ]
        assert run_json(stage, capsys, "reload") == {"generation": 4, "rules": 2, "warnings": ["b and a tie"]}

    def test_each_mistake_has_a_line(self, capsys: pytest.CaptureFixture[str]) -> None:
        if os.geteuid() != 0:
            pytest.skip("reloading is root's to ask for")

        def wrong() -> Loaded:
            raise ConfigError("a.toml:3: no such key\nb.toml:9: no such user", "qos2 check-config")

        with staged(load_policy=wrong) as stage:
            assert main(["--socket", stage.path, "reload"]) == 1
        assert capsys.readouterr().err == (
            "qos2: a.toml:3: no such key\nqos2: b.toml:9: no such user\n  hint: qos2 check-config\n"
        )

    def test_who_may_not_is_refused(self, stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
        with unprivileged():
            assert main(["--socket", stage.path, "reload"]) == 1
        assert "needs root or the group qos2" in capsys.readouterr().err


class TestTarget:
    @pytest.mark.parametrize(
        ("text", "meant"),
        [
            ("0x00100001", Target(flow=0x00100001)),
            ("4711", Target(pid=4711)),
            ("inode:12", Target(inode=12)),
            ("socket:[12]", Target(inode=12)),
            (
                "[2001:db8::1]:80>192.0.2.7:443",
                Target(ends=(Destination.parse("2001:db8::1", 80), Destination.parse("192.0.2.7", 443))),
            ),
        ],
    )
    def test_flows_processes_and_sockets_are_told_apart(self, text: str, meant: Target) -> None:
        assert target(text) == meant

    @pytest.mark.parametrize("text", ["", "0", "x", "0x", "inode:x", "1>2", "192.0.2.1:1>", "a:1>b:2", str(1 << 32)])
    def test_anything_else_is_refused(self, text: str) -> None:
        with pytest.raises(ArgumentTypeError):
            target(text)


class TestOpenSockets:
    def test_sockets_of_a_process_have_both_ends(self) -> None:
        with udp(PEER) as one, socket.create_server(("127.0.0.1", 0)) as listener, udp() as unbound:
            found = {each.fd: each for each in opensockets.of_process(os.getpid())}
            assert unbound.fileno() not in found
            assert found[one.fileno()] == OpenSocket(
                os.fstat(one.fileno()).st_ino,
                Transport.UDP,
                Destination.parse(*one.getsockname()),
                Destination.parse(*PEER),
                os.geteuid(),
                os.getpid(),
                one.fileno(),
            )
            assert str(found[listener.fileno()]) == f"tcp 127.0.0.1:{listener.getsockname()[1]} > anywhere"

    def test_a_socket_of_another_namespace_is_known_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with udp(PEER) as sock, socket.socket(socket.AF_UNIX) as other:
            listed = {each.fd: each for each in opensockets.of_process(os.getpid())}
            monkeypatch.setattr(opensockets, "_TABLES", {})
            found = {each.fd: each for each in opensockets.of_process(os.getpid())}
            assert found[sock.fileno()] == listed[sock.fileno()]
            assert other.fileno() not in found

    def test_an_ipv6_end_is_read(self) -> None:
        if not Path("/proc/net/if_inet6").exists():
            pytest.skip("the kernel has no IPv6")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::1", 0))
            inode = os.fstat(sock.fileno()).st_ino
            found = opensockets.by_inode(inode)
            assert found is not None
            assert found.local == Destination.parse("::1", sock.getsockname()[1])

    def test_a_borrowed_socket_is_the_same_one(self) -> None:
        with udp(PEER) as sock:
            (found,) = [each for each in opensockets.of_process(os.getpid()) if each.fd == sock.fileno()]
            with opensockets.borrowed(found) as copy:
                assert copy.fileno() != sock.fileno()
                assert os.fstat(copy.fileno()).st_ino == os.fstat(sock.fileno()).st_ino
            with pytest.raises(OSError, match="descriptor"), opensockets.borrowed(replace(found, fd=9999)):
                pass


def test_match_without_conditions_is_everything(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    load(stage, rule("all", match=Match(), dscp=Dscp(8)))
    assert run(stage, capsys, "policy", "list")[1] == "  match  everything"


@pytest.mark.parametrize(
    ("changed", "mark", "said"),
    [
        (
            {"asked_dscp": 40},
            "40 (of audio_video)",
            "applies to it, and changes nothing of what its application asks for.",
        ),
        ({"dscp": 26, "asked_dscp": 40}, "26 (of the rule r)", "applies to it: DSCP 40 became DSCP 26."),
        ({"dscp": 26, "asked_dscp": None}, "26 (of the rule r)", "applies to it: no mark became DSCP 26."),
        (
            {"asked_dscp": 40, "asked_bandwidth": 0},
            "40 (of audio_video)",
            "applies to it: no rate became 8Mbit/s.",
        ),
        (
            {"dscp": None, "asked_dscp": 40, "bandwidth": 0, "denied": True},
            "left as the application sets it",
            "denies it: it does nothing, and its application's requests are refused.",
        ),
    ],
)
def test_a_flow_names_its_rule_and_what_that_changes(changed: dict[str, Any], mark: str, said: str) -> None:
    values: dict[str, Any] = {"rule": "r", "asked_bandwidth": 8 * MBIT}
    flow = details(**(values | changed))
    told = {line.split("  ")[0]: line.split("  ", 1)[-1].strip() for line in printed(flow_sheet(flow), 200)}
    assert (told["DSCP"], told["rule"]) == (mark, f"The rule r {said}")
    assert [line for line in printed(explain_sheet(flow, explanation()), 200) if line.startswith("rule ")] == [
        f"rule       The rule r {said}"
    ]


def test_a_program_that_a_rule_denies_does_not_run(
    stage: Stage, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    load(stage, rule("no-marks", match=Match(users=(os.geteuid(),)), deny=True))
    ran = tmp_path / "ran"
    assert main(["--socket", stage.path, "run", "--type", "voice", "--", "touch", str(ran)]) == 1
    assert capsys.readouterr().err == (
        "qos2: the rule no-marks does not allow it\n  hint: 10-site.toml:3 says so; see `qos2 policy list`\n"
    )
    assert not ran.exists()
