"""`qos2 check-config`: whether the daemon would take its configuration and its policy. Needs no daemon.

Reads as the daemon does, and changes nothing. What is wrong goes to stderr, a line each, as FILE:LINE: KEY: what it is.
"""

import sys
from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qos2.cli import render
from qos2.config import load
from qos2.errors import ConfigError
from qos2.policyfile import FOLDER, MAX_ENTRIES, PolicyError, entries_of, read_policy, warnings

CONFIG = Path("/etc/qos2/qos2d.toml")

Document = dict[str, Any]


def add_arguments(command: ArgumentParser) -> None:
    """Its options; where one is not given, what is not there is not wrong."""
    command.add_argument("--config", metavar="FILE", type=Path, help=f"default: {CONFIG}, if it is there")
    command.add_argument("--policy", metavar="FOLDER", type=Path, help=f"default: {FOLDER}, if it is there")
    command.add_argument("--json", action="store_true", help="one JSON document instead of text")


def execute(arguments: Namespace) -> int:
    """Check both, whatever the first says. Returns 1 where the daemon would refuse either."""
    config, policy = _config(arguments.config), _policy(arguments.policy)
    passed = config["ok"] and policy["ok"]
    if arguments.json:
        render.write_json(render.console(), {"ok": passed, "config": config, "policy": policy})
        return 0 if passed else 1
    for what in (config, policy):
        for error in what["errors"]:
            print(render.printable(error["text"]), file=sys.stderr)
        for warning in what.get("warnings", ()):
            print(f"warning: {render.printable(warning)}")
    for what, good in ((config, _good_config), (policy, _good_policy)):
        count = len(what["errors"])
        said = good(what) if what["ok"] else f"{count} error{'s' * (count != 1)}"
        print(f"{said}: {what['path']}")
    return 0 if passed else 1


def _config(given: Path | None) -> Document:
    path = given or CONFIG
    found: Document = {"path": str(path), "ok": True, "present": given is not None or path.exists(), "errors": []}
    try:
        load(path if found["present"] else None)
    except ConfigError as error:
        text = f"{error.message} ({error.hint})" if error.hint else error.message
        found |= {"ok": False, "errors": [{"text": text, "what": error.message, "hint": error.hint}]}
    return found


def _policy(given: Path | None) -> Document:
    folder = given or FOLDER
    found: Document = {"path": str(folder), "ok": True, "present": folder.is_dir(), "errors": []}
    if given is not None and not found["present"]:
        what = "is no folder" if folder.exists() else "there is no such folder"
        return found | {"ok": False, "errors": [{"text": f"{folder}: {what}", "what": what}]}
    try:
        policy = read_policy(folder)
    except PolicyError as error:
        return found | {"ok": False, "errors": [asdict(each) | {"text": str(each)} for each in error.problems]}
    return found | {
        "rules": len(policy.rules),
        "entries": sum(entries_of(rule.match) for rule in policy.rules),
        "warnings": list(warnings(policy)),
    }


def _good_config(config: Document) -> str:
    return "good" if config["present"] else "not there, all defaults"


def _good_policy(policy: Document) -> str:
    if not policy["present"]:
        return "not there, no rules"
    rules, entries = policy["rules"], policy["entries"]
    return f"good, {rules} rule{'s' * (rules != 1)} in {entries} of {MAX_ENTRIES} kernel entries"
