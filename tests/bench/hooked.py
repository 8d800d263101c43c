"""The datapath on devices of a Pair: loaded, attached, and its maps written directly, without a daemon."""

import ctypes
import socket
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from bench.datapath import DSCP, Tuple, load, set_policies, tuple_key
from bench.pair import Link, Pair
from qos2.datapath import abi, hook
from qos2.datapath.links import Namespace
from qos2.datapath.maps import Map

EMPTY_PROGRAM, REFERENCE_PROGRAM, DATAPATH = "bench_empty", "bench_reference", "qos_fq"


class Hooked:
    """Programs by name, the flows of registered sockets, and hooks. Lives as long as `stack`."""

    def __init__(self, folder: Path, pair: Pair, stack: ExitStack, flows: int) -> None:
        """`folder` lies on bpffs; `flows` is the most that are registered."""
        self._folder = folder
        self._flows = flows
        self._pair = pair
        self._stack = stack
        self._program = stack.enter_context(closing(load(folder, flows)))
        pins = self._program.pins
        self._keys = stack.enter_context(closing(Map(pins / "bench_flows", Tuple, ctypes.c_uint64)))
        self._sockets = stack.enter_context(closing(Map(pins / "sockets", ctypes.c_int, abi.SocketFlow)))
        self.fd = {name: self._program.load(name) for name in (EMPTY_PROGRAM, REFERENCE_PROGRAM)}
        self.fd[DATAPATH] = self._program.fd[DATAPATH]

    def attach(self, link: Link, program: str) -> hook.Hook:
        """At egress of the link's near device, until the end of the stack."""
        with open(self._pair.near.path) as descriptor:
            namespace = self._stack.enter_context(closing(Namespace(descriptor.fileno())))
        index = next(device.index for device in namespace.devices() if device.name == link.device)
        attached = hook.attach(namespace, index, self.fd[program], self._folder / link.device)
        self._stack.callback(hook.detach, attached)
        return attached

    def register(self, sockets: Sequence[socket.socket], first: int = 1) -> None:
        """A flow for each, from the id `first` on, and the DSCP preset as the daemon would."""
        for flow, sock in enumerate(sockets, first):
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, DSCP << 2)
            self._sockets.put(ctypes.c_int(sock.fileno()), abi.SocketFlow(flow_id=flow))

    def set_policies(self, *, limit: bool, mark: bool, dscp: int = DSCP) -> None:
        """The same policy for all flows (see datapath.set_policies)."""
        set_policies(self._program.policy, self._flows, limit=limit, mark=mark, dscp=dscp)

    def know(self, sockets: Sequence[socket.socket]) -> None:
        """A key of the reference program for each."""
        for sock in sockets:
            protocol = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PROTOCOL)
            key = tuple_key(protocol, sock.getsockname(), sock.getpeername())
            self._keys.put(key, ctypes.c_uint64(0))
