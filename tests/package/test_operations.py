"""docs/operations.md, typed as it stands: from the package to the dashboard, then everything else, to the removal.

On a Debian that has just been booted with its own systemd, beside two services and a network (see host.py). Every block
and every command in a sentence is a step, in the order of the document; what is left out is named below, or marked in
the document with its reason. Two things besides: what leaves the wire, and what Grafana would ask.
"""

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from package import host
from package.contents import next_version
from package.document import Step, first_missing, sentences_without_commands, steps
from package.machine import Machine

pytestmark = [pytest.mark.datapath, pytest.mark.timeout(400)]  # as test_deb.py

REPOSITORY = Path(__file__).parents[2]
ROOT = REPOSITORY / ".cache" / "deb" / "root"
DOCUMENT = (REPOSITORY / "docs" / "operations.md").read_text()
STEPS = steps(DOCUMENT)

#: The blocks that the document leaves out, by their first line; it has the reasons.
LEFT_OUT_BLOCKS = [
    "apt install prometheus",
    "systemctl restart grafana-server",
    "qos2d --config /etc/qos2/qos2d.toml                    # foreground; SIGTERM or Ctrl-C ends it cleanly",
    "qos2 watch ID    # all about one, live; without ID the states of all flows; changes as lines in a pipe",
    "qos2 top on host  6 flows  4 congested  30.2Mbit/s  2.6k packets/s",
    "curl(15617) of root, audio_video: congested by queue_delay",
    "flow       0x00100001 of curl(4321): tcp 192.0.2.7:443",
    "$ qos2 watch | grep state=congested",
]
#: Commands in sentences that are not typed, and why.
LEFT_OUT = {
    "systemctl edit qos2d": "opens an editor",
    "rm -r /sys/fs/bpf/qos2/pins": "for a daemon that crashed, and is away",
    "kill -9": "which process, is not said",
    "qos2 flow": "names a command, whose argument is a flow",
    "qos2 explain": "likewise",
    "qos2 run": "likewise",
    "qos2 watch": "goes on until somebody ends it",
    "qos2 watch ID": "likewise",
}
#: In a sentence, between backquotes, of several words, and nothing to type.
NO_COMMANDS = {
    *("tcp_tso_rtt_log = 0", "preset_tos = false", "metrics_flows_top = 20", 'log_format = "json"', "flow_limit 10000"),
    *("in no flow", "rule NAME", "--color never", "qos2: no daemon at ...", "./dev deb"),
}
#: How else a command may end where all is well, and why.
ENDINGS = {
    "dmesg | grep -i oom": 1,  # nobody was killed for want of memory
    'journalctl -u qos2d -g "a bug"': 1,  # there is none
    "cat /proc/pressure/cpu": 1,  # a kernel without CONFIG_PSI
    f"tc qdisc replace dev {host.DEVICE} root fq flow_limit 10000": 2,  # a kernel without fq
}
#: Steps that only look are repeated until they show what they shall: Prometheus asks, and rates are of two looks.
_LOOKS = ("curl", "journalctl", "promtool query", "qos2")
_PATIENCE_S = 30.0

#: Bits per second at IP level that the example leaves to the backup.
_HELD = 40_000_000

#: Queries that may yield nothing here, by panel and letter, and why; test_prometheus.py has something for each.
NO_DATA = {
    "CPU time of one run of a program A": "kernel.bpf_stats_enabled is not set",
    "Congested flows A": "nothing is known of a flow that only sends",
    "Devices: how full A": "a veth states no speed",
    "Paths in use C": "nobody asks for the estimates of a path",
    "Requests B": "none is refused",
    "What contracts did to packets B": "none is marked down",
    "What contracts did to packets C": "none is dropped",
}

#: Put to Prometheus by the machine: each query of the dashboard; which of them fail, and which yield nothing.
_ASK = """
import json, sys, urllib.error, urllib.parse, urllib.request
found = {}
for name, query in json.load(open("/shared/queries.json")).items():
    url = "http://127.0.0.1:9090/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        found[name] = len(json.load(urllib.request.urlopen(url))["data"]["result"])
    except urllib.error.HTTPError as error:
        found[name] = error.read().decode()
print(json.dumps(found))
"""


