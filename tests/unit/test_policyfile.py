"""Policy files: what they may say, and one clear line for each thing that is wrong."""

import os
import pwd
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from qos2.core.policy import Connection, Policy
from qos2.core.rule import Act, Bucket, Match, PortRange, Rule, Traffic
from qos2.errors import ConfigError
from qos2.model import MAX_BANDWIDTH, Bandwidth, Dscp, Shaping, TrafficType, Transport
from qos2.policyfile import MAX_ENTRIES, MAX_POOLS, MAX_RULES, PolicyError, Problem, entries_of, read_policy, warnings

EXAMPLES = Path(__file__).parents[2] / "deploy" / "policy.d"

RULE = '[[rule]]\nname = "one"\n'
EVERYTHING = """
[[rule]]
name = "everything"
precedence = 200
match.unit = "asterisk.service"
match.cgroup = ["/user.slice/user-1000.slice/", "/"]
match.user = [1000, "root"]
match.executable = "/proc/self"
match.protocol = "udp"
match.local = ["192.0.2.0/24", "2001:db8::/32", "192.0.2.7"]
match.remote = "0.0.0.0/0"
match.local_port = [5004, "16384-32767", "7"]
match.remote_port = 443
match.device = "eth0"
match.namespace = ["blue", "host"]
match.dscp = [0, "ef"]
act.dscp = "AF31"
act.rate = "1.5G"
act.shaping = "use-non-conformant-markings"
act.bucket = "host"
act.priority = 5
act.ceiling = true
"""


def written(folder: Path, **texts: str) -> Path:
    for name, text in texts.items():
        (folder / f"{name}.toml").write_text(text)
    return folder


def rule_of(folder: Path, text: str) -> Rule:
    """The one rule of a file that has these lines below its name."""
    (rule,) = read_policy(written(folder, one=RULE + text)).rules
    return rule


def test_every_key_is_read(tmp_path: Path) -> None:
    (rule,) = read_policy(written(tmp_path, a=EVERYTHING)).rules
    assert rule == Rule(
        "everything",
        Match(
            units=("asterisk.service",),
            cgroups=("/user.slice/user-1000.slice", "/"),
            users=(1000, 0),
            executables=(f"/proc/{os.getpid()}",),
            protocols=(Transport.UDP,),
            local=(ip_network("192.0.2.0/24"), ip_network("2001:db8::/32"), ip_network("192.0.2.7/32")),
            remote=(ip_network("0.0.0.0/0"),),
            local_ports=(PortRange(5004, 5004), PortRange(16_384, 32_767), PortRange(7, 7)),
            remote_ports=(PortRange(443, 443),),
            devices=("eth0",),
            namespaces=("blue", "host"),
            dscps=(Dscp(0), Dscp(46)),
        ),
        Act(
            dscp=Dscp(26),
            rate=Bandwidth(1_500_000_000),
            shaping=Shaping.USE_NON_CONFORMANT_MARKINGS,
            bucket=Bucket.HOST,
            priority=5,
            ceiling=True,
        ),
        200,
    )
    assert (rule.file, rule.line) == (str(tmp_path / "a.toml"), 2)


@pytest.mark.parametrize(
    "text",
    [
        'match = { unit = ["a.service"], remote_port = 443 }\nact = { rate = 8000, traffic_type = "audio_video" }\n',
        'match.unit = "a.service"\nmatch.remote_port = "443"\nact.rate = "8k"\nact.traffic_type = "Audio-Video"\n',
        '[rule.match]\nunit = "a.service"\nremote_port = 443\n'
        '[rule.act]\nrate = "0.008M"\ntraffic_type = "audio_video"\n',
    ],
)
def test_tables_may_be_written_in_any_way_of_the_language(tmp_path: Path, text: str) -> None:
    match = Match(units=("a.service",), remote_ports=(PortRange(443, 443),))
    assert rule_of(tmp_path, text) == Rule(
        "one", match, Act(traffic_type=TrafficType.AUDIO_VIDEO, rate=Bandwidth(8000))
    )


