"""Maps and programs of a compiled datapath in the kernel, through libbpf: the only way in which programs are loaded.

Maps that are pinned already are taken over with their content; others are made and pinned. No bcc, no headers.
"""

import ctypes
import errno
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import Self

from qos2.datapath.compiled import Compiled, MapSpec, Program
from qos2.datapath.maps import LIBBPF, open_pin, refused
from qos2.errors import DatapathError, MissingKernelFeature

_BPF_MAP_TYPE_SK_STORAGE = 24
#: The map of programs that call each other.
STAGES = "stages"

#: The verifier's log: of a program that is refused its end tells why, and it must fit, or the kernel says ENOSPC.
_LOG_BYTES = 16 << 20
_LOG_LINES = 6

LIBBPF.bpf_map_create.argtypes = [
    *(ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_void_p)
]
LIBBPF.bpf_prog_load.argtypes = [
    *(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p)
]
LIBBPF.bpf_btf_load.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p]


class _MapInfo(ctypes.Structure):
    """The beginning of struct bpf_map_info of linux/bpf.h."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
    )


class _MapOptions(ctypes.Structure):
    """struct bpf_map_create_opts of libbpf, as of 1.0."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("btf_fd", ctypes.c_uint32),
        ("btf_key_type_id", ctypes.c_uint32),
        ("btf_value_type_id", ctypes.c_uint32),
        ("btf_vmlinux_value_type_id", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("map_extra", ctypes.c_uint64),
        ("numa_node", ctypes.c_uint32),
        ("map_ifindex", ctypes.c_uint32),
    )


class _ProgramOptions(ctypes.Structure):
    """struct bpf_prog_load_opts of libbpf, as of 1.0."""

    _fields_ = (
        ("sz", ctypes.c_size_t),
        ("attempts", ctypes.c_int),
        ("expected_attach_type", ctypes.c_int),
        ("prog_btf_fd", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_ifindex", ctypes.c_uint32),
        ("kern_version", ctypes.c_uint32),
        ("attach_btf_id", ctypes.c_uint32),
        ("attach_prog_fd", ctypes.c_uint32),
        ("attach_btf_obj_fd", ctypes.c_uint32),
        ("fd_array", ctypes.c_void_p),
        ("func_info", ctypes.c_void_p),
        ("func_info_cnt", ctypes.c_uint32),
        ("func_info_rec_size", ctypes.c_uint32),
        ("line_info", ctypes.c_void_p),
        ("line_info_cnt", ctypes.c_uint32),
        ("line_info_rec_size", ctypes.c_uint32),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_void_p),
    )


def spec_of(name: str, descriptor: int) -> MapSpec:
    """A map as the kernel describes it. Raises DatapathError."""
    info, size = _MapInfo(), ctypes.c_uint32(ctypes.sizeof(_MapInfo))
    if LIBBPF.bpf_obj_get_info_by_fd(descriptor, ctypes.byref(info), ctypes.byref(size)) != 0:
        raise refused(f"the kernel does not describe map {name}")
    return MapSpec(name, info.type, info.key_size, info.value_size, info.max_entries, info.map_flags)


class Objects:
    """The maps, and those programs that were asked for; a context manager. Owns their descriptors, not their pins."""

    def __init__(self, compiled: Compiled, pins: Path, slots: int) -> None:
        """Maps are pinned below `pins`; those of the flow table have `slots` entries.

        Raises MissingKernelFeature where the kernel refuses one, DatapathError where one that is pinned is another.
        """
        self._compiled = compiled
        self.maps: dict[str, int] = {}  #: descriptors by name
        self._programs: dict[str, int] = {}
        try:
            for spec in compiled.maps:
                entries = slots if spec.max_entries is None else spec.max_entries
                self.maps[spec.name] = _map(spec, entries, pins / spec.name)
        except DatapathError:
            self.close()
            raise

    def program(self, name: str) -> int:
        """The descriptor of a program, loaded if need be. Raises KeyError, MissingKernelFeature."""
        if name not in self._programs:
            program = self._compiled.program(name)
            self._programs[name] = _load(program, program.linked(self.maps), self._compiled.license)
        return self._programs[name]

    def fill_stages(self) -> None:
        """Loads the programs that call each other, and puts each in its place. Raises MissingKernelFeature."""
        for each in self._compiled.programs:
            if each.stage is not None:
                key, value = ctypes.c_uint32(each.stage), ctypes.c_uint32(self.program(each.name))
                if LIBBPF.bpf_map_update_elem(self.maps[STAGES], ctypes.byref(key), ctypes.byref(value), 0) != 0:
                    raise refused(f"map {STAGES} refused {each.name}")

    def pin(self, folder: Path) -> None:
        """Loads every program and pins it below `folder`. Raises MissingKernelFeature, DatapathError."""
        for each in self._compiled.programs:
            _pin(self.program(each.name), folder / each.name)

    def close(self) -> None:
        for descriptor in (*self._programs.values(), *self.maps.values()):
            os.close(descriptor)
        self._programs.clear()
        self.maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(compiled: Compiled, pins: Path, programs: Path, slots: int) -> None:
    """Maps pinned below `pins`, programs below the empty folder `programs`. Raises as Objects does."""
    with Objects(compiled, pins, slots) as objects:
        objects.fill_stages()
        objects.pin(programs)


