"""Pods without Kubernetes: one process each, in namespaces and with the rights that its manifest states.

A Node is what a kubelet and a container runtime do of that: a root file system of its own (put together from this
host's programs and the checkout, or an image's), volumes, capabilities, user, process ids. The network namespace is
one of the lab's. Every mount is made in the container's own mount namespace and ends with it; only the node's bpf
file system is mounted outside, as a host does.
"""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from demo.lab import Namespace, command
from harness.manifests import Document, gid_of_image

_REPOSITORY = Path(__file__).resolve().parents[2]
#: The host's user that is root in a pod with users of its own.
FIRST_MAPPED = 1_000_000
_PATIENCE_S = 10.0
#: What programs of this host need of it, by name below /: folders, or links into /usr.
_PROGRAMS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr")
#: Of /etc, to find libraries and the names of users.
_SETTINGS = ("ld.so.cache", "nsswitch.conf", "passwd")
#: Until its users are mapped, from outside. Meanwhile it is nobody, whose capabilities would not outlive execve(2).
_USERS_OF_ITS_OWN = ["unshare", "--user", "--keep-caps", "sh", "-c", 'read -r _; exec "$@"', "sh"]


class Container:
    """A running container. `log` has what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path, own_pids: bool) -> None:
        self.process = process
        self._log = log
        self._own_pids = own_pids

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """Its first process, as the host counts; where it counts for itself, that is the child of unshare(1)."""
        return (_child(self.process.pid) if self._own_pids else None) or self.process.pid

    def kill(self) -> None:
        """As the kernel does when memory is short: nothing of it can tidy up."""
        self.process.kill()
        self.process.wait()

    def stop(self, grace_s: float = 20.0) -> int:
        """As a kubelet does, by SIGTERM; its exit status. TimeoutExpired where it takes longer than `grace_s`."""
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(grace_s)


class Node:
    """A host for pods, with its own /run and bpf file system below a temporary folder; a context manager."""

    def __init__(self, config_maps: dict[str, dict[str, str]], image: Path | None = None) -> None:
        """`config_maps`: files by name and key. `image`: the root file system to use instead of this host's."""
        self._config_maps = config_maps
        self._image = image
        self._stack = ExitStack()
        self._running: list[Container] = []
        self.folder = Path()

    def __enter__(self) -> Self:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="qos2-node-"))
            self._stack.callback(shutil.rmtree, self.folder)
            self.folder.chmod(0o755)
            pins = self.host("/sys/fs/bpf")
            pins.mkdir(parents=True)
            command("mount", "-t", "bpf", "bpf", str(pins))
            self._stack.callback(command, "umount", str(pins))
            self._stack.callback(self._end_all)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def host(self, path: str) -> Path:
        """Where a path of the node is in truth."""
        return self.folder / "host" / path.lstrip("/")

    def run(self, pod: Document, network: Namespace, *argv: str, **environment: str) -> Container:
        """Starts the first container of a pod's `spec` in a network namespace.

        `argv` in place of its command and arguments; `environment` beside its variables, and in place of those whose
        value is of the node.
        """
        container: Document = pod["containers"][0]
        root = Path(tempfile.mkdtemp(prefix="root-", dir=self.folder)) if self._image is None else self._image
        script = ["set -eu", f"mount --bind {_q(root)} {_q(root)}"]
        if self._image is None:
            script += self._programs(root)
        script += _kernel_file_systems(root)
        volumes = {volume["name"]: volume for volume in pod.get("volumes", [])}
        for mount in container.get("volumeMounts", []):
            script += self._volume(root, mount, volumes[mount["name"]])
        security = pod.get("securityContext", {}) | container.get("securityContext", {})
        if security.get("readOnlyRootFilesystem"):
            script.append(f"mount -o remount,bind,ro {_q(root)}")
        variables = self._environment(container, environment)
        words = argv or (*container.get("command", ["qos2d"]), *_expanded(container.get("args", []), variables))
        mapped = [] if pod.get("hostUsers", True) else _USERS_OF_ITS_OWN
        # Not by chroot(2), in which no user namespace can be made.
        script += [f"cd {_q(root)}", "pivot_root . old", "umount -l /old"]
        script.append(shlex.join(["exec", *mapped, *_rights(security), *words]))
        unshared = ["--mount", "--propagation", "slave", "--ipc", "--uts"]
        if not pod.get("hostPID"):
            unshared += ["--pid", "--fork", "--kill-child=KILL"]
        log = self.folder / f"log-{len(self._running)}"
        with open(log, "ab") as sink:
            process = network.popen(
                *("unshare", *unshared, "bash", "-c", "\n".join(script)),
                stdin=subprocess.PIPE,
                stdout=sink,
                stderr=sink,
                env=variables,
            )
        self._running.append(Container(process, log, not pod.get("hostPID", False)))
        if mapped:
            _map_users(self._running[-1])
        return self._running[-1]

    def _end_all(self) -> None:
        for container in self._running:
            if container.process.poll() is None:
                container.kill()
            if container.process.stdin is not None:
                container.process.stdin.close()

    def _programs(self, root: Path) -> list[str]:
        """This host's programs and the checkout in a root of their own, all read-only."""
        script = []
        for name in _PROGRAMS:
            path = Path("/", name)
            if path.is_symlink():
                (root / name).symlink_to(path.readlink())
            elif path.is_dir():
                script += _bind(path, root / name, read_only=True)
        etc = root / "etc"
        etc.mkdir()
        for name in _SETTINGS:
            if (source := Path("/etc", name)).exists():
                shutil.copy(source, etc)
        (etc / "group").write_text(f"root:x:0:\nqos2:x:{gid_of_image()}:\n")
        for path in sorted({_REPOSITORY, Path(sys.prefix).resolve()}):  # the second may lie in the first
            script += _bind(path, root / str(path).lstrip("/"), read_only=True)
        root.chmod(0o755)
        return script

    def _volume(self, root: Path, mount: Document, volume: Document) -> list[str]:
        target = root / mount["mountPath"].lstrip("/")
        if "hostPath" in volume:
            source = self.host(volume["hostPath"]["path"])
            if volume["hostPath"]["type"] == "DirectoryOrCreate":
                source.mkdir(parents=True, exist_ok=True)
        else:
            source = self.folder / "config" / volume["configMap"]["name"]
            source.mkdir(parents=True, exist_ok=True)
            for key, text in self._config_maps[volume["configMap"]["name"]].items():
                (source / key).write_text(text)
        return _bind(source / mount.get("subPath", ""), target, read_only=mount.get("readOnly", False))

    def _environment(self, container: Document, given: dict[str, str]) -> dict[str, str]:
        variables = {each["name"]: each["value"] for each in container.get("env", []) if "value" in each}
        paths = "/opt/qos2/bin" if self._image is not None else f"{sys.prefix}/bin"
        return {
            "PATH": f"{paths}:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "PYTHONDONTWRITEBYTECODE": "1",
            **({} if self._image is not None else {"PYTHONPATH": str(_REPOSITORY / "controlplane")}),
            **variables,
            **given,
        }


