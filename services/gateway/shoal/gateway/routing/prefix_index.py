"""Which workers hold which KV blocks, as their KV events tell and as the picks just made let expect.

One table from block key to sets of workers, one set a tier, so that one walk over a prompt's keys answers for all
workers at once (the idea of SGLang's and Dynamo's routers, on chained hashes in place of a radix tree). Keys are stored
whole: a prediction is wrong when the worker has changed since, never because two keys look alike. Costs and reasons:
docs/adr/0008-a-native-prefix-index.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from shoal.blocks import KeyChain
from shoal.gateway.routing.block_table import BlockTable, Level, Tier, make_table

EXPECT_S: Final = 5.0
"""How long a pick counts as cached where it was sent, unless an event confirms it. A choice: long enough to compute
some 100,000 tokens on a large GPU, short enough that a request that failed misleads few others."""
SWEEP_KEYS: Final = 2048
"""Keys that each call sweeps while a worker is being forgotten: some 10 us."""
_TICKS_A_SECOND: Final = 16


class CachedPrefix(NamedTuple):
    """Leading blocks that one worker holds. Each number counts the tiers before it as well."""

    device: int
    soon: int
    """With what it is expected to compute in a moment."""
    memory: int
    disk: int


class PrefixIndex:
    """Bounded: past `max_keys`, keys stored or matched longest ago are forgotten, which only predicts too little.

    Every call is short: a worker with many blocks is forgotten, and a snapshot taken in, over several calls. Owned by
    one thread. `clock` gives seconds that never go back.
    """

    def __init__(
        self,
        max_keys: int,
        *,
        expect_s: float = EXPECT_S,
        clock: Callable[[], float] = time.monotonic,
        table: BlockTable | None = None,
    ) -> None:
        self._table = table if table is not None else make_table(max_keys)
        self._expect_ticks = round(expect_s * _TICKS_A_SECOND)
        self._clock = clock
        self._start_s = clock()
        self._slots: dict[str, int] = {}
        self._staged: dict[str, int] = {}
        self._expecting: set[int] = set()
        self._must_sweep = False
        self.has_lower_tiers = False
        """Whether anything below the device was ever told of."""

    def __len__(self) -> int:
        """Keys held, with those of forgotten workers that are still to be swept."""
        return len(self._table)

    @property
    def workers(self) -> frozenset[str]:
        """Workers whose cache is known, even if it is empty."""
        return frozenset(self._slots)

    def knows(self, worker: str) -> bool:
        """Whether the worker's cache is known, even if it is empty."""
        return worker in self._slots

    def num_keys(self, worker: str, tier: Tier = Tier.DEVICE) -> int:
        """Keys that `worker` is known to hold in `tier`."""
        return self._table.count(self._slots[worker], tier) if worker in self._slots else 0

    def store(self, worker: str, keys: Sequence[bytes], tier: Tier = Tier.DEVICE) -> None:
        """`worker` can find these blocks from here on. `keys` is a chain, or in no order.

        Raises ValueError for a key that has not 16 bytes.
        """
        self._tidy()
        self.has_lower_tiers |= tier != Tier.DEVICE
        self._table.store(self._slot(worker), tier, keys)

    def remove(self, worker: str, keys: Sequence[bytes], tier: Tier = Tier.DEVICE) -> None:
        """`worker` cannot find these blocks any more. Unknown keys are fine; ValueError as for `store`."""
        self._tidy()
        if worker in self._slots:
            self._table.remove(self._slots[worker], tier, keys, self._tick())

    def clear(self, worker: str) -> None:
        """`worker` holds nothing. It stays known."""
        self._tidy()
        slot = self._slot(worker)
        if slot in self._expecting or any(self._table.count(slot, tier) for tier in Tier):
            self._retire(slot)
            self._slots[worker] = self._acquire()

    def drop(self, worker: str) -> None:
        """Nothing is known about `worker`, and nothing staged for it."""
        self._tidy()
        self.abandon(worker)
        if worker in self._slots:
            self._retire(self._slots.pop(worker))

    def stage(self, worker: str, keys: Sequence[bytes], tier: Tier = Tier.DEVICE) -> None:
        """A part of a snapshot, which counts for nothing before `commit`. ValueError as for `store`."""
        self._tidy()
        self.has_lower_tiers |= tier != Tier.DEVICE
        if worker not in self._staged:
            self._staged[worker] = self._acquire()
        self._table.store(self._staged[worker], tier, keys)

    def commit(self, worker: str) -> None:
        """What was staged replaces what was known of `worker`. At least one part was staged, be it an empty one."""
        staged = self._staged.pop(worker)
        if worker in self._slots:
            self._retire(self._slots[worker])
        self._slots[worker] = staged

    def abandon(self, worker: str) -> None:
        """Forgets what was staged, if anything."""
        if worker in self._staged:
            self._retire(self._staged.pop(worker))

    def expect(self, worker: str, keys: KeyChain) -> int:
        """A request with these blocks goes to `worker`: they count as cached there for `expect_s`.

        So that many equal prompts at once stay together. Without effect for a worker that tells nothing of its cache.
        Returns what `withdraw` wants.
        """
        slot = self._slots.get(worker)
        if slot is None:
            return 0
        tick = self._tick()
        self._expecting.add(slot)
        self._table.expect(slot, keys, tick, tick + self._expect_ticks)
        return tick + self._expect_ticks

    def withdraw(self, worker: str, keys: KeyChain, expectation: int) -> None:
        """The request did not go to `worker` after all. What later picks expect there stays expected."""
        slot = self._slots.get(worker)
        if slot is not None and expectation:
            self._table.withdraw(slot, keys, self._tick(), expectation)

    def match(self, keys: KeyChain | Iterable[bytes]) -> dict[str, int]:
        """Leading blocks of `keys` that each worker has, or soon has, on its device; workers with none are left out.

        A chain is hashed little further than anybody matches.
        """
        self._walk(keys)
        depths = self._table.depths(Level.SOON)
        return {worker: depth for worker, slot in self._slots.items() if (depth := depths[slot])}

    def match_tiers(self, keys: KeyChain | Iterable[bytes]) -> dict[str, CachedPrefix]:
        """`match` for every tier; workers that hold nothing in any are left out."""
        self._walk(keys)
        return self.tiers_of_last_match()

    def tiers_of_last_match(self) -> dict[str, CachedPrefix]:
        """What `match_tiers` would have answered in place of the last `match`."""
        device, soon, memory, disk = (self._table.depths(level) for level in Level)
        return {
            worker: CachedPrefix(device[slot], soon[slot], memory[slot], disk[slot])
            for worker, slot in self._slots.items()
            if disk[slot]
        }

    def settle(self) -> None:
        """Finishes forgetting; as long as it takes, so not for a running event loop."""
        while self._table.sweep(SWEEP_KEYS, self._tick()):
            pass
        self._must_sweep = False

    def _walk(self, keys: KeyChain | Iterable[bytes]) -> None:
        self._tidy()
        self._table.match(keys if isinstance(keys, KeyChain) else KeyChain.of(keys), self._tick())

    def _tick(self) -> int:
        return int((self._clock() - self._start_s) * _TICKS_A_SECOND) + 1

    def _tidy(self) -> None:
        if self._must_sweep:
            self._must_sweep = self._table.sweep(SWEEP_KEYS, self._tick())

    def _slot(self, worker: str) -> int:
        slot = self._slots.get(worker)
        if slot is None:
            slot = self._slots[worker] = self._acquire()
        return slot

    def _acquire(self) -> int:
        slot = self._table.acquire()
        if slot < 0:
            self.settle()
            slot = self._table.acquire()
        if slot < 0:
            raise RuntimeError("the prefix index is full of workers; it takes 16,384")
        return slot

    def _retire(self, slot: int) -> None:
        self._expecting.discard(slot)
        self._table.retire(slot)
        self._must_sweep = True
