"""Whole programs as flows: a cgroup per flow, whose sockets join it when they are made.

The cgroup is a child of the one that the program runs in, so its limits stay in force. The datapath's
program at socket creation is attached to it; it dies with the cgroup. Sockets that existed before
belong to the cgroup in which they were made and do not join.
"""

import ctypes
import os
from contextlib import suppress
from pathlib import Path

from qos2.datapath.maps import LIBBPF, Map, refused
from qos2.errors import MissingKernelFeature, NoSuchFlow
from qos2.model import FlowId, Peer

_BPF_CGROUP_INET_SOCK_CREATE = 2
_BPF_F_ALLOW_MULTI = 2
_PREFIX = "qos2-"


class Programs:
    """The cgroups that this daemon made, by flow."""

    def __init__(self, cgroups: Map, program_fd: int) -> None:
        self._cgroups = cgroups
        self._program_fd = program_fd
        self._folders: dict[FlowId, Path] = {}

    def adopt(self, flow: FlowId, peer: Peer) -> None:
        """Moves the peer's process into a cgroup of its own, bound to `flow`.

        Raises MissingKernelFeature without cgroup2, NoSuchFlow if the process is gone, DatapathError.
        """
        parent = _cgroup_of(peer.pid)
        folder = parent / f"{_PREFIX}{flow:08x}"
        try:
            folder.mkdir(mode=0o755)
        except OSError as error:
            raise MissingKernelFeature(f"cannot make {folder}: {error.strerror}") from error
        try:
            self._cgroups.put(ctypes.c_uint64(folder.stat().st_ino), ctypes.c_uint32(flow))
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                if LIBBPF.bpf_prog_attach(
                    self._program_fd, descriptor, _BPF_CGROUP_INET_SOCK_CREATE, _BPF_F_ALLOW_MULTI
                ):
                    raise refused("the kernel refused the program at socket creation")
            finally:
                os.close(descriptor)
            try:
                (folder / "cgroup.procs").write_text(str(peer.pid))
            except OSError as error:
                raise NoSuchFlow(f"process {peer.pid} cannot be moved: {error.strerror}") from error
        except Exception:  # whatever it was goes on to the caller, once the cgroup is gone
            self._remove(folder)
            raise
        self._folders[flow] = folder

    def release(self, flow: FlowId) -> bool:
        """Ends the cgroup of a flow; what still runs in it goes to its parent. False: the flow had none."""
        folder = self._folders.pop(flow, None)
        if folder is None:
            return False
        self._remove(folder)
        return True

    def take_over(self, live: set[FlowId]) -> None:
        """The cgroups of a daemon that was killed: those of `live` flows are kept, others are emptied and removed."""
        flows = {int(key.value): self._cgroups.get(key) for key in list(self._cgroups.keys())}
        mount = cgroup_mount() if flows else None
        for folder in mount.rglob(f"{_PREFIX}*") if mount else ():
            flow = flows.pop(folder.stat().st_ino, None)  # another daemon's cgroups are not in our map
            if flow is None:
                continue
            if FlowId(flow.value) in live:
                self._folders[FlowId(flow.value)] = folder
            else:
                self._remove(folder)
        for gone in flows:
            self._cgroups.delete(ctypes.c_uint64(gone))

    def close(self) -> None:
        for flow in list(self._folders):
            self.release(flow)
        self._cgroups.close()
        os.close(self._program_fd)

    def _remove(self, folder: Path) -> None:
        try:
            self._cgroups.delete(ctypes.c_uint64(folder.stat().st_ino))
        except FileNotFoundError:
            return
        for nested in sorted(folder.rglob("cgroup.procs"), key=lambda path: len(path.parts), reverse=True):
            _empty(nested, folder.parent / "cgroup.procs")
            with suppress(FileNotFoundError):
                nested.parent.rmdir()


def _empty(processes: Path, target: Path) -> None:
    """Moves what runs in a cgroup to another one; what is started meanwhile is moved by the next turn."""
    for _ in range(10):
        pids = processes.read_text().split()
        if not pids:
            return
        for pid in pids:
            with suppress(ProcessLookupError):
                target.write_text(pid)


def cgroup_mount() -> Path | None:
    """Where cgroup2 is mounted, None where it is not."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    return None


def _cgroup_of(pid: int) -> Path:
    mount = cgroup_mount()
    if mount is None:
        raise MissingKernelFeature("cgroup2 is not mounted", "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified")
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except FileNotFoundError:
        raise NoSuchFlow(f"process {pid} is gone") from None
    for line in lines:
        hierarchy, _, path = line.split(":", 2)
        if hierarchy == "0":
            return mount / path.lstrip("/")
    raise MissingKernelFeature(f"process {pid} is in no cgroup2")