@pytest.mark.parametrize(
    ("text", "act"),
    [
        ("act.deny = true\n", Act(deny=True)),
        ("act.exempt = true\nact.deny = false\nact.ceiling = false\n", Act(exempt=True)),
        (f"act.rate = {MAX_BANDWIDTH}\n", Act(rate=MAX_BANDWIDTH)),
        ('act.dscp = 0\nact.shaping = "shape_only"\nact.rate = "64k"\n',
         Act(dscp=Dscp(0), shaping=Shaping.SHAPE_ONLY, rate=Bandwidth(64_000))),
        ("act.priority = 0\n", Act(priority=0)),
    ],
)  # fmt: skip
def test_what_stands_alone_may_stand_alone(tmp_path: Path, text: str, act: Act) -> None:
    assert rule_of(tmp_path, text) == Rule("one", Match(), act)


@pytest.mark.parametrize("text", ['match.traffic = "forwarded"\n', 'match = {traffic = "forwarded"}\n'])
def test_forwarded_packets_may_be_matched_by_what_they_have(tmp_path: Path, text: str) -> None:
    assert rule_of(tmp_path, f"{text}act.priority = 1\n").match == Match(traffic=Traffic.FORWARDED)


def test_a_user_is_one_of_this_host(tmp_path: Path) -> None:
    user = pwd.getpwall()[-1]
    assert rule_of(tmp_path, f'match.user = "{user.pw_name}"\nact.dscp = 1').match.users == (user.pw_uid,)


def test_an_executable_is_the_file_that_a_link_leads_to(tmp_path: Path) -> None:
    (tmp_path / "python").symlink_to("python3.11")
    found = rule_of(tmp_path, f'match.executable = "{tmp_path}/python"\nact.dscp = 1')
    assert found.match.executables == (f"{tmp_path}/python3.11",)


def test_files_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        **{
            "20-b": '[[rule]]\nname = "c"\nact.dscp = 1\n',
            "10-a": '[[rule]]\nname = "z"\nact.dscp = 1\n\n[[rule]]\nname = "a"\nact.dscp = 2\n',
        },
    )
    (folder / "05.toml.example").write_text("no TOML")
    (folder / ".10-a.toml.swp").write_text("no TOML")
    (folder / ".hidden.toml").write_text("no TOML")
    found = [(rule.name, Path(rule.file).name, rule.line) for rule in read_policy(folder).rules]
    assert found == [("z", "10-a.toml", 1), ("a", "10-a.toml", 5), ("c", "20-b.toml", 1)]


def test_no_folder_and_no_rule_is_an_empty_policy(tmp_path: Path) -> None:
    assert read_policy(tmp_path / "none").rules == ()
    assert read_policy(tmp_path).rules == ()
    assert read_policy(written(tmp_path, a="# nothing\n", b="rule = []\n")).rules == ()


def test_all_errors_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    folder = written(
        tmp_path,
        b='[[rule]]\nname = "b"\nact.rate = "20Mbit"\nmatch.remote = [\n  "10.0.0.1/8",\n  "x",\n]\n',
        a='[[rule]\nname = "a"\n',
        c='[[rule]]\nname = "c"\nact.dscp = 1\n',
    )
    with pytest.raises(ConfigError) as refused:
        read_policy(folder)
    assert refused.value.message.splitlines() == [
        f"{folder}/a.toml:1: not TOML: Expected ']]' at the end of an array declaration",
        f"{folder}/b.toml:3: act.rate: '20Mbit' is no rate such as 64k, 20M or 1.5G (bits per second)"
        ' (did you mean "20M"?)',
        f'{folder}/b.toml:5: match.remote: "10.0.0.1/8" has host bits set ("10.0.0.0/8" or the one address "10.0.0.1")',
        f'{folder}/b.toml:6: match.remote: "x" is no address and no prefix such as 192.0.2.0/24 or 2001:db8::/32'
        " (names are not looked up: what they mean would change)",
    ]
    assert refused.value.hint == ""


def test_files_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "a.toml").mkdir()
    (tmp_path / "b.toml").write_bytes(b"# \xff")
    with pytest.raises(PolicyError) as refused:
        read_policy(tmp_path)
    assert refused.value.message.splitlines() == [
        f"{tmp_path}/a.toml: cannot be read: Is a directory",
        f"{tmp_path}/b.toml: is not UTF-8: invalid start byte at byte 2",
    ]
    with pytest.raises(PolicyError) as refused:
        read_policy(tmp_path / "b.toml")
    assert refused.value.message == f"{tmp_path}/b.toml: cannot be read: Not a directory"