class Walk:
    """The machine, and the folder that it has at /shared."""

    def __init__(self, machine: Machine, shared: Path) -> None:
        self.machine = machine
        self.shared = shared

    def type(self, step: Step) -> None:
        """A step, as it stands. AssertionError where it fails, or does not show what the document says."""
        program = step.script.split()[0]
        if step.in_sentence and program in host.PROGRAMS and host.found(program) is None:
            pytest.skip(f"not installed: {program}")
        script = self._filled_in(step.script)
        allowed = (0, ENDINGS.get(script, 0))
        looks = all(line.startswith(_LOOKS) for line in script.splitlines())
        deadline_s = time.monotonic() + (_PATIENCE_S if looks else 0)
        while True:
            said = self.machine.run("sh", "-c", f"cd /root; export COLUMNS=80; ({script}\n); echo status $?")
            output, _, status = said.rpartition("status ")
            missing = first_missing(step.shown, output)
            if int(status) in allowed and not missing:
                return
            assert time.monotonic() < deadline_s, f"status {status}not shown: {missing!r}\n$ {script}\n{output}"
            time.sleep(1)

    def _filled_in(self, script: str) -> str:
        """With something for the words in capitals that are for the reader to put in."""
        words = {"DEV": host.DEVICE, "HOST": "127.0.0.1", "PROGRAM": "true"}
        if re.search(r"\bID\b", script):
            words["ID"] = self._flow()
        for word, value in words.items():
            script = re.sub(rf"(?<![-\w=]){word}\b(?!=)", value, script)
        return script

    def _flow(self) -> str:
        """Of the program that asks by itself, which does so again when the daemon is another one."""
        deadline_s = time.monotonic() + _PATIENCE_S
        while True:
            flows = json.loads(self.machine.run("qos2", "flows", "--json"))["flows"]
            if flows:
                return str(flows[0]["id"])
            assert time.monotonic() < deadline_s, self.machine.run("systemctl", "status", "asks.service")
            time.sleep(0.5)


def nothing_is_changed(walk: Walk) -> None:
    """By the installation alone: packets are not marked, and the backup takes what it wants."""
    found = host.arriving(walk.machine, walk.shared, 2)
    assert (set(found[host.CALLS]), set(found[host.BACKUP])) == ({0}, {0})
    assert sum(found[host.BACKUP].values()) * 8 / 2 > 1.2 * _HELD


def the_backup_does_not_disturb_the_calls(walk: Walk) -> None:
    """All calls are marked as voice, all of the backup as background, and that is held."""
    found = host.arriving(walk.machine, walk.shared, 2)
    assert (set(found[host.CALLS]), set(found[host.BACKUP])) == ({56 << 2}, {8 << 2})
    # Over two seconds; measured 0.986 to 0.998 of it. The rest is for a machine that pauses, here or at the sender.
    assert 0.8 * _HELD < found[host.BACKUP][8 << 2] * 8 / 2 < 1.05 * _HELD
    # At most 50 datagrams of 188 bytes a second, less what sleeping takes longer; measured 97 to 99 in all.
    assert 60 * 188 <= found[host.CALLS][56 << 2] <= 102 * 188
    # For what the document shows further on: a program that asks by itself.
    walk.machine.run("systemctl", "start", "asks.service")


def the_dashboard_has_data(walk: Walk) -> None:
    """All of its queries are answered by Prometheus, and there is something to see."""
    installed = walk.machine.run("cat", "/var/lib/grafana/dashboards/qos2/qos2.json")
    provider = walk.machine.run("cat", "/etc/grafana/provisioning/dashboards/qos2.yml")
    assert "      path: /var/lib/grafana/dashboards/qos2\n" in provider
    source = walk.machine.run("cat", "/etc/grafana/provisioning/datasources/qos2.yml")
    assert "url: http://127.0.0.1:9090\n" in source
    queries = {
        f"{panel['title']} {target['refId']}": filled_in(target["expr"])
        for panel in json.loads(installed)["panels"]
        for target in panel.get("targets", ())
    }
    (walk.shared / "queries.json").write_text(json.dumps(queries))
    (walk.shared / "ask.py").write_text(_ASK)
    deadline_s = time.monotonic() + 2 * _PATIENCE_S
    while True:
        found: dict[str, Any] = json.loads(walk.machine.run("/usr/bin/python3", "/shared/ask.py"))
        assert {name: said for name, said in found.items() if not isinstance(said, int)} == {}
        without = {name for name, count in found.items() if not count}
        if without <= set(NO_DATA):
            return
        assert time.monotonic() < deadline_s, sorted(without)
        time.sleep(1)


def filled_in(query: str) -> str:
    """As Grafana does, for all hosts."""
    return query.replace("$instance", ".*").replace("$__rate_interval", "1m")


def the_next_packages_are_there(walk: Walk) -> None:
    """In the place of those that were installed."""
    walk.machine.run("sh", "-c", "rm /root/qos2_*.deb && cp /shared/next.deb /root/qos2_next.deb")


