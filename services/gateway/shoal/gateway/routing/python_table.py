"""BlockTable in Python: an ordered dictionary of bit masks, some 330 bytes a key."""

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
    """See BlockTable."""

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._blocks: OrderedDict[bytes, _Block] = OrderedDict()
        self._live = self._retired = self._sweeping = 0
        self._to_sweep: list[bytes] = []
        self._counts: defaultdict[tuple[int, int], int] = defaultdict(int)
        self._depths: list[defaultdict[int, int]] = []

    def __len__(self) -> int:
        return len(self._blocks)

    def acquire(self) -> int:
        """See BlockTable. Never -1."""
        taken = self._live | self._retired | self._sweeping
        bit = ~taken & (taken + 1)
        self._live |= bit
        return bit.bit_length() - 1

    def retire(self, slot: int) -> None:
        """See BlockTable."""
        self._live &= ~(1 << slot)
        self._retired |= 1 << slot

    def sweep(self, budget: int, tick: int) -> bool:
        """See BlockTable. The first call of a sweep lists every key."""
        if not self._sweeping:
            self._sweeping, self._retired = self._retired, 0
            self._to_sweep = list(self._blocks) if self._sweeping else []
        for key in self._to_sweep[-budget:]:
            block = self._blocks.get(key)
            if block is not None:
                for tier, mask in enumerate(block.masks):
                    if mask & self._sweeping:
                        self._clear(block, tier, self._sweeping)
                block.expected = tuple(e for e in block.expected if e[0] > tick and not self._sweeping >> e[1] & 1)
                self._drop_if_empty(key, block, tick)
        del self._to_sweep[-budget:]
        if not self._to_sweep:
            self._sweeping = 0
        return bool(self._sweeping or self._retired)

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
            block = self._blocks.get(key)
            if block is not None:
                self._clear(block, tier, 1 << slot)
                if tier == 0:
                    block.expected = tuple(e for e in block.expected if e[1] != slot)
                self._drop_if_empty(key, block, tick)

    def expect(self, slot: int, keys: KeyChain, tick: int, until: int) -> None:
        """See BlockTable."""
        for key in reversed(list(keys)):
            block = self._find_or_add(key)
            if not block.masks[0] >> slot & 1:
                others = [e for e in block.expected if e[0] > tick and e[1] != slot and self._live >> e[1] & 1]
                block.expected = (*others[-1:], (until, slot))

    def withdraw(self, slot: int, keys: KeyChain, tick: int, until: int) -> None:
        """See BlockTable."""
        for key in list(keys)[: keys.num_hashed]:
            block = self._blocks.get(key)
            if block is not None:
                block.expected = tuple(e for e in block.expected if e[1] != slot or e[0] > until)
                self._drop_if_empty(key, block, tick)

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
        _, block = self._blocks.popitem(last=False)
        for tier, mask in enumerate(block.masks):
            self._clear(block, tier, mask)

    def _clear(self, block: _Block, tier: int, slots: int) -> None:
        lost = block.masks[tier] & slots
        block.masks[tier] ^= lost
        while lost:
            bit = lost & -lost
            self._counts[bit.bit_length() - 1, tier] -= 1
            lost ^= bit

    def _drop_if_empty(self, key: bytes, block: _Block, tick: int) -> None:
        if block.is_empty(tick):
            del self._blocks[key]