def _kernel_file_systems(root: Path) -> list[str]:
    """/proc of the container's own process ids, /sys and /proc/sys read-only, as runtimes give them; /dev."""
    for name in ("proc", "sys", "dev", "old"):
        (root / name).mkdir(exist_ok=True)
    settings = root / "proc" / "sys"
    return [
        f"mount -t proc proc {_q(root / 'proc')}",
        *_mounted(settings, settings, read_only=True),
        f"mount -t sysfs -o ro sysfs {_q(root / 'sys')}",
        f"mount --rbind /dev {_q(root / 'dev')}",
    ]


def _bind(source: Path, target: Path, *, read_only: bool) -> list[str]:
    """Makes the place where `source` will be mounted; the commands that do it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    return _mounted(source, target, read_only=read_only)


def _mounted(source: Path, target: Path, *, read_only: bool) -> list[str]:
    script = [f"mount --bind {_q(source)} {_q(target)}"]
    if read_only:
        script.append(f"mount -o remount,bind,ro {_q(target)}")
    return script


def _rights(security: Document) -> list[str]:
    """setpriv(1) with what a securityContext states."""
    capabilities = security.get("capabilities", {})
    user = int(security.get("runAsUser", 0))
    group = int(security.get("runAsGroup", 0))
    groups = ",".join(map(str, security.get("supplementalGroups", [])))
    kept = [f"+{name.lower()}" for name in capabilities.get("add", [])]
    words = ["setpriv", f"--reuid={user}", f"--regid={group}", f"--groups={groups}" if groups else "--clear-groups"]
    if "ALL" in capabilities.get("drop", []):
        words += [f"--bounding-set={','.join(['-all', *kept])}", "--inh-caps=-all"]
    if security.get("allowPrivilegeEscalation") is False:
        words.append("--no-new-privs")
    return words


def _map_users(container: Container) -> None:
    """Gives the user namespace of a container that waits for it 65,536 users of the host, as a kubelet does."""
    process = container.process
    ours = os.stat("/proc/self/ns/user").st_ino
    deadline = time.monotonic() + _PATIENCE_S
    while os.stat(f"/proc/{(pid := container.pid)}/ns/user").st_ino == ours:
        assert process.poll() is None, container.log
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for which in ("uid_map", "gid_map"):
        Path(f"/proc/{pid}/{which}").write_text(f"0 {FIRST_MAPPED} 65536")
    assert process.stdin is not None
    process.stdin.write(b"\n")
    process.stdin.flush()


def _child(parent: int) -> int | None:
    """A child of a process, None where it has none."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(status[1]) == parent:
            return int(process.name)
    return None


def _expanded(words: list[str], variables: dict[str, str]) -> list[str]:
    """$(NAME) as a kubelet replaces it in arguments."""
    for name, value in variables.items():
        words = [word.replace(f"$({name})", value) for word in words]
    return words


def _q(path: Path) -> str:
    return shlex.quote(os.fspath(path))
