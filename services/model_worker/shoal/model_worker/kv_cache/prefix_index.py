"""Which block holds the KV of which tokens."""

from __future__ import annotations

from collections.abc import Sequence


class PrefixIndex:
    """A one-to-one map between block keys and the blocks that hold their KV.

    A key chains all tokens before it (`shoal.blocks`), so equal keys mean equal KV and a lookup needs no tree. The
    manager keeps the index prefix-closed: a key is found only if its parent is. Not thread-safe.
    """

    __slots__ = ("_block_of", "_key_of", "_parent_of")

    def __init__(self, num_blocks: int) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._parent_of: list[bytes] = [b""] * num_blocks

    def __len__(self) -> int:
        return len(self._block_of)

    def get(self, key: bytes) -> int | None:
        """The block under the key."""
        return self._block_of.get(key)

    def key_of(self, block_id: int) -> bytes | None:
        """The key that the block is found under."""
        return self._key_of[block_id]

    def parent_of(self, block_id: int) -> bytes:
        """The key before that of a block in the index: another block's, or a namespace key."""
        return self._parent_of[block_id]

    def longest_prefix(self, keys: Sequence[bytes]) -> list[int]:
        """The blocks of the leading keys that are all found."""
        blocks = []
        for key in keys:
            block_id = self._block_of.get(key)
            if block_id is None:
                break
            blocks.append(block_id)
        return blocks

    def put(self, key: bytes, block_id: int, parent_key: bytes) -> None:
        """Makes the block findable. Neither the key nor the block may be in the index."""
        if key in self._block_of or self._key_of[block_id] is not None:
            raise ValueError(f"KV block {block_id} or its key is already in the prefix index")
        self._block_of[key] = block_id
        self._key_of[block_id] = key
        self._parent_of[block_id] = parent_key

    def drop(self, block_id: int) -> bytes | None:
        """Forgets the block; returns the key it had."""
        key = self._key_of[block_id]
        if key is not None:
            self._key_of[block_id] = None
            del self._block_of[key]
        return key

    def all_keys(self) -> list[bytes]:
        """All keys. O(index): for tests and debugging."""
        return list(self._block_of)

    def clear(self) -> None:
        """Forgets everything."""
        for block_id in self._block_of.values():
            self._key_of[block_id] = None
        self._block_of.clear()
