"""The loader: compiles the datapath with bcc, loads it, pins maps and programs, and exits.

A process of its own (`python -m qos2.datapath.loader`), because bcc brings 70 to 150 MB of LLVM that
must not stay in the daemon. It is the only importer of bcc. Maps that are pinned already are taken
over with their content. The result goes to standard output as one JSON object: the layout that bcc
compiled, or an error with code and hint.

Kernel headers: the running kernel's own where installed, else those of any installed version, since
the program includes uapi headers only. Nothing is written below the system's module folder.
"""

import contextlib
import ctypes
import json
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qos2.datapath.instructions import has_compare_and_swap, has_netns_cookie
from qos2.errors import MissingKernelFeature, QosError

SOURCE = Path(__file__).resolve().parent.parent / "bpf"

_PART = re.compile(r'^#include "(\w+\.bpf\.c)"$', re.MULTILINE)

#: Bytes of the link header, by link layer: the source is compiled once for each that is needed (ADR 0006).
LINK_BYTES = {"ethernet": 14, "none": 0}
#: Programs at tc egress: one per shaper.
CLASSIFIERS = ("qos_fq", "qos_htb", "qos_police")
#: What they call, and what calls them: each program's place in the map `stages` is that in this list, and behind it
#: that of the other link layer.
STAGES = (*CLASSIFIERS, "qos_decide")
#: At socket creation: in the cgroup of a program (`qos2 run`), and in that of all (while rules name executables).
SOCKET_PROGRAMS = ("qos_sock_create", "qos_sock_owner")
#: Maps by name; each is pinned under its name.
MAPS = (
    *("policy", "hot", "cold", "destinations", "fragments", "cgroups", "tick", "counters", "sockets", "events"),
    *(
        "stages",
        "ruleset",
        "rules",
        "connections",
        "deciding",
        "decisions",
        "pools",
        "drawn",
        "buckets",
        "executables",
        "owners",
    ),
)
#: Structures whose layout is reported, by the map that holds them: (map, "key" or "leaf").
LAYOUT = {
    "flow_policy": ("policy", "leaf"),
    "flow_hot": ("hot", "leaf"),
    "flow_cold": ("cold", "leaf"),
    "destination": ("destinations", "key"),
    "fragment": ("fragments", "key"),
    "tick": ("tick", "leaf"),
    "ruleset": ("ruleset", "leaf"),
    "connection": ("connections", "key"),
    "decided": ("connections", "leaf"),
    "rule_block": ("rules", "leaf"),
    "pool": ("pools", "leaf"),
    "bucket_owner": ("buckets", "key"),
}


@dataclass(frozen=True)
class Headers:
    """Where the kernel headers are: a source folder for bcc (None: its default) and further compiler flags."""

    source: Path | None
    flags: list[str] = field(default_factory=list)


