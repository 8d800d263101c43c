"""Who made a socket: noted in its storage when it is made, while rules name executables.

The program at socket creation is linked to the root cgroup, as all processes are below it; the link is pinned, so
that it goes on where the daemon is killed. Sockets that a followed process had before are looked up once.
"""

import ctypes
import os
from collections.abc import Collection
from pathlib import Path

from qos2.datapath import abi
from qos2.datapath.hostsockets import HostSockets
from qos2.datapath.maps import LIBBPF, Map, refused
from qos2.datapath.programs import cgroup_mount
from qos2.errors import MissingKernelFeature

_BPF_CGROUP_INET_SOCK_CREATE = 2


class Owners:
    """The maps `executables` and `owners`, and the link."""

    def __init__(self, pins: Path, link: Path, program_fd: int) -> None:
        """`link` is where the link is pinned while there is one; `program_fd` is closed with this object."""
        self._executables = Map(pins / "executables", ctypes.c_uint32, ctypes.c_uint32)
        self._owners = Map(pins / "owners", ctypes.c_int, abi.Owner)
        self._pin = link
        self._program_fd = program_fd
        self._linked = False
        self._numbers: dict[int, int] = {}
        for key in list(self._executables.keys()):  # of a daemon that was killed: Executables tells all of them anew
            self._executables.delete(key)

    def record(self, pid: int, number: int) -> None:
        """This process runs the executable of this number. Raises DatapathError."""
        self._executables.put(ctypes.c_uint32(pid), ctypes.c_uint32(number))
        self._numbers[pid] = number

    def forget(self, pid: int) -> None:
        """It has ended, or runs something else."""
        self._numbers.pop(pid, None)
        self._executables.delete(ctypes.c_uint32(pid))

    def follow(self, numbers: Collection[int]) -> None:
        """From now on sockets remember their makers, if there are any numbers; of these, also those made before.

        `numbers` are those of executables that were not followed so far. Raises DatapathError, MissingKernelFeature.
        """
        if not self._linked:
            self._link()
        sockets = HostSockets([pid for pid, number in self._numbers.items() if number in numbers])
        for sock in sockets:
            key = ctypes.c_int(sock.fileno())
            if self._owners.get(key) is None:
                self._owners.put(key, abi.Owner(tgid=sockets.pid, executable=self._numbers[sockets.pid]))

    def unlink(self) -> None:
        """No rule names an executable: sockets that are made from now on are not noted."""
        self._pin.unlink(missing_ok=True)
        self._linked = False

    def close(self) -> None:
        self._executables.close()
        self._owners.close()
        os.close(self._program_fd)

    def _link(self) -> None:
        mount = cgroup_mount()
        if mount is None:
            raise MissingKernelFeature("cgroup2 is not mounted: rules cannot name executables")
        folder = os.open(mount, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            link = int(LIBBPF.bpf_link_create(self._program_fd, folder, _BPF_CGROUP_INET_SOCK_CREATE, None))
        finally:
            os.close(folder)
        if link < 0:
            raise refused("the kernel refused the program at socket creation")
        try:
            self._pin.unlink(missing_ok=True)  # that of a daemon before, which has done its work until here
            if LIBBPF.bpf_obj_pin(link, str(self._pin).encode()) != 0:
                raise refused(f"cannot pin {self._pin}")
        finally:
            os.close(link)
        self._linked = True
