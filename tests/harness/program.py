"""The datapath's programs under BPF_PROG_TEST_RUN: packet in, packet out, no device.

A test run's socket is a dummy that user space cannot reach, so that one line of the source is
replaced: where the production program reads the socket's storage, this one creates it from the map
`test_binding`. Everything behind that line is the production text.
"""

import ctypes
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from demo.processes import CACHE
from qos2.datapath import abi, cache, loader, maps, objects
from qos2.datapath.compiled import Compiled, Unusable

_LOOKUP = "bound = sockets.sk_storage_get(sk, 0, 0);"
_GIVEN = """{
		u32 only = 0;
		struct socket_flow *given = test_binding.lookup(&only);

		if (!given)
			return TC_ACT_UNSPEC;
		bound = sockets.sk_storage_get(sk, given, BPF_SK_STORAGE_GET_F_CREATE);
	}"""
_SOCKETS = "QOS_SOCKET_STORAGE(struct socket_flow,"
_TABLE = 'QOS_TABLE("array", u32, struct socket_flow, test_binding, 1, 0);\n'


class SkBuff(ctypes.Structure):
    """struct __sk_buff of the uapi header, as far as a test run reads or writes it."""

    _fields_ = [
        ("before", ctypes.c_uint32 * 8),
        ("priority", ctypes.c_uint32),
        ("between", ctypes.c_uint32 * 29),
        ("tstamp", ctypes.c_uint64),
        ("wire_len", ctypes.c_uint32),
        ("gso_segs", ctypes.c_uint32),
        ("sk", ctypes.c_uint64),
        ("gso_size", ctypes.c_uint32),
        ("tstamp_type", ctypes.c_uint32),
        ("hwtstamp", ctypes.c_uint64),
    ]


assert SkBuff.tstamp.offset == 152
assert ctypes.sizeof(SkBuff) == 192


class _Options(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf."""

    _fields_ = [
        ("sz", ctypes.c_size_t),
        ("data_in", ctypes.c_void_p),
        ("data_out", ctypes.c_void_p),
        ("data_size_in", ctypes.c_uint32),
        ("data_size_out", ctypes.c_uint32),
        ("ctx_in", ctypes.c_void_p),
        ("ctx_out", ctypes.c_void_p),
        ("ctx_size_in", ctypes.c_uint32),
        ("ctx_size_out", ctypes.c_uint32),
        ("retval", ctypes.c_uint32),
        ("repeat", ctypes.c_int),
        ("duration", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("batch_size", ctypes.c_uint32),
    ]


@dataclass(frozen=True)
class Run:
    """What came out of a test run."""

    verdict: int  #: TC_ACT_*, signed
    packet: bytes
    priority: int
    tstamp: int
    ns: int  #: average of one repetition


def run(program_fd: int, packet: bytes, *, skb: SkBuff | None = None, repeat: int = 1) -> Run:
    """One BPF_PROG_TEST_RUN. Raises OSError where the kernel refuses the packet."""
    data_in = ctypes.create_string_buffer(packet, len(packet))
    data_out = ctypes.create_string_buffer(len(packet) + 64)
    context_in = skb or SkBuff()
    context_out = SkBuff()
    options = _Options(
        sz=ctypes.sizeof(_Options),
        data_in=ctypes.addressof(data_in),
        data_out=ctypes.addressof(data_out),
        data_size_in=len(packet),
        data_size_out=len(data_out),
        ctx_in=ctypes.addressof(context_in),
        ctx_out=ctypes.addressof(context_out),
        ctx_size_in=ctypes.sizeof(SkBuff),
        ctx_size_out=ctypes.sizeof(SkBuff),
        repeat=repeat,
    )
    if maps.LIBBPF.bpf_prog_test_run_opts(program_fd, ctypes.byref(options)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return Run(
        ctypes.c_int32(options.retval).value,
        data_out.raw[: options.data_size_out],
        context_out.priority,
        context_out.tstamp,
        options.duration,
    )


def compiled(text: str, scratch: Path, link: str = "ethernet") -> Compiled:
    """A text of the datapath, compiled once for all runs. `scratch` is an empty folder on bpffs."""
    key = loader.key_of(text, link)
    with suppress(Unusable):
        found = cache.read(CACHE, key)
        if found is not None:
            return found
    made = loader.compile_text(text, scratch, link)
    if key == loader.key_of(text, link):  # no header was edited meanwhile
        with suppress(OSError):  # a checkout that cannot be written costs the next run its time
            cache.keep(CACHE, key, made)
    return made


class Program:
    """The datapath loaded for test runs, with its maps. `fd[name]` is a program's descriptor."""

    def __init__(self, pins: Path, slots: int, *, given: bool = True, extra: str = "", link: str = "ethernet") -> None:
        """`pins` is made, on bpffs. `given` False leaves the source as it is; `extra` is appended to it."""
        self.pins = pins
        pins.mkdir()
        text = loader.read_source()
        if given:
            assert text.count(_LOOKUP) == 1
            text = text.replace(_LOOKUP, _GIVEN).replace(_SOCKETS, _TABLE + _SOCKETS, 1)
        self._objects = objects.Objects(compiled(text + extra, pins, link), pins, slots)
        self._objects.fill_stages()
        self.fd = {name: self._objects.program(name) for name in loader.STAGES}
        self.policy = maps.MappedArray(pins / "policy", abi.FlowPolicy, writable=True, reach=slots)
        self.hot = maps.MappedArray(pins / "hot", abi.FlowHot, writable=True, reach=slots)
        self.cold = maps.MappedArray(pins / "cold", abi.FlowCold, writable=True, reach=slots)
        self.counters = maps.PerCpuCounters(pins / "counters", abi.COUNTERS)
        self.destinations = maps.Map(pins / "destinations", abi.Destination, ctypes.c_uint32)
        self.binding = maps.Map(pins / "test_binding", ctypes.c_uint32, abi.SocketFlow) if given else None

    def load(self, name: str) -> int:
        """The descriptor of a further program of `extra`."""
        return self._objects.program(name)

    def bind(self, value: abi.SocketFlow) -> None:
        """The storage that the next test runs' socket has."""
        assert self.binding is not None
        self.binding.put(ctypes.c_uint32(0), value)

    def put(self, slot: int, **fields: int) -> None:
        """A policy, all fields not named 0, and fresh counters."""
        self.hot.view[slot] = 0
        self.cold.view[slot] = 0
        self.policy.view[slot] = 0
        for name, value in fields.items():
            self.policy.view[name][slot] = value

    def counter(self, name: abi.Counter) -> int:
        return self.counters.read()[name]

    def close(self) -> None:
        for array in (self.policy, self.hot, self.cold, self.counters, self.destinations):
            array.close()
        if self.binding is not None:
            self.binding.close()
        self._objects.close()
        for pin in self.pins.iterdir():
            pin.unlink()
        shutil.rmtree(self.pins, ignore_errors=True)
