"""The recipe of the image, as far as nothing need be built: it agrees with `./dev`, pyproject.toml and the checkout.

deploy/container/build.sh builds it; docs/kubernetes.md says how that was tried.
"""

import re
import shlex
import subprocess
import tomllib
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from qos2.cli.main import parser
from qos2.datapath.loader import find_headers
from unit.native import REPOSITORY, tool

FOLDER = REPOSITORY / "deploy" / "container"
RECIPE = (FOLDER / "Containerfile").read_text()
INSTALL = (FOLDER / "install.sh").read_text()
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def stages() -> dict[str, list[tuple[str, str]]]:
    """(instruction, arguments) by name of the stage; "" is before the first, "image" the last."""
    found: dict[str, list[tuple[str, str]]] = {"": []}
    current = ""
    text = "\n".join(line for line in RECIPE.splitlines() if not line.lstrip().startswith("#"))
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, arguments = line.strip().partition(" ")
        if instruction == "FROM":
            current = arguments.partition(" AS ")[2] or "image"
            found[current] = []
        if instruction:
            found[current].append((instruction, " ".join(arguments.split())))
    return found


STAGES = stages()


def packages(stage: str) -> set[str]:
    """What a stage installs by apt-get."""
    runs = [text for instruction, text in STAGES[stage] if instruction == "RUN" and "apt-get install" in text]
    installs = [command for run in runs for command in run.split("&&") if "apt-get install" in command]
    return {word for command in installs for word in shlex.split(command.partition("install")[2]) if word[0] != "-"}


def words_of(array: str, script: str) -> list[str]:
    """The words of a bash array that is a constant."""
    (words,) = re.findall(rf"^readonly {array}=\((.*?)\)", script, re.MULTILINE | re.DOTALL)
    return shlex.split(words)


def runtime_projects() -> set[str]:
    """What the daemon and the command need of other projects, as those that are installed here say."""
    wanted = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["daemon"]]
    found: set[str] = set()
    while wanted:
        requirement = Requirement(wanted.pop())
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        wanted += metadata.requires(name) or []
    return found


def test_every_stage_is_on_the_base_that_may_be_chosen() -> None:
    assert list(STAGES) == ["", "headers", "package", "image"]
    assert STAGES[""] == [("ARG", "BASE=docker.io/library/debian:bookworm-slim")]
    assert {STAGES[stage][0][1].partition(" AS ")[0] for stage in ("headers", "package", "image")} == {"${BASE}"}


def test_the_packages_are_those_that_dev_installs_to_run() -> None:
    wanted = set(words_of("RUN_PACKAGES", (REPOSITORY / "dev").read_text()))
    (left_out,) = re.findall(r"\(RUN_PACKAGES\) without: (.*?), which", RECIPE)
    assert packages("image") | packages("package") == wanted - set(left_out.split(" and "))
    assert set(left_out.split(" and ")) < wanted
    assert packages("image") == {"iproute2", "libbpf1", "python3", "python3-bpfcc"}
    assert packages("headers") == {"linux-headers-$(dpkg --print-architecture)"}


def test_nothing_more_is_installed_than_named_and_no_lists_stay_in_the_image() -> None:
    runs = [(stage, text) for stage in STAGES for instruction, text in STAGES[stage] if instruction == "RUN"]
    installing = [(stage, text) for stage, text in runs if "apt-get install" in text]
    assert [stage for stage, _ in installing] == ["headers", "package", "image"]
    for _, text in installing:
        assert text.startswith("apt-get update && ")
        assert "apt-get install -y --no-install-recommends " in text
    assert installing[-1][1].endswith("&& rm -rf /var/lib/apt/lists/*")


def test_the_image_holds_what_the_daemon_needs_and_nothing_for_tests() -> None:
    assert words_of("RUNTIME", INSTALL) == sorted(runtime_projects())


@pytest.mark.parametrize("project", [*words_of("RUNTIME", INSTALL), *words_of("BUILD", INSTALL)])
def test_every_release_is_pinned_with_hashes(project: str) -> None:
    lock = (REPOSITORY / "requirements.lock").read_text()
    (hashes,) = re.findall(
        rf"^{re.escape(project)}==\S+((?: \\\n    --hash=sha256:[0-9a-f]{{64}})+)$", lock, re.MULTILINE
    )
    assert hashes


def test_the_releases_that_are_installed_are_cut_out_of_the_lock_file_whole() -> None:
    """With every hash, and no line of another project."""
    (program,) = re.findall(r"awk -v wanted=.*? '(.*?)' requirements\.lock", INSTALL)
    lock = REPOSITORY / "requirements.lock"
    cut = subprocess.run(
        ["awk", "-v", "wanted= rich mdurl ", program, str(lock)], capture_output=True, text=True, check=True
    ).stdout
    blocks = re.findall(r"^(?:rich|mdurl)==(?:.*\\\n)+.*\n", lock.read_text(), re.MULTILINE)
    assert len(blocks) == 2
    assert re.sub(r"^ *#.*\n", "", cut, flags=re.MULTILINE) == "".join(blocks)


def test_what_is_copied_is_there_and_is_all_that_a_builder_gets_to_see() -> None:
    sources = [
        word
        for stage in STAGES.values()
        for instruction, text in stage
        if instruction == "COPY" and not text.startswith("--from")
        for word in text.split()[:-1]
    ]
    seen = [
        line for line in (FOLDER / "Containerfile.dockerignore").read_text().splitlines() if line[:1] not in ("", "#")
    ]
    assert seen[0] == "*"
    assert sorted(line[1:] for line in seen if line[0] == "!") == sorted(sources)
    assert [source for source in sources if not (REPOSITORY / source).exists()] == []


def test_it_runs_and_asks_what_the_package_brings() -> None:
    last = dict(STAGES["image"])
    assert last["ENTRYPOINT"] == '["qos2d"]'
    assert last["CMD"] == '["--config", "/etc/qos2/qos2d.toml"]'
    assert ("COPY", "deploy/qos2d.toml /etc/qos2/qos2d.toml") in STAGES["image"]
    (check,) = re.findall(r'CMD \["(\w+)", "(\w+)"\]', last["HEALTHCHECK"])
    assert {"qos2d", check[0]} <= PROJECT["scripts"].keys()
    assert parser().parse_args([check[1]]).execute


def test_the_environment_and_the_headers_lie_where_they_are_looked_for() -> None:
    (prefix,) = re.findall(r"^readonly PREFIX=(\S+)$", INSTALL, re.MULTILINE)
    assert ("COPY", f"--from=package {prefix} {prefix}") in STAGES["image"]
    assert dict(STAGES["image"])["ENV"].startswith(f"PATH={prefix}/bin:")
    _modules, sources, _release = find_headers.__defaults__ or ()
    assert ("COPY", f"--from=headers /headers {sources}") in STAGES["image"]


@pytest.mark.parametrize("script", sorted(path.name for path in FOLDER.glob("*.sh")))
def test_shellcheck_finds_nothing_in(script: str) -> None:
    done = subprocess.run([tool("shellcheck"), str(FOLDER / script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
