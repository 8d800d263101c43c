"""docs/policy.md: its examples are policies, and decide as it says; its tables name every key."""

import re
import shlex
from ipaddress import ip_address
from pathlib import Path
from typing import NamedTuple

import pytest

from qos2.cli.main import parser
from qos2.core.policy import Connection, Policy
from qos2.core.priorities import TYPE_DSCP
from qos2.model import Dscp, TrafficType, Transport
from qos2.policyfile import MAX_ENTRIES, MAX_POOLS, MAX_RULES, read_policy, warnings
from qos2.policykeys import ACT, MATCH

DOCUMENT = Path(__file__).parents[2] / "docs" / "policy.md"
TEXT = DOCUMENT.read_text()


class Example(NamedTuple):
    """A policy, and the connections that are tried on it with the rule that decides each; "none" for no rule."""

    policy: str
    tried: tuple[tuple[str, str], ...]


def examples() -> list[Example]:
    found: list[Example] = []
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL):
        if kind == "toml":
            found.append(Example(block, ()))
        else:
            assert kind == "console", f"a block of {kind} that no test tries"
            lines = [re.fullmatch(r"\$ (qos2 policy test .*?)\s+# (.*)", line) for line in block.splitlines()]
            assert all(lines), block
            found[-1] = found[-1]._replace(tried=tuple((line[1], line[2]) for line in lines if line))
    return found


def connection(command: str) -> Connection:
    """What a command line describes, as the daemon is asked."""
    given = parser().parse_args(shlex.split(command)[1:])
    return Connection(
        unit=given.unit,
        cgroup=given.cgroup,
        uid=given.user,
        executable=given.executable,
        protocol=Transport(given.protocol) if given.protocol else None,
        local=ip_address(given.local) if given.local else None,
        local_port=given.local_port,
        remote=ip_address(given.remote) if given.remote else None,
        remote_port=given.remote_port,
        device=given.device,
        namespace=given.namespace,
        dscp=None if given.dscp is None else Dscp(given.dscp),
        forwarded=given.forwarded,
    )


@pytest.mark.parametrize("example", examples(), ids=lambda example: re.findall('"(.*?)"', example.policy)[0])
def test_an_example_is_a_good_policy_and_decides_as_it_says(tmp_path: Path, example: Example) -> None:
    (tmp_path / "example.toml").write_text(example.policy)
    policy = read_policy(tmp_path)
    assert policy.rules
    assert warnings(policy) == ()
    decided = [(command, _name(policy, command)) for command, _ in example.tried]
    assert decided == list(example.tried)


def _name(policy: Policy, command: str) -> str:
    found = policy.find(connection(command))
    return "none" if found is None else found.name


def test_most_examples_are_tried() -> None:
    assert len(examples()) == 7
    assert [bool(example.tried) for example in examples()] == [False] + [True] * 6
    assert sum(len(example.tried) for example in examples()) == 18


def keys(table: str) -> list[str]:
    """The keys in the first column of one of the reference's tables."""
    (body,) = re.findall(rf"^\| key of `{table}` \|.*?\n\n", TEXT, re.MULTILINE | re.DOTALL)
    return [key for row in body.strip().splitlines()[2:] for key in re.findall(r"`(\w+)`", row.split("|")[1])]


def test_the_tables_have_every_key_and_no_other() -> None:
    assert sorted(keys("match")) == sorted([*MATCH, "traffic"])
    assert sorted(keys("act")) == sorted(ACT)


def test_the_traffic_types_have_their_dscps() -> None:
    (row,) = re.findall(r"^\| `traffic_type` .*$", TEXT, re.MULTILINE)
    told = {word: int(number) for word, number in re.findall(r"`(\w+)` (\d+)", row)}
    assert told == {kind.label: TYPE_DSCP[kind] for kind in TrafficType}


def test_the_limits_are_those_of_the_program() -> None:
    limits = TEXT.partition("## Limits")[2]
    assert [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*\d", limits)][:3] == [
        MAX_RULES,
        MAX_POOLS,
        MAX_ENTRIES,
    ]
