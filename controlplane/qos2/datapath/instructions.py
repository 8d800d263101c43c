"""Which eBPF instructions and helpers the running kernel knows, found by offering it a program that has them.

Not by its version: distributions take instructions over into older kernels.
"""

import errno
import functools
import os
import struct

from qos2.datapath.maps import LIBBPF

_BPF_PROG_TYPE_SOCKET_FILTER = 1
_BPF_PROG_TYPE_SCHED_CLS = 3

#: struct bpf_insn: opcode, source register << 4 | destination register, offset, immediate.
_INSTRUCTION = struct.Struct("=BBhi")
_COMPARE_AND_SWAP = (
    (0xB7, 0x00, 0, 0),  # r0 = 0
    (0x7B, 0x0A, -8, 0),  # *(u64 *)(r10 - 8) = r0
    (0xB7, 0x01, 0, 1),  # r1 = 1
    (0xDB, 0x1A, -8, 0xF1),  # r0 = compare and swap (r10 - 8, r0, r1)
    (0xB7, 0x00, 0, 0),  # r0 = 0
    (0x95, 0x00, 0, 0),  # return r0
)
_NETNS_COOKIE = (
    (0x85, 0x00, 0, 122),  # r0 = bpf_get_netns_cookie(r1)
    (0xB7, 0x00, 0, 0),  # r0 = 0
    (0x95, 0x00, 0, 0),  # return r0
)


@functools.cache
def has_compare_and_swap() -> bool:
    """Whether there is the 64-bit compare-and-swap (Linux 5.12).

    True also where the kernel refuses for another reason, as for want of privilege: loading the datapath tells then.
    """
    return _accepts(_BPF_PROG_TYPE_SOCKET_FILTER, _COMPARE_AND_SWAP)


@functools.cache
def has_netns_cookie() -> bool:
    """Whether a program at tc can ask for the cookie of a packet's network namespace (Linux 6.15); else as above."""
    return _accepts(_BPF_PROG_TYPE_SCHED_CLS, _NETNS_COOKIE)


def _accepts(kind: int, instructions: tuple[tuple[int, int, int, int], ...]) -> bool:
    text = b"".join(_INSTRUCTION.pack(*fields) for fields in instructions)
    program = int(LIBBPF.bpf_prog_load(kind, b"probe", b"GPL", text, len(instructions), None))
    if program >= 0:
        os.close(program)
    return program != -errno.EINVAL
