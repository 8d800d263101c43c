"""Pinned maps, through libbpf by ctypes: no bcc, no compiler, 1 MB instead of 72.

`Map` is a hash, an LRU or socket storage (key: a socket's descriptor); `MappedArray` an array of
structures that the daemon reads and writes as memory, with numpy and without system calls;
`PerCpuCounters` and `RingBuffer` what their names say. Each raises DatapathError with errno's text.
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qos2.errors import DatapathError, MissingKernelFeature

_ENOENT = 2


def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise MissingKernelFeature(f"libbpf.so.1 cannot be loaded: {error}", "apt-get install libbpf1") from error
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.bpf_obj_get.argtypes = [ctypes.c_char_p]
    library.bpf_obj_pin.argtypes = [number, ctypes.c_char_p]
    library.bpf_map_update_elem.argtypes = [number, pointer, pointer, ctypes.c_uint64]
    library.bpf_map_lookup_elem.argtypes = [number, pointer, pointer]
    library.bpf_map_delete_elem.argtypes = [number, pointer]
    library.bpf_map_get_next_key.argtypes = [number, pointer, pointer]
    library.bpf_prog_attach.argtypes = [number, number, number, ctypes.c_uint]
    library.libbpf_num_possible_cpus.restype = number
    library.ring_buffer__new.argtypes = [number, pointer, pointer, pointer]
    library.ring_buffer__new.restype = pointer
    library.ring_buffer__consume.argtypes = [pointer]
    library.ring_buffer__epoll_fd.argtypes = [pointer]
    library.ring_buffer__free.argtypes = [pointer]
    library.ring_buffer__free.restype = None
    return library


LIBBPF = _library()


def refused(action: str, hint: str = "") -> DatapathError:
    """The error of a libbpf call that has just failed."""
    number = ctypes.get_errno()
    return DatapathError(f"{action}: {os.strerror(number)} (errno {number})", hint)


def open_pin(path: Path) -> int:
    """A descriptor of a pinned map, program or link. Raises DatapathError; the caller closes it."""
    descriptor = int(LIBBPF.bpf_obj_get(str(path).encode()))
    if descriptor < 0:
        raise refused(f"cannot open {path}")
    return descriptor


class Map:
    """A pinned map whose keys and values are ctypes structures (or integers of ctypes)."""

    def __init__(self, path: Path, key: type[Any], value: type[Any]) -> None:
        self.name = path.name
        self.fd = open_pin(path)
        self.max_entries = _max_entries(self.fd)
        self._value = value
        self._key = key

    def put(self, key: Any, value: Any) -> None:
        if LIBBPF.bpf_map_update_elem(self.fd, ctypes.byref(key), ctypes.byref(value), 0) != 0:
            raise refused(f"map {self.name} refused an entry")

    def get(self, key: Any) -> Any | None:
        """The value of a key, None where there is none."""
        value = self._value()
        if LIBBPF.bpf_map_lookup_elem(self.fd, ctypes.byref(key), ctypes.byref(value)) == 0:
            return value
        if ctypes.get_errno() != _ENOENT:
            raise refused(f"map {self.name} cannot be read")
        return None

    def delete(self, key: Any) -> bool:
        """False where there was no such entry."""
        if LIBBPF.bpf_map_delete_elem(self.fd, ctypes.byref(key)) == 0:
            return True
        if ctypes.get_errno() != _ENOENT:
            raise refused(f"map {self.name} cannot delete an entry")
        return False

    def keys(self) -> Iterator[Any]:
        """Every key. Not for socket storage, which cannot be walked."""
        last = None
        while True:
            key = self._key()
            if (
                LIBBPF.bpf_map_get_next_key(self.fd, None if last is None else ctypes.byref(last), ctypes.byref(key))
                != 0
            ):
                if ctypes.get_errno() != _ENOENT:
                    raise refused(f"map {self.name} cannot be walked")
                return
            yield key
            last = key

    def close(self) -> None:
        os.close(self.fd)


class MappedArray:
    """A pinned BPF_F_MMAPABLE array: `view` is a numpy array of records over the kernel's own memory.

    The kernel makes every mapped page resident at once, so only the first `reach` entries are mapped;
    extend() maps more, and replaces `memory` and `view`.
    """

    def __init__(self, path: Path, structure: type[ctypes.Structure], *, writable: bool, reach: int) -> None:
        self.fd = open_pin(path)
        self.name = path.name
        self.entries = _max_entries(self.fd)
        self._dtype = np.dtype(structure)
        self._access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        try:
            self._map(reach)
        except DatapathError:
            os.close(self.fd)
            raise

    def extend(self, reach: int) -> None:
        """Maps the first `reach` entries, all where there are fewer. Raises DatapathError."""
        if reach > self.reach:
            self._map(reach)

    def _map(self, reach: int) -> None:
        self.reach = min(reach, self.entries)
        length = -(-self.reach * self._dtype.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
        try:
            self.memory = mmap.mmap(self.fd, length, mmap.MAP_SHARED, self._access)
        except OSError as error:
            raise DatapathError(f"map {self.name} cannot be mapped: {error.strerror}") from error
        self.view = np.frombuffer(self.memory, self._dtype, count=self.reach)

    def close(self) -> None:
        del self.view
        self.memory.close()
        os.close(self.fd)


class PerCpuCounters:
    """A pinned per-CPU array of u64, read as sums."""

    def __init__(self, path: Path, entries: int) -> None:
        self.fd = open_pin(path)
        self._entries = entries
        self._values = (ctypes.c_uint64 * LIBBPF.libbpf_num_possible_cpus())()

    def read(self) -> list[int]:
        sums = []
        for index in range(self._entries):
            if LIBBPF.bpf_map_lookup_elem(self.fd, ctypes.byref(ctypes.c_uint32(index)), self._values) != 0:
                raise refused("counters cannot be read")
            sums.append(sum(self._values))
        return sums

    def close(self) -> None:
        os.close(self.fd)


_Sample = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)


class RingBuffer:
    """A pinned ring buffer of one kind of record. `fileno()` becomes readable when there is something."""

    def __init__(self, path: Path, structure: type[ctypes.Structure], receive: Callable[[Any], None]) -> None:
        self.fd = open_pin(path)

        def sample(_context: object, data: int, length: int) -> int:
            if length >= ctypes.sizeof(structure):
                receive(structure.from_buffer_copy(ctypes.string_at(data, ctypes.sizeof(structure))))
            return 0

        self._sample = _Sample(sample)  # libbpf keeps a pointer to it
        self._ring = LIBBPF.ring_buffer__new(self.fd, self._sample, None, None)
        if not self._ring:
            os.close(self.fd)
            raise refused("the ring buffer cannot be opened")

    def fileno(self) -> int:
        return int(LIBBPF.ring_buffer__epoll_fd(self._ring))

    def consume(self) -> int:
        """Calls `receive` for each record that waits; how many there were."""
        found = int(LIBBPF.ring_buffer__consume(self._ring))
        if found < 0:
            raise refused("the ring buffer cannot be read")
        return found

    def close(self) -> None:
        LIBBPF.ring_buffer__free(self._ring)
        os.close(self.fd)


def _max_entries(descriptor: int) -> int:
    """From the kernel's description of the map (proc_pid_fdinfo(5))."""
    for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "max_entries":
            return int(value)
    raise DatapathError("the kernel does not describe the map")
