"""bpf/bucket.h as it is compiled for kernels before 5.12: charged by an atomic addition, by a store after a pause.

One CPU must be charged exactly as by the compare-and-swap; several lose nothing while the flow sends.
"""

import ctypes
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unit.native import SOURCE, WARNINGS, Native, native, tool, untimed

NOW_NS = 5 * 10**9


@pytest.fixture(scope="module")
def without() -> Iterator[Native]:
    """The library compiled without the instruction."""
    with tempfile.TemporaryDirectory(prefix="qos2-native-") as folder:
        library = Path(folder) / "qos_native.so"
        flags = ("-shared", "-fPIC", "-Wno-unknown-pragmas", "-DQOS_WITHOUT_COMPARE_AND_SWAP")
        subprocess.run([tool("gcc"), "-O2", *WARNINGS, *flags, "-o", str(library), str(SOURCE)], check=True)
        yield Native(ctypes.CDLL(str(library)))


@untimed
@given(
    tat_ns=st.integers(0, 2**62),
    charges=st.lists(st.tuples(st.integers(0, 2**60), st.integers(0, 2**40)), min_size=1, max_size=20),
)
def test_one_cpu_is_charged_as_with_the_instruction(
    without: Native, tat_ns: int, charges: list[tuple[int, int]]
) -> None:
    added, swapped = ctypes.c_uint64(tat_ns), ctypes.c_uint64(tat_ns)
    for now_ns, cost_ns in charges:
        assert without.charge(added, added.value, now_ns, cost_ns)
        assert native().charge(swapped, swapped.value, now_ns, cost_ns)
        assert added.value == swapped.value


def test_cpus_that_charge_a_flow_that_sends_lose_nothing(without: Native) -> None:
    tat, threads, times, cost_ns = ctypes.c_uint64(NOW_NS), 4, 50_000, 13
    senders = [threading.Thread(target=without.charge_many, args=(tat, NOW_NS, cost_ns, times)) for _ in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert tat.value == NOW_NS + threads * times * cost_ns


def test_a_charge_against_a_state_that_has_moved_on_is_added_to_it(without: Native) -> None:
    tat = ctypes.c_uint64(7000)
    assert without.charge(tat, 6999, 0, 100)
    assert tat.value == 7100
