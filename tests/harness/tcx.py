"""Which programs the kernel has in a device's tcx egress, asked of the kernel itself."""

import ctypes
import errno
import os

from qos2.datapath.links import Namespace
from qos2.datapath.maps import LIBBPF

_BPF_TCX_EGRESS = 47


def tcx_programs(namespace: Namespace, index: int) -> list[int]:
    """Ids of the programs, in the order in which they run; empty on kernels without tcx (before 6.6)."""

    def query() -> list[int]:
        flags, ids, count = ctypes.c_uint32(), (ctypes.c_uint32 * 16)(), ctypes.c_uint32(16)
        failed = LIBBPF.bpf_prog_query(index, _BPF_TCX_EGRESS, 0, ctypes.byref(flags), ids, ctypes.byref(count))
        if failed and ctypes.get_errno() == errno.EINVAL:
            return []
        assert not failed, os.strerror(ctypes.get_errno())
        return list(ids[: count.value])

    return namespace.run(query)
