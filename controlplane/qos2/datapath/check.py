"""Whether the datapath compiles for the installed kernels, and whether the running one accepts it.

    python3 -I -m qos2.datapath.check [RELEASE...]

For an administrator and for the package's trigger, which runs it when a kernel or its headers have come or gone. It
starts the daemon's own loader, on a bpf file system that only this process sees: nothing is attached, and nothing is
left. For a kernel that does not run, that one's headers are put in the place of the running one's, which shows whether
the datapath compiles; its verifier can be asked only when it runs.

What is compiled is not kept: bcc's programs refer to maps by descriptors of the process that compiled them. The daemon
compiles once at its start.

Exit codes: 0 all is well; 1 there is a kernel for which it is not, or nothing can be verified here.
"""

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

from qos2.datapath import loader
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


def verify(release: str, running: str = platform.release()) -> str:
    """Compiles for `release`, and loads: what is known then, in words. Raises QosError where something is wrong.

    The process must have its own mounts (private_mounts()).
    """
    if release == running:
        headers = _load()
        return f"the datapath compiles with {headers}, and the kernel accepts it"
    with _headers_of(release, running):
        headers = _load()
    return f"the datapath compiles with {headers}; whether that kernel accepts it shows when it runs"


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


def _load() -> str:
    """What the daemon's start does; which headers served."""
    headers = loader.find_headers()
    with tempfile.TemporaryDirectory(prefix="qos2-check-") as folder, _mounted("bpf", Path(folder)):
        maps = Path(folder, "maps")
        maps.mkdir()
        try:
            done = subprocess.run(
                (
                    sys.executable,
                    "-m",
                    loader.__name__,
                    str(maps),
                    str(Path(folder, "programs")),
                    str(_SLOTS),
                    "ethernet",
                ),
                env=os.environ | {"PYTHONPATH": str(Path(loader.__file__).resolve().parents[2])},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_COMPILE_SECONDS,
                check=False,
            )
            report = json.loads(done.stdout)
        except subprocess.TimeoutExpired as error:
            raise MissingKernelFeature(f"the loader took more than {_COMPILE_SECONDS} s") from error
        except json.JSONDecodeError as error:
            raise MissingKernelFeature(
                f"the loader died (status {done.returncode}): {done.stderr.strip()[-500:]}"
            ) from error
    if "error" in report:
        raise MissingKernelFeature(report["message"], report["hint"])
    return "its own headers" if headers.source is None else f"the headers {headers.source.name}"


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
    running = platform.release()
    releases = arguments or sorted({*installed(), running})
    well = True
    try:
        private_mounts()
    except QosError as error:
        return _complain("qos2: the datapath cannot be verified here: ", error)
    for release in releases:
        sys.stdout.write(f"qos2: Linux {release}{' (running)' if release == running else ''}: ")
        sys.stdout.flush()  # what follows takes seconds
        try:
            sys.stdout.write(f"{verify(release, running)}\n")
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
