"""What the compiled programs ask of a kernel's eBPF: their atomic instructions, and that the kernel takes them.

Of these 5.10 knows only the addition whose result is not used; compare-and-swap came with 5.12.
"""

import struct
from pathlib import Path

import pytest

from harness.program import compiled
from qos2.datapath import loader
from qos2.datapath.instructions import has_compare_and_swap
from qos2.datapath.objects import Objects

pytestmark = pytest.mark.datapath

_ATOMIC = {0xDB, 0xC3}  # BPF_STX | BPF_ATOMIC, of 64 and of 32 bits
_ADD, _COMPARE_AND_SWAP = 0x00, 0xF1
_WITHOUT = "#define QOS_WITHOUT_COMPARE_AND_SWAP\n"


def atomics(text: str, pins: Path) -> dict[str, set[int]]:
    """The kinds of atomic instruction in each program at tc, once the kernel has taken it."""
    pins.mkdir()
    found = {}
    try:
        datapath = compiled(text, pins)
        with Objects(datapath, pins, 64) as objects:
            for name in loader.STAGES:
                objects.program(name)
                code = struct.iter_unpack("=BBhi", datapath.program(name).code)
                found[name] = {immediate for opcode, _, _, immediate in code if opcode in _ATOMIC}
    finally:
        for pin in pins.iterdir():
            pin.unlink()
    return found


def test_before_linux_5_12_only_additions_are_asked_for(bpf_fs: Path) -> None:
    prefix = _WITHOUT if has_compare_and_swap() else ""  # else the loader says it
    found = atomics(prefix + loader.read_source(), bpf_fs / "without")
    assert found == {name: {_ADD} for name in loader.CLASSIFIERS} | {"qos_decide": set()}


def test_since_linux_5_12_a_bucket_is_charged_by_compare_and_swap(bpf_fs: Path) -> None:
    if not has_compare_and_swap():
        pytest.skip("this kernel has no compare-and-swap for eBPF (Linux 5.12)")
    found = atomics(loader.read_source(), bpf_fs / "with")
    expected = {name: {_ADD, _COMPARE_AND_SWAP} for name in loader.CLASSIFIERS}
    assert found == expected | {"qos_decide": {_COMPARE_AND_SWAP}}