def find_headers(
    modules: Path = Path("/lib/modules"), sources: Path = Path("/usr/src"), release: str = platform.release()
) -> Headers:
    """Headers for bcc. Raises MissingKernelFeature naming the package where there are none."""
    if (modules / release / "build" / "include").exists():
        return Headers(None)
    arch = {"x86_64": "x86", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    for folder in sorted(sources.glob("linux-headers-*"), key=_version, reverse=True):
        generated = folder / "include" / "generated"
        if not generated.is_dir():
            continue  # a -common half, met through its other half
        if (folder / "include" / "linux" / "kconfig.h").exists():
            return Headers(folder)  # complete (Ubuntu)
        common = folder.with_name(re.sub(r"-(?:rt-|cloud-)?[a-z0-9]+$", "-common", folder.name))
        if not common.is_dir():
            continue
        include = (
            folder / "include",
            folder / "arch" / arch / "include" / "generated",
            folder / "arch" / arch / "include" / "generated" / "uapi",
            generated / "uapi",
        )
        return Headers(common, [f"-I{path}" for path in include])
    package = {"x86_64": "linux-headers-amd64", "aarch64": "linux-headers-arm64"}.get(
        platform.machine(), "linux-headers-generic"
    )
    raise MissingKernelFeature(
        "no kernel headers are installed",
        f"any version serves: apt-get install {package} (Debian), apt-get install linux-headers-generic (Ubuntu)",
    )


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", folder.name))


def read_source(folder: Path = SOURCE) -> str:
    """The main file of the datapath, with its parts in their places: bcc knows maps in one file only."""
    return _PART.sub(lambda part: (folder / part[1]).read_text(), (folder / "qos.bpf.c").read_text())


def compile_flags(pins: Path, slots: int, link: str, headers: Headers, folder: Path = SOURCE) -> list[str]:
    """Flags for bcc: our headers, the kernel's, and the values that the source leaves open."""
    return [
        f"-I{folder}",
        *headers.flags,
        f"-DQOS_SLOTS={slots}",
        f'-DQOS_PINS="{pins}"',
        f"-DQOS_LINK_BYTES={LINK_BYTES[link]}",
        *(() if has_compare_and_swap() else ("-DQOS_WITHOUT_COMPARE_AND_SWAP",)),
        *(() if has_netns_cookie() else ("-DQOS_WITHOUT_NETNS_COOKIE",)),
        "-Wno-unused-function",
        "-Werror=implicit-function-declaration",
    ]


def load(text: str, pins: Path, slots: int, link: str = "ethernet") -> Any:
    """Compiles `text` into a bcc.BPF whose maps are pinned below `pins` (taken over where they exist).

    Raises MissingKernelFeature where bcc, headers or privilege is missing or the kernel refuses.
    """
    try:
        import bcc
    except ImportError as error:
        raise MissingKernelFeature(
            f"bcc cannot be imported: {error}",
            "install python3-bpfcc and run the daemon by the distribution's own /usr/bin/python3 (or a venv of it)",
        ) from error
    headers = find_headers()
    if headers.source is not None:
        os.environ["BCC_KERNEL_SOURCE"] = str(headers.source)
    with _captured_stderr() as said:
        try:
            return bcc.BPF(text=text.encode(), cflags=compile_flags(pins, slots, link, headers))
        except Exception as error:  # bcc raises bare Exception for everything
            detail = said()
            raise MissingKernelFeature(
                f"bcc could not compile or create maps: {error}: {detail}", _hint(detail)
            ) from error


def load_program(bpf: Any, name: str, kind: int) -> int:
    """The descriptor of one program; MissingKernelFeature with the verifier's last words where refused."""
    with _captured_stderr() as said:
        try:
            return int(bpf.load_func(name.encode(), kind).fd)
        except Exception as error:  # bcc again
            detail = said()
            raise MissingKernelFeature(
                f"the kernel refused program {name}: {error}: {detail}", _hint(detail)
            ) from error


def load_stages(bpf: Any, link: str) -> dict[str, int]:
    """The descriptors of all programs at tc, by name, with each in its place in `stages`. Raises as load_program()."""
    import bcc

    first = list(LINK_BYTES).index(link) * len(STAGES)
    descriptors = {name: load_program(bpf, name, bcc.BPF.SCHED_CLS) for name in STAGES}
    for place, descriptor in enumerate(descriptors.values(), first):
        bpf[b"stages"][ctypes.c_int(place)] = ctypes.c_int(descriptor)
    return descriptors


def _hint(detail: str) -> str:
    if "Operation not permitted" in detail or os.geteuid() != 0:
        return "loading eBPF needs root, or CAP_BPF and CAP_NET_ADMIN"
    return "the kernel may lack a feature; `qos2 status` on a running host lists what is used"


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Any]:
    """Standard error of this process, C libraries included, into a file whose end can be asked for."""
    sys.stderr.flush()
    saved = os.dup(2)
    scratch = os.memfd_create("stderr", os.MFD_CLOEXEC)
    os.dup2(scratch, 2)

    def said() -> str:
        size = os.fstat(scratch).st_size
        text = os.pread(scratch, 2000, max(0, size - 2000)).decode(errors="replace")
        return " | ".join(line.strip() for line in text.splitlines()[-6:] if line.strip())

    try:
        yield said
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(scratch)


def layout_of(bpf: Any) -> dict[str, dict[str, Any]]:
    """Size and field offsets of every structure as bcc compiled it."""
    report: dict[str, dict[str, Any]] = {}
    for name, (table, part) in LAYOUT.items():
        struct = bpf[table.encode()].Key if part == "key" else bpf[table.encode()].Leaf
        report[name] = {
            "size": ctypes.sizeof(struct),
            "fields": {field[0]: getattr(struct, field[0]).offset for field in struct._fields_},
        }
    return report


def run(pins: Path, programs: Path, slots: int, link: str) -> dict[str, Any]:
    """Loads everything; returns what to print. `programs` gets one pin per program."""
    import bcc

    bpf = load(read_source(), pins, slots, link)
    library = bcc.lib
    programs.mkdir(mode=0o700, exist_ok=True)
    descriptors = {name: load_program(bpf, name, bcc.BPF.CGROUP_SOCK) for name in SOCKET_PROGRAMS}
    for name, descriptor in (load_stages(bpf, link) | descriptors).items():
        pin = programs / name
        pin.unlink(missing_ok=True)
        if library.bpf_obj_pin(descriptor, str(pin).encode()) != 0:
            raise MissingKernelFeature(f"cannot pin {pin}", "is it on a bpf file system?")
    return {"layout": layout_of(bpf)}


def main(arguments: list[str]) -> int:
    """`loader PINS PROGRAMS SLOTS LINK`: 0 and a report, or 1 and an error, as JSON on standard output."""
    pins, programs, slots, link = Path(arguments[0]), Path(arguments[1]), int(arguments[2]), arguments[3]
    try:
        report = run(pins, programs, slots, link)
    except QosError as error:
        report = {"error": error.code, "message": error.message, "hint": error.hint}
    sys.stdout.write(json.dumps(report))
    return 1 if "error" in report else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
