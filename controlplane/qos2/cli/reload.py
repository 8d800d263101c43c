"""`qos2 reload`: the daemon reads the administrator's policy anew."""

from argparse import Namespace

from rich.console import Console

from qos2.cli import render
from qos2.cli.ports import Client


def execute(qos: Client, arguments: Namespace, out: Console) -> int:
    """Say what is in force now; what is wrong is raised, and the policy so far stays in force."""
    loaded = qos.reload()
    if arguments.json:
        document = {"generation": loaded.generation, "rules": loaded.rules, "warnings": loaded.warnings}
        render.write_json(out, document)
        return 0
    rules = f"{loaded.rules} rule{'' if loaded.rules == 1 else 's'}"
    out.print(f"the policy is in force: {rules}, generation {loaded.generation}")
    for each in loaded.warnings:
        out.print(f"warning: {render.printable(each)}")
    return 0
