"""The folder where compiled datapaths are kept, so that a start need not compile.

What a file is of is a digest in its name: the source text, the headers beside it, what the loader defines, the
kernel's release, the machine and the layout of the maps. Programs go into the kernel from here, so that a file is
believed only where nobody but root and this process's own user could have written it. It is never an error that a file
is missing, damaged or not to be trusted: then the datapath is compiled.
"""

import contextlib
import functools
import hashlib
import os
import platform
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from qos2.datapath import abi
from qos2.datapath.compiled import FORMAT, Compiled, Unusable, decode, encode

DEFAULT = Path("/var/cache/qos2")
#: Those written last are kept: far more than a host's kernels and link layers, few enough to forget (150 KB each).
_MOST_FILES = 64
_SUFFIX = ".compiled"
_MOST_BYTES = 16 << 20


@dataclass(frozen=True)
class Key:
    """What a compiled datapath is of."""

    label: str  #: for people: the kernel's release, and the link layer
    digest: str

    @property
    def file_name(self) -> str:
        return f"{self.label}-{self.digest[:16]}{_SUFFIX}"


def key_of(
    text: str,
    headers: Iterable[bytes],
    definitions: Iterable[str],
    link: str,
    release: str = platform.release(),
    machine: str = platform.machine(),
) -> Key:
    """Of a source text, the contents of the headers beside it, and the -D of the compiler."""
    parts = (
        *(str(FORMAT).encode(), str(abi.ABI_VERSION).encode(), release.encode(), machine.encode(), text.encode()),
        *(word.encode() for word in definitions),
        *headers,
    )
    state = hashlib.sha256()
    for part in parts:
        state.update(b"%d:" % len(part))  # so that nothing moves from one part to the next unseen
        state.update(part)
    return Key(f"{release}-{link}", state.hexdigest())


@functools.cache
def compiler(libraries: Path = Path("/usr/lib")) -> str | None:
    """The bcc that is installed, by its library's name, size and time; None where there is none.

    Without importing it: that takes longer than loading what it has compiled.
    """
    for found in sorted((*libraries.glob("libbcc.so.0"), *libraries.glob("*/libbcc.so.0"))):
        about = found.stat()
        return f"{found.resolve().name} {about.st_size} {int(about.st_mtime)}"
    return None


def read(folder: Path, key: Key) -> Compiled | None:
    """What is kept of a key, None where nothing is. Raises Unusable where that is not to be used.

    Where no bcc is installed, what any bcc has compiled is taken: there is no other.
    """
    try:
        place = _open_folder(folder)
    except OSError:
        return None  # nor can anything be kept there, and keep() says why
    try:
        _trust(place, "its folder")
        # O_NONBLOCK: what lies there may be no file at all, and is not waited for.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(key.file_name, flags, dir_fd=place), "rb") as file:
            _trust(file.fileno(), "it")
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Unusable("it is no file")
            return decode(file.read(_MOST_BYTES), key.digest, compiler())
    except FileNotFoundError:
        return None
    except (OSError, Unusable) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise Unusable(f"{folder / key.file_name}: {why}") from error
    finally:
        os.close(place)


def keep(folder: Path, key: Key, compiled: Compiled) -> None:
    """Writes a file, wholly or not at all, for the folder's owner alone; the folder is made. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = _open_folder(folder)
    temporary = f".{key.file_name}.{secrets.token_hex(4)}"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600, dir_fd=place), "wb") as file:
            # Root writes for the daemon too, when a package is installed, and whose folder it is may read it.
            owner = os.fstat(place)
            if os.geteuid() == 0 and owner.st_uid != 0:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(encode(compiled, key.digest, compiler() or ""))
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, key.file_name, src_dir_fd=place, dst_dir_fd=place)
        _forget_oldest(place)
    except OSError:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=place)
        raise
    finally:
        os.close(place)


def _open_folder(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _trust(descriptor: int, what: str) -> None:
    """Raises Unusable where somebody else than root and this user could have written it."""
    about = os.fstat(descriptor)
    if about.st_uid not in {0, os.geteuid()}:
        raise Unusable(f"{what} belongs to user {about.st_uid}, who is neither root nor {os.geteuid()}")
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Unusable(f"{what} can be written by others (mode {stat.S_IMODE(about.st_mode):o})")


def _forget_oldest(place: int) -> None:
    written = []
    for name in os.listdir(place):
        with contextlib.suppress(FileNotFoundError):  # another process forgets too
            if name.endswith(_SUFFIX) or f"{_SUFFIX}." in name:  # or what a killed process left half written
                written.append((os.stat(name, dir_fd=place, follow_symlinks=False).st_mtime, name))
    for _, name in sorted(written)[:-_MOST_FILES]:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=place)
