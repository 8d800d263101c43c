"""What is wrong in a policy file: one clear line for each thing, at its place, with what would be right."""

from pathlib import Path

import pytest

from qos2.policyfile import PolicyError, read_policy

RULE = '[[rule]]\nname = "one"\n'


def problems_of(folder: Path, text: str) -> list[tuple[int, str, str, str]]:
    """Line, key, what, hint of each problem of a file."""
    (folder / "one.toml").write_text(text)
    with pytest.raises(PolicyError) as refused:
        read_policy(folder)
    assert {problem.file for problem in refused.value.problems} == {str(folder / "one.toml")}
    return [(each.line, each.key, each.what, each.hint) for each in refused.value.problems]


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a = \n", 1, "Invalid value"),
        ('[[rule]]\nname = "a\n', 2, "Illegal character '\\n'"),
        ('[[rule]]\nname = "a"\nname = "b"\n', 3, "Cannot overwrite a value"),
        ("[[rule]]\nact = {a = 1", 2, "Unclosed inline table"),
        ("a = " + "[" * 100_000, 0, ""),
    ],
)
def test_what_is_no_toml_is_told_with_its_line(tmp_path: Path, text: str, line: int, what: str) -> None:
    ((found_line, key, found, _hint),) = problems_of(tmp_path, text)
    assert (found_line, key) == (line, "")
    assert found == (f"not TOML: {what}" if line else "is nested too deeply")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("rules = 1\n", (1, "rules", "unknown key", "a file has nothing but [[rule]] tables")),
        ('[rule]\nname = "a"\n', (1, "rule", "a rule begins with [[rule]], in two pairs of brackets", "")),
        ("[[rule]]\nact.dscp = 1\n", (1, "rule", "has no name", 'as in name = "calls"')),
        (RULE, (1, "rule", "does nothing", "act.exempt = true keeps later rules away")),
        (RULE + "act.deny = false\n", (3, "act", "does nothing", "act.exempt = true keeps later rules away")),
        (RULE + "act.dscp = 1\nmatch = 7\n", (4, "match", "expected keys below it", "as in match.unit = ...")),
        (RULE + "act = []\n", (3, "act", "expected keys below it", "as in act.traffic_type = ...")),
    ],
)
def test_what_is_no_rule_is_told(tmp_path: Path, text: str, problem: tuple[int, str, str, str]) -> None:
    assert problems_of(tmp_path, text) == [problem]


@pytest.mark.parametrize(
    ("key", "told", "hint"),
    [
        ("match.untis", "match.untis", 'did you mean "unit"?'),
        ("match.ports", "match.ports", "did you mean local_port or remote_port?"),
        ("match.rate", "match.rate", "did you mean act.rate?"),
        ("match.precedence", "match.precedence", "it belongs to the rule itself"),
        ("act.remote", "act.remote", "did you mean match.remote?"),
        ("unit", "unit", "did you mean match.unit?"),
        ("dscp", "dscp", "did you mean match.dscp or act.dscp?"),
        ("precedense", "precedense", 'did you mean "precedence"?'),
        ("zzz", "zzz", "known: name, precedence, match, act"),
    ],
)
def test_an_unknown_key_is_told_with_the_nearest(tmp_path: Path, key: str, told: str, hint: str) -> None:
    text = f"{RULE}act.priority = 1\n\n{key} = 1\n"
    assert problems_of(tmp_path, text) == [(5, told, "unknown key", hint)]


