"""The layers of the package, read from its syntax trees: imports go downwards only.

    model, errors  ->  core | wire  ->  clients  ->  edges  ->  daemon, cli

Core and wire do not know each other, nor do the edges. A new module belongs in LAYERS.
"""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import qos2

PACKAGE = Path(qos2.__file__).parent

#: From below to above. Each layer is a list of groups; modules of one group may import each other.
LAYERS: list[list[set[str]]] = [
    [{"model", "errors"}, {"version"}],
    [{"core"}, {"wire"}],
    [{"client", "channel", "aio", "win32", ""}],  # "": the package itself, which re-exports the clients' names
    [
        {"server", "session", "sockets", "listener", "inbox", "activation", "owner", "policyreplies", "units"},
        {"exporter", "metrics"},
        {"config", "policies", "policyfile", "policykeys", "tomlpositions"},
        {"datapath"},
        {"paths"},
    ],
    [{"daemon", "runtime", "supervisor", "chronicle", "logs"}, {"cli"}],
]

#: Libraries that are kept to the modules named.
WRAPPED = {
    "bcc": {"datapath.loader"},
    "pyroute2": {"datapath.rtnl"},
    "prometheus_client": {"exporter", "metrics"},
    "rich": {"cli"},
}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if "bpf" not in path.relative_to(PACKAGE).parts]


def name_of(path: Path) -> str:
    """Below the package, as `datapath.maps`; "" for the package itself."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Full names of what a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def place(name: str) -> tuple[int, int]:
    """Layer and group of a module of the package, by its first part."""
    first = name.partition(".")[0]
    for layer, groups in enumerate(LAYERS):
        for number, group in enumerate(groups):
            if first in group:
                return layer, number
    raise AssertionError(f"qos2.{name} has no layer: add it to LAYERS")


def within(name: str, places: set[str]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in places)


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_from_its_own_group_or_from_below(path: Path) -> None:
    name = name_of(path)
    layer, group = place(name)
    for imported in imports(path):
        package, _, below = imported.partition(".")
        if package != "qos2":
            continue
        # `from qos2 import X`: a module, or a name that the package re-exports.
        first = below.partition(".")[0]
        is_module = (PACKAGE / first).is_dir() or (PACKAGE / f"{first}.py").is_file()
        other_layer, other_group = place(below if is_module else "")
        same_group = (other_layer, other_group) == (layer, group)
        assert same_group or other_layer < layer, f"qos2.{name} imports {imported}"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_library_is_imported_where_it_is_wrapped_and_nowhere_else(path: Path) -> None:
    name = name_of(path)
    for imported in imports(path):
        library = imported.partition(".")[0]
        if library in WRAPPED:
            assert within(name, WRAPPED[library]), f"qos2.{name} imports {library}"


def test_core_and_wire_read_no_clock_and_do_no_io() -> None:
    for path in modules():
        if within(name_of(path), {"core", "wire", "model", "errors"}):
            found = {imported.partition(".")[0] for imported in imports(path)}
            # AF_INET6 is a number, and core compares it: from the module `socket` nothing else.
            forbidden = {"os", "time", "asyncio", "threading", "subprocess", "select", "ctypes", "logging"}
            assert not found & forbidden, f"{path} imports {found & forbidden}"
            assert {each for each in imports(path) if each.startswith("socket")} <= {
                "socket.AF_INET",
                "socket.AF_INET6",
            }


def test_an_application_loads_nothing_of_the_daemon() -> None:
    code = "import sys, qos2; print(*sorted(sys.modules))"
    environment = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    loaded = set(run.stdout.split())
    assert not loaded & {"bcc", "pyroute2", "prometheus_client", "numpy", "rich", "asyncio", "ctypes"}
    assert {each for each in loaded if each.partition(".")[0] == "qos2"} == {
        "qos2",
        "qos2.channel",
        "qos2.channel.forks",
        "qos2.channel.helper",
        "qos2.channel.link",
        "qos2.channel.operation",
        "qos2.channel.pending",
        "qos2.channel.timeouts",
        "qos2.channel.transport",
        "qos2.channel.turns",
        "qos2.channel.verdicts",
        "qos2.client",
        "qos2.errors",
        "qos2.model",
        "qos2.wire",
        "qos2.wire.calls",
        "qos2.wire.connection",
        "qos2.wire.protocol",
        "qos2.wire.requests",
        "qos2.wire.results",
        "qos2.wire.vigil",
    }
