"""The ruleset as the kernel has it: two banks of rules, and one word that says which is in force.

The idle bank is written at leisure; then one store of 8 bytes makes it the one that packets go by, and every decision
that was kept an old one. What a killed daemon left stays in force until the next one installs its own.
"""

import ctypes
import errno
import os
import platform
import struct
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qos2.datapath import abi
from qos2.datapath.maps import Map, MappedArray
from qos2.datapath.ruleentries import behind_the_last
from qos2.errors import DatapathError, LimitExceeded

_WORD = struct.Struct("=IHBB")  # struct ruleset
_NUMBER = struct.Struct("=Q")
_GENERATIONS = 1 << 32
_LIBC = ctypes.CDLL(None, use_errno=True)
#: membarrier(2) and its command that waits until every packet that is under way has passed.
_SYS_MEMBARRIER = 324 if platform.machine() == "x86_64" else 283
_MEMBARRIER_CMD_GLOBAL = 1
#: Where that is refused (isolated processors): a thousand times what a packet takes for 4,096 rules.
_WAIT_S = 0.1


class Ruleset:
    """The maps `ruleset` and `rules`. One writer: the daemon."""

    def __init__(self, pins: Path) -> None:
        self._word = MappedArray(pins / "ruleset", abi.Ruleset, writable=True, reach=1)
        self._rules = Map(pins / "rules", ctypes.c_uint32, abi.RuleBlock)

    @property
    def generation(self) -> int:
        """Of what is in force; 0: nothing ever was."""
        return self._read()[0]

    def pools_in_use(self) -> set[int]:
        """Indexes of the pools that rules in force draw from."""
        _, count, bank, _ = self._read()
        found = set()
        for number in range(-(-count // abi.RULES_AT_ONCE)):
            block = self._rules.get(ctypes.c_uint32(bank * abi.RULE_BLOCKS + number))
            if block is not None:
                found |= {rule.pool for rule in block.rules if rule.bucket in (abi.Bucket.SOCKET, abi.Bucket.HOST)}
        return found

    def install(self, entries: Sequence[abi.Rule], flags: abi.RulesetFlag) -> int:
        """These and no others from the next packet on; returns their generation.

        Raises LimitExceeded and DatapathError: what was in force still is.
        """
        if len(entries) > abi.RULES:
            raise LimitExceeded(
                f"the rules are {len(entries):,} entries in the kernel, {abi.RULES:,} are the most",
                "each combination of a rule's alternatives is one",
            )
        generation, _, bank, _ = self._read()
        idle = 1 - bank
        _wait_for_packets()  # some may still go through what was in force before the present rules
        ended = [*entries, behind_the_last()]
        for number, first in enumerate(range(0, len(ended), abi.RULES_AT_ONCE)):
            block = abi.RuleBlock((abi.Rule * abi.RULES_AT_ONCE)(*ended[first : first + abi.RULES_AT_ONCE]))
            self._rules.put(ctypes.c_uint32(idle * abi.RULE_BLOCKS + number), block)
        return self._write(generation + 1, len(entries), idle, int(flags))

    def renew(self) -> int:
        """The same rules, every socket and connection decided anew; returns the new generation."""
        generation, count, bank, flags = self._read()
        return self._write(generation + 1, count, bank, flags)

    def close(self) -> None:
        self._word.close()
        self._rules.close()

    def _read(self) -> tuple[int, int, int, int]:
        return _WORD.unpack(self._word.memory[: _WORD.size])

    def _write(self, generation: int, count: int, bank: int, flags: int) -> int:
        generation = generation % _GENERATIONS or 1
        (number,) = _NUMBER.unpack(_WORD.pack(generation, count, bank, flags))
        self._word.view.view(np.uint64)[0] = number  # one store
        return generation


def _wait_for_packets() -> None:
    if _LIBC.syscall(_SYS_MEMBARRIER, _MEMBARRIER_CMD_GLOBAL, 0, 0) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS, errno.EPERM):
        raise DatapathError(f"membarrier: {os.strerror(number)}")
    time.sleep(_WAIT_S)