def _map(spec: MapSpec, entries: int, pin: Path) -> int:
    """The descriptor of a pinned map, made if it is not there."""
    wanted = MapSpec(spec.name, spec.type, spec.key_bytes, spec.value_bytes, entries, spec.flags)
    if pin.exists():
        descriptor = open_pin(pin)
        if (found := spec_of(spec.name, descriptor)) != wanted:
            os.close(descriptor)
            raise DatapathError(f"{pin} is another map: {found}, not {wanted}", "stop the daemon, and remove it")
        return descriptor
    options = _MapOptions(sz=ctypes.sizeof(_MapOptions), map_flags=spec.flags)
    if spec.type == _BPF_MAP_TYPE_SK_STORAGE:
        options.btf_fd = _btf(spec.value_bytes)
        options.btf_key_type_id, options.btf_value_type_id = _INTEGER, _VALUE
    try:
        descriptor = LIBBPF.bpf_map_create(
            spec.type, spec.name.encode(), spec.key_bytes, spec.value_bytes, entries, ctypes.byref(options)
        )
        if descriptor < 0:
            raise _lacking(f"the kernel refused map {spec.name}")
    finally:
        if options.btf_fd:
            os.close(options.btf_fd)
    try:
        _pin(descriptor, pin)
    except DatapathError:
        os.close(descriptor)
        raise
    return int(descriptor)


# ---- BTF of socket storage ---------------------------------------------------------------------------
# The kernel makes that kind of map only with a type of the key, which must be a 32-bit integer, and a type of the
# value, of which it looks at the size alone. Numbers of the types below: in their order, from 1.
_INTEGER, _BYTE, _VALUE = 1, 2, 3
_KIND_INT, _KIND_ARRAY = 1 << 24, 3 << 24
_SIGNED = 1 << 24


def storage_btf(value_bytes: int) -> bytes:
    """BTF of an int and an array of bytes (Documentation/bpf/btf.rst of the kernel)."""
    strings = b"\0int\0byte\0"
    types = b"".join(
        (
            struct.pack("=IIII", strings.index(b"int"), _KIND_INT, 4, _SIGNED | 32),
            struct.pack("=IIII", strings.index(b"byte"), _KIND_INT, 1, 8),
            struct.pack("=IIIIII", 0, _KIND_ARRAY, 0, _BYTE, _INTEGER, value_bytes),
        )
    )
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(strings)) + types + strings


def _btf(value_bytes: int) -> int:
    text = storage_btf(value_bytes)
    descriptor = int(LIBBPF.bpf_btf_load(text, len(text), None))
    if descriptor < 0:
        raise _lacking("the kernel refused the types of socket storage")
    return descriptor


# ---- programs ----------------------------------------------------------------------------------------


def _load(program: Program, code: bytes, license_name: str) -> int:
    arguments = (program.type, program.name.encode(), license_name.encode(), code, len(code) // 8)
    options = _ProgramOptions(sz=ctypes.sizeof(_ProgramOptions))
    descriptor = int(LIBBPF.bpf_prog_load(*arguments, ctypes.byref(options)))
    if descriptor >= 0:
        return descriptor
    error = _lacking(f"the kernel refused program {program.name}")
    # Once more for the verifier's words: it is slower with them, so they are not asked for at first.
    log = ctypes.create_string_buffer(_LOG_BYTES)
    options.log_level, options.log_size, options.log_buf = 1, _LOG_BYTES, ctypes.addressof(log)
    descriptor = int(LIBBPF.bpf_prog_load(*arguments, ctypes.byref(options)))
    if descriptor >= 0:
        return descriptor  # for want of memory, say, which is there by now
    said = [line.strip() for line in log.value.decode(errors="replace").splitlines() if line.strip()]
    if said:
        raise MissingKernelFeature(f"{error.message}: {' | '.join(said[-_LOG_LINES:])}", error.hint)
    raise error


def _pin(descriptor: int, path: Path) -> None:
    if LIBBPF.bpf_obj_pin(descriptor, bytes(path)) != 0:
        raise refused(f"cannot pin {path}", "is it on a bpf file system?")


def _lacking(action: str) -> MissingKernelFeature:
    number = ctypes.get_errno()
    hint = "the kernel may lack a feature; `qos2 status` on a running host lists what is used"
    if number == errno.EPERM or os.geteuid() != 0:
        hint = "loading eBPF needs root, or CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN"
    return MissingKernelFeature(f"{action}: {os.strerror(number)} (errno {number})", hint)
