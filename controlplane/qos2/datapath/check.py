"""Compiles the datapath for the installed kernels, asks the running one whether it accepts it, and keeps what came out.

    python3 -I -m qos2.datapath.check [--cache FOLDER] [RELEASE...]

For an administrator and for the package's trigger, which runs it when a kernel or its headers have come or gone. It
starts the daemon's own loader, on a bpf file system that only this process sees: nothing is attached, and nothing is
left but what was compiled, in the daemon's cache, so that its next start need not. For a kernel that does not run, that
one's headers are put in the place of the running one's, which shows whether the datapath compiles; its verifier can be
asked only when it runs. What is kept for it serves if it has the eBPF instructions of the running one, as the next
kernel of the same series does; else the daemon compiles when it first starts there.

Exit codes: 0 all is well; 1 there is a kernel for which it is not, or nothing can be verified here.
"""

import argparse
import contextlib
import ctypes
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from qos2.datapath import cache, loader
from qos2.errors import MissingKernelFeature, QosError

MODULES = Path("/lib/modules")
#: As in pins.py: two seconds on a desktop, minutes on an emulated processor.
_COMPILE_SECONDS = 300
_SLOTS = 1024  # how many decides how much memory is taken, and nothing that could fail otherwise

# mount(2), unshare(2)
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000
_MNT_DETACH = 2
_CLONE_NEWNS = 0x20000

_LIBC = ctypes.CDLL(None, use_errno=True)


def installed(modules: Path = MODULES) -> list[str]:
    """Releases of the kernels that are installed; headers alone, or what other packages left, are none."""
    return sorted(marker.parent.name for marker in modules.glob("*/modules.builtin"))


def verify(release: str, kept: Path, running: str = platform.release()) -> str:
    """Compiles for `release`, loads, and keeps it below `kept`: what is known then, in words.

    Raises QosError where something is wrong. The process must have its own mounts (private_mounts()).
    """
    if release == running:
        return f"the datapath compiles with {_load(release, kept)}, and the kernel accepts it"
    with _headers_of(release, running):
        done = _load(release, kept)
    return f"the datapath compiles with {done}; whether that kernel accepts it shows when it runs"


def private_mounts() -> None:
    """From here on mounts of this process are its own. Raises MissingKernelFeature where that is not allowed."""
    try:
        _call("unshare", _CLONE_NEWNS)
        _call("mount", None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    except OSError as error:
        raise MissingKernelFeature(
            f"mounts of its own are refused: {error.strerror}",
            "it needs root, and a system that was booted or a container, not the mere folder of one (chroot)",
        ) from error


@contextlib.contextmanager
def _headers_of(release: str, running: str, modules: Path = MODULES) -> Iterator[None]:
    """In these mounts, the running kernel's headers are those of `release`."""
    links = {name: (modules / release / name).resolve() for name in ("build", "source")}
    with _mounted("tmpfs", modules):
        (modules / running).mkdir()
        for name, target in links.items():
            if target.is_dir():
                (modules / running / name).symlink_to(target)
        yield


def _load(release: str, kept: Path) -> str:
    """What the daemon's start does where nothing is kept, for each link layer. With which headers, and what is kept."""
    headers = loader.find_headers()
    unkept = ""
    for link in loader.LINK_BYTES:
        unkept = _loaded(link, kept, release).get("unkept", "") or unkept
    served = "its own headers" if headers.source is None else f"the headers {headers.source.name}"
    return f"{served} (and cannot be kept: {unkept})" if unkept else f"{served} and is kept in {kept}"


def _loaded(link: str, kept: Path, release: str) -> dict[str, str]:
    """The report of a loader for one link layer. Raises MissingKernelFeature."""
    with tempfile.TemporaryDirectory(prefix="qos2-check-") as folder, _mounted("bpf", Path(folder)):
        maps = Path(folder, "maps")
        maps.mkdir()
        command = (sys.executable, "-m", loader.__name__, maps, Path(folder, "programs"), str(_SLOTS), link)
        try:
            done = subprocess.run(
                (*command, kept, release),
                env=os.environ | {"PYTHONPATH": str(Path(loader.__file__).resolve().parents[2])},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMPILE_SECONDS,
                check=False,
            )
            report: dict[str, str] = json.loads(done.stdout)
        except subprocess.TimeoutExpired as error:
            raise MissingKernelFeature(f"the loader took more than {_COMPILE_SECONDS} s") from error
        except json.JSONDecodeError as error:
            raise MissingKernelFeature(
                f"the loader died (status {done.returncode}): {done.stderr.strip()[-500:]}"
            ) from error
    if "error" in report:
        raise MissingKernelFeature(report["message"], report["hint"])
    return report


@contextlib.contextmanager
def _mounted(kind: str, place: Path) -> Iterator[None]:
    try:
        _call("mount", kind.encode(), bytes(place), kind.encode(), 0, None)
    except OSError as error:
        raise MissingKernelFeature(f"a file system of type {kind} cannot be mounted: {error.strerror}") from error
    try:
        yield
    finally:
        _call("umount2", bytes(place), _MNT_DETACH)


def _call(name: str, *arguments: bytes | int | None) -> None:
    """A call of libc. Raises OSError."""
    if getattr(_LIBC, name)(*arguments) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def main(arguments: Sequence[str]) -> int:
    """One line for each release: those given, else those installed and the running one."""
    parser = argparse.ArgumentParser(prog="qos2.datapath.check", description="Compiles the datapath, and keeps it.")
    parser.add_argument("--cache", type=Path, default=cache.DEFAULT, metavar="FOLDER", help="default: %(default)s")
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help="of kernels; default: those installed")
    given = parser.parse_args(arguments)
    running = platform.release()
    releases = given.releases or sorted({*installed(), running})
    well = True
    try:
        private_mounts()
    except QosError as error:
        return _complain("qos2: the datapath cannot be verified here: ", error)
    for release in releases:
        sys.stdout.write(f"qos2: Linux {release}{' (running)' if release == running else ''}: ")
        sys.stdout.flush()  # what follows takes seconds
        try:
            sys.stdout.write(f"{verify(release, given.cache, running)}\n")
        except QosError as error:
            well = not _complain("", error)
    return 0 if well else 1


def _complain(beginning: str, error: QosError) -> int:
    sys.stdout.write(f"{beginning}{error.message}\n")
    if error.hint:
        sys.stdout.write(f"      {error.hint}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