def test_a_name_is_unique_over_all_files(tmp_path: Path) -> None:
    folder = written(tmp_path, a=RULE + "act.dscp = 1\n", b="\n" + RULE + "act.dscp = 2\n")
    with pytest.raises(PolicyError) as refused:
        read_policy(folder)
    assert refused.value.problems == (
        Problem(
            f"{folder}/b.toml", 2, "name", f'"one" is the name of the rule at {folder}/a.toml:1 too',
            "names are unique over all files",
        ),
    )  # fmt: skip


def test_of_one_name_the_first_file_has_it(tmp_path: Path) -> None:
    folder = written(tmp_path, **{name: RULE + "act.dscp = 1\n" for name in "dgbhafce"})
    with pytest.raises(PolicyError) as refused:
        read_policy(folder)
    taken = [(Path(problem.file).name, f"{folder}/a.toml:1" in problem.what) for problem in refused.value.problems]
    assert taken == [(f"{name}.toml", True) for name in "bcdefgh"]


def many(count: int, text: str = "act.dscp = 1\n") -> str:
    return "".join(f'[[rule]]\nname = "{number}"\n{text}' for number in range(count))


def test_there_may_be_so_many_rules_and_no_more(tmp_path: Path) -> None:
    assert len(read_policy(written(tmp_path, a=many(MAX_RULES))).rules) == MAX_RULES == 1024
    with pytest.raises(PolicyError) as refused:
        read_policy(written(tmp_path, a=many(MAX_RULES + 2)))
    assert refused.value.message == f"{tmp_path}/a.toml:{3 * MAX_RULES + 1}: rule: there are more than 1024 rules"


def test_so_many_combinations_may_be_matched_and_no_more(tmp_path: Path) -> None:
    ports = f"act.dscp = 1\nmatch.remote_port = {list(range(1, 65))}\n"
    assert len(read_policy(written(tmp_path, a=many(64, ports))).rules) * 64 == MAX_ENTRIES == 4096
    with pytest.raises(PolicyError) as refused:
        read_policy(written(tmp_path, a=many(66, ports)))
    assert refused.value.message == (
        f"{tmp_path}/a.toml:257: match: up to this rule, 4160 combinations of alternatives are matched; 4096 are"
        " possible (use wider prefixes, ranges and slices)"
    )


def test_so_many_rules_may_have_a_bucket_for_each(tmp_path: Path) -> None:
    each, shared = 'act.rate = "1M"\nact.bucket = "host"\n', 'act.rate = "1M"\nact.bucket = "shared"\n'
    assert len(read_policy(written(tmp_path, a=many(MAX_POOLS, each))).rules) == MAX_POOLS == 256
    text = many(MAX_POOLS + 2, each) + "".join(f'[[rule]]\nname = "shared {n}"\n{shared}' for n in range(9))
    with pytest.raises(PolicyError) as refused:
        read_policy(written(tmp_path, a=text))
    assert refused.value.message == (
        f"{tmp_path}/a.toml:{4 * MAX_POOLS + 1}: act.bucket: more than 256 rules have a bucket for each socket or host"
    )


@pytest.mark.parametrize(
    ("match", "entries"),
    [
        (Match(), 1),
        (Match(units=("a.service", "b.service"), users=(1, 2, 3)), 6),
        (Match(remote=(ip_network("10.0.0.0/8"), ip_network("::/0"))), 2),
        (Match(local=(ip_network("10.0.0.0/8"), ip_network("::/0")), remote=(ip_network("10.0.0.0/8"),)), 1),
        (Match(local=(ip_network("10.0.0.0/8"),), remote=(ip_network("::/0"),)), 0),
    ],
)
def test_entries_are_combinations_within_one_family(match: Match, entries: int) -> None:
    assert entries_of(match) == entries


def test_warnings_name_rules_and_where_they_stand(tmp_path: Path) -> None:
    script = tmp_path / "backup"
    script.write_text("#!/usr/bin/python3 -u\n")
    folder = written(
        tmp_path,
        a='[[rule]]\nname = "all"\nprecedence = 200\nact.dscp = 1\n\n'
        '[[rule]]\nname = "web"\nmatch.remote_port = 443\nact.dscp = 2\n',
        b='[[rule]]\nname = "x"\nprecedence = 255\nmatch.device = ["eth0", "eth1"]\nact.dscp = 3\n'
        '[[rule]]\nname = "y"\nprecedence = 255\nmatch.device = ["eth1", "eth2"]\nact.dscp = 4\n',
        c='[[rule]]\nname = "s"\nprecedence = 255\nact.dscp = 5\n'
        f'match.executable = ["{script}", "{script}2", "/usr/bin/env"]\n',
    )  # fmt: skip
    assert warnings(read_policy(folder)) == (
        f"{folder}/a.toml:6: rule web: can never act: all that it matches meets all (a.toml:1) before",
        f"{folder}/b.toml:6: rule y: decides after x (b.toml:1) only by where it stands: both may match, and neither is"
        " more specific (give one a precedence)",
        f"{folder}/c.toml:1: rule s: match.executable: {script} is a script: its processes run /usr/bin/python3"
        " (name its unit)",
        f"{folder}/c.toml:1: rule s: match.executable: there is no {script}2 on this host",
    )


