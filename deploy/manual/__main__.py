"""Writes all pages, and the completion of each command, into a folder."""

import os
import sys
import time
from pathlib import Path

from manual import completion, configuration, pages
from manual.examples import EXAMPLES
from manual.grammar import Command, read
from qos2 import daemon
from qos2.cli import flow, main, run
from qos2.model import Shaping, TrafficType
from qos2.version import version

KINDS: completion.Kinds = {
    flow.flow_id: "@flow",
    run.traffic_type: " ".join(kind.label for kind in TrafficType),
    run.shaping: " ".join(kind.label for kind in Shaping),
}
CONFIGURATION = Path(__file__).resolve().parent.parent / "qos2d.toml"


def commands() -> tuple[Command, Command]:
    """The grammars of qos2 and qos2d."""
    return read(main.parser()), read(daemon.arguments())


def write(folder: Path) -> None:
    """`qos2-run.1` and so on, `qos2d.toml.5`, and `qos2.bash`."""
    folder.mkdir(parents=True, exist_ok=True)
    # Builds of the same sources have the same date (reproducible-builds.org).
    date = time.strftime("%Y-%m-%d", time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))))
    source = f"QoS2 {version()}"
    qos2, qos2d = commands()
    for command in (*qos2.walk(), *qos2d.walk()):
        number = pages.section_of(command.name)
        text = pages.page(command, EXAMPLES, date, source, ("qos2", "qos2d", "qos2d.toml"))
        (folder / f"{command.name}.{number}").write_text(text)
    (folder / "qos2d.toml.5").write_text(configuration.page(CONFIGURATION, date, source))
    for command in (qos2, qos2d):
        (folder / f"{command.name}.bash").write_text(completion.script(command, KINDS))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