@pytest.mark.parametrize(
    ("key", "value", "what", "hint"),
    [
        ("name", "5", "expected text, not 5", 'as in name = "calls"'),
        ("name", '" a"', '" a" is empty, begins or ends with a space, or has unprintable characters', ""),
        ("name", f'"{"n" * 65}"', "a name has at most 64 characters, this one 65", ""),
        ("precedence", "256", "256 is not between 0 and 255", ""),
        ("precedence", "true", "expected a number from 0 to 255, not true", ""),
        ("match.unit", '"asterisk"',
         '"asterisk" is no unit that has processes: its name ends with .service, .scope, .slice, .socket, .mount, '
         ".swap",
         'did you mean "asterisk.service"?'),
        ("match.unit", '"a.timer"',
         '"a.timer" is no unit that has processes: its name ends with .service, .scope, .slice, .socket, .mount, .swap',
         ""),
        ("match.unit", '"app-*.service"', '"app-*.service": patterns are not understood',
         "a slice stands for all units in it"),
        ("match.unit", '"my-vpn@.service"', '"my-vpn@.service" is a template, which has no processes itself',
         "name one instance, or for all of them their slice 'system-my\\x2dvpn.slice'"),
        ("match.cgroup", '"/sys/fs/cgroup/user.slice"',
         '"/sys/fs/cgroup/user.slice": a cgroup\'s path begins below the mount', 'did you mean "/user.slice"?'),
        ("match.cgroup", '"user.slice"',
         '"user.slice" is no path of a cgroup: it begins with "/", without "." and ".." in it', ""),
        ("match.cgroup", '"/a/../b"',
         '"/a/../b" is no path of a cgroup: it begins with "/", without "." and ".." in it', ""),
        ("match.user", '"roott"', 'there is no user "roott"', 'did you mean "root"?'),
        ("match.user", '"1234567"', 'there is no user "1234567"', "a uid is a number: 1234567"),
        ("match.user", '"zzzzzzzzz"', 'there is no user "zzzzzzzzz"',
         "a uid does where the name is not known on this host"),
        ("match.user", "4294967295", "4294967295 is not between 0 and 4294967294", ""),
        ("match.executable", '"rsync"', '"rsync" is no absolute path of a file', "as in /usr/bin/rsync"),
        ("match.protocol", '"upd"', '"upd" is none of tcp, udp', 'did you mean "udp"?'),
        ("match.protocol", "17", "17 is none of tcp, udp", ""),
        ("match.local", '"2001:db8::1/32"', '"2001:db8::1/32" has host bits set',
         '"2001:db8::/32" or the one address "2001:db8::1"'),
        ("match.remote", '"fe80::1%eth0"', '"fe80::1%eth0" has a device in it', "name that with match.device"),
        ("match.remote", '"::ffff:10.0.0.1"', '"::ffff:10.0.0.1" is an IPv4 address in IPv6 clothes',
         'did you mean "10.0.0.1"?'),
        ("match.remote", '"::ffff:10.0.0.0/104"', '"::ffff:10.0.0.0/104" is an IPv4 address in IPv6 clothes',
         'did you mean "10.0.0.0/8"?'),
        ("match.remote", '"10.0.0.256"',
         '"10.0.0.256" is no address and no prefix such as 192.0.2.0/24 or 2001:db8::/32', ""),
        ("match.remote", "[]", "an empty list would match nothing", "without the key, anything matches"),
        ("match.local_port", "0", "0 is not between 1 and 65535", ""),
        ("match.local_port", '"http"', '"http" is no port and no range such as "16384-32767"', ""),
        ("match.local_port", '"20-10"', '"20-10" is no range of ports', 'did you mean "10-20"?'),
        ("match.local_port", '"10:20"', '"10:20" is no range of ports', 'did you mean "10-20"?'),
        ("match.local_port", '"1-99999"', "99999 is not between 1 and 65535", ""),
        ("match.device", '"much_too_long_name"', '"much_too_long_name" cannot be the name of a network device', ""),
        ("match.namespace", '"/run/netns/blue"', '"/run/netns/blue" is no name of ip-netns(8)',
         'a name in /run/netns, or "host"'),
        ("match.dscp", "64", "64 is not between 0 and 63", ""),
        ("match.dscp", '"AF51"', '"AF51" is no DSCP', "a number from 0 to 63, or a name such as AF31, CS5, EF"),
        ("match.traffic", '"forward"', '"forward" is none of local, forwarded, any', 'did you mean "forwarded"?'),
        ("match.traffic", '["local"]', "a list is none of local, forwarded, any", ""),
        ("act.traffic_type", '"vioce"',
         '"vioce" is none of best_effort, background, excellent_effort, audio_video, voice, control',
         'did you mean "voice"?'),
        ("act.rate", "7999", "7999 is not between 8000 and 400000000000", ""),
        ("act.rate", '"401G"', "401G is not between 8k and 400G bits per second", ""),
        ("act.rate", '"20 Mbit/s"', "'20 Mbit/s' is no rate such as 64k, 20M or 1.5G (bits per second)",
         'did you mean "20M"?'),
        ("act.rate", "1.5", "expected a number from 8000 to 400000000000, not 1.5", ""),
        ("act.priority", "8", "8 is not between 0 and 7", ""),
        ("act.deny", '"yes"', 'expected true or false, not "yes"', ""),
    ],
)  # fmt: skip
def test_a_wrong_value_is_told_with_what_would_be_right(
    tmp_path: Path, key: str, value: str, what: str, hint: str
) -> None:
    named = "" if key == "name" else 'name = "one"\n'
    act = "act.dscp = 1\n" if key == "act.priority" else "act.priority = 1\n"
    text = f"[[rule]]\n{named}{act}"
    assert problems_of(tmp_path, f"{text}{key} = {value}\n") == [(text.count("\n") + 1, key, what, hint)]


