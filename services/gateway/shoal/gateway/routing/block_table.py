"""The table under the prefix index: which slots hold which blocks, in which tier. A slot is a worker's number.

Two forms with one contract: `NativeTable` in C, and `PythonTable`, which needs no compiler, is slower and larger, and
is what the tests compare with.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from enum import IntEnum
from typing import Protocol

from shoal.blocks import KeyChain, native_hash_chain
from shoal.gateway.routing.native_table import NativeTable
from shoal.gateway.routing.python_table import PythonTable
from shoal.native import NativeBuildError

_logger = logging.getLogger(__name__)


class Tier(IntEnum):
    """Where a worker can find a block, fastest first."""

    DEVICE = 0
    MEMORY = 1
    DISK = 2


class Level(IntEnum):
    """What counts as held; each level counts everything that those before it do."""

    DEVICE = 0
    SOON = 1
    """Expected on the device, because a request that has it was sent there a moment ago."""
    MEMORY = 2
    DISK = 3


class BlockTable(Protocol):
    """Holds at most `max_keys` keys; when full, the key stored, expected or matched longest ago goes.

    The keys of one call are a chain, or in no order: its start counts as used after its end, since without the start
    the rest is useless. `tick` is the time, in any unit that never goes back. For one thread.
    """

    def __len__(self) -> int:
        """Keys held, with those that only retired slots held and that no sweep has reached."""
        ...

    def acquire(self) -> int:
        """A slot that holds nothing; -1 when all are taken or not yet swept."""
        ...

    def retire(self, slot: int) -> None:
        """`slot` holds nothing and matches nothing from here on. It can be acquired again after a sweep."""
        ...

    def sweep(self, budget: int, tick: int) -> bool:
        """Looks at `budget` keys for what retired slots held; whether there is more to do."""
        ...

    def store(self, slot: int, tier: Tier, keys: Sequence[bytes]) -> None:
        """`slot` holds these. Raises ValueError for a key that has not 16 bytes."""
        ...

    def remove(self, slot: int, tier: Tier, keys: Sequence[bytes], tick: int) -> None:
        """`slot` does not hold these; unknown ones are fine. From the device, what was expected goes as well."""
        ...

    def expect(self, slot: int, keys: KeyChain, tick: int, until: int) -> None:
        """`slot` counts as holding what it does not hold yet, at ticks before `until`.

        A key is expected at two slots at most, the two that were named last. `until` never goes back.
        """
        ...

    def withdraw(self, slot: int, keys: KeyChain, tick: int, until: int) -> None:
        """Undoes `expect`, where nobody named `slot` again with a later `until`."""
        ...

    def match(self, keys: KeyChain, tick: int) -> int:
        """Walks `keys` while any slot holds all of them at some level; how many that were. See `depths`."""
        ...

    def depths(self, level: Level) -> Sequence[int]:
        """By slot, the leading keys of the last match that it holds at `level`. Valid until the next match."""
        ...

    def count(self, slot: int, tier: Tier) -> int:
        """Keys that `slot` holds in `tier`."""
        ...


def make_table(max_keys: int) -> BlockTable:
    """The native table; the Python one, with a warning, where there is no C compiler."""
    native_hash_chain()  # compiles here, at start, and not in the first request
    try:
        return NativeTable(max_keys)
    except NativeBuildError as error:
        _logger.warning("the prefix index runs in Python, slower and with more memory: %s", error)
        return PythonTable(max_keys)