def test_a_good_policy_has_no_warnings() -> None:
    assert warnings(Policy([])) == ()


@pytest.fixture
def examples(tmp_path: Path) -> Policy:
    """All shipped examples together, as an administrator would put them to use."""
    shipped = sorted(EXAMPLES.glob("*.toml.example"))
    assert [each.name for each in shipped] == [
        "10-calls.toml.example", "20-service-af31.toml.example", "30-per-host.toml.example", "40-users.toml.example",
        "50-deny.toml.example", "60-router.toml.example",
    ]  # fmt: skip
    for each in shipped:
        (tmp_path / each.stem).write_text(each.read_text())
    policy = read_policy(tmp_path)
    assert warnings(policy) == ()
    return policy


ORDERS = "/system.slice/orders.service"
GUEST = "/user.slice/user-1999.slice/session-3.scope"


@pytest.mark.parametrize(
    ("connection", "name", "act"),
    [
        (Connection(cgroup="/system.slice/asterisk.service", protocol=Transport.UDP), "calls",
         Act(traffic_type=TrafficType.VOICE)),
        (Connection(cgroup="/system.slice/asterisk.service", protocol=Transport.TCP), "call signalling",
         Act(traffic_type=TrafficType.CONTROL)),
        (Connection(cgroup="/system.slice/borgmatic.service/ssh"), "backup",
         Act(traffic_type=TrafficType.BACKGROUND, rate=Bandwidth(40_000_000))),
        (Connection(cgroup=ORDERS), "orders", Act(dscp=Dscp(26), rate=Bandwidth(200_000_000))),
        (Connection(cgroup=ORDERS, remote=ip_address("10.1.2.3"), local_port=8081), "orders, health checks",
         Act(exempt=True)),
        (Connection(cgroup="/system.slice/nginx.service", local_port=443), "mirror",
         Act(traffic_type=TrafficType.BACKGROUND, rate=Bandwidth(50_000_000), bucket=Bucket.HOST)),
        (Connection(cgroup="/user.slice/user-1000.slice/session-1.scope"), "users, at most",
         Act(rate=Bandwidth(100_000_000), ceiling=True, bucket=Bucket.SOCKET)),
        (Connection(cgroup=GUEST, dscp=Dscp(0)), "guests", Act(traffic_type=TrafficType.BACKGROUND)),
        (Connection(cgroup=GUEST, dscp=Dscp(0), remote_port=443), "guests, web", Act(exempt=True)),
        (Connection(cgroup=GUEST, dscp=Dscp(46)), "users, at most",
         Act(rate=Bandwidth(100_000_000), ceiling=True, bucket=Bucket.SOCKET)),
        (Connection(cgroup="/system.slice/system-buildworker.slice/buildworker@3.service"),
         "no marks for the build farm", Act(deny=True)),
        (Connection(cgroup=ORDERS, remote=ip_address("2001:db8:ffff::1")), "no marks towards the carrier",
         Act(deny=True)),
        (Connection(forwarded=True, local=ip_address("192.0.2.130"), protocol=Transport.UDP, local_port=20_000,
                    device="wan0"), "telephones", Act(dscp=Dscp(46), priority=5)),
        (Connection(forwarded=True, local=ip_address("2001:db8:0:6::9")), "guest network",
         Act(traffic_type=TrafficType.BACKGROUND, rate=Bandwidth(20_000_000), bucket=Bucket.HOST)),
        (Connection(cgroup="/system.slice/cron.service", uid=0, remote=ip_address("192.0.2.1"), remote_port=443), "",
         None),
    ],
)  # fmt: skip
def test_the_shipped_examples_do_what_they_say(
    examples: Policy, connection: Connection, name: str, act: Act | None
) -> None:
    found = examples.find(connection)
    assert (found.name if found else "", found.act if found else None) == (name, act)