def test_each_wrong_element_of_a_list_is_told_at_its_line(tmp_path: Path) -> None:
    text = RULE + 'act.dscp = 1\nmatch.remote_port = [\n  443, # web\n  0,\n  "443",\n  "x",\n]\n'
    assert [(line, what) for line, _key, what, _hint in problems_of(tmp_path, text)] == [
        (6, "0 is not between 1 and 65535"),
        (7, '"443" is named twice'),
        (8, '"x" is no port and no range such as "16384-32767"'),
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("act.deny = true\nact.dscp = 1\n", (4, "act.dscp", "has no place beside act.deny", "act.deny stands alone")),
        ("act.deny = true\nact.exempt = true\n",
         (4, "act.exempt", "has no place beside act.deny", "act.deny stands alone")),
        ('act.rate = "8k"\nact.exempt = true\n',
         (3, "act.rate", "has no place beside act.exempt", "act.exempt stands alone")),
        ("act.ceiling = true\n", (3, "act.ceiling", "says nothing without act.rate", "")),
        ('act.dscp = 1\nact.bucket = "host"\n', (4, "act.bucket", "says nothing without act.rate", "")),
        ('act.dscp = 1\nact.shaping = "shape_only"\n', (4, "act.shaping", "says nothing without act.rate", "")),
        ('act.traffic_type = "voice"\nact.dscp = 1\n',
         (4, "act.dscp", "has no place beside act.traffic_type", "a traffic type has a DSCP of its own")),
        ('match.traffic = "forwarded"\nact.deny = true\n',
         (4, "act.deny", "is about sockets of this host, and forwarded packets have none", "")),
        ('match.traffic = "forwarded"\nmatch.user = 0\nact.dscp = 1\n',
         (4, "match.user", "forwarded packets have no owner on this host",
          "leave match.traffic out, or make two rules of it")),
        ('match.traffic = "any"\nmatch.unit = "a.service"\nact.dscp = 1\n',
         (4, "match.unit", "forwarded packets have no owner on this host",
          "leave match.traffic out, or make two rules of it")),
        ('match.local = "192.0.2.0/24"\nmatch.remote = ["2001:db8::/32", "::1"]\nact.dscp = 1\n',
         (4, "match.remote", "has no address of the family of match.local, so nothing matches", "")),
        ('match.traffic = "forwarded"\nact.rate = "8k"\nact.ceiling = true\n',
         (5, "act.ceiling", "is about sockets of this host, and forwarded packets have none", "")),
        ('match.traffic = "forwarded"\nact.rate = "8k"\nact.bucket = "socket"\n',
         (5, "act.bucket", "is about sockets of this host, and forwarded packets have none", "")),
    ],
)  # fmt: skip
def test_contradictions_are_told(tmp_path: Path, text: str, problem: tuple[int, str, str, str]) -> None:
    assert problems_of(tmp_path, RULE + text) == [problem]
