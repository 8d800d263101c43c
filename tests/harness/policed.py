"""A lab in which rules are in force without a daemon: the datapath alone, told what the service would tell it.

The datapath works inside one namespace of the lab. Rules get flows here as the service gives them: one each, and a
pool where every socket or host has a bucket of its own.
"""

import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.capture import Recording
from demo.lab import Lab, Namespace
from demo.processes import CACHE
from harness.wire import PATIENCE_S, Receiver
from qos2.core.ports import InstalledRule
from qos2.core.rule import Rule
from qos2.datapath import abi
from qos2.datapath.kernel import KernelDatapath
from qos2.datapath.pins import Pins
from qos2.datapath.programs import cgroup_mount
from qos2.model import Action, Dscp, FlowId, FlowPolicy, Shaping, flow_id

#: What a rate's excess is marked with, where it is sent at once.
EXCESS = Dscp(1)
_SLOTS = 4096
_SO_RCVBUFFORCE = 33

#: Sends datagrams as another user, cgroup or program would: CGROUP (or "") HOST PORT COUNT.
_SENDER = """
import pathlib, socket, sys
folder, host, port, count = sys.argv[1:]
family = socket.AF_INET6 if ":" in host else socket.AF_INET
if folder:
    pathlib.Path(folder, "cgroup.procs").write_text("0")
with socket.socket(family, socket.SOCK_DGRAM) as sock:
    sock.connect((host, int(port)))
    for _ in range(int(count)):
        sock.send(b"policy")
"""


class Policed:
    """The datapath in a namespace of a lab; a context manager. Its sockets and captures end with it."""

    def __init__(self, lab: Lab, namespace: Namespace, folder: Path) -> None:
        """`folder` lies on bpffs; the datapath's own folder is made in it."""
        self.lab = lab
        self._namespace = namespace
        self._folder = folder / uuid.uuid4().hex
        self._next_slot = 1
        self.flows: dict[str, FlowId] = {}
        self._stack = ExitStack()
        self.datapath: KernelDatapath

    def __enter__(self) -> Self:
        try:
            self.datapath = self._open()
        except BaseException:
            self._pins.close()
            raise
        self._stack.callback(lambda: self._pins.close())
        self._stack.callback(lambda: self.datapath.close())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def _open(self) -> KernelDatapath:
        self._pins = Pins(self._folder, _SLOTS, CACHE)
        self._pins.begin()
        with self._namespace.entered():
            return KernelDatapath(self._pins, device_names=(self._namespace.device,))

    def forerun(self, rule: Rule, pool: int) -> int:
        """Another process does what `with` does and puts a rule into force; its pid, to be killed. Before `with`."""
        ready, told = os.pipe()
        pid = os.fork()
        if pid == 0:
            with suppress(BaseException):  # whatever it was, the parent is told nothing and fails
                self.datapath = self._open()
                os.write(told, bytes([self.install(rule, pool=pool)]))
                signal.pause()
            os._exit(1)
        os.close(told)
        generation = os.read(ready, 1)
        os.close(ready)
        self._next_slot += 1 + pool  # theirs
        assert generation, "the first process did not come so far"
        return pid

    def begin(self, policy: FlowPolicy) -> None:
        self.datapath.put(policy, fresh=True)

    def new_flow(self) -> FlowId:
        """An id that no flow has had."""
        slot = self._next_slot
        self._next_slot += 1
        return flow_id(slot, self.datapath.generation(slot) + 1)

    def install(self, *rules: Rule, pool: int = 0) -> int:
        """These rules in this order, with `pool` prepared flows for each that has a pool. Flows of a name go on."""
        installed = []
        for rule in rules:
            if rule.act.deny or rule.act.exempt:
                installed.append(InstalledRule(rule, None))
                continue
            known = rule.name in self.flows
            flow = self.flows.setdefault(rule.name, self.new_flow() if not known else FlowId(0))
            self.datapath.put(policy_of(rule, flow), fresh=not known)
            each = InstalledRule(rule, flow)
            if each.pooled and not known:
                each = InstalledRule(rule, flow, self.prepare(rule, pool))
            installed.append(each)
        return self.datapath.install(installed)

    def prepare(self, rule: Rule, count: int) -> tuple[FlowId, ...]:
        """Flows for the pool of a rule."""
        flows = tuple(self.new_flow() for _ in range(count))
        for flow in flows:
            self.datapath.put(policy_of(rule, flow), fresh=True)
        return flows

    def clear(self) -> None:
        """No rules, and their flows have ended."""
        self.datapath.install(())
        for flow in self.flows.values():
            self.datapath.end(flow)
        self.flows.clear()

    def packets(self, name: str) -> int:
        """How many the rule's own flow has counted."""
        return self.datapath.stats(self.flows[name]).packets

    def counter(self, name: abi.Counter) -> int:
        counters: Mapping[str, int] = self.datapath.status().counters
        return counters[name.label]


def policy_of(rule: Rule, flow: FlowId) -> FlowPolicy:
    """What the service makes of a rule's act, as far as the datapath sees it."""
    act = rule.act
    action = Action.REMARK if act.shaping is Shaping.USE_NON_CONFORMANT_MARKINGS else Action.DELAY
    return FlowPolicy(flow, act.dscp, EXCESS, action if act.rate else Action.NONE, act.rate, priority=act.priority)


class Stage:
    """What one test uses: rules, sockets of the app, receivers and a capture at the peer."""

    def __init__(self, policed: Policed) -> None:
        self.policed = policed
        self.lab = policed.lab
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        self.policed.clear()

    def close(self) -> None:
        """Sockets and captures; the rules stay."""
        self._stack.close()

    def record(self) -> Recording:
        """A capture at the peer that has begun."""
        recording = Recording.start(self.lab.peer, self.lab.router)
        self._stack.callback(recording.cancel)
        return recording

    def socket(self, family: int, kind: int, side: str = "app") -> socket.socket:
        """Of the app or the peer, with a time limit on blocking calls."""
        namespace = self.lab.app if side == "app" else self.lab.peer
        sock = self._stack.enter_context(namespace.socket(family, kind))
        sock.settimeout(PATIENCE_S)
        return sock

    def receiver(self) -> Receiver:
        """A new UDP port of the peer, on all its addresses."""
        sock = self.socket(socket.AF_INET6, socket.SOCK_DGRAM, "peer")
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 22)  # whatever the host allows
        sock.bind(("::", 0))
        return Receiver(sock)

    def cgroup(self, *path: str) -> Path:
        """A cgroup made for this test."""
        mount = cgroup_mount()
        assert mount is not None
        folder = mount
        for name in path:
            folder /= name
            if not folder.exists():
                folder.mkdir()
                self._stack.callback(folder.rmdir)
        return folder

    def send_as(self, host: str, port: int, count: int, *, cgroup: Path | None = None, uid: int = 0) -> None:
        """Datagrams of a process that runs in a cgroup, as a user."""
        user = ["setpriv", "--reuid", str(uid), "--clear-groups"] if uid else []
        arguments = ("" if cgroup is None else str(cgroup), host, str(port), str(count))
        self.lab.app.run(*user, sys.executable, "-c", _SENDER, *arguments)

    def popen_shell(self, text: str) -> "subprocess.Popen[bytes]":
        """A shell of the app that reads its standard input."""
        return self.lab.app.popen("bash", "-c", text, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
