"""The place where the program sees a device's outgoing packets: a tcx link, or a filter under clsact.

Attaches, replaces, takes over and detaches one program per device; what the program is, is the loader's
matter. Both kinds outlive the daemon: a tcx link (kernel 6.6) by its pin, a filter by itself. Filters
and programs of others are never touched, and are not shut out: ours lets every packet go on to the next.
"""

import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qos2.datapath.links import Namespace
from qos2.datapath.maps import LIBBPF, open_pin, refused
from qos2.datapath.netlink import NetlinkRefused
from qos2.datapath.tc import CLSACT_EGRESS, CLSACT_HANDLE, CLSACT_INGRESS, TC_H_CLSACT, TrafficControl
from qos2.errors import DatapathError, DeviceGone

HookKind = Literal["tcx", "clsact"]

# linux/bpf.h
BPF_TCX_EGRESS = 47
BPF_F_BEFORE = 1 << 3
BPF_LINK_TYPE_TCX = 11

#: Our filter among others. Filters without a chosen priority get 49152 and less, and so come after it.
FILTER_PRIORITY = 0x51
FILTER_HANDLE = 0x5152
FILTER_NAME = "qos_egress"

#: Text of the symbolic link at `pin_path` that remembers, through kill -9, our filter and whose its clsact qdisc is.
CLSACT_ADDED = "clsact-added-by-qos2"
CLSACT_FOUND = "clsact-of-others"


class _LinkCreateOptions(ctypes.Structure):
    """The beginning of libbpf's struct bpf_link_create_opts; the rest counts as zero."""

    _fields_ = (("sz", ctypes.c_size_t), ("flags", ctypes.c_uint32), ("padding", ctypes.c_uint32))


