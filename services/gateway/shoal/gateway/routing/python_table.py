"""BlockTable in Python: an ordered dictionary of bit masks, some 200 bytes a key."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import Final

from shoal.blocks import KeyChain, join_keys

_NUM_TIERS: Final = 3


class _Block:
    """Who holds one block: a mask of slots for each tier, and (until, slot) of those expected to."""

    __slots__ = ("expected", "masks")

    def __init__(self) -> None:
        self.masks = [0] * _NUM_TIERS
        self.expected: tuple[tuple[int, int], ...] = ()

    def is_empty(self, tick: int) -> bool:
        return not any(self.masks) and all(until <= tick for until, _ in self.expected)


class PythonTable:
    """See BlockTable. Retiring a slot and sweeping look at every key at once."""

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()
        self._live = 0
        self._must_sweep = False
        self._counts: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._depths: list[defaultdict[int, int]] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def acquire(self) -> int:
        """See BlockTable. Never -1."""
        bit = ~self._live & (self._live + 1)
        self._live |= bit
        return bit.bit_length() - 1

    def retire(self, slot: int) -> None:
        """See BlockTable. The slot is free at once."""
        self._live &= ~(1 << slot)
        self._must_sweep = True
        for key in self._blocks:
            for tier in range(_NUM_TIERS):
                self._clear(key, slot, tier)
            self._unexpect(key, slot)

    def sweep(self, budget: int, tick: int) -> bool:
        """See BlockTable. Whatever the budget, it is all done at once."""
        if self._must_sweep:
            self._must_sweep = False
            for key in list(self._blocks):
                self._drop_if_empty(key, tick)
        return False

    def store(self, slot: int, tier: int, keys: Sequence[bytes]) -> None:
        """See BlockTable."""
        join_keys(keys)
        bit = 1 << slot
        for key in reversed(keys):
            masks = self._find_or_add(key).masks
            self._counts[slot, tier] += not masks[tier] & bit
            masks[tier] |= bit

    def remove(self, slot: int, tier: int, keys: Sequence[bytes], tick: int) -> None:
        """See BlockTable."""
        join_keys(keys)
        for key in keys:
            if key in self._blocks:
                self._clear(key, slot, tier)
                if tier == 0:
                    self._unexpect(key, slot)
                self._drop_if_empty(key, tick)

    def expect(self, slot: int, keys: KeyChain, tick: int, until: int) -> None:
        """See BlockTable."""
        for key in reversed(list(keys)):
            block = self._find_or_add(key)
            if not block.masks[0] >> slot & 1:
                others = [e for e in block.expected if e[0] > tick and e[1] != slot]
                block.expected = (*others[-1:], (until, slot))

    def match(self, keys: KeyChain, tick: int) -> int:
        """See BlockTable."""
        alive = [self._live] * (_NUM_TIERS + 1)
        self._depths = [defaultdict(int) for _ in alive]
        matched: list[bytes] = []
        for key in keys:
            block = self._blocks.get(key)
            held = self._held(block, tick) if block is not None else [0] * len(alive)
            for level, mask in enumerate(held):
                self._note(level, alive[level] & ~mask, len(matched))
                alive[level] &= mask
            if not alive[-1]:
                break
            matched.append(key)
        for level, mask in enumerate(alive):
            self._note(level, mask, len(matched))
        for key in reversed(matched):
            self._blocks.move_to_end(key)
        return len(matched)

    def depths(self, level: int) -> Sequence[int]:
        """See BlockTable."""
        return self._depths[level]  # type: ignore[return-value]  # indexing is all that is asked of it

    def count(self, slot: int, tier: int) -> int:
        """See BlockTable."""
        return self._counts[slot, tier]

    def _held(self, block: _Block, tick: int) -> list[int]:
        device, memory, disk = block.masks
        soon = device
        for until, slot in block.expected:
            soon |= (until > tick) << slot
        return [device, soon, soon | memory, soon | memory | disk]

    def _note(self, level: int, slots: int, depth: int) -> None:
        while slots:
            bit = slots & -slots
            self._depths[level][bit.bit_length() - 1] = depth
            slots ^= bit

    def _find_or_add(self, key: bytes) -> _Block:
        block = self._blocks.get(key)
        if block is None:
            if len(self._blocks) == self._max_keys:
                self._evict_oldest()
            block = self._blocks[key] = _Block()
        else:
            self._blocks.move_to_end(key)
        return block

    def _evict_oldest(self) -> None:
        key = next(iter(self._blocks))
        for tier, mask in enumerate(self._blocks[key].masks):
            for slot in range(mask.bit_length()):
                if mask >> slot & 1:
                    self._clear(key, slot, tier)
        del self._blocks[key]

    def _clear(self, key: bytes, slot: int, tier: int) -> None:
        masks, bit = self._blocks[key].masks, 1 << slot
        if masks[tier] & bit:
            masks[tier] &= ~bit
            self._counts[slot, tier] -= 1

    def _unexpect(self, key: bytes, slot: int) -> None:
        block = self._blocks[key]
        block.expected = tuple(e for e in block.expected if e[1] != slot)

    def _drop_if_empty(self, key: bytes, tick: int) -> None:
        if self._blocks[key].is_empty(tick):
            del self._blocks[key]