def nothing_is_left(walk: Walk) -> None:
    """Of daemon, configuration, or what was placed on devices."""
    places = "/etc/qos2 /run/qos2 /var/cache/qos2 /sys/fs/bpf/qos2/* /etc/systemd/system/*/qos2*"
    assert walk.machine.run("sh", "-c", f"ls -d {places} 2>/dev/null || true") == ""
    found = host.arriving(walk.machine, walk.shared, 1)
    assert (set(found[host.CALLS]), set(found[host.BACKUP])) == ({0}, {0})


#: What is looked at behind the last step of a section.
CHECKS: dict[str, Callable[[Walk], None]] = {
    "2. See that it runs": nothing_is_changed,
    "3. The first rule": the_backup_does_not_disturb_the_calls,
    "7. The dashboard": the_dashboard_has_data,
    "When something is wrong": the_next_packages_are_there,
    "Upgrade and remove": nothing_is_left,
}


def walk_through() -> Iterator[Any]:
    """Steps and checks, in order; what was typed before is not typed again from within a sentence."""
    typed = set(LEFT_OUT)
    for number, step in enumerate(STEPS):
        if not step.left_out and not (step.in_sentence and step.script in typed):
            yield pytest.param(lambda walk, step=step: walk.type(step), id=f"{step.line}: {step.name}")
        typed |= {step.script}
        last = number + 1 == len(STEPS) or STEPS[number + 1].section != step.section
        if last and step.section in CHECKS:
            check = CHECKS[step.section]
            yield pytest.param(check, id=f"{step.line}: {check.__name__}")


@pytest.fixture(scope="module")
def walk(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    """Booted and furnished, with the packages in root's home."""
    missing = [name for name in host.REQUIRED if host.found(name) is None]
    if shutil.which("systemd-nspawn") is None:
        missing.append("systemd-container")
    if missing:
        pytest.skip(f"not installed: {' '.join(missing)}")
    if not ROOT.with_name("root.stamp").is_file():
        pytest.skip(f"no {ROOT}: sudo ./dev deb --test makes it, in a minute, and runs this")
    shared = tmp_path_factory.mktemp("operations")
    for name in ("qos2", "libqwave1"):
        shutil.copy(packages[name], shared)
    shutil.move(next_version(packages["qos2"], shared / "tree"), shared / "next.deb")
    with ExitStack() as stack:
        try:
            machine = stack.enter_context(Machine(ROOT, shared, host.binds()))
        except OSError as error:
            pytest.skip(f"systemd-nspawn does not work here: {error}")
        host.furnish(machine, shared)
        machine.run("sh", "-c", "cp /shared/qos2_*.deb /shared/libqwave1_*.deb /root")
        # The answer to "Do you want to continue?".
        machine.run("sh", "-c", "echo 'APT::Get::Assume-Yes \"true\";' >/etc/apt/apt.conf.d/yes")
        yield Walk(machine, shared)


@pytest.mark.parametrize("step", walk_through())
def test_the_document_is_right(walk: Walk, step: Callable[[Walk], None]) -> None:
    step(walk)


def test_nothing_is_left_out_silently() -> None:
    assert [step.script.splitlines()[0] for step in STEPS if step.left_out] == LEFT_OUT_BLOCKS
    assert set(LEFT_OUT) <= {step.script for step in STEPS if step.in_sentence}
    assert sentences_without_commands(DOCUMENT) == NO_COMMANDS
    assert set(CHECKS) <= {step.section for step in STEPS}


def test_what_a_document_says_is_understood() -> None:
    text = """## One

Type `qos2 a` and `word`, see `not one`.

```sh
first
```

```text
1.5k packets ... bar ██░
...
end
```

    indented

<!-- not run: a reason -->
```
elsewhere
```

<!-- not run: looks -->
```text
shown
```
"""
    inline, first, indented, elsewhere, shown = steps(text)
    assert inline == Step(3, "One", "qos2 a", in_sentence=True)
    assert first == Step(5, "One", "first", ("1.5k packets ... bar ██░", "...", "end"))
    assert indented == Step(15, "One", "indented")
    assert (elsewhere.script, elsewhere.left_out) == ("elsewhere", "a reason")
    assert (shown.script, shown.left_out) == ("shown", "looks")
    assert sentences_without_commands(text) == {"not one"}
    assert first_missing(first.shown, "x\n 20 packets 3  bar █\nwhatever\nthe end") == ""
    assert first_missing(first.shown, "20 packets 3 bar █\nthe start") == "end"
    assert first_missing(first.shown, "no packets\nend") == first.shown[0]


@pytest.mark.parametrize("text", ["```text\nshown\n```\n", "```toml\nkey = 1\n```\n", "`qos2 a`\n\n```text\nx\n```\n"])
def test_a_block_that_is_neither_typed_nor_left_out_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        steps(text)
