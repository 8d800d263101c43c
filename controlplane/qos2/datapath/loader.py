"""The loader: compiles the datapath with bcc, keeps what came out, loads it, pins maps and programs, and exits.

A process of its own (`python -m qos2.datapath.loader`), because bcc brings 70 to 150 MB of LLVM that
must not stay in the daemon. It is the only importer of bcc, which only compiles: loading is the business of
objects.py, here as for what was kept. The result goes to standard output as one JSON object: the layout that
bcc compiled, or an error with code and hint.

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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qos2.datapath import cache, objects
from qos2.datapath.compiled import Compiled, Program, Unusable, unlinked
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
_WARNINGS = ("-Wno-unused-function", "-Werror=implicit-function-declaration")
#: While compiling, what stands for the number of slots: a number that no other map has as its size.
_SLOTS = 1021
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


def definitions(link: str) -> list[str]:
    """Flags for bcc: the values that the source leaves open and that decide what the programs do."""
    return [
        f"-DQOS_LINK_BYTES={LINK_BYTES[link]}",
        *(() if has_compare_and_swap() else ("-DQOS_WITHOUT_COMPARE_AND_SWAP",)),
        *(() if has_netns_cookie() else ("-DQOS_WITHOUT_NETNS_COOKIE",)),
    ]


def key_of(text: str, link: str, release: str = platform.release(), folder: Path = SOURCE) -> cache.Key:
    """By which `text` is kept, compiled for a link layer and for the kernel of that release.

    What is defined for another kernel than the running one is what is defined for this one; if the other turns out to
    need something else, it will ask for another key.
    """
    headers = (header.read_bytes() for header in sorted(folder.glob("*.h")))
    return cache.key_of(text, headers, (*definitions(link), *_WARNINGS), link, release)


def compile_text(text: str, scratch: Path, link: str) -> Compiled:
    """`text` as bcc compiles it. bcc makes the maps too, small ones, pinned in the empty folder `scratch` of a bpffs
    for as long as it takes.

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
    flags = [
        *(f"-I{SOURCE}", *headers.flags, f"-DQOS_SLOTS={_SLOTS}", f'-DQOS_PINS="{scratch}"'),
        *(*definitions(link), *_WARNINGS),
    ]
    with _captured_stderr() as said:
        try:
            bpf = bcc.BPF(text=text.encode(), cflags=flags)
        except Exception as error:  # bcc raises bare Exception for everything
            detail = said()
            raise MissingKernelFeature(
                f"bcc could not compile or create maps: {error}: {detail}", _hint(detail)
            ) from error
        finally:
            for pin in scratch.iterdir():
                pin.unlink()
    try:
        return _extracted(bpf, bcc, link)
    except Unusable as error:
        raise MissingKernelFeature(f"bcc compiled what cannot be loaded: {error}") from error
    finally:
        bpf.cleanup()


def _extracted(bpf: Any, bcc: Any, link: str) -> Compiled:
    """What a bcc.BPF has compiled. Raises Unusable."""
    library, module = bcc.lib, bpf.module
    library.bpf_num_tables.argtypes = [ctypes.c_void_p]
    library.bpf_table_name.argtypes = library.bpf_table_fd_id.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    library.bpf_table_name.restype = ctypes.c_char_p
    descriptors = {
        library.bpf_table_name(module, number).decode(): int(library.bpf_table_fd_id(module, number))
        for number in range(library.bpf_num_tables(module))
    }
    specs = [objects.spec_of(name, descriptor) for name, descriptor in descriptors.items()]
    names = {descriptor: name for name, descriptor in descriptors.items()}
    first = list(LINK_BYTES).index(link) * len(STAGES)
    programs = []
    for number in range(library.bpf_num_functions(module)):
        name = library.bpf_function_name(module, number).decode()
        code, maps = unlinked(bpf.dump_func(name.encode()), names)
        kind = bcc.BPF.CGROUP_SOCK if name in SOCKET_PROGRAMS else bcc.BPF.SCHED_CLS
        stage = first + STAGES.index(name) if name in STAGES else None
        programs.append(Program(name, kind, code, maps, stage))
    return Compiled(
        [replace(spec, max_entries=None) if spec.max_entries == _SLOTS else spec for spec in specs],
        programs,
        library.bpf_module_license(module).decode(),
        layout_of(bpf),
    )


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


def run(pins: Path, programs: Path, slots: int, link: str, kept: Path | None, release: str) -> dict[str, Any]:
    """Compiles and loads everything; returns what to print. `programs` is made, and gets one pin per program.

    What was compiled is kept below `kept` once the kernel has taken it, as for the kernel of `release`.
    """
    text = read_source()
    key = key_of(text, link, release)
    programs.mkdir(mode=0o700, exist_ok=True)
    compiled = compile_text(text, programs, link)
    objects.load(compiled, pins, programs, slots)
    report: dict[str, Any] = {"layout": compiled.layout}
    # An upgrade may have exchanged the headers in between: then nobody knows what was compiled.
    if kept is not None and key == key_of(text, link, release):
        try:
            cache.keep(kept, key, compiled)
        except OSError as error:
            report["unkept"] = f"{kept}: {error.strerror}"
    return report


def main(arguments: list[str]) -> int:
    """`loader MAPS PROGRAMS SLOTS LINK [KEPT [RELEASE]]`: 0 and a report, or 1 and an error, as JSON on its output.

    Always compiles. The report says why it could not be kept, where it should have been.
    """
    pins, programs, slots, link = Path(arguments[0]), Path(arguments[1]), int(arguments[2]), arguments[3]
    kept = Path(arguments[4]) if len(arguments) > 4 else None
    release = arguments[5] if len(arguments) > 5 else platform.release()
    try:
        report = run(pins, programs, slots, link, kept, release)
    except QosError as error:
        report = {"error": error.code, "message": error.message, "hint": error.hint}
    sys.stdout.write(json.dumps(report))
    return 1 if "error" in report else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
