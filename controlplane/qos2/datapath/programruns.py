"""How often the kernel ran eBPF programs, and for how long: what it counts while somebody has it count.

That is kernel.bpf_stats_enabled, or BPF_ENABLE_STATS of bpf(2) as long as a descriptor of it is open. It costs some
20 to 30 ns per run, so the daemon never asks for it. Read by BPF_OBJ_GET_INFO_BY_FD, a system call for each program.
"""

import ctypes
from collections.abc import Iterable, Mapping

from qos2.datapath.maps import LIBBPF, refused


class _ProgramInfo(ctypes.Structure):
    """struct bpf_prog_info of linux/bpf.h up to the counters, which came with Linux 5.1."""

    _fields_ = (
        ("before", ctypes.c_uint8 * 192),  # types, tags, sizes and pointers
        ("run_time_ns", ctypes.c_uint64),
        ("run_cnt", ctypes.c_uint64),
    )


def runs(program_fd: int) -> tuple[int, float]:
    """Runs, and seconds that they took in sum, since the program was loaded. Raises DatapathError."""
    info = _ProgramInfo()
    size = ctypes.c_uint32(ctypes.sizeof(info))
    if LIBBPF.bpf_obj_get_info_by_fd(program_fd, ctypes.byref(info), ctypes.byref(size)) != 0:
        raise refused("a program cannot be asked about its runs")
    return int(info.run_cnt), info.run_time_ns / 1e9


def runs_by_name(programs: Iterable[tuple[str, int]]) -> Mapping[str, tuple[int, float]]:
    """Runs and seconds of programs given by name and descriptor; those of one name summed, those never run left out."""
    sums: dict[str, tuple[int, float]] = {}
    for name, program_fd in programs:
        times, seconds = runs(program_fd)
        if not times:
            continue
        before_times, before_seconds = sums.get(name, (0, 0.0))
        sums[name] = before_times + times, before_seconds + seconds
    return sums