class _LinkInfo(ctypes.Structure):
    """struct bpf_link_info as far as the tcx member of its union."""

    _fields_ = (
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("prog_id", ctypes.c_uint32),
        ("padding", ctypes.c_uint32),
        ("ifindex", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
    )


@dataclass(frozen=True, slots=True)
class Hook:
    """A program attached to the egress of the device `index` of a namespace. Holds no descriptor."""

    namespace: Namespace
    index: int
    kind: HookKind
    pin_path: Path


def attach(namespace: Namespace, index: int, program_fd: int, pin_path: Path, kind: HookKind | None = None) -> Hook:
    """Let the program see what the device sends: by tcx where the kernel has it, or as `kind` says.

    A hook of ours that is there already gets the program (there is never a second one); of another
    kind than `kind`, it is detached first. `pin_path` lies in a bpf file system and belongs to this
    device alone (named by namespace cookie and index, say).

    Raises DatapathError where the kernel refuses, DeviceGone where there is no device.
    """
    present = adopt(namespace, index, pin_path)
    if present is not None:
        if kind in (None, present.kind):
            replace(present, program_fd)
            return present
        detach(present)
    if kind != "clsact" and _attach_tcx(namespace, index, program_fd, pin_path):
        return Hook(namespace, index, "tcx", pin_path)
    if kind == "tcx":
        raise DatapathError(f"device {index}: this kernel has no tcx", "it came with Linux 6.6; clsact does the same")
    _attach_clsact(namespace, index, program_fd, pin_path)
    return Hook(namespace, index, "clsact", pin_path)


def adopt(namespace: Namespace, index: int, pin_path: Path) -> Hook | None:
    """The hook that an earlier daemon left on this device, None where there is none.

    A pin that leads to no device any more is removed. Raises DatapathError.
    """
    if not pin_path.is_symlink() and pin_path.exists():
        if _tcx_device(pin_path) == index:
            return Hook(namespace, index, "tcx", pin_path)
        pin_path.unlink()
    tc = TrafficControl(namespace.conversation, index)
    hook = Hook(namespace, index, "clsact", pin_path)
    if _has_clsact(tc) and _own_filter(tc):
        return hook
    if pin_path.is_symlink():
        # Somebody removed our filter, or the device went with its qdiscs and another one has its index.
        _detach_clsact(hook)
    return None


def in_place(hook: Hook) -> bool:
    """False if the device no longer has the hook: somebody removed our filter, or the clsact qdisc with all in it.

    Also where the device has gone. Raises DatapathError.
    """
    if hook.kind == "tcx":
        return hook.pin_path.exists() and _tcx_device(hook.pin_path) == hook.index
    found = TrafficControl(hook.namespace.conversation, hook.index).filter(
        parent=CLSACT_EGRESS, priority=FILTER_PRIORITY, handle=FILTER_HANDLE
    )
    return found is not None and (found.kind, found.name) == ("bpf", FILTER_NAME)


def replace(hook: Hook, program_fd: int) -> None:
    """Put another program into the hook's place, atomically: each packet meets the old or the new one."""
    if hook.kind == "clsact":
        TrafficControl(hook.namespace.conversation, hook.index).set_bpf_filter(
            program_fd,
            parent=CLSACT_EGRESS,
            priority=FILTER_PRIORITY,
            handle=FILTER_HANDLE,
            name=FILTER_NAME,
            replace=True,
        )
        return
    link = open_pin(hook.pin_path)
    try:
        if LIBBPF.bpf_link_update(link, program_fd, None) < 0:
            if ctypes.get_errno() == errno.ENOLINK:
                raise DeviceGone(f"device {hook.index} of the link {hook.pin_path} does not exist any more")
            raise refused(f"replacing the program of link {hook.pin_path}")
    finally:
        os.close(link)


def detach(hook: Hook) -> None:
    """Take the program away. Fine where the device has gone. Leaves everybody else's filters.

    The clsact qdisc goes too if we added it and nobody else has a filter in it by now.
    """
    if hook.kind == "clsact":
        _detach_clsact(hook)
        return
    link = open_pin(hook.pin_path)
    try:
        # Without a detach, somebody who holds a descriptor of the link would keep the program in its place.
        if LIBBPF.bpf_link_detach(link) < 0 and ctypes.get_errno() != errno.ENOLINK:
            raise refused(f"detaching link {hook.pin_path}")
    finally:
        os.close(link)
    hook.pin_path.unlink()


def _attach_tcx(namespace: Namespace, index: int, program_fd: int, pin_path: Path) -> bool:
    """False where the kernel does not know tcx."""

    def create() -> int:
        # First in the list: a program before ours that says "pass" would end the walk.
        options = _LinkCreateOptions(ctypes.sizeof(_LinkCreateOptions), BPF_F_BEFORE, 0)
        link = int(LIBBPF.bpf_link_create(program_fd, index, BPF_TCX_EGRESS, ctypes.byref(options)))
        if link >= 0:
            return link
        if ctypes.get_errno() == errno.EINVAL:
            return -1
        if ctypes.get_errno() == errno.ENODEV:
            raise DeviceGone(f"network device {index} does not exist")
        raise refused(f"attaching a tcx program to device {index}")

    # The kernel looks for the index in the namespace of the calling thread.
    link = namespace.run(create)
    if link < 0:
        return False
    try:
        if LIBBPF.bpf_obj_pin(link, str(pin_path).encode()) < 0:
            raise refused(f"pinning the link of device {index} at {pin_path}", "is a bpf file system mounted there?")
    finally:
        os.close(link)
    return True


def _tcx_device(pin_path: Path) -> int:
    """Index of the device of a pinned tcx link, 0 if it has gone or the pin is none of a tcx link."""
    link = open_pin(pin_path)
    try:
        info = _LinkInfo()
        size = ctypes.c_uint32(ctypes.sizeof(info))
        if LIBBPF.bpf_obj_get_info_by_fd(link, ctypes.byref(info), ctypes.byref(size)) < 0:
            raise refused(f"reading link {pin_path}")
        tcx = info.type == BPF_LINK_TYPE_TCX and info.attach_type == BPF_TCX_EGRESS
        return int(info.ifindex) if tcx else 0
    finally:
        os.close(link)


def _attach_clsact(namespace: Namespace, index: int, program_fd: int, pin_path: Path) -> None:
    tc = TrafficControl(namespace.conversation, index)
    added = False
    try:
        tc.add_clsact()
        added = True
    except NetlinkRefused as error:
        if error.number != errno.EEXIST:
            raise
    try:
        # Before the filter: without it nobody would find, after kill -9, the namespace that the filter is in.
        pin_path.symlink_to(CLSACT_ADDED if added else CLSACT_FOUND)
        tc.set_bpf_filter(
            program_fd,
            parent=CLSACT_EGRESS,
            priority=FILTER_PRIORITY,
            handle=FILTER_HANDLE,
            name=FILTER_NAME,
            replace=False,
        )
    except BaseException:
        pin_path.unlink(missing_ok=True)
        if added:
            tc.delete_qdisc(parent=TC_H_CLSACT, handle=CLSACT_HANDLE)
        raise


def _detach_clsact(hook: Hook) -> None:
    tc = TrafficControl(hook.namespace.conversation, hook.index)
    try:
        if _own_filter(tc):
            tc.delete_filter(parent=CLSACT_EGRESS, priority=FILTER_PRIORITY, handle=FILTER_HANDLE)
        # A filter added between this look and the removal is lost: the kernel knows no "if empty".
        if _added_clsact(hook.pin_path) and _is_empty_clsact(tc):
            tc.delete_qdisc(parent=TC_H_CLSACT, handle=CLSACT_HANDLE)
    except DeviceGone:
        pass  # its qdiscs and filters went with it
    hook.pin_path.unlink(missing_ok=True)


def _added_clsact(pin_path: Path) -> bool:
    return pin_path.is_symlink() and os.readlink(pin_path) == CLSACT_ADDED


def _has_clsact(tc: TrafficControl) -> bool:
    return any(qdisc.kind == "clsact" for qdisc in tc.qdiscs())


def _is_empty_clsact(tc: TrafficControl) -> bool:
    return _has_clsact(tc) and not tc.filters(CLSACT_EGRESS) and not tc.filters(CLSACT_INGRESS)


def _own_filter(tc: TrafficControl) -> bool:
    """Whether our filter is there. Raises DatapathError where its place is another's."""
    for found in tc.filters(CLSACT_EGRESS):
        if (found.priority, found.handle) == (FILTER_PRIORITY, FILTER_HANDLE):
            if found.kind == "bpf" and found.name == FILTER_NAME:
                return True
            raise DatapathError(
                f"device {tc.index}: a foreign {found.kind} filter {found.name!r} has priority {FILTER_PRIORITY:#x} "
                f"and handle {FILTER_HANDLE:#x} at egress",
                "give it another priority",
            )
    return False
